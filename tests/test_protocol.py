"""The evaluation of a checkpoint: what its ways to sample share, its files as the report reads them, its refusals."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from coco_files import HEIGHT, WIDTH, content, write
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy_detector import toy_config

from noisebox import graph
from noisebox.config import ExperimentConfig, GuidanceConfig, ImageConfig, RunConfig, Sampling, resolve
from noisebox.data.coco import CocoSplit, read_split
from noisebox.errors import UserError
from noisebox.evaluation import measuring, ongoing
from noisebox.evaluation.boxes import evaluate, pictures
from noisebox.evaluation.boxes import shown as chosen
from noisebox.evaluation.detection import coco_metrics
from noisebox.evaluation.ongoing import Ongoing, facts_of, place_in
from noisebox.evaluation.protocol import COUNTED, Measurement, counted, measure
from noisebox.files import sha256
from noisebox.models import Detector, build_model
from noisebox.progress import Progress
from noisebox.randomness import numpy_generator
from noisebox.report import evaluations
from noisebox.structures import Batch, Detections
from noisebox.training.checkpoint import load_checkpoint

CLASSES = ["dog", "cat", "cow"]
ONE, FOUR = Sampling(steps=1), Sampling(steps=4)
GUIDED = Sampling(steps=9, guidance=GuidanceConfig(scale=0.05, mode="final", langevin_steps=2))
ASKED = {ONE: [0, 1, 7], FOUR: [1], GUIDED: [7, 0]}


class KnowingDetector(Detector):
    """Finds every object, with keyed noise on its box that shrinks with the steps; guidance turns labels round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.encoded: list[int] = []  # image ids
        self.asked: list[tuple[tuple[int, ...], Sampling]] = []

    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def encode(self, batch: Batch) -> Tensor:
        assert not self.training
        self.encoded += batch.image_ids
        return self.weight * batch.images.mean((1, 2, 3))

    def detect(
        self, encoded: Any, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Detections]]:
        self.asked.append((tuple(eval_seeds), sampling))
        assert not torch.is_grad_enabled()
        with torch.enable_grad():  # as guidance does
            climbed = encoded.clone().requires_grad_()
            (climbed**2).sum().backward()
        torch.testing.assert_close(climbed.grad, 2 * encoded)
        return [[self._found(batch, row, seed, sampling) for row in range(len(batch))] for seed in eval_seeds]

    def _found(self, batch: Batch, row: int, seed: int, sampling: Sampling) -> Detections:
        truth = batch.targets[row]
        random = numpy_generator(seed, "knowing", sampling.steps, batch.image_ids[row])
        noise = torch.tensor(random.normal(0, 3 / sampling.steps, truth.boxes_xyxy.shape), dtype=torch.float32)
        labels = truth.labels if sampling.guidance.scale == 0 else truth.labels.flip(0)
        scores = torch.linspace(0.9, 0.01, len(labels))
        return Detections(truth.boxes_xyxy + noise, scores, labels)

    def check_sampling(self, sampling: Sampling) -> None:
        if sampling.guidance.mode == "all" and sampling.guidance.scale > 0:
            raise UserError("no such guidance here")

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {}


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    return read_split("val", *write(tmp_path / "data", "val", content(images=4)), CLASSES)


pytestmark = pytest.mark.usefixtures("toy_family")


@pytest.fixture
def config() -> RunConfig:
    sizes = ImageConfig(eval_short_edge=HEIGHT, max_edge=WIDTH)
    return toy_config(lineage="baseline").model_copy(update={"image": sizes})


def same(one: Any, other: Any) -> bool:
    """Equality of metrics, where nan equals nan."""
    return repr(one) == repr(other)


