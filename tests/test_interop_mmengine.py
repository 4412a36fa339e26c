"""The documented configuration of MMEngine against Noisebox's own training and evaluation."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cv2", reason="OpenCV misses a system library, see docs/mmengine.md", exc_type=ImportError)

import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_detector import HEIGHT, WIDTH

import noisebox.interop.mmengine  # noqa: F401  (registers)
from noisebox.config import RunConfig, Sampling, resolve
from noisebox.data.catalog import open_split
from noisebox.data.loader import TrainingBatches
from noisebox.errors import UserError
from noisebox.evaluation.protocol import measure
from noisebox.models import build_model
from noisebox.randomness import numpy_generator
from noisebox.training.checkpoint import save_checkpoint
from noisebox.training.step import Trainer

SMALL = {"recipe": "baseline", "scale": "test"}
ITERATIONS = 6


class Told(Hook):
    """What the Runner logs of each iteration, and what it last detected in each image; it is killed after so many."""

    def __init__(self, killed: int | None = None) -> None:
        self.killed = killed
        self.terms: list[dict[str, float]] = []
        self.found: dict[int, Any] = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.terms.append({name: torch.as_tensor(value).item() for name, value in outputs.items()})
        if len(self.terms) == self.killed:
            raise KeyboardInterrupt

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.found |= {sample.img_id: sample.pred_instances for sample in outputs}


def documented(folder: Path, **changes: Any) -> Config:
    """docs/mmengine_street.py at scale `test`, six iterations, with a checkpoint after the third."""
    text = (ROOT / "docs/mmengine_street.py").read_text()
    for old, new in (
        ("iterations, batch_size, warmup = 2000, 2, 30", f"iterations, batch_size, warmup = {ITERATIONS}, 2, 3"),
        ('"scale": "demo"', '"scale": "test"'),
        ('"val_interval": 500', '"val_interval": 6'),
        ('"interval": 250', '"interval": 3'),
        ('"interval": 20', '"interval": 1'),
    ):
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "street.py").write_text(text)
    config = Config.fromfile(folder / "street.py")
    config.merge_from_dict({"work_dir": str(folder / "work"), "experiment_name": folder.name, **changes})
    return config


def run(config: Config, killed: int | None = None) -> tuple[Runner, Told]:
    runner, told = Runner.from_cfg(config), Told(killed)
    runner.register_hook(told)
    runner.train()
    return runner, told


def same_run() -> RunConfig:
    """What the documented configuration says, in Noisebox's words."""
    solver = {"max_iter": ITERATIONS, "batch_size": 2, "base_lr": 2.5e-4, "warmup_iters": 3, "decay_at": [0.85]}
    overrides = {f"solver.{key}": value for key, value in solver.items()}
    return resolve("baseline", 0, "test", overrides=overrides | {"eval_batch_size": 1})


