"""Segmentation from above: camera images with maps of labels on the ground, measured by mIoU."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from noisebox.config import RunConfig, Sampling
from noisebox.data.catalog import manifest_of, open_split, read_manifest
from noisebox.errors import UserError
from noisebox.tasks import settled, trained_on

if TYPE_CHECKING:
    from noisebox.config.bev import BevConfig
    from noisebox.data.bev import BevSplit
    from noisebox.structures import BevBatch


class BevTask:
    """Both splits of the dataset; see `noisebox.tasks.Task`. Raises UserError, too, for a label map that does not fit
    the model's grid, or holds a value that is neither a class nor ignored."""

    metric = "mIoU"
    goal = ("mIoU", 90.0)
    checks: tuple[str, ...] = (
        "label mapping: `noisebox check nuscenes` counts the values of the label maps, and model.labels says what they "
        "mean",
        "frame and scale: maps whose rows or columns run the other way, or intrinsics of another image size, put "
        "things in the wrong place; `noisebox show-bev` draws image and maps side by side",
    )

    def __init__(self, config: RunConfig) -> None:
        manifest = manifest_of(config.dataset, "bev")
        train, val = (open_split(config.dataset, split, manifest_file=manifest) for split in ("train", "val"))
        if config.solver.repeat_threshold:
            raise UserError("solver.repeat_threshold counts objects by class, and a map has none: take it out")
        self.train = trained_on(train, config)
        self.val = self.train if config.solver.overfit else val
        self.images = len(self.train)
        self.config = settled(config, self.images)
        self.classes = self.train.classes
        described = read_manifest(manifest_file=manifest)
        self.data_hash: str = described["hash"]
        for split in (self.train, self.val):
            _check_labels(split, config.model, described["splits"][split.name.rpartition("/")[2]]["cells"])

    def batch(self, step: int) -> "BevBatch":
        from noisebox.data.bev_loader import TrainingBevBatches

        return TrainingBevBatches(self.train, self.config)[step]

    def batches(self, start: int, stop: int) -> "Iterator[BevBatch]":
        from noisebox import processes
        from noisebox.data.bev_loader import TrainingBevBatches
        from noisebox.data.stream import made_ahead

        batches = TrainingBevBatches(self.train, self.config, processes.number(), processes.count())
        return made_ahead(batches, range(start, stop), self.config.workers)

    def measured(self, model: Any) -> dict[str, float]:
        """The mIoU at one sampling step under eval seed 0."""
        from noisebox.evaluation.bev import measure

        once = Sampling(steps=1)
        return {self.metric: measure(model, self.val, self.config, {once: [0]}).metrics[0, once].miou}

    def validate(self, model: Any) -> float:
        """The mIoU alone."""
        return self.measured(model)[self.metric]


def _check_labels(split: "BevSplit", model: "BevConfig", cells: dict[str, int]) -> None:
    """Hold a split's label maps against the grid and the classes. They are read only where `cells`, the manifest's
    count of their values, has one that means nothing, to name the file that holds it."""
    split.check_sizes(model.grid.rows, model.grid.columns)
    ignore_index = model.labels.ignore_index
    if not {int(value) for value in cells} <= split.values(ignore_index):
        for k in range(len(split)):
            split.known_labels(k, ignore_index)


open_task = BevTask
