"""Randomness as a function: every generator is made from a key (seed, purpose, step or image id), none is kept.

Drawing the same key twice gives the same numbers, so a resumed training needs no generator state, and a result does
not depend on batch size, worker count, device count or order. Torch generators live on the CPU: the numbers are the
same for every device.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(seed: int, purpose: str, *index: int | str) -> int:
    """A 63-bit seed for the key (seed, purpose, *index); distinct keys give independent seeds (BLAKE2b)."""
    key = repr((int(seed), purpose, *(part if isinstance(part, str) else int(part) for part in index)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, purpose: str, *index: int | str) -> np.random.Generator:
    """A fresh NumPy generator for the key."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, purpose, *index)))


def torch_generator(seed: int, purpose: str, *index: int | str) -> "torch.Generator":
    """A fresh CPU torch generator for the key."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_of(seed, purpose, *index))


def normal(shape: tuple[int, ...], seed: int, purpose: str, *index: int | str) -> "torch.Tensor":
    """Standard normal float32 numbers of `shape` for the key, on the CPU."""
    import torch

    return torch.randn(shape, generator=torch_generator(seed, purpose, *index))


def uniform(shape: tuple[int, ...], seed: int, purpose: str, *index: int | str) -> "torch.Tensor":
    """Float32 numbers of `shape`, uniform in [0, 1), for the key, on the CPU."""
    import torch

    return torch.rand(shape, generator=torch_generator(seed, purpose, *index))


class NoiseRows(ABC):
    """Noise for N rows that are computed together, on `device`; its length is N."""

    device: "torch.device | str"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def normal(self, purpose: str, shape: tuple[int, ...]) -> "torch.Tensor":
        """Standard normal (N, *shape)."""

    @abstractmethod
    def uniform(self, purpose: str, shape: tuple[int, ...]) -> "torch.Tensor":
        """Uniform in [0, 1), (N, *shape)."""


class KeyedRows(NoiseRows):
    """Each row's noise is that of its own key (seed, purpose, *index)."""

    def __init__(self, keys: Sequence[tuple[int, tuple[int, ...]]], device: "torch.device | str") -> None:
        """`keys`: a (seed, index) for each row."""
        self.keys = keys
        self.device = device

    def __len__(self) -> int:
        return len(self.keys)

    def normal(self, purpose: str, shape: tuple[int, ...]) -> "torch.Tensor":
        return self._stacked(normal, purpose, shape)

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> "torch.Tensor":
        return self._stacked(uniform, purpose, shape)

    def _stacked(self, draw: "Callable[..., torch.Tensor]", purpose: str, shape: tuple[int, ...]) -> "torch.Tensor":
        import torch

        return torch.stack([draw(shape, seed, purpose, *index) for seed, index in self.keys]).to(self.device)


@contextmanager
def isolated(seed: int, purpose: str) -> Iterator[None]:
    """Run a block whose libraries draw from the global generators (weight initialisation in torch and timm).

    Inside, the global CPU generators are seeded by the key; afterwards they are as they were. This is the only place
    that touches them.
    """
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    key = seed_of(seed, purpose)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        random.seed(key)
        np.random.seed(key % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
