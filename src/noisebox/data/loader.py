"""Batches of a split: in training a pure function of (seed, step), in evaluation a fixed grouping by size."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from noisebox.config import ImageConfig, RunConfig
from noisebox.config.families import sections_of
from noisebox.data.coco import CocoSplit, ImageRecord, read_image
from noisebox.data.federated import counted_classes
from noisebox.data.stream import made_ahead, made_once, places_of, scheduled_edge
from noisebox.data.transforms import View, evaluation_view, resized, shown, targets_in, training_view
from noisebox.errors import UserError
from noisebox.processes import rows_of
from noisebox.randomness import numpy_generator
from noisebox.structures import Batch, Targets

STRIDE = 32  # images are padded to a multiple of it, so that every level of the feature pyramid divides


class TrainingBatches:
    """`batches[step]` is the batch of a training step, from 0, without end.

    The split's images form one stream: epoch after epoch, each a permutation drawn by the key (seed, "order", epoch).
    Step k takes the k-th `solver.batch_size` of the stream, so a batch may span epochs. `rank` of `world_size`
    processes gets its share of that batch, by `processes.rows_of`, padded to the size of the whole: what is computed of
    an image does not depend on how many there are. Crowds are no objects. The images as stored, which a family that
    looks closer wants, are those of the cache, not copies. Where the loss is federated, the classes that count in an
    image are drawn by the key (seed, "federated", step, image id).

    Raises UserError when there is no object to learn, or the batch cannot be shared evenly by processes and
    accumulation steps.
    """

    def __init__(self, split: CocoSplit, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        if not sum(split.objects_per_class().values()):
            raise UserError(
                f"{split.annotation_file}: no image to train on has an object of the dataset's classes, crowds aside; "
                f"`noisebox check {config.dataset}` says what is in it"
            )
        self.split, self.config = split, config
        self._rows = rows_of(config.solver.batch_size, config.solver.accumulate, rank, world_size)
        self._closer = sections_of(config.family).looks_closer
        federated = getattr(config.loss, "federated", None)  # which not every family's loss may be
        self._draw = (split.images_per_class(), federated.classes, federated.power) if federated else None
        self._images = _Images(config.image, config.image.cache_mib / max(1, config.workers), self._closer)

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, self._rows)

    def rows(self, step: int, own: Sequence[int]) -> Batch:
        """Those rows alone of the whole batch of a step."""
        config = self.config
        records = self._records(step)
        edge = scheduled_edge(config, step, len(self.split))
        image = config.image.model_copy(update={"train_short_edges": [edge]}) if edge else config.image
        views = [training_view(r.height, r.width, image, config.seed, step, r.id) for r in records]
        padded_hw = _padded_hw(views)
        records, views = [records[row] for row in own], [views[row] for row in own]
        images = [self._images(record, view) for record, view in zip(records, views, strict=True)]
        return self._with_counted_classes(_batch(records, views, images, padded_hw, self._closer), step)

    def _with_counted_classes(self, batch: Batch, step: int) -> Batch:
        if self._draw is None:
            return batch
        targets = []
        for image_id, target in zip(batch.image_ids, batch.targets, strict=True):
            random = numpy_generator(self.config.seed, "federated", step, image_id)
            counted = counted_classes(target.labels.numpy(), *self._draw, random)
            targets.append(replace(target, counted=torch.from_numpy(counted)))
        return replace(batch, targets=tuple(targets))

    def _records(self, step: int) -> list[ImageRecord]:
        """The images of the whole batch."""
        return [self.split.images[place] for place in places_of(self.config, step, len(self.split))]


class EvaluationBatches:
    """`batches[k]`, k below `len(batches)`: every image once, up to `eval_batch_size` images of one resized size each.

    Images of one size keep the split's order, so the padding of an image, and with it the result, does not depend on
    the batch size.
    """

    def __init__(self, split: CocoSplit, config: RunConfig) -> None:
        self._closer = sections_of(config.family).looks_closer
        sizes = [(record.height, record.width) for record in split.images]
        groups = _grouped(sizes, config.image, config.eval_batch_size)
        self._groups = [(view, [split.images[place] for place in places]) for view, places in groups]

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Batch:
        view, records = self._groups[index]
        images = [_decoded(record) for record in records]
        return _batch(records, [view] * len(records), images, _padded_hw([view]), self._closer)


def training_loader(batches: TrainingBatches, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The batches of the steps from `start` up to, not including, `stop`, made ahead by `workers` processes if any."""
    return made_ahead(batches, range(start, stop), workers)


