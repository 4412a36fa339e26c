"""Datasets by the names that Detectron2 knows them by; where it is not installed, a sentence says so."""

import os
from pathlib import Path

from noisebox.errors import UserError, what_fits
from noisebox.files import expanded

EXTRA = "EXTRA_COCO_DATASETS"


def files_of(name: str) -> tuple[str, str]:
    """The folder of images and the annotation file of a dataset in COCO form: one of Detectron2's own, or of EXTRA.

    Raises UserError when Detectron2 is not there, or knows no such dataset of this form.
    """
    try:
        from detectron2.data import DatasetCatalog, MetadataCatalog
    except ImportError as error:
        raise UserError(
            f"dataset {name!r} is Detectron2's, which is not here ({error}): install Detectron2, or name the files in "
            "a dataset of kind coco"
        ) from None
    register_extra()
    if name not in DatasetCatalog:
        known = [each for each in DatasetCatalog if _is_coco(MetadataCatalog.get(each))]
        raise UserError(f"Detectron2 knows no dataset {name!r}; {what_fits(name, known, 'in COCO form it knows')}")
    metadata = MetadataCatalog.get(name)
    if not _is_coco(metadata):
        form = metadata.get("evaluator_type", "unknown")
        raise UserError(f"Detectron2's dataset {name!r} is of form {form}; only those of form coco can be read")
    return metadata.image_root, metadata.json_file


def register_extra() -> None:
    """Make the datasets of the environment variable EXTRA known to Detectron2.

    It is a list of `name=annotation file=folder of images`, with `;`, `,` or a new line between two datasets.
    Raises UserError where it is something else, or a name stands for other files already.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    for name, annotations, images in extra_datasets(os.environ.get(EXTRA, "")):
        if name not in DatasetCatalog:
            register_coco_instances(name, {}, annotations, images)
        metadata = MetadataCatalog.get(name)
        if (metadata.get("json_file"), metadata.get("image_root")) != (annotations, images):
            raise UserError(f"{EXTRA}: {name!r} is a dataset already, with other files; choose another name")


def extra_datasets(text: str) -> list[tuple[str, str, str]]:
    """Name, annotation file and folder of images of every dataset in the value of EXTRA; `~` and `$NAME` are expanded.

    Raises UserError at an entry that is no such three.
    """
    found = []
    for entry in text.replace(";", "\n").replace(",", "\n").splitlines():
        parts = [part.strip() for part in entry.split("=")]
        if parts == [""]:
            continue
        if len(parts) != 3 or not all(parts):
            raise UserError(
                f"{EXTRA}: {entry.strip()!r} is no name=annotations.json=images; put ';' between two datasets"
            )
        name, annotations, images = parts
        found.append((name, str(expanded(annotations, Path())), str(expanded(images, Path()))))
    return found


def _is_coco(metadata: object) -> bool:
    return getattr(metadata, "evaluator_type", None) == "coco" and hasattr(metadata, "json_file")
