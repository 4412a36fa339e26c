"""Batches of BEV samples: in training a pure function of (seed, step), in evaluation the split in its order."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from noisebox import graph
from noisebox.config import RunConfig
from noisebox.data.bev import BevSplit
from noisebox.data.depth import all_made, read_depth, settings_of
from noisebox.data.stream import made_once, places_of, scheduled_edge
from noisebox.data.transforms import resized_hw
from noisebox.errors import UserError
from noisebox.processes import rows_of
from noisebox.randomness import numpy_generator
from noisebox.structures import BevBatch


class Sample(NamedTuple):
    """One row of a BevBatch, image and labels still as stored: `image` (3, H, W) and `labels` (rows, columns) uint8."""

    image: Tensor
    intrinsics: Tensor
    labels: Tensor
    depth: Tensor
    mask: Tensor


def mirrored(sample: Sample) -> Sample:
    """The sample as it were had left and right been swapped: image, labels and depth turned, with the camera."""
    width = sample.image.shape[-1]
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 2] = width - intrinsics[0, 2]
    image, labels, depth, mask = (each.flip(-1) for each in (sample.image, sample.labels, sample.depth, sample.mask))
    return Sample(image, intrinsics, labels, depth, mask)


def resized(sample: Sample, short_edge: int, max_edge: int) -> Sample:
    """The sample as a camera with other pixels sees it: image and intrinsics at the new size, depth where the nearest
    pixel has it. The map of labels is on the ground and stays."""
    height, width = sample.image.shape[-2:]
    size = list(resized_hw(height, width, short_edge, max_edge))
    stretch = torch.diag(torch.tensor([size[1] / width, size[0] / height, 1.0]))
    nearest = InterpolationMode.NEAREST_EXACT
    depth, mask = (F.resize(map_[None], size, nearest)[0] for map_ in (sample.depth, sample.mask))
    image = F.resize(sample.image, size, antialias=True)
    return sample._replace(image=image, intrinsics=stretch @ sample.intrinsics, depth=depth, mask=mask)


class BevSamples:
    """The samples of a split by place, whose labels are classes or `ignore_index`; with `budget_mib`, the first ones
    are kept in memory.

    With `depth`, the folder of the depth ground truth, every sample has one; otherwise it is known nowhere.
    """

    def __init__(self, split: BevSplit, ignore_index: int, depth: Path | None, budget_mib: float = 0) -> None:
        self.split, self.ignore_index, self.depth = split, ignore_index, depth
        self._left = budget_mib * 2**20
        self._kept: dict[int, Sample] = {}

    def __getitem__(self, k: int) -> Sample:
        if k in self._kept:
            return self._kept[k]
        sample = self._read(k)
        size = sum(tensor.nbytes for tensor in sample)
        if size <= self._left:
            self._left -= size
            self._kept[k] = sample
        return sample

    def _read(self, k: int) -> Sample:
        split, hw = self.split, self.split.view.size
        depth, mask = torch.zeros(hw), torch.zeros(hw, dtype=torch.bool)
        if self.depth is not None:
            path = self.depth / f"{split.frames[k].stem}.npz"
            depth, mask = (torch.from_numpy(array) for array in read_depth(path))
            if tuple(depth.shape) != tuple(hw):
                raise UserError(
                    f"{path} is {depth.shape[0]} × {depth.shape[1]}, the dataset's size {hw[0]} × {hw[1]}; "
                    "make it anew with: noisebox depth-gt"
                )
        image = torch.from_numpy(split.image(k).copy()).permute(2, 0, 1).contiguous()
        labels = torch.from_numpy(split.known_labels(k, self.ignore_index).copy())
        intrinsics = torch.from_numpy(split.intrinsics(k))
        return Sample(image, intrinsics, labels, depth, mask)


def batch_of(samples: list[Sample], image_ids: list[int]) -> BevBatch:
    image, intrinsics, labels, depth, mask = (torch.stack(tensors) for tensors in zip(*samples, strict=True))
    return BevBatch(image.float() / 255, intrinsics, tuple(image_ids), labels.long(), depth[:, None], mask[:, None])


class TrainingBevBatches:
    """`batches[step]` is the batch of a training step, from 0, without end, each image mirrored with the probability
    `image.flip`, drawn by the key (seed, "augment", step, image id), and resized where `image.resize_schedule` says.
    `rank` of `world_size` processes gets its share of that batch, by `processes.rows_of`.

    Depth is read where the loss asks for it. Raises UserError when the batch cannot be shared evenly by processes and
    accumulation steps.
    """

    def __init__(self, split: BevSplit, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        self.config = config
        self._rows = rows_of(config.solver.batch_size, config.solver.accumulate, rank, world_size)
        name = split.name.rpartition("/")[2]
        depth = (depth_folder(split) or Path(graph.depth_folder(name))) if config.loss.depth_weight else None
        ignore_index = config.model.labels.ignore_index
        self.samples = BevSamples(split, ignore_index, depth, config.image.cache_mib / max(1, config.workers))

    def __getitem__(self, step: int) -> BevBatch:
        config = self.config
        whole = places_of(config, step, len(self.samples.split))
        places = [whole[row] for row in self._rows]
        flips = (numpy_generator(config.seed, "augment", step, k).random() < config.image.flip for k in places)
        shown = [mirrored(self.samples[k]) if flip else self.samples[k] for k, flip in zip(places, flips, strict=True)]
        if edge := scheduled_edge(config, step, len(self.samples.split)):
            shown = [resized(sample, edge, config.image.max_edge) for sample in shown]
        return batch_of(shown, places)


class EvaluationBevBatches:
    """`batches[k]`, k below `len(batches)`: the images at `places` of the split, by default all in its order, up to
    `eval_batch_size` each."""

    def __init__(self, split: BevSplit, config: RunConfig, places: Sequence[int] | None = None) -> None:
        self.samples = BevSamples(split, config.model.labels.ignore_index, None)
        self.size = config.eval_batch_size
        self.places = list(range(len(split.frames)) if places is None else places)

    def __len__(self) -> int:
        return -(-len(self.places) // self.size)

    def __getitem__(self, index: int) -> BevBatch:
        places = self.places[index * self.size : (index + 1) * self.size]
        return batch_of([self.samples[k] for k in places], places)


def depth_folder(split: BevSplit) -> Path | None:
    """Where the depth ground truth of a split lies: the graph's, or what tries made; None where neither has all."""
    dataset, _, name = split.name.rpartition("/")
    places = [Path(graph.depth_folder(name)), Path(graph.depth_folder(name, dataset))]
    settings = settings_of(split)
    return next((place for place in places if all_made(split.frames, place, settings)), None)


def evaluation_batches(
    split: BevSplit, config: RunConfig, places: Sequence[int] | None = None, shared: bool = False, done: int = 0
) -> Iterator[BevBatch]:
    """The batches of EvaluationBevBatches in their order, made ahead by `config.workers` processes if any; where they
    are `shared` by processes, the share of this one. The first `done` are left out."""
    return made_once(EvaluationBevBatches(split, config, places), config.workers, shared=shared, done=done)
