"""The habits of training: going on after a change, checkpoints of epochs, growing images, the largest batch, compiling.

Every one must survive a kill; tests/test_resume.py kills the rest.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from toy_detector import CLASSES, ToyConfig, ToyDetector, toy_ap, toy_batch, toy_batches, toy_config

from noisebox.config import AUTO, RunConfig, resolve
from noisebox.errors import UserError
from noisebox.models import build_model
from noisebox.structures import Batch
from noisebox.tasks import open_task
from noisebox.training import batch_size
from noisebox.training.batch_size import largest, with_largest_batch
from noisebox.training.checkpoint import load_checkpoint, load_model
from noisebox.training.loop import train
from noisebox.training.step import Trainer

pytestmark = pytest.mark.usefixtures("toy_family")


def train_toy(run: Path, config: RunConfig, stop_at: int = 99, **how: Any) -> None:
    """Train, or stop as by a kill before the step `stop_at`, from 0."""

    def batches(start: int, stop: int) -> Iterator[Batch]:
        yield from toy_batches(start, min(stop, stop_at))
        if stop_at < stop:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(config, run, CLASSES, batches, "d" * 64, validate=toy_ap, root=run.parent, **how)


def files_of(run: Path) -> dict[str, bytes]:
    """All that a run leaves, but for the one file that tells the time."""
    return {path.name: path.read_bytes() for path in run.iterdir() if path.name != "run.json"}


def record_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


HARMLESS = [
    {"log_every": 3},
    {"checkpoint_every": 1, "checkpoint_epochs": 0, "eval_every": 6},
]


@pytest.mark.parametrize("changes", HARMLESS, ids=["rows", "checkpoints"])
def test_a_harmless_change_is_gone_on_with_and_said(
    changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_toy(tmp_path / "run", toy_config(), stop_at=9)
    train_toy(tmp_path / "run", toy_config(**changes))
    assert "run: going on after iteration 8, although solver." in caplog.text
    train_toy(tmp_path / "whole", toy_config(**changes))
    ours, theirs = (load_checkpoint(tmp_path / name / "model_final.pth") for name in ("run", "whole"))
    assert ours["config"] == theirs["config"]
    assert all(torch.equal(tensor, theirs["model"][name]) for name, tensor in ours["model"].items())
    (noted,) = record_of(tmp_path / "run")["changes"]
    assert noted["after_iteration"] == 8 and next(iter(changes)) in noted["what"]
    assert record_of(tmp_path / "whole")["changes"] == []


def test_a_change_that_matters_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_toy(run, toy_config(), stop_at=9)
    before = {path.name: path.read_bytes() for path in (run / "work").iterdir() if path.name != "lock"}
    told = (
        r"run: not going on with the interrupted training, because solver.weight_decay was 0.0001, is now 0.5, and 1 "
        r"more; add --if-changed resume to go on with the new one, --if-changed fresh to start anew"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=told):
            train_toy(run, toy_config(weight_decay=0.5, log_every=3))
    assert {path.name: path.read_bytes() for path in (run / "work").iterdir() if path.name != "lock"} == before
    train_toy(run, toy_config())
    train_toy(tmp_path / "whole", toy_config())
    assert files_of(run) == files_of(tmp_path / "whole")


def test_a_changed_training_that_is_told_to_go_on_has_the_new_settings_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    old, new = toy_config(ema_decay=0.0), toy_config(weight_decay=0.5, ema_decay=0.5, base_lr=0.02)
    train_toy(run, old, stop_at=9)
    train_toy(run, new, stop_at=9, if_changed="resume")
    train_toy(run, new, if_changed="resume")
    reference = Trainer(old, build_model(old, len(CLASSES)))
    for step in range(8):
        reference.update(toy_batch(step), step)
    halfway = reference.state_dict()
    reference = Trainer(new, build_model(new, len(CLASSES)))
    reference.load_state_dict(halfway)
    assert {group["weight_decay"] for group in reference._groups()} == {0.5}
    for step in range(8, 12):
        reference.update(toy_batch(step), step)
    final, _, _ = load_model(run / "model_final.pth")
    assert all(torch.equal(a, b) for a, b in zip(final.parameters(), reference.result().parameters(), strict=True))
    (noted,) = record_of(run)["changes"]
    assert noted == {"after_iteration": 8, "what": "solver.base_lr was 0.01, is now 0.02, and 2 more"}


def test_a_changed_training_whose_weights_do_not_fit_is_refused_in_any_case(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", toy_config(), stop_at=9)
    wider = toy_config(model=ToyConfig(width=8))
    with pytest.raises(UserError, match=r"does not fit the model any more, because model.width was 6, is now 8; add "):
        train_toy(tmp_path / "run", wider, if_changed="resume")
    train_toy(tmp_path / "run", wider, if_changed="fresh")
    train_toy(tmp_path / "whole", wider)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_every_so_many_epochs_the_weights_are_kept(tmp_path: Path) -> None:
    run, config = tmp_path / "run", toy_config(checkpoint_epochs=2, ema_decay=0.5)
    train_toy(run, config, stop_at=9, images=7)
    train_toy(run, config, images=7)
    kept = sorted(path.name for path in run.glob("checkpoint_epoch_*.pth"))
    # steps of 4 images: 14 are passed within step 4, 28 with step 7, 42 within step 11
    assert kept == [f"checkpoint_epoch_{epoch}.pth" for epoch in (2, 4, 6)]
    trainer = Trainer(config, build_model(config, len(CLASSES)))
    for step in range(7):
        trainer.update(toy_batch(step), step)
    state = load_checkpoint(run / "checkpoint_epoch_4.pth")
    assert state["iteration"] == 7
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in trainer.result().state_dict().items())
    assert (run / "checkpoint_epoch_4.pth.sha256").read_text().endswith("  checkpoint_epoch_4.pth\n")
    train_toy(tmp_path / "whole", config, images=7)
    assert files_of(run) == files_of(tmp_path / "whole")
    train_toy(run, toy_config(checkpoint_epochs=6), images=7)
    assert sorted(path.name for path in run.glob("checkpoint_epoch_*.pth")) == ["checkpoint_epoch_6.pth"]


def test_a_nan_under_half_precision_names_two_ways_out(tmp_path: Path) -> None:
    poisoned = replace(toy_batch(0), images=toy_batch(0).images * math.inf)
    trainer = Trainer(toy_config(), build_model(toy_config(), len(CLASSES)))
    trainer.config = trainer.config.model_copy(update={"precision": "fp16"})
    with pytest.raises(UserError) as caught:
        trainer.update(poisoned, 0)
    assert (
        "at iteration 1; fp16 overflows easily, so train with precision bf16 or fp32, or lower solver.base_lr or"
        in str(caught.value)
    )


def test_images_grow_by_epoch_as_the_schedule_says(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datasets of scale `test`: eight street images of 64 × 80, four of 64 × 80 for BEV; batches of three."""
    monkeypatch.chdir(datasets)
    overrides = {"image.resize_schedule": [[1, 32], [2, 48], [4, 96]], "image.max_edge": 200, "solver.batch_size": 3}
    for recipe in ("baseline", "lss"):
        task = open_task(resolve(recipe, 0, "test", overrides=overrides))
        batches = list(task.batches(0, 12))
        edges = [{1: 32, 2: 48, 3: 48}.get(1 + 3 * step // task.images, 96) for step in range(12)]
        if recipe == "baseline":
            shown = [{(height, width) for height, width in batch.sizes_hw.tolist()} for batch in batches]
        else:
            shown = [{tuple(batch.images.shape[-2:])} for batch in batches]
            stored = task.train.intrinsics(batches[0].image_ids[0])
            assert torch.allclose(batches[0].intrinsics[0], torch.from_numpy(stored * [[0.5], [0.5], [1]]).float())
            assert batches[0].gt_depth.shape[-2:] == (32, 40) and batches[0].gt_depth_mask.any()
            assert (batches[0].gt_depth > 0).equal(batches[0].gt_depth_mask)
        assert shown == [{(edge, edge * 5 // 4)} for edge in edges]
        again = next(task.batches(7, 8))
        assert again.images.equal(batches[7].images)


@pytest.mark.parametrize("schedule", [[[2, 64]], [[1, 64], [1, 96]], [[1, 64], [5, 96], [3, 128]]])
def test_a_schedule_must_rise_from_the_first_epoch(schedule: list[list[int]]) -> None:
    with pytest.raises(UserError, match=r"override 'image': the epochs of resize_schedule must rise from 1, not be \["):
        resolve("baseline", 0, "test", ROOT, overrides={"image.resize_schedule": schedule})


@given(limit=st.integers(0, 300), unit=st.integers(1, 5), most=st.integers(1, 200))
def test_the_largest_batch_is_found_in_few_trials(limit: int, unit: int, most: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert largest(fits, unit, most) == min(limit, most) // unit * unit
    assert len(tried) <= 2 * math.log2(most + 1) + 1 and len(set(tried)) == len(tried)


@dataclass
class ToyTask:
    """What finding a batch size needs of a task: 50 images."""

    config: RunConfig
    images = 50
    classes = CLASSES

    def batch(self, step: int) -> Batch:
        return toy_batch(step, self.config.solver.batch_size)


def auto_task(**solver: Any) -> ToyTask:
    config = toy_config(batch_size="auto", epochs=3, max_iter=None, accumulate=2, **solver)
    assert config.solver.batch_size == AUTO
    return ToyTask(config.model_copy(update={"device": "cuda"}))


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A GPU, played by the CPU, whose memory holds so many images in the parts of a batch."""

    def limited(images: int) -> None:
        class Full(ToyDetector):
            def forward(self, batch: Batch, seed: int, step: int) -> dict[str, torch.Tensor]:
                if len(batch) > images:
                    raise torch.OutOfMemoryError("full")
                return super().forward(batch, seed, step)

        monkeypatch.setattr("toy_detector.ToyDetector", Full)

    def on_cpu(config: RunConfig, *arguments: Any) -> Trainer:
        return Trainer(config.model_copy(update={"device": "cpu"}), *arguments)

    monkeypatch.setattr(batch_size, "Trainer", on_cpu)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: None)
    monkeypatch.setattr(batch_size, "check_device", lambda config: None)
    return limited


def test_the_largest_batch_fits_and_is_kept_with_the_run(tmp_path: Path, small_memory: Callable[[int], None]) -> None:
    small_memory(7)
    solver = with_largest_batch(auto_task(), tmp_path).config.solver
    assert (solver.batch_size, solver.iterations) == (14, math.ceil(3 * 50 / 14))
    begun = with_largest_batch(auto_task(), tmp_path).config
    (tmp_path / "work").mkdir()
    (tmp_path / "work/config.yaml").write_text(yaml.safe_dump(begun.model_dump(mode="json")))
    small_memory(3)
    assert with_largest_batch(auto_task(), tmp_path).config == begun
    assert with_largest_batch(auto_task(base_lr=0.5), tmp_path).config.solver.batch_size == 6
    small_memory(1000)
    assert with_largest_batch(auto_task(), tmp_path / "other").config.solver.batch_size == 50
    small_memory(0)
    with pytest.raises(UserError, match=r"^toy: not even a batch of 2 fits the GPU; take smaller images"):
        with_largest_batch(auto_task(), tmp_path / "other")


def test_where_there_is_no_gpu_the_batch_size_is_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="scale test has device cuda, but torch sees no GPU"):
        with_largest_batch(auto_task(), tmp_path)


def test_on_a_cpu_the_batch_size_is_the_users_to_choose(tmp_path: Path) -> None:
    task = auto_task()
    task.config = task.config.model_copy(update={"device": "cpu"})
    with pytest.raises(UserError, match=r"^solver.batch_size auto needs device cuda, which tells when memory is full"):
        with_largest_batch(task, tmp_path)
    with pytest.raises(UserError, match=r"override 'solver.batch_size': must be at least 1, or auto, not 0"):
        resolve("baseline", 0, "test", ROOT, overrides={"solver.batch_size": 0})


def test_a_compiled_training_goes_on_to_the_same_bytes_under_the_same_names(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler")
    config = toy_config(compile=True, max_iter=6, checkpoint_every=2)
    train_toy(tmp_path / "run", config, stop_at=3)
    train_toy(tmp_path / "run", config)
    train_toy(tmp_path / "whole", config)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    train_toy(tmp_path / "plain", toy_config(max_iter=6))
    compiled, plain = (load_checkpoint(tmp_path / name / "model_final.pth")["model"] for name in ("run", "plain"))
    assert compiled.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=0, atol=1e-4)


def test_a_missing_toolchain_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> None:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", lambda function: failing)
    with pytest.raises(
        UserError, match=r"^solver.compile needs a toolchain .* \(no compiler at all\): install a C\+\+"
    ):
        Trainer(toy_config(compile=True), build_model(toy_config(), len(CLASSES)))
