"""Predictions in any images: what evaluation finds in the same ones, in COCO's form; and what is refused beforehand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from coco_files import content, write
from PIL import Image
from pycocotools.coco import COCO
from small_detector import make_detector, opinionated, small_config

from noisebox.config import ImageConfig, RunConfig, Sampling
from noisebox.data.catalog import open_split, prepare_dataset
from noisebox.errors import UserError
from noisebox.evaluation import ongoing
from noisebox.evaluation.predict import predict
from noisebox.evaluation.protocol import measure
from noisebox.report.pictures import CELL, Box, Picture
from noisebox.report.predictions import drawn, read_predictions, write_pictures
from noisebox.structures import Batch
from noisebox.training.checkpoint import load_model, save_checkpoint

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]
CLASSES = ["dog", "cat", "cow"]
IMAGES = "data/images/val"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A detector that has opinions, in a project whose validation images have two sizes."""
    monkeypatch.chdir(tmp_path)
    coco = content(images=4)
    coco["images"][2] |= {"height": 60, "width": 60}
    for split in ("train", "val"):
        write(Path("data"), split, coco)
    files = {
        split: {"images": f"data/images/{split}", "annotations": f"data/{split}.json"} for split in ("train", "val")
    }
    Path("params/datasets").mkdir(parents=True)
    Path("params/datasets/small.yaml").write_text(yaml.safe_dump({"kind": "coco", "classes": CLASSES, **files}))
    prepare_dataset("small")
    config = small_config().model_copy(update={"image": ImageConfig(eval_short_edge=64, max_edge=96)})
    model = opinionated(make_detector())
    path = tmp_path / "model.pth"
    state = {"model": model.state_dict(), "config": config.model_dump(mode="json"), "classes": CLASSES, "iteration": 1}
    save_checkpoint(path, state)
    return path


def evaluated(checkpoint: Path, eval_seed: int, steps: int) -> dict[int, Any]:
    model, config, _ = load_model(checkpoint)
    sampling = Sampling(steps=steps)
    return measure(model, open_split("small", "val"), config, {sampling: [eval_seed]}).detections[eval_seed, sampling]


@pytest.mark.parametrize(("eval_seed", "steps"), [(0, 1), (3, 4)])
def test_what_is_found_is_what_evaluation_finds(checkpoint: Path, tmp_path: Path, eval_seed: int, steps: int) -> None:
    expected = evaluated(checkpoint, eval_seed, steps)
    found = predict(checkpoint, Path(IMAGES), tmp_path / "out", steps=steps, score=0, eval_seed=eval_seed)
    assert found.keys() == expected.keys()
    assert sum(len(each.scores) for each in found.values()) > 20
    for image, each in found.items():
        assert torch.equal(each.boxes_xyxy, expected[image].boxes_xyxy)
        assert torch.equal(each.scores, expected[image].scores)
        assert torch.equal(each.labels, expected[image].labels)
    results = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(results) == sum(len(each.scores) for each in found.values())


def test_an_image_that_is_annotated_as_stored_is_found_so(checkpoint: Path, command_line: CommandLine) -> None:
    """Its EXIF orientation would turn it by a quarter; its annotations state the size without that."""
    turned = Path(IMAGES) / "3.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(turned) as image:
        stored = image.convert("RGB")
    stored.save(turned, exif=exif)
    expected = evaluated(checkpoint, 0, 1)[13]
    assert command_line("predict", checkpoint, "--images", turned, "--out", "out", "--score", 0)[0] == 0
    (image,) = json.loads(Path("out/images.json").read_text())["images"]
    assert (image["id"], image["width"], image["height"]) == (13, *stored.size)
    results = json.loads(Path("out/predictions.json").read_text())
    x, y, width, height = torch.tensor([result["bbox"] for result in results]).T
    boxes = torch.stack([x, y, x + width, y + height], 1)
    torch.testing.assert_close(boxes, expected.boxes_xyxy, rtol=0, atol=1e-2)
    plain = Path("photos/3.png")
    plain.parent.mkdir()
    stored.save(plain)
    assert command_line("predict", checkpoint, "--images", plain, "--out", "plain", "--score", 1)[0] == 0
    assert command_line("predict", checkpoint, "--images", turned, "--out", "out", "--score", 1)[0] == 0
    pictures = [np.asarray(Image.open(f"{out}/pictures/3.png")) for out in ("plain", "out")]
    assert np.array_equal(*pictures), "drawn as stored, too"


