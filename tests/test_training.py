"""The optimiser step against closed forms and brute force, the files of a run, the smoke run, and what stops them."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import run
from hypothesis import given
from hypothesis import strategies as st
from small_detector import make_batch, make_detector
from toy_detector import CLASSES, ToyConfig, ToyDetector, toy_ap, toy_batch, toy_batches, toy_config

from noisebox import graph
from noisebox.config import RunConfig, SolverConfig, smoke_config
from noisebox.errors import UserError
from noisebox.models import BOX_MONITORS, build_model
from noisebox.progress import Progress, clock
from noisebox.structures import Batch
from noisebox.training.checkpoint import load_checkpoint, load_model
from noisebox.training.loop import train
from noisebox.training.optim import build_optimizer, learning_rate, set_learning_rate
from noisebox.training.provenance import environment
from noisebox.training.smoke import smoke
from noisebox.training.step import Means, Trainer, is_loss, repeatable_attention

pytestmark = pytest.mark.usefixtures("toy_family")


def trainer_of(config: RunConfig) -> Trainer:
    return Trainer(config, build_model(config, len(CLASSES)))


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.detector.state_dict().items()}


def rows_of(run: Path) -> list[dict[str, str]]:
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


@given(step=st.integers(0, 999), warmup=st.integers(1, 300), factor=st.floats(0, 1), decay=st.floats(0.05, 1))
def test_learning_rate_is_the_closed_form(step: int, warmup: int, factor: float, decay: float) -> None:
    solver = SolverConfig(
        base_lr=0.2, lr_factor=0.5, max_iter=1000, warmup_iters=warmup, warmup_factor=factor, decay_at=[0.7, 0.9],
        decay_factor=decay,
    )  # fmt: skip
    ramp = factor + (1 - factor) * step / warmup if step < warmup else 1.0
    falls = 0 if step < 700 else 1 if step < 900 else 2
    assert learning_rate(step, solver) == pytest.approx(0.1 * ramp * decay**falls)


def test_learning_rate_without_schedule_is_constant() -> None:
    solver = SolverConfig(base_lr=0.2, max_iter=10)
    assert {learning_rate(step, solver) for step in range(10)} == {0.2}


def test_one_step_is_adamw_with_a_rate_per_group_and_the_whole_gradient_clipped() -> None:
    config = toy_config(clip_norm=0.1, backbone_multiplier=0.25, warmup_iters=0, weight_decay=0.3, ema_decay=0.0)
    trainer = trainer_of(config)
    reference = build_model(config, len(CLASSES))
    sum(reference(toy_batch(0), config.seed, 0).values()).backward()
    gradients = {name: weight.grad.double() for name, weight in reference.named_parameters()}
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    assert norm > 0.1
    trainer.update(toy_batch(0), 0)
    for name, weight in trainer.detector.named_parameters():
        rate = 0.01 * (0.25 if name.startswith("backbone") else 1.0)
        clipped = gradients[name] * 0.1 / norm
        # Adam's first step divides the gradient by its own size
        start = reference.state_dict()[name].double()
        expected = start * (1 - rate * 0.3) - rate * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-6)


def test_a_frozen_backbone_gets_no_gradient_and_does_not_change() -> None:
    trainer = trainer_of(toy_config(backbone_multiplier=0.0, model=ToyConfig(batch_norm=True), weight_decay=0.1))
    before = weights_of(trainer)
    for step in range(3):
        trainer.update(toy_batch(step), step)
    assert all(parameter.grad is None for parameter in trainer.detector.backbone.parameters())
    assert not trainer.detector.encode(toy_batch(0)).requires_grad
    for name, tensor in trainer.detector.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("backbone"), name


@pytest.mark.parametrize("backbone", [0.5, 0.0])
def test_each_part_of_the_real_detector_has_its_multiple_of_the_rate(backbone: float) -> None:
    model = make_detector(geo_feat={"enabled": True}, quality_head=True)
    solver = SolverConfig(
        base_lr=1e-3, max_iter=1, weight_decay=0.0,
        backbone_multiplier=backbone, geo_feat_multiplier=100, quality_head_multiplier=30,
    )  # fmt: skip
    optimizer = build_optimizer(model, solver)
    set_learning_rate(optimizer, learning_rate(0, solver))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    terms = model(make_batch([1, 2]), 0, 0)
    sum(term for name, term in terms.items() if is_loss(name)).backward()
    optimizer.step()
    multipliers = {"backbone.": backbone, ".geo_feat.": 100, ".quality.": 30}
    seen = set()
    for name, weight in model.named_parameters():
        multiplier = next((value for part, value in multipliers.items() if part in name), 1.0)
        seen.add(multiplier)
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert (weight.grad is None) == (multiplier == 0), name
        # Adam's first step divides the gradient by its own size
        move = weight.detach() - before[name]
        expected = -1e-3 * multiplier * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(move, expected, rtol=1e-3, atol=1e-6, msg=name)
    assert seen == {backbone, 100, 30, 1.0}


def test_ema_is_the_brute_force_average() -> None:
    config = toy_config(ema_decay=0.9)
    trainer = trainer_of(config)
    average = {name: tensor.double() for name, tensor in weights_of(trainer).items()}
    for step in range(6):
        trainer.update(toy_batch(step), step)
        average = {name: 0.9 * average[name] + 0.1 * tensor.double() for name, tensor in weights_of(trainer).items()}
    for name, tensor in trainer.result().state_dict().items():
        torch.testing.assert_close(tensor.double(), average[name], rtol=0, atol=1e-6)
        assert not torch.equal(tensor, trainer.detector.state_dict()[name])


def test_accumulation_equals_the_big_batch() -> None:
    whole, parts = trainer_of(toy_config()), trainer_of(toy_config(accumulate=4))
    for step in range(5):
        losses = [trainer.update(toy_batch(step), step) for trainer in (whole, parts)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for a, b in zip(weights_of(whole).values(), weights_of(parts).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_bf16_trains_float32_weights() -> None:
    exact, rounded = trainer_of(toy_config()), trainer_of(toy_config(precision="bf16"))
    for step in range(12):
        losses = [sum(trainer.update(toy_batch(step), step).values()) for trainer in (exact, rounded)]
        assert losses[0] == pytest.approx(losses[1], rel=0.05)
        assert losses[0] != losses[1]
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(rounded).values())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    class Flat(ToyDetector):
        def forward(self, batch: Batch, seed: int, step: int) -> dict[str, torch.Tensor]:
            return {"loss_flat": (self.head.weight.sum() * 0).sqrt()}

    config = toy_config(clip_norm=0.0)
    trainer = Trainer(config, Flat(ToyConfig(), 2))
    before = weights_of(trainer)
    with pytest.raises(UserError, match=r"toy seed3: the gradient's norm is nan at iteration 8; lower solver\.base_lr"):
        trainer.update(toy_batch(7), 7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(trainer).items())


def test_a_run_has_its_files(tmp_path: Path) -> None:
    run = tmp_path / "runs/toy/seed3"
    config = toy_config(eval_every=6)
    train(config, run, CLASSES, toy_batches, "d" * 64, validate=toy_ap, root=tmp_path)
    assert sorted(path.name for path in run.iterdir()) == sorted(graph.RUN_FILES)
    assert RunConfig(**yaml.safe_load((run / "config.yaml").read_text())) == config

    rows = rows_of(run)
    assert [(row["mode"], row["phase"], int(row["step"])) for row in rows] == [
        ("train", "toy", 5), ("val", "toy", 6), ("train", "toy", 10), ("train", "toy", 12), ("val", "toy", 12),
    ]  # fmt: skip
    assert list(rows[0]) == ["mode", "phase", "step", "loss", "loss_box", "loss_class", "lr", "AP"]
    trainer = trainer_of(config)
    terms = [trainer.update(toy_batch(step), step) for step in range(12)]
    for row, steps in ((rows[0], range(5)), (rows[2], range(5, 10)), (rows[3], range(10, 12))):
        for name in ("loss_box", "loss_class"):
            assert float(row[name]) == pytest.approx(np.mean([terms[step][name] for step in steps]), rel=1e-5)
        assert float(row["loss"]) == pytest.approx(float(row["loss_box"]) + float(row["loss_class"]), rel=1e-5)
        assert float(row["lr"]) == pytest.approx(learning_rate(steps[-1], config.solver), rel=1e-5)

    final, _, _ = load_model(run / "model_final.pth")
    best, _, chosen = load_model(run / "best.pth")
    assert toy_ap(final) == pytest.approx(float(rows[4]["AP"]), abs=1e-4)
    assert toy_ap(best) == pytest.approx(max(float(row["AP"]) for row in rows if row["AP"]), abs=1e-4)
    assert chosen["iteration"] in (6, 12)
    last = load_checkpoint(run / "last.pth")
    assert last["iteration"] == 12
    for name, average in final.state_dict().items():
        assert torch.equal(average, trainer.result().state_dict()[name])
        assert torch.equal(last["model"][name], trainer.detector.state_dict()[name])

    record = json.loads((run / "run.json").read_text())
    assert record["lineage"] == "toy" and record["seed"] == 3 and record["parent"] is None
    assert record["data_hash"] == "d" * 64 and record["git_commit"] is None and record["iterations"] == 12
    assert record["packages"]["torch"] == version("torch") and record["threads"] == 1
    assert set(record["timing"]) == {"wall_s", "wall_s_total", "resumed", "written"}
    assert record["timing"]["resumed"] == 0


def test_what_engines_rewrite_is_no_uncommitted_change(tmp_path: Path) -> None:
    def found() -> tuple[bool, bool]:
        facts = environment(toy_config(), tmp_path)
        return facts["git_commit"] is not None, facts["git_dirty"]

    assert found() == (False, False)
    tracked = [tmp_path / name for name in ("reports/summary.md", "dvc.lock", "params/experiment.yaml")]
    for path in tracked:
        path.parent.mkdir(exist_ok=True)
        path.write_text("before")
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "git", "config", "user.email", "test@example.invalid")
    run(tmp_path, "git", "config", "user.name", "test")
    run(tmp_path, "git", "add", "-A")
    run(tmp_path, "git", "commit", "-qm", "start")
    (tmp_path / "new.txt").write_text("untracked")
    assert found() == (True, False)
    for path, dirty in zip(tracked, (False, False, True), strict=True):
        path.write_text("after")
        assert found() == (True, dirty)


def test_without_evaluation_the_best_is_the_final_one(tmp_path: Path) -> None:
    train(toy_config(), tmp_path, CLASSES, toy_batches, "", root=tmp_path)
    assert (tmp_path / "best.pth").read_bytes() == (tmp_path / "model_final.pth").read_bytes()


def test_a_run_starts_from_its_parent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(toy_config(), tmp_path / "parent", CLASSES, toy_batches, "", root=tmp_path)
    parent = tmp_path / "parent/model_final.pth"
    config = toy_config(lineage="toy+more", base_lr=1e-30, max_iter=1)
    train(config, tmp_path / "child", ("car", "person", "dog"), toy_batches, "", parent=parent, root=tmp_path)
    told = f"starts from {parent}: 2 tensors loaded, 2 (head.weight, head.bias) new, 2 (head.bias, head.weight) unused"
    assert f"toy+more seed3 {told}" in caplog.text
    origin = json.loads((tmp_path / "child/run.json").read_text())["parent"]
    assert origin["loaded"] == ["backbone.0.weight", "backbone.0.bias"]
    assert origin["new"] == ["head.weight", "head.bias"] and origin["unused"] == ["head.bias", "head.weight"]
    assert origin["sha256"] == (tmp_path / "parent/model_final.pth.sha256").read_text().split()[0]
    before, after = load_checkpoint(parent)["model"], load_checkpoint(tmp_path / "child/model_final.pth")["model"]
    assert torch.equal(before["backbone.0.weight"], after["backbone.0.weight"])
    assert rows_of(tmp_path / "child")[0]["phase"] == "more"


class Shrinking(ToyDetector):
    """Tells of boxes with the sides `sides[step]` at each step."""

    sides: tuple[tuple[float, float], ...] = ()

    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, torch.Tensor]:
        monitored = dict(zip(BOX_MONITORS, map(torch.tensor, self.sides[step]), strict=True))
        return {**super().forward(batch, seed, step), **monitored}


WELL, NONE = (7.0, 5.0), (math.nan, math.nan)
CURE = "a lower rate, or starting from a trained parent, helps"


@pytest.mark.parametrize(
    ("sides", "told"),
    [
        ((WELL,) * 12, None),
        ((WELL,) * 4 + ((0.1, 0.1),) + (WELL,) * 7, None),
        ((WELL,) * 6 + ((0.9, 0.3),) * 6, "at iteration 9 the median box width of predicted boxes is 0.90 pixels"),
        (((7.0, 0.5),) * 12, "at iteration 3 the median box height of predicted boxes is 0.50 pixels"),
        (((0.9, 7.0), NONE, NONE) * 4, "at iteration 3 the median box width of predicted boxes is 0.90 pixels"),
        ((NONE,) * 12, None),
    ],
    ids=["never", "for one step", "both sides", "from the start", "often without boxes", "without boxes"],
)
def test_boxes_that_collapse_are_told_once(
    sides: tuple[tuple[float, float], ...],
    told: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Shrinking, "sides", sides)
    monkeypatch.setattr("toy_detector.ToyDetector", Shrinking)
    train(toy_config(log_every=3), tmp_path, CLASSES, toy_batches, "", root=tmp_path)
    warned = [record.getMessage() for record in caplog.records if "collapsing" in record.getMessage()]
    assert warned == ([] if told is None else [f"toy seed3: {told}: they are collapsing; {CURE}"])


def test_monitors_are_written_but_not_minimised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(toy_config(), tmp_path / "plain", CLASSES, toy_batches, "", root=tmp_path)
    sides = ((6.0, 4.0), (2.0, 4.0), (1.0, math.nan), (3.0, 5.0), (1.0, math.nan), NONE, *[WELL] * 6)
    monkeypatch.setattr(Shrinking, "sides", sides)
    monkeypatch.setattr("toy_detector.ToyDetector", Shrinking)
    train(toy_config(log_every=2), tmp_path / "watched", CLASSES, toy_batches, "", root=tmp_path)
    weights = [load_checkpoint(tmp_path / name / "model_final.pth")["model"] for name in ("plain", "watched")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    first, second, third, *_ = rows_of(tmp_path / "watched")
    told = [(row["median_box_width"], row["median_box_height"]) for row in (first, second, third)]
    assert told == [("4", "4"), ("2", "5"), ("1", "nan")]
    for row in (first, second, third):
        assert float(row["loss"]) == pytest.approx(float(row["loss_box"]) + float(row["loss_class"]), rel=1e-5)


@given(
    rows=st.lists(st.tuples(*[st.floats(-1e3, 1e3) | st.just(math.nan)] * 2), min_size=1, max_size=8),
    cut=st.integers(0, 8),
)
def test_means_leave_out_monitors_without_a_value_and_go_on_after_a_kill(
    rows: list[tuple[float, float]], cut: int
) -> None:
    means, resumed = Means(), Means()
    for place, (loss, width) in enumerate(rows):
        if place == cut:
            resumed.load_state_dict(json.loads(json.dumps(means.state_dict())))
        for each in (means, resumed) if place >= cut else (means,):
            each.add({"loss_box": loss, "median_box_width": width})
    found, widths = means.values(), [width for _, width in rows if not math.isnan(width)]
    assert found["loss_box"] == pytest.approx(np.mean([loss for loss, _ in rows]), nan_ok=True)
    assert found["median_box_width"] == pytest.approx(np.mean(widths) if widths else math.nan, nan_ok=True)
    if cut < len(rows):
        assert repr(resumed.values()) == repr(found)


def test_means_go_on_from_a_checkpoint_that_did_not_tell_monitors_without_a_value() -> None:
    means = Means()
    means.load_state_dict({"text": "", "sums": {"loss_box": 3.0, "median_box_width": 4.0}, "count": 2})
    means.add({"loss_box": 3.0, "median_box_width": math.nan})
    assert means.values() == {"loss_box": 2.0, "median_box_width": 2.0}


def test_a_monitor_is_averaged_over_the_parts_of_a_batch_that_have_a_value() -> None:
    class Watched(ToyDetector):
        def forward(self, batch: Batch, seed: int, step: int) -> dict[str, torch.Tensor]:
            (image,) = batch.image_ids
            width = torch.tensor(math.nan if image % 2 else float(image))
            return {**super().forward(batch, seed, step), "median_box_width": width}

    terms = Trainer(toy_config(accumulate=4), Watched(ToyConfig(), 2)).update(toy_batch(1), 1)
    assert toy_batch(1).image_ids == (4, 5, 6, 7) and terms["median_box_width"] == 5


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    def poisoned(start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            batch = toy_batch(step)
            yield replace(batch, images=batch.images * (math.inf if step == 9 else 1.0))

    told = r"toy seed3: loss term loss_\w+ is nan at iteration 10; lower solver.base_lr or lengthen solver.warmup_iters"
    for _ in range(2):
        with pytest.raises(UserError, match=told):
            train(toy_config(), tmp_path, CLASSES, poisoned, "", root=tmp_path)
        _, _, state = load_model(tmp_path / "work/last.pth")
        assert state["iteration"] == 8
    assert not (tmp_path / "model_final.pth").exists()


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]

    before = states()
    train(toy_config(eval_every=4), tmp_path / "run", CLASSES, toy_batches, "", validate=toy_ap, root=tmp_path)
    smoke(smoke_config(toy_config()), tmp_path / "smoke.tsv", CLASSES, toy_batch(0))
    assert states() == before


def test_cuda_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = toy_config().model_copy(update={"device": "cuda"})
    with pytest.raises(UserError, match="scale test has device cuda, but torch sees no GPU"):
        trainer_of(config)


def test_smoke_writes_the_same_table_every_time(tmp_path: Path) -> None:
    config = smoke_config(toy_config(backbone_multiplier=0.0, warmup_iters=10**6, batch_size=8, accumulate=4))
    assert config.solver.batch_size == config.smoke.images == 2
    tables = []
    for name in ("a.tsv", "b.tsv"):
        smoke(config, tmp_path / name, CLASSES, toy_batch(0, size=2))
        tables.append((tmp_path / name).read_text())
    assert tables[0] == tables[1]
    header, *rows = [line.split("\t") for line in tables[0].splitlines()]
    assert header == ["recipe", "check", "value", "ok"]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("toy", "finite_loss", "yes"), ("toy", "falling_loss", "yes"), ("toy", "checkpoint", "yes"),
    ]  # fmt: skip
    first, last = (float(loss) for loss in rows[1][2].split(" to "))
    assert last < first


def test_smoke_says_which_check_failed_and_writes_nothing(tmp_path: Path) -> None:
    config = smoke_config(toy_config(base_lr=1e-30))
    with pytest.raises(UserError, match="smoke run of recipe 'toy': check falling_loss failed"):
        smoke(config, tmp_path / "smoke.tsv", CLASSES, toy_batch(0, size=2))
    assert not (tmp_path / "smoke.tsv").exists()


def test_progress_in_a_log_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("baseline seed0", 600, done=599) as progress:
        progress.advance(1, loss=3.2149, AP=41.5)
    label, count, loss, ap, pace, eta = capsys.readouterr().err.strip().split("  ")
    assert (label, count, loss, ap, eta) == ("baseline seed0", "600/600", "loss 3.21", "AP 41.5", "ETA 0:00")
    assert pace.endswith(" s/it")
    assert [clock(seconds) for seconds in (5, 65, 7265)] == ["0:05", "1:05", "2:01:05"]


def test_only_within_a_step_on_a_gpu_attention_does_without_its_fused_kernels() -> None:
    def fused() -> list[bool]:
        kernels = torch.backends.cuda
        return [kernels.flash_sdp_enabled(), kernels.mem_efficient_sdp_enabled(), kernels.cudnn_sdp_enabled()]

    before = fused()
    with repeatable_attention(torch.device("cpu")):
        assert fused() == before == [True] * 3
    with repeatable_attention(torch.device("cuda")):
        assert fused() == [False] * 3 and torch.backends.cuda.math_sdp_enabled()
    assert fused() == before
