"""Published datasets by name, each a miniature in its own layout: what is read of it, by hand or another reader's word,
and what is said of a fault."""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from faster_coco_eval import COCO, COCOeval_faster
from published import HEIGHT, PUBLISHED, VOC, WIDTH, boxed, coco_names, detection, write_image, write_json
from pycocotools.coco import COCO as Judge
from torchvision.datasets import VOCDetection

from noisebox import graph
from noisebox.data.catalog import load_dataset, open_split, prepare_dataset
from noisebox.data.coco import CocoSplit
from noisebox.data.lvis import read_lvis
from noisebox.data.voc import read_voc
from noisebox.errors import UserError
from noisebox.evaluation.detection import coco_metrics, to_coco_results
from noisebox.evaluation.protocol import judged
from noisebox.randomness import numpy_generator
from noisebox.structures import Detections


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with params/datasets alone; the folder of datasets lies in it, where it is looked for by default."""
    for name in ("NOISEBOX_DATASETS", "DETECTRON2_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/datasets").symlink_to(ROOT / "params/datasets")
    return tmp_path


def opened(name: str, split: str, root: Path) -> CocoSplit:
    return load_dataset(name, root).open(name, split, root)


# By hand: images, objects by class, and how many boxes cost nothing.
HELD: dict[str, dict[str, tuple[int, dict[str, int], int]]] = {
    "coco_2017": {"train": (3, {"person": 1, "bicycle": 1, "car": 1}, 1), "val": (3, {"person": 1, "bicycle": 1}, 1)},
    "lvis_v1": dict.fromkeys(("train", "val"), (2, {"aerosol_can": 1, "bear": 1, "coffee_cup": 1}, 1)),
    "voc_2007": {"train": (2, {"dog": 1, "person": 1, "tvmonitor": 1}, 1), "val": (1, {"car": 1}, 0)},
    "voc_2012": {"train": (1, {"car": 1}, 0), "val": (2, {"dog": 1, "person": 1, "tvmonitor": 1}, 1)},
    "crowdhuman": dict.fromkeys(("train", "val"), (2, {"person": 2}, 4)),
    "objects365": {
        "train": (2, {"Person": 1, "Sneakers": 1, "Chair": 1}, 0),
        "val": (1, {"Person": 1, "Sneakers": 1}, 0),
    },
    "visdrone": dict.fromkeys(("train", "val"), (2, {"car": 2, "pedestrian": 2}, 20)),
    "repro_10k": {"train": (2, {"car": 1, "motorbike": 1, "person": 1}, 0), "val": (2, {"car": 1, "motorbike": 1}, 0)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_miniature_is_read_as_it_was_written(name: str, root: Path) -> None:
    PUBLISHED[name](root / "datasets")
    manifest = prepare_dataset(name, root)
    for split, (images, objects, free) in HELD[name].items():
        held = opened(name, split, root)
        assert {key: count for key, count in held.objects_per_class().items() if count} == objects
        assert (len(held), sum(int(record.crowd.sum()) for record in held.images)) == (images, free)
        assert manifest["splits"][split]["objects"] == held.objects_per_class()
    assert manifest["classes"] == list(held.classes)


def test_class_lists_are_whole(root: Path) -> None:
    counts = {name: len(load_dataset(name, root).model_dump()["classes"] or []) for name in PUBLISHED}
    assert counts == {
        "coco_2017": 80, "voc_2007": 20, "voc_2012": 20, "crowdhuman": 1, "visdrone": 10, "repro_10k": 3,
        "lvis_v1": 0, "objects365": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["coco_2017", "repro_10k"])
def test_pycocotools_reads_the_same_boxes(name: str, root: Path) -> None:
    """But for the one without height, which is no object to anybody."""
    PUBLISHED[name](root / "datasets")
    held = opened(name, "train", root)
    with contextlib.redirect_stdout(io.StringIO()):
        judge = Judge(held.annotation_file)
    names = {category["id"]: category["name"] for category in judge.loadCats(judge.getCatIds())}
    for record in held.images:
        theirs = [each for each in judge.imgToAnns[record.id] if each["bbox"][3] > 0]
        assert record.stored_xywh.tolist() == [each["bbox"] for each in theirs]
        assert [held.classes[label] for label in record.labels] == [names[each["category_id"]] for each in theirs]
    if name == "coco_2017":
        assert held.images[1].boxes_xyxy[1].tolist() == [50, 40, WIDTH, HEIGHT], "clipped where it leaves the image"


def test_voc_is_what_torchvision_reads(root: Path) -> None:
    """Its numbers are pixels counted from 1, the last one included."""
    PUBLISHED["voc_2007"](root / "datasets")
    (root / "theirs/VOCdevkit").mkdir(parents=True)
    (root / "theirs/VOCdevkit/VOC2007").symlink_to(root / "datasets/VOC2007")
    for split, listed in (("train", "trainval"), ("val", "test")):
        theirs = VOCDetection(str(root / "theirs"), "2007", listed)
        ours = opened("voc_2007", split, root)
        assert len(theirs) == len(ours)
        for (picture, told), record in zip(theirs, ours.images, strict=True):
            assert picture.size == (record.width, record.height)
            objects = told["annotation"]["object"]
            corners = [[float(each["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for each in objects]
            assert (record.boxes_xyxy + np.array([1, 1, 0, 0])).tolist() == corners
            assert [ours.classes[label] for label in record.labels] == [each["name"] for each in objects]
            assert record.crowd.tolist() == [each["difficult"] == "1" for each in objects]
    whole = opened("voc_2007", "train", root).images[0]
    assert whole.boxes_xyxy[0].tolist() == [0, 0, WIDTH, HEIGHT] and whole.areas[0] == WIDTH * HEIGHT
    assert opened("voc_2007", "train", root).images[1].areas[1] == 1, "a box of one pixel"


def test_crowdhuman_clips_and_ignores(root: Path) -> None:
    PUBLISHED["crowdhuman"](root / "datasets")
    record = opened("crowdhuman", "val", root).images[0]
    assert record.boxes_xyxy.tolist() == [[0, 12, 30, HEIGHT], [40, 5, 50, 25], [30, 30, 50, 40]]
    assert record.crowd.tolist() == [False, True, True]
    assert record.stored_xywh[0].tolist() == [0, 12, 30, 36] and record.areas[0] == 30 * 36


def test_lvis_finds_its_images_by_their_address(root: Path) -> None:
    PUBLISHED["lvis_v1"](root / "datasets")
    held = opened("lvis_v1", "val", root)
    folder = root / "datasets/coco"
    paths = [folder / "val2017/000000000101.jpg", folder / "train2017/000000000102.jpg"]
    assert [record.path for record in held.images] == paths
    assert held.federated is not None
    assert held.federated.judged == {1: frozenset({0, 2}), 2: frozenset({0, 1, 2})}
    assert held.images[1].boxes_xyxy[-1].tolist() == [0, 0, WIDTH, HEIGHT] and held.images[1].labels[-1] == 1


@pytest.mark.parametrize("seed", range(4))
def test_lvis_ap_is_that_of_the_other_counter(seed: int, tmp_path: Path) -> None:
    """faster-coco-eval has LVIS' rules built in; ours are COCO's on what the rules leave."""
    random = numpy_generator(seed, "lvis")
    categories, images, boxes = 5, [], []
    for image in range(1, 9):
        searched = random.permutation(categories)
        present, in_vain = searched[:2], searched[2:3]
        path = f"val2017/{image:012}.jpg"
        write_image(tmp_path / path)
        images.append(
            {
                "coco_url": f"http://images.cocodataset.org/{path}",
                "neg_category_ids": [int(3 * k + 1) for k in in_vain],
                "not_exhaustive_category_ids": [int(3 * present[0] + 1)] if random.random() < 0.5 else [],
            }
        )
        for k in random.choice(present, random.integers(1, 6)):
            corner, side = random.uniform(0, 30, 2), random.uniform(4, 18, 2)
            boxes.append(boxed(image, int(3 * k + 1), [*corner, *side]))
    content = detection(images, list("vwxyz"), boxes)
    for category, frequency in zip(content["categories"], "rrccf", strict=True):
        category["frequency"] = frequency
    write_json(tmp_path / "lvis.json", content)
    split = read_lvis("lvis/val", tmp_path / "lvis.json", tmp_path)
    found = {record.id: _near(record.boxes_xyxy, random) for record in split.images}
    assert split.federated is not None
    ours = coco_metrics(split, {image: judged(each, split.federated, image) for image, each in found.items()})

    truth = COCO(content)
    best = {image: Detections(*(column[:300] for column in vars(each).values())) for image, each in found.items()}
    counter = COCOeval_faster(truth, truth.loadRes(to_coco_results(split, best)), iouType="bbox", lvis_style=True)
    counter.params.maxDets = [300]
    counter.run()
    theirs = counter.stats_as_dict
    same = {"AP": "AP_all", "AP50": "AP_50", "APs": "AP_small", "APr": "APr", "APc": "APc", "APf": "APf"}
    expected = {name: 100 * theirs[their] if theirs[their] >= 0 else math.nan for name, their in same.items()}
    assert {name: ours.summary[name] for name in same} == pytest.approx(expected, nan_ok=True)
    assert 1 < ours.ap < 99, "there is something to tell apart"
    assert ours.ap != coco_metrics(split, found).ap, "the rules matter"


def _near(boxes_xyxy: np.ndarray, random: np.random.Generator) -> Detections:
    """400 detections near the objects, of any class, in falling order of score."""
    boxes = boxes_xyxy[random.integers(0, len(boxes_xyxy), 400)] + random.normal(0, 2, (400, 4))
    boxes = torch.tensor(boxes.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT]), dtype=torch.float32)
    return Detections(boxes, torch.linspace(1, 0.01, 400), torch.tensor(random.integers(0, 5, 400)))


def test_the_folder_of_datasets_may_lie_anywhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noisebox' own variable counts before Detectron2's; neither is known to manifest or hash."""
    PUBLISHED["coco_2017"](root / "datasets")
    first = prepare_dataset("coco_2017", root)
    (root / "datasets").rename(root / "elsewhere")
    with pytest.raises(
        UserError, match=r"coco_2017\.yaml: train\.images: there is no folder .*datasets/coco/train2017"
    ):
        prepare_dataset("coco_2017", root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "elsewhere"))
    assert prepare_dataset("coco_2017", root) == first
    monkeypatch.setenv("NOISEBOX_DATASETS", str(root / "nowhere"))
    with pytest.raises(UserError, match=r"there is no folder .*nowhere/coco/train2017"):
        prepare_dataset("coco_2017", root)
    monkeypatch.setenv("NOISEBOX_DATASETS", str(root / "elsewhere"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "nowhere"))
    assert prepare_dataset("coco_2017", root) == first


