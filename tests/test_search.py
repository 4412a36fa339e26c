"""The budget search: which trials there are, when they are given up, and that neither kills nor company change it."""

import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import toy_search
import yaml
from conftest import ROOT, edit_yaml, fill
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial
from own_process import processes
from toy_detector import toy_batches
from toy_search import RATES, ToyTask, make_toy_project, register_toy, rows, search_toy, write_search

from noisebox import graph
from noisebox.config import load_recipe, resolve
from noisebox.config.best import Trial, cell_of, ranked, read_trials, value_of, write_trials
from noisebox.config.search import HalvingConfig, RangeConfig, Search, WholeRange
from noisebox.errors import UserError
from noisebox.files import read_yaml
from noisebox.report.searches import history_plot, importance, ranges_of, write_search_report
from noisebox.search import study
from noisebox.search.adopt import adopt

HALVING = {"successive_halving": {"reduction_factor": 2, "min_resource": 1}}
SPACE = {
    "solver.base_lr": {"log_uniform": [1e-4, 1e-1]},
    "model.width": {"choice": [4, 6, 8]},
    "solver.weight_decay": {"uniform": [0.0, 0.5]},
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a project with the lineage `toy`."""
    register_toy(monkeypatch.setitem)
    monkeypatch.chdir(make_toy_project(tmp_path))
    return tmp_path


# What a file may say


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lineage": "toyy"}, "lineage: recipe 'toyy' is missing"),
        ({"lineage": "Toy"}, "lineage: 'Toy' is no lineage"),
        ({"budget": {}}, "give one of iters and epochs"),
        ({"budget": {"iters": 3, "epochs": 1}}, "give one of iters and epochs"),
        ({"budget": {"iters": 3, "images": 1}}, "'budget.images' does not exist; did you mean 'image_size'?"),
        ({"trials": None}, "give one of trials and space"),
        ({"space": SPACE, "count": 3}, "give one of trials and space"),
        ({"trials": []}, "trials"),
        ({"trials": [{"solver.bas_lr": 1}]}, "trials.0: override 'solver.bas_lr' does not exist; did you mean"),
        ({"trials": [{}, {"solver.base_lr": -1}]}, "trials.1: override 'solver.base_lr'"),
        ({"trials": [{"image.flip": 0}]}, "trials.0: 'image.flip' is no key of a recipe"),
        ({"trials": [{"solver.max_iter": 9}]}, "trials.0: 'solver.max_iter' is what budget says"),
        ({"trials": [{}, {"solver.batch_size": "auto"}]}, "trials.1: solver.batch_size is auto, here, in"),
        ({"trials": [{"model": {"width": 4}}]}, "trials.0: 'model' is a section"),
        ({"trials": "params/searches/none.json"}, "trials: params/searches/none.json does not exist"),
        ({"trials": "params/searches"}, "trials: params/searches cannot be read (Is a directory)"),
        ({"trials": None, "space": {}, "count": 3}, "space"),
        ({"trials": None, "space": SPACE}, "space and count go together"),
        ({"trials": None, "space": {"solver.base_lr": {}}, "count": 3}, "give one of uniform, log_uniform, choice"),
        ({"trials": None, "space": {"solver.base_lr": {"log_uniform": [0, 1]}}, "count": 3}, "must be above 0"),
        ({"trials": None, "space": {"solver.base_lr": {"uniform": [2, 1]}}, "count": 3}, "below the upper end 1"),
        ({"trials": None, "space": {"solver.base_lr": {"uniform": [-1, 1]}}, "count": 3}, "override 'solver.base_lr'"),
        ({"trials": None, "space": {"model.width": {"uniform": [4, 7.5]}}, "count": 3}, "should be a valid integer"),
        ({"trials": None, "space": {"model.width": {"choice": [4, "wide"]}}, "count": 3}, "override 'model.width'"),
        ({"pruning": {}}, "give successive_halving or early_stop_threshold"),
        ({"pruning": {"successive_halving": {"reduction_factor": 1}}}, "greater than or equal to 2"),
        ({"pruning": HALVING, "budget": {"iters": 3}}, "budget.evaluations is 1: no trial would be given up before"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_any_trial_starts(project: Path, changes: dict[str, Any], sentence: str) -> None:
    path = write_search(project, **changes)
    with pytest.raises(UserError) as told:
        Search(path, "toy")
    assert sentence in str(told.value) and str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("sampler", ["quasi_random", "tpe"])
def test_a_batch_size_that_is_yet_to_be_found_is_no_equal_cost(project: Path, sampler: str) -> None:
    edit_yaml(project / graph.scale_file("toy"), solver__batch_size="auto")
    for drawn in ({}, {"trials": None, "space": SPACE, "count": 2, "sampler": sampler}):
        with pytest.raises(UserError, match=r"batch_size is auto, here, in the recipe or in params/scales/toy\.yaml; "):
            Search(write_search(project, **drawn), "toy")
    sizes = [{"solver.batch_size": size} for size in (2, 4)]
    assert Search(write_search(project, trials=sizes), "toy").plan == sizes


def test_a_search_does_not_take_its_own_best(project: Path) -> None:
    recipe = {**read_yaml(project / "params/recipes/toy.yaml"), "from_search": {"name": "rates"}}
    (project / "params/recipes/toy.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match="recipe 'toy' takes the best of this very search"):
        Search(write_search(project), "toy")


def test_a_list_may_be_a_json_file(project: Path) -> None:
    listed = [{"solver.base_lr": 1e-4}, {"model.width": 8, "solver.decay_at": [0.5]}]
    (project / "list.json").write_text(json.dumps(listed))
    assert Search(write_search(project, trials="list.json"), "toy").plan == listed
    (project / "list.json").write_text("[{]")
    with pytest.raises(UserError, match=r"list\.json is not valid JSON"):
        Search(write_search(project, trials="list.json"), "toy")


def test_numbers_that_yaml_reads_as_text_are_numbers(project: Path) -> None:
    path = write_search(project, trials=None)
    (project / path).write_text((project / path).read_text() + "trials:\n  - {solver.base_lr: 1e-4}\n")
    assert Search(path, "toy").plan == [{"solver.base_lr": 1e-4}]


def test_a_longer_search_of_a_space_begins_as_the_shorter(project: Path) -> None:
    few, many = (Search(write_search(project, trials=None, space=SPACE, count=count), "toy").plan for count in (5, 40))
    assert many[:5] == few
    found = [values for values in many if values]
    assert all(
        1e-4 <= values["solver.base_lr"] <= 1e-1 and 0 <= values["solver.weight_decay"] <= 0.5 for values in found
    )
    decades = [math.floor(math.log10(values["solver.base_lr"])) for values in found]
    assert all(11 <= decades.count(decade) <= 16 for decade in (-4, -3, -2))  # 40 points spread over three decades
    assert {values["model.width"] for values in found} == {4, 6, 8}


@pytest.mark.parametrize("sampler", ["quasi_random", "tpe"])
def test_keys_of_whole_numbers_are_given_whole_numbers(project: Path, sampler: str) -> None:
    space = {"solver.warmup_iters": {"uniform": [0, 3]}, "model.width": {"log_uniform": [2, 40]}}
    changes = {"trials": None, "space": space, "sampler": sampler, "budget": {"iters": 1}}
    few = search_toy(write_search(project, count=4, **changes))
    many = search_toy(write_search(project, count=16, **changes))
    search_toy(write_search(project, "again", count=16, **changes))
    assert rows(project) == rows(project, "again")
    assert [trial.values for trial in many[:4]] == [trial.values for trial in few]
    assert {trial.status for trial in many} == {"completed"}
    assert {trial.values["solver.warmup_iters"] for trial in many} == {0, 1, 2, 3}
    widths = [trial.values["model.width"] for trial in many]
    assert all(type(width) is int and 2 <= width <= 40 for width in widths) and len(set(widths)) > 6


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0, 1, exclude_max=True), st.booleans())
def test_whole_numbers_lie_within_their_range(low: int, more: int, place: float, is_log: bool) -> None:
    ends = (low, low + more)
    whole = WholeRange(log_uniform=ends) if is_log else WholeRange(uniform=ends)
    assert low <= whole.at(place) <= low + more
    assert (whole.at(0.0), whole.at(1.0)) == ends


def test_the_budget_is_what_a_trial_gets(project: Path) -> None:
    budget = {"epochs": 0.5, "subset": 16, "image_size": 400, "evaluations": 1}
    config = Search(write_search(project, budget=budget), "toy").resolved({"solver.base_lr": 0.5})
    assert (config.solver.base_lr, config.solver.epochs, config.solver.subset_size) == (0.5, 0.5, 16)
    assert (config.image.train_short_edges, config.image.eval_short_edge, config.image.max_edge) == ([400], 400, 666)
    assert ToyTask(config).config.solver.iterations == 2


def test_the_budgets_image_size_stands_over_the_scales_schedule(project: Path) -> None:
    edit_yaml(project / graph.scale_file("toy"), image={"resize_schedule": [[1, 640], [2, 800]]})
    sized = Search(write_search(project, budget={"iters": 2, "image_size": 400}), "toy").resolved({}).image
    assert (sized.train_short_edges, sized.resize_schedule) == ([400], [])
    assert Search(write_search(project), "toy").resolved({}).image.resize_schedule == [(1, 640), (2, 800)]


def test_maps_have_the_size_of_their_dataset(project: Path) -> None:
    path = project / write_search(project, lineage="lss", budget={"iters": 2, "image_size": 32})
    with pytest.raises(UserError, match=r"rates\.yaml: budget\.image_size: the dataset says how large"):
        Search(path, "test", ROOT)


# What trials come to


def test_the_best_rate_wins_and_a_failure_is_told(project: Path) -> None:
    found = search_toy(
        write_search(project, trials=[*({"solver.base_lr": rate} for rate in RATES), {"solver.base_lr": 1e38}])
    )
    assert [trial.status for trial in found] == ["completed"] * 5 + ["failed"]
    assert "is nan at iteration" in found[5].reason or "is inf at iteration" in found[5].reason
    assert ranked(found)[-1].values == {"solver.base_lr": 1e-9}
    assert read_trials(project / graph.search_csv("rates"))[0].values == {"solver.base_lr": 3e-3}
    assert rows(project)[0] == ["trial_id", "status", "final_metric", "final_loss", "param_solver.base_lr", "reason"]
    assert not list((project / "searches").rglob("*.pth"))


def test_a_trial_is_the_training_that_its_recipe_gives(project: Path) -> None:
    """Metric and loss of a trial are those of `train` with the same configuration."""
    search_toy(write_search(project, trials=[{"solver.base_lr": 3e-2}]))
    trial = read_trials(project / graph.search_csv("rates"))[0]
    config = resolve("toy", 0, "toy", overrides={"solver.base_lr": 3e-2, "solver.eval_every": 3})

    from noisebox.training.loop import train

    task = ToyTask(config)
    train(config, project / "run", task.classes, toy_batches, task.data_hash, validate=task.validate)
    lines = [line.split(",") for line in (project / "run/metrics.csv").read_text().splitlines()]
    assert float(next(line[-1] for line in reversed(lines) if line[0] == "val")) == trial.metric
    assert float(next(line[3] for line in reversed(lines) if line[0] == "train")) == trial.loss


def test_early_stopping_gives_up_what_is_below(project: Path) -> None:
    found = search_toy(write_search(project))
    threshold = (ranked(found)[-2].score + ranked(found)[-1].score) / 2
    again = search_toy(write_search(project, "stopped", pruning={"early_stop_threshold": threshold}))
    assert again[1].status == "pruned" and again[2].status == "completed"


def test_halving_gives_up_what_brute_force_gives_up(project: Path) -> None:
    """The metrics at every evaluation, from a search that prunes nothing, decide what one that halves must do."""
    search_toy(write_search(project))
    curves = [
        [float(line.split(",")[-1]) for line in path.read_text().splitlines() if line.startswith("val")]
        for path in (project / f"searches/rates/trials/{number}/metrics.csv" for number in range(len(RATES)))
    ]
    found = search_toy(write_search(project, "halved", pruning=HALVING))
    assert [(trial.status, round(trial.metric or 0, 4)) for trial in found] == halved(curves, [0, 1])
    assert {trial.status for trial in found} == {"completed", "pruned"}


def halved(curves: Sequence[Sequence[float]], rungs: Sequence[int]) -> list[tuple[str, float]]:
    """Status and last metric of each trial, where at each rung the better half of those so far goes on."""
    ends: list[tuple[str, float]] = []
    reached: dict[int, list[float]] = {rung: [] for rung in rungs}
    for curve in curves:
        end = ("completed", curve[-1])
        for rung in rungs:
            reached[rung].append(curve[rung])
            better = sum(other > curve[rung] for other in reached[rung])
            if better >= max(1, len(reached[rung]) // 2):
                end = ("pruned", curve[rung])
                break
        ends.append(end)
    return ends


def test_nothing_is_given_up_at_its_last_evaluation(project: Path) -> None:
    """Twelve iterations are evaluated every second one, so six times where seven are asked for."""
    halving = {"successive_halving": {"reduction_factor": 2, "min_resource": 6}}
    path = write_search(project, budget={"iters": 12, "evaluations": 7}, pruning=halving)
    assert {trial.status for trial in search_toy(path)} == {"completed"}
    lines = (project / "searches/rates/trials/0/metrics.csv").read_text().splitlines()
    assert sum(line.startswith("val") for line in lines) == 6
    assert "each of 12 iterations, evaluated 6 times: " in write_search_report("rates", project)[0].read_text()


def test_rungs() -> None:
    assert list(HalvingConfig(reduction_factor=3, min_resource=2).rungs(54)) == [2, 6, 18]
    assert list(HalvingConfig(reduction_factor=2, min_resource=4).rungs(4)) == []


def test_each_trial_of_tpe_is_drawn_by_those_before_it(project: Path) -> None:
    changes = {"trials": None, "space": SPACE, "count": 12, "sampler": "tpe", "budget": {"iters": 2}}
    first = search_toy(write_search(project, **changes))
    again = search_toy(write_search(project, "again", **changes))
    assert [trial.values for trial in first] == [trial.values for trial in again]
    assert len({trial.values["solver.base_lr"] for trial in first}) == 12
    assert {type(trial.values["model.width"]) for trial in first} == {int}


def test_a_finished_search_is_not_run_again_unless_something_changed(project: Path) -> None:
    search_toy(write_search(project))
    written = (project / graph.search_csv("rates")).read_bytes()
    longer = [{"solver.base_lr": rate} for rate in (*RATES, 5e-3)]
    assert len(search_toy(write_search(project, trials=longer))) == 6
    assert (project / graph.search_csv("rates")).read_bytes().startswith(written)  # only the new one was run
    other = search_toy(write_search(project, budget={"iters": 3}))
    assert [trial.metric for trial in other] != [trial.metric for trial in read(written, project)]


def test_trials_of_a_recipe_that_was_edited_meanwhile_are_not_held_against_others(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, recipe = write_search(project), project / graph.recipe_file("toy")
    said = recipe.read_text()

    def editing(task: ToyTask, model: Any) -> float:
        edit_yaml(recipe, solver={"weight_decay": 0.5})
        return ToyTask.validate(task, model)

    changed = r"rates\.yaml: the search ends, because solver\.weight_decay was 0\.0, is now 0\.5"
    with monkeypatch.context() as patched, pytest.raises(UserError, match=changed):
        patched.setattr(toy_search, "open_task", type("Editing", (ToyTask,), {"validate": editing}))
        search_toy(path)
    assert not (project / graph.search_csv("rates")).exists()
    recipe.write_text(said)
    search_toy(path)
    search_toy(write_search(project, "undisturbed"))
    assert rows(project) == rows(project, "undisturbed")


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ({"trials": [{"solver.base_lr": 1e-3}]}, {"trials": [{"solver.base_lr": 1e-3}, {"solver.base_lr": 1e-1}]}),
        (
            {"trials": [{"solver.base_lr": 1e-3}, {"solver.base_lr": 2e-3}]},
            {"trials": [{"solver.base_lr": rate} for rate in (1e-3, 2e-3, 1e-1)]},
        ),
        (
            {"trials": [{"solver.decay_at": [0.5]}, {"model.batch_norm": True}]},
            {"trials": [{"solver.decay_at": [0.5]}, {"model.batch_norm": True}, {"solver.decay_at": []}, {}]},
        ),
        ({"trials": None, "space": SPACE, "count": 1}, {"trials": None, "space": SPACE, "count": 4}),
        (
            {"trials": None, "space": SPACE, "sampler": "tpe", "count": 1},
            {"trials": None, "space": SPACE, "sampler": "tpe", "count": 4},
        ),
    ],
)
def test_a_search_that_grew_comes_to_what_the_longer_one_does(
    project: Path, shorter: dict[str, Any], longer: dict[str, Any]
) -> None:
    search_toy(write_search(project, **shorter))
    first = rows(project)
    search_toy(write_search(project, **longer))
    search_toy(write_search(project, "whole", **longer))
    assert rows(project) == rows(project, "whole") and len(rows(project)) > len(first)


def test_a_study_whose_parameters_were_of_another_kind_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of one rate was a choice once."""
    before: Any = ({"solver.base_lr": "0.003"}, {"solver.base_lr": CategoricalDistribution(["0.003"])})
    with monkeypatch.context() as patch:
        patch.setattr(study, "_parameters", lambda values, space: before)
        search_toy(write_search(project, trials=[{"solver.base_lr": 3e-3}]))
    first = rows(project)
    search_toy(write_search(project))
    assert rows(project)[: len(first)] == first and len(rows(project)) == 1 + len(RATES)
    assert [trial.params for trial in in_optuna("rates")] == [before[0], {}, {}, {}, {}]


def test_optuna_is_told_the_parameters(project: Path) -> None:
    listed = [{"solver.base_lr": 1e-3, "solver.decay_at": [0.5], "model.batch_norm": True}, {"model.width": 8}]
    search_toy(write_search(project, trials=listed))
    assert [trial.params for trial in in_optuna("rates")] == [{"solver.base_lr": 1e-3}, {"model.width": 8}]
    space = {**SPACE, "solver.clip_norm": {"choice": [1, 10]}}  # which the solver has as 1.0 and 10.0
    found = search_toy(write_search(project, "drawn", trials=None, space=space, count=2))
    for trial, shown in zip(found, in_optuna("drawn"), strict=True):
        assert {key: value_of(str(value)) for key, value in shown.params.items()} == trial.values
        assert shown.distributions["solver.base_lr"] == FloatDistribution(1e-4, 1e-1, log=True)


def in_optuna(name: str) -> list[FrozenTrial]:
    """The trials as Optuna itself reads them."""
    return optuna.load_study(study_name=name, storage=f"sqlite:///searches/{name}/study.db").trials


def read(content: bytes, folder: Path) -> list[Trial]:
    (folder / "read.csv").write_bytes(content)
    return read_trials(folder / "read.csv")


def test_a_damaged_study_is_told(project: Path) -> None:
    path = write_search(project)
    search_toy(path)
    (project / "searches/rates/study.db").write_bytes(b"no database " * 100)
    with pytest.raises(UserError, match=r"study\.db cannot be used .* delete .*searches/rates and search again"):
        search_toy(path)


def test_a_full_disk_is_told_and_loses_nothing(
    project: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_search(project)
    search_toy(path)
    whole = rows(project)
    (project / "searches").rename(project / "before")
    (project / "searches").symlink_to(small_disk)

    def filling(task: ToyTask, model: Any) -> float:
        if (small_disk / "rates/trials/1").exists():
            fill(small_disk)
        return ToyTask.validate(task, model)

    full = r"the disk is full: \S*searches/rates/study\.db could not be written; free some space and run again to go on"
    with monkeypatch.context() as patched, pytest.raises(UserError, match=full):
        patched.setattr(toy_search, "open_task", type("Filling", (ToyTask,), {"validate": filling}))
        search_toy(path)
    with pytest.raises(UserError, match=r"the disk is full|No space left"):
        search_toy(path)
    (small_disk / "filler").unlink()
    assert len(in_optuna("rates")) == len(RATES) and in_optuna("rates")[0].state.is_finished()
    search_toy(path)
    assert rows(project) == whole


# Kills and company


def search_and_die(root: Path, path: Path, moment: int) -> None:
    """Search; at the given one of its operations on files of the search (the first is 1), end as by kill -9."""
    register_toy()
    os.chdir(root)
    passed = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal passed
        if any("searches/" in str(argument) for argument in arguments if isinstance(argument, str | os.PathLike)):
            passed += 1
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    search_toy(path)
    (root / "operations").write_text(str(passed))


def started(root: Path, path: Path, moment: int = 0) -> Any:
    process = processes.Process(target=search_and_die, args=(root, path, moment))
    process.start()
    return process


def test_killed_again_and_again_it_ends_at_the_same_rows(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_search(project, pruning=HALVING)
    started(project, path).join()
    count = int((project / "operations").read_text())
    other = make_toy_project(tmp_path_factory.mktemp("killed"))
    write_search(other, pruning=HALVING)
    kills = 0
    while not (other / "operations").exists():
        process = started(other, path, count // 3 + 17 * kills)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert kills < 20
    assert kills >= 3 and rows(other) == rows(project)


def test_several_processes_share_the_trials_and_change_nothing(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_search(project, pruning=HALVING)
    search_toy(path)
    other = make_toy_project(tmp_path_factory.mktemp("shared"))
    write_search(other, pruning=HALVING)
    killed = started(other, path, 100)
    killed.join()
    sharing = [started(other, path) for _ in range(2)]
    for process in sharing:
        process.join()
    assert [process.exitcode for process in (killed, *sharing)] == [-signal.SIGKILL, 0, 0]
    assert rows(other) == rows(project)


# What becomes of the best


def test_the_best_become_recipes_that_resolve(project: Path) -> None:
    path = write_search(project, trials=None, space=SPACE, count=4)
    best = ranked(search_toy(path))
    said = list(adopt(path, 2, "toy"))
    assert said == list(adopt(path, 2, "toy"))  # again is as good
    for rank in (1, 2):
        assert f"params/recipes/rates_best{rank}.yaml" in said[rank - 1]
        config, values = resolve(f"rates_best{rank}", 0, "toy"), best[rank - 1].values
        assert config.solver.base_lr == values["solver.base_lr"] and config.model.width == values["model.width"]
        assert config.solver.max_iter == 12 and config.family == "toy"
        assert f"trial {best[rank - 1].number} of search rates" in load_recipe(f"rates_best{rank}").description
    (project / "params/recipes/rates_best2.yaml").write_text("description: mine\n")
    (project / "params/recipes/rates_best1.yaml").unlink()
    with pytest.raises(UserError, match="exists and says something else"):
        list(adopt(path, 2, "toy"))
    assert not (project / "params/recipes/rates_best1.yaml").exists()
    with pytest.raises(UserError, match="4 trials completed, so 5 cannot be taken"):
        list(adopt(path, 5, "toy"))


def test_the_best_of_a_recipe_that_takes_the_best_have_both(project: Path) -> None:
    recipe = {"description": "as found", "family": "toy", "from_search": {"name": "rates"}}
    (project / "params/recipes/tuned.yaml").write_text(yaml.safe_dump(recipe))
    write_trials(project / graph.search_csv("rates"), [Trial(0, "completed", 2, 1, 1, {"model.width": 8})])
    path = write_search(project, "decay", lineage="tuned", trials=[{"solver.weight_decay": 0.1}])
    search_toy(path)
    list(adopt(path, 1, "toy"))
    adopted = resolve("decay_best1", 0, "toy")
    assert (adopted.model.width, adopted.solver.weight_decay) == (8, 0.1)


def test_a_lineage_takes_the_best(project: Path) -> None:
    recipe = {
        "description": "as found",
        "family": "toy",
        "finetune": {"base_lr": 0.5},
        "from_search": {"name": "rates"},
    }
    (project / "params/recipes/tuned.yaml").write_text(yaml.safe_dump(recipe))
    assert resolve("tuned", 0, "toy", smoke=True).solver.base_lr == 1e-2
    with pytest.raises(
        UserError, match=r"rates\.csv does not exist; make it with: noisebox search params/searches/rates"
    ):
        resolve("tuned", 0, "toy")
    search_toy(write_search(project, trials=[{"solver.base_lr": rate, "model.width": 8} for rate in RATES]))
    best = ranked(read_trials(project / graph.search_csv("rates")))
    assert resolve("tuned", 0, "toy").solver.base_lr == best[0].values["solver.base_lr"]
    assert resolve("toy+tuned", 0, "toy").solver.base_lr == best[0].values["solver.base_lr"]
    assert resolve("tuned+toy", 0, "toy").model.width == 8 and resolve("tuned+toy", 0, "toy").solver.base_lr == 1e-2
    recipe["from_search"] = {"name": "rates", "rank": 6}
    (project / "params/recipes/tuned.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match="5 trials completed, so there is no best of rank 6"):
        resolve("tuned", 0, "toy")


def test_what_was_found_best_stands_over_the_scales_size_of_the_recipe(project: Path) -> None:
    recipe = {"description": "as found", "family": "toy", "model": {"width": 5}, "from_search": {"name": "rates"}}
    (project / "params/recipes/tuned.yaml").write_text(yaml.safe_dump(recipe))
    sizes = {"toy": {"width": 3}, "tuned": {"width": 4, "batch_norm": True}}
    edit_yaml(project / graph.scale_file("toy"), models=sizes)
    assert resolve("tuned", 0, "toy", smoke=True).model.width == 4
    write_trials(project / graph.search_csv("rates"), [scored(1.0), Trial(1, "completed", 2, 1, 1, {"model.width": 8})])
    found = resolve("tuned", 0, "toy").model
    assert (found.width, found.batch_norm) == (8, True)
    write_trials(project / graph.search_csv("rates"), [Trial(0, "completed", 2, 1, 1, {"model.width": "wide"})])
    with pytest.raises(UserError, match=r"recipes/tuned\.yaml: model\.width: input should be a valid integer"):
        resolve("tuned", 0, "toy")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    )
)
def test_a_cell_gives_its_value_back(value: Any) -> None:
    assert value_of(cell_of(value)) == value and cell_of(value)


def test_a_table_that_is_none_is_told_by_line(project: Path) -> None:
    trials = [
        Trial(0, "completed", 1.0, 2.0, 3.0, {"solver.base_lr": 0.1}),
        Trial(1, "failed", None, None, 0.1, {}, "a, b"),
    ]
    write_trials(project / "t.csv", trials)
    assert read_trials(project / "t.csv") == trials
    (project / "t.csv").write_text((project / "t.csv").read_text().replace("failed", "lost"))
    with pytest.raises(UserError, match=r"t\.csv, line 3: this is no row"):
        read_trials(project / "t.csv")


@pytest.mark.parametrize(
    ("encoding", "cell", "sentence"),
    [
        ("latin-1", "0.1", r"t\.csv is not a table in UTF-8 text: .* can't decode byte 0xea"),
        *[
            ("utf-8", cell, rf"t\.csv, line 2: column 'param_solver\.base_lr' must be a finite number, not '{cell}'")
            for cell in ("NaN", "-Infinity", "1e999")
        ],
    ],
)
def test_a_table_that_was_edited_is_told(project: Path, encoding: str, cell: str, sentence: str) -> None:
    trials = [
        Trial(0, "completed", 1.0, 2.0, 3.0, {"solver.base_lr": 0.1}),
        Trial(1, "failed", None, None, 0.1, {"solver.base_lr": 0.2}, "arrêté"),
    ]
    write_trials(project / "t.csv", trials)
    text = (project / "t.csv").read_text()
    (project / "t.csv").write_text(text.replace("3.0,0.1", f"3.0,{cell}"), encoding=encoding)
    with pytest.raises(UserError, match=sentence):
        read_trials(project / "t.csv")
    (project / "t.csv").write_text(text, encoding="utf-8-sig")
    assert read_trials(project / "t.csv") == trials, "a byte order mark, as spreadsheets write it, is no text"


# The page


def scored(score: float, number: int = 0, **values: Any) -> Trial:
    return Trial(number, "completed", score, 1.0, 1.0, {f"solver.{key}": value for key, value in values.items()})


def test_importance_finds_the_key_that_decides() -> None:
    trials = [
        scored(-abs(math.log10(rate) + 3) + 10, number, base_lr=rate, clip_norm=(number * 7) % 16 + 1)
        for number, rate in enumerate(10 ** (-5 + 4 * place / 15) for place in range(16))
    ]
    shares = importance(trials, ranges_of(trials))
    assert shares["solver.base_lr"] > 3 * shares["solver.clip_norm"] and math.isclose(sum(shares.values()), 1)
    assert importance(trials[:3], ranges_of(trials)) == {}
    assert importance([scored(1, number, base_lr=number + 1) for number in range(9)], ranges_of(trials)) == {}


def test_a_trial_without_a_metric_is_not_drawn_at_zero(tmp_path: Path) -> None:
    trials = [Trial(0, "completed", 40.0, 1.0, 1.0, {}), Trial(1, "completed", 42.0, 1.0, 1.0, {})]
    failed = Trial(2, "failed", None, None, 1.0, {}, "loss is nan")
    for name, some in (("some", trials), ("all", [*trials, failed]), ("none", [failed])):
        history_plot(some, {}, tmp_path / f"{name}.png")
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "some.png").read_bytes()
    assert (tmp_path / "none.png").exists()


def test_spans() -> None:
    assert RangeConfig.spanning([1e-4, 1e-2]).log_uniform == (1e-4, 1e-2)
    assert RangeConfig.spanning([0, 5]).uniform == (0, 5)
    assert RangeConfig.spanning([2, 2]).choice == [2]
    assert RangeConfig.spanning([True, False]).choice == [True, False]
    assert RangeConfig.spanning([[0.5], "topk", [0.5]]).choice == [[0.5], "topk"]


@pytest.mark.parametrize("count", [1, 5])
def test_the_page_is_the_same_bytes_again(project: Path, count: int) -> None:
    """With one trial, too, which has no importance."""
    trials = [{"solver.base_lr": rate, "model.width": 4} for rate in [*RATES, 1e38]][-count - 1 :]
    search_toy(write_search(project, trials=trials, pruning=HALVING))
    paths = write_search_report("rates", project)
    assert [path.relative_to(project).as_posix() for path in paths] == graph.search_report_outputs("rates")
    first = [path.read_bytes() for path in paths]
    write_search_report("rates", project)
    assert [path.read_bytes() for path in paths] == first
    page = paths[0].read_text()
    assert f"{count + 1} trials of `toy`" in page and f"Trial {count} failed: toy seed0:" in page
    best = ranked(read_trials(project / graph.search_csv("rates")))[0]
    assert f"|    1 | {best.number:5} | completed | {best.metric:6.2f} |" in page