def test_a_validation_image_of_another_size_than_stated_is_told(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(f"{IMAGES}/3.png")
    with pytest.raises(UserError, match=r"image 13: .*val/3\.png is 50 x 40 pixels .* annotation file says 64 x 48"):
        predict(checkpoint, Path(IMAGES), tmp_path / "out")


def test_an_image_is_found_alike_alone_and_in_any_batch(checkpoint: Path, tmp_path: Path) -> None:
    expected = evaluated(checkpoint, 0, 2)
    (image_id, alone), *others = predict(
        checkpoint, Path(IMAGES) / "3.png", tmp_path / "out", steps=2, score=0, batch_size=7
    ).items()
    assert (image_id, others) == (13, [])
    torch.testing.assert_close(alone.scores, expected[13].scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(alone.boxes_xyxy, expected[13].boxes_xyxy, rtol=0, atol=1e-2)


def test_images_from_elsewhere_keep_their_detections_whatever_lies_beside_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Under an id made of the name, of any size and colour; other files of the folder are no images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (200, 31, 3), dtype=np.uint8)).save(folder / "high.jpg")
    first = predict(checkpoint, folder, tmp_path / "one", score=0)
    Image.fromarray(rng.integers(0, 255, (30, 200), dtype=np.uint8)).save(folder / "Grey.PNG")
    turned = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    (folder / "notes.txt").write_text("no image")
    second = predict(checkpoint, folder, tmp_path / "two", score=0)
    companion = json.loads((tmp_path / "two/images.json").read_text())
    ids = {image["file_name"]: image["id"] for image in companion["images"]}
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in companion["images"]}
    assert sizes == {"Grey.PNG": (200, 30), "high.jpg": (31, 200), "turned.png": (40, 60)}
    assert first.keys() == {ids["high.jpg"]}
    torch.testing.assert_close(first[ids["high.jpg"]].scores, second[ids["high.jpg"]].scores, rtol=0, atol=1e-4)


