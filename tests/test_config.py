"""The configuration: precedence, lineages folded, and mistakes told in one sentence."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, edit_yaml, small_experiment
from hypothesis import example, given
from hypothesis import strategies as st

from noisebox import graph
from noisebox.config import (
    GuidanceConfig,
    RunConfig,
    Sampling,
    SolverConfig,
    load_experiment,
    load_recipe,
    load_scale,
    resolve,
    teacher_of,
)
from noisebox.config.section import merged
from noisebox.errors import UserError
from noisebox.experiment import check_experiment
from noisebox.files import read_yaml
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


RECIPES = sorted(path.stem for path in (ROOT / "params/recipes").glob("*.yaml"))
D3PM = "baseline+d3pm_qhead"


@pytest.mark.parametrize("scale", ["test", "demo", "gpu", "paper"])
def test_every_lineage_resolves_at_every_scale(scale: str) -> None:
    """Those of the experiment, and each recipe alone, as its smoke run takes it."""
    for lineage in load_experiment(ROOT).planned_lineages():
        config = resolve(lineage, 3, scale, ROOT)
        assert (config.lineage, config.seed) == (lineage, 3)
        assert config.solver.iterations >= 1
    for recipe in RECIPES:
        assert resolve(recipe, 0, scale, ROOT, smoke=True).lineage == recipe


# Lineage: iterations, learning rate, and the multipliers of backbone, geometry and quality head.
PUBLISHED_TRAINING = {
    "baseline": (10_000, 2.5e-5, 1, 1, 1),
    "label_state": (10_000, 2.5e-5, 1, 1, 1),
    "d3pm_qhead": (10_000, 2.5e-5, 1, 1, 1),
    "baseline+finetune": (1_000, 2.5e-6, 1, 1, 1),
    "baseline+geofeat": (1_000, 2.5e-6, 1, 100, 1),
    "baseline+qhead": (1_000, 2.5e-6, 1, 1, 100),
    D3PM: (2_500, 2.5e-6, 0, 1, 1),
    f"{D3PM}+distill_20to1": (2_500, 2.5e-6, 1, 1, 1),
    f"{D3PM}+distill_20to1+geofeat": (1_000, 2.5e-6, 1, 100, 1),
    "kitchen_sink": (200, 2.5e-5, 1, 1, 1),
}


@pytest.mark.parametrize("lineage", PUBLISHED_TRAINING)
def test_published_training(lineage: str) -> None:
    solver = resolve(lineage, 0, "paper", ROOT).solver
    multipliers = (solver.backbone_multiplier, solver.geo_feat_multiplier, solver.quality_head_multiplier)
    assert (solver.iterations, pytest.approx(solver.lr), *multipliers) == PUBLISHED_TRAINING[lineage]


def test_published_models_and_losses() -> None:
    baseline = resolve("baseline", 0, "paper", ROOT)
    assert baseline.model.num_proposals == 500 and baseline.model.num_heads == 6
    assert (baseline.loss.class_weight, baseline.loss.l1_weight, baseline.loss.giou_weight) == (2, 5, 2)
    warm = resolve(D3PM, 0, "paper", ROOT).model
    assert (warm.label_state, warm.label_d3pm, warm.label_kernel, warm.use_distribution) == (True, True, "mask", True)
    assert warm.quality_head and warm.label_training == "sampled"
    everything = resolve("kitchen_sink", 0, "paper", ROOT)
    assert (everything.model.aniso_noise.sigma_w, everything.model.aniso_noise.sigma_h) == (2, 2)
    assert everything.model.geo_bias.kind == "mlp" and everything.model.geo_feat.enabled
    assert (everything.loss.cls_loss, everything.loss.graph_topo_loss_weight) == ("qfl", 1)
    distill = resolve(f"{D3PM}+distill_20to1", 0, "paper", ROOT).distill
    assert distill and (distill.teacher_steps, distill.student_steps) == (20, 1)
    assert distill.top_k is None  # a fifth of the 500 proposals


def test_each_student_goes_on_where_its_parent_ended() -> None:
    """Progressive distillation: what a student can do in so many steps is what the next one's teacher samples."""
    *_, last = Lineage.parse(f"{D3PM}+distill_20to4+distill_4to2+distill_2to1").ancestry()
    stages = [resolve(each, 0, "demo", ROOT).distill for each in last.ancestry()][2:]
    assert [(stage.teacher_steps, stage.student_steps) for stage in stages if stage] == [(20, 4), (4, 2), (2, 1)]


