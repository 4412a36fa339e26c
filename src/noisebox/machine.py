"""A process made ready to compute: what the machine can do, threads, memory that it keeps, and compiled models."""

import contextlib
import ctypes
import logging
from functools import cache
from typing import TypeVar

import torch

from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.evaluation.measuring import now
from noisebox.models import Model
from noisebox.models.winograd import use_winograd

AnyModel = TypeVar("AnyModel", bound=Model)

# Options of glibc's mallopt(3), and values: nothing is mapped apart or handed back, and the heap grows by 64 MiB.
M_TRIM_THRESHOLD, NEVER = -1, -1
M_TOP_PAD, GROWTH = -2, 64 << 20
M_MMAP_MAX, NONE = -4, 0

SIDE, RUNS = 256, 5  # of the matrix products that compare two precisions: half a millisecond each in fp32
FAR_SLOWER = 4.0  # a processor that has bf16 products, or widens them to fp32 first, stays well below

log = logging.getLogger("noisebox")


def check_device(config: RunConfig) -> None:
    """Raises UserError where the configuration is for a GPU and there is none; warns of bf16 where it costs time."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"scale {config.scale} has device cuda, but torch sees no GPU; choose a scale with device cpu")
    warn_of_bf16(config.device, config.precision)


@cache  # so it is said once a process, however many models are made ready
def warn_of_bf16(device: str, precision: str) -> None:
    """Say so where bf16 products are far slower than fp32 ones: a processor without AVX-512 makes them one by one."""
    if device == "cpu" and precision == "bf16" and (times := bf16_slowdown()) > FAR_SLOWER:
        log.warning(
            "precision bf16: this processor takes %.0f times as long for a matrix product as in fp32; "
            "precision fp32 is the faster one here",
            times,
        )


def bf16_slowdown() -> float:
    """How many times as long as in fp32 a matrix product takes in bf16 on this processor.

    In one thread: on a busy machine, several wait for one another longer than they multiply.
    """

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(SIDE, SIDE, dtype=dtype)
        taken = []
        for _ in range(RUNS + 1):  # the first one warms up
            started = now("cpu")
            matrix @ matrix
            taken.append(now("cpu") - started)
        return min(taken[1:])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return seconds(torch.bfloat16) / seconds(torch.float32)
    finally:
        torch.set_num_threads(threads)


def prepare(threads: int) -> None:
    """Set the number of threads, which is part of the result because sums are split over them, and keep freed memory.

    A training step frees and asks for the same hundreds of megabytes again. By default the C library hands each large
    tensor back to the system, and getting it anew costs as much as the arithmetic on it; where it is not glibc, this
    stays so.
    """
    torch.set_num_threads(threads)
    with contextlib.suppress(AttributeError, TypeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, GROWTH), (M_MMAP_MAX, NONE)):
            mallopt(option, value)


def compile_parts(device: torch.device | str, *models: Model) -> None:
    """Let torch.compile make what the models name, when it is first used; in place, so weights keep their names.

    Raises UserError when torch.compile cannot make code for the device, as where there is no C++ compiler.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # each back end fails in its own way
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"solver.compile needs a toolchain that torch.compile can use, and here it failed ({reason}): install a "
            "C++ compiler such as g++, or leave solver.compile out"
        ) from None
    for model in models:
        for part in model.compiled():
            part.compile()


def placed(model: AnyModel, config: RunConfig) -> AnyModel:
    """The model on its device, ready to be measured, compiled where its training was.

    Raises UserError where the device is not there, or torch.compile cannot make code for it.
    """
    check_device(config)
    prepare(config.threads)
    model.to(config.device)
    if config.solver.winograd:
        use_winograd(model)
    if config.solver.compile:
        compile_parts(config.device, model)
    return model
