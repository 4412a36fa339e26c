"""Two processes that torchrun starts train, evaluate, die and go on as one does."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import edit_yaml, small_experiment
from hypothesis import given
from hypothesis import strategies as st
from several_processes import evaluate, train_here

from noisebox import graph
from noisebox.errors import UserError
from noisebox.processes import rows_of

SCRIPT = Path(__file__).with_name("several_processes.py")
# Of every family; label diffusion and a teacher of both families that have one among them.
LINEAGES = (
    *("kitchen_sink", "baseline+distill_20to1", "detr"),
    *("yolc_teacher", "yolc_teacher+yolc_kd", "diffbev"),
)
# A student must have the same teacher to the last bit: twenty steps of sampling make much of little.
TEACHER = "baseline"
RATE, ITERATIONS = 1e-5, 2
FAILING = "only the last process sees that"


@pytest.fixture(scope="module")
def small_project(datasets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family at a low rate: AdamW makes a whole step of a gradient that is nothing but rounding, too."""
    root = tmp_path_factory.mktemp("small") / "project"
    shutil.copytree(datasets, root)
    edit_yaml(root / "params/experiment.yaml", **small_experiment(), bev__pictures=[0, 1])
    solver = {
        "base_lr": RATE, "max_iter": ITERATIONS, "warmup_iters": 0, "batch_size": 4, "accumulate": 2, "log_every": 1,
        "checkpoint_every": 1, "eval_every": 2, "ema_decay": 0.5,
    }  # fmt: skip
    settings = {f"solver__{key}": value for key, value in solver.items()}
    edit_yaml(root / "params/scales/test.yaml", **settings, finetune__max_iter=ITERATIONS, eval_batch_size=2)
    edit_yaml(root / "params/scales/test.yaml", families__yolc__finetune__max_iter=ITERATIONS)
    for recipe in ("kitchen_sink", "distill_20to1"):
        edit_yaml(root / f"params/recipes/{recipe}.yaml", solver__length=1.0)
    edit_yaml(root / "params/recipes/kitchen_sink.yaml", loss__federated={"classes": 2})
    return root


@pytest.fixture(scope="module")
def alone(small_project: Path) -> Path:
    """What one process trains."""
    root = shutil.copytree(small_project, small_project.with_name("alone"))
    with chdir(root):
        for lineage in (TEACHER, *LINEAGES):
            train_here(lineage)
    return root


@pytest.fixture(scope="module")
def shared(small_project: Path, alone: Path) -> Path:
    """What two processes train and evaluate; then one of them fails."""
    root = shutil.copytree(small_project, small_project.with_name("shared"))
    shutil.copytree(alone / "runs" / TEACHER, root / "runs" / TEACHER)
    done = torchrun(root, SCRIPT, *LINEAGES, "label_state!1")
    assert done.returncode == 1 and done.stderr.count(FAILING) == 1, done.stderr[-4000:]
    return root


def torchrun(root: Path, *command: str | Path) -> "subprocess.CompletedProcess[str]":
    """Two processes of one thread each; however they end, they must end."""
    return ended(root, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command)


def ended(root: Path, *command: str | Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    python = [sys.executable, *command]
    return subprocess.run(python, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=400)


def last_of(root: Path, lineage: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(root / f"runs/{lineage}/seed0/last.pth", weights_only=True)
    return state


@pytest.mark.parametrize("lineage", LINEAGES)
def test_every_step_is_that_of_one_process(alone: Path, shared: Path, lineage: str) -> None:
    runs = [root / f"runs/{lineage}/seed0" for root in (alone, shared)]
    assert sorted(path.name for path in runs[0].iterdir()) == sorted(path.name for path in runs[1].iterdir())
    one, two = (pd.read_csv(run / "metrics.csv") for run in runs)
    assert list(one.columns) == list(two.columns) and list(one["mode"]) == [*["train"] * ITERATIONS, "val"]
    terms = [name for name in one.columns if name.startswith(("loss", "L", "median"))]
    np.testing.assert_allclose(two[terms], one[terms], rtol=1e-5, atol=1e-5)
    assert [json.loads((run / "run.json").read_text())["processes"] for run in runs] == [1, 2]


@pytest.mark.parametrize("lineage", LINEAGES)
def test_gradients_and_weights_are_those_of_one_process(alone: Path, shared: Path, lineage: str) -> None:
    one, two = last_of(alone, lineage), last_of(shared, lineage)
    # Not the weights tell whether a gradient has the right length, but its mean over the steps does.
    gradients, others = (
        torch.cat([entry["exp_avg"].flatten() for entry in state["optimizer"]["state"].values()]).double()
        for state in (one, two)
    )
    assert (others - gradients).norm() <= 1e-4 * gradients.norm()
    weights, others = (torch.cat([w.flatten() for w in state["model"].values()]).double() for state in (one, two))
    assert (others - weights).abs().max() <= 2 * RATE * ITERATIONS
    assert (others - weights).abs().mean() <= RATE / 1000


@pytest.mark.parametrize("lineage", LINEAGES)
def test_an_evaluation_is_the_bytes_of_one_process(shared: Path, lineage: str) -> None:
    folder = shared / graph.evaluation_folder(lineage, 0)
    of_two = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "speed.tsv"}
    assert len(of_two) >= 5
    with chdir(shared):
        evaluate(lineage)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "speed.tsv"} == of_two


def test_killed_and_started_again_it_ends_at_the_same_bytes(small_project: Path, shared: Path) -> None:
    for attempt in range(3):  # on a busy machine torchrun may end the one that is left before it can tell
        root = shutil.copytree(small_project, small_project.with_name(f"killed{attempt}"))
        killed = torchrun(root, SCRIPT, "detr@1")
        assert killed.returncode == 1
        if told := killed.stderr.count("noisebox: process 0 of 2 is alone: another one ended"):
            break
    assert told == 1
    again = ended(root, "-m", "noisebox", "train", "detr", "--processes", "2")
    assert again.returncode == 0, again.stderr[-4000:]
    assert again.stderr.count("going on after iteration 1") == 1
    run, whole = (each / "runs/detr/seed0" for each in (root, shared))
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in run.iterdir()) == [".finished", *names], "it is not evaluated yet"
    assert [name for name in names if (run / name).read_bytes() != (whole / name).read_bytes()] == ["run.json"]


@given(parts=st.integers(1, 4), count=st.integers(1, 4), each=st.integers(1, 3))
def test_processes_share_every_part_of_a_batch(parts: int, count: int, each: int) -> None:
    part = count * each
    rows = [rows_of(parts * part, parts, number, count) for number in range(count)]
    for index in range(parts):
        of_part = [row for own in rows for row in own[index * each : (index + 1) * each]]
        assert of_part == list(range(index * part, (index + 1) * part))


def test_a_batch_that_cannot_be_shared_is_told() -> None:
    with pytest.raises(UserError, match=r"batch_size 8 cannot be shared by 3 devices.*a multiple of 6"):
        rows_of(8, 2, 0, 3)