@pytest.mark.parametrize(
    ("control", "variant", "switches"),
    [
        ("finetune", "graph_none", {"disable_self_attn"}),
        ("finetune", "graph_topk", {"geo_bias"}),
        ("finetune", "aniso_noise", {"aniso_noise"}),
        ("finetune", "label_state", {"label_state"}),
        ("d3pm_qhead", "d3pm_uniform", {"label_kernel"}),
        # Gaussian noise on labels leaves no distribution to use
        ("d3pm_qhead", "d3pm_gaussian", {"label_kernel", "use_distribution"}),
        ("d3pm_qhead", "d3pm_expected", {"label_training"}),
    ],
)
@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_an_ablation_changes_its_switch_alone(scale: str, control: str, variant: str, switches: set[str]) -> None:
    """Both train alike: same iterations, rates and losses."""
    ours, theirs = (resolve(f"baseline+{recipe}", 0, scale, ROOT) for recipe in (variant, control))
    assert (ours.solver, ours.loss) == (theirs.solver, theirs.loss)
    model, other = ours.model.model_dump(), theirs.model.model_dump()
    assert {key for key in model if model[key] != other[key]} == switches


def test_a_teacher_is_the_parent_unless_another_is_named(params: Path) -> None:
    assert teacher_of("baseline+finetune", 3, params) is None
    assert teacher_of(f"{D3PM}+distill_20to1", 3, params) == graph.checkpoint(D3PM, 3)
    recipe = params / "params/recipes/distill_20to1.yaml"
    edit_yaml(recipe, distill__teacher_seed=0)
    assert teacher_of(f"{D3PM}+distill_20to1", 3, params) == graph.checkpoint(D3PM, 0)
    edit_yaml(recipe, distill__teacher="baseline+qhead")
    assert teacher_of("distill_20to1", 3, params) == graph.checkpoint("baseline+qhead", 0)
    assert resolve("distill_20to1", 3, "paper", params).lineage == "distill_20to1"
    # a finetune of a student distils nothing itself
    assert teacher_of(f"{D3PM}+distill_20to1+geofeat", 3, params) is None
    assert resolve(f"{D3PM}+distill_20to1+geofeat", 3, "test", params).distill is None


def test_scale_gives_finetunes_and_single_lineages_their_length(params: Path) -> None:
    scale = params / "params/scales/test.yaml"
    edit_yaml(scale, finetune={"max_iter": 50, "batch_size": 1}, lengths={"d3pm_qhead": 0.5, D3PM: 0.02})
    scratch, warm = resolve("d3pm_qhead", 0, "test", params).solver, resolve(D3PM, 0, "test", params).solver
    assert (scratch.iterations, scratch.batch_size) == (3, 2)
    assert (warm.iterations, warm.batch_size) == (1, 1)
    assert resolve("baseline+finetune", 0, "test", params).solver.iterations == 5
    assert resolve("baseline", 0, "test", params).solver.iterations == 6


def test_a_number_that_yaml_has_as_text_is_a_number(params: Path) -> None:
    """Such as 1e1, which YAML 1.1 takes for a word."""
    scale = params / "params/scales/test.yaml"
    edit_yaml(scale, solver={"max_iter": "8"}, finetune={"epochs": "1e1"}, lengths={"baseline": 0.5})
    assert resolve("baseline", 0, "test", params).solver.max_iter == 4
    assert resolve("baseline+finetune", 0, "test", params).solver.epochs == 1


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
    assert child.solver.iterations == 10 and scratch.solver.iterations == 6
    assert child.solver.lr == scratch.solver.lr == pytest.approx(2e-3)


def test_recipes_own_iterations_win(params: Path) -> None:
    edit_yaml(params / "params/recipes/finetune.yaml", solver__max_iter=500)
    assert resolve("baseline+finetune", 0, "test", params).solver.iterations == 500
    assert resolve("baseline", 0, "test", params).solver.iterations == 6


def settings(lineage: str, root: Path, **overrides: object) -> RunConfig:
    """A lineage at scale `test` with overrides, their dots written `__`."""
    return resolve(lineage, 0, "test", root, overrides={key.replace("__", "."): overrides[key] for key in overrides})


