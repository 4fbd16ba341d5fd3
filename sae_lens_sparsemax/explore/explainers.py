"""Language models that propose labels: one on disk, or one behind an OpenAI-compatible address of this machine."""

import contextlib
import ipaddress
import json
import re
import unicodedata
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typing_extensions import override

from sae_lens_sparsemax.data.loading import name_to_load
from sae_lens_sparsemax.data.quickstart import QUICKSTART, quickstart_model_path
from sae_lens_sparsemax.files import reason
from sae_lens_sparsemax.settings.sentences import must_be, shown

_SECONDS = 300
_MOST_BYTES = 2**22
_LONGEST_REASON = 300


class LanguageModel(Protocol):
    """What is asked for labels, and whether they fit."""

    name: str
    """What it is called beside its proposals."""

    def answer(self, question: str, max_new_tokens: int) -> str:
        """What it says to a question."""
        ...

    def says_yes(self, question: str) -> bool | None:
        """Whether it says yes to a question; None if it says neither yes nor no."""
        ...


class LocalModel:
    """A text-generation model of Hugging Face.

    Args:
        name: a folder, a name on the hub, or `quickstart` for the model that the package carries.
        device: where it runs.

    Raises:
        ValueError: it cannot be loaded.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name = Path(name).name
        path = str(quickstart_model_path()) if name == QUICKSTART else name_to_load(name, "explainer")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            model: Any = AutoModelForCausalLM.from_pretrained(path)
            self.model = model.to(device).eval()
        except Exception as error:  # readers of model files, tokenizers among them, have errors of every type
            raise ValueError(f"explainer must be a model that can be loaded, got {name!r}: {reason(error)}") from error
        # The first piece of either word, as it may follow the question.
        self._yes, self._no = (self._pieces(word) for word in ("yes", "no"))

    @torch.no_grad()
    def answer(self, question: str, max_new_tokens: int) -> str:
        """See `LanguageModel`; the likeliest tokens."""
        tokens = self._tokens(question)
        end = self.tokenizer.eos_token_id
        kept = {"attention_mask": torch.ones_like(tokens), "pad_token_id": end if end is not None else 0}
        found = self.model.generate(tokens, max_new_tokens=max_new_tokens, do_sample=False, **kept)
        return self.tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def says_yes(self, question: str) -> bool | None:
        """See `LanguageModel`; the likelier of the two words is what it says, as delphi takes it from probabilities."""
        logits = self.model(self._tokens(question)).logits[0, -1].float()
        return bool(logits[self._yes].logsumexp(0) > logits[self._no].logsumexp(0))

    def _tokens(self, question: str) -> torch.Tensor:
        if self.tokenizer.chat_template:
            said = [{"role": "user", "content": question}]
            text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(f"{question}\nAnswer:")["input_ids"]
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room and len(ids) > room - 64:  # the end of a question is what it asks
            ids = ids[-(room - 64) :]
        return torch.tensor([ids], device=self.model.device)

    def _pieces(self, word: str) -> list[int]:
        forms = (f"{space}{each}" for each in (word, word.title(), word.upper()) for space in ("", " "))
        return sorted({self.tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in forms})


class Server:
    """A model behind an OpenAI-compatible address, such as `http://localhost:11434/v1`; neither proxies nor redirects.

    Args:
        address: before `/chat/completions`.
        model: what the server calls the model.
        allow_remote: whether the address may be of another machine, which then sees the texts.

    Raises:
        ValueError: the address is none, or of another machine.
    """

    def __init__(self, address: str, model: str, allow_remote: bool = False) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise must_be("explainer", "a folder, a name on the hub, or an address with http:// or https://", address)
        if not (allow_remote or _is_here(parts.hostname)):
            raise must_be("explainer", "an address of this machine, unless allow_remote is true", address)
        self.address, self.model = address.rstrip("/"), model
        self.name = model or address
        self._opener = build_opener(ProxyHandler({}), _NoRedirects())

    def answer(self, question: str, max_new_tokens: int) -> str:
        """See `LanguageModel`.

        Raises:
            ValueError: the server does not answer, or not as OpenAI's does.
        """
        said = {"role": "user", "content": question}
        asked = {"model": self.model, "messages": [said], "max_tokens": max_new_tokens, "temperature": 0}
        request = Request(
            f"{self.address}/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=_SECONDS) as response:
                values = json.loads(response.read(_MOST_BYTES))
            content = values["choices"][0]["message"]["content"]
            if not isinstance(content, str | None):
                raise TypeError(f"its message is {shown(content)}")
            return content or ""
        except (URLError, OSError, HTTPException) as error:
            why = f"{error}{_told(error)}"
            raise ValueError(f"explainer must be an address that answers, got {self.address!r}: {why}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"explainer must answer as OpenAI's servers do; {self.address!r} did not") from error

    def says_yes(self, question: str) -> bool | None:
        """See `LanguageModel`."""
        said = re.search(r"\b(yes|no)\b", _without_thoughts(self.answer(question, 8)).lower())
        return None if said is None else said[1] == "yes"


def _told(error: Exception) -> str:
    """What a server says of why it refuses: it names the model, the limit or the field."""
    if not isinstance(error, HTTPError):
        return ""
    with contextlib.suppress(OSError, HTTPException):
        said = _one_line(error.read(_MOST_BYTES).decode(errors="replace"))
        return f": {said[:_LONGEST_REASON]}" if said else ""
    return ""


class _NoRedirects(HTTPRedirectHandler):
    @override
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None  # an answer with a redirect is then an error, like any other that is not 200


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_explainer(name: str, model: str = "", *, allow_remote: bool = False, device: str = "cpu") -> LanguageModel:
    """The language model behind a folder, a name on the hub, or an address; see `LocalModel` and `Server`."""
    return Server(name, model, allow_remote) if "://" in name else LocalModel(name, device)


def _without_thoughts(said: str) -> str:
    """An answer without what a model that reasons thinks before it, which may not have come to an end."""
    return re.sub(r"<think>.*?(</think>|$)", "", said, flags=re.DOTALL)


def _one_line(said: str) -> str:
    """A text as a line to show: without control characters, and without halves of characters, which no file takes."""
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in said).split())


def clean_label(said: str) -> str:
    """The label in an answer: its first line with words, without what models put around it, at most 120 letters."""
    for line in map(_one_line, _without_thoughts(said).splitlines()):
        line = re.sub(r"^\s*\d+[.)]\s|[*_`#\"“”]", "", line).strip(" -:.'")
        for start in ("label:", "answer:", "explanation:"):
            line = line[len(start) :].strip(" -:.'") if line.lower().startswith(start) else line
        if re.search(r"\w", line):
            return line[:120].rstrip()
    return ""
