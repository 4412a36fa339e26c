"""The configuration: precedence, lineages folded, and mistakes told in one sentence."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, edit_yaml

from noisebox.config import load_experiment, load_scale, resolve
from noisebox.errors import UserError
from noisebox.graph import Lineage


@pytest.fixture
def params(tmp_path: Path) -> Path:
    for file in (ROOT / "params").rglob("*.yaml"):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    return tmp_path


def write(root: Path, path: str, content: object) -> None:
    (root / path).write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("scale", ["test", "demo", "gpu", "paper"])
@pytest.mark.parametrize("lineage", ["baseline", "baseline+finetune"])
def test_every_recipe_resolves_at_every_scale(scale: str, lineage: str) -> None:
    config = resolve(lineage, 3, scale, ROOT)
    assert config.seed == 3
    assert config.solver.iterations >= 1


def test_published_settings() -> None:
    baseline, finetune = resolve("baseline", 0, "paper", ROOT), resolve("baseline+finetune", 0, "paper", ROOT)
    assert (baseline.solver.lr, baseline.solver.iterations) == (2.5e-5, 10_000)
    assert finetune.solver.lr == pytest.approx(2.5e-6)
    assert finetune.solver.iterations == 1_000
    assert baseline.model.num_proposals == 500 and baseline.model.num_heads == 6
    assert (baseline.loss.class_weight, baseline.loss.l1_weight, baseline.loss.giou_weight) == (2, 5, 2)


def test_precedence_scale_then_recipes_then_finetune(params: Path) -> None:
    write(params, "params/recipes/wide.yaml", {"description": "wide", "model": {"hidden_dim": 32}})
    warm = {
        "description": "warm",
        "model": {"num_proposals": 5},
        "solver": {"lr_factor": 2.0},
        "finetune": {"length": 0.5},
    }
    write(params, "params/recipes/warm.yaml", warm)
    child, scratch = resolve("wide+warm", 0, "test", params), resolve("warm", 0, "test", params)
    assert (child.model.hidden_dim, child.model.num_proposals) == (32, 5)
    assert scratch.model.hidden_dim == 16
    assert child.solver.iterations == 3 and scratch.solver.iterations == 6
    assert child.solver.lr == scratch.solver.lr == pytest.approx(2e-3)


def test_recipes_own_iterations_win(params: Path) -> None:
    edit_yaml(params / "params/recipes/finetune.yaml", solver__max_iter=500)
    assert resolve("baseline+finetune", 0, "test", params).solver.iterations == 500
    assert resolve("baseline", 0, "test", params).solver.iterations == 6


MISTAKES = {
    "recipes/baseline.yaml: key 'solver.max_itr' does not exist; did you mean 'max_iter'?": {"solver": {"max_itr": 3}},
    "recipes/baseline.yaml: key 'model.num_proposal' does not exist; did you mean 'num_proposals'?": {
        "model": {"num_proposal": 3}
    },
    "recipes/baseline.yaml: key 'model.sampler.nms' does not exist; did you mean": {"model": {"sampler": {"nms": 0.5}}},
    "recipes/baseline.yaml: solver.base_lr: input should be greater than 0, not -1": {"solver": {"base_lr": -1}},
    "recipes/baseline.yaml: solver.batch_size: input should be a valid integer": {"solver": {"batch_size": "many"}},
    "recipes/baseline.yaml: model: hidden_dim 30 must be a multiple of attention_heads": {
        "model": {"hidden_dim": 30, "attention_heads": 4}
    },
    "recipes/baseline.yaml: family 'diffusiondt' is unknown; these are: diffusiondet": {"family": "diffusiondt"},
    "recipes/baseline.yaml: key 'desciption' does not exist; did you mean 'description'?": {"desciption": "typo"},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_name_file_key_and_fit(params: Path, sentence: str) -> None:
    write(params, "params/recipes/baseline.yaml", {"description": "x", **MISTAKES[sentence]})
    with pytest.raises(UserError) as caught:
        resolve("baseline", 0, "test", params)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names(params: Path) -> None:
    with pytest.raises(UserError, match=r"recipe 'baselin' is missing: .*did you mean 'baseline'"):
        resolve("baselin", 0, "test", params)
    with pytest.raises(UserError, match="scale 'dem' is unknown; did you mean 'demo'"):
        resolve("baseline", 0, "dem", params)
    with pytest.raises(UserError, match="is no lineage"):
        Lineage.parse("baseline++finetune")
    with pytest.raises(UserError, match="precision fp16 needs device cuda"):
        edit_yaml(params / "params/scales/test.yaml", precision="fp16")
        load_scale("test", params)


def test_experiment_must_train_what_it_evaluates(params: Path) -> None:
    both = ["baseline", "baseline+finetune"]
    edit_yaml(params / "params/experiment.yaml", recipes=["baseline", "finetune"], lineages=both)
    with pytest.raises(UserError, match=r"nothing trains 'baseline\+finetune': add 'baseline' to parents.finetune"):
        load_experiment(params)
    edit_yaml(params / "params/experiment.yaml", recipes=["baseline"], parents={"finetune": ["baseline"]})
    with pytest.raises(UserError, match="recipes does not list 'finetune'"):
        load_experiment(params)


def test_broken_yaml_is_one_sentence(params: Path) -> None:
    (params / "params/recipes/baseline.yaml").write_text("description: [unclosed")
    with pytest.raises(UserError, match=r"baseline.yaml is not valid YAML") as caught:
        resolve("baseline", 0, "test", params)
    assert "\n" not in str(caught.value)
    (params / "params/recipes/baseline.yaml").write_text("- a list")
    with pytest.raises(UserError, match="must hold a mapping"):
        resolve("baseline", 0, "test", params)
