"""What a dataset is to the catalog, whatever it holds: a section of `params/datasets/` that is checked and opened."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from noisebox import graph
from noisebox.config.section import Section
from noisebox.files import atomic_folder

SPLITS = ("train", "val")
READERS = 8  # threads that read and decode images; reading waits on the disk, decoding releases Python's lock

Progress = Callable[[int, int], None]


class Dataset(Section, ABC):
    """A file of `params/datasets/`; `lines` are those of research that can train on it."""

    lines: ClassVar[tuple[str, ...]]

    @abstractmethod
    def open(self, name: str, split: str, root: Path) -> Any:
        """A split, read and checked but for its images; raises UserError naming file and fault."""

    @abstractmethod
    def describe(self, name: str, root: Path, progress: Progress | None) -> dict[str, Any]:
        """`classes` and by split what it holds, hashed, after all of it was checked, every image included."""

    @abstractmethod
    def changed(self, opened: Any, facts: dict[str, Any]) -> str | None:
        """What to say where a split's annotations are not those that `describe` told as `facts`."""


class EmbeddedDataset(Dataset):
    """A dataset that is drawn, into graph.dataset_folder; the others are the user's."""

    @abstractmethod
    def is_complete(self, folder: Path) -> bool:
        """Whether its folder is there; it appears whole or not at all."""

    @abstractmethod
    def draw(self, folder: Path, progress: Progress | None) -> None:
        """Write it to an empty folder."""

    def write(self, name: str, root: Path, progress: Progress | None) -> None:
        """Put it in its place; where another process was faster, its folder stays."""
        folder = root / graph.dataset_folder(name)
        try:
            with atomic_folder(folder, first_stays=True) as staged:
                self.draw(staged, progress)
        except OSError:
            if not self.is_complete(folder):
                raise
