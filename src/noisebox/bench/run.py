"""Parts of the bench timed one after the other, as JSON and as a table."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from noisebox import machine
from noisebox.bench.made import run_config
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, matrix_rate
from noisebox.errors import UserError, what_fits
from noisebox.progress import Progress
from noisebox.training.provenance import environment

# One line a part: the module whose `timings(settings)` gives what it took.
PARTS = {
    "train": "noisebox.bench.train",
    "protocol": "noisebox.bench.protocol",
    "steps": "noisebox.bench.steps",
    "matcher": "noisebox.bench.matcher",
    "attention": "noisebox.bench.attention",
    "distillation": "noisebox.bench.distillation",
    "crops": "noisebox.bench.crops",
    "loader": "noisebox.bench.loader",
    "depth": "noisebox.bench.depth",
    "report": "noisebox.bench.report",
    "counting": "noisebox.bench.counting",
}
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def check_parts(names: Sequence[str]) -> None:
    """Raises UserError for a part that does not exist."""
    for name in names:
        if name not in PARTS:
            raise UserError(f"--parts names {name!r}; {what_fits(name, list(PARTS), 'the parts are')}")


def bench(names: Sequence[str], settings: BenchSettings) -> dict[str, Any]:
    """Time parts, each once, in the order given; raises UserError for one that does not exist, or without the GPU."""
    check_parts(names)
    prepare(settings)
    found = []
    with Progress("bench", len(names)) as progress:
        for name in dict.fromkeys(names):
            found += timings_of(name, settings)
            progress.advance()
    rate = matrix_rate(settings.device, settings.precision)
    return {
        "implementation": "noisebox",
        "settings": asdict(settings),
        "environment": environment(run_config(settings), Path()),
        "matrix_flop_per_s": rate,
        "timings": [timing.row(rate) for timing in found],
    }


def prepare(settings: BenchSettings) -> None:
    """Bring the process into the state of a run; raises UserError when there is no GPU where one is asked for."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is to be seen here; use --device cpu")
    machine.warn_of_bf16(settings.device, settings.precision)
    machine.prepare(settings.threads)


def timings_of(part: str, settings: BenchSettings) -> list[Timing]:
    """What a part took."""
    found: list[Timing] = import_module(PARTS[part]).timings(settings)
    return found


def table(result: dict[str, Any]) -> Table:
    """What `bench` returned, for a terminal."""
    settings, rate = result["settings"], result["matrix_flop_per_s"]
    caption = f"{settings['device']}, {settings['precision']}, threads {settings['threads']}; a matrix product reaches "
    shown = Table(
        box=box.SIMPLE, padding=(0, 1, 0, 0), caption=f"{caption}{rate / 1e9:.4g} GFLOP/s", caption_justify="left"
    )
    shown.add_column("part", min_width=26)
    for title in ("time", "least–most", "images/s", "GFLOP", "of rate", "MiB"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in result["timings"]:
        share, flop, peak = row["matrix_share"], row["flop"], row["peak_memory_mib"]
        shown.add_row(
            f"{row['part']}: {row['what']}, per {row['unit']}",
            duration(row["median_s"]),
            span(row["low_s"], row["high_s"]),
            f"{row['images_per_s']:.4g}" if row["images_per_s"] else "",
            f"{flop / 1e9:.4g}" if flop else "",
            f"{share:.1%}" if share else "",
            f"{peak:.0f}" if peak else "",
        )
    return shown


def duration(seconds: float) -> str:
    """`1.23 s`, `45.6 ms`, `789 µs`."""
    name, size = _unit(seconds)
    return f"{seconds / size:.3g} {name}"


def span(low: float, high: float) -> str:
    """`1.23–1.31 s`."""
    name, size = _unit(high)
    return f"{low / size:.3g}–{high / size:.3g} {name}"


def _unit(seconds: float) -> tuple[str, float]:
    return next((unit for unit in UNITS if abs(seconds) >= unit[1]), UNITS[-1])
