"""The Markdown of summary.md: tables that are aligned as text too, numbers, links, and words in the plural."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ABSENT = "–"
MINUS = "−"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is aligned as text, too; columns of numbers go to the right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    right = [all(re.match(rf"\[?([+{MINUS}]?\d|nan|{ABSENT})", cell) for cell in column[1:]) for column in columns]
    layout = list(zip(widths, right, strict=True))
    lines = [
        " | ".join(cell.rjust(w) if r else cell.ljust(w) for cell, (w, r) in zip(row, layout, strict=True))
        for row in cells
    ]
    rule = " | ".join("-" * (w - 1) + (":" if r else "-") for w, r in layout)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.2f}"


def signed(value: float) -> str:
    """A difference, always with its sign."""
    return "nan" if math.isnan(value) else f"{value:+.2f}".replace("-", MINUS)


def link(text: str, path: str) -> str:
    """A link from reports/summary.md to a file named from the repository's root."""
    return f"[{text}](../{path})"


def plot(shows: str, name: str) -> str:
    """A plot of the report in summary.md; a click on it opens the SVG."""
    return f"[![{shows}](plots/{name}.png)](plots/{name}.svg)"


def links(files: str) -> str:
    """Links to one file per train seed, given joined by ',' as in the tables, each named by its folder."""
    return " ".join(link(Path(file).parent.name, file) for file in files.split(","))


def listed(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
