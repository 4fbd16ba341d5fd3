"""The command `evaluate`: SAELens's harness, or one of the suites, on one saved SAE."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_sparsemax.display.tables import text_table

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

HELP = "Measure a saved SAE of any SAELens architecture."
USAGE = (
    "SAE [--suite NAME] [--config RECIPE] [--groups A,B] [--output_path FOLDER] [--overwrite] [--KEY VALUE ...] "
    "[--debug]"
)
STOPPED = "Finished metric groups are kept: the same command goes on where it stopped."
SUITES = ("saelens", "text", "vision", "all")

EPILOG = """\
suites:
  saelens   SAELens's own harness with every metric on (the default for language models)
  text      reconstruction (NMSE variants, explained variance), L0 distribution, dead concepts, cross-entropy,
            KL divergence, on named sets of text; k-sparse probing on those and on sets of text with classes
  vision    reconstruction and geometry (FVU variants, CS, CKNNA, decoder orthogonality) over tokens and images,
            L0 per token, per image and against complexity, monosemanticity, zero-shot classification with the
            top-n concepts on and off, with controls (the default for image models)
  all       everything that applies to the SAE's model

examples:
  sparsemax-sae evaluate output/my_run
  sparsemax-sae evaluate output/my_run --dataset_path wikitext103_test.txt --batches 20
  sparsemax-sae evaluate user/repository:blocks.6.hook_resid_post --suite text \\
      --datasets.wikitext103.path wikitext103_test.txt \\
      --datasets.openwebtext.path openwebtext.jsonl --datasets.openwebtext.held_out true --held_out_fraction 0.1
  sparsemax-sae evaluate output/my_run --suite text --probing.reviews.path reviews.csv --probing_pooling mean
  sparsemax-sae evaluate output/my_clip_run --suite vision --dataset_path cifar10_test.parquet \\
      --counting_dataset.path cifar10_train.parquet --encoder facebook/dinov2-base --n_images 5000
  sparsemax-sae evaluate output/my_clip_run --config configs/evaluate/mini_clip_cifar10.yaml --groups zero_shot
  torchrun --nproc-per-node 4 -m sae_lens_sparsemax evaluate output/my_clip_run --suite vision --device cuda

Model, hook and context are read from the SAE's metadata; the keys below replace them, here or in the YAML file of
--config. '--suite NAME --help' shows those of one suite.

A suite writes results.json, report.md, pictures and a file for each metric group to evaluation/SUITE in the SAE's
folder, SAELens's harness evaluation.json beside it; of an SAE on the hub, to output/USER/REPOSITORY/ID here. A group
that was finished with the same settings is kept: the same command goes on where it stopped. Of several processes, each
takes the next group when it is free; SAELens's own harness runs in one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; settings such as ``--device cuda`` are taken out before."""
    parser.add_argument("path", help="folder of an SAE or checkpoint, or user/repository:id on the hub")
    parser.add_argument(
        "--suite", metavar="NAME", help="what to measure: saelens, text, vision or all (default: by the SAE's model)"
    )
    parser.add_argument("--config", metavar="RECIPE", help="YAML file or recipe with settings of the suite")
    parser.add_argument("--groups", help="only these metric groups of the suite (text or vision), commas between")
    parser.add_argument("--output_path", help="folder of the results; with saelens, JSON file")
    parser.add_argument("--overwrite", action="store_true", help="measure groups again that are finished")


def settings(words: Sequence[str]) -> list[Group]:
    """The settings of the suite among the words, or of all."""
    named = [suite for suite in SUITES if suite != "all" and {suite, f"--suite={suite}"} & set(words)]
    return suite_settings(*(named or ("saelens", "text", "vision")))