def test_source_is_no_part_of_the_data(root: Path) -> None:
    for name in [*PUBLISHED, "nuscenes"]:
        assert "source" not in load_dataset(name, root).model_dump() and load_dataset(name, root).source


# Faults


def edited(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(datasets: Path) -> None:
        text = (datasets / path).read_text()
        assert old in text
        (datasets / path).write_text(text.replace(old, new, 1))

    return edit


def gone(path: str) -> Callable[[Path], None]:
    return lambda datasets: os.remove(datasets / path)  # noqa: PTH107  (unlink gives a value that no caller wants)


XML = "VOC2007/Annotations/000001.xml"
TRAIN = "crowdhuman/annotation_train.odgt"
GB = '<?xml version="1.0" encoding="GB2312"?><annotation>'
BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>'
FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("coco_2017", gone("coco/annotations/instances_val2017.json"), "val.annotations: there is no file "),
    ("coco_2017", gone("coco/train2017/000000000025.jpg"), "image 2 has file_name '000000000025.jpg', but "),
    ("voc_2007", edited(XML, "</annotation>", ""), f"{XML}, line 6: this is not valid XML (no element found"),
    ("voc_2007", edited(XML, "<annotation>", BOMB), f"{XML} declares a document type, which no annotation needs"),
    ("voc_2007", edited(XML, "<annotation>", GB), f"{XML}, line 1: its encoding cannot be read (multi-byte encodings"),
    ("voc_2007", edited(XML, "<annotation>", GB.replace("GB2312", "bogus")), "(unknown encoding: bogus); save and"),
    ("voc_2007", edited("VOC2007/ImageSets/Main/trainval.txt", "3\n", "3\0\n"), "trainval.txt, line 2 has a NUL byte"),
    ("voc_2007", edited(XML, ">dog<", ">dgo<"), f"{XML}: object 1 is of class 'dgo', which is unknown; did you"),
    ("voc_2007", edited(XML, "<xmin>1<", "<xmin>one<"), f"{XML}: object 1: bndbox/xmin is 'one'; it must be a number"),
    ("voc_2007", edited(XML, "<ymax>48</ymax>", ""), f"{XML}: object 1: bndbox/ymax is missing; it must be a number"),
    ("voc_2007", edited(XML, "<width>64<", "<width>0<"), f"{XML}: size is 0 x 48 pixels"),
    ("voc_2007", gone(XML), f"{XML} cannot be read (No such file or directory)"),
    ("voc_2007", gone("VOC2007/JPEGImages/000001.jpg"), f"{XML} has no image: "),
    ("voc_2007", edited("VOC2007/ImageSets/Main/trainval.txt", "000003", "000001"), "trainval.txt names 000001 twice"),
    ("voc_2007", edited(XML, "<width>64<", "<width>63<"), "000001.jpg is 64 x 48 pixels (width x height), but the"),
    ("crowdhuman", edited(TRAIN, '"gtboxes": [', '"gtboxes": [['), f"{TRAIN}, line 1: this is not valid JSON ("),
    ("crowdhuman", edited(TRAIN, "[40, 5, 10, 20]", "[40, 5, 10]"), f"{TRAIN}, line 1: box 2 of image '273"),
    ("crowdhuman", edited(TRAIN, "273275", "../273275"), f"{TRAIN}, line 2: image '../273275,train' is missing"),
    ("crowdhuman", edited(TRAIN, "273275", 5000 * "7"), f"{TRAIN}, line 2: ID '77777777777777777777'... of 5006"),
    ("crowdhuman", edited(TRAIN, "273275", "273271"), f"{TRAIN}, line 2: image '273271,train' is in line 1 already"),
    ("crowdhuman", gone("crowdhuman/Images/273275,train.jpg"), f"{TRAIN}, line 2: image '273275,train' is missing: "),
    ("lvis_v1", edited("lvis/lvis_v1_val.json", '"neg_category_ids": [7]', '"neg": [7]'), "image 1 has no list 'neg_c"),
    ("objects365", gone("objects365/train/patch0/objects365_v1_00000001.jpg"), "image 1 has file_name 'patch0/obj"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "plant", "said"), FAULTS, ids=[said[:60] for _, _, said in FAULTS])
