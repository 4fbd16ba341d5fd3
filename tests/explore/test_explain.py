"""Labels that a language model proposes: scored, kept, resumed and shown, with a stub server and the embedded model."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.explore.app.session import open_session
from sae_lens_sparsemax.explore.explain import ExplainSettings, Proposal, beats_chance, explain
from sae_lens_sparsemax.explore.explainers import LocalModel, Server, clean_label
from sae_lens_sparsemax.explore.explored import Explored, find_explored
from sae_lens_sparsemax.explore.export import export
from sae_lens_sparsemax.explore.labels import labels_of
from tests.explore.test_explore_images import read


@pytest.fixture
def sae(text_world, text_pages, tmp_path):
    folder = tmp_path / "sae"
    shutil.copytree(text_world / "sae", folder)
    shutil.copytree(text_pages, folder / "explore")
    return folder


@pytest.fixture
def server():
    """A function that starts an OpenAI-compatible server, which answers what a function of the question says."""
    running = []

    def start(say):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions" and asked["model"] == "stub" and asked["max_tokens"] > 0
                status, text = say(asked["messages"][0]["content"])
                body = text if status != 200 else json.dumps({"choices": [{"message": {"content": text}}]})
                self.send_response(status)
                self.send_header("Location", "http://example.com/")
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever).start()
        return f"http://127.0.0.1:{running[-1].server_port}/v1"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def oracle(pages, concept):
    """Says whether a concept is active in a text, from the pages; counts its questions."""
    active = {" ".join("".join(pages.tokens(e.sample)).split()) for e in pages.examples(concept)}
    asked = []

    def say(question):
        asked.append(question)
        if "have in common" in question:
            assert question.count("<<") > 1
            return 200, '\nLabel: "**Stones** and rivers."\nmore'
        assert "Stones and rivers" in question
        text = re.search(r"Text: (.*)\n", question)[1]
        return 200, "Yes, it does." if any(text in whole for whole in active) else "No."

    return say, asked


def test_a_label_is_proposed_scored_kept_and_shown(sae, server, capsys):
    pages = find_explored(sae)
    concept = next(c for c in range(96) if 4 <= len(pages.concept(c)["e"]) < 6)  # all its contexts are examples
    say, asked = oracle(pages, concept)
    words = ["explain", str(sae), "--explainer", server(say), "--explainer_model", "stub"]
    assert main([*words, "--concepts", f"[{concept}]"]) == 0
    assert "1 of 1 labels score above 0.5" in capsys.readouterr().out
    kept = json.loads((sae / "explanations.json").read_text())["concepts"][str(concept)]
    assert kept["label"] == "Stones and rivers" and kept["score"] == 1 and kept["n"] == len(asked) - 1 >= 4
    assert kept["p_value"] == 0.5 ** kept["n"]
    assert len({*asked[1:]}) == len(asked) - 1  # no text twice
    held_out = [re.search(r"Text: (.*)\n", question)[1] for question in asked[1:]]
    shown = re.sub("<<|>>", "", asked[0])
    assert sum(text in shown for text in held_out) <= kept["n"] - 2  # text repeats itself here, contexts do not
    assert read(sae / "explore", "0/table")["label"][concept] == "Stones and rivers (proposed, 100% right)"
    assert labels_of(sae)[concept].score == 1 and labels_of(sae / "explore", pages)[concept].by == "stub"

    n_asked = len(asked)
    assert main([*words, "--concepts", f"[{concept}]"]) == 0 and len(asked) == n_asked  # nothing is asked twice
    assert main([*words, "--concepts", f"[{concept}]", "--seed", "1"]) == 2
    assert "proposals with another seed" in capsys.readouterr().err
    assert open_session(str(sae)).labels[concept] == "Stones and rivers (proposed, 100% right)"
    (sae / "labels.csv").write_text(f"concept,label\n{concept},mine\n")
    assert labels_of(sae)[concept].text == "mine"
    assert explain(sae, ExplainSettings(concepts=[concept]), model=Server("http://localhost/v1", "stub"))
    assert read(sae / "explore", "0/table")["label"][concept] == "mine"


def test_what_was_proposed_before_a_failure_is_kept_and_not_asked_again(sae, server, capsys):
    n_labels = 0

    def say(question):
        nonlocal n_labels
        n_labels += "have in common" in question
        return (500, "broken") if n_labels == 3 else (200, "rivers" if "in common" in question else "maybe")

    words = ["explain", str(sae), "--explainer", server(say), "--explainer_model", "stub", "--n_concepts", "4"]
    assert main([*words, "--n_scored", "2"]) == 2
    assert "explainer must be an address that answers" in capsys.readouterr().err
    assert len(json.loads((sae / "explanations.json").read_text())["concepts"]) == 2
    n_labels = 10
    assert main([*words, "--n_scored", "2"]) == 0 and n_labels == 12
    kept = json.loads((sae / "explanations.json").read_text())["concepts"]
    assert len(kept) == 4 and {each["score"] for each in kept.values()} == {None}  # neither yes nor no


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (404, json.dumps({"error": {"message": "model 'stub' not found, try pulling it"}}), "try pulling it"),
        (429, "Rate limit reached:\n\ttry again in 20s" + "." * 10_000, "Rate limit reached: try again in 20s"),
        (400, "", "HTTP Error 400"),
        (200, [{"type": "text", "text": "stones"}], "must answer as OpenAI's servers do"),
        (200, {"text": "stones"}, "must answer as OpenAI's servers do"),
    ],
)
def test_what_the_server_says_of_a_refusal_is_told_and_no_other_answer_is_a_label(
    sae, server, capsys, status, said, told
):
    words = ["--explainer", server(lambda _: (status, said)), "--explainer_model", "stub", "--n_concepts", "1"]
    assert main(["explain", str(sae), *words]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error) < 2000 and not (sae / "explanations.json").exists()


def test_what_a_model_thinks_is_no_label_and_no_answer(sae, server, caplog):
    thoughts = "<think>\nYes, so these are stones.\n</think>\n\n"

    def say(question):
        return 200, thoughts + ("Rivers\ud83e and \x1b[31mseas" if "in common" in question else "No.")

    settings = {"explainer_model": "stub", "n_concepts": 2, "n_scored": 2}
    found = explain(sae, ExplainSettings(explainer=server(say), **settings), progress=False)
    assert {each.label for each in found.values()} == {"Rivers and [31mseas"} and all(each.n for each in found.values())
    assert {each.score for each in found.values()} <= {0.5, None}  # it says no of all
    export(sae, sae / "labels_too.csv")  # what a label holds can be written

    (sae / "explanations.json").unlink()
    endless = ExplainSettings(explainer=server(lambda _: (200, "<think>\nOkay, yes, the words")), **settings)
    assert explain(sae, endless, progress=False) == {} and not (sae / "explanations.json").exists()
    assert "2 of 2 concepts got no label: stub answered without words" in caplog.text


def test_wrong_input_is_refused_in_a_sentence(sae, text_world, image_pages, server, capsys, tmp_path):
    redirecting = server(lambda _: (302, ""))
    for words, message in (
        ([str(sae)], "explainer must be a language model"),
        ([str(sae), "--explainer", "http://example.com/v1"], "explainer must be an address of this machine"),
        ([str(sae), "--explainer", "http://localhost.evil.org/v1"], "explainer must be an address of this machine"),
        ([str(sae), "--explainer", "ftp://localhost"], "explainer must be a folder, a name on the hub"),
        ([str(sae), "--explainer", str(tmp_path / "none")], "none"),
        ([str(sae), "--explainer", redirecting, "--explainer_model", "stub"], "must be an address that answers"),
        ([str(sae), "--explainer", "http://127.0.0.1:9/v1"], "must be an address that answers"),
        ([str(sae), "--explainer", "http://[::1]:9/v1", "--concepts", "[96]"], "concepts must be between 0 and 95"),
        ([str(sae), "--explainer", "quickstart", "--n_scored", "0"], "n_scored must be at least 1"),
        ([str(image_pages), "--explainer", "quickstart"], "path must be an SAE on text"),
        ([str(tmp_path), "--explainer", "quickstart"], "holds no SAE"),
        ([str(text_world / "sae"), "--explainer", "quickstart"], "path must be an SAE that has been explored"),
    ):
        assert main(["explain", *words]) == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said
    assert not (sae / "explanations.json").exists()


def test_what_is_marked_of_activations_below_zero_is_their_strongest(signed_pages, tmp_path):
    shutil.copytree(signed_pages, tmp_path / "explore")
    pages, asked = Explored(tmp_path / "explore"), []
    found = {c: pages.examples(c) for c in range(pages.d_sae)}
    concept, examples = next((c, each) for c, each in found.items() if len(each) == 4 and max(each[0].acts) <= 0)
    model = Server("http://localhost/v1", "stub")
    model.answer = lambda question, _: asked.append(question) or "stones"
    explain(tmp_path / "explore", ExplainSettings(concepts=[concept]), model=model, progress=False)
    marked = re.findall("<<(.*?)>>", asked[0])
    for example in examples[::2]:
        assert any(pages.tokens(example.sample)[example.peak].strip() in text for text in marked)
    assert len("".join(marked)) < len(asked[0]) / 4


def test_the_embedded_model_answers_and_says_yes_or_no(sae):
    model = LocalModel("quickstart")
    assert isinstance(model.answer("The United", 5), str) and model.says_yes("Is it?") in (True, False)
    found = explain(sae, ExplainSettings(n_concepts=1, n_scored=2), model=model, progress=False)
    assert len(found) == 1 and all(0 <= p.score <= 1 for p in found.values() if p.score is not None)


def test_labels_are_cleaned_and_chance_is_a_coin():
    assert (
        clean_label("\n- **Explanation:** Dates.\nmore") == "Dates" == clean_label("1. Dates")
        and clean_label(" \n--\n") == ""
    )
    assert beats_chance(Proposal("a", 1.0, 6, 0.5**6)) and not beats_chance(Proposal("a", 1.0, 4, 0.5**4))
