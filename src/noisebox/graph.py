"""Lineages, and where every artifact lies: the only file that knows paths. It imports nothing heavy.

`params/` says what exists, `Snakefile` and `dvc.yaml` say how it is made, and both engines and all verbs take their
paths from here (dvc.yaml spells them out, and a test holds it to this file).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from noisebox.errors import UserError

EXPERIMENT = "params/experiment.yaml"
DATA_MANIFEST = "data/detection.json"
DATA_PIN = "data.dvc"
REPORTS = "reports"
RUNS = "runs"
TRIES = "tries"
IMPORTED = "imported"  # of past experiments; results lie there in folders as below runs/, and are in git
MANIFEST = "results_manifest.tsv"
SEARCH_PLOTS = ("importance", "parallel", "history")
RESULTS_MANIFEST = f"{REPORTS}/{MANIFEST}"
LINE_NAMES = ("detection", "aerial", "bev")  # of research; each has a dataset
# The sections of params/experiment.yaml that list recipes and lineages, each with its line: one for each family,
# because its stages depend on the family's code.
SECTIONS = {"detection": "detection", "detr": "detection", "aerial": "aerial", "bev": "bev"}
SECTION_OF = {"diffusiondet": "detection", "detr": "detr", "yolc": "aerial", "bev": "bev"}  # by family
LINKED_CODE = "code"
METRICS = f"{REPORTS}/metrics"  # a folder: the scalars of each lineage, and nothing else
RECIPE_PATTERN = r"[a-z][a-z0-9_]*"
LINEAGE_PATTERN = rf"{RECIPE_PATTERN}(\+{RECIPE_PATTERN})*"

RUN_FILES = (
    "model_final.pth",
    "model_final.pth.sha256",
    "best.pth",
    "best.pth.sha256",
    "last.pth",
    "last.pth.sha256",
    "metrics.csv",
    "config.yaml",
    "run.json",
)
EPOCHS = "checkpoint_epoch_*.pth"  # beside RUN_FILES where the solver keeps them; their number varies: no engine's
BEST = {"bev": "best_mIoU.pth"}  # what a line calls its best.pth, where its users know another name
BEV_EVALUATION_FILES = ("results.tsv", "speed.tsv", "confusion.json", "maps.npz", "training.csv", "run.json")
EVALUATION_FILES = ("results.tsv", "speed.tsv", "detections.json", "breakdown.json", "training.csv", "run.json")
AERIAL_EVALUATION_FILES = (*EVALUATION_FILES, "looks.npz")
PLOTS = ("loss", "steps", "tradeoff", "distillation", "guidance", "errors", "curves", "confusion")
COMPARISON = ("miou", "iou", "loss", "lwce", "ldepth", "ldiff", "lr")  # plots of the BEV line
REPORT_FILES = (
    "summary.md",
    MANIFEST,
    "tables/main.tsv",
    "tables/differences.tsv",
    "tables/speed.tsv",
    "tables/steps.tsv",
    "tables/tradeoff.tsv",
    "tables/distillation.tsv",
    "tables/ablations.tsv",
    "tables/guidance.tsv",
    "tables/errors.tsv",
    "tables/sizes.tsv",
    "tables/imported.tsv",
    "tables/aerial.tsv",
    "tables/aerial_differences.tsv",
    *(f"plots/{name}.{form}" for name in PLOTS for form in ("png", "svg")),
    "pictures/detections.png",
    "tables/bev.tsv",
    "tables/bev_differences.tsv",
    "comparison/summary.md",
    *(f"comparison/{name}.{form}" for name in COMPARISON for form in ("png", "svg")),
    "pictures/bev.png",
    "pictures/aerial.png",
)

# What each verb computes with: files or folders below the repository's root. Both engines rerun a stage when one of
# these changes; a test holds each list to the verb's real imports, and `noisebox code` hands it on to DVC. Left out on
# purpose is what only names, words or speeds things (cli, graph, errors, interrupt, garbage), and for all verbs but
# `data` what draws the embedded worlds: data is known by its hash. What smoke, train and evaluate compute with besides
# depends on the family.
_CONFIG = tuple(
    f"src/noisebox/config/{name}.py"
    for name in ("__init__", "best", "experiment", "families", "resolve", "run", "sampling", "section")
)
_BASE = (*_CONFIG, *(f"src/noisebox/{name}.py" for name in ("files", "pixels", "progress", "randomness")))
_DATA = ("src/noisebox/data/catalog.py", "src/noisebox/data/datasets.py")
_RUN = (
    *_BASE,
    *_DATA,
    "src/noisebox/machine.py",
    "src/noisebox/processes.py",
    "src/noisebox/structures.py",
    "src/noisebox/data/stream.py",
    "src/noisebox/models/__init__.py",
    "src/noisebox/models/folding.py",
    "src/noisebox/models/winograd.py",
    "src/noisebox/tasks/__init__.py",
    "src/noisebox/evaluation/measuring.py",
    "src/noisebox/evaluation/ongoing.py",
)
_BOX_DATA = tuple(
    f"src/noisebox/data/{name}.py"
    for name in ("boxes", "coco", "crowdhuman", "detectron2", "lvis", "objects365", "visdrone", "voc")
)
_BEV_DATA = tuple(f"src/noisebox/data/{name}.py" for name in ("bev", "coco", "nuscenes", "nuscenes_tables"))
_DEPTH = tuple(f"src/noisebox/data/{name}.py" for name in ("depth", "depth_check", "depth_stage", "npz"))
CODE: dict[str, tuple[str, ...]] = {
    "data": (*_BASE, *_DATA, *_BOX_DATA, *_BEV_DATA, "src/noisebox/data/world"),
    "smoke": (*_RUN, "src/noisebox/training"),
    "train": (*_RUN, "src/noisebox/training"),
    "search": (*_RUN, "src/noisebox/training", "src/noisebox/config/search.py", "src/noisebox/search"),
    "evaluate": (*_RUN, "src/noisebox/training/checkpoint.py"),
    "depth_gt": (*_BASE, *_DATA, *_BEV_DATA, *_DEPTH),
    "report": (*_BASE, "src/noisebox/config/bev.py", "src/noisebox/config/search.py", "src/noisebox/report"),
}
_DETECTION = (
    *_BOX_DATA,
    "src/noisebox/data/federated.py",
    "src/noisebox/data/loader.py",
    "src/noisebox/data/transforms.py",
    "src/noisebox/evaluation/detection.py",
    "src/noisebox/evaluation/protocol.py",
    "src/noisebox/tasks/detection.py",
)
_DIFFUSION = tuple(
    f"src/noisebox/diffusion/{name}.py"
    for name in ("__init__", "categorical", "gaussian", "labels", "sampler", "suppression")
)
FAMILY_CODE: dict[str, tuple[str, ...]] = {
    "diffusiondet": (
        *_DETECTION,
        "src/noisebox/config/diffusiondet.py",
        *_DIFFUSION,
        "src/noisebox/models/backbone.py",
        "src/noisebox/models/clipping.py",
        "src/noisebox/models/giou.py",
        "src/noisebox/models/diffusiondet",
    ),
    "detr": (
        *_DETECTION,
        "src/noisebox/config/detr.py",
        "src/noisebox/models/backbone.py",
        "src/noisebox/models/clipping.py",
        "src/noisebox/models/giou.py",
        "src/noisebox/models/detr",
    ),
    "yolc": (
        *_DETECTION,
        "src/noisebox/config/yolc.py",
        "src/noisebox/models/backbone.py",
        "src/noisebox/models/clipping.py",
        "src/noisebox/models/yolc",
    ),
    "bev": (
        *_BEV_DATA,
        "src/noisebox/data/bev_loader.py",
        "src/noisebox/data/transforms.py",
        "src/noisebox/data/depth.py",
        "src/noisebox/data/npz.py",
        "src/noisebox/evaluation/bev.py",
        "src/noisebox/evaluation/evidence.py",
        "src/noisebox/evaluation/segmentation.py",
        "src/noisebox/tasks/bev.py",
        "src/noisebox/config/bev.py",
        "src/noisebox/models/backbone.py",
        "src/noisebox/models/bev",
    ),
}
_BOXES = tuple(f"src/noisebox/evaluation/{name}.py" for name in ("boxes", "breakdown", "evidence"))
EVALUATION_CODE: dict[str, tuple[str, ...]] = {
    "diffusiondet": _BOXES,
    "detr": _BOXES,
    "yolc": (*_BOXES, "src/noisebox/evaluation/aerial.py"),
    "bev": (),
}


@dataclass(frozen=True)
class Lineage:
    """A run's name taken apart: `baseline+geofeat` is recipe `geofeat` trained from `baseline`."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, name: str) -> "Lineage":
        """Raises UserError when `name` is not recipe names joined by '+'."""
        if not re.fullmatch(LINEAGE_PATTERN, name):
            raise UserError(
                f"{name!r} is no lineage: it must be recipe names joined by '+', such as baseline+geofeat, "
                "in lower-case letters, digits and '_'"
            )
        return cls(tuple(name.split("+")))

    @property
    def name(self) -> str:
        return "+".join(self.parts)

    @property
    def recipe(self) -> str:
        """The recipe of the last stage."""
        return self.parts[-1]

    @property
    def parent(self) -> "Lineage | None":
        return Lineage(self.parts[:-1]) if len(self.parts) > 1 else None

    def ancestry(self) -> Iterator["Lineage"]:
        """From the first training to this lineage itself."""
        for length in range(1, len(self.parts) + 1):
            yield Lineage(self.parts[:length])


