"""COCO files: what a legal one becomes, and that every fault is one sentence naming file and id."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, content, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from noisebox.data.coco import CocoSplit, ImageRecord, decode_image, read_image, read_split
from noisebox.errors import UserError

Coco = dict[str, Any]


def read(folder: Path, coco: Coco, classes: list[str] | None = None) -> CocoSplit:
    """Read `coco` with the images that `content()` has."""
    file, images = write(folder, "train", content())
    file.write_text(json.dumps(coco))
    return read_split("signs/train", file, images, classes)


def test_a_legal_file_becomes_records(tmp_path: Path) -> None:
    split = read(tmp_path, content())
    assert (split.classes, split.category_ids) == (("cat", "cow", "dog"), (2, 5, 7))
    assert [record.id for record in split.images] == [10, 11, 12]
    empty, _, last = split.images
    assert empty.boxes_xyxy.shape == (0, 4) and empty.labels.shape == (0,)
    assert last.boxes_xyxy.dtype == np.float32
    assert last.boxes_xyxy.tolist() == [[4, 8, 14, 28], [24, 8, 34, 28]]
    assert last.labels.tolist() == [2, 0]
    assert split.objects_per_class() == {"cat": 1, "cow": 0, "dog": 2}


def test_annotations_in_any_order_find_their_images(tmp_path: Path) -> None:
    shuffled = content()
    shuffled["annotations"].reverse()
    shuffled["images"].reverse()
    before, after = (
        {record.id: sorted(record.boxes_xyxy.tolist()) for record in read(tmp_path, coco).images}
        for coco in (content(), shuffled)
    )
    assert before == after


def test_classes_select_and_order(tmp_path: Path) -> None:
    coco = content()
    coco["annotations"][1]["category_id"] = 5
    coco["annotations"].append({"id": 1, "image_id": 10, "category_id": 2, "bbox": "dropped unseen"})
    split = read(tmp_path, coco, ["dog", "cow"])
    assert (split.classes, split.category_ids) == (("dog", "cow"), (7, 5))
    assert [record.labels.tolist() for record in split.images] == [[], [0], [1]]


def test_rounding_is_clipped_but_kept_for_counting(tmp_path: Path) -> None:
    coco = content()
    coco["annotations"][0] |= {"bbox": [-0.5, 40, 64.9, 8.75], "iscrowd": 1}
    del coco["annotations"][1]["area"], coco["annotations"][1]["iscrowd"]
    split = read(tmp_path, coco)
    record = split.images[1]
    assert record.boxes_xyxy.tolist() == [[0, 40, 64, 48]] and record.crowd.tolist() == [True]
    truth = split.ground_truth()
    assert truth["annotations"] == [
        {"id": 1, "image_id": 11, "category_id": 7, "bbox": [-0.5, 40, 64.9, 8.75], "area": 150.5, "iscrowd": 1},
        {"id": 2, "image_id": 12, "category_id": 7, "bbox": [4, 8, 10, 20], "area": 200, "iscrowd": 0},
        {"id": 3, "image_id": 12, "category_id": 2, "bbox": [24, 8, 10, 20], "area": 150.5, "iscrowd": 0},
    ]
    assert truth["categories"] == [{"id": 2, "name": "cat"}, {"id": 5, "name": "cow"}, {"id": 7, "name": "dog"}]
    assert [image["id"] for image in truth["images"]] == [10, 11, 12]
    assert split.objects_per_class() == {"cat": 1, "cow": 0, "dog": 1}


def faulty(change: Callable[[Coco], Any], *said: str, id: str) -> Any:
    return pytest.param(change, said, id=id)


def box(*numbers: Any) -> Callable[[Coco], Any]:
    return lambda coco: coco["annotations"][2].update(bbox=list(numbers))


def file_name(name: Any) -> Callable[[Coco], Any]:
    return lambda coco: coco["images"][1].update(file_name=name)


OF_ANNOTATION, OF_IMAGE = "annotation 121 (image 12)", "image 11"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        faulty(box(1, 2, float("nan"), 4), OF_ANNOTATION, "finite", "nan", id="nan"),
        faulty(box(1, float("-inf"), 3, 4), OF_ANNOTATION, "finite", id="infinite"),
        faulty(box(1, 2, 10**400, 4), OF_ANNOTATION, "finite", id="huge integer"),
        faulty(box(1, 2, 3), OF_ANNOTATION, "[x, y, width, height]", id="three numbers"),
        faulty(box(1, 2, "3", 4), OF_ANNOTATION, "finite", id="text in a box"),
        faulty(box(1, 2, 0, 4), OF_ANNOTATION, "no area", id="no width"),
        faulty(box(1, 2, 3, -4), OF_ANNOTATION, "no area", id="negative height"),
        faulty(box(60, 2, 6, 4), OF_ANNOTATION, "outside", "64 x 48", id="over the right edge"),
        faulty(box(2, -1.5, 6, 4), OF_ANNOTATION, "outside", id="over the top edge"),
        faulty(box(64.1, 2, 0.5, 4), OF_ANNOTATION, "outside", id="beyond the edge by rounding"),
        faulty(lambda c: c["annotations"][2].pop("bbox"), OF_ANNOTATION, "no 'bbox'", id="no box"),
        faulty(lambda c: c["annotations"][2].update(area=float("nan")), OF_ANNOTATION, "area nan", id="area nan"),
        faulty(lambda c: c["annotations"][2].update(iscrowd=2), OF_ANNOTATION, "iscrowd 2", "0 or 1", id="iscrowd 2"),
        faulty(lambda c: c["annotations"][2].update(category_id=3), OF_ANNOTATION, "2, 5, 7", id="undeclared category"),
        faulty(lambda c: c["annotations"][2].update(category_id="cat"), OF_ANNOTATION, "'cat'", id="category by name"),
        faulty(lambda c: c["annotations"][2].update(image_id=99), "annotation 121 (image 99)", id="unknown image"),
        faulty(lambda c: c["annotations"][2].update(id=110), "annotation 110", "twice", id="annotation twice"),
        faulty(
            lambda c: c["annotations"][2].update(id=None), "annotation number 3", "None", id="annotation without id"
        ),
        faulty(lambda c: c["images"][1].update(id=10), "image 10", "twice", id="image twice"),
        faulty(lambda c: c["images"][1].update(id=2**70), "image number 2", "whole number", id="huge id"),
        faulty(lambda c: c["images"][1].update(id=True), "image number 2", "whole number", id="true as id"),
        faulty(lambda c: c["images"][1].update(width=64.0), OF_IMAGE, "width 64.0", id="fractional width"),
        faulty(lambda c: c["images"][1].update(height=0), OF_IMAGE, "height 0", id="no height"),
        faulty(lambda c: c["images"][1].pop("file_name"), OF_IMAGE, "no 'file_name'", id="no file name"),
        faulty(file_name("absent.png"), OF_IMAGE, "absent.png", "does not exist", id="missing image"),
        faulty(file_name("x" * 5000), OF_IMAGE, "does not exist", id="endless name"),
        faulty(file_name("a\0.png"), OF_IMAGE, "name of a file", id="nul in a name"),
        faulty(file_name("\ud800.png"), OF_IMAGE, "name of a file", id="broken text in a name"),
        faulty(file_name("../train/1.png"), OF_IMAGE, "leaves the image folder", id="dots"),
        faulty(file_name("/etc/hostname"), OF_IMAGE, "leaves the image folder", id="absolute"),
        faulty(file_name(""), OF_IMAGE, "name of a file", id="empty name"),
        faulty(lambda c: c["categories"][1].update(name="dog"), "category 2", "'dog'", "unique", id="category twice"),
        faulty(lambda c: c["categories"][1].update(id=7), "category 7", "twice", id="category id twice"),
        faulty(lambda c: c["categories"][1].update(name="a\tb"), "category 2", "printable", id="tab in a class"),
        faulty(lambda c: c.update(categories=[]), "'categories' is empty", id="no categories"),
        faulty(lambda c: c.update(images=[], annotations=[]), "no images", id="empty split"),
        faulty(lambda c: c.pop("annotations"), "no COCO", "'annotations' is missing", id="no annotations"),
        faulty(lambda c: c.update(images={"a": 1}), "no COCO", "'images' is no list", id="images no list"),
        faulty(lambda c: c.update(images=["a.png"]), "no COCO", "'images' is no list", id="images no objects"),
    ],
)
def test_a_fault_is_one_sentence(tmp_path: Path, change: Callable[[Coco], Any], said: tuple[str, ...]) -> None:
    coco = content()
    change(coco)
    with pytest.raises(UserError) as told:
        read(tmp_path, coco)
    message = str(told.value)
    assert "\n" not in message and len(message) < 6000
    for part in (str(tmp_path / "train.json"), *said):
        assert part in message


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"7", b'{"images": 1e99999}'])
def test_what_is_no_coco_json(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "train.json"
    file.write_bytes(text)
    with pytest.raises(UserError, match=r"train\.json is (not valid JSON|no COCO)"):
        read_split("signs/train", file, tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.json cannot be read \(No such file"):
        read_split("signs/train", tmp_path / "train.json", tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file, images = write(tmp_path, "train", content())
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_split("signs/train", file, images).images) == 3


def test_an_undeclared_class_names_the_nearest_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.json declares no class 'cows'; it declares cow, "):
        read(tmp_path, content(), ["cat", "cows"])


def test_the_number_of_like_faults_is_told(tmp_path: Path) -> None:
    coco = content()
    for annotation in coco["annotations"]:
        annotation["bbox"][2] = 0
    with pytest.raises(UserError, match=r"annotation 110 .* \(2 more like it\)$"):
        read(tmp_path, coco)


def test_links_may_be_images_but_not_ways_out(tmp_path: Path) -> None:
    """DVC's link mode and many users keep images as links; a linked folder would let names reach anywhere."""
    file, images = write(tmp_path, "train", content())
    (tmp_path / "store").mkdir()
    shutil.move(images / "1.png", tmp_path / "store/1.png")
    (images / "1.png").symlink_to(tmp_path / "store/1.png")
    (images / "way").symlink_to(tmp_path / "store")
    assert len(read_split("signs/train", file, images).images) == 3
    coco = content()
    coco["images"][1]["file_name"] = "way/1.png"
    file.write_text(json.dumps(coco))
    with pytest.raises(UserError, match=r"image 11 .* leaves the image folder"):
        read_split("signs/train", file, images)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_junk_anywhere_escapes_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    coco: Any = content()
    place, key = coco, data.draw(st.sampled_from(sorted(coco)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(JUNK)
    try:
        split = read(tmp_path, coco)
    except UserError:
        return
    for record in split.images:
        assert (record.boxes_xyxy[:, 2:] > record.boxes_xyxy[:, :2]).all()
        assert (record.boxes_xyxy >= 0).all() and (record.boxes_xyxy <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    return read(tmp_path, content()).images[0]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


COLOURS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def test_rgb_and_what_becomes_rgb(record: ImageRecord) -> None:
    rgb = Image.fromarray(COLOURS)
    grey = rgb.convert("L")
    alpha = rgb.copy()
    alpha.putalpha(grey)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = rgb.quantize(16)
    thrice = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    for image, expected in (
        (rgb, COLOURS),
        (alpha, COLOURS),
        (grey, thrice),
        (sixteen, thrice),
        (palette, np.asarray(palette.convert("RGB"))),
    ):
        pixels = decode_image(encoded(image), record)
        assert pixels.dtype == np.uint8 and pixels.flags.writeable
        assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_follows_the_stated_size(record: ImageRecord, orientation: int) -> None:
    """What Pillow stores turned comes back upright where the file states the upright size, else as stored."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    upright = Image.fromarray(COLOURS)
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(stored, exif=exif)
    assert np.array_equal(decode_image(file, record), COLOURS)
    if orientation > 4:
        as_stored = replace(record, width=HEIGHT, height=WIDTH)
        assert np.array_equal(decode_image(file, as_stored), np.asarray(stored))


def test_another_size_than_stated(record: ImageRecord) -> None:
    file = encoded(Image.new("RGB", (WIDTH + 1, HEIGHT)))
    with pytest.raises(UserError, match=r"image 10: .*0\.png is 65 x 48 pixels .* says 64 x 48"):
        decode_image(file, record)


def test_float_pixels(record: ImageRecord) -> None:
    with pytest.raises(UserError, match=r"image 10: .* 8 or 16 bits"):
        decode_image(encoded(Image.fromarray(COLOURS[:, :, 0].astype(np.float32)), "TIFF"), record)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_damaged_image_is_one_sentence(record: ImageRecord, form: str) -> None:
    whole = encoded(Image.fromarray(COLOURS), form)
    generator = np.random.default_rng(1)
    for length in [0, 1, 8, *generator.integers(9, len(whole) - 20, 20).tolist()]:
        with pytest.raises(UserError, match=r"image 10: .*0\.png cannot be read as an image") as told:
            decode_image(whole[:length], record)
        assert "\n" not in str(told.value)
    for _ in range(40):
        bent = bytearray(whole)
        for place in generator.integers(0, len(whole), 4):
            bent[place] ^= 0xFF
        try:
            assert decode_image(bytes(bent), record).shape == (HEIGHT, WIDTH, 3)
        except UserError:
            continue


def test_an_image_that_vanished(record: ImageRecord) -> None:
    record.path.unlink()
    with pytest.raises(UserError, match=r"image 10: .*0\.png cannot be read \(No such file"):
        read_image(record)
