"""How work is timed: warmed up, repeated, the device waited for; and what the machine could do in that time."""

import resource
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from noisebox.bench.settings import BenchSettings
from noisebox.evaluation.measuring import PRECISIONS, now
from noisebox.randomness import torch_generator

WARM_UP = {"cpu": 1, "cuda": 3}  # runs before the first that counts
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}  # at most
SMALL_SIDE = 256
LONG = 0.1  # seconds of a product beyond which a larger one would say no more
MATRIX_RUNS = 8


@dataclass(frozen=True)
class Timing:
    """What one piece of work took: `seconds` of each run, in which `units` of `unit` were done, and `images` looked at;
    `flop` are a run's floating-point operations in matrix products and convolutions, `peak_mib` the most memory so far:
    the device's, or this process's. 0 stands where there is none to tell."""

    part: str
    what: str
    unit: str
    seconds: tuple[float, ...]
    units: float = 1
    images: float = 0
    flop: float = 0
    peak_mib: float = 0

    @property
    def median(self) -> float:
        """Seconds per unit."""
        return statistics.median(self.seconds) / self.units

    def row(self, matrix_rate: float) -> dict[str, Any]:
        """As it stands in the JSON; `matrix_rate` is what the machine reaches, in operations a second."""
        middle = statistics.median(self.seconds)
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "median_s": self.median,
            "low_s": min(self.seconds) / self.units,
            "high_s": max(self.seconds) / self.units,
            "runs": len(self.seconds),
            "images_per_s": self.images / middle if self.images else None,
            "flop": self.flop / self.units if self.flop else None,
            "matrix_share": self.flop / middle / matrix_rate if self.flop else None,
            "peak_memory_mib": self.peak_mib or None,
        }


def timed(
    work: Callable[[], object],
    settings: BenchSettings,
    *,
    part: str,
    what: str,
    unit: str,
    units: float = 1,
    images: float = 0,
    repeats: int | None = None,
    with_flop: bool = False,
) -> Timing:
    """Time `work` after a warm-up, `settings.repeats` times if not `repeats`; `with_flop` counts operations as well."""
    flop = counted_flop(work) if with_flop else 0
    for _ in range(WARM_UP[settings.device] - with_flop):
        work()
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # counting runs uncompiled
    seconds = tuple(clocked(settings.device, work) for _ in range(repeats or settings.repeats))
    return Timing(part, what, unit, seconds, units, images, flop, peak_mib(settings.device))


def clocked(device: str, work: Callable[[], object]) -> float:
    """The seconds that `work` takes once."""
    started = now(device)
    work()
    return now(device) - started


def counted_flop(work: Callable[[], object]) -> int:
    """The floating-point operations of the matrix products and convolutions of `work`, forward and backward."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_mib(device: str) -> float:
    """The most memory so far: of the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@lru_cache
def matrix_rate(device: str, precision: str) -> float:
    """The floating-point operations a second of a large matrix product, the fastest of several: what the chip does.

    Large is what reaches the rate, and no more than that: where a processor has no products in this precision, a matrix
    of 2048 takes a minute.
    """
    dtype = PRECISIONS.get(precision, torch.float32)

    def seconds(side: int, runs: int) -> float:
        generator = torch_generator(0, "bench matrix")
        matrix = torch.randn(side, side, generator=generator).to(device, dtype)  # of equal ones it would be faster
        return min(clocked(device, lambda: matrix @ matrix) for _ in range(runs))

    side = SMALL_SIDE
    while side < MATRIX_SIDE[device] and seconds(side, runs=2) < LONG:  # the first run sets a device up
        side *= 2
    return 2 * side**3 / seconds(side, MATRIX_RUNS)
