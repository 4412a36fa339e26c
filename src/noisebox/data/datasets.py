"""What a dataset is to the catalog, whatever it holds: a section of `params/datasets/` that is checked and opened."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from noisebox import graph
from noisebox.config.section import Section

SPLITS = ("train", "val")

Progress = Callable[[int, int], None]


class Dataset(Section):
    """A file of `params/datasets/`. An `embedded` one is drawn into graph.dataset_folder, the others are the user's."""

    embedded: ClassVar[bool] = False

    def open(self, name: str, split: str, root: Path) -> Any:
        """A split, read and checked but for its images; raises UserError naming file and fault."""
        raise NotImplementedError

    def describe(self, name: str, root: Path, progress: Progress | None) -> dict[str, Any]:
        """`classes` and by split what it holds, hashed, after all of it was checked, every image included."""
        raise NotImplementedError

    def check_unchanged(self, opened: Any, facts: dict[str, Any]) -> None:
        """Raises UserError when a split's annotations are not those that `describe` told as `facts`."""
        raise NotImplementedError

    def is_complete(self, folder: Path) -> bool:
        """Whether the folder of an embedded dataset is there; it appears whole or not at all."""
        raise NotImplementedError

    def draw(self, folder: Path, progress: Progress | None) -> None:
        """Write an embedded dataset to a folder that is not there yet."""
        raise NotImplementedError

    def write(self, name: str, root: Path, progress: Progress | None) -> None:
        """Put an embedded dataset in its place; where another process was faster, its folder stays."""
        folder = root / graph.dataset_folder(name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        try:
            if os.path.lexists(folder):
                folder.rename(staging / "stale")
            self.draw(staging / name, progress)
            try:
                (staging / name).replace(folder)
            except OSError:
                if not self.is_complete(folder):
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
