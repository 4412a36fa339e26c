"""`noisebox train` with options: what is typed stands over params/, and what comes of it keeps out of the graph."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import edit_yaml

from noisebox.config import resolve
from noisebox.models import build_model
from noisebox.training import loop
from noisebox.training.checkpoint import load_checkpoint, save_checkpoint

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: params/ of its own, and the datasets of scale `test`."""
    for name in ("data", "depth_gt"):
        (tmp_path / name).symlink_to(datasets / name)
    for file in (datasets / "params").rglob("*.yaml"):
        copy = tmp_path / file.relative_to(datasets)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_options_stand_over_params_and_the_try_lies_beside_the_runs(here: Path, command_line: CommandLine) -> None:
    code, said, _ = command_line(
        "train", "baseline", "--seed", 3, "--epochs", 1.5, "--batch-size", 4, "--accumulate", 2, "--clip-norm", 0.5,
        "--subset-size", 3, "--subset-seed", 1, "--precision", "bf16", "--resize-schedule", "[[1, 32], [2, 64]]",
        "--set", "solver.base_lr=1e-4", "--set", "model.num_proposals=5",
    )  # fmt: skip
    assert code == 0
    assert said.startswith("baseline seed3 goes to tries/baseline/seed3, with precision bf16, solver.epochs 1.5, ")
    assert said.splitlines()[-1] == "tries/baseline/seed3/model_final.pth"
    assert not (here / "runs").exists() and (here / "logs/try/baseline/seed3.log").exists()
    config = yaml.safe_load((here / "tries/baseline/seed3/config.yaml").read_text())
    expected = {
        "epochs": 1.5, "max_iter": 2, "batch_size": 4, "accumulate": 2, "clip_norm": 0.5, "subset_size": 3,
        "subset_seed": 1, "base_lr": 1e-4,
    }  # fmt: skip
    assert {key: config["solver"][key] for key in expected} == expected
    assert (config["precision"], config["model"]["num_proposals"]) == ("bf16", 5)
    assert config["image"]["resize_schedule"] == [[1, 32], [2, 64]]


def test_a_profile_needs_no_parent_and_leaves_all_of_a_run_alone(here: Path, command_line: CommandLine) -> None:
    code, said, told = command_line("train", "baseline+finetune", "--profile", "--profile-steps", 1, "--iters", 9)
    assert code == 0, told
    assert said.splitlines()[-1].startswith("traces/baseline+finetune/seed0.json.gz: open it") and "tries/" not in said
    assert not any((here / name).exists() for name in ("runs", "tries", "logs/train", "logs/try"))


def test_a_finished_try_is_not_replaced_by_another(here: Path, command_line: CommandLine) -> None:
    assert command_line("train", "baseline", "--iters", 1)[0] == 0
    final = here / "tries/baseline/seed0/model_final.pth"
    first = final.read_bytes()
    assert command_line("train", "baseline", "--iters", 1)[0] == 0 and final.read_bytes() == first
    code, _, told = command_line("train", "baseline", "--iters", 2)
    assert (code, final.read_bytes()) == (2, first)
    assert "tries/baseline/seed0 holds a finished run, of which solver.max_iter was 1, is now 2: name another" in told
    assert command_line("train", "baseline", "--iters", 2, "--output-dir", "elsewhere")[0] == 0
    (here / "papers/work").mkdir(parents=True)
    (here / "papers/work/thesis.txt").write_text("all of it")
    code, _, told = command_line("train", "baseline", "--iters", 2, "--output-dir", "papers")
    assert (code, (here / "papers/work/thesis.txt").read_text()) == (2, "all of it")
    assert "papers holds other files than a run's; name an empty or a new folder with --output-dir" in told
    code, _, told = command_line("train", "baseline", "--output-dir", "papers", "--if-changed", "fresh")
    assert (code, (here / "papers/work/thesis.txt").read_text()) == (2, "all of it")
    assert "papers holds work, which no training of noisebox made and this one would replace" in told
    options = ("train", "baseline", "--iters", 1, "--start", "elsewhere/model_final.pth")
    code, _, told = command_line(*options)
    assert (code, final.read_bytes()) == (2, first)
    assert "tries/baseline/seed0 holds a finished run, of which parent changed: name another --output-dir" in told
    assert command_line(*options, "--if-changed", "fresh")[0] == 0 and final.read_bytes() != first
    assert command_line(*options)[0] == 0
    assert command_line("train", "baseline", "--iters", 2, "--if-changed", "fresh")[0] == 0
    assert load_checkpoint(final)["iteration"] == 2


def test_a_try_is_not_put_among_the_graphs_runs(here: Path, command_line: CommandLine) -> None:
    """There both engines, and `noisebox evaluate`, would take it for what params/ say."""
    for place in ("runs/baseline/seed0", here / "tries/../runs/mine"):
        code, _, told = command_line("train", "baseline", "--iters", 1, "--output-dir", place)
        assert code == 2 and f"{place} lies in runs/, which holds what the graph trains" in told
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "mistake", [("--start", "nowhere.pth"), ("--start", "params"), ("--set", "model.backbone=resnet19")]
)
def test_what_was_refused_leaves_its_folder_to_the_next(
    here: Path, command_line: CommandLine, mistake: tuple[str, str]
) -> None:
    for place in ((), ("--output-dir", "elsewhere")):
        assert command_line("train", "baseline", "--iters", 1, *mistake, *place)[0] == 2
        assert command_line("train", "baseline", "--iters", 1, *place)[0] == 0