def scale_file(scale: str) -> str:
    return f"params/scales/{scale}.yaml"


def recipe_file(recipe: str) -> str:
    return f"params/recipes/{recipe}.yaml"


def search_file(search: str) -> str:
    return f"params/searches/{search}.yaml"


def dataset_file(dataset: str) -> str:
    return f"params/datasets/{dataset}.yaml"


def dataset_folder(dataset: str) -> str:
    """Where `noisebox data` writes an embedded dataset."""
    return f"data/{dataset}"


def section_of(family: str) -> str:
    """The section of params/experiment.yaml that lists the recipes of a family."""
    return SECTION_OF.get(family, "detection")


def line_of(family: str) -> str:
    """The line of research that a family belongs to; each line has one dataset."""
    return SECTIONS[section_of(family)]


def data_manifest(line: str) -> str:
    """What describes the dataset of a line."""
    return f"data/{line}.json"


def depth_folder(split: str, of_tries: str | None = None) -> str:
    """Depth ground truth, one file per image: the graph's, or that which tries made of the dataset `of_tries`."""
    return f"{depth_of_tries(of_tries)}/{split}" if of_tries else f"depth_gt/{split}"


def depth_report(split: str, of_tries: str | None = None) -> str:
    """What the depth ground truth of a split holds, with the hash of each file."""
    return f"{depth_folder(split, of_tries)}.tsv"


