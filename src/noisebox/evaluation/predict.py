"""Detections in any images by any checkpoint, written in COCO's results form."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from noisebox import graph
from noisebox.config import RunConfig, Sampling
from noisebox.data.catalog import manifest_of, open_split
from noisebox.data.coco import CocoSplit, ImageRecord, decode_image
from noisebox.data.datasets import READERS
from noisebox.errors import UserError
from noisebox.evaluation.aerial import write_every_look
from noisebox.evaluation.detection import to_coco_results
from noisebox.evaluation.ongoing import Ongoing, facts_of, place_in
from noisebox.evaluation.protocol import measure
from noisebox.files import discard_folder, make_folder, write_json
from noisebox.machine import placed
from noisebox.models.yolc.detector import Yolc
from noisebox.pixels import EXIF_ORIENTATION
from noisebox.progress import Progress
from noisebox.structures import Detections
from noisebox.training.checkpoint import load_model

PREDICTIONS, IMAGES, LOOKS = "predictions.json", "images.json", "looks"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # looked for in a folder
ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
ID_BYTES = 6  # so that an id stays exact in any JSON reader


def predict(
    checkpoint: Path,
    images: Path,
    out: Path,
    *,
    steps: int = 1,
    score: float = 0.3,
    eval_seed: int = 0,
    batch_size: int | None = None,
    crops: bool = False,
    visualize: bool = False,
) -> dict[int, Detections]:
    """Detect in an image file, or in all image files of a folder, and write what has at least `score` below `out`.

    `predictions.json` is a list in COCO's results form: image_id, category_id, bbox (x, y, width, height in pixels of
    the image as shown) and score. `images.json` is its companion in COCO's annotation form: id and file name of every
    image, and the categories, numbered from 1 in the order of the checkpoint's classes.

    Images are resized as the checkpoint's evaluation does, and batched by their resized size. The noise of an image is
    keyed by its id. Where the checkpoint's dataset is in place and its validation split has the image, id and size are
    those stated there, so that it is detected as `noisebox evaluate` does under the same eval seed and steps, in the
    frame of its annotations; else the id is made of the file's name.

    With `crops` a detector of family yolc looks again where objects crowd. With `visualize` what it saw in each image
    is written, too, as `looks/<file name>.npz`, see `noisebox.evaluation.aerial.write_every_look`.

    A prediction that was killed is gone on with, as an evaluation is.

    Raises UserError when there is no image, or one cannot be read, or the detector cannot look so, or `out` cannot be
    made, before the model runs.
    """
    files = image_files(images)
    model, config, state = load_detector(checkpoint)
    config = runnable(config, batch_size or config.eval_batch_size)
    sampling = Sampling(steps=steps, crops=crops)
    model.check_sampling(sampling)
    if visualize and not isinstance(model, Yolc):
        raise UserError(f"{checkpoint} is of family {config.family}; only what a detector of family yolc sees is drawn")
    split = CocoSplit(
        name=str(images),
        classes=tuple(state["classes"]),
        category_ids=tuple(range(1, len(state["classes"]) + 1)),
        images=tuple(read_records(files, validation_images(config))),
        annotation_file=out / IMAGES,
    )
    make_folder(out)
    if visualize and (out / PREDICTIONS).exists():
        discard_folder(out / LOOKS)  # of that earlier prediction
    with Progress("predict", len(files)) as progress:
        placed(model, config)
        if visualize:
            detected = write_every_look(out / LOOKS, model, config, split, crops, progress)
        else:
            facts = facts_of(checkpoint, config) | {"images": [_as_told(record) for record in split.images]}
            with Ongoing(place_in(out), facts) as ongoing:
                measured = measure(model, split, config, {sampling: [eval_seed]}, progress, ongoing)
            detected = measured.detections[eval_seed, sampling]
    found = {image: each.at_least(score) for image, each in detected.items()}
    write_json(out / IMAGES, split.ground_truth())
    write_json(out / PREDICTIONS, to_coco_results(split, found))
    return found


def _as_told(record: ImageRecord) -> list[Any]:
    """What tells one image from another, or from what it was before."""
    status = record.path.stat()
    return [record.id, record.width, record.height, str(record.path), status.st_size, status.st_mtime_ns]


def load_detector(checkpoint: Path) -> tuple[Any, RunConfig, dict[str, Any]]:
    """What `load_model` gives of a checkpoint that detects boxes; raises UserError where it draws maps."""
    model, config, state = load_model(checkpoint)
    if graph.line_of(config.family) == "bev":
        raise UserError(f"{checkpoint} segments maps and detects no boxes: use noisebox show-bev")
    return model, config, state


def runnable(config: RunConfig, batch_size: int) -> RunConfig:
    """The configuration for this machine: the CPU and full precision where the checkpoint's own device is not there."""
    changes: dict[str, Any] = {"eval_batch_size": batch_size}
    if config.device == "cuda" and not torch.cuda.is_available():
        changes |= {"device": "cpu", "precision": "fp32"}
    return config.model_copy(update=changes)


def image_files(place: Path) -> list[Path]:
    """The file, or the image files of a folder by name, links that lead nowhere among them, those in folders below it
    left out.

    Raises UserError when there is nothing of the kind.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place} does not exist; name an image file, or a folder of them")
    named = (path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    files = sorted(path for path in named if path.is_file() or path.is_symlink())
    if not files:
        raise UserError(f"{place} holds no image; looked for files that end with {', '.join(SUFFIXES)}")
    return files


def validation_images(config: RunConfig) -> dict[str, ImageRecord]:
    """The images of the checkpoint's validation split by where they lie, links followed; none where it is not here."""
    try:
        manifest = manifest_of(config.dataset, graph.line_of(config.family))
        split = open_split(config.dataset, "val", manifest_file=manifest)
    except UserError:
        return {}
    return {os.path.realpath(image.path): image for image in split.images}


def read_records(files: Sequence[Path], known: Mapping[str, ImageRecord]) -> list[ImageRecord]:
    """The images as records without annotations, each decoded once as a check.

    One that is `known` by where it lies has the id and the size stated there, given once; any other an id made of its
    file's name, and the size that it is shown in. Raises UserError naming the first that cannot be read.
    """
    left = dict(known)
    stated = [left.pop(os.path.realpath(file), None) for file in files]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(_checked_record, files, stated))


def _checked_record(file: Path, stated: ImageRecord | None) -> ImageRecord:
    try:
        content = file.read_bytes()
        width, height = (stated.width, stated.height) if stated else _size_as_shown(file)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{file} cannot be read as an image ({reason}); replace the file or leave it out") from None
    record = ImageRecord(
        id=stated.id if stated else _id_of_name(file.name),
        file_name=file.name,
        path=file,
        width=width,
        height=height,
        boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        stored_xywh=np.zeros((0, 4)),
        areas=np.zeros(0),
    )
    decode_image(content, record)
    return record


def _size_as_shown(file: Path) -> tuple[int, int]:
    """Width and height of an image turned as its EXIF orientation says."""
    with Image.open(file) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(EXIF_ORIENTATION) in ON_ITS_SIDE else (width, height)


def _id_of_name(name: str) -> int:
    return int.from_bytes(sha256(name.encode("utf-8", "surrogateescape")).digest()[:ID_BYTES], "big")
