"""Small COCO datasets for tests: a street sign or two in flat colours, whose pixels say where the boxes are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64


def content(images: int = 3) -> dict[str, Any]:
    """A legal file: image 10 + k holds k annotations (at most 3), categories 7 `dog`, 2 `cat`, 5 `cow`."""
    return {
        "images": [{"id": 10 + k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT} for k in range(images)],
        "annotations": [
            {
                "id": 100 + 10 * k + j,
                "image_id": 10 + k,
                "category_id": (7, 2, 5)[j],
                "bbox": [4.0 + 20 * j, 6.0 + k, 10.0, 20.0],
                "area": 150.5,
                "iscrowd": 0,
            }
            for k in range(images)
            for j in range(min(k, 3))
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 5, "name": "cow"}],
    }


def write(folder: Path, split: str, coco: dict[str, Any]) -> tuple[Path, Path]:
    """Write the annotation file and, of the stated size, every image; returns both paths as `read_split` takes them."""
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    for entry in coco["images"]:
        pixels = np.full((entry["height"], entry["width"], 3), 30, np.uint8)
        for annotation in coco["annotations"]:
            if annotation["image_id"] == entry["id"]:
                x, y, width, height = (round(value) for value in annotation["bbox"])
                pixels[y : y + height, x : x + width] = 220
        Image.fromarray(pixels).save(images / entry["file_name"])
    file = folder / f"{split}.json"
    file.write_text(json.dumps(coco))
    return file, images
