"""Training's endless stream of places in a split, and batches made ahead by other processes; whatever a batch is."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.interrupt import leave_to_parent
from noisebox.processes import share_of
from noisebox.randomness import numpy_generator

Made = TypeVar("Made", covariant=True)


def places_of(config: RunConfig, step: int, count: int) -> list[int]:
    """The places of a training step's batch in a split of `count` images: the step's share of one endless stream, epoch
    after epoch, each a permutation drawn by the key (seed, "order", epoch), or the split's own order where the training
    is to overfit."""
    size = config.solver.batch_size
    places = (divmod(place, count) for place in range(step * size, (step + 1) * size))
    if config.solver.overfit:
        return [place for _, place in places]
    return [int(_order(config.seed, epoch, count)[place]) for epoch, place in places]


def scheduled_edge(config: RunConfig, step: int, count: int) -> int | None:
    """The short edge that `image.resize_schedule` gives a step's batch, by the epoch of its first image; None where
    there is no schedule."""
    return config.image.scheduled(1 + config.solver.epochs_in(step, count))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return numpy_generator(seed, "order", epoch).permutation(count)


class Indexed(Protocol[Made]):
    """Batches by number."""

    def __getitem__(self, index: int, /) -> Made: ...


class Counted(Indexed[Made], Protocol[Made]):
    """So many batches by number."""

    def __len__(self) -> int: ...


class _Told(Dataset[Made | UserError]):
    """Hands a UserError on as a value: raised in a worker process it would arrive wrapped in a traceback."""

    def __init__(self, batches: Indexed[Made]) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Made | UserError:
        try:
            return self.batches[index]
        except UserError as error:
            return error


def made_ahead(batches: Indexed[Made], order: range, workers: int) -> Iterator[Made]:
    """The batches in order, made ahead by `workers` processes if any; the loader's generator is its own, because it
    would draw from the global one."""
    loader = DataLoader(
        _Told(batches),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        worker_init_fn=leave_to_parent,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def made_once(batches: Counted[Made], workers: int, *, shared: bool, done: int) -> Iterator[Made]:
    """Each batch once, in their order, as `made_ahead` does; where they are `shared` by processes, the share of this
    one. The first `done` of these are left out."""
    order = share_of(len(batches)) if shared else range(len(batches))
    return made_ahead(batches, order[done:], workers)