def test_overrides_come_last_and_change_nothing_else(params: Path) -> None:
    plain = resolve("baseline+finetune", 0, "test", params)
    assert settings("baseline+finetune", params) == plain
    other = settings(
        "baseline+finetune", params, solver__base_lr=0.5, solver__batch_size=6, solver__accumulate=3, precision="bf16",
        image__eval_short_edge=96, model__num_proposals=5, model__sampler={"nms_threshold": 0.4}, loss__l1_weight=3,
    )  # fmt: skip
    assert (other.solver.base_lr, other.precision, other.image.eval_short_edge) == (0.5, "bf16", 96)
    assert (other.model.num_proposals, other.model.sampler.nms_threshold, other.loss.l1_weight) == (5, 0.4, 3)
    solver = plain.solver.model_copy(update={"base_lr": 0.5, "batch_size": 6, "accumulate": 3})
    assert other.solver == solver
    assert other.model.model_copy(update={"num_proposals": 8, "sampler": plain.model.sampler}) == plain.model
    taught = settings("baseline+distill_20to1", params, distill__student_steps=2).distill
    assert (taught.student_steps, taught.teacher_steps) == (2, 20)


OVERRIDE_MISTAKES: dict[str, dict[str, object]] = {
    "override 'solver.base_lrr' does not exist; did you mean 'base_lr'?": {"solver__base_lrr": 1},
    "override 'model.sampler.nms' does not exist; did you mean": {"model__sampler__nms": 0.5},
    "override 'solver.base_lr': input should be greater than 0, not -1": {"solver__base_lr": -1},
    "override 'solver': batch_size 4 must be a multiple of accumulate 3": {
        "solver__batch_size": 4,
        "solver__accumulate": 3,
    },
    "override 'presicion' does not exist; did you mean 'precision'?": {"presicion": "bf16"},
    "overrides: precision fp16 needs device cuda; on cpu use bf16 or fp32": {"precision": "fp16"},
    "override 'precision': input should be 'fp32', 'bf16' or 'fp16', not 'half'": {"precision": "half"},
    "override 'image.crop': must be a section of likely, short_edges, least, most, not 0.5": {"image__crop": 0.5},
    "override 'image': flip must be a number, not True": {"image__flip": True},
    "overrides of solver: their keys must be words": {"solver": {1: 2}},
    "override 'seed': seed says what a run is, and cannot be overridden": {"seed": 3},
    "override 'solver' is a section: name one of its keys, as in solver.base_lr": {"solver": 3},
    "override 'distill.kind': recipe 'baseline' does not distil": {"distill__kind": "consistency"},
    "override 'solver' has both max_iter and epochs: a training lasts so many": {
        "solver__max_iter": 3,
        "solver__epochs": 3,
    },
}


