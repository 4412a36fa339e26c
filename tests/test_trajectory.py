"""Trajectories: what was given to the denoiser gives what it said; strips and films show the steps in their order."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from coco_files import content, write
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from small_detector import make_detector, opinionated, small_config
from toy_detector import register, toy_config

from noisebox.config import GuidanceConfig, ImageConfig, RunConfig, Sampling
from noisebox.data.catalog import prepare_dataset
from noisebox.data.coco import CocoSplit, read_split
from noisebox.data.loader import evaluation_batches
from noisebox.diffusion.sampler import RowKey
from noisebox.errors import UserError
from noisebox.evaluation.protocol import measure
from noisebox.evaluation.trajectory import chosen_images, trajectories, write_trajectories
from noisebox.models import build_model
from noisebox.report.pictures import CELL, COLOURS, GAP, HEAD_LINE, MARGIN, Box, Picture
from noisebox.report.trajectory import Step, film, read_trajectories, strip, write_film, write_show
from noisebox.training.checkpoint import save_checkpoint

CLASSES = ["dog", "cat", "cow"]


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    return read_split("small/val", *write(tmp_path / "data", "val", content(images=3)), CLASSES)


@pytest.fixture
def config() -> RunConfig:
    return small_config().model_copy(update={"image": ImageConfig(eval_short_edge=96, max_edge=200)})


@pytest.mark.parametrize("guidance", [GuidanceConfig(), GuidanceConfig(scale=0.3, langevin_steps=2)])
def test_the_denoiser_says_again_what_it_said(split: CocoSplit, config: RunConfig, guidance: GuidanceConfig) -> None:
    """Guidance asks it several times a step; recorded is what the prediction was made of."""
    model = opinionated(make_detector(quality_head=True))
    sampling = Sampling(steps=3, guidance=guidance)
    told = trajectories(model, split, config, 5, sampling)
    (first,) = [batch.to("cpu") for batch in evaluation_batches(split, config) if 10 in batch.image_ids]
    steps = told[10]
    assert [step["t"] for step in steps] == [999, 665, 332]
    scale = torch.tensor([2.0, 2.0, 2.0, 2.0])  # 48 × 64 pixels shown as 96 × 128
    whwh = first.image_whwh[:1]
    denoise = model.denoiser(model.encode(first), torch.zeros(1, dtype=torch.int64), whwh)
    for step in steps:
        with torch.no_grad():
            said = denoise(torch.tensor([step["given"]]) * scale, torch.tensor([step["t"]]), None)
        torch.testing.assert_close(said.boxes_xyxy[0] / scale, torch.tensor(step["boxes_xyxy"]), atol=1e-2, rtol=0)
        scores, labels = said.logits[0].sigmoid().max(-1)
        torch.testing.assert_close(scores, torch.tensor(step["scores"]), atol=1e-4, rtol=0)
        assert labels.tolist() == step["labels"]


def test_it_begins_with_the_evaluations_noise_and_ends_with_its_detections(split: CocoSplit, config: RunConfig) -> None:
    """Without an ensemble what is detected is of the last step."""
    model = opinionated(make_detector(sampler={"ensemble": "none"}))
    sampling = Sampling(steps=2)
    told = trajectories(model, split, config, 3, sampling)
    noise = model.sampler.start(model.sampler.noise([RowKey(3, 11)], 0, torch.device("cpu"))).x_t
    boxes = model.diffusion.to_boxes(noise, torch.tensor([[64.0, 48.0, 64.0, 48.0]]))[0]
    torch.testing.assert_close(torch.tensor(told[11][0]["given"]), boxes, atol=1e-3, rtol=0)
    found = measure(model, split, config, {sampling: [3]}).detections[3, sampling]
    limit = torch.tensor([64.0, 48.0, 64.0, 48.0])
    for image, steps in told.items():
        last = torch.tensor(steps[-1]["boxes_xyxy"]).clamp(min=0).minimum(limit)
        distance = (found[image].boxes_xyxy[:, None] - last[None]).abs().amax(-1).amin(1)
        assert len(distance) and distance.max() < 1e-2


def test_images_are_chosen_by_id_or_name(split: CocoSplit) -> None:
    assert [image.id for image in chosen_images(split, ["2", "11", "0.png", "12"], 6).images] == [12, 11, 10]
    assert [image.id for image in chosen_images(split, None, 2).images] == [10, 11]
    with pytest.raises(UserError, match=r"small/val has no image '1\.pgn'; did you mean '1\.png'"):
        chosen_images(split, ["1.pgn"], 6)


def test_what_is_an_id_and_a_name_stands_for_the_id(split: CocoSplit) -> None:
    """Ids 0 to 2 with files 1.png to 3.png: 1 and 2 are names of the image before, too."""
    images = [replace(image, id=k, file_name=f"{k + 1}.png") for k, image in enumerate(split.images)]
    counted = replace(split, images=tuple(images))
    assert [image.id for image in chosen_images(counted, ["0", "1", "2"], 6).images] == [0, 1, 2]
    assert [image.id for image in chosen_images(counted, ["2.png", "3"], 6).images] == [1, 2]


# The pictures


def boxes(*corners: tuple[float, float, float, float], score: float) -> tuple[Box, ...]:
    return tuple(Box(corner, "dog", score) for corner in corners)


def steps_of(count: int, sides: list[tuple[float, float, float, float]]) -> list[Step]:
    """Steps that each move a box from the image's corner to the next of `sides`."""
    begin = (0.0, 0.0, 8.0, 8.0)
    return [Step(999 - k, (begin,), Picture(1, "a.png", 64, 48, (), boxes(sides[k], score=0.9))) for k in range(count)]


