"""`noisebox predict --crops --visualize`: the second look and its pictures where they are asked for, else no file."""

import json

import numpy as np
import pytest
from PIL import Image
from small_detector import make_detector, small_config
from small_yolc import SMALL, make_yolc
from typer.testing import CliRunner

from noisebox.cli import app
from noisebox.config import RunConfig
from noisebox.config.yolc import YolcConfig, YolcLossConfig
from noisebox.errors import UserError
from noisebox.models.yolc.detector import Yolc
from noisebox.report import aerial_pictures
from noisebox.training.checkpoint import save_checkpoint

CLASSES = ["car", "bus", "van"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two images of a size each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, size in (("a.jpg", (96, 160)), ("b.png", (64, 100))):
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def saved(path, model, config: RunConfig):
    state = {"model": model.state_dict(), "config": config.model_dump(mode="json"), "classes": CLASSES, "iteration": 1}
    save_checkpoint(path, state)
    return str(path)


def yolc(path):
    """Untrained, with a threshold so low that it sees crowds."""
    changes = {"cluster_threshold": 0.0, "max_patches_per_img": 2}
    image = small_config().image.model_copy(update={"eval_short_edge": 64, "max_edge": 128})
    sections = {"family": "yolc", "model": YolcConfig(**SMALL | changes), "loss": YolcLossConfig(), "image": image}
    return saved(path, make_yolc(**changes), small_config().model_copy(update=sections))


def predict(*words):
    return CliRunner().invoke(app, ["predict", *words, "--images", "photos", "--out", "out", "--score", "0"])


def test_looks_are_drawn_where_they_are_asked_for_and_nowhere_else(photos, tmp_path, monkeypatch):
    checkpoint = yolc(tmp_path / "yolc.pth")
    found, seen, encode = {}, [], Yolc.encode
    monkeypatch.setattr(Yolc, "encode", lambda model, batch: (seen.extend(batch.image_ids), encode(model, batch))[1])
    for words in ((), ("--crops",), ("--crops", "--visualize")):
        done = predict(checkpoint, *words)
        assert done.exit_code == 0, done.output
        found[words] = json.loads((tmp_path / "out/predictions.json").read_text())
        assert (tmp_path / "out/looks").exists() == ("--visualize" in words)
        assert len(seen) == len(set(seen)) == 2, words  # what is drawn is not looked at again
        seen.clear()
    plain, crops, drawn = found.values()
    assert crops == drawn != plain
    names = ["a.jpg.npz", "a.jpg.png", "b.png.npz", "b.png.png"]
    assert sorted(file.name for file in (tmp_path / "out/looks").iterdir()) == names
    for name, height, width in (("a.jpg", 64, 107), ("b.png", 64, 100)):
        looks = aerial_pictures.read_looks(tmp_path / f"out/looks/{name}.npz")
        (sight,) = looks.sights
        assert looks.crops and looks.classes == tuple(CLASSES) and sight.image.shape == (height, width, 3)
        assert 1 <= len(sight.crops) <= 2 and sight.final and not sight.truth
        with Image.open(tmp_path / f"out/looks/{name}.png") as picture:
            assert picture.width == 2 * aerial_pictures.PANEL + aerial_pictures.GAP + 2 * aerial_pictures.MARGIN
    (photos / "b.png").unlink()
    assert "1 pictures of what was seen" in predict(checkpoint, "--visualize").output
    assert sorted(file.name for file in (tmp_path / "out/looks").iterdir()) == names[:2]


@pytest.mark.parametrize(("word", "sentence"), [("--crops", "crops need a detector"), ("--visualize", "family yolc")])
def test_other_families_are_refused_before_anything_is_written(photos, tmp_path, word, sentence):
    done = predict(saved(tmp_path / "other.pth", make_detector(), small_config()), word)
    assert isinstance(done.exception, UserError) and sentence in str(done.exception)
    assert not (tmp_path / "out").exists()