def suite_settings(*suites: str) -> list[Group]:
    """The settings of suites by name."""
    from sae_lens_sparsemax.evaluation.settings import EvaluationSettings, TextSuiteSettings, VisionSuiteSettings
    from sae_lens_sparsemax.settings.command_line import Group

    classes = {"saelens": EvaluationSettings, "text": TextSuiteSettings, "vision": VisionSuiteSettings}
    return [Group(f"settings of '--suite {suite}'", classes[suite]) for suite in suites]


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Evaluate as the arguments say; returns the exit status."""
    from sae_lens_sparsemax.evaluation.settings import text_settings, vision_settings
    from sae_lens_sparsemax.evaluation.suite.evaluate import default_folder, suite_of
    from sae_lens_sparsemax.files import read_object, refuse_to_replace, require_writable
    from sae_lens_sparsemax.models.language_models import load_each_once
    from sae_lens_sparsemax.models.saved_saes import load_sae
    from sae_lens_sparsemax.processes.failures import one_failure_ends_all
    from sae_lens_sparsemax.processes.together import is_first, own_device, own_part, together
    from sae_lens_sparsemax.settings.command_line import apply_overrides
    from sae_lens_sparsemax.settings.recipes import find_recipe
    from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of
    from sae_lens_sparsemax.settings.yaml_files import read_yaml

    with together():
        recipe = read_yaml(find_recipe(options.config, "evaluate")) if options.config is not None else {}
        given = apply_overrides(recipe, overrides)
        suite = options.suite
        if suite is not None and suite not in SUITES:
            raise must_be_one_of("suite", suite, SUITES)
        # Which suite it is may depend on the SAE; what no suite takes is found before it is loaded.
        _shares([suite] if suite in SUITES[:3] else list(SUITES[:3]), given)
        sae = load_sae(options.path, own_device(str(given.get("device") or "cpu")))
        load = load_each_once()
        if suite is None or suite == "all":
            kind = suite_of(sae)
            suites = ["saelens", "text"] if kind == "text" else ["vision"]
            suites = suites if suite == "all" else suites[:1]
        else:
            suites = [suite]
        if suites == ["saelens"] and (size := own_part()[1]) > 1:
            raise must_be("torchrun's --nproc-per-node", "1 with '--suite saelens', SAELens's own harness", size)
        if "saelens" in suites and options.groups is not None:
            raise must_be("--groups", "given with '--suite text': SAELens's own harness has none", options.groups)
        file = _harness_file(options, beside_text=len(suites) > 1)
        for each in suites:
            if each != "saelens":
                require_writable(options.output_path or default_folder(options.path, each), "--output_path")
            else:
                if file.is_dir():
                    raise must_be("--output_path", "a JSON file, with '--suite saelens'", str(file))
                require_writable(file.parent, "--output_path")
                refuse_to_replace(file, lambda path: "saelens" in read_object(path))
        shares = _shares(suites, given)
        # What is wrong with a later suite is found before the first begins.
        for each, own in shares.items():
            if each != "saelens":
                (text_settings if each == "text" else vision_settings)(own, sae)
    for each, own in shares.items():
        if each != "saelens":
            _suite(options, sae, load, each, own)
        elif is_first():  # the others begin with the next suite meanwhile
            with one_failure_ends_all("with the same command"):
                _saelens(options, sae, load, own, file)
    return 0


def _harness_file(options: argparse.Namespace, beside_text: bool) -> Path:
    """Where the results of SAELens's harness go."""
    from sae_lens_sparsemax.models.saved_saes import place_of

    if options.output_path is None:
        return place_of(options.path) / "evaluation.json"
    return options.output_path / "saelens.json" if beside_text else options.output_path


def _shares(suites: list[str], given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that each suite knows, all of them checked before the first suite begins."""
    from sae_lens_sparsemax.settings.checking import build, refuse_unknown_keys

    classes = {suite: suite_settings(suite)[0].cls for suite in suites}
    known = {suite: {field.name for field in dataclasses.fields(cls)} for suite, cls in classes.items()}
    refuse_unknown_keys(given, sorted(set.union(*known.values())))
    shares = {suite: {key: given[key] for key in given if key in known[suite]} for suite in suites}
    for suite, own in shares.items():
        build(classes[suite], own)
    return shares


def _saelens(options: argparse.Namespace, sae: Any, load: Any, settings: dict[str, Any], file: Path) -> None:
    from sae_lens_sparsemax.evaluation.harness import evaluate_sae, results_table
    from sae_lens_sparsemax.evaluation.settings import EvaluationSettings
    from sae_lens_sparsemax.files import save_json
    from sae_lens_sparsemax.settings.checking import build

    given = build(EvaluationSettings, settings)
    result = evaluate_sae(sae, given, load=load)
    on = result["on"]
    print(
        f"\n{options.path} at {on['hook_name']} of {on['model_name']}, on {on['dataset_path']} ({on['dataset_split']})"
    )
    print(text_table(results_table(result)))
    print(f"All metrics: {save_json(result, file)}")


def _suite(options: argparse.Namespace, sae: Any, load: Any, suite: Any, settings: dict[str, Any]) -> None:
    from sae_lens_sparsemax.evaluation.suite import evaluate_suite
    from sae_lens_sparsemax.evaluation.suite.report import tables
    from sae_lens_sparsemax.processes.together import is_first

    result = evaluate_suite(
        options.path,
        suite,
        settings,
        sae=sae,
        load=load,
        groups=[name.strip() for name in (options.groups or "").split(",") if name.strip()],
        output=options.output_path,
        overwrite=options.overwrite,
        say=lambda line: print(line, file=sys.stderr),
    )
    if not is_first():
        return
    for title, rows in tables(result.results):
        print(f"\n{title}")
        print(text_table(rows))
    print(f"\nReport: {result.report}; all measures: {result.folder / 'results.json'}")
