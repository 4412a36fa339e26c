"""The processes that share a training or an evaluation: who computes what, and how they come to the same numbers.

A launcher such as torchrun starts them, `joined` brings them together. What a process computes is a function of its
number, what is drawn at random is not. Without a launcher there is one process, and everything here is nothing.

A process never waits for long for one that is gone: what one meets is told to all where they meet next (`agreed`), and
a connection that closes ends the others. Numbers of the machinery go over the CPU (gloo), gradients of a GPU over NCCL.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from noisebox.errors import UserError

T = TypeVar("T")

# How long one waits for another, as while the first writes a checkpoint; one that is gone is noticed at once.
PATIENCE = timedelta(minutes=10)


@contextmanager
def joined() -> Iterator[Callable[[], bool]]:
    """Inside, this process is one of those that its launcher started, by the variables that torchrun sets; yields a
    function that says, once, to one process alone, that it may tell how all of them ended.

    Raises UserError when there are more processes than GPUs on a machine that has GPUs.
    """
    gpus = torch.cuda.device_count()
    if gpus:
        own = int(os.environ["LOCAL_RANK"])
        if own >= gpus:
            raise UserError(
                f"{own + 1} processes were started where there are {gpus} GPUs; start one for each GPU, or hide the "
                "GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
            )
        torch.cuda.set_device(own)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # until the configuration says how many
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    told = PrefixStore("noisebox", store)

    def may_tell() -> bool:
        try:
            return bool(told.add("told", 1) == 1)
        except RuntimeError:  # whoever kept it is gone, and did not tell
            return True

    yield may_tell
    distributed.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _are_joined() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _are_joined() else 0


def first() -> bool:
    """Whether this is the one that writes files."""
    return number() == 0


def rows_of(size: int, parts: int, number: int, count: int) -> list[int]:
    """The rows of a batch of `size` that a process computes: neighbouring ones of each of the `parts` that the batch is
    accumulated in, so that a part is the same images however many processes there are.

    Raises UserError when they cannot be shared evenly.
    """
    if size % (count * parts):
        raise UserError(
            f"solver.batch_size {size} cannot be shared by {count} devices, each in accumulate {parts} parts; make it "
            f"a multiple of {count * parts}"
        )
    part, own = size // parts, size // parts // count
    return [start + number * own + row for start in range(0, size, part) for row in range(own)]


def share_of(size: int) -> range:
    """Which of `size` things in a row this process takes; all processes' shares in their order are the row."""
    start, stop = (-(-size * bound // count()) for bound in (number(), number() + 1))
    return range(start, stop)


@contextmanager
def company() -> Iterator[None]:
    """Inside, what torch says when another process is gone becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            f"process {number()} of {count()} is alone: another one ended, or did not answer for "
            f"{PATIENCE.seconds // 60} minutes; see what it said, and run again to go on"
        ) from None


@contextmanager
def agreed() -> Iterator[None]:
    """A UserError that one process meets inside is raised in all of them; nobody goes on before all are through."""
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    if count() == 1:
        if failure:
            raise failure
    elif highest(failure is not None):
        raise UserError(next(said for said in gathered(str(failure) if failure else None) if said))


def in_turn(work: Callable[[], T]) -> T:
    """What `work` gives here, done by the first process before the others do it, too: files that the first one makes or
    mends are there for the others. A UserError of one is raised in all."""
    given: list[T] = []
    for turn in (True, False) if count() > 1 else (True,):
        with agreed():
            if first() == turn:
                given.append(work())
    return given[0]


@contextmanager
def held_by_the_first(claim: AbstractContextManager[None]) -> Iterator[None]:
    """Inside, the first process holds a claim for all."""
    with ExitStack() as held:
        with agreed():
            if first():
                held.enter_context(claim)
        yield


def together(items: Iterable[T]) -> Generator[T]:
    """The items, each when every process has its own; as many as there are in every process."""
    rest = iter(items)
    while True:
        with agreed():
            own = list(islice(rest, 1))
        if not own:
            return
        yield own[0]


def highest(value: int) -> int:
    """The highest of the processes' whole numbers."""
    if count() == 1:
        return value
    shared = torch.tensor(int(value))
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)


def gathered(value: T) -> list[T]:
    """What each process has, in their order."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def mean(values: Tensor) -> Tensor:
    """The mean over the processes of each of `values`, without gradient."""
    if count() == 1:
        return values
    shared = values.detach().clone()
    distributed.all_reduce(shared)
    return shared / count()


def norm(total: Tensor, least: float = 1) -> Tensor:
    """What a loss divides its own sum by, so that the mean over processes, which gradients are, is the sum over all
    images of the batch divided by the `total` of all, of at least `least`; without gradient."""
    if count() == 1:
        return total.clamp(min=least)
    shared = total.detach().clone()
    distributed.all_reduce(shared)
    return shared.clamp(min=least) / count()


def rows_of_all(rows: Tensor) -> Tensor:
    """The rows (R, C) of all processes, which may have different numbers of them, without gradient."""
    if count() == 1:
        return rows
    sizes = [size.item() for size in _each(torch.tensor([len(rows)], device=rows.device))]
    padded = rows.new_zeros(int(max(sizes)), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    return torch.cat([each[: int(size)] for each, size in zip(_each(padded), sizes, strict=True)])


def _are_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _each(values: Tensor) -> list[Tensor]:
    """A tensor of each process, all of one shape."""
    given = [torch.empty_like(values) for _ in range(count())]
    distributed.all_gather(given, values)
    return given
