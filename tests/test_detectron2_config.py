"""Detectron2's configurations: read as Detectron2 reads them, each key in its place here, each mistake told."""

import csv
import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import ROOT, run
from hypothesis import given
from hypothesis import strategies as st

from noisebox.config import RecipeConfig, RunConfig, Sampling, ScaleConfig, load_recipe, resolve
from noisebox.config.diffusiondet import DiffusionDetConfig, DistillConfig, LossConfig
from noisebox.config.run import ImageConfig, SolverConfig
from noisebox.errors import UserError
from noisebox.interop.detectron2_config import Detectron2Config, load_config, read_values
from noisebox.interop.detectron2_keys import ALIASES, FIXED, KEYS, NOTHING, UNREAD, ValueOf, is_imagenet

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]
OWN = "MODEL.DiffusionDet."
REPEATED = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")

# In the shape of the public files: values that YAML takes for text, sections spread over two files.
BASE = """
MODEL:
  META_ARCHITECTURE: "DiffusionDet"
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  BACKBONE:
    NAME: "build_resnet_fpn_backbone"
  RESNETS:
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
  FPN:
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
  ROI_HEADS:
    IN_FEATURES: ["p2", "p3", "p4", "p5"]
  ROI_BOX_HEAD:
    POOLER_TYPE: "ROIAlignV2"
    POOLER_RESOLUTION: 7
    POOLER_SAMPLING_RATIO: 2
SOLVER:
  IMS_PER_BATCH: 4
  BASE_LR: 0.0001
  STEPS: (300, 450)
  MAX_ITER: 600
  WARMUP_FACTOR: 0.01
  WARMUP_ITERS: 50
  WEIGHT_DECAY: 0.0002
  OPTIMIZER: "ADAMW"
  BACKBONE_MULTIPLIER: 0.5
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_TYPE: "full_model"
    CLIP_VALUE: 0.5
    NORM_TYPE: 2.0
SEED: 17
INPUT:
  MIN_SIZE_TRAIN: (480, 512)
  CROP:
    ENABLED: False
    TYPE: "absolute_range"
    SIZE: (300, 500)
  FORMAT: "RGB"
TEST:
  EVAL_PERIOD: 100
DATALOADER:
  FILTER_EMPTY_ANNOTATIONS: False
  NUM_WORKERS: 2
VERSION: 2
"""
RESNET = """
_BASE_: "Base.yaml"
MODEL:
  RESNETS: {DEPTH: 101, STRIDE_IN_1X1: False}
  DiffusionDet: {NUM_PROPOSALS: 200, NUM_CLASSES: 3}
DATASETS:
  TRAIN: ("repro_10k_train",)
  TEST:  ("repro_10k_val",)
SOLVER:
  STEPS: (400, 500)
INPUT:
  CROP: {ENABLED: True}
"""
SWIN = """
_BASE_: Base.yaml
MODEL:
  WEIGHTS: "models/swin_base_patch4_window7_224_22k.pkl"
  BACKBONE: {NAME: build_swintransformer_fpn_backbone}
  SWIN: {SIZE: B-22k}
  FPN: {IN_FEATURES: ["swin0", "swin1", "swin2", "swin3"]}
DATASETS:
  TRAIN: ("repro_10k_train",)
  TEST: ("repro_10k_val",)
"""
LVIS = """
_BASE_: Base.yaml
MODEL:
  DiffusionDet: {NUM_CLASSES: 1203, USE_FED_LOSS: True}
DATASETS:
  TRAIN: ("lvis_v1_train",)
  TEST: ("lvis_v1_val",)
DATALOADER: {SAMPLER_TRAIN: "RepeatFactorTrainingSampler", REPEAT_THRESHOLD: 0.001}
"""
FEDERATED = {"classes": 50, "power": 0.5}
PUBLIC_ENSEMBLE = {"ensemble": "public"}  # no key of Detectron2's: the public code always leaves the last step out
SMALL = """
_BASE_: Base.yaml
MODEL:
  WEIGHTS: ""
  DEVICE: cpu
  BACKBONE: {NAME: slim}
  ROI_BOX_HEAD: {POOLER_RESOLUTION: 3, POOLER_SAMPLING_RATIO: 1}
  DiffusionDet: {NUM_PROPOSALS: 10, NUM_CLASSES: 3, NUM_HEADS: 1, HIDDEN_DIM: 16, DIM_DYNAMIC: 8, NHEADS: 2}
DATASETS:
  TRAIN: ("world_test_train",)
  TEST: ("world_test_val",)
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, CHECKPOINT_PERIOD: 1}
TEST: {EVAL_PERIOD: 2}
INPUT: {MIN_SIZE_TRAIN: 64, MIN_SIZE_TEST: 64, MAX_SIZE_TRAIN: 80, MAX_SIZE_TEST: 80}
DATALOADER: {NUM_WORKERS: 0}
"""