def evaluation_batches(split: CocoSplit, config: RunConfig, shared: bool = False, done: int = 0) -> Iterator[Batch]:
    """The batches of `EvaluationBatches` in their order, made ahead by `config.workers` processes if any; of those that
    are `shared` by processes the share of this one. The first `done` are left out."""
    return made_once(EvaluationBatches(split, config), config.workers, shared=shared, done=done)


def image_batches(
    images: Sequence[Tensor], ids: Sequence[int], config: ImageConfig, size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Images (3, H, W) uint8 without targets, as evaluation shows and batches them; with the places of a batch's."""
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    for view, places in _grouped([(image.shape[1], image.shape[2]) for image in images], config, size):
        chosen, views = [images[place] for place in places], [view] * len(places)
        yield (
            places,
            Batch(
                images=_padded(chosen, views, _padded_hw(views)),
                sizes_hw=torch.tensor([(view.height, view.width)] * len(places)),
                original_hw=torch.tensor([image.shape[1:] for image in chosen]),
                image_ids=tuple(ids[place] for place in places),
                targets=(nothing,) * len(places),
            ),
        )


def _grouped(sizes_hw: Sequence[tuple[int, int]], config: ImageConfig, size: int) -> list[tuple[View, list[int]]]:
    """The places of images of these sizes, up to `size` of one view in evaluation together."""
    by_view: dict[View, list[int]] = {}
    for place, (height, width) in enumerate(sizes_hw):
        by_view.setdefault(evaluation_view(height, width, config), []).append(place)
    return [
        (view, places[start : start + size])
        for view, places in by_view.items()
        for start in range(0, len(places), size)
    ]


class _Images:
    """Images for a view, (3, H, W) uint8, and of the first ones that are asked for, until the budget of memory is full,
    what can be used again: where training has one short edge the resized image, otherwise, and where a family looks
    closer, the decoded one.

    To keep those used last would find fewer: an epoch asks for each image once, in an order of its own, so that with
    memory for half of the images 15 % of them would be found, and not 50 %.
    """

    def __init__(self, config: ImageConfig, budget_mib: float, closer: bool) -> None:
        fixed = len(set(config.train_short_edges)) == 1 and not config.resize_schedule and not config.crop
        self._resize = fixed and not closer
        self._left = budget_mib * 2**20
        self._kept: dict[int, Tensor] = {}

    def __call__(self, record: ImageRecord, view: View) -> Tensor:
        if record.id in self._kept:
            return self._kept[record.id]
        image = _decoded(record)
        if self._resize:
            image = resized(image, view)
        if image.nbytes <= self._left:
            self._left -= image.nbytes
            self._kept[record.id] = image
        return image


def _decoded(record: ImageRecord) -> Tensor:
    """The pixels of a record, (3, H, W) uint8, in memory pixel after pixel: so they are resized fastest."""
    return torch.from_numpy(read_image(record)).permute(2, 0, 1)


def _padded_hw(views: Sequence[View]) -> tuple[int, int]:
    height, width = max(view.height for view in views), max(view.width for view in views)
    return STRIDE * math.ceil(height / STRIDE), STRIDE * math.ceil(width / STRIDE)


def _batch(
    records: Sequence[ImageRecord],
    views: Sequence[View],
    images: Sequence[Tensor],
    padded_hw: tuple[int, int],
    closer: bool,
) -> Batch:
    """The batch of these images, (3, H, W) uint8, as stored or resized, in these views; `closer`: they are as stored,
    and it carries them so, too."""
    targets = []
    for record, view in zip(records, views, strict=True):
        boxes, labels = torch.from_numpy(record.boxes_xyxy), torch.from_numpy(record.labels)
        crowd = torch.from_numpy(record.crowd)
        stored = Targets(boxes[~crowd], labels[~crowd], boxes[crowd], labels[crowd])
        targets.append(targets_in(view, stored, (record.height, record.width)))
    return Batch(
        images=_padded(images, views, padded_hw),
        sizes_hw=torch.tensor([(view.height, view.width) for view in views]),
        original_hw=torch.tensor([(record.height, record.width) for record in records]),
        image_ids=tuple(record.id for record in records),
        targets=tuple(targets),
        stored=tuple(
            image.flip(-1) if view.flip else image for image, view in zip(images, views, strict=True) if closer
        ),
    )


def _padded(images: Sequence[Tensor], views: Sequence[View], padded_hw: tuple[int, int]) -> Tensor:
    """Images (3, H, W) uint8, as stored or resized, in their views at the top left of (B, 3, *padded_hw) uint8."""
    padded = torch.zeros(len(images), *padded_hw, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for row, (view, image) in enumerate(zip(views, images, strict=True)):
        padded[row, :, : view.height, : view.width] = shown(image, view)
    return padded
