"""A training that is killed, refused or out of space, and started again, ends at the bytes of an uninterrupted one."""

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, edit_yaml, fill
from own_process import processes
from toy_detector import CLASSES, ToyDetector, register, toy_ap, toy_batch, toy_batches, toy_config

from noisebox import cli, graph
from noisebox.config.diffusiondet import DistillConfig
from noisebox.data.catalog import prepare_dataset
from noisebox.errors import UserError
from noisebox.files import discard_folder
from noisebox.randomness import numpy_generator
from noisebox.structures import Batch
from noisebox.training.checkpoint import load_checkpoint
from noisebox.training.folder import claimed, reopen
from noisebox.training.loop import train

DATA_HASH = "d" * 64
CONFIG = {"eval_every": 6, "log_every": 5, "checkpoint_every": 4}


pytestmark = pytest.mark.usefixtures("toy_family")


def train_toy(
    run: Path, batches: Callable[[int, int], Iterator[Batch]] = toy_batches, keep: bool = False, **solver: Any
) -> None:
    """As the engines do: where something changed, anew."""
    config = toy_config(**{**CONFIG, **solver})
    train(config, run, CLASSES, batches, DATA_HASH, validate=toy_ap, root=run.parent, if_changed="fresh", keep=keep)


train_kept = partial(train_toy, keep=True)


def train_student(run: Path, batches: Callable[[int, int], Iterator[Batch]] = toy_batches) -> None:
    """Distil from the run `teacher` beside `run`."""
    config = toy_config(lineage="toy+student", seed=4, distill=DistillConfig(kind="consistency"), **CONFIG)
    teacher = run.parent / "teacher/model_final.pth"
    train(
        config, run, CLASSES, batches, DATA_HASH,
        validate=toy_ap, teacher=teacher, root=run.parent, if_changed="fresh",
    )  # fmt: skip


def train_recipe(run: Path) -> None:
    """What `noisebox train` does of the recipe, in the project around `runs/<recipe>/seed0`."""
    os.chdir(run.parents[2])
    cli.train.train(run.parent.name, 0)


def train_and_die(work: Callable[[Path], None], run: Path, moment: int) -> None:
    """Train; at the given one of its operations on files of the run (the first is 1), end as by kill -9."""
    register()
    passed = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal passed
        paths = [Path.cwd() / argument for argument in arguments if isinstance(argument, str | os.PathLike)]
        if any(path.is_relative_to(run) for path in paths):
            passed += 1
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    work(run)
    (run.parent / f"{run.name}.operations").write_text(str(passed))


def train_in_child(run: Path, moment: int = 0, work: Callable[[Path], None] = train_toy) -> int | None:
    child = processes.Process(target=train_and_die, args=(work, run, moment))
    child.start()
    child.join()
    return child.exitcode