@pytest.mark.parametrize("sentence", OVERRIDE_MISTAKES)
def test_mistakes_in_overrides_are_one_sentence(params: Path, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        settings("baseline", params, **OVERRIDE_MISTAKES[sentence])
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@given(left=st.integers(1, 40), right=st.integers(1, 40), flip=st.sampled_from([0.0, 0.5]), overfit=st.booleans())
@example(left=20, right=20, flip=0.5, overfit=False)
@example(left=20, right=30, flip=0.5, overfit=False)
def test_a_map_is_mirrored_only_where_it_goes_as_far_left_as_right(
    left: int, right: int, flip: float, overfit: bool
) -> None:
    overrides = {"model__grid": {"x_min": -left, "x_max": right}, "image__flip": flip, "solver__overfit": overfit}
    if left == right or flip == 0 or overfit:
        config = settings("lss", ROOT, **overrides)
        assert config.image.flip == (0 if overfit else flip) and config.model.grid.columns == 2 * (left + right)
        return
    with pytest.raises(UserError) as caught:
        settings("lss", ROOT, **overrides)
    fault = f"model.grid goes from x -{left} to {right} m, not as far left as right"
    path = ROOT / "params/scales/test.yaml"
    assert str(caught.value) == f"{path}: image.flip is 0.5, but {fault}; set image.flip to 0 for the family"


def test_what_was_trained_on_mirrored_maps_is_still_evaluated(params: Path) -> None:
    edit_yaml(params / "params/scales/test.yaml", families__bev__image={"flip": 0})
    config = settings("lss", params, model__grid__x_max=30)
    of_checkpoint = merged(config.model_dump(mode="json"), {"image": {"flip": 0.5}})
    assert RunConfig(**of_checkpoint).model == config.model


def test_a_training_lasts_epochs_or_iterations_and_the_last_word_counts(params: Path) -> None:
    def lasting(lineage: str, **overrides: object) -> tuple[int | None, float | None]:
        solver = settings(lineage, params, **overrides).solver
        return solver.max_iter, solver.epochs

    assert lasting("baseline", solver__epochs=2.5) == (None, 2.5)
    edit_yaml(params / "params/recipes/finetune.yaml", solver={"epochs": 3})
    assert lasting("baseline+finetune") == (None, 3)
    assert lasting("baseline+finetune", solver__max_iter=7) == (7, None)
    scale = params / "params/scales/test.yaml"
    edit_yaml(scale, solver={"epochs": 4}, finetune={"max_iter": 20}, families__yolc__solver={"max_iter": 9})
    edit_yaml(params / "params/recipes/finetune.yaml", solver={"length": 0.5})
    assert (lasting("baseline"), lasting("baseline+finetune"), lasting("yolc")) == ((None, 4), (10, None), (9, None))
    assert lasting("baseline", solver__length=0.25) == (None, 1)
    edit_yaml(scale, solver={"epochs": 4, "max_iter": 3})
    with pytest.raises(UserError, match=r"test.yaml: solver has both max_iter and epochs"):
        resolve("baseline", 0, "test", params)


@given(epochs=st.floats(0.01, 50), images=st.integers(1, 500), batch_size=st.integers(1, 64))
def test_epochs_are_the_fewest_iterations_that_show_as_many_images(epochs: float, images: int, batch_size: int) -> None:
    iterations = SolverConfig(batch_size=batch_size).iterations_of(epochs, images)
    assert (iterations - 1) * batch_size < epochs * images <= iterations * batch_size + 1e-3
    assert SolverConfig(batch_size=1).iterations_of(0.1, 30) == 3


def test_a_recipe_may_need_a_precision_of_its_own(params: Path) -> None:
    edit_yaml(params / "params/recipes/finetune.yaml", precision="bf16")
    assert resolve("baseline+finetune", 0, "test", params).precision == "bf16"
    assert resolve("baseline", 0, "test", params).precision == "fp32"
    assert settings("baseline+finetune", params, precision="fp32").precision == "fp32"
    edit_yaml(params / "params/recipes/finetune.yaml", precision="fp16")
    with pytest.raises(UserError, match=r"finetune.yaml: precision fp16 needs device cuda"):
        resolve("baseline+finetune", 0, "test", params)
    assert resolve("baseline+finetune", 0, "gpu", params).precision == "fp16"


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
    "recipes/baseline.yaml: loss.giou_weight: input should be greater than or equal to 0, not -2": {
        "loss": {"giou_weight": -2}
    },
    "recipes/baseline.yaml: model.pixel_mean.0: input should be less than or equal to 1, not 123.675": {
        "model": {"pixel_mean": [123.675, 116.28, 103.53]}
    },
    "recipes/baseline.yaml: model.pixel_std.0: input should be less than or equal to 1, not 58.395": {
        "model": {"pixel_std": [58.395, 57.12, 57.375]}
    },
    "recipes/baseline.yaml: loss.class_weight: input should be a finite number": {"loss": {"class_weight": math.inf}},
    "recipes/baseline.yaml: solver: max_iter must be a number, not True": {"solver": {"max_iter": True}},
    "recipes/baseline.yaml: solver: decay_at must be a number, not [0.5, True]": {"solver": {"decay_at": [0.5, True]}},
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
    edit_yaml(params / "params/scales/test.yaml", device="cuda", families={"detr": {"device": "cpu"}})
    with pytest.raises(UserError, match=r"scales/test.yaml: of family detr: precision fp16 needs device cuda"):
        load_scale("test", params)


def test_experiment_must_train_what_it_evaluates(params: Path) -> None:
    experiment = params / "params/experiment.yaml"
    edit_yaml(experiment, **small_experiment())
    edit_yaml(experiment, parents={})
    with pytest.raises(UserError, match=r"nothing trains 'baseline\+finetune': add 'baseline' to parents.finetune"):
        load_experiment(params)
    edit_yaml(experiment, recipes=["baseline"], parents={"finetune": ["baseline"]})
    with pytest.raises(UserError, match="recipes does not list 'finetune'"):
        load_experiment(params)


EXPERIMENT_MISTAKES: dict[str, dict[str, object]] = {
    "asked names 'baseline+finetun', but did you mean 'baseline+finetune'?": {"asked__baseline+finetun": ["main"]},
    "asked.baseline names protocol 'step', but did you mean 'steps'?": {
        "protocols__steps": {"eval_seeds": [0], "sample_steps": [1]},
        "asked__baseline": ["main", "step"],
    },
    "ablations names 'baseline+graph_none', but": {
        "ablations": {"graph": {"full": "baseline", "none": "baseline+graph_none"}}
    },
    "ablations names 'baseline': add ablations to asked.baseline": {
        "ablations": {"graph": {"full": "baseline", "none": "baseline+finetune"}}
    },
    "asked gives no lineage the protocol main": {
        "protocols__steps": {"eval_seeds": [0], "sample_steps": [1]},
        "asked": {"baseline": ["steps"], "baseline+finetune": ["steps"]},
    },
    "recipes names 'baseline+finetune', a lineage": {"recipes": ["baseline", "finetune", "baseline+finetune"]},
    "detr: searches names 'rates', but dvc.yaml has no stage for it here": {
        "detr": {"recipes": ["detr"], "scratch": ["detr"], "searches": {"rates": "detr"}}
    },
    "scratch names 'd3pm_qhead', but recipes has: baseline, finetune": {"scratch": ["baseline", "d3pm_qhead"]},
    "pictures names 'geofeat', but lineages has: baseline, baseline+finetune": {"pictures__lineages": ["geofeat"]},
    "lineages names 'baseline+finetune', but asked does not": {"asked": {"baseline": ["main"]}},
    "key 'protocols.guidence' does not exist; did you mean 'guidance'?": {"protocols__guidence": {}},
    "key 'protocols.main.sample_step' does not exist; did you mean 'sample_steps'?": {
        "protocols__main__sample_step": [1]
    },
    "key 'evaluation' does not exist; did you mean": {"evaluation": {"eval_seeds": [0]}},
    "train_seeds must be a number, not [True]": {"train_seeds": [True]},
}


@pytest.mark.parametrize("sentence", EXPERIMENT_MISTAKES)
def test_mistakes_in_the_experiment_are_one_sentence(params: Path, sentence: str) -> None:
    experiment = params / "params/experiment.yaml"
    edit_yaml(experiment, **small_experiment())
    edit_yaml(experiment, **EXPERIMENT_MISTAKES[sentence])
    with pytest.raises(UserError) as caught:
        load_experiment(params)
    assert sentence in str(caught.value) and "experiment.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["tuned", "detr", "ablations", "pictures.images", "bev.protocol", "aerial.crops"])
def test_what_the_engines_read_must_be_in_the_experiment(params: Path, key: str) -> None:
    path = params / "params/experiment.yaml"
    content = yaml.safe_load(path.read_text())
    *sections, last = key.split(".")
    del (content[sections[0]] if sections else content)[last]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"experiment.yaml: key '{key}' is missing, which both engines read"):
        load_experiment(params)


