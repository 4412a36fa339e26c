"""The aerial line from end to end at scale `test`, and mistakes in it: one sentence, exit code 2, nothing written."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import edit_yaml
from typer.testing import CliRunner

from noisebox import graph
from noisebox.cli import app
from noisebox.config import load_experiment
from noisebox.errors import UserError
from noisebox.report import aerial

LINEAGES = ["yolc_teacher", "yolc", "yolc+yolc_finetune", "yolc+yolc_kd"]


def noisebox(*words):
    """A command in this process; a mistake is raised as it is."""
    done = CliRunner().invoke(app, words)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


@pytest.fixture
def line(project, monkeypatch):
    """The project with the aerial line alone to be made, one train seed, and its data."""
    edit_yaml(
        project / "params/experiment.yaml",
        train_seeds=[0],
        data=["detection", "aerial"],
        aerial__recipes=["yolc_teacher", "yolc", "yolc_finetune", "yolc_kd"],
        aerial__scratch=["yolc_teacher", "yolc"],
        aerial__parents={"yolc_finetune": ["yolc"], "yolc_kd": ["yolc"]},
        aerial__lineages=LINEAGES,
        aerial__pictures=2,
    )
    monkeypatch.chdir(project)
    noisebox("data", "aerial")
    return project


def test_the_line_goes_from_data_to_the_report(line):
    for recipe in ("yolc", "yolc_kd"):
        noisebox("smoke", recipe)
    for lineage in LINEAGES:
        noisebox("train", lineage)
        noisebox("evaluate", lineage)
        for path in graph.evaluation_outputs(lineage, 0, "aerial"):
            assert (line / path).exists()
    teacher = line / graph.checkpoint("yolc_teacher", 0)
    student = json.loads((line / graph.run_folder("yolc+yolc_kd", 0) / "run.json").read_text())
    assert student["teacher"]["checkpoint"] == graph.checkpoint("yolc_teacher", 0)
    assert student["teacher"]["sha256"] == (teacher.parent / "model_final.pth.sha256").read_text().split()[0]
    terms = pd.read_csv(line / graph.run_folder("yolc+yolc_kd", 0) / "metrics.csv")
    trained = terms[terms["mode"] == "train"]
    for name in ("loss_kd_global_hm", "loss_kd_global_coarse", "loss_kd_local_refine"):
        assert (trained[name] > 0).all()
    sizes = [sum(t.numel() for t in _weights(line, name).values()) for name in ("yolc_teacher", "yolc")]
    assert sizes[0] > sizes[1]
    _looks_agree(line / graph.evaluation_folder("yolc", 0))
    evidence = aerial.gather(load_experiment(), line)
    found = aerial.tabulated(evidence)
    aerial.write(evidence, found, line / "reports")
    assert found.aerial["run"].tolist() == [name for name in LINEAGES for _ in (0, 1)]
    assert (line / "reports/pictures/aerial.png").stat().st_size > 0


def _weights(root, lineage):
    return torch.load(root / graph.checkpoint(lineage, 0), weights_only=True)["model"]


def _looks_agree(folder):
    """What looks.npz shows is what detections.json says, in the same pixels, and the crops lie in the image."""
    shown = json.loads((folder / "detections.json").read_text())["images"]
    with np.load(folder / "looks.npz") as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        assert facts["images"] == [image["file"].rpartition("/")[2] for image in shown] and len(shown) == 2
        for place, image in enumerate(shown):
            height, width = arrays[f"heatmap_{place}"].shape
            assert (width, height) == (image["width"], image["height"]) == (256, 160)
            assert arrays[f"image_{place}"].shape == (160, 256, 3)
            true = [box["box_xyxy"] for box in image["ground_truth"]]
            assert arrays[f"truth_{place}"] == pytest.approx(np.array(true), abs=0.01)
            scores, threshold = arrays[f"final_scores_{place}"], 0.05
            found = [box["box_xyxy"] for box in image["detections"]]
            assert len(found) == (scores >= threshold).sum()
            assert arrays[f"final_{place}"][: len(found)] == pytest.approx(np.array(found).reshape(-1, 4), abs=0.01)
            crops = arrays[f"crops_{place}"]
            assert len(crops) and (crops >= 0).all() and (crops <= [width, height, width, height]).all()
            assert (np.diff(arrays[f"coarse_scores_{place}"]) <= 0).all()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("distill__kd_wieght_global_hm", 1.0, "key 'distill.kd_wieght_global_hm' does not exist; did you mean"),
        ("distill__max_patches_per_img", 9, "distill.max_patches_per_img: input should be less than or equal to 6"),
        ("distill__teacher", "yolc_teecher", "distill.teacher: recipe 'yolc_teecher' is missing"),
        ("distill__teacher", "baseline", "'baseline' is diffusiondet, the student is yolc"),
        ("distill__temperature", 3.0, "temperature 3.0 acts on heatmap_loss kl alone"),
        ("model", {"max_patches_per_img": 9}, "model.max_patches_per_img: input should be less than or equal to 6"),
    ],
)
def test_a_mistake_in_the_recipe_is_told_before_training(project, monkeypatch, key, value, sentence):
    monkeypatch.chdir(project)
    edit_yaml(project / "params/recipes/yolc_kd.yaml", **{key: value})
    with pytest.raises(UserError) as told:
        noisebox("train", "yolc+yolc_kd")
    assert sentence in str(told.value) and "params/recipes/yolc_kd.yaml" in str(told.value)
    assert not (project / "runs").exists()


def test_a_teacher_that_is_missing_or_does_not_fit_is_told(line):
    noisebox("train", "yolc")
    teacher = line / graph.checkpoint("yolc_teacher", 0)
    with pytest.raises(UserError, match=r"runs/yolc_teacher/seed0/model_final.pth does not exist"):
        noisebox("train", "yolc+yolc_kd")
    own = torch.load(line / graph.checkpoint("yolc", 0), weights_only=True)
    teacher.parent.mkdir(parents=True)
    torch.save({**own, "classes": [*own["classes"][:-1], "boat"]}, teacher)
    with pytest.raises(UserError, match=r"cannot teach yolc\+yolc_kd: it knows .*boat, the data has .*motor"):
        noisebox("train", "yolc+yolc_kd")
    assert not (line / graph.run_folder("yolc+yolc_kd", 0) / "model_final.pth").exists()