@pytest.fixture
def here(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(datasets)
    return datasets


def test_the_documented_training_is_noiseboxs_own(here: Path, tmp_path: Path) -> None:
    """Its losses, weights and metrics, and killed half-way and resumed, the same bits."""
    runner, told = run(documented(tmp_path / "whole"))
    config = same_run()
    split = open_split(config.dataset, "train")
    batches, trainer = TrainingBatches(split, config), Trainer(config, build_model(config, 3))
    for step, theirs in enumerate(told.terms):
        ours = trainer.update(batches[step], step)
        assert {name: theirs[name] for name in ours} == pytest.approx(ours, rel=1e-5)
        assert theirs["loss"] == pytest.approx(sum(ours[name] for name in ours if "loss" in name), rel=1e-5)
    assert len(told.terms) == ITERATIONS and told.terms[0]["median_box_width"] > 0
    final = torch.load(tmp_path / "whole/work/iter_6.pth", weights_only=True)["state_dict"]
    assert final.keys() == trainer.detector.state_dict().keys()
    for name, tensor in trainer.detector.state_dict().items():
        torch.testing.assert_close(final[name], tensor, rtol=1e-4, atol=1e-6)

    trainer.detector.load_state_dict(final)
    once = Sampling(steps=1)
    val = open_split(config.dataset, "val")
    expected = measure(trainer.detector, val, config, {once: [0]})
    measured = runner.val_loop.run()
    summary = expected.metrics[0, once].summary
    assert measured == pytest.approx({f"noisebox/{name}": value for name, value in summary.items()}, nan_ok=True)
    for image, found in expected.detections[0, once].items():
        assert told.found[image].bboxes.equal(found.boxes_xyxy) and told.found[image].scores.equal(found.scores)

    with pytest.raises(KeyboardInterrupt):
        run(documented(tmp_path / "cut"), killed=4)
    again = documented(tmp_path / "cut", experiment_name="cut, again", resume=True)
    _, rest = run(again)
    assert rest.terms == told.terms[3:]
    resumed = torch.load(tmp_path / "cut/work/iter_6.pth", weights_only=True)["state_dict"]
    assert all(tensor.equal(final[name]) for name, tensor in resumed.items())


def test_other_pipelines_inputs_are_the_same(here: Path) -> None:
    """Images in one padded tensor, in OpenCV's colours, through MMEngine's own preprocessor; and no samples at all."""
    images = DATASETS.build({"type": "NoiseboxDataset", "split": "val", **SMALL})
    assert len(images) == 4 and images.metainfo["classes"] == ["car", "motorbike", "person"]
    entries = [images[place] for place in range(2)]
    model = MODELS.build({"type": "NoiseboxDetector", "num_classes": 3, **SMALL}).eval()
    listed = {"inputs": [e["inputs"] for e in entries], "data_samples": [e["data_samples"] for e in entries]}
    plain = [sample.pred_instances for sample in model.val_step(listed)]
    model.data_preprocessor = ImgDataPreprocessor(pad_size_divisor=128, bgr_to_rgb=True)
    flipped = {**listed, "inputs": [image.flip(0) for image in listed["inputs"]]}
    for found, sample in zip(plain, model.val_step(flipped), strict=True):
        torch.testing.assert_close(sample.pred_instances.bboxes, found.bboxes, rtol=0, atol=1e-3)
        assert sample.pred_instances.labels.equal(found.labels) and sample.ori_shape == (64, 80)

    raw = model(torch.full((1, 3, HEIGHT, WIDTH), 90.0))
    assert all(isinstance(tensor, torch.Tensor) for tensor in raw)
    alone = model([torch.full((3, HEIGHT, WIDTH), 90, dtype=torch.uint8)], [BaseDataElement()], mode="predict")
    torch.testing.assert_close(alone[0].pred_instances.bboxes, raw[0], rtol=0, atol=1e-3)


def test_the_metric_is_coco_s(here: Path) -> None:
    """On detections near the truth, against the public counter."""
    metric, split = METRICS.build({"type": "NoiseboxAP", **SMALL}), open_split("world_test", "val")
    results = []
    for record in split.images:
        noise = numpy_generator(0, "jitter", record.id)
        boxes = record.boxes_xyxy + noise.normal(0, 1.0, record.boxes_xyxy.shape)
        scores = noise.uniform(size=len(boxes))
        tensors = {"bboxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(record.labels)}
        metric.process(None, [{"img_id": record.id, "pred_instances": tensors}])
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), record.labels, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            category = split.category_ids[label]
            results.append({"image_id": record.id, "category_id": category, "bbox": box, "score": score})
    truth = COCO(str(split.annotation_file))
    judge = COCOeval(truth, truth.loadRes(results), "bbox")
    for stage in (judge.evaluate, judge.accumulate, judge.summarize):
        stage()
    measured = metric.evaluate(len(split))
    assert measured["noisebox/AP"] == pytest.approx(100 * judge.stats[0], abs=1e-9) and 5 < 100 * judge.stats[0] < 95


def test_a_detector_starts_from_a_run(here: Path, tmp_path: Path) -> None:
    trained = build_model(resolve("baseline", 7, "test"), 3)
    save_checkpoint(tmp_path / "model_final.pth", {"model": trained.state_dict()})
    weights = str(tmp_path / "model_final.pth")
    model = MODELS.build({"type": "NoiseboxDetector", "num_classes": 3, "weights": weights, **SMALL})
    assert all(tensor.equal(trained.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("registry", "wrong", "told"),
    [
        (MODELS, {"type": "NoiseboxDetector", "num_classes": 3, "recipe": "basline"}, "recipe 'basline' is missing"),
        (MODELS, {"type": "NoiseboxDetector", "num_classes": 3, "recipe": "lss"}, "'lss' is of family bev"),
        (
            MODELS,
            {"type": "NoiseboxDetector", "num_classes": 3, "sampling": {"step": 2}},
            "override 'sampling.steps' is missing",
        ),
        (MODELS, {"type": "NoiseboxDetector", "num_classes": 3, "weights": "none.pth"}, "none.pth does not exist"),
        (DATASETS, {"type": "NoiseboxDataset", "split": "test"}, "split is 'test'; it must be one of: train, val"),
        (DATASETS, {"type": "NoiseboxDataset", "split": "val", "root": "nowhere"}, "does not exist; these exist: none"),
        (METRICS, {"type": "NoiseboxAP", "overrides": {"model.x": 1}}, "override 'model.x' does not exist"),
    ],
)
def test_a_wrong_configuration_is_told(registry: Any, wrong: dict[str, Any], told: str, here: Path) -> None:
    with pytest.raises(UserError, match=told):
        registry.build({**SMALL, **wrong})
