"""The two stores that training draws from, with a position in the data that can be saved and taken up exactly.

`MixedActivationsStore` shuffles what an `ActivationSource` gives: images through a model, or a cache of either kind.
`ResumableActivationsStore` is SAELens's own store for a language model. SAELens saves how many documents were read; a
resumed run then starts at a document, with an empty shuffle buffer and another random state. Here the number of
contexts drawn in this pass over the data, the shuffle buffer and the random state are saved as well.
"""

import json
import logging
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_sparsemax.activations.mixing import ResumableMixer
from sae_lens_sparsemax.activations.sources import ActivationBatch, ActivationSource
from sae_lens_sparsemax.data.order import Position
from sae_lens_sparsemax.files import read_tensors, reading, save_tensors

MIXED_STATE_FILENAME = "mixed_activations_store.safetensors"
_EARLIER_MIXED_STATE_FILENAME = "vision_activations_store.safetensors"
"""What it was called when only images had such a store."""
DATA_STATE_FILENAME = "data_state.safetensors"
_MIXER_PREFIX = "mixer."

logger = logging.getLogger(__name__)


class MixedActivationsStore:
    """Batches of shuffled activations without end: SAELens's `DataProvider` for any source.

    Args:
        source: where the activations come from.
        batch_size: tokens in a batch.
        buffer_size: tokens in the shuffle buffer.
        mix_fraction: share of the buffer kept back at each refill; 0 leaves the tokens in order.
        prefetch: batches of the source that a second thread makes ahead of the training step; worth it where the
            model and the SAE do not compete for the same processor.
    """

    def __init__(
        self,
        source: ActivationSource,
        batch_size: int,
        buffer_size: int,
        mix_fraction: float = 0.5,
        prefetch: int = 0,
    ):
        self.source, self.prefetch = source, prefetch
        self.n_inputs, self.n_bad_inputs = 0, 0
        """Images or contexts whose tokens have entered the shuffle buffer, and those left out."""
        self._position: Position | None = None
        self._ahead: PrefetchingIterator[ActivationBatch] | None = None
        self._made: Iterator[ActivationBatch] | None = None
        self._mixer = ResumableMixer(self._activations(), buffer_size, batch_size, mix_fraction)

    def __iter__(self) -> "MixedActivationsStore":
        return self

    def __next__(self) -> torch.Tensor:
        """The next batch of activations, `(batch_size, d_in)`."""
        return next(self._mixer)

    def _activations(self) -> Iterator[torch.Tensor]:
        batches = self._made = self.source.batches(self._position)
        if self.prefetch:
            batches = self._ahead = PrefetchingIterator(batches, self.prefetch)
        for batch in batches:
            # Counted when they are used, not when they are made: what lies ahead is made again after a
            # resume.
            self._position = batch.position
            self.n_inputs += len(batch.lengths)
            self.n_bad_inputs += batch.n_bad_inputs
            yield batch.acts

    def paused(self) -> AbstractContextManager[None]:
        """A context in which the model is free for something else; take no batch inside it."""
        return self._ahead.paused() if self._ahead is not None else nullcontext()

    def close(self) -> None:
        """Stop the second thread, or else the processes that decode. No batch can be taken afterwards."""
        if self._ahead is not None:
            self._ahead.close()
        elif isinstance(self._made, Generator):
            self._made.close()

    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Write the position in the data, the counts, the shuffle buffer and torch's CPU random state."""
        counts = {"position": self._position, "n_inputs": self.n_inputs, "n_bad_inputs": self.n_bad_inputs}
        save_tensors(
            self._mixer.state_dict(), Path(checkpoint_path) / MIXED_STATE_FILENAME, {"store": json.dumps(counts)}
        )

    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Continue where `save_to_checkpoint` was called; call it before the first batch.

        Raises:
            ValueError: there is no saved state, or it was saved with another batch or buffer size.
        """
        folder = Path(checkpoint_path)
        paths = [folder / name for name in (MIXED_STATE_FILENAME, _EARLIER_MIXED_STATE_FILENAME)]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ValueError(
                f"{str(checkpoint_path)!r} holds no state of a store of mixed activations ({MIXED_STATE_FILENAME})"
                + (": it was made without a cache." if (folder / DATA_STATE_FILENAME).is_file() else ".")
            )
        state, metadata = read_tensors(path, beside=("store",))
        with reading(path):
            counts: dict[str, Any] = json.loads(metadata["store"])
            self._position = counts["position"]
            self.n_inputs = counts["n_inputs"] if "n_inputs" in counts else counts["n_images"]
            self.n_bad_inputs = counts["n_bad_inputs"] if "n_bad_inputs" in counts else counts["n_bad_images"]
        self._mixer.load_state_dict(state)


class ResumableActivationsStore(ActivationsStore):
    """`ActivationsStore` whose checkpoints hold everything that decides the next batch.

    But: batches that `prefetch_llm_batches` has made ahead are in no checkpoint, so with it the position
    is saved as SAELens does, and a run resumed from there is not exact.
    """

    sequences_drawn: int = 0
    """Contexts taken from the current pass over the data."""
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
        save_tensors(state, Path(checkpoint_path) / DATA_STATE_FILENAME)

    @override
    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Move to the saved position and restore the shuffle buffer and torch's CPU random state.

        Raises:
            ValueError: the data set ends before the saved position, the shuffle buffer's settings differ, or the
                checkpoint was made with a cache.
        """
        path = Path(checkpoint_path) / DATA_STATE_FILENAME
        if (path.parent / MIXED_STATE_FILENAME).is_file():
            raise ValueError("The checkpoint was made with cached activations; set 'cached_activations_path' again.")
        if not path.is_file():
            logger.warning(
                "Resuming from %s is not exact: it has no %s, which only runs without prefetch_llm_batches write.",
                checkpoint_path,
                DATA_STATE_FILENAME,
            )
            super().load_from_checkpoint(checkpoint_path)
            return
        state, _ = read_tensors(path, self.device)
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
                    f"The data set must have the {count} contexts that the checkpoint was made after, got "
                    f"{self.sequences_drawn}: resume with the data set of the original run."
                )