def test_a_prediction_that_was_killed_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ongoing, "SECONDS_BETWEEN", 0)
    whole = predict(checkpoint, Path(IMAGES), tmp_path / "whole", score=0, batch_size=1)
    model, encoded = type(load_model(checkpoint)[0]), []
    encode = model.encode

    def killed(self: Any, batch: Batch) -> Any:
        encoded.append(batch.image_ids)
        if len(encoded) == 2:
            raise InterruptedError
        return encode(self, batch)

    monkeypatch.setattr(model, "encode", killed)
    with pytest.raises(InterruptedError):
        predict(checkpoint, Path(IMAGES), tmp_path / "out", score=0, batch_size=1)
    again = predict(checkpoint, Path(IMAGES), tmp_path / "out", score=0, batch_size=1)
    assert len(encoded) == 2 + 3 and encoded[1] == encoded[2]
    assert list(again) == list(whole)
    names = ("predictions.json", "images.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_both_files_are_cocos(checkpoint: Path, tmp_path: Path) -> None:
    """pycocotools reads them; categories are numbered from 1 in the classes' order, and low scores are left out."""
    found = predict(checkpoint, Path(IMAGES), tmp_path, score=0.5)
    truth = COCO(str(tmp_path / "images.json"))
    results = truth.loadRes(str(tmp_path / "predictions.json"))
    assert {category["id"]: category["name"] for category in truth.cats.values()} == {1: "dog", 2: "cat", 3: "cow"}
    assert 0 < len(results.anns) < sum(len(each.scores) for each in evaluated(checkpoint, 0, 1).values())
    assert min(result["score"] for result in results.anns.values()) >= 0.5
    for image_id, each in found.items():
        own = results.imgToAnns[image_id]
        assert [result["category_id"] for result in own] == (each.labels + 1).tolist()
        x, y, width, height = torch.tensor([result["bbox"] for result in own]).T
        torch.testing.assert_close(torch.stack([x, y, x + width, y + height], 1), each.boxes_xyxy)


def test_refusals_come_before_the_model_runs(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(IMAGES, folder)
    monkeypatch.setattr("noisebox.evaluation.predict.measure", lambda *_: pytest.fail("the model has run"))
    whole = (folder / "2.png").read_bytes()
    for name, bytes_ in (("cut", whole[: len(whole) // 2]), ("words", b"no image"), ("empty", b"")):
        (folder / f"{name}.png").write_bytes(bytes_)
        with pytest.raises(UserError, match=rf"{name}\.png cannot be read as an image"):
            predict(checkpoint, folder, tmp_path / "out")
        (folder / f"{name}.png").unlink()
    (folder / "moved.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(UserError, match=r"moved\.png cannot be read as an image \(.*No such file"):
        predict(checkpoint, folder, tmp_path / "out")
    (folder / "moved.png").unlink()
    (tmp_path / "nothing").mkdir()
    for place, complaint in ((tmp_path / "nothing", "holds no image"), (tmp_path / "absent", "does not exist")):
        with pytest.raises(UserError, match=complaint):
            predict(checkpoint, place, tmp_path / "out")
    with pytest.raises(UserError, match="1001 sample steps do not fit a schedule of 1000 timesteps"):
        predict(checkpoint, folder, tmp_path / "out", steps=1001)
    assert not (tmp_path / "out").exists()
    (tmp_path / "README.md").write_text("a file is in the way")
    for place, complaint in (("README.md", "File exists"), ("README.md/sub", "Not a directory")):
        with pytest.raises(UserError, match=rf"{place} cannot be made \({complaint}: .*; choose another place"):
            predict(checkpoint, folder, tmp_path / place)


def test_a_gpu_checkpoint_predicts_without_a_gpu(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config, _ = load_model(checkpoint)
    elsewhere = RunConfig(**{**config.model_dump(), "device": "cuda", "precision": "fp16"})
    state = {"model": model.state_dict(), "config": elsewhere.model_dump(mode="json"), "classes": CLASSES}
    save_checkpoint(tmp_path / "gpu.pth", {**state, "iteration": 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found, expected = (predict(path, Path(IMAGES), tmp_path, score=0) for path in (tmp_path / "gpu.pth", checkpoint))
    assert all(torch.equal(found[image].scores, expected[image].scores) for image in expected)


# The pictures


def test_a_picture_for_every_image(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(f"{IMAGES}/0.png", folder / "a.png")
    Image.open(f"{IMAGES}/1.png").save(folder / "a.bmp")
    shutil.copy(f"{IMAGES}/2.png", folder / "b.png")
    predict(checkpoint, folder, tmp_path / "out", score=0.5)
    files = tmp_path / "out/predictions.json", tmp_path / "out/images.json"
    written = write_pictures(*files, folder, tmp_path / "out/pictures")
    assert [path.name for path in written] == ["a.bmp.png", "a.png.png", "b.png"]
    classes, pictures = read_predictions(*files)
    assert classes == tuple(CLASSES)
    results = json.loads(files[0].read_text())
    assert sum(len(picture.detections) for picture in pictures) == len(results)
    files[1].write_text("{}")
    with pytest.raises(UserError, match="not what noisebox predict writes"):
        read_predictions(*files)


def test_pictures_are_those_of_the_last_prediction(checkpoint: Path, command_line: CommandLine) -> None:
    """In a folder that tells a run from others; images in the place of pictures are refused, and stay."""
    which = Path("tries/small/seed0/model_final.pth")
    which.parent.mkdir(parents=True)
    shutil.copy(checkpoint, which)
    folder = Path("predictions/tries/small/seed0/model_final")
    assert command_line("predict", which, "--images", IMAGES)[0] == 0
    code, _, error = command_line("predict", which, "--images", folder / "pictures")
    assert (code, f"lies in {folder}/pictures, where the pictures go" in error) == (2, True)
    assert len(list((folder / "pictures").iterdir())) == 4
    assert command_line("predict", which.absolute(), "--images", f"{IMAGES}/2.png")[0] == 0
    assert [path.name for path in (folder / "pictures").iterdir()] == ["2.png"]


def test_a_box_is_drawn_where_it_is() -> None:
    """On a small image, which is enlarged by a whole factor; large ones are reduced."""
    black = Image.new("RGB", (80, 60))
    picture = Picture(1, "a.png", 80, 60, (), (Box((20.0, 10.0, 60.0, 50.0), "dog", 0.9),))
    pixels = np.asarray(drawn(black, picture, {"dog": "#FF0000"}))
    assert pixels.shape == (60 * CELL // 80, CELL, 3)
    red = (pixels == [255, 0, 0]).all(-1)
    factor = CELL // 80
    assert red[30 * factor, 20 * factor] and red[50 * factor - 1, 40 * factor]
    assert not red[30 * factor, 40 * factor]
    assert drawn(Image.new("RGB", (4000, 3000)), picture, {"dog": "#FF0000"}).size == (1280, 960)
