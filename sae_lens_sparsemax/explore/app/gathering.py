"""Pages made on the fly: `explore` of a few samples as a process of its own, whose pages the session then shows."""

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.data.loading import is_local_data
from sae_lens_sparsemax.data.quickstart import QUICKSTART
from sae_lens_sparsemax.explore.app.opening import open_pages, take_outliers
from sae_lens_sparsemax.explore.app.session import Session
from sae_lens_sparsemax.explore.explored import PAGES
from sae_lens_sparsemax.explore.labels import shown_labels
from sae_lens_sparsemax.explore.pages.folder import check_folder
from sae_lens_sparsemax.explore.pages.site import short_path
from sae_lens_sparsemax.explore.settings import AppSettings
from sae_lens_sparsemax.files import require_writable
from sae_lens_sparsemax.models.saved_saes import place_of

logger = logging.getLogger(__name__)
_N_SAMPLES = {"image": 500, "text": 200}
_SECONDS_TO_END = 5
_LAST_BYTES = 8_192
_ERROR = "sparsemax-sae: error: "
_BAR = re.compile(r"([A-Z][\w ]*): +(\d+)%")


class Gathering:
    """Gathers the examples of a session's SAE, once, for all windows that ask.

    Args:
        source: folder of the SAE, or `user/repository:id` on the hub.
        session: of this SAE; it gets the labels and the pages.
        settings: as the session was opened with.
    """

    def __init__(self, source: str, session: Session, settings: AppSettings) -> None:
        self.source, self.session, self.settings = source, session, settings
        self.output = Path()
        """The folder of pages that is being written."""
        self._process: subprocess.Popen[bytes] | None = None
        self._error: str | None = None
        self._started = 0.0
        self._lock = threading.RLock()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._has_ended = False

    def told(self) -> dict[str, Any]:
        """How far it is, as JSON values: `state` (`"offered"`, `"running"`, `"failed"` or `"done"`), `what` is read,
        `seconds` since it began, `progress` (its last bar, or None) and `error` (a sentence, or None)."""
        with self._lock:
            self._look()
            running = self._process is not None
            state = "running" if running else "failed" if self._error else "offered"
            return {
                "state": state if self.session.pages is None else "done",
                "what": self._what(),
                "seconds": int(time.monotonic() - self._started) if running else 0,
                "progress": self._progress() if running else None,
                "error": self._error,
            }

    def start(self) -> None:
        """Begin, if it is neither running nor done; pages that were written meanwhile are taken as they are."""
        with self._lock:
            self._look()
            if self.session.pages is not None or self._process is not None or self._has_ended:
                return
            self._error = None
            self._take(None)
            if self.session.pages is None and self._error is None:
                self._begin()

    def end(self) -> None:
        """Stop what runs, and take away what was written for this app alone."""
        with self._lock:
            process, self._process, self._has_ended = self._process, None, True
            if process is not None and process.poll() is None:
                # As Ctrl-C does, so that nothing half written is left; Windows has no such signal for one process.
                process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
                try:
                    process.wait(_SECONDS_TO_END)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if self._scratch is not None:
                self._scratch.cleanup()

    def _begin(self) -> None:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="sparsemax-sae-app-", ignore_cleanup_errors=True)
        self.output, self._started = self._place(Path(self._scratch.name)), time.monotonic()
        environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
        self._said = Path(self._scratch.name) / "said"
        try:
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(
                    self._command(), stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment
                )
        except OSError as error:
            self._error = f"explore cannot be started: {error}"

    def _command(self) -> list[str]:
        options = {
            "samples": _N_SAMPLES[self.session.kind],
            "output_path": self.output,
            "model_name": self.settings.model_name,
            "model_class_name": self.settings.model_class_name,
            "device": self.settings.device,
            "streaming": "true" if self._streams() else None,
        }
        words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "sae_lens_sparsemax", "explore", self.source, *words]

    def _look(self) -> None:
        """Notice that the process has ended, and take its pages or its error."""
        if self._process is None or (status := self._process.poll()) is None:
            return
        self._process = None
        if status == 0:
            self._take(str(self.output))
            return
        lines = [line.strip() for line in self._last_said().splitlines() if line.strip()]
        told = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
        self._error = (told or lines or [f"explore ended with the status {status}."])[-1]

    def _take(self, folder: str | None) -> None:
        """Show the pages in a folder, or in the SAE's own, if they are of this SAE."""
        try:
            pages = open_pages(self.source, self.session.sae, folder)
            if pages is not None:
                take_outliers(self.session.sae, pages)
                self.session.labels = shown_labels(self.source, pages)
                self.session.pages = pages  # last, as they say that it is done
        except ValueError as error:
            self._error = str(error)

    def _place(self, scratch: Path) -> Path:
        """Where an SAE's pages lie, or a folder that goes with the app where they cannot be written there."""
        inside = place_of(self.source) / PAGES
        try:
            require_writable(inside.parent, "The folder of the SAE")
            check_folder(inside)
        except ValueError as error:
            logger.warning("The pages are gone when the app ends: %s", error)
            return scratch / PAGES
        return inside

    def _streams(self) -> bool:
        """Whether the first images are read as they come: a click downloads no data set. Texts always are."""
        path = self.session.sae.cfg.metadata.dataset_path
        return self.session.kind == "image" and bool(path) and path != QUICKSTART and not is_local_data(path)

    def _what(self) -> str:
        samples = "images" if self.session.kind == "image" else "contexts"
        data = self.session.sae.cfg.metadata.dataset_path
        return f"up to {_N_SAMPLES[self.session.kind]} {samples} of {short_path(data) if data else 'its data set'}"

    def _progress(self) -> str | None:
        bars = _BAR.findall(self._last_said())
        return "{}: {} %".format(*bars[-1]) if bars else None

    def _last_said(self) -> str:
        with self._said.open("rb") as said:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _LAST_BYTES))
            return said.read().decode(errors="replace")
