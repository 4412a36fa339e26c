"""Two results of the bench against each other: ratios of medians, with the spread that the runs leave them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from noisebox.bench.run import duration
from noisebox.errors import UserError
from noisebox.files import read_json

FACTS = {"settings", "environment", "timings"}
TIMED = {"part", "what", "unit", "median_s", "low_s", "high_s"}  # in each of the timings


class Ratio(NamedTuple):
    """How many times as long the first took as the second: of the medians, and at least and at most, of the first's
    shortest run to the second's longest and the other way round."""

    part: str
    what: str
    first_s: float
    second_s: float
    unit: str
    ratio: float
    low: float
    high: float


def compare(first: Path, second: Path) -> tuple[list[Ratio], list[str]]:
    """The ratios of what both timed, and sentences about the settings and machines that differ.

    Raises UserError when a file is no result of the bench, or they have no timing in common.
    """
    one, other = _read(first), _read(second)
    theirs = {(row["part"], row["what"], row["unit"]): row for row in other["timings"]}
    ratios = [
        Ratio(
            row["part"],
            row["what"],
            row["median_s"],
            match["median_s"],
            row["unit"],
            row["median_s"] / match["median_s"],
            row["low_s"] / match["high_s"],
            row["high_s"] / match["low_s"],
        )
        for row in one["timings"]
        if (match := theirs.get((row["part"], row["what"], row["unit"])))
    ]
    if not ratios:
        raise UserError(f"{first} and {second} have timed nothing in common: give both the same --parts and sizes")
    return ratios, list(_differences(one, other))


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not (content.keys() >= FACTS and all(row.keys() >= TIMED for row in content["timings"])):
        raise UserError(f"{path} is no result of the bench; make one with: noisebox bench --json {path}")
    return content


def _differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    places = {
        "settings": (one["settings"], other["settings"]),
        "hardware": tuple(each["environment"]["hardware"] for each in (one, other)),
        "packages": tuple(each["environment"]["packages"] for each in (one, other)),
    }
    for place, (mine, its) in places.items():
        for name in dict.fromkeys([*mine, *its]):
            if mine.get(name) != its.get(name):
                yield f"{place} differ in {name}: {mine.get(name)} against {its.get(name)}"


def table(ratios: list[Ratio], first: Path, second: Path) -> Table:
    """The ratios, for a terminal."""
    caption = f"first {first}, second {second}; above 1 the first is slower"
    shown = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    shown.add_column("part", min_width=26)
    for title in ("first", "second", "ratio", "from–to"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in ratios:
        shown.add_row(
            f"{row.part}: {row.what}, per {row.unit}",
            duration(row.first_s),
            duration(row.second_s),
            f"{row.ratio:.3g}",
            f"{row.low:.3g}–{row.high:.3g}",
        )
    return shown