def write_configs(folder: Path) -> Path:
    for name, text in {"Base": BASE, "resnet": RESNET, "swin": SWIN, "small": SMALL}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return write_configs(tmp_path)


def read(path: Path, *overrides: str) -> Detectron2Config:
    return load_config(path, overrides, ROOT)


# The table


def test_every_key_has_a_place_that_exists() -> None:
    sections: dict[str, Any] = {
        "recipe.model.": DiffusionDetConfig, "recipe.loss.": LossConfig, "recipe.solver.": SolverConfig,
        "recipe.distill.": DistillConfig, "scale.models.diffusiondet.": DiffusionDetConfig,
        "scale.solver.": SolverConfig, "scale.image.": ImageConfig, "scale.": ScaleConfig, "sampling.": Sampling,
    }  # fmt: skip
    names = {key.name for key in KEYS}
    for key in KEYS:
        if key.place.startswith("run."):
            continue
        if key.place.startswith("with "):
            assert key.convert(key.default, lambda name: None) is NOTHING
            assert key.place.removeprefix("with ").split(", ")[0] in names
            continue
        prefix, section = next(each for each in sections.items() if key.place.startswith(each[0]))
        for part in key.place.removeprefix(prefix).split("."):
            field = section.model_fields[part]
            section = next(iter(get_args(field.annotation)), field.annotation)  # of a section or None, the section
    assert {key.needs for key in KEYS} - {None} <= names
    assert not names & FIXED.keys() and not any(name in names for name in ALIASES)
    assert set(ALIASES.values()) <= names
    assert not any(name.startswith(UNREAD) for name in names - {key.name for key in KEYS if "BOX_HEAD" in key.name})


def test_the_page_about_configurations_has_the_whole_table() -> None:
    page = (ROOT / "docs/detectron2.md").read_text()
    for key in KEYS:
        assert re.search(rf"^\| `{re.escape(key.name)}` +\| `?{re.escape(key.place)}`? +\|", page, re.M), key.name
    for name, (fitting, reason) in FIXED.items():
        values = (f"the value of `{each.name}`" if isinstance(each, ValueOf) else f"`{each!r}`" for each in fitting)
        shown = " or ".join(values)
        assert re.search(rf"^\| `{re.escape(name)}` +\| {re.escape(shown)} +\| {re.escape(reason)} +\|", page, re.M), (
            name
        )
    for other, name in ALIASES.items():
        assert f"`{other.removeprefix(OWN)}` is `{name.removeprefix(OWN)}`" in page


# Values


def test_a_configuration_of_the_public_form(configs: Path) -> None:
    made = read(configs / "resnet.yaml", "SOLVER.MAX_ITER", "500", "OUTPUT_DIR", "out/x")
    assert (made.name, made.seed, made.output_dir, made.num_classes) == ("resnet", 17, Path("out/x"), 3)
    assert made.weights == "detectron2://ImageNetPretrained/torchvision/R-50.pkl" and is_imagenet(made.weights)
    scale = made.scale
    assert (scale.dataset, scale.device, scale.precision, scale.workers) == ("repro_10k", "cuda", "fp32", 2)
    model = {"backbone": "resnet101.tv_in1k", "pretrained": True, "freeze_at": 2, "num_proposals": 200, "num_heads": 6}
    assert model.items() <= scale.models["diffusiondet"].items()
    assert scale.solver == {
        "base_lr": 1e-4, "max_iter": 500, "decay_at": [0.8, 1.0], "decay_factor": 0.1, "warmup_iters": 50,
        "warmup_factor": 0.01, "weight_decay": 0.0002, "batch_size": 4, "checkpoint_every": 5000, "clip_norm": 0.5,
        "compile": False, "ema_decay": 0.0, "eval_every": 100,
    }  # fmt: skip
    assert made.recipe.solver == {"backbone_multiplier": 0.5}
    assert (made.recipe.model, made.recipe.loss, made.recipe.distill) == ({"sampler": PUBLIC_ENSEMBLE}, {}, None)
    image = scale.image
    assert (image.train_short_edges, image.eval_short_edge, image.max_edge, image.flip) == ([480, 512], 800, 1333, 0.5)
    assert image.crop and (image.crop.likely, image.crop.least, image.crop.most) == (0.5, 300, 500)


