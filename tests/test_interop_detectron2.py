"""Datasets by Detectron2's names, and our detectors in Detectron2 itself, where that is installed."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from coco_files import content, write
from conftest import ROOT
from small_detector import HEIGHT, WIDTH

from noisebox.config import Sampling, resolve
from noisebox.data.catalog import load_dataset, open_split, prepare_dataset
from noisebox.data.detectron2 import EXTRA, extra_datasets, register_extra
from noisebox.errors import UserError
from noisebox.evaluation.detection import coco_metrics
from noisebox.evaluation.protocol import measure
from noisebox.models import build_model
from noisebox.randomness import numpy_generator
from noisebox.structures import Detections
from noisebox.training.checkpoint import load_checkpoint, load_weights

installed = pytest.mark.skipif(not find_spec("detectron2"), reason="Detectron2 is not installed (no index has it)")


def define(root: Path, name: str, definition: dict[str, Any]) -> None:
    path = root / "params/datasets" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(definition))


@pytest.fixture
def street(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The street world of scale `test`, where Detectron2 knows it as street_train and street_val."""
    world = datasets / "data/world_test"
    known = [f"street_{split}={world}/annotations/{split}.json={world}/images/{split}" for split in ("train", "val")]
    monkeypatch.setenv(EXTRA, ";".join(known))
    monkeypatch.chdir(datasets)
    register_extra()
    return datasets


def test_extra_datasets_are_a_list_of_threes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/data")
    text = "a = $HERE/a.json = $HERE/a images; b=b.json=b,c=/c.json=/c\n\n"
    assert extra_datasets(text) == [
        ("a", "/data/a.json", "/data/a images"), ("b", "b.json", "b"), ("c", "/c.json", "/c"),
    ]  # fmt: skip
    assert extra_datasets("") == []


@pytest.mark.parametrize("entry", ["a=b.json", "a=b.json=c=d", "a==c", "a:b.json:c"])
def test_another_form_of_extra_datasets_is_told(entry: str) -> None:
    with pytest.raises(UserError) as told:
        extra_datasets(f"a=b.json=c; {entry}")
    assert str(told.value) == (f"{EXTRA}: {entry!r} is no name=annotations.json=images; put ';' between two datasets")


def test_without_detectron2_its_names_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setitem(sys.modules, "detectron2.data", None)
    define(tmp_path, "coco", {"kind": "detectron2", "train": "coco_2017_train", "val": "coco_2017_val"})
    with pytest.raises(UserError) as told:
        prepare_dataset("coco", tmp_path)
    assert str(told.value).startswith(
        f"{tmp_path}/params/datasets/coco.yaml: train: dataset 'coco_2017_train' is Detectron2's, which is not here ("
    )
    assert str(told.value).endswith("install Detectron2, or name the files in a dataset of kind coco")


@installed
def test_a_named_dataset_is_that_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked, hashed and opened as the same files under kind coco; a fault in them is told as there."""
    files = {split: write(tmp_path / "signs", split, content()) for split in ("train", "val")}
    entries = [f"signs_{split}={file}={images}" for split, (file, images) in files.items()]
    monkeypatch.setenv(EXTRA, ";".join(entries))
    chosen = {"classes": ["cow", "dog"]}
    plain = {split: {"annotations": str(file), "images": str(images)} for split, (file, images) in files.items()}
    define(tmp_path, "plain", {"kind": "coco", **plain, **chosen})
    define(tmp_path, "named", {"kind": "detectron2", "train": "signs_train", "val": "signs_val", **chosen})
    manifests = [prepare_dataset(name, tmp_path) for name in ("plain", "named")]
    assert manifests[0]["hash"] == manifests[1]["hash"] and manifests[1]["classes"] == ["cow", "dog"]
    assert open_split("named", "val", tmp_path).objects_per_class() == {"cow": 0, "dog": 2}

    monkeypatch.setenv(EXTRA, f"signs_val={files['train'][0]}={files['train'][1]}")
    with pytest.raises(UserError, match=f"{EXTRA}: 'signs_val' is a dataset already, with other files"):
        load_dataset("named", tmp_path).open("named", "val", tmp_path)
    monkeypatch.delenv(EXTRA)
    files["train"][0].unlink()
    with pytest.raises(UserError, match=r"named\.yaml: train\.annotations: there is no file .*train\.json"):
        prepare_dataset("named", tmp_path)


@installed
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("coco_2017_vall", "Detectron2 knows no dataset 'coco_2017_vall'; did you mean 'coco_2017_val'"),
        ("voc_2007_train", "Detectron2's dataset 'voc_2007_train' is of form pascal_voc; only those of form coco"),
        ("coco_2017_val", r"val\.images: there is no folder .*datasets/coco/val2017"),
    ],
)
def test_a_name_that_does_not_serve_is_told(name: str, told: str, tmp_path: Path) -> None:
    define(tmp_path, "named", {"kind": "detectron2", "train": "coco_2017_train", "val": name})
    with pytest.raises(UserError, match=rf"named\.yaml: (val: )?{told}"):
        load_dataset("named", tmp_path).open("named", "val", tmp_path)


def configured(*options: Any) -> Any:
    from detectron2.config import get_cfg

    from noisebox.interop.detectron2 import add_noisebox_config

    cfg = get_cfg()
    add_noisebox_config(cfg)
    noisebox = ["MODEL.NOISEBOX.SCALE", "test", "MODEL.NOISEBOX.NUM_CLASSES", 3, "SEED", 4, "MODEL.DEVICE", "cpu"]
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "NoiseboxDetector", *noisebox, *options])
    return cfg


@installed
@pytest.mark.parametrize("recipe", ["d3pm_qhead", "detr"])
def test_losses_are_those_of_the_detector(recipe: str, street: Path) -> None:
    """At the step that the storage counts, for images of different sizes in Detectron2's colours."""
    from detectron2.modeling import build_model as build
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from noisebox.data.loader import TrainingBatches

    config = resolve(recipe, 4, "test", overrides={"image.train_short_edges": [40, 64]})
    batch = TrainingBatches(open_split(config.dataset, "train"), config)[2]
    assert len({tuple(size) for size in batch.sizes_hw.tolist()}) == 2
    inputs = []
    for row, target in enumerate(batch.targets):
        height, width = batch.sizes_hw[row].tolist()
        instances = Instances((height, width), gt_boxes=Boxes(target.boxes_xyxy), gt_classes=target.labels)
        image = batch.images[row, [2, 1, 0], :height, :width]
        inputs.append({"image": image, "image_id": batch.image_ids[row], "instances": instances})
    model = build(configured("MODEL.NOISEBOX.RECIPE", recipe))
    with EventStorage(7) as storage:
        losses = model.train()(inputs)
    expected = build_model(config, 3).train()(batch.to("cpu"), 4, 7)
    monitors = {name: value for name, (value, _) in storage.latest().items()}
    assert {name: torch.as_tensor(value).item() for name, value in {**losses, **monitors}.items()} == {
        name: value.item() for name, value in expected.items()
    }
    assert all(name.startswith("loss_") for name in losses)

    inputs[0]["instances"].gt_classes[0] = 3
    with EventStorage(), pytest.raises(UserError, match="a box has label 3, counted from 0, but the detector has 3"):
        model(inputs)