def smoke_tsv(recipe: str) -> str:
    return f"{RUNS}/{recipe}/smoke.tsv"


def run_folder(lineage: str, seed: int | str) -> str:
    return f"{RUNS}/{lineage}/seed{seed}"


def work_folder(lineage: str, seed: int | str) -> str:
    """What a killed training goes on from; no engine declares it, so none deletes it."""
    return f"{run_folder(lineage, seed)}/work"


FINISHED = ".finished"  # in the folder of a run, until an engine has noted that it is finished


def try_folder(lineage: str, which: str) -> str:
    """Where a training with options lies: other than params/ say, so it is none of the graph's."""
    return f"{TRIES}/{lineage}/{which}"


def try_name(seed: int, scale: str | None = None, dataset: str | None = None) -> str:
    """What a try of a lineage is called: by its seed, and by scale and dataset where these are not the experiment's."""
    return "-".join(filter(None, [scale, dataset, f"seed{seed}"]))


def try_manifest(dataset: str) -> str:
    """What describes a dataset that tries alone are made on."""
    return f"{TRIES}/data/{dataset}.json"


def depth_of_tries(dataset: str) -> str:
    """Depth ground truth of a dataset that tries alone are made on."""
    return f"{TRIES}/depth_gt/{dataset}"


def checkpoint(lineage: str, seed: int | str, scale: str | None = None, dataset: str | None = None) -> str:
    """The weights of a run; of a try, where it is at another scale or on another dataset than the experiment."""
    elsewhere = scale or dataset
    folder = try_folder(lineage, try_name(int(seed), scale, dataset)) if elsewhere else run_folder(lineage, seed)
    return f"{folder}/model_final.pth"


def best_checkpoint(line: str) -> str:
    """The name of the checkpoint that validated best."""
    return BEST.get(line, "best.pth")


def run_files(line: str) -> list[str]:
    """The names of RUN_FILES in a line of research."""
    return [name.replace("best.pth", best_checkpoint(line)) for name in RUN_FILES]


def run_outputs(lineage: str, seed: int | str, line: str = "detection") -> list[str]:
    return [f"{run_folder(lineage, seed)}/{name}" for name in run_files(line)]


