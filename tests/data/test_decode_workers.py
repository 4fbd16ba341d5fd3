"""Processes that decode ahead, and what becomes of the images when they cannot."""

import errno
import itertools
import multiprocessing
import os
import signal

import pytest
import torch

from sae_lens_sparsemax.data import image_loader
from sae_lens_sparsemax.data.image_loader import ImageLoader
from sae_lens_sparsemax.data.images import encoded_images
from tests.support.tiny_images import gray_levels, plain_processor


def batches(n_workers: int, on_batch=lambda number: None) -> list[list[float]]:
    images = ImageLoader(encoded_images(gray_levels(40), "image"), plain_processor(), 4, n_workers=n_workers)
    given = []
    for number, batch in enumerate(itertools.islice(images.batches(), 12)):
        on_batch(number)
        given.append(batch.pixel_values[:, 0, 0, 0].tolist())
    return given


def kill_one(number: int) -> None:
    if number == 2:
        pid = multiprocessing.active_children()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


def test_images_go_on_when_a_worker_is_killed(caplog):
    assert batches(2, kill_one) == batches(0)
    assert "decoded in this process from here on: a process of n_decode_workers failed" in caplog.text
    assert not multiprocessing.active_children()


def test_images_go_on_when_a_worker_ends_while_it_hands_a_batch_over(caplog, monkeypatch):
    decode = image_loader.decoded_ahead

    def interrupted(decoder, tasks, n_workers):
        for number, batch in enumerate(decode(decoder, tasks, n_workers)):
            if n_workers and number == 3:
                raise EOFError
            yield batch

    monkeypatch.setattr(image_loader, "decoded_ahead", interrupted)
    assert batches(2) == batches(0)
    assert "failed, or was ended for lack of memory: EOFError" in caplog.text
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("failing", [1, 3])
def test_images_go_on_when_shared_memory_is_full(caplog, monkeypatch, failing):
    share, shared = torch.Tensor.share_memory_, []

    def full(tensor):
        shared.append(1)
        if len(shared) >= failing:  # counted in each worker
            raise RuntimeError("unable to allocate shared memory(shm) for file </torch>: No space left on device")
        return share(tensor)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert batches(2) == batches(0)
    assert "is too small or cannot be written to; enlarge it or lower n_decode_workers" in caplog.text
    assert not multiprocessing.active_children()


def test_images_go_on_when_shared_memory_is_read_only(caplog, monkeypatch):
    def read_only():
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(multiprocessing, "Lock", read_only)
    assert batches(2) == batches(0)
    assert "cannot be written to" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_leaves_the_workers_at_work(caplog, number):
    def send(batch):
        for child in multiprocessing.active_children() if batch == 2 else ():
            assert child.pid is not None
            os.kill(child.pid, number)

    assert batches(2, send) == batches(0)
    assert not caplog.records