@installed
def test_detections_through_detectron2s_loader_are_ours(street: Path) -> None:
    from detectron2.data import build_detection_test_loader
    from detectron2.modeling import build_model as build

    shown = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 80]
    steps = ["MODEL.NOISEBOX.SAMPLE_STEPS", 2, "MODEL.NOISEBOX.EVAL_SEED", 5]
    cfg = configured(*shown, *steps, "DATALOADER.NUM_WORKERS", 0)
    model, config = build(cfg).eval(), resolve("baseline", 4, "test", overrides={"eval_batch_size": 1})
    split = open_split(config.dataset, "val")
    ours = measure(build_model(config, 3), split, config, {Sampling(steps=2): [5]}).detections[5, Sampling(steps=2)]
    for inputs in build_detection_test_loader(cfg, "street_val"):
        (found,) = (output["instances"] for output in model(inputs))
        expected = ours.pop(inputs[0]["image_id"])
        assert found.image_size == (64, 80) and len(found) > 0
        assert found.pred_boxes.tensor.equal(expected.boxes_xyxy)
        assert found.scores.equal(expected.scores) and found.pred_classes.equal(expected.labels)
    assert not ours

    photo = {"image": torch.zeros(3, HEIGHT, WIDTH), "height": 2 * HEIGHT, "width": 3 * WIDTH}  # as DefaultPredictor
    (alone,) = model([photo])
    assert alone["instances"].image_size == (2 * HEIGHT, 3 * WIDTH)
    both = model([{**photo, "image": torch.full((3, HEIGHT, WIDTH), 9.0)}, photo])
    torch.testing.assert_close(both[1]["instances"].scores, alone["instances"].scores, rtol=0, atol=1e-6)


