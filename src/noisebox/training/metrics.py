"""`metrics.csv`: mode, phase, step, loss, its terms and what else is monitored, learning rate, metric.

The file has one header for its whole life. A row of mode `train` holds Means since the row before it. The text and the
sums of a row in the making belong to the training's state in `last.pth`, so rows neither depend on when a checkpoint
was written nor repeat after a resume; the file itself is there to be watched. Nothing in it tells the time, so equal
trainings write equal files.
"""

from pathlib import Path
from typing import Any

from noisebox import processes
from noisebox.errors import UserError
from noisebox.files import write_text
from noisebox.training.step import Means, summed


class Metrics:
    """The growing file at `path`, which the first of several processes writes; a term that came only when the training
    was gone on with under another configuration is in the loss, but has no column. `phase` is the name of the recipe,
    `metric` that of what validation measures."""

    def __init__(self, path: Path, phase: str, metric: str) -> None:
        self.path, self.phase, self.metric = path, phase, metric
        self.text = ""
        self._means = Means()

    def state_dict(self) -> dict[str, Any]:
        return {"text": self.text, **self._means.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: what the file holds beyond it is cut."""
        self.text = state["text"]
        self._means.load_state_dict(state)
        if processes.first():
            write_text(self.path, self.text)

    def add(self, terms: dict[str, float]) -> None:
        """Take one step's terms into the next row."""
        self._means.add(terms)

    def write_train(self, step: int, rate: float) -> dict[str, float]:
        """A row of means over the steps since the last one; `step` counts the steps taken, `rate` is the last one's.

        Returns the means.
        """
        self._write_header()
        means = self._means.values()
        columns = self.text.partition("\n")[0].split(",")[4:-2]
        terms = [f"{means[name]:.6g}" if name in means else "" for name in columns]
        self._append(["train", self.phase, str(step), f"{summed(means):.6g}", *terms, f"{rate:.6g}", ""])
        self._means = Means()
        return means

    def write_validation(self, step: int, value: float) -> None:
        """A row with the metric after `step` steps."""
        self._write_header()
        empty = [""] * (self.text.partition("\n")[0].count(",") - 3)
        self._append(["val", self.phase, str(step), *empty, f"{value:.4f}"])

    def _write_header(self) -> None:
        if not self.text:
            self._append(["mode", "phase", "step", "loss", *self._means.names(), "lr", self.metric])

    def _append(self, cells: list[str]) -> None:
        row = ",".join(cells) + "\n"
        try:
            if processes.first():
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(row)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); mend that and run again") from None
        self.text += row