def test_all_ways_together_are_each_way_alone(split: CocoSplit, config: RunConfig) -> None:
    together = measure(KnowingDetector(), split, config, ASKED)
    keys = [(seed, sampling) for sampling, seeds in ASKED.items() for seed in seeds]
    assert list(together.metrics) == keys
    assert len({repr(metrics) for metrics in together.metrics.values()}) > 3
    for seed, sampling in keys:
        alone = measure(KnowingDetector(), split, config, {sampling: [seed]})
        assert same(together.metrics[seed, sampling], alone.metrics[seed, sampling])
        assert same(together.metrics[seed, sampling], coco_metrics(split, together.detections[seed, sampling]))
        for image, found in together.detections[seed, sampling].items():
            assert torch.equal(found.boxes_xyxy, alone.detections[seed, sampling][image].boxes_xyxy)
    assert together.metrics[1, FOUR].ap > together.metrics[1, ONE].ap
    assert list(together.seconds_per_image) == list(ASKED)
    assert min(together.seconds_per_image.values()) > 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_told_with_its_image(split: CocoSplit, config: RunConfig, value: float) -> None:
    detector = KnowingDetector()
    found = detector._found

    def damaged(batch: Batch, row: int, seed: int, sampling: Sampling) -> Detections:
        boxes, scores, labels = vars(found(batch, row, seed, sampling)).values()
        is_one = batch.image_ids[row] == split.images[-1].id and seed == 1
        return Detections(boxes, torch.full_like(scores, value) if is_one else scores, labels)

    detector._found = damaged  # type: ignore[method-assign]
    where = rf"image {split.images[-1].id}, \d+ steps, eval seed 1"
    with pytest.raises(
        UserError, match=rf"^baseline, train seed 3: scores or boxes are not finite numbers \({where}\): "
    ):
        measure(detector, split, config, ASKED)


@pytest.mark.parametrize(
    ("recipe", "part", "value"),
    [
        ("baseline", "bboxes_delta.bias", torch.nan),
        ("baseline", "bboxes_delta.bias", torch.inf),
        ("baseline", "class_logits.bias", torch.nan),
        ("detr", "bbox_predictor", torch.nan),
        ("detr", "class_labels_classifier", torch.nan),
        ("yolc", "coarse.bias", torch.nan),
        ("yolc", "refine.change.bias", torch.nan),
        ("yolc", "heatmap", torch.nan),
    ],
)
def test_damaged_weights_are_no_images_without_objects(split: CocoSplit, recipe: str, part: str, value: float) -> None:
    """Whatever compares nan finds that it is not so, whether a box has an area or a score is high enough."""
    config = resolve(recipe, 0, "test")
    model = build_model(config, len(CLASSES))
    with torch.no_grad():
        _, damaged = [each for each in model.named_parameters() if part in each[0]][-1]
        damaged.view(-1)[0] = value
    with pytest.raises(UserError, match="scores or boxes are not finite numbers"):
        measure(model, split, config, {ONE: [0]})


