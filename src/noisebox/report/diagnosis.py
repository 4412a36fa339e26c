"""What `noisebox diagnose` prints: what labels and predictions are made of, how they are confused, and the verdict."""

import math
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from noisebox.report.markdown import ABSENT, number

if TYPE_CHECKING:
    from noisebox.evaluation.diagnosis import Diagnosis

WIDE = 200  # characters: tables that no window breaks


def print_diagnosis(found: "Diagnosis", heading: str) -> None:
    """Tables with lines and colours for a person at a terminal, else plain aligned text."""
    console = Console(highlight=False, markup=False)
    plain = not console.is_terminal
    if plain:
        console = Console(highlight=False, markup=False, width=WIDE)
    metrics = found.metrics
    lines = [
        f"mIoU {_or_absent(metrics.miou)}, accuracy {_or_absent(metrics.accuracy)} (0–100)",
        f"{found.ignored:.1f} % of all cells count nowhere",
    ]
    if metrics.absent:
        lines.append(f"not in the ground truth, and left out of the mIoU: {', '.join(metrics.absent)}")
    console.print(heading)
    for table in (_shares(found), _confusion(found)):
        table.box = None if plain else box.SIMPLE_HEAD
        console.print()
        console.print(table)
    console.print()
    for line in lines:
        console.print(line, soft_wrap=plain)
    console.print(f"verdict: {found.verdict}", style="bold green" if found.verdict == "fine" else "bold red")
    for sentence in found.findings.values():
        console.print(f"- {sentence}", soft_wrap=plain)


def _shares(found: "Diagnosis") -> Table:
    table = Table(title="class shares and IoU, %", title_justify="left")
    table.add_column("class")
    for title in ("truth", "predicted", "IoU"):
        table.add_column(title, justify="right")
    for name, iou in found.metrics.per_class.items():
        table.add_row(name, number(found.truth[name]), number(found.predicted[name]), _or_absent(iou))
    return table


def _confusion(found: "Diagnosis") -> Table:
    table = Table(title="true class (rows) predicted as, % of its cells", title_justify="left")
    table.add_column("")
    for name in found.metrics.per_class:
        table.add_column(name, justify="right")
    for name, counts in zip(found.metrics.per_class, found.matrix, strict=True):
        total = counts.sum()
        table.add_row(name, *(f"{100 * count / total:.1f}" if total else ABSENT for count in counts))
    return table


def _or_absent(value: float) -> str:
    return ABSENT if math.isnan(value) else number(value)