BLACK = Image.new("RGB", (64, 48))
FACTOR = CELL // 64


def has_colour(pixels: np.ndarray, x: float, y: float) -> bool:
    colour = [int(COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)]
    return bool((pixels[round(y * FACTOR), round(x * FACTOR)] == colour).all())


def test_a_strip_shows_noise_and_steps_in_order() -> None:
    sides = [(10.0 + 10 * k, 10.0, 30.0 + 10 * k, 40.0) for k in range(3)]
    sheet = np.asarray(strip(BLACK, {"one": steps_of(3, sides), "two": steps_of(3, sides)}, ["dog"]))
    width, height = 64 * FACTOR, 48 * FACTOR
    assert sheet.shape[1] == 2 * MARGIN + 4 * width + 3 * GAP
    for row in range(2):
        top = MARGIN + HEAD_LINE + GAP + row * (HEAD_LINE + height + GAP) + HEAD_LINE
        cell = [sheet[top : top + height, MARGIN + k * (width + GAP) :][:, :width] for k in range(4)]
        assert cell[0][0, 20].max() > 100 and not has_colour(cell[0], 10, 20)  # the noise: thin and grey
        for k in range(3):
            assert has_colour(cell[k + 1], 10 + 10 * k, 20)


def test_of_many_steps_the_first_the_last_and_some_between_are_shown() -> None:
    sides = [(10.0, 10.0, 30.0, 40.0)] * 50
    sheet = strip(BLACK, {"one": steps_of(50, sides)}, ["dog"])
    assert sheet.width == 2 * MARGIN + 9 * 64 * FACTOR + 8 * GAP


def test_a_film_moves_boxes_to_where_a_step_ends(tmp_path: Path) -> None:
    frames, durations = film(BLACK, {"one": steps_of(2, [(20.0, 20.0, 28.0, 28.0)] * 2)}, ["dog"])
    assert len(frames) == len(durations) == 12
    places = []
    for frame in frames[:5]:
        picture = np.asarray(frame)[MARGIN + HEAD_LINE :, MARGIN:][: 48 * FACTOR, : 64 * FACTOR]
        places.append(np.argwhere(picture.max(-1) > 60)[0].tolist())
    assert places == [[4 * k * FACTOR, 4 * k * FACTOR] for k in range(5)]  # a fifth of the way in each
    write_film(frames, durations, tmp_path / "film.png")
    with Image.open(tmp_path / "film.png") as image:
        assert isinstance(image, PngImageFile)
        assert (image.is_animated, image.info["loop"]) == (True, 0)
        total = 0.0
        for number in range(image.n_frames):
            image.seek(number)
            total += image.info["duration"]
        assert total == sum(durations)
        assert (np.asarray(image.convert("RGB")) == np.asarray(frames[-1])).all()


def test_show_from_the_checkpoints_to_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: RunConfig
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        write(Path("data"), part, content(images=3))
    files = {part: {"images": f"data/images/{part}", "annotations": f"data/{part}.json"} for part in ("train", "val")}
    Path("params/datasets").mkdir(parents=True)
    Path("params/datasets/small.yaml").write_text(yaml.safe_dump({"kind": "coco", "classes": CLASSES, **files}))
    prepare_dataset("small")
    traced = {}
    for seed, name in enumerate(("one", "two")):
        state = {"model": opinionated(make_detector(seed)).state_dict(), "classes": CLASSES, "iteration": 1}
        save_checkpoint(tmp_path / f"{name}.pth", {**state, "config": config.model_dump(mode="json")})
        traced[name] = tmp_path / f"show/{name}.json"
        write_trajectories(tmp_path / f"{name}.pth", traced[name], ["12", "0"], steps=2)
    shown = {name: read_trajectories(path) for name, path in traced.items()}
    assert [image.id for image in shown["one"].pictures.images] == [12, 10]
    assert shown["one"].steps[0][0].given == shown["two"].steps[0][0].given  # the same noise for both
    assert shown["one"].steps[0][1].said != shown["two"].steps[0][1].said
    written = write_show(traced, tmp_path / "show", tmp_path)
    names = ["detections.png", "12-steps.png", "12-film.png", "10-steps.png", "10-film.png"]
    assert [path.name for path in written] == names and all(path.exists() for path in written)
    write_trajectories(tmp_path / "two.pth", traced["two"], ["12", "0"], steps=1)
    with pytest.raises(UserError, match="'two' has other classes or steps than 'one'"):
        write_show(traced, tmp_path / "show", tmp_path)
    broken = json.loads(traced["one"].read_text())
    del broken["images"][0]["trajectory"]
    traced["one"].write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"one\.json holds no trajectories"):
        read_trajectories(traced["one"])


def test_what_denoises_no_boxes_has_no_trajectory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch.setitem)
    toy = toy_config()
    state = {"model": build_model(toy, 2).state_dict(), "config": toy.model_dump(mode="json"), "iteration": 1}
    save_checkpoint(tmp_path / "toy.pth", {**state, "classes": ["car", "person"]})
    with pytest.raises(UserError, match="is a ToyDetector, which denoises no boxes"):
        write_trajectories(tmp_path / "toy.pth", tmp_path / "toy.json", [])