def files_of(run: Path) -> dict[str, bytes]:
    """All that a run leaves, but for the one file that tells the time, and second names."""
    return {path.name: path.read_bytes() for path in run.iterdir() if path.name not in ("run.json", graph.FINISHED)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_in_child(run) == 0
    assert sorted(path.name for path in run.iterdir()) == sorted(graph.RUN_FILES)
    return run


def operations(run: Path) -> int:
    return int((run.parent / f"{run.name}.operations").read_text())


@pytest.mark.parametrize("recipe", ["baseline", "detr"])
def test_the_real_detectors_end_at_the_same_bytes_as_well(tmp_path: Path, recipe: str) -> None:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    edit_yaml(tmp_path / "params/experiment.yaml", scale="test")
    edit_yaml(tmp_path / "params/scales/test.yaml", solver__eval_every=3, solver__ema_decay=0.5, solver__accumulate=2)
    # Six steps of two from eight images, so the images grow before the fifth.
    edit_yaml(tmp_path / "params/scales/test.yaml", image__resize_schedule=[[1, 48], [2, 64]])
    prepare_dataset("world_test", tmp_path)
    run = tmp_path / f"runs/{recipe}/seed0"
    assert train_in_child(run, work=train_recipe) == 0
    whole = files_of(run)
    assert train_in_child(run, 100, train_recipe) == -signal.SIGKILL
    assert train_in_child(run, work=train_recipe) == 0
    assert json.loads((run / "run.json").read_text())["timing"]["resumed"] > 0
    assert files_of(run) == whole


def test_killed_once_anywhere_it_ends_at_the_same_bytes(uninterrupted: Path, tmp_path: Path) -> None:
    count = operations(uninterrupted)
    drawn = numpy_generator(0, "moments to kill").integers(1, count + 1, 7).tolist()
    for moment in sorted({*drawn, count - 1, count}):  # the last ones take `work/` away
        run = tmp_path / f"killed-{moment}"
        assert train_in_child(run, moment) == -signal.SIGKILL
        assert train_in_child(run) == 0
        assert files_of(run) == files_of(uninterrupted), moment


def test_killed_again_and_again_it_ends_at_the_same_bytes(uninterrupted: Path, tmp_path: Path) -> None:
    run, kills = tmp_path / "run", 0
    generator = numpy_generator(1, "lives")
    while train_in_child(run, int(generator.integers(60, 220))) == -signal.SIGKILL:
        kills += 1
        for name in graph.RUN_FILES:  # as both engines do before they start a job
            (run / name).unlink(missing_ok=True)
    assert kills > 3
    assert files_of(run) == files_of(uninterrupted)
    records = [json.loads((folder / "run.json").read_text()) for folder in (run, uninterrupted)]
    timings = [record.pop("timing") for record in records]
    assert records[0] == records[1]
    assert timings[0]["resumed"] > 0 == timings[1]["resumed"]
    assert timings[0]["wall_s_total"] > timings[0]["wall_s"]


def test_killed_by_another_process_at_any_time_it_ends_at_the_same_bytes(uninterrupted: Path, tmp_path: Path) -> None:
    for life, seconds in enumerate(numpy_generator(0, "seconds to live").uniform(0, 0.6, 3)):
        run = tmp_path / str(life)
        child = processes.Process(target=train_and_die, args=(train_toy, run, 0))
        child.start()
        child.join(seconds)
        child.kill()
        child.join()
        assert train_in_child(run) == 0
        assert files_of(run) == files_of(uninterrupted), seconds


def test_a_killed_distillation_ends_at_the_same_bytes(tmp_path: Path) -> None:
    train_toy(tmp_path / "teacher")
    whole = tmp_path / "whole"
    assert train_in_child(whole, work=train_student) == 0
    count = operations(whole)
    for moment in numpy_generator(2, "moments to kill").integers(count // 4, count + 1, 3).tolist():
        run = tmp_path / f"killed-{moment}"
        assert train_in_child(run, moment, train_student) == -signal.SIGKILL
        assert train_in_child(run, work=train_student) == 0
        assert files_of(run) == files_of(whole), moment
        records = [json.loads((folder / "run.json").read_text()) for folder in (run, whole)]
        assert records[0]["teacher"] == records[1]["teacher"]
    train_toy(tmp_path / "plain")
    assert files_of(whole)["model_final.pth"] != files_of(tmp_path / "plain")["model_final.pth"]


def test_another_teacher_starts_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_toy(tmp_path / "teacher")
    interrupted_run(tmp_path / "run", train_student)
    train_toy(tmp_path / "teacher", weight_decay=0.5)
    train_student(tmp_path / "run")
    assert "run: not going on with the interrupted training, because teacher changed" in caplog.text
    train_student(tmp_path / "whole")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    assert json.loads((tmp_path / "run/run.json").read_text())["timing"]["resumed"] == 0


def interrupted_run(run: Path, work: Callable[..., None] = train_toy) -> Path:
    """A run that stopped in its tenth step, after the checkpoint of the eighth."""

    def interrupting(start: int, stop: int) -> Iterator[Batch]:
        yield from toy_batches(start, 9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(run, interrupting)
    assert load_checkpoint(run / "work/last.pth")["iteration"] == 8
    return run


def test_a_row_of_monitors_that_lack_values_is_the_same_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(ToyDetector):
        def forward(self, batch: Batch, seed: int, step: int) -> dict[str, torch.Tensor]:
            width = torch.tensor(math.nan if step % 2 else float(step))
            return {**super().forward(batch, seed, step), "median_box_width": width}

    monkeypatch.setattr("toy_detector.ToyDetector", Watched)
    run = interrupted_run(tmp_path / "run")
    train_toy(run)
    train_toy(tmp_path / "whole")
    assert files_of(run) == files_of(tmp_path / "whole")
    header, _, _, row, *_ = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    told = dict(zip(header, row, strict=True))
    assert (told["step"], told["median_box_width"]) == ("10", "7"), "of the steps 6 and 8, one on each side of the kill"


def test_another_configuration_starts_over_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {"weight_decay": 0.5, "clip_norm": 0.5}
    train_toy(interrupted_run(tmp_path / "run"), **other)
    assert "because solver.weight_decay was 0.0001, is now 0.5, and 1 more" in caplog.text
    train_toy(tmp_path / "whole", **other)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    assert json.loads((tmp_path / "run/run.json").read_text())["timing"]["resumed"] == 0


def test_fewer_iterations_than_are_done_are_refused(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    shorter = toy_config(**CONFIG, max_iter=3)
    with pytest.raises(UserError, match="has done 8 iterations, more than the 3 that are asked for now: ask for more"):
        train(shorter, run, CLASSES, toy_batches, DATA_HASH, validate=toy_ap, if_changed="resume")
    train_toy(run)
    train_toy(tmp_path / "whole")
    assert files_of(run) == files_of(tmp_path / "whole")


def test_gone_on_with_a_finished_run_has_its_new_end_as_its_best_where_nothing_is_measured(tmp_path: Path) -> None:
    for asked in (4, 8):
        reopen(tmp_path / "run", "best.pth")
        config = toy_config(**CONFIG | {"eval_every": 0}, max_iter=asked)
        train(config, tmp_path / "run", CLASSES, toy_batches, DATA_HASH, if_changed="resume")
        ends = [load_checkpoint(tmp_path / "run" / name) for name in ("best.pth", "model_final.pth")]
        assert [end["iteration"] for end in ends] == [asked, asked]


def test_gone_on_with_a_finished_run_keeps_its_checkpoints_of_epochs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for asked in (4, 8):
        reopen(run, "best.pth")
        config = toy_config(**CONFIG, max_iter=asked, checkpoint_epochs=1)
        train(config, run, CLASSES, toy_batches, DATA_HASH, images=8, if_changed="resume")  # two steps of 4 an epoch
    kept = {path.name: load_checkpoint(path)["iteration"] for path in run.glob("checkpoint_epoch_*.pth")}
    assert kept == {f"checkpoint_epoch_{epoch}.pth": 2 * epoch for epoch in (1, 2, 3, 4)}


def test_other_classes_of_the_same_number_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_toy(tmp_path / "parent")
    parent, others = tmp_path / "parent/model_final.pth", CLASSES[::-1]
    train(toy_config(**CONFIG), tmp_path / "child", others, toy_batches, DATA_HASH, parent=parent)
    assert f"other classes: its weights of {CLASSES[0]} now stand for {others[0]}" in caplog.text
    caplog.clear()
    train(toy_config(**CONFIG), tmp_path / "same", CLASSES, toy_batches, DATA_HASH, parent=parent)
    assert "other classes" not in caplog.text


def test_other_data_or_code_or_another_parent_starts_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.py").write_text("one")
    monkeypatch.setitem(graph.FAMILY_CODE, "toy", ("model.py",))
    run = interrupted_run(tmp_path / "run")
    (tmp_path / "model.py").write_text("two")
    train_toy(run)
    assert "because code.model.py changed" in caplog.text
    again = {"validate": toy_ap, "root": tmp_path, "if_changed": "fresh"}
    config = toy_config(**CONFIG)
    train(config, interrupted_run(tmp_path / "run"), CLASSES, toy_batches, "other", **again)
    assert "because data changed" in caplog.text
    train_toy(tmp_path / "parent")
    parent = tmp_path / "parent/model_final.pth"
    train(config, interrupted_run(tmp_path / "run"), CLASSES, toy_batches, DATA_HASH, parent=parent, **again)
    assert "because parent changed" in caplog.text


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = interrupted_run(tmp_path / "run")
    last, previous = run / "work/last.pth", run / "work/previous.pth"
    assert load_checkpoint(previous)["iteration"] == 6
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(KeyboardInterrupt):
        train_toy(run, dying)
    assert "work/last.pth is damaged or missing; going on from the checkpoint before it" in caplog.text
    assert load_checkpoint(last)["iteration"] == 6 and not previous.exists()  # never the damaged one
    train_toy(run)
    train_toy(tmp_path / "whole")
    assert files_of(run) == files_of(tmp_path / "whole")


def test_a_checkpoint_that_cannot_be_opened_is_not_replaced_by_the_one_before(tmp_path: Path) -> None:
    work = interrupted_run(tmp_path / "run") / "work"
    (work / "last.pth").rename(work / "aside")
    (work / "last.pth").mkdir()  # as good as a file without the right to read it, which root always has
    with pytest.raises(UserError, match=r"last\.pth cannot be read \(Is a directory\)"):
        train_toy(tmp_path / "run")
    assert (work / "previous.pth").exists()
    (work / "last.pth").rmdir()
    (work / "aside").rename(work / "last.pth")
    train_toy(tmp_path / "run")
    train_toy(tmp_path / "whole")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def dying(start: int, stop: int) -> Iterator[Batch]:
    yield toy_batch(start)
    raise KeyboardInterrupt


def test_where_all_checkpoints_are_damaged_the_user_decides(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    for name in ("last.pth", "previous.pth"):
        path = run / "work" / name
        path.write_bytes(path.read_bytes()[:-100])
    best = (run / "work/best.pth").read_bytes()
    with pytest.raises(UserError, match=r"last\.pth and .*previous\.pth are damaged, .*; delete .*work to start anew"):
        train_toy(run)
    assert (run / "work/best.pth").read_bytes() == best
    shutil.rmtree(run / "work")
    train_toy(run)
    train_toy(tmp_path / "whole")
    assert files_of(run) == files_of(tmp_path / "whole")


def test_a_finished_run_is_trained_anew_when_asked(tmp_path: Path) -> None:
    seen: list[int] = []

    def counted(start: int, stop: int) -> Iterator[Batch]:
        seen.extend(range(start, stop))
        return toy_batches(start, stop)

    for _ in range(2):
        train_toy(tmp_path / "run", counted)
    assert seen == [*range(12), *range(12)]


def unnoted(run: Path) -> Path:
    """A finished run of which an engine that did not note its end has deleted what it published."""
    assert train_in_child(run, work=train_kept) == 0
    for name in graph.RUN_FILES:
        (run / name).unlink()
    return run


def test_a_finished_run_whose_engine_was_killed_is_not_trained_again(uninterrupted: Path, tmp_path: Path) -> None:
    run, seen = unnoted(tmp_path / "run"), []

    def counted(start: int, stop: int) -> Iterator[Batch]:
        seen.extend(range(start, stop))
        return toy_batches(start, stop)

    train_toy(run, counted, keep=True)
    assert (seen, files_of(run)) == ([], files_of(uninterrupted))
    assert json.loads((run / "run.json").read_text())["timing"]["resumed"] == 1
    assert (run / ".finished/last.pth").samefile(run / "last.pth"), "it may be deleted once more"
    discard_folder(run / graph.FINISHED)
    assert sorted(path.name for path in run.iterdir()) == sorted(graph.RUN_FILES)
    train_toy(run, counted)
    assert seen == [*range(12)], "noted, and asked for again"


def test_killed_while_a_finished_run_comes_back_it_ends_at_the_same_bytes(uninterrupted: Path, tmp_path: Path) -> None:
    left = unnoted(tmp_path / "left")
    whole = shutil.copytree(left, tmp_path / "whole")
    assert train_in_child(whole, work=train_kept) == 0
    for moment in numpy_generator(0, "moments to kill").integers(1, operations(whole) + 1, 5).tolist():
        run = shutil.copytree(left, tmp_path / f"killed-{moment}")
        assert train_in_child(run, moment, train_kept) == -signal.SIGKILL
        assert train_in_child(run, work=train_kept) == 0
        assert files_of(run) == files_of(uninterrupted), moment


def test_a_finished_run_of_another_configuration_does_not_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = unnoted(tmp_path / "run")
    train_toy(run, keep=True, max_iter=8)
    assert "trained to its end before, but no engine had noted it" in caplog.text
    assert "not going on with the interrupted training, because solver.max_iter" in caplog.text
    assert load_checkpoint(run / "model_final.pth")["iteration"] == 8


def test_a_complete_run_asked_for_again_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        train_toy(tmp_path / "run", keep=True)
        (tmp_path / "run/.finished/lock").touch()  # as a kill while it was made leaves it
    assert "no engine had noted it" not in caplog.text


def hold(run: Path, taken: Event) -> None:
    with claimed(run):
        taken.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[BaseProcess]:
    taken = processes.Event()
    child = processes.Process(target=hold, args=(tmp_path / "run", taken))
    child.start()
    assert taken.wait(60)
    yield child
    child.kill()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path, holder: BaseProcess) -> None:
    with pytest.raises(UserError, match=f"run is being trained by process {holder.pid}; wait until it ends"):
        train_toy(tmp_path / "run")
    holder.kill()
    holder.join()
    train_toy(tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file is in the way")
    with pytest.raises(UserError, match="run/work cannot be made"):
        train_toy(tmp_path / "run")


@pytest.mark.parametrize(
    ("log_every", "complaint"),
    [
        (12, r"the disk is full: .*last\.pth could not be written"),
        (6, r"metrics\.csv cannot be written \(No space left"),
    ],
)
def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(
    small_disk: Path, tmp_path: Path, log_every: int, complaint: str
) -> None:
    def filling(start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            if step == 5:
                fill(small_disk)
            yield toy_batch(step)

    settings = {"log_every": log_every, "eval_every": 0}
    with pytest.raises(UserError, match=complaint):
        train_toy(small_disk / "run", filling, **settings)
    for _ in range(2):
        with pytest.raises(UserError, match=r"disk is full|No space left"):
            train_toy(small_disk / "run", filling, **settings)
        assert load_checkpoint(small_disk / "run/work/last.pth")["iteration"] == 4
    (small_disk / "filler").unlink()
    train_toy(small_disk / "run", **settings)
    train_toy(tmp_path / "run", **settings)
    assert files_of(small_disk / "run") == files_of(tmp_path / "run")
