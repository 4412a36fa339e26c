"""Exported programs: what they say from their files is what the detector says, at any number of images."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_detector import WIDTH, awaken, make_batch, make_detector, opinionated, small_config
from typer.testing import CliRunner

from noisebox.cli import app
from noisebox.config import ImageConfig, Sampling
from noisebox.errors import UserError
from noisebox.interop import export as module
from noisebox.interop.export import Answer, OneStep, difference, example, export, onnx_program
from noisebox.models.diffusiondet.detector import DiffusionDet
from noisebox.models.diffusiondet.pooling import _weighted_sums
from noisebox.randomness import KeyedRows
from noisebox.training.checkpoint import load_model, save_checkpoint

SWITCHES = {
    "label_state": True,
    "label_d3pm": True,
    "geo_feat": {"enabled": True},
    "geo_bias": {"kind": "mlp", "topk": 6},
    "aniso_noise": {"sigma_w": 1.4},
    "num_heads": 1,
    "num_reg": 1,
}


def saved(path: Path, switches: dict[str, Any]) -> DiffusionDet:
    model = awaken(opinionated(make_detector(**switches)), 0.2)
    config = small_config(model=switches).model_copy(update={"image": ImageConfig(eval_short_edge=60, max_edge=90)})
    state = {"model": model.state_dict(), "config": config.model_dump(mode="json"), "classes": ["a", "b", "c"]}
    save_checkpoint(path, {**state, "iteration": 1})
    return model


def close(ours: Answer, theirs: Answer) -> None:
    found = difference(ours, theirs)
    assert found.boxes[0] == found.boxes[1] > 0
    assert found.pixels < 0.01
    assert found.scores < 1e-4


def held_at_other_counts(model: DiffusionDet, program: Any) -> None:
    """Against eager at counts of images that the program was not made from."""
    for images in (1, 3):
        given = tuple(example(model, images, 64, WIDTH).values())
        with torch.no_grad():
            close(OneStep(model)(*given), program(*given))


def test_one_step_in_tensors_is_what_evaluation_finds() -> None:
    model, batch = awaken(opinionated(make_detector(**SWITCHES)), 0.2), make_batch([4, 9])
    (found,) = model.detect(model.encode(batch), batch, [3], Sampling(steps=1))
    rows = KeyedRows([(3, (image, 0)) for image in batch.image_ids], "cpu")
    noise, labels = rows.normal("sampler start", (20, 4)), model.labels.start(20, rows)
    with torch.no_grad():
        boxes, scores, classes = OneStep(model)(batch.images, batch.sizes_hw, noise, labels)
    for row, each in enumerate(found):
        kept = scores[row] > 0
        assert torch.equal(classes[row][kept], each.labels)
        torch.testing.assert_close(scores[row][kept], each.scores)
        torch.testing.assert_close(boxes[row][kept] * 2, each.boxes_xyxy)  # images are stored twice as large
        assert 0 < kept.sum() < 20


def test_a_program_of_torch_export(tmp_path: Path) -> None:
    model, said = saved(tmp_path / "model.pth", SWITCHES), []
    export(tmp_path / "model.pth", "torch-export", tmp_path / "out", None, said.append)
    held_at_other_counts(model, torch.export.load(tmp_path / "out/model.pt2").module())
    facts = json.loads((tmp_path / "out/export.json").read_text())
    assert facts["inputs"]["images"] == ["batch", 3, 64, 96]  # 60 and 90, rounded up to the stride
    assert facts["classes"] == ["a", "b", "c"]
    assert facts["latency_ms"].keys() == {"eager", "exported"}
    assert any("boxes differ by up to" in line for line in said)


def test_a_program_of_onnx(tmp_path: Path) -> None:
    model = saved(tmp_path / "model.pth", SWITCHES)
    result = CliRunner().invoke(
        app,
        [
            *("export", str(tmp_path / "model.pth"), "--format", "onnx"),
            *("--out", str(tmp_path / "out"), "--size", "64", "96"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "onnxruntime against eager, 2 images of noise" in result.output
    held_at_other_counts(model, onnx_program(tmp_path / "out/model.onnx", 1))
    differences = json.loads((tmp_path / "out/export.json").read_text())["differences"]
    assert differences["onnxruntime"]["pixels"] < 0.01


def test_a_folder_of_diffusers_detects_as_the_checkpoint(tmp_path: Path) -> None:
    from noisebox.interop.diffusers import DetectionPipeline

    saved(tmp_path / "model.pth", SWITCHES)
    export(tmp_path / "model.pth", "diffusers", tmp_path / "out", say=lambda _: None)
    model, config, state = load_model(tmp_path / "model.pth")
    loaded, ours = (
        DetectionPipeline.from_pretrained(tmp_path / "out"),
        DetectionPipeline.of_model(model, config, state["classes"]),
    )
    images = make_batch([1, 2]).images
    for pipeline in (loaded, ours):
        pipeline.set_progress_bar_config(disable=True)
    assert loaded.config.short_edge == 60 and loaded.detector.config.classes == ["a", "b", "c"]
    for one, other in zip(loaded(images, 3).boxes, ours(images, 3).boxes, strict=True):
        assert len(one) > 0
        assert torch.equal(one, other)


def test_the_pooling_of_onnx_is_that_of_bags(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    table, weight = torch.randn(50, 8, generator=generator), torch.rand(30, 16, generator=generator)
    index = torch.randint(50, (30, 16), generator=generator)
    bags = _weighted_sums(table, index, weight)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    torch.testing.assert_close(_weighted_sums(table, index, weight), bags)


def test_a_difference_is_that_of_boxes_of_a_class() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [8, 8, 9, 9], [1, 1, 2, 2]]])
    one = (boxes, torch.tensor([[0.9, 0.8, 0.0]]), torch.tensor([[0, 0, 1]]))
    moved = boxes + torch.tensor([[[0.0], [0.5], [7.0]]])
    assert difference(one, one) == ((2, 2), 0.0, 0.0)
    assert difference(one, (moved, *one[1:])) == ((2, 2), 0.5, 0.0)
    swapped = (boxes[:, [1, 0, 2]], torch.tensor([[0.9, 0.7, 0.0]]), one[2])
    assert difference(one, swapped).pixels == 0
    assert difference(one, swapped).scores == pytest.approx(0.1)
    assert difference(one, (*one[:2], torch.tensor([[0, 1, 1]]))).pixels == math.inf


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pth"
    saved(path, {})
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="full exists and is not an empty folder"):
        export(path, "onnx", full)
    with pytest.raises(UserError, match="is not an empty folder"):
        export(path, "onnx", full / "notes.txt")
    with pytest.raises(UserError, match="takes images of any size"):
        export(path, "diffusers", tmp_path / "out", (64, 64))
    with pytest.raises(UserError, match="--size 0 64: height and width must be 32 pixels or more"):
        export(path, "onnx", tmp_path / "out", (0, 64))
    with pytest.raises(UserError, match=r"absent\.pth does not exist"):
        export(tmp_path / "absent.pth", "onnx", tmp_path / "out")
    monkeypatch.setattr(
        module,
        "load_model",
        lambda _: (torch.nn.Linear(1, 1), small_config().model_copy(update={"family": "detr"}), {}),
    )
    with pytest.raises(UserError, match="is of family detr; what is exported is of family diffusiondet"):
        export(path, "onnx", tmp_path / "out")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(
        UserError, match=r"--format onnx needs onnxscript; install with: pip install 'noisebox\[onnx\]'"
    ):
        export(path, "onnx", tmp_path / "out")
    result = CliRunner().invoke(app, ["export", str(path), "--format", "tflite", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "tflite" in result.output
    assert not (tmp_path / "out").exists()
    assert (full / "notes.txt").read_text() == "mine"
