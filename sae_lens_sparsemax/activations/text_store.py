"""SAELens's activations store, with a position in the data that can be saved and taken up again exactly.

SAELens saves how many documents were read. A resumed run then starts at a document, with an empty
shuffle buffer and another random state. Here the number of contexts drawn in this pass over the data,
the shuffle buffer and the random state are saved as well.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_sparsemax.activations.mixing import ResumableMixer

DATA_STATE_FILENAME = "data_state.safetensors"
_MIXER_PREFIX = "mixer."

logger = logging.getLogger(__name__)


class ResumableActivationsStore(ActivationsStore):
    """``ActivationsStore`` whose checkpoints hold everything that decides the next batch.

    But: batches that ``prefetch_llm_batches`` has made ahead are in no checkpoint, so with it the position
    is saved as SAELens does, and a run resumed from there is not exact.
    """

    sequences_drawn: int = 0
    """Contexts taken from the current pass over the data, by training and by evaluation."""
    is_prefetching: bool = False
    """Whether another thread draws batches ahead of training."""
    _mixer: ResumableMixer | None = None

    @override
    def _iterate_tokenized_sequences(self) -> Generator[torch.Tensor, None, None]:
        self.sequences_drawn = 0
        return self._counted(super()._iterate_tokenized_sequences())

    def _counted(self, sequences: Iterator[torch.Tensor]) -> Generator[torch.Tensor, None, None]:
        for sequence in sequences:
            self.sequences_drawn += 1
            yield sequence

    @override
    def get_data_loader(self) -> Iterator[Any]:
        self._mixer = ResumableMixer(
            self._iterate_filtered_activations(),
            buffer_size=self.n_batches_in_buffer * self.training_context_size,
            batch_size=self.train_batch_size_tokens,
            mix_fraction=self.activations_mixing_fraction,
        )
        return self._mixer

    @override
    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        super().save_to_checkpoint(checkpoint_path)
        if self._mixer is None or self.is_prefetching:
            return
        state = {_MIXER_PREFIX + key: value for key, value in self._mixer.state_dict().items()}
        state["sequences_drawn"] = torch.tensor(self.sequences_drawn)
        state["n_dataset_processed"] = torch.tensor(self.n_dataset_processed)
        state["cached_row"] = torch.tensor(getattr(self, "current_row_idx", 0))
        save_file(
            {key: value.contiguous() for key, value in state.items()},
            Path(checkpoint_path) / DATA_STATE_FILENAME,
        )

    @override
    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Move to the saved position and restore the shuffle buffer and torch's CPU random state.

        Raises:
            ValueError: the data set ends before the saved position, or the shuffle buffer's settings differ.
        """
        path = Path(checkpoint_path) / DATA_STATE_FILENAME
        if not path.is_file():
            logger.warning(
                "Resuming from %s is not exact: it has no %s, which only runs without prefetch_llm_batches write.",
                checkpoint_path,
                DATA_STATE_FILENAME,
            )
            super().load_from_checkpoint(checkpoint_path)
            return
        state = load_file(path, device=str(self.device))
        if self.cached_activation_dataset is None:
            self._skip_sequences(int(state["sequences_drawn"]))
        else:
            self.current_row_idx = int(state["cached_row"])
        # Documents are counted over all passes, contexts within this one.
        self.n_dataset_processed = int(state["n_dataset_processed"])
        mixer_state = {
            key.removeprefix(_MIXER_PREFIX): value for key, value in state.items() if key.startswith(_MIXER_PREFIX)
        }
        self._dataloader = self.get_data_loader()
        assert self._mixer is not None
        self._mixer.load_state_dict(mixer_state)

    def _skip_sequences(self, count: int) -> None:
        for _ in tqdm(range(count), desc="Moving to the saved position in the data", leave=False):
            if next(self.iterable_sequences, None) is None:
                raise ValueError(
                    f"The data set ends after {self.sequences_drawn} contexts, but the checkpoint was made "
                    f"after {count}: resume with the data set of the original run."
                )