def test_what_was_trained_on_other_data_is_not_evaluated(here: Path, command_line: CommandLine) -> None:
    assert command_line("train", "baseline")[0] == 0
    manifest = here / "data/detection.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"hash": "0" * 64}))
    code, _, told = command_line("evaluate", "baseline")
    was = f"trained on 'world_test' with hash {content['hash'][:12]}, but data/detection.json describes 'world_test'"
    assert code == 2 and f"{was} with hash 000000000000: bring that data back, or train it again with: " in told
    assert not (here / "evals").exists()
    manifest.write_text(json.dumps(content))
    assert command_line("evaluate", "baseline")[0] == 0


def test_what_params_no_longer_say_is_not_published(
    here: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe edited while an engine trains it: the files would be newer than the recipe, and so current to both."""
    recipe, run = here / "params/recipes/baseline.yaml", here / "runs/baseline/seed0"
    said, finish = recipe.read_text(), loop._Training.finish

    def edit_meanwhile(*anything: object) -> None:
        edit_yaml(recipe, solver__lr_factor=0.5)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Training, "finish", lambda training: [finish(training), edit_meanwhile()])
        code, _, told = command_line("train", "baseline", "--if-changed", "fresh")
    assert code == 2 and not (run / "model_final.pth").exists()
    assert "params/ say another thing by now: solver.lr_factor was 1.0, is now 0.5; run again to train it so" in told
    recipe.write_text(said)
    assert command_line("train", "baseline", "--if-changed", "fresh")[0] == 0
    assert "going on after iteration 6" in (here / "logs/train/baseline/seed0.log").read_text()
    edit_meanwhile()
    assert command_line("train", "baseline", "--if-changed", "fresh")[0] == 0
    assert load_checkpoint(run / "model_final.pth")["config"]["solver"]["lr_factor"] == 0.5


def test_what_no_weight_depends_on_may_change_while_it_is_trained(
    here: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = loop._Training.finish

    def edit_meanwhile(training: loop._Training) -> None:
        finish(training)
        edit_yaml(here / "params/scales/test.yaml", solver__log_every=3)

    monkeypatch.setattr(loop._Training, "finish", edit_meanwhile)
    assert command_line("train", "baseline", "--if-changed", "fresh")[0] == 0
    assert (here / "runs/baseline/seed0/model_final.pth").exists()


def test_what_trains_a_try_again_is_told_with_its_options(here: Path, command_line: CommandLine) -> None:
    of_try = ("--scale", "test", "--dataset", "world_test")
    assert command_line("train", "baseline", *of_try)[0] == 0
    record = here / "tries/baseline/test-world_test-seed0/run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"data_hash": "0" * 64}))
    code, _, told = command_line("evaluate", "baseline", *of_try)
    assert code == 2 and told.endswith("noisebox train baseline --seed 0 --scale test --dataset world_test\n")


def test_a_training_starts_from_any_checkpoint_of_weights(here: Path, command_line: CommandLine) -> None:
    model = build_model(resolve("baseline", 7, "test"), 3)
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    save_checkpoint(here / "given.pth", {"model": backbone})
    options = ("--iters", 1, "--set", "solver.backbone_multiplier=0", "--start", "given.pth")
    assert command_line("train", "baseline", *options)[0] == 0
    parent = json.loads((here / "tries/baseline/seed0/run.json").read_text())["parent"]
    assert parent["checkpoint"] == "given.pth" and set(parent["loaded"]) == set(backbone) and not parent["unused"]
    trained = load_checkpoint(here / "tries/baseline/seed0/model_final.pth")["model"]
    assert all(torch.equal(trained[name], value) for name, value in backbone.items())
    code, _, told = command_line("train", "baseline", *options[:-1], "nowhere.pth")
    assert code == 2 and "nowhere.pth does not exist" in told


def test_mistakes_in_options_are_one_sentence_and_nothing_starts(here: Path, command_line: CommandLine) -> None:
    for options, sentence in {
        ("--set", "solver.base_lrr=1"): "override 'solver.base_lrr' does not exist; did you mean 'base_lr'?",
        ("--set", "solver.base_lr"): "--set takes KEY=VALUE, such as solver.base_lr=0.001, not 'solver.base_lr'",
        ("--set", "solver.base_lr=["): "override 'solver.base_lr': '[' is not valid YAML",
        ("--subset-size", 9): "solver.subset_size 9 is more than world_test/train has: 8 images",
        ("--iters", 3, "--epochs", 3): "override 'solver' has both max_iter and epochs",
        ("--batch-size", "auto"): "solver.batch_size auto needs device cuda",
        ("--precision", "fp16"): "precision fp16 needs device cuda; on cpu use bf16 or fp32",
        ("--resize-schedule", "[[2, 64]]"): "the epochs of resize_schedule must rise from 1, not be [2]",
    }.items():
        code, _, told = command_line("train", "baseline", *options)
        lines = [line for line in told.splitlines() if line.startswith("noisebox: ")]
        assert code == 2 and len(lines) == 1 and sentence in lines[0], (options, told)
    assert not (here / "tries").exists() and not (here / "runs").exists()


def test_a_changed_training_is_refused_unless_told_what_to_do(
    here: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("noisebox.training.loop._Training.finish", ended)
        with pytest.raises(RuntimeError, match="as a kill does"):
            command_line("train", "baseline")
    edit_yaml(here / "params/scales/test.yaml", solver__base_lr=0.5)
    for _ in range(2):
        code, _, told = command_line("train", "baseline")
        assert code == 2 and "because solver.base_lr was 0.001, is now 0.5; add --if-changed resume to go on" in told
    assert command_line("train", "baseline", "--if-changed", "resume")[0] == 0
    record = json.loads((here / "runs/baseline/seed0/run.json").read_text())
    assert record["changes"] == [{"after_iteration": 6, "what": "solver.base_lr was 0.001, is now 0.5"}]


def ended(self: object) -> None:
    raise RuntimeError("as a kill does")