SCALE_MISTAKES: dict[str, dict[str, Any]] = {
    "lengths must be a number, not {'baseline': True}": {"lengths": {"baseline": True}},
    "image: resize_schedule must be a number, not [[1, True]]": {"image": {"resize_schedule": [[1, True]]}},
    "losses.lss is no family; these are: diffusiondet": {"losses": {"lss": {}}},
    "families.bev.models.los is no recipe and no family": {"families": {"bev": {"models": {"los": {}}}}},
    "families.bev.lengths: recipe 'los' is missing": {"families": {"bev": {"lengths": {"los": 2}}}},
    "families.bev.datasets has no effect there": {"families": {"bev": {"datasets": {}}}},
    "families.bev.resources has no effect there": {"families": {"bev": {"resources": {"gpu": 2}}}},
    "datasets.lvis_v1.losses.diffusion_det is no family": {"datasets": {"lvis_v1": {"losses": {"diffusion_det": {}}}}},
    "datasets.lvis_v1.families must be a section of families, not [1]": {"datasets": {"lvis_v1": {"families": [1]}}},
    "datasets.lvis_v1.families.detr must be a section": {"datasets": {"lvis_v1": {"families": {"detr": 5}}}},
}


@pytest.mark.parametrize("sentence", SCALE_MISTAKES)
def test_mistakes_anywhere_in_a_scale_are_one_sentence(params: Path, sentence: str) -> None:
    path = params / "params/scales/test.yaml"
    write(params, "params/scales/test.yaml", merged(yaml.safe_load(path.read_text()), SCALE_MISTAKES[sentence]))
    with pytest.raises(UserError) as caught:
        load_scale("test", params)
    assert f"test.yaml: {sentence}" in str(caught.value)


