"""Every family learns a few images by heart: targets, losses and decoding agree; what does not learn is told why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noisebox import graph
from noisebox.config import resolve
from noisebox.tasks import open_task
from noisebox.training.overfit import Memory, overfit

pytest_plugins = ("reported_fixtures",)

# Recipe: what lets its family at scale `test` learn by heart in seconds.
FAMILIES: dict[str, dict[str, Any]] = {}


@pytest.mark.parametrize("recipe", FAMILIES)
def test_every_family_knows_by_heart_what_it_was_shown(
    recipe: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(datasets)
    overrides = {"solver.overfit": True, **FAMILIES[recipe]}
    task = open_task(resolve(recipe, 0, "test", smoke=True, overrides=overrides))
    memory = overfit(task, tmp_path / "run")
    assert memory.learnt, memory
    assert memory.enough >= 90


def test_what_is_not_learnt_is_told_with_what_to_check(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    for name in ("data", "params"):
        (tmp_path / name).symlink_to(datasets / name)
    monkeypatch.chdir(tmp_path)
    code, said, _ = command_line("overfit", "baseline", "--images", 2, "--iters", 4)
    assert code == 1
    first, term, *others = said.splitlines()
    assert first.startswith("baseline: only AP50 ") and first.endswith(" on the 2 images shown; check")
    assert term.startswith("- loss_") and " stayed high: " in term
    assert [line.split(":")[0] for line in others] == [
        "- category mapping", "- box frame and scale", "- learning rate", "- time",
    ]  # fmt: skip
    assert "peaked at 0.001; try --set solver.base_lr=0.003 and 0.000333" in said
    assert (tmp_path / graph.try_folder("baseline", "overfit") / "model_final.pth").exists()


def test_the_term_that_fell_least_is_named() -> None:
    memory = Memory("AP50", 12.0, 90.0, {"loss_ce": (2.0, 0.1), "loss_box": (8.0, 6.0), "loss_giou": (1.0, 0.7)})
    assert not memory.learnt and memory.stuck == "loss_box"