def test_features_are_computed_once_an_image(split: CocoSplit, config: RunConfig) -> None:
    model = KnowingDetector().train()
    measure(model, split, config, ASKED)
    assert model.encoded == [image.id for image in split.images]
    assert model.training
    once = [(tuple(seeds), sampling) for sampling, seeds in ASKED.items()]
    assert model.asked == once * (len(split.images) // config.eval_batch_size)


def test_seconds_are_shared_as_promised(split: CocoSplit, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the detector turns: 1 second to encode a batch, 6 for each call of `detect`."""
    now = 0.0

    class Slow(KnowingDetector):
        def encode(self, batch: Batch) -> Tensor:
            nonlocal now
            now += 1
            return super().encode(batch)

        def detect(
            self, encoded: Any, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
        ) -> list[list[Detections]]:
            nonlocal now
            now += 6
            return super().detect(encoded, batch, eval_seeds, sampling)

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now)
    measured = measure(Slow(), split, config, ASKED)
    per_image = 1 / config.eval_batch_size
    assert measured.seconds_per_image == {s: per_image * (1 + 6 / len(seeds)) for s, seeds in ASKED.items()}


@given(st.lists(st.integers(0, 2), min_size=0, max_size=450), st.integers(1, 40))
def test_what_is_not_counted_may_go(labels: list[int], levels: int) -> None:
    """Scores fall in `levels` steps, so that many are equal."""
    count = len(labels)
    scores = torch.tensor([1 - (place * levels // max(count, 1)) / levels for place in range(count)])
    found = Detections(
        torch.arange(4 * count).reshape(count, 4).float(), scores, torch.tensor(labels, dtype=torch.int64)
    )
    kept = counted(found)
    expected = [place for place, label in enumerate(labels) if labels[:place].count(label) < COUNTED]
    assert kept.boxes_xyxy[:, 0].tolist() == [4.0 * place for place in expected]
    assert torch.equal(kept.scores, scores[expected])
    assert torch.equal(kept.labels, found.labels[expected])


def test_metrics_are_the_same_without_what_is_not_counted(split: CocoSplit) -> None:
    """Among 400 boxes an image, some near the objects, with scores that repeat."""
    everything = {}
    for image in split.images:
        random = numpy_generator(0, "crowd", image.id)
        near = image.boxes_xyxy[random.integers(0, max(1, len(image.boxes_xyxy)), 400)] if len(image.labels) else 0.0
        boxes = torch.tensor(near + random.normal(0, 2, (400, 4)), dtype=torch.float32)
        scores = torch.tensor(random.integers(0, 50, 400) / 50).sort(descending=True).values
        everything[image.id] = Detections(boxes, scores, torch.tensor(random.integers(0, 3, 400)))
    cut = {image: counted(found) for image, found in everything.items()}
    assert max(len(found.labels) for found in cut.values()) < 400
    assert same(coco_metrics(split, everything), coco_metrics(split, cut))


# The files


@pytest.fixture
def evaluated(split: CocoSplit, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an evaluation of ASKED in a repository of its own."""
    run_evaluation(split, config, tmp_path, monkeypatch)
    return tmp_path / graph.evaluation_folder("baseline", config.seed)


def run_evaluation(
    split: CocoSplit,
    config: RunConfig,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[Sampling, list[int]] = ASKED,
    classes: list[str] = CLASSES,
) -> None:
    monkeypatch.chdir(root)
    checkpoint = Path(graph.checkpoint("baseline", config.seed))
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    (checkpoint.parent / "metrics.csv").write_text("mode,step,loss\ntrain,5,1.5\n")
    facts = {"iterations": 12, "timing": {"wall_s": 3, "written": "then"}}
    (checkpoint.parent / "run.json").write_text(json.dumps(facts))
    evaluate(KnowingDetector(), config, checkpoint, asked, 2, split, classes)


def test_the_report_finds_all_that_was_asked(
    evaluated: Path, split: CocoSplit, config: RunConfig, tmp_path: Path
) -> None:
    run = evaluations.read_run("baseline", config.seed, tmp_path)
    assert run.provenance == {"iterations": 12, "checkpoint": {"size": len(b"weights"), "written": "then"}}
    assert (len(run.results), len(run.speed)) == (6, 3)
    assert set(run.results["ckpt_sha256"]) == {sha256(tmp_path / graph.checkpoint("baseline", config.seed))}
    guidance = {"scales": [0.05], "modes": ["final"], "langevin_steps": [2]}
    experiment = ExperimentConfig(
        scale="test",
        train_seeds=[config.seed],
        recipes=["baseline"],
        scratch=["baseline"],
        lineages=["baseline"],
        asked={"baseline": ["main"]},
        protocols={
            "main": {"eval_seeds": [7, 0], "sample_steps": [1]},
            "guidance": {"eval_seeds": [7], "sample_steps": [9], **guidance},
        },
        pictures={"lineages": ["baseline"]},
    )
    measured = measure(KnowingDetector(), split, config, ASKED)
    main = evaluations.asked([run], experiment)["main"]
    expected = [measured.metrics[seed, ONE] for seed in (7, 0)]
    assert main.results["AP"].tolist() == pytest.approx([metrics.ap for metrics in expected], abs=1e-4)
    for name in CLASSES:
        assert same(main.results[f"AP-{name}"].round(3).tolist(), [round(m.per_class[name], 3) for m in expected])
    with pytest.raises(UserError, match="no row for 9 sampling steps under eval seed 7, which protocols"):
        both = experiment.model_copy(update={"asked": {"baseline": ["main", "guidance"]}})
        evaluations.asked([run], both)  # because the protocol asks for no guidance as well
    (row,) = run.results[(run.results["guidance_scale"] > 0) & (run.results["eval_seed"] == 7)].to_dict("records")
    assert [row[name] for name in ("sample_step", *evaluations.GUIDANCE)] == [9, 0.05, "final", 2, 0]
    assert row["AP"] == pytest.approx(measured.metrics[7, GUIDED].ap, abs=1e-4)


def test_columns_of_the_tables(evaluated: Path) -> None:
    """Read as a user would, with pandas alone."""
    results, speed = (pd.read_csv(evaluated / name, sep="\t") for name in ("results.tsv", "speed.tsv"))
    way = ["sample_step", "guidance_scale", "guidance_mode", "guidance_steps", "guidance_topk"]
    assert list(results)[:8] == ["run", "train_seed", "eval_seed", *way]
    assert list(speed)[:7] == ["run", "train_seed", *way]
    assert results[way].iloc[0].tolist() == [1, 0.0, "none", 0, 0]
    assert speed["eval_seeds"].tolist() == [3, 1, 2]
    assert (results["images"] == 4).all()


def test_pictures_are_those_of_what_is_asked_most_and_unguided(evaluated: Path) -> None:
    """One step, because three eval seeds are asked for it and one for four steps."""
    pictured = json.loads((evaluated / "detections.json").read_text())
    assert (pictured["sample_step"], pictured["eval_seed"], len(pictured["images"])) == (1, 0, 2)
    second = pictured["images"][1]
    assert [box["label"] for box in second["ground_truth"]] == ["dog"]
    assert second["detections"][0]["score"] == 0.9


def test_the_breakdown_is_of_the_same_way_under_all_its_eval_seeds(evaluated: Path) -> None:
    told = json.loads((evaluated / "breakdown.json").read_text())
    assert (told["sample_step"], told["eval_seeds"], told["classes"]) == (1, [0, 1, 7], CLASSES)
    results = pd.read_csv(evaluated / "results.tsv", sep="\t")
    own = results[(results["sample_step"] == 1) & (results["guidance_scale"] == 0)]
    assert told["AP50"] == pytest.approx(own["AP50"].mean(), abs=1e-3)
    of_classes = own[[f"AP-{name}" for name in CLASSES]].mean()  # nan for a class without objects
    assert np.array(told["sizes"]["all"], float) == pytest.approx(of_classes.to_numpy(), abs=1e-3, nan_ok=True)


def test_of_ways_asked_alike_the_most_steps_are_pictured(
    split: CocoSplit, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_evaluation(split, config, tmp_path, monkeypatch, {FOUR: [3, 0], ONE: [3, 0], GUIDED: [0, 1, 3]})
    pictured = json.loads((tmp_path / graph.evaluation_folder("baseline", config.seed) / "detections.json").read_text())
    assert (pictured["sample_step"], pictured["eval_seed"]) == (4, 3)


def test_a_gpus_checkpoint_without_a_gpu_is_told(
    split: CocoSplit, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="scale test has device cuda, but torch sees no GPU"):
        run_evaluation(split, config.model_copy(update={"device": "cuda"}), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("asked", "classes", "complaint"),
    [
        ({ONE: [0]}, ["dog"], "was trained for the classes dog, but dataset 'toy' has dog, cat, cow"),
        ({Sampling(steps=1, guidance=GuidanceConfig(scale=1)): [0]}, CLASSES, "asks: no such guidance here"),
    ],
)
def test_what_is_refused(
    split: CocoSplit,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[Sampling, list[int]],
    classes: list[str],
    complaint: str,
) -> None:
    with pytest.raises(UserError, match=complaint):
        run_evaluation(split, config, tmp_path, monkeypatch, asked, classes)
    assert not (tmp_path / "evals").exists()


def test_pictures_and_their_way_to_sample_of_what_was_asked(tmp_path: Path) -> None:
    """A crowd is no object to be shown; of ways that differ in crops alone the one with crops is shown."""
    coco = content(images=3)
    coco["annotations"][2]["iscrowd"] = 1
    split = read_split("val", *write(tmp_path, "val", coco), CLASSES)
    twice = Sampling(steps=1, crops=True)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    found = {(0, way): {image.id: nothing for image in split.images} for way in (ONE, twice)}
    shown = pictures(split, 3, {ONE: [0], twice: [0]}, Measurement(detections=found))
    assert [len(image["ground_truth"]) for image in shown["images"]] == [0, 1, 1]
    assert shown["images"][2]["ground_truth"][0]["label"] == "dog"
    assert chosen({ONE: [0], twice: [0]}) == twice
    assert chosen({ONE: [0, 1], twice: [0]}) == ONE


# Killed, and gone on with


class Killed(Exception):
    """The end of a process, as far as what it left on the disk goes."""


class KilledDetector(KnowingDetector):
    """Its process ends when it has encoded a batch."""

    def encode(self, batch: Batch) -> Tensor:
        if self.encoded:
            raise Killed
        return super().encode(batch)


@pytest.fixture
def killed(split: CocoSplit, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a pass over four images of which two were measured."""
    monkeypatch.setattr(ongoing, "SECONDS_BETWEEN", 0)
    file = tmp_path / ".ongoing/0.pth"
    with pytest.raises(Killed):
        measure(KilledDetector(), split, config, ASKED, ongoing=Ongoing(file, {"checkpoint": "1"}))
    return file


def test_a_measurement_goes_on_to_the_same_numbers(split: CocoSplit, config: RunConfig, killed: Path) -> None:
    before = load_checkpoint(killed)["taken"]
    whole, detector = measure(KnowingDetector(), split, config, ASKED), KnowingDetector()
    with Progress("", 4) as progress:
        again = measure(detector, split, config, ASKED, progress, Ongoing(killed, {"checkpoint": "1"}))
    assert detector.encoded == [image.id for image in split.images][2:]
    assert same(again.metrics, whole.metrics) and same(again.detections, whole.detections)
    assert [list(found) for found in again.detections.values()] == [[image.id for image in split.images]] * 6
    assert progress.done == progress.total
    after = load_checkpoint(killed)["taken"]
    assert [(taken["batches"], taken["images"]) for taken in (before, after)] == [(1, 2), (2, 4)]
    assert after["encoding"] > before["encoding"] > 0, "an image's seconds are those of all lives"


@pytest.mark.parametrize("changed", ["facts", "asked", "damaged"])
def test_another_measurement_starts_anew(
    split: CocoSplit, config: RunConfig, killed: Path, caplog: pytest.LogCaptureFixture, changed: str
) -> None:
    if changed == "damaged":
        killed.write_bytes(killed.read_bytes()[:-100])
    asked = ASKED | ({ONE: [0]} if changed == "asked" else {})
    detector = KnowingDetector()
    measure(detector, split, config, asked, ongoing=Ongoing(killed, {"checkpoint": "2" if changed == "facts" else "1"}))
    assert detector.encoded == [image.id for image in split.images]
    assert ("0.pth is damaged: the evaluation starts anew" in caplog.text) == (changed == "damaged")


def test_what_an_evaluation_goes_on_from_goes_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ongoing, "SECONDS_BETWEEN", 0)
    monkeypatch.chdir(tmp_path)
    checkpoint, config = Path(graph.checkpoint("baseline", 3)), resolve("baseline", 3, "test", ROOT)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    work = tmp_path / "evals/baseline/seed3/.ongoing"
    for error in (Killed, None):
        with suppress(Killed), Ongoing(place_in(work.parent), facts_of(checkpoint, config)) as held:
            taken = held.begin({ONE: [0]}, lambda kept: None)
            assert taken.batches == (0 if error else 1)
            taken.batches = 1
            held.note(taken, list)
            assert [path.name for path in sorted(work.iterdir())] == ["0.pth", "0.pth.sha256"]
            if error:
                raise error
    assert not work.exists()