TEACHER_MISTAKES: dict[str, tuple[str, dict[str, object]]] = {
    "recipe 'distill_20to1' needs a teacher: start it from a parent, such as baseline+distill_20to1, or name one under "
    "distill.teacher in ": ("distill_20to1", {}),
    "distill_20to1.yaml: distill.teacher: recipe 'baselin' is missing": (
        "baseline+distill_20to1",
        {"distill__teacher": "baselin"},
    ),
    "distill_20to1.yaml: distill.teacher: 'Baseline' is no lineage": (
        "baseline+distill_20to1",
        {"distill__teacher": "Baseline"},
    ),
    "distill_20to1.yaml: distill.teacher: 'baseline+distill_20to1+geofeat' goes through 'baseline+distill_20to1', the "
    "student itself": ("baseline+distill_20to1", {"distill__teacher": "baseline+distill_20to1+geofeat"}),
    "distill_20to1.yaml: key 'distill.teacher_step' does not exist; did you mean 'teacher_steps'?": (
        "baseline+distill_20to1",
        {"distill__teacher_step": 20},
    ),
    "distill_20to1.yaml: distill: student_steps 40 must not exceed teacher_steps 20": (
        "baseline+distill_20to1",
        {"distill__student_steps": 40},
    ),
    "recipe 'geofeet' is missing": ("baseline+geofeet", {}),
}


@pytest.mark.parametrize("sentence", TEACHER_MISTAKES)
def test_mistakes_about_teachers_are_one_sentence(params: Path, sentence: str) -> None:
    lineage, changes = TEACHER_MISTAKES[sentence]
    edit_yaml(params / "params/recipes/distill_20to1.yaml", **changes)
    with pytest.raises(UserError) as caught:
        resolve(lineage, 0, "test", params)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_length_of_no_lineage_is_told(params: Path) -> None:
    edit_yaml(params / "params/scales/test.yaml", lengths={"label_sate": 0.1})
    with pytest.raises(UserError, match=r"test.yaml: lengths: recipe 'label_sate' is missing.* 'label_state'"):
        load_scale("test", params)


def test_the_whole_experiment_is_checked_before_anything_runs(params: Path) -> None:
    check_experiment(load_experiment(params), params)
    edit_yaml(params / "params/experiment.yaml", **{"asked__baseline": ["main", "guidance"]})
    with pytest.raises(UserError, match=r"experiment.yaml: asked.baseline has guidance, which needs a quality head"):
        check_experiment(load_experiment(params), params)
    edit_yaml(params / "params/experiment.yaml", **{"asked__baseline": ["main"]})
    edit_yaml(params / "params/recipes/kitchen_sink.yaml", model__geo_bias={"kinds": "mlp"})
    with pytest.raises(
        UserError, match=r"kitchen_sink.yaml: key 'model.geo_bias.kinds' does not exist; did you mean 'kind'"
    ):
        check_experiment(load_experiment(params), params)
    edit_yaml(params / "params/recipes/kitchen_sink.yaml", model__geo_bias={"kind": "mlp"})
    edit_yaml(params / "params/recipes/distill_2to1.yaml", distill__teacher="baselin")
    with pytest.raises(UserError, match=r"distill_2to1.yaml: distill.teacher: recipe 'baselin' is missing"):
        check_experiment(load_experiment(params), params)


def test_broken_yaml_is_one_sentence(params: Path) -> None:
    (params / "params/recipes/baseline.yaml").write_text("description: [unclosed")
    with pytest.raises(UserError, match=r"baseline.yaml is not valid YAML") as caught:
        resolve("baseline", 0, "test", params)
    assert "\n" not in str(caught.value)
    (params / "params/recipes/baseline.yaml").write_text("- a list")
    with pytest.raises(UserError, match="must hold a mapping"):
        resolve("baseline", 0, "test", params)


