"""The endless training stream and the loaders around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from recdepth.data.encoding import IGNORED

Batch = dict[str, Tensor]
"""`input_ids` and `labels`, int64 [batch, time]."""


class BatchSource(Protocol):
    """Batches by position: a pure function of it (and of the curriculum level, where there is one)."""

    def batches(self, first: int, step: int) -> Iterator[Batch]:
        """Batches at positions first, first + step, first + 2 step, …"""
        ...


class _Stream(IterableDataset[Batch]):
    """Deals a source's batches out to processes and workers in turn."""

    def __init__(self, source: BatchSource, rank: int, world_size: int) -> None:
        self.source, self.rank, self.world_size = source, rank, world_size
        self.first = 0

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        first = (self.first + number) * self.world_size + self.rank
        return self.source.batches(first, count * self.world_size)


class TrainLoader:
    """An endless iterable of training batches; each `iter()` starts at position `start()`.

    Positions count the batches of one process. `drawn` is called before each batch is handed out. The order
    is the same for any number of workers.
    """

    def __init__(
        self,
        source: BatchSource,
        start: Callable[[], int],
        drawn: Callable[[], None],
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._stream = _Stream(source, rank, world_size)
        self._loader = DataLoader(
            self._stream, batch_size=None, num_workers=num_workers, pin_memory=torch.cuda.is_available()
        )
        self._start, self._drawn = start, drawn

    def __iter__(self) -> Iterator[Batch]:
        self._stream.first = self._start()
        for batch in self._loader:
            self._drawn()
            yield batch


def pad_batch(rows: list[Batch], batch_size: int, pad: int) -> Batch:
    """Stack rows; a last, smaller batch is filled up with rows of padding without labels."""
    missing = batch_size - len(rows)
    input_ids = torch.stack([row["input_ids"] for row in rows])
    labels = torch.stack([row["labels"] for row in rows])
    return {
        "input_ids": torch.nn.functional.pad(input_ids, (0, 0, 0, missing), value=pad),
        "labels": torch.nn.functional.pad(labels, (0, 0, 0, missing), value=IGNORED),
    }
