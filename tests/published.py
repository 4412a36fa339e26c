"""Miniatures of published datasets, each in its own layout below one folder, with boxes written by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 64, 48
SPLITS = ("train", "val")


def write_image(path: Path) -> None:
    """A flat picture with a bright block, so that there is something to see."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (WIDTH, HEIGHT), (40, 60, 80))
    picture.paste((230, 230, 230), (10, 12, 30, 40))
    picture.save(path)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def categories(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": 3 * place + 1, "name": name} for place, name in enumerate(names)]


def boxed(image: int, category: int, box: Sequence[float], **more: Any) -> dict[str, Any]:
    """An annotation; its id comes with the list."""
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        **more,
    }


def detection(
    images: Sequence[dict[str, Any]], names: Sequence[str], boxes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A COCO file."""
    sized = [{"id": place + 1, "width": WIDTH, "height": HEIGHT, **image} for place, image in enumerate(images)]
    numbered = [{"id": place, **box} for place, box in enumerate(boxes, start=1)]
    return {"images": sized, "annotations": numbered, "categories": categories(names)}


def coco_2017(root: Path, names: Sequence[str]) -> None:
    """Of train's boxes one has no height, as image 200365 of the real one, and one leaves its image by two pixels."""
    for split in SPLITS:
        file_names = [f"{place:012}.jpg" for place in (9, 25, 30)]
        boxes = [
            boxed(1, 1, (10, 12, 20, 28)), boxed(1, 4, (40, 5, 10, 10.5)),
            boxed(2, 1, (0, 0, 30, 30), iscrowd=1), boxed(2, 7, (50, 40, 16, 8)), boxed(2, 7, (5, 5, 1, 0)),
        ]  # fmt: skip
        content = detection([{"file_name": name} for name in file_names], names, boxes[: 5 if split == "train" else 3])
        write_json(root / f"coco/annotations/instances_{split}2017.json", content)
        for name in file_names:
            write_image(root / f"coco/{split}2017" / name)


def repro_10k(root: Path) -> None:
    """No person in val."""
    for split, labels in (("train", (1, 4, 7)), ("val", (1, 4))):
        boxes = [boxed(1, label, (10 + place, 12, 20, 28)) for place, label in enumerate(labels)]
        content = detection([{"file_name": "a.png"}, {"file_name": "b.png"}], ("car", "motorbike", "person"), boxes)
        write_json(root / f"repro_10k/annotations/{split}.json", content)
        for name in ("a.png", "b.png"):
            write_image(root / "repro_10k" / split / name)


LVIS_NAMES = ("aerosol_can", "bear", "coffee_cup")


def lvis_v1(root: Path) -> None:
    """Val has an image of train2017; the second image has more bears than are annotated, and no can."""
    for split, folders in (("train", ("train2017", "train2017")), ("val", ("val2017", "train2017"))):
        paths = [f"{folder}/{place:012}.jpg" for place, folder in enumerate(folders, start=101)]
        searched = [{"neg_category_ids": [7], "not_exhaustive_category_ids": []}]
        searched += [{"neg_category_ids": [1], "not_exhaustive_category_ids": [4]}]
        images = [
            {"coco_url": f"http://images.cocodataset.org/{path}", **own}
            for path, own in zip(paths, searched, strict=True)
        ]
        boxes = [boxed(1, 1, (10, 12, 20, 28)), boxed(2, 4, (3, 4, 30, 20)), boxed(2, 7, (40, 20, 12, 15))]
        content = detection(images, LVIS_NAMES, boxes)
        for annotation in content["annotations"]:
            del annotation["iscrowd"]  # which LVIS has not
        for category, frequency in zip(content["categories"], "rcf", strict=True):
            category["frequency"] = frequency
        write_json(root / f"lvis/lvis_v1_{split}.json", content)
        for path in paths:
            write_image(root / "coco" / path)


def objects365(root: Path) -> None:
    """Val's second image is one of those that were never published."""
    published = {"train": ("patch0/objects365_v1_00000001.jpg", "patch16/objects365_v2_00900001.jpg")}
    published["val"] = ("patch3/objects365_v1_00000007.jpg", "patch16/objects365_v2_00908726.jpg")
    for split, names in published.items():
        images = [{"file_name": f"images/{name.split('_')[1]}/{name}"} for name in names]
        boxes = [boxed(1, 1, (10, 12, 20, 28)), boxed(1, 4, (-3.5, 4, 30, 20)), boxed(2, 7, (40, 20, 12, 15))]
        write_json(
            root / f"objects365/annotations/zhiyuan_objv2_{split}.json",
            detection(images, ("Person", "Sneakers", "Chair"), boxes),
        )
        for name in names:
            if name != "patch16/objects365_v2_00908726.jpg":
                write_image(root / "objects365" / split / name)


VocObject = tuple[str, int, tuple[float, float, float, float]]  # name, difficult, xmin, ymin, xmax, ymax

VOC: dict[str, list[VocObject]] = {
    "000001": [("dog", 0, (1, 1, 64, 48)), ("person", 1, (11, 13, 30, 40))],
    "000002": [("car", 0, (5, 6, 24.5, 20))],
    "000003": [("person", 0, (31, 2, 60, 47)), ("tvmonitor", 0, (2, 3, 2, 3))],
}


def voc_xml(objects: Sequence[VocObject]) -> str:
    """As VOC has it, with the box of a part inside an object's."""
    told = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
        "<bndbox>" + "".join(f"<{side}>{at}</{side}>" for side, at in zip(SIDES, box, strict=True)) + "</bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        "</object>\n"
        for name, difficult, box in objects
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>\n{size}\n{told}</annotation>\n"


SIDES = ("xmin", "ymin", "xmax", "ymax")


def voc(root: Path, year: int, lists: dict[str, Sequence[str]]) -> None:
    folder = root / f"VOC{year}"
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets/Main").mkdir(parents=True)
    for stem, objects in VOC.items():
        (folder / f"Annotations/{stem}.xml").write_text(voc_xml(objects))
        write_image(folder / f"JPEGImages/{stem}.jpg")
    for name, stems in lists.items():
        (folder / f"ImageSets/Main/{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def crowdhuman(root: Path) -> None:
    """A full box that leaves the image, one to be ignored, a mask, one wholly outside."""
    for split in SPLITS:
        lines = []
        for identity in (f"273271,{split}", f"273275,{split}"):
            boxes = [
                {"tag": "person", "fbox": [-10, 12, 40, 50], "vbox": [0, 12, 30, 36], "extra": {"box_id": 0, "occ": 0}},
                {"tag": "person", "fbox": [40, 5, 10, 20], "extra": {"box_id": 1, "occ": 1, "ignore": 1}},
                {"tag": "mask", "fbox": [30, 30, 20, 10], "extra": {"ignore": 1}},
                {"tag": "person", "fbox": [70, 5, 10, 20], "extra": {"box_id": 2}},
            ]
            lines.append(json.dumps({"ID": identity, "gtboxes": boxes}))
            write_image(root / f"crowdhuman/Images/{identity}.jpg")
        (root / f"crowdhuman/annotation_{split}.odgt").write_text("\n".join(lines) + "\n")


def visdrone(root: Path) -> None:
    for split in SPLITS:
        folder = root / f"VisDrone2019-DET-{split}"
        (folder / "annotations").mkdir(parents=True)
        for stem in ("0000001_02999_d_0000005", "0000002_00005_d_0000014"):
            (folder / f"annotations/{stem}.txt").write_text("10,12,20,28,1,4,0,0\n40,5,8,9,1,1,0,1\n0,30,9,9,0,0,0,0\n")
            write_image(folder / f"images/{stem}.jpg")


def coco_names(params: Path) -> list[str]:
    import yaml

    return list(yaml.safe_load((params / "datasets/coco_2017.yaml").read_text())["classes"])


# By the name of the dataset: what writes its miniature below a folder of datasets.
PUBLISHED: dict[str, Callable[[Path], None]] = {
    "coco_2017": lambda root: coco_2017(root, coco_names(Path(__file__).parent.parent / "params")),
    "lvis_v1": lvis_v1,
    "voc_2007": lambda root: voc(root, 2007, {"trainval": ["000001", "000003"], "test": ["000002"]}),
    "voc_2012": lambda root: voc(root, 2012, {"train": ["000002"], "val": ["000003", "000001"]}),
    "crowdhuman": crowdhuman,
    "objects365": objects365,
    "visdrone": visdrone,
    "repro_10k": repro_10k,
}