@given(
    st.builds(
        Sampling,
        steps=st.integers(1, 1000),
        guidance=st.builds(
            GuidanceConfig,
            scale=st.floats(0, 10, allow_subnormal=False),
            mode=st.sampled_from(["final", "all"]),
            langevin_steps=st.integers(1, 9),
            normalise=st.booleans(),
            topk=st.none() | st.integers(1, 500),
        ),
    )
)
def test_columns_say_how_was_sampled(sampling: Sampling) -> None:
    printed = {name: str(value) for name, value in sampling.columns().items()}
    expected = sampling if sampling.guidance.scale else Sampling(steps=sampling.steps)
    assert Sampling.of_columns(printed) == expected


def test_a_file_is_read_as_it_is_now_whatever_was_done_with_what_it_said_before(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("seeds: [1, 2]")
    read_yaml(file)["seeds"].append(3)
    assert read_yaml(file) == {"seeds": [1, 2]}
    file.write_text("seeds: [7, 2]")
    assert read_yaml(file) == {"seeds": [7, 2]}


# Published: iterations, and at which the rate falls.
SCHEDULES = {
    "repro_10k": (10_000, []),
    "coco_2017": (450_000, [350_000, 420_000]),
    "lvis_v1": (270_000, [210_000, 250_000]),
}
BOX_DATASETS = [*SCHEDULES, "voc_2007", "voc_2012", "crowdhuman", "objects365", "visdrone"]
OF_BOXES = [recipe for recipe in RECIPES if load_recipe(recipe, ROOT).family != "bev"]


@pytest.mark.parametrize("dataset", BOX_DATASETS)
def test_every_detection_recipe_resolves_on_every_dataset(dataset: str) -> None:
    """At scale paper, and with no data on disk; a recipe that needs a parent as its smoke run takes it."""
    for recipe in OF_BOXES:
        config = resolve(recipe, 0, "paper", ROOT, smoke=True, overrides={"dataset": dataset})
        assert config.dataset == dataset and (config.solver.max_iter or config.solver.epochs)
        assert config.solver.decay_at == sorted(config.solver.decay_at)


@pytest.mark.parametrize("dataset", SCHEDULES)
def test_published_schedules(dataset: str) -> None:
    solver = resolve("baseline", 0, "paper", ROOT, overrides={"dataset": dataset}).solver
    assert (solver.batch_size, solver.lr, solver.warmup_iters) == (16, 2.5e-5, 1000)
    falls = [round(share * solver.iterations, -3) for share in solver.decay_at]
    assert (solver.iterations, falls) == SCHEDULES[dataset]


def test_a_dataset_named_in_the_scale_is_as_one_named_on_the_command_line(params: Path) -> None:
    typed = resolve("detr", 0, "paper", params, overrides={"dataset": "coco_2017"})
    edit_yaml(params / "params/scales/paper.yaml", dataset="coco_2017")
    assert resolve("detr", 0, "paper", params) == typed
    assert (typed.solver.epochs, typed.solver.base_lr, typed.solver.batch_size) == (50, 1e-4, 4)
    assert resolve("yolc", 0, "paper", params).dataset == "visdrone", "a family with a dataset of its own keeps it"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"coco": {}}, "datasets.coco is no dataset; did you mean 'coco_2017'?"),
        ({"coco_2017": {"solvr": {}}}, "key 'datasets.coco_2017.solvr' does not exist; did you mean 'solver'?"),
        ({"coco_2017": {"solver": {"max_itr": 1}}}, "key 'datasets.coco_2017.solver.max_itr' does not exist"),
        ({"coco_2017": {"families": {"dtr": {}}}}, "datasets.coco_2017.families.dtr is no family"),
        ({"coco_2017": {"dataset": "voc_2007"}}, "datasets.coco_2017.dataset: "),
    ],
)
def test_mistakes_about_datasets_are_one_sentence(params: Path, changed: dict[str, Any], said: str) -> None:
    edit_yaml(params / "params/scales/paper.yaml", datasets=changed)
    with pytest.raises(UserError) as told:
        load_scale("paper", params)
    assert str(told.value).startswith(f"{params / 'params/scales/paper.yaml'}: ") and said in str(told.value)
