"""Detection: images with boxes in COCO form, measured by AP."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebox import graph
from noisebox.config import RunConfig, Sampling
from noisebox.data.catalog import manifest_of, open_split, read_manifest
from noisebox.tasks import repeated, settled, trained_on

if TYPE_CHECKING:
    from noisebox.structures import Batch


class DetectionTask:
    """Both splits of the dataset, as its line's manifest, or another, describes it; see `noisebox.tasks.Task`."""

    metric = "AP"
    goal = ("AP50", 90.0)
    checks: tuple[str, ...] = (
        "category mapping: where boxes are right and classes are not, the category ids of the annotation file and "
        "`classes` of the dataset do not belong together",
        "box frame and scale: annotations hold x, y, width, height in pixels of the stored image; `noisebox predict` "
        "draws what was found, and boxes beside the objects, or of another size, tell",
    )

    def __init__(self, config: RunConfig, root: Path = Path()) -> None:
        manifest = manifest_of(config.dataset, graph.line_of(config.family), root)
        train, val = (open_split(config.dataset, split, root, manifest) for split in ("train", "val"))
        self.train = trained_on(train, config)
        self.val = self.train if config.solver.overfit else val
        if config.solver.repeat_threshold and not config.solver.overfit:
            factors = self.train.repeat_factors(config.solver.repeat_threshold)
            self.train = self.train.only(repeated(factors, config.seed))
        self.images = len(self.train)
        self.config = settled(config, self.images)
        self.classes = self.train.classes
        self.data_hash: str = read_manifest(root, manifest)["hash"]

    def batch(self, step: int) -> "Batch":
        from noisebox.data.loader import TrainingBatches

        return TrainingBatches(self.train, self.config)[step]

    def batches(self, start: int, stop: int) -> "Iterator[Batch]":
        from noisebox import processes
        from noisebox.data.loader import TrainingBatches, training_loader

        batches = TrainingBatches(self.train, self.config, processes.number(), processes.count())
        return training_loader(batches, start, stop, self.config.workers)

    def measured(self, model: Any) -> dict[str, float]:
        """COCO's metrics at one sampling step under eval seed 0."""
        from noisebox.evaluation.protocol import measure

        once = Sampling(steps=1)
        return measure(model, self.val, self.config, {once: [0]}).metrics[0, once].summary

    def validate(self, model: Any) -> float:
        """The AP at one sampling step under eval seed 0."""
        return self.measured(model)[self.metric]


open_task = DetectionTask