@installed
def test_its_evaluator_counts_what_ours_does(street: Path, tmp_path: Path) -> None:
    """On detections near the truth, with some classes wrong."""
    from detectron2.data import DatasetCatalog
    from detectron2.evaluation import COCOEvaluator

    from noisebox.interop.detectron2 import to_instances

    split = open_split("world_test", "val")
    DatasetCatalog.get("street_val")
    evaluator = COCOEvaluator("street_val", output_dir=str(tmp_path))
    evaluator.reset()
    found = {}
    for record in split.images:
        noise = numpy_generator(0, "jitter", record.id)
        boxes = torch.from_numpy(record.boxes_xyxy + noise.normal(0, 1.0, record.boxes_xyxy.shape)).float()
        scores = torch.from_numpy(noise.uniform(size=len(boxes))).float().sort(descending=True).values
        labels = torch.from_numpy((record.labels + (noise.uniform(size=len(boxes)) < 0.2)) % 3)
        found[record.id] = Detections(boxes, scores, labels)
        instances = to_instances(found[record.id], (record.height, record.width))
        evaluator.process([{"image_id": record.id}], [{"instances": instances}])
    theirs, ours = evaluator.evaluate()["bbox"], coco_metrics(split, found)
    expected = {name: ours.summary[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    expected |= {f"AP-{name}": ap for name, ap in ours.per_class.items()}
    assert theirs == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert 5 < theirs["AP"] < 95


@installed
def test_the_documented_script_trains_resumes_and_evaluates(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectron2.engine import default_argument_parser
    from detectron2.utils.events import JSONWriter

    text = (ROOT / "docs/detectron2.md").read_text().partition("## Adapter")[2]
    script, config = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "yaml"))
    (tmp_path / "street.yaml").write_text(config)
    names: dict[str, Any] = {"__name__": "train_net"}
    exec(script, names)
    out = tmp_path / "output"
    monkeypatch.setattr(names["Trainer"], "build_writers", lambda self: [JSONWriter(str(out / "metrics.json"))])
    small = ["MODEL.NOISEBOX.SCALE", "test", "INPUT.MIN_SIZE_TRAIN", "64,", "OUTPUT_DIR", str(out)]
    small += ["SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2"]

    def run(*options: str) -> Any:
        arguments = ["--config-file", str(tmp_path / "street.yaml"), *options, *small]
        return names["main"](default_argument_parser().parse_args(arguments))

    run("SOLVER.MAX_ITER", "3")
    run("--resume", "SOLVER.MAX_ITER", "5")
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    trained = [row for row in rows if "total_loss" in row]
    assert [row["iteration"] for row in trained] == [2, 4]
    assert all(row["total_loss"] > 0 and row["median_box_width"] > 0 for row in trained)
    evaluated = run("--eval-only", "MODEL.WEIGHTS", str(out / "model_final.pth"))["bbox"]
    assert evaluated["AP"] == rows[-1]["bbox/AP"] and set(evaluated) >= {"AP-car", "AP-motorbike", "AP-person"}

    final = load_checkpoint(out / "model_final.pth")
    bare = build_model(resolve("baseline", 0, "test"), 3)
    report = load_weights(bare, final, "model_final.pth")
    assert not report.new and not report.unused and final["iteration"] == 4


@installed
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["MODEL.NOISEBOX.RECIPE", "basline"], "recipe 'basline' is missing"),
        (["MODEL.NOISEBOX.RECIPE", "lss"], "'lss' is of family bev, which draws maps; a detector of boxes is needed"),
        (["MODEL.NOISEBOX.RECIPE", "baseline+consistency"], "learns from a teacher"),
        (["MODEL.NOISEBOX.OVERRIDES", ["model.num_proposal=3"]], "override 'model.num_proposal' does not exist; did"),
        (["MODEL.NOISEBOX.OVERRIDES", ["model.num_proposals"]], "MODEL.NOISEBOX.OVERRIDES: .*KEY=VALUE"),
        (["MODEL.NOISEBOX.SAMPLE_STEPS", 0], "override 'sampling.steps': input should be greater than or equal to 1"),
        (["INPUT.FORMAT", "L"], "INPUT.FORMAT is 'L'; it must be one of: RGB, BGR"),
    ],
)
def test_a_wrong_configuration_is_told(options: list[Any], told: str, street: Path) -> None:
    from detectron2.modeling import build_model as build

    with pytest.raises(UserError, match=told):
        build(configured(*options))


@installed
@pytest.mark.parametrize("longest", [2.0, 1000.0])
def test_the_optimizer_is_noiseboxs_at_detectron2s_rates(longest: float, street: Path) -> None:
    """Also under AMP's loss scaling, where the gradient that is clipped must not be the scaled one."""
    from detectron2.modeling import build_model as build

    from noisebox.interop.detectron2 import build_optimizer

    rates = ["SOLVER.BASE_LR", 0.5, "SOLVER.WEIGHT_DECAY", 0.25]
    clip = ["ENABLED", True, "CLIP_TYPE", "full_model", "CLIP_VALUE", longest]
    named = [value if place % 2 else f"SOLVER.CLIP_GRADIENTS.{value}" for place, value in enumerate(clip)]
    overrides = ["MODEL.NOISEBOX.OVERRIDES", ["solver.backbone_multiplier=0.5"]]
    cfg = configured(*rates, *named, *overrides)
    model = build(cfg)
    optimizer = build_optimizer(cfg, model)
    backbone = {id(parameter) for parameter in model.detector.backbone.parameters()}
    for group in optimizer.param_groups:
        inside = id(group["params"][0]) in backbone
        assert group["lr"] == (0.25 if inside else 0.5) and group["weight_decay"] == 0.25
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scaler.scale(sum(parameter.sum() for parameter in parameters)).backward()
    scaler.step(optimizer)
    norm = torch.linalg.vector_norm(torch.cat([parameter.grad.flatten() for parameter in parameters]).double())
    whole = sum(parameter.numel() for parameter in parameters) ** 0.5  # the norm of a gradient of ones
    assert whole < 1000 < 1024 * whole and float(norm) == pytest.approx(min(longest, whole), rel=1e-5)