def evaluation_folder(lineage: str, seed: int | str) -> str:
    return f"evals/{lineage}/seed{seed}"


def evaluation_of(checkpoint: str, lineage: str, seed: int | str) -> str:
    """Where the evaluation of a checkpoint lies: that of a try beside it."""
    folder, _, _ = checkpoint.rpartition("/")
    return f"{folder}/evaluation" if checkpoint.startswith(f"{TRIES}/") else evaluation_folder(lineage, seed)


def evaluation_outputs(lineage: str, seed: int | str, section: str = "detection") -> list[str]:
    files = {"aerial": AERIAL_EVALUATION_FILES, "bev": BEV_EVALUATION_FILES}.get(section, EVALUATION_FILES)
    return [f"{evaluation_folder(lineage, seed)}/{name}" for name in files]


def evaluation_inputs(lineage: str, seed: int | str) -> list[str]:
    """What an evaluation reads of its run; the training curve and the provenance are passed on with the results."""
    return [f"{run_folder(lineage, seed)}/{name}" for name in ("model_final.pth", "metrics.csv", "run.json")]


def imported_folder(lineage: str, seed: int | str) -> str:
    """Results of past experiments that others made; the report depends on them, and no stage makes them."""
    return f"{IMPORTED}/{lineage}/seed{seed}"


def imported_results(root: Path = Path()) -> dict[str, tuple[str, int]]:
    """Every results.tsv in an `imported_folder` below `root`, with its lineage and train seed; in their order."""
    place = re.compile(rf"{IMPORTED}/(?P<lineage>{LINEAGE_PATTERN})/seed(?P<seed>\d+)/results\.tsv")
    paths = (path.relative_to(root).as_posix() for path in (root / IMPORTED).glob("*/*/results.tsv"))
    found = [match for path in paths if (match := place.fullmatch(path))]
    runs = {match[0]: (match["lineage"], int(match["seed"])) for match in found}
    return dict(sorted(runs.items(), key=lambda item: item[1]))


def search_folder(search: str) -> str:
    """The study of a search and its trials, which a killed search goes on from; no engine declares it."""
    return f"searches/{search}"


def search_csv(search: str) -> str:
    """What each trial of a search came to."""
    return f"{REPORTS}/searches/{search}.csv"


def search_report_outputs(search: str) -> list[str]:
    plots = [f"{search}_{name}.{form}" for name in SEARCH_PLOTS for form in ("png", "svg")]
    return [f"{REPORTS}/searches/{name}" for name in (f"{search}.md", *plots)]


def deliverable(name: str) -> str:
    """A frozen folder, laid out below like the repository."""
    return f"deliverables/{name}"


def report_outputs() -> list[str]:
    return [f"{REPORTS}/{name}" for name in REPORT_FILES]


def log_file(verb: str, *subject: str | int) -> str:
    """Where a verb logs; raises UserError where its subject is no name, and the log would lie elsewhere."""
    for part in map(str, subject):
        if "/" in part or part in ("", ".", ".."):
            raise UserError(f"{part!r} is no name: it must be one of params/, without folder and ending")
    return "/".join(["logs", verb, *map(str, subject)]) + ".log"


def trace_file(lineage: str, seed: int | str) -> str:
    """What `noisebox train --profile` writes."""
    return f"traces/{lineage}/seed{seed}.json.gz"


def code_entries(verb: str, family: str | None = None) -> list[str]:
    """What the tables above list for a verb, with those of a family: files and folders."""
    of_family = FAMILY_CODE[family] if family else ()
    of_evaluation = EVALUATION_CODE[family] if family and verb == "evaluate" else ()
    return sorted({*CODE[verb], *of_family, *of_evaluation})


def code_files(verb: str, family: str | None = None, root: Path = Path()) -> list[str]:
    """The Python files behind a verb, folders expanded, with those of a family."""
    files: set[str] = set()
    for entry in code_entries(verb, family):
        path = root / entry
        found = path.rglob("*.py") if path.is_dir() else [path]
        files |= {file.relative_to(root).as_posix() for file in found}
    return sorted(files)


def code_folder(verb: str, family: str | None = None) -> str:
    """Links to the files that are listed one by one, so that DVC takes them for a single dependency."""
    return f"{LINKED_CODE}/{verb}-{family}" if family else f"{LINKED_CODE}/{verb}"
