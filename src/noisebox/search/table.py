"""A search at the terminal: a line for each trial as it ends, and in the end all of them, best first."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from noisebox.config.best import Trial, cell_of, ranked

COLOURS = {"completed": "green", "pruned": "yellow", "failed": "bold red"}


class ProgressTable:
    """`told` prints a trial, `finish` the table; `keys` are what the trials differ in."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys, self.console = keys, Console(stderr=True)

    def told(self, trial: Trial) -> None:
        values = "  ".join(f"{key} {cell_of(value)}" for key, value in trial.values.items())
        line = Text(f"trial {trial.number}  ").append(trial.status, COLOURS[trial.status])
        line.append(f"  metric {_metric(trial)}  loss {_loss(trial)}  {trial.seconds:.0f} s  {values}")
        self.console.print(line.append(f"  {trial.reason}" if trial.reason else ""), soft_wrap=True)

    def finish(self, trials: Sequence[Trial]) -> None:
        shown = Table()
        keys = [key.replace(".", ".\n", 1) for key in self.keys]
        for title in ("rank", "trial", "status", "metric", "loss", "seconds", *keys):
            shown.add_column(title, justify="left" if title == "status" else "right", overflow="fold")
        best = ranked(trials)
        for rank, trial in enumerate([*best, *(trial for trial in trials if trial not in best)], start=1):
            place = str(rank) if rank <= len(best) else ""
            values = [cell_of(trial.values[key]) if key in trial.values else "" for key in self.keys]
            numbers = [_metric(trial), _loss(trial), f"{trial.seconds:.0f}"]
            cells = [Text(cell) for cell in (*numbers, *values)]
            shown.add_row(place, str(trial.number), Text(trial.status, COLOURS[trial.status]), *cells)
        self.console.print(shown)


def _metric(trial: Trial) -> str:
    return "–" if trial.metric is None else f"{trial.metric:.2f}"


def _loss(trial: Trial) -> str:
    return "–" if trial.loss is None else f"{trial.loss:.4g}"
