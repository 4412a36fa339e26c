"""The pictures of `noisebox predict`: every image with the boxes that were found in it, class and score beside them."""

import json
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image

from noisebox.errors import UserError
from noisebox.progress import Progress
from noisebox.report.pictures import CELL, COLOURS, Box, Picture, load_photograph, scaled_size, with_boxes, write_png

WIDEST = 1280  # pixels: wider images are reduced, those narrower than CELL enlarged by a whole factor


def read_predictions(results: Path, images: Path) -> tuple[tuple[str, ...], list[Picture]]:
    """The classes, and the images with their detections, from a file in COCO's results form and its companion.

    Raises UserError naming the file that is missing or something else.
    """
    try:
        companion = json.loads(images.read_text(encoding="utf-8"))
        classes = {entry["id"]: str(entry["name"]) for entry in companion["categories"]}
        found = defaultdict(list)
        for entry in json.loads(results.read_text(encoding="utf-8")):
            x, y, width, height = entry["bbox"]
            box = Box((x, y, x + width, y + height), classes[entry["category_id"]], float(entry["score"]))
            found[entry["image_id"]].append(box)
        pictures = [
            Picture(entry["id"], entry["file_name"], entry["width"], entry["height"], (), tuple(found[entry["id"]]))
            for entry in companion["images"]
        ]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} does not exist") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{results} and {images} are not what noisebox predict writes: {error!r}") from None
    return tuple(classes.values()), pictures


def write_pictures(results: Path, images: Path, root: Path, folder: Path) -> list[Path]:
    """Draw every prediction into `folder`, with the images found below `root`; returns what was written."""
    classes, pictures = read_predictions(results, images)
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(classes)}
    stems = Counter(Path(picture.file).stem for picture in pictures)
    written = []
    with Progress("pictures", len(pictures)) as progress:
        for picture in pictures:
            stem = Path(picture.file).stem
            path = folder / f"{stem if stems[stem] == 1 else picture.file}.png"
            write_png(drawn(load_photograph(root, picture), picture, colours), path)
            written.append(path)
            progress.advance()
    return written


def drawn(photograph: Image.Image, picture: Picture, colours: dict[str, str]) -> Image.Image:
    """The photograph with all detections of `picture`, in the colours of their classes."""
    factor = max(1, CELL // photograph.width) if photograph.width <= WIDEST else WIDEST / photograph.width
    scaled = photograph.resize(scaled_size(*photograph.size, factor), Image.Resampling.LANCZOS)
    ranked = sorted(picture.detections, key=lambda box: -(box.score or 0.0))
    return with_boxes(scaled, ranked, factor, colours, False, True)