def test_swin_and_other_weights(configs: Path) -> None:
    sized = read(configs / "swin.yaml").scale.models["diffusiondet"]
    assert (sized["backbone"], sized["freeze_at"]) == ("swin_base_patch4_window7_224.ms_in22k", 0)
    scratch = read(configs / "swin.yaml", "MODEL.WEIGHTS", "").scale.models["diffusiondet"]
    assert (scratch["backbone"], scratch["pretrained"]) == ("swin_base_patch4_window7_224", False)
    assert not is_imagenet("output/baseline/model_final.pth")


def test_a_configuration_for_lvis(configs: Path) -> None:
    """In the shape of the public files."""
    path = configs / "lvis.yaml"
    path.write_text(LVIS)
    made = read(path)
    assert (made.scale.dataset, made.num_classes, made.recipe.loss) == ("lvis_v1", 1203, {"federated": FEDERATED})
    assert made.scale.solver["repeat_threshold"] == 0.001
    power = "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER"
    assert read(path, power, "1.0").recipe.loss == {"federated": {**FEDERATED, "power": 1.0}}
    assert read(path, f"{OWN}USE_FED_LOSS", "False").recipe.loss == {}
    plain = read(path, "DATALOADER.SAMPLER_TRAIN", "TrainingSampler")
    assert "repeat_threshold" not in plain.scale.solver
    assert plain.notes == [
        f"{path}: DATALOADER.REPEAT_THRESHOLD is without effect, because DATALOADER.SAMPLER_TRAIN is TrainingSampler"
    ]


