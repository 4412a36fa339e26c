"""How costs grow: each part timed at rising sizes, one axis at a time, with the exponent of a fitted power law."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from noisebox.bench.run import check_parts, prepare, timings_of
from noisebox.bench.settings import BenchSettings
from noisebox.errors import UserError
from noisebox.files import make_folder, write_text
from noisebox.progress import Progress
from noisebox.report.growth import growth_plot

PIXELS = [(128, 160), (256, 320), (480, 640), (800, 1067)]


@dataclass(frozen=True)
class Axis:
    """What grows: of each of `values` its size and what it changes in the settings, for each of `parts`."""

    name: str
    parts: tuple[str, ...]
    values: Mapping[float, dict[str, Any]]


AXES = (
    Axis(
        "proposals", ("train", "protocol", "matcher", "attention"), {n: {"proposals": n} for n in (100, 200, 500, 1000)}
    ),
    Axis("pixels", ("train", "protocol"), {math.prod(size): {"size": size} for size in PIXELS}),
    Axis("eval seeds", ("protocol",), {n: {"seeds": n} for n in (1, 2, 5, 10)}),
    Axis("sampling steps", ("steps", "protocol"), {n: {"steps": (n,)} for n in (1, 2, 5, 10, 20)}),
    Axis("images", ("loader", "depth"), {n: {"items": n} for n in (16, 32, 64, 128)}),
    Axis("runs", ("report",), {n: {"items": n} for n in (50, 100, 200, 500)}),
    Axis("images counted", ("counting",), {n: {"items": n} for n in (500, 1000, 2000, 5000)}),
)


class PowerLaw(NamedTuple):
    """cost = `factor` · size^`exponent`, and the standard error of the exponent (nan of fewer than three sizes)."""

    exponent: float
    factor: float
    error: float


def power_law(sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw:
    """The power law through positive costs at positive sizes, by least squares of their logarithms."""
    x, y = np.log(sizes), np.log(costs)
    intercept, slope = np.polynomial.polynomial.polyfit(x, y, 1)
    left = ((y - intercept - slope * x) ** 2).sum() / ((x - x.mean()) ** 2).sum()
    error = math.sqrt(left / (len(x) - 2)) if len(x) > 2 else math.nan
    return PowerLaw(float(slope), math.exp(intercept), error)


def write_growth(parts: Sequence[str] | None, settings: BenchSettings, out: Path) -> list[Path]:
    """Time parts (by default all that grow) along their axes, and write growth.tsv, growth.png and growth.svg to `out`.

    A cost is that of a whole pass: of an iteration, of all images under all eval seeds, of an epoch. Raises UserError
    when none of the parts has an axis, or `out` cannot be made.
    """
    check_parts(parts or [])
    prepare(settings)
    wanted = [(axis, part) for axis in AXES for part in axis.parts if parts is None or part in parts]
    if not wanted:
        growing = ", ".join(dict.fromkeys(part for axis in AXES for part in axis.parts))
        raise UserError(f"--growth: nothing grows in {', '.join(parts or [])}; these grow: {growing}")
    make_folder(out)  # before hours of timing
    total = sum(len(axis.values) for axis, _ in wanted)
    rows: list[dict[str, Any]] = []
    with Progress("bench growth", total) as progress:
        for axis, part in wanted:
            rows += _grown(axis, part, settings, progress)
    table = fitted(pd.DataFrame(rows))
    write_text(out / "growth.tsv", table.to_csv(sep="\t", index=False, float_format="%.6g", lineterminator="\n"))
    growth_plot(table, out / "growth.png")
    return [out / name for name in ("growth.tsv", "growth.png", "growth.svg")]


def _grown(axis: Axis, part: str, settings: BenchSettings, progress: Progress) -> Iterator[dict[str, Any]]:
    """A row for each size and each thing that the part times, which goes by the axis where its words tell the size."""
    found = {}
    for size, changes in axis.values.items():
        found[size] = timings_of(part, replace(settings, **changes))
        progress.advance()
    for curve in zip(*found.values(), strict=True):
        words = {timing.what for timing in curve}
        for size, timing in zip(found, curve, strict=True):
            yield {
                "axis": axis.name,
                "part": part,
                "what": timing.what if len(words) == 1 else axis.name,
                "size": size,
                "median_s": median(timing.seconds),
                "low_s": min(timing.seconds),
                "high_s": max(timing.seconds),
            }


def fitted(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, each with the `exponent` of its curve, the exponent's standard `error` and the `factor`."""
    laws = {
        key: power_law(curve["size"].tolist(), curve["median_s"].tolist())
        for key, curve in rows.groupby(["axis", "part", "what"], sort=False)
    }
    of_rows = [laws[key] for key in zip(rows["axis"], rows["part"], rows["what"], strict=True)]
    return rows.assign(**{name: [getattr(law, name) for law in of_rows] for name in ("exponent", "error", "factor")})
