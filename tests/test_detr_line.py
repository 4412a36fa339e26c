"""DETR beside a detector that denoises, from end to end at scale `test`, and mistakes in it: one sentence each."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import edit_yaml
from typer.testing import CliRunner

from noisebox import graph
from noisebox.cli import app
from noisebox.config import load_experiment
from noisebox.errors import UserError
from noisebox.experiment import check_experiment

FINETUNED = "detr+detr_finetune"


def noisebox(*words: str) -> str:
    """A command in this process, and what it says; a mistake is raised as it is."""
    done = CliRunner().invoke(app, words)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def both(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with `baseline`, `detr` and its finetune, one train seed."""
    edit_yaml(
        project / "params/experiment.yaml",
        train_seeds=[0],
        lineages=["baseline"],
        asked={"baseline": ["main"]},
        pictures={"images": 2, "lineages": ["baseline", "detr"]},
        detr__recipes=["detr", "detr_finetune"],
        detr__scratch=["detr"],
        detr__parents={"detr_finetune": ["detr"]},
        detr__lineages=["detr", FINETUNED],
    )
    monkeypatch.chdir(project)
    return project


def test_both_families_go_from_data_to_one_table(both: Path) -> None:
    noisebox("data", "detection")
    noisebox("smoke", "detr")
    for lineage in ("baseline", "detr", FINETUNED):
        noisebox("train", lineage)
        noisebox("evaluate", lineage)
        for path in graph.evaluation_outputs(lineage, 0):
            assert (both / path).exists()
    results = pd.read_csv(both / graph.evaluation_folder("detr", 0) / "results.tsv", sep="\t")
    assert results[["eval_seed", "sample_step", "images"]].values.tolist() == [[0, 1, results["images"][0]]]
    broken_down = json.loads((both / graph.evaluation_folder("detr", 0) / "breakdown.json").read_text())
    assert (broken_down["sample_step"], broken_down["eval_seeds"]) == (1, [0])
    parent = json.loads((both / graph.run_folder(FINETUNED, 0) / "run.json").read_text())["parent"]
    assert parent["new"] == parent["unused"] == [] and parent["checkpoint"] == graph.checkpoint("detr", 0)

    noisebox("report")
    main = pd.read_csv(both / "reports/tables/main.tsv", sep="\t")
    assert main["run"].tolist() == ["baseline", "baseline", "detr", FINETUNED]
    assert main["sample_step"].fillna(0).tolist() == [1, 2, 0, 0]
    assert main["AP"].tolist()[2] == results["AP"][0]
    assert "6 rows of results evaluated again" in noisebox("verify", "--rows", "9")
    assert noisebox("freeze", "paper", "--lineages", "detr").startswith("deliverables/paper")
    (both / "table.yaml").write_text("columns: [AP, FPS]\nrows: [{lineage: detr, name: DETR}]\n")
    assert f"{results['AP'][0]:.2f}" in noisebox("table", "table.yaml")

    images = both / "data/world_test/images/val"
    noisebox("predict", "detr", "--images", str(images), "--score", "0")
    assert len(json.loads((both / "predictions/detr/seed0/images.json").read_text())["images"]) == results["images"][0]
    noisebox("show", "detr", "baseline", "--images", "000001", "--steps", "2")
    shown = {path.name.rpartition("-")[2] for path in (both / "show").glob("*.png")}
    assert shown == {"detections.png", "steps.png", "film.png"}
    noisebox("show", "detr", "--out", "alone")
    assert [path.name for path in (both / "alone").glob("*.png")] == ["detections.png"]
    with pytest.raises(UserError, match="5 sampling steps need a detector that denoises; detr does not: ask for 1"):
        noisebox("predict", "detr", "--images", str(images), "--steps", "5")


@pytest.mark.parametrize(
    ("file", "key", "value", "sentence"),
    [
        (
            "recipes/detr",
            "model",
            {"num_querys": 9},
            "key 'model.num_querys' does not exist; did you mean 'num_queries'",
        ),
        ("recipes/detr", "model", {"hidden_dim": 20, "attention_heads": 3}, "hidden_dim 20 must be a multiple of"),
        ("recipes/detr", "model", {"stride": 12}, "model.stride: input should be 4, 8, 16 or 32, not 12"),
        ("recipes/detr", "loss", {"eos_coefficient": 0}, "loss.eos_coefficient: input should be greater than 0, not 0"),
        ("recipes/detr", "distill", {"enable": True}, "family 'detr' cannot be distilled: take distill out"),
        (
            "scales/test",
            "families__detr",
            {"dataset": "tiny"},
            "family detr has dataset 'tiny', but the line detection has",
        ),
        ("scales/test", "families__diffusiondet", {"dataset": "mine"}, "family detr has dataset 'world_test', but"),
        (
            "experiment",
            "recipes",
            ["baseline", "finetune", "detr"],
            "'detr' is of family detr, whose recipes stand under",
        ),
        ("experiment", "asked", {"baseline": ["main"], "detr": ["steps"]}, "asked names 'detr', but lineages has"),
        ("experiment", "data", ["aerial"], "data lacks 'detection', on which 'baseline' trains"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(both: Path, file: str, key: str, value: object, sentence: str) -> None:
    edit_yaml(both / f"params/{file}.yaml", **{key: value})
    with pytest.raises(UserError) as told:
        check_experiment(load_experiment())
    assert sentence in str(told.value) and "\n" not in str(told.value)
    assert f"params/{file}.yaml" in str(told.value)