# The published experiments, as the recipes of params/recipes/ have them
D3PM = ("LABEL_STATE", True, "LABEL_D3PM", True, "LABEL_D3PM_KERNEL", "mask", "LABEL_D3PM_USE_DISTRIBUTION", True)
QUALITY = ("QUALITY_HEAD", True)
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "baseline": (),
    "label_state": ("LABEL_STATE", True),
    "d3pm_qhead": (*D3PM, *QUALITY),
    "d3pm_expected": (*D3PM, *QUALITY, "LABEL_D3PM_TRAIN_STATE", "expected"),
    "qhead": (*QUALITY, "QUALITY_HEAD_LR_MULT", 100.0),
    "geofeat": ("GEO_FEAT", True, "GEO_FEAT_LR_MULT", 100.0, "GEO_FEAT_SCHEDULE", "constant"),
    "graph_topk": ("GEO_BIAS_TOP_K", 8),
    "graph_none": ("DISABLE_SELF_ATTN", True),
    "aniso_noise": ("ANISO_NOISE", True, "ANISO_NOISE_SIGMA_W", 2.0, "ANISO_NOISE_SIGMA_H", 2.0),
    "kitchen_sink": (
        *D3PM, *QUALITY, "GEO_FEAT", True, "GEO_BIAS", True, "GEO_BIAS_TYPE", "mlp", "SELF_ATTN_IMPL", "sdpa",
        "ANISO_NOISE", True, "ANISO_NOISE_SIGMA_W", 2.0, "ANISO_NOISE_SIGMA_H", 2.0, "CLS_LOSS_TYPE", "qfl",
        "BOX_LOSS_IOU_WEIGHT_POWER", 1.0, "GRAPH_TOPO_LOSS_WEIGHT", 1.0,
    ),
    "consistency": ("CONSISTENCY_DISTILL", True, "CONSISTENCY_TEACHER_WEIGHTS", "t.pth"),
    "distill_20to1": ("SAMPLER_DISTILL", True, "SAMPLER_DISTILL_TEACHER_WEIGHTS", "t.pth"),
    "distill_4to2": (
        "SAMPLER_DISTILL", True, "SAMPLER_DISTILL_TEACHER", "t.pth", "SAMPLER_DISTILL_TEACHER_STEPS", 4,
        "SAMPLER_DISTILL_STUDENT_STEPS", 2, "SAMPLER_DISTILL_ETA", 0.0, "SAMPLER_DISTILL_ENSEMBLE", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_switches_are_those_of_the_recipes(configs: Path, recipe: str) -> None:
    pairs = [str(word) for word in PUBLISHED[recipe]]
    pairs[::2] = [f"{OWN}{name}" for name in pairs[::2]]
    made, ours = read(configs / "resnet.yaml", *pairs).recipe, load_recipe(recipe, ROOT)
    assert DiffusionDetConfig(**made.model) == DiffusionDetConfig(**{**ours.model, "sampler": PUBLIC_ENSEMBLE})
    assert LossConfig(**made.loss) == LossConfig(**ours.loss)
    for multiplier in ("geo_feat_multiplier", "quality_head_multiplier"):
        assert made.solver.get(multiplier, 1.0) == ours.solver.get(multiplier, 1.0)
    if ours.distill is None:
        assert made.distill is None
    else:
        assert DistillConfig(**made.distill or {}) == DistillConfig(**{**ours.distill, "teacher": "t.pth"})


@given(st.integers(1, 500000), st.lists(st.integers(1, 500000), max_size=4))
def test_the_rate_falls_at_the_very_steps(last: int, steps: list[int]) -> None:
    key = next(key for key in KEYS if key.name == "SOLVER.STEPS")
    shares = key.convert(steps, lambda name: last)
    assert [round(share * last) for share in shares] == [step for step in steps if step <= last]


@pytest.mark.parametrize(
    ("pairs", "place", "value"),
    [
        (["SOLVER.CLIP_GRADIENTS.ENABLED", "False"], "solver.clip_norm", 0.0),
        (["SOLVER.WARMUP_ITERS", "1000"], "solver.warmup_iters", 600),
        (["SOLVER.AMP.ENABLED", "True"], "precision", "fp16"),
        (["SOLVER.TORCH_COMPILE", "True"], "solver.compile", True),
        (["SOLVER.BASE_LR", "2.5e-6"], "solver.base_lr", 2.5e-6),
        (["MODEL_EMA.ENABLED", "True"], "solver.ema_decay", 0.999),
        (["INPUT.MIN_SIZE_TRAIN", "(480,)"], "image.train_short_edges", [480]),
        (["INPUT.MIN_SIZE_TRAIN", "(64, 66)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "image.train_short_edges",
         [64, 65, 66]),
        (["INPUT.RANDOM_FLIP", "none"], "image.flip", 0.0),
        ([f"{OWN}USE_NMS", "False"], "recipe.sampler", {**PUBLIC_ENSEMBLE, "nms_threshold": 1.0}),
        (["MODEL.BACKBONE.FREEZE_AT", "0"], "models.diffusiondet.freeze_at", 0),
        ([f"{OWN}QUALITY_GUIDANCE_SCALE", "0.1", f"{OWN}QUALITY_GUIDANCE_LANGEVIN_STEPS", "2",
          f"{OWN}QUALITY_GUIDANCE_MODE", "final", f"{OWN}SAMPLE_STEP", "5"], "sampling",
         {"scale": 0.1, "mode": "final", "langevin_steps": 2, "normalise": True, "topk": None}),
    ],
)  # fmt: skip
def test_what_values_become(configs: Path, pairs: list[str], place: str, value: Any) -> None:
    made = read(configs / "resnet.yaml", *pairs)
    if place == "sampling":
        assert made.sampling.steps == 5 and made.sampling.guidance.model_dump() == value
        return
    found: Any = {**made.scale.model_dump(), "recipe": made.recipe.model}
    for part in place.split("."):
        found = found[part]
    assert found == value


# Mistakes


@pytest.mark.parametrize(
    ("text", "pairs", "sentence"),
    [
        ("", ["SOLVER.MAX_ITR", "5"], "the command line: SOLVER.MAX_ITR means nothing here; did you mean 'SOLVER.MAX"),
        ("MODEL: {DiffusionDet: {QUALITI_HEAD: True}}", [], "x.yaml: MODEL.DiffusionDet.QUALITI_HEAD means nothing"),
        ("", ["FOO.BAR", "5"], "FOO.BAR means nothing here; keys begin with: DATALOADER, DATASETS"),
        ("", ["SOLVER", "5"], "SOLVER means nothing here; it holds keys, such as SOLVER.BASE_LR"),
        ("", ["SOLVER.MAX_ITER"], "KEY VALUE pairs, but 'SOLVER.MAX_ITER' has no value"),
        ("", ["SOLVER.MAX_ITER=5"], "'SOLVER.MAX_ITER=5' must be two words"),
        ("", ["--iter", "5"], "option '--iter' does not exist here"),
        ("", ["SOLVER.MAX_ITER", "5.5"], "SOLVER.MAX_ITER must be a whole number, not 5.5"),
        ("", ["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER: input should be greater than or equal to 1, not 0"),
        ("", ["SOLVER.AMP.ENABLED", "1"], "SOLVER.AMP.ENABLED must be True or False, not 1"),
        ("", ["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR must be a number, not 'fast'"),
        ("", ["INPUT.FORMAT", "BGR"], "INPUT.FORMAT must be 'RGB', not 'BGR': images are read as RGB"),
        ("", ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "must be 'DiffusionDet', not 'GeneralizedRCNN'"),
        ("", ["MODEL.FPN.OUT_CHANNELS", "64"], "OUT_CHANNELS must be 256, not 64: the pyramid is as wide as MODEL"),
        ("", ["MODEL.FPN.OUT_CHANNELS", "256", f"{OWN}HIDDEN_DIM", "64"], "OUT_CHANNELS must be 64, not 256"),
        ("", ["SOLVER.OPTIMIZER", "SGD"], "SOLVER.OPTIMIZER must be 'ADAMW', not 'SGD': the optimiser is AdamW"),
        ("", ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"], "CLIP_TYPE must be full_model, not 'value'"),
        ("", ["MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", "1.0"],
         "FED_LOSS_FREQ_WEIGHT_POWER has no effect without MODEL.DiffusionDet.USE_FED_LOSS: set that too, or leave it"),
        ("", [f"{OWN}USE_FED_LOSS", "True", "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", "-1.0"],
         "FED_LOSS_FREQ_WEIGHT_POWER: input should be greater than or equal to 0, not -1.0"),
        ("", [f"{OWN}USE_FOCAL", "False"], "USE_FOCAL must be True, not False: classes are told apart by focal loss"),
        ("", [*REPEATED, "DATALOADER.REPEAT_THRESHOLD", "1.5"],
         "DATALOADER.REPEAT_THRESHOLD: input should be less than or equal to 1, not 1.5"),
        ("", ["DATALOADER.REPEAT_SQRT", "False"], "REPEAT_SQRT must be True, not False: an image is repeated by"),
        ("", ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorSampler"],
         "DATALOADER.SAMPLER_TRAIN must be one of TrainingSampler, RepeatFactorTrainingSampler, not 'RepeatFactorSa"),
        ("", [f"{OWN}GEO_BIAS", "True"], "GEO_BIAS needs GEO_BIAS_TYPE, one of distance, iou, mlp, not ''"),
        ("", [f"{OWN}GEO_BIAS_SCALE", "2.0"], "GEO_BIAS_SCALE has no effect without MODEL.DiffusionDet.GEO_BIAS"),
        ("", [f"{OWN}LABEL_D3PM", "True"], "label_d3pm diffuses the label state: set label_state to true as well"),
        ("", [f"{OWN}LABEL_STATE", "True", f"{OWN}LABEL_D3PM", "True", f"{OWN}LABEL_D3PM_KERNEL", "masked"],
         "the command line: MODEL.DiffusionDet.LABEL_D3PM_KERNEL: input should be 'mask', 'uniform' or 'gaussian'"),
        ("", [f"{OWN}SAMPLER_DISTILL", "True"], "SAMPLER_DISTILL_TEACHER_WEIGHTS must be the path of the teacher's"),
        ("", [f"{OWN}SAMPLER_DISTILL", "True", f"{OWN}CONSISTENCY_DISTILL", "True"], "are both True; a student learns"),
        ("", [f"{OWN}NUM_PROPOSALS", "0"], "NUM_PROPOSALS: input should be greater than or equal to 1, not 0"),
        ("", ["MODEL.SWIN.SIZE", "XL", "MODEL.BACKBONE.NAME", "build_swintransformer_fpn_backbone"],
         "MODEL.SWIN.SIZE must be one of T, S, B, B-22k"),
        ("", ["INPUT.MAX_SIZE_TEST", "2000"], "INPUT.MAX_SIZE_TRAIN must be MAX_SIZE_TEST, 2000"),
        ("", ["DATASETS.TRAIN", "('a','b')"], "DATASETS.TRAIN must name one dataset, not ['a', 'b']"),
        ("", ["DATASETS.TRAIN", "('repro_10_train',)"], "has no repro_10.yaml; did you mean 'repro_10k'?"),
        ("", ["DATASETS.TRAIN", "('repro_10k_val',)"], "of dataset 'repro_10k' it is the split repro_10k_train"),
        ("", ["DATASETS.TEST", "('visdrone_val',)"], "DATASETS.TEST is of dataset 'visdrone', DATASETS.TRAIN of"),
        ("SEED: !!python/object/apply:os.system ['true']", [], "x.yaml is not valid YAML: could not determine a"),
        ("_BASE_: x.yaml", [], "x.yaml: _BASE_ goes in a circle: x.yaml → x.yaml"),
        ("_BASE_: nowhere.yaml", [], "nowhere.yaml does not exist"),
        ("_BASE_: https://example.org/x.yaml", [], "_BASE_ must be the path of a file"),
        ("MODEL: {DiffusionDet: {GEO_BIAS_TOPK: 3, GEO_BIAS_TOP_K: 4}}", [], "are one key under two names"),
        ("- 1", [], "x.yaml must hold a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_source_key_and_what_fits(
    configs: Path, text: str, pairs: list[str], sentence: str
) -> None:
    path = configs / "x.yaml"
    path.write_text(text if "_BASE_" in text or text.startswith("-") else f"_BASE_: resnet.yaml\n{text}")
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        read(path, *pairs)
    assert "\n" not in str(error.value)


def test_the_pyramid_is_as_wide_as_the_head(configs: Path) -> None:
    wide = ("MODEL.FPN.OUT_CHANNELS", "128", f"{OWN}HIDDEN_DIM", "128")
    assert read(configs / "resnet.yaml", *wide).scale.models["diffusiondet"]["hidden_dim"] == 128


def test_what_detectron2_does_not_look_at_either_is_named(configs: Path) -> None:
    made = read(
        configs / "resnet.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", "1203", "MODEL.RPN.NMS_THRESH", "0.5", "SEED", "-1"
    )
    assert made.notes[0] == (
        "the command line: without effect, because DiffusionDet does not look there: MODEL.ROI_HEADS.NUM_CLASSES, "
        "MODEL.RPN.NMS_THRESH"
    )
    assert made.seed == 0 and "SEED -1 is 0 here" in made.notes[1]


def test_guidance_of_a_step_that_is_left_out_is_named(configs: Path) -> None:
    guided = (f"{OWN}QUALITY_GUIDANCE_SCALE", "0.1", f"{OWN}QUALITY_GUIDANCE_MODE", "final", f"{OWN}SAMPLE_STEP")
    assert read(configs / "resnet.yaml", *guided, "1").notes == []
    (note,) = read(configs / "resnet.yaml", *guided, "2").notes
    assert "QUALITY_GUIDANCE_MODE final guides the last step alone, which of several steps is left out" in note


# Detectron2 itself


def test_values_are_those_that_detectron2_reads(configs: Path) -> None:
    """Where the public DiffusionDet is importable, its own files are read as well."""
    reason = "needs Detectron2 and the public DiffusionDet on the path"
    get_cfg = pytest.importorskip("detectron2.config", reason=reason).get_cfg
    public = pytest.importorskip("diffusiondet", reason=reason)
    add_ema = importlib.import_module("diffusiondet.util.model_ema").add_model_ema_configs

    def theirs(path: Path | None, pairs: list[str]) -> Any:
        config = get_cfg()
        public.add_diffusiondet_config(config)
        add_ema(config)
        if path:
            config.merge_from_file(str(path))
        config.merge_from_list(pairs)
        return config

    def at(config: Any, name: str) -> Any:
        for part in name.split("."):
            if part not in config:
                return NOTHING
            config = config[part]
        return list(config) if isinstance(config, tuple) else config

    untouched = theirs(None, [])
    of_the_base_file = ("MODEL.BACKBONE.NAME", "POOLER", "MODEL.PIXEL_")  # Detectron2's defaults cannot be honoured
    for key in KEYS:
        if not any(name in key.name for name in of_the_base_file):
            default = list(key.default) if isinstance(key.default, tuple) else key.default
            assert at(untouched, key.name) in (default, NOTHING), key.name
    for name in FIXED:
        assert at(untouched, name) is not NOTHING or name.startswith(f"{OWN}SAMPLER_DISTILL_"), name
    files = [
        configs / "resnet.yaml",
        configs / "swin.yaml",
        *sorted(Path(public.__file__).parents[1].glob("configs/*.yaml")),
    ]
    pairs = [
        "SOLVER.MAX_ITER",
        "500",
        "INPUT.MIN_SIZE_TRAIN",
        "(480,)",
        "SOLVER.BASE_LR",
        "1e-4",
        f"{OWN}USE_NMS",
        "False",
    ]
    assert len(files) > 2
    whole = configs / "whole.yaml"  # as Detectron2 leaves it in every output folder
    whole.write_text(theirs(configs / "resnet.yaml", []).dump())
    made, short = read(whole), read(configs / "resnet.yaml")
    assert (made.scale, made.recipe.model, made.seed) == (short.scale, short.recipe.model, short.seed)
    for path in files:
        for overrides in ([], pairs):
            cfg, ours = theirs(path, overrides), read_values(path, overrides)
            for name, value in ours.items():
                own = list(value.value) if isinstance(value.value, tuple) else value.value
                assert at(cfg, name) == own, (path.name, name)


# The verb


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the project's params/, no data yet, and the configurations."""
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    return write_configs(tmp_path)


def test_a_batch_size_that_is_to_be_found(here: Path, command_line: CommandLine) -> None:
    code, _, told = command_line("train", "--config-file", "small.yaml", "--batch-size", "auto", "OUTPUT_DIR", "out/a")
    assert (code, "solver.batch_size auto needs device cuda" in told) == (2, True), told


def test_training_going_on_and_evaluating(here: Path, command_line: CommandLine) -> None:
    train = ("train", "--config-file", "small.yaml", "OUTPUT_DIR", "out/a", "SEED", 0)
    code, said, _ = command_line(*train)
    assert code == 0 and said.splitlines()[-1] == "out/a/model_final.pth"
    written = yaml.safe_load((here / "out/a/config.yaml").read_text())
    parts = {name: yaml.safe_load((here / f"out/a/{name}.yaml").read_text()) for name in ("recipe", "scale")}
    assert RecipeConfig(**parts["recipe"]).description == "made from small.yaml"
    copies = here / "copies/params"
    for place, name in (("recipes/small", "recipe"), ("scales/detectron2", "scale")):
        (copies / place).parent.mkdir(parents=True)
        (copies / f"{place}.yaml").write_text(yaml.safe_dump(parts[name]))
    assert resolve("small", 0, "detectron2", copies.parent) == RunConfig(**written)

    final = (here / "out/a/model_final.pth").read_bytes()
    assert command_line(*train)[0] == 0 and (here / "out/a/model_final.pth").read_bytes() == final
    longer = (*train, "SOLVER.MAX_ITER", 4)
    code, _, told = command_line(*longer)
    assert code == 2 and "solver.max_iter was 2, is now 4" in told and "add --if-changed resume" in told
    assert (here / "out/a/model_final.pth").read_bytes() == final
    assert command_line(*longer, "--resume")[0] == 0
    with (here / "out/a/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["mode"] == "val"] == ["2", "4"]

    weights = ("MODEL.WEIGHTS", "out/a/model_final.pth", "OUTPUT_DIR", "out/b")
    code, said, _ = command_line("train", "--config-file", "small.yaml", "--eval-only", *weights, "SEED", 0)
    assert code == 0 and said.splitlines()[:2] == ["copypaste: Task: bbox", "copypaste: AP,AP50,AP75,APs,APm,APl"]
    with (here / "out/b/results.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert (row["run"], row["train_seed"], row["eval_seed"], row["ckpt"]) == ("small", "0", "0", weights[1])
    assert row["AP"] == rows[-1]["AP"]  # what the training measured at its end
    assert said.splitlines()[2].startswith(f"copypaste: {row['AP']},{row['AP50']},")

    alone = ("train", "--config-file", "small.yaml", "--eval-only", *weights, "SEED", 0, "--set", "eval_batch_size=1")
    assert command_line(*alone)[0] == 0
    of_one = (here / "out/b/results.tsv").read_bytes()
    (here / "out/b/results.tsv").unlink()
    of_two = run(here, sys.executable, "-m", "noisebox", *map(str, alone), "--num-gpus", "2")
    assert (here / "out/b/results.tsv").read_bytes() == of_one
    assert of_two.stdout.count("copypaste: Task: bbox") == 1

    code, _, _ = command_line("train", "--config-file", "small.yaml", *weights, f"{OWN}QUALITY_HEAD", "True")
    record = yaml.safe_load((here / "out/b/run.json").read_text())
    assert code == 0 and record["parent"]["checkpoint"] == weights[1]
    assert record["parent"]["new"] and all("quality" in name for name in record["parent"]["new"])


def test_what_detectron2_trained_there_is_not_replaced(here: Path, command_line: CommandLine) -> None:
    """OUTPUT_DIR is by default that of Detectron2's own trainings."""
    train = ("train", "--config-file", "small.yaml")
    for name, text in (("output/model_final.pth", "days of training"), ("output/a/work/thesis.txt", "all of it")):
        (here / name).parent.mkdir(parents=True)
        (here / name).write_text(text)
        more = ("OUTPUT_DIR", "output/a") if "work" in name else ()
        for changed in ("refuse", "fresh"):
            code, _, told = command_line(*train, "--if-changed", changed, *more)
            assert (code, (here / name).read_text()) == (2, text)
            assert "which no training of noisebox made and this one would replace" in told
        shutil.rmtree(here / "output")


def test_mistakes_of_the_verb(here: Path, command_line: CommandLine) -> None:
    small = ("--config-file", "small.yaml")
    for words, sentence in {
        ("--config-file", "no.yaml"): "no.yaml does not exist",
        (*small, f"{OWN}NUM_CLASSES", 80): "NUM_CLASSES is 80, but dataset 'world_test' has 3: car, motorbike, person",
        (*small, "MODEL.WEIGHTS", "gone.pth"): "gone.pth does not exist; it must be a checkpoint",
        (*small, "--eval-only"): "--eval-only evaluates MODEL.WEIGHTS, the path of a checkpoint, and 'nothing'",
        (*small, "--seed", 3): "with --config-file, SEED, MODEL.WEIGHTS and OUTPUT_DIR say",
        (*small, "--num-gpus", 2, "MODEL.DEVICE", "cuda"): "--num-gpus 2 needs as many GPUs, and 0 can be seen here",
        (*small, "--iter", 5): "option '--iter' does not exist here",
        (): "noisebox train takes one lineage, such as baseline",
        ("baseline", "SOLVER.MAX_ITER", 5): "'SOLVER.MAX_ITER' is one word too many; KEY VALUE go with --config-file",
        ("baseline", "--resume"): "--eval-only, --resume and --num-gpus go with --config-file",
    }.items():
        code, _, told = command_line("train", *words)
        lines = [line for line in told.splitlines() if line.startswith("noisebox: ")]
        assert code == 2 and len(lines) == 1 and sentence in lines[0], (words, told)
    assert not (here / "output").exists() and not (here / "runs").exists()