def test_a_fault_is_one_sentence(name: str, plant: Callable[[Path], None], said: str, root: Path) -> None:
    PUBLISHED[name](root / "datasets")
    plant(root / "datasets")
    with pytest.raises(UserError) as told:
        prepare_dataset(name, root)
    assert said in str(told.value) and "\n" not in str(told.value)
    assert not (root / graph.DATA_MANIFEST).exists()


def test_voc_form_with_other_classes(root: Path, tmp_path: Path) -> None:
    """A subset of VOC's, in another order; and classes of a user's own."""
    PUBLISHED["voc_2007"](root / "datasets")
    folder = root / "datasets/VOC2007"
    paths = (folder / "Annotations", folder / "JPEGImages", folder / "ImageSets/Main/trainval.txt")
    chosen = read_voc("voc/train", *paths, ["tvmonitor", "dog"])
    assert [record.labels.tolist() for record in chosen.images] == [[1], [0]]
    edited("Annotations/000001.xml", ">dog<", ">pear<")(folder)
    assert read_voc("voc/train", *paths, ["pear"]).objects_per_class() == {"pear": 1}


def test_a_voc_list_may_name_images_in_folders(root: Path) -> None:
    """Two of one name are two images; the files of the list are watched, and no other of their name."""
    PUBLISHED["voc_2007"](root / "datasets")
    folder = root / "datasets/VOC2007"
    named = {"a/1": "000001", "b/1": "000003"}
    for stem, of in named.items():
        for kind, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
            (folder / kind / stem).parent.mkdir(exist_ok=True)
            shutil.copy(folder / kind / f"{of}.{suffix}", folder / kind / f"{stem}.{suffix}")
    (folder / "Annotations/1.xml").write_text("of another split")
    plain = prepare_dataset("voc_2007", root)["splits"]["train"]
    (folder / "ImageSets/Main/trainval.txt").write_text("a/1\nb/1\n")
    manifest = prepare_dataset("voc_2007", root)
    assert manifest["splits"]["train"]["objects"] == plain["objects"]
    assert [record.file_name for record in opened("voc_2007", "train", root).images] == ["a/1.jpg", "b/1.jpg"]
    for split, names in ((plain, ["000001.xml", "000003.xml"]), (manifest["splits"]["train"], ["a/1.xml", "b/1.xml"])):
        of_files = [hashlib.sha256((folder / "Annotations" / name).read_bytes()).hexdigest() for name in names]
        listing = "".join(f"{digest} {name}\n" for digest, name in zip(of_files, names, strict=True))
        assert split["annotations_sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    edited("Annotations/b/1.xml", "<xmin>31<", "<xmin>32<")(folder)
    with pytest.raises(UserError, match=r"VOC2007/Annotations has changed since"):
        open_split("voc_2007", "train", root)


def test_coco_names_are_those_that_the_miniature_has(root: Path) -> None:
    PUBLISHED["coco_2017"](root / "datasets")
    content = json.loads((root / "datasets/coco/annotations/instances_train2017.json").read_text())
    assert [category["name"] for category in content["categories"]] == coco_names(ROOT / "params")
    assert set(VOC) == {"000001", "000002", "000003"}
