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
DATA_MANIFEST = "data/manifest.json"
DATA_PIN = "data.dvc"
REPORTS = "reports"
MANIFEST = "results_manifest.tsv"
RESULTS_MANIFEST = f"{REPORTS}/{MANIFEST}"
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
EVALUATION_FILES = ("results.tsv", "speed.tsv", "detections.json", "training.csv", "run.json")
REPORT_FILES = (
    "summary.md",
    MANIFEST,
    "metrics.json",
    "tables/main.tsv",
    "tables/differences.tsv",
    "tables/speed.tsv",
    "tables/steps.tsv",
    "tables/tradeoff.tsv",
    "tables/distillation.tsv",
    "tables/ablations.tsv",
    "tables/guidance.tsv",
    "plots/loss.png",
    "plots/steps.png",
    "plots/tradeoff.png",
    "plots/distillation.png",
    "plots/guidance.png",
    "pictures/detections.png",
)

# What each verb computes with: files or folders below the repository's root. Both engines rerun a stage when one of
# these changes; a test holds each list to the verb's real imports. What only names or words things (cli, graph,
# errors) is left out on purpose. A training depends on its own family's model, smoke and evaluate on all.
_BASE = ("src/noisebox/config.py", "src/noisebox/files.py", "src/noisebox/progress.py", "src/noisebox/randomness.py")
_DATASET = ("src/noisebox/data/catalog.py", "src/noisebox/data/coco.py", "src/noisebox/data/world")
_DETECTION = (
    *_BASE,
    *_DATASET,
    "src/noisebox/structures.py",
    "src/noisebox/data/loader.py",
    "src/noisebox/data/transforms.py",
    "src/noisebox/evaluation/detection.py",
    "src/noisebox/evaluation/protocol.py",
)
CODE: dict[str, tuple[str, ...]] = {
    "data": (*_BASE, *_DATASET),
    "smoke": (*_DETECTION, "src/noisebox/diffusion", "src/noisebox/models", "src/noisebox/training"),
    "train": (*_DETECTION, "src/noisebox/models/__init__.py", "src/noisebox/training"),
    "evaluate": (
        *_DETECTION,
        "src/noisebox/diffusion",
        "src/noisebox/models",
        "src/noisebox/training/checkpoint.py",
    ),
    "report": (*_BASE, "src/noisebox/report"),
}
FAMILY_CODE: dict[str, tuple[str, ...]] = {
    "diffusiondet": ("src/noisebox/diffusion", "src/noisebox/models/backbone.py", "src/noisebox/models/diffusiondet"),
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


def dataset_file(dataset: str) -> str:
    return f"params/datasets/{dataset}.yaml"


def dataset_folder(dataset: str) -> str:
    """Where `noisebox data` writes an embedded dataset."""
    return f"data/{dataset}"


def smoke_tsv(recipe: str) -> str:
    return f"runs/{recipe}/smoke.tsv"


def run_folder(lineage: str, seed: int | str) -> str:
    return f"runs/{lineage}/seed{seed}"


def work_folder(lineage: str, seed: int | str) -> str:
    """What a killed training goes on from; no engine declares it, so none deletes it."""
    return f"{run_folder(lineage, seed)}/work"


def checkpoint(lineage: str, seed: int | str) -> str:
    return f"{run_folder(lineage, seed)}/model_final.pth"


def run_outputs(lineage: str, seed: int | str) -> list[str]:
    return [f"{run_folder(lineage, seed)}/{name}" for name in RUN_FILES]


def evaluation_folder(lineage: str, seed: int | str) -> str:
    return f"evals/{lineage}/seed{seed}"


def evaluation_outputs(lineage: str, seed: int | str) -> list[str]:
    return [f"{evaluation_folder(lineage, seed)}/{name}" for name in EVALUATION_FILES]


def evaluation_inputs(lineage: str, seed: int | str) -> list[str]:
    """What an evaluation reads of its run; the training curve and the provenance are passed on with the results."""
    return [f"{run_folder(lineage, seed)}/{name}" for name in ("model_final.pth", "metrics.csv", "run.json")]


def deliverable(name: str) -> str:
    """A frozen folder, laid out below like the repository."""
    return f"deliverables/{name}"


def report_outputs() -> list[str]:
    return [f"{REPORTS}/{name}" for name in REPORT_FILES]


def log_file(verb: str, *subject: str | int) -> str:
    return "/".join(["logs", verb, *(str(part) for part in subject)]) + ".log"


def code_files(verb: str, family: str | None = None, root: Path = Path()) -> list[str]:
    """The Python files behind a verb, folders expanded; for `train` with those of the detector's family."""
    files: set[str] = set()
    for entry in (*CODE[verb], *(FAMILY_CODE[family] if family else ())):
        path = root / entry
        found = path.rglob("*.py") if path.is_dir() else [path]
        files |= {file.relative_to(root).as_posix() for file in found}
    return sorted(files)
