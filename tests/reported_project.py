"""A repository with lineages trained, evaluated and reported in a second; its detector knows the boxes, nearly."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from coco_files import HEIGHT, WIDTH, content, write
from torch import Tensor, nn
from toy_detector import toy_config

from noisebox import graph
from noisebox.config import ExperimentConfig, ImageConfig, RunConfig, Sampling, Section
from noisebox.config.diffusiondet import LossConfig
from noisebox.config.families import SECTIONS, Family
from noisebox.data.catalog import open_split, prepare_dataset
from noisebox.evaluation.boxes import evaluate
from noisebox.models import FAMILIES, Detector, build_model
from noisebox.randomness import numpy_generator
from noisebox.report.evaluations import imported_path, read_run, results_path
from noisebox.report.manifest import read_manifest, report_entries, write_manifest
from noisebox.structures import Batch, Detections
from noisebox.tasks import EVALUATIONS
from noisebox.training.checkpoint import save_checkpoint
from noisebox.training.provenance import environment

CLASSES = ("dog", "cat", "cow")
SPREADS = {"baseline": 3.0, "baseline+finetune": 2.0}  # pixels
SEEDS = (0, 1)
DATASET = "tiny"
WRITTEN = "2026-02-03T04:05:06Z"


class KnowingConfig(Section):
    spread: float = 3.0


FAMILY = Family(KnowingConfig, LossConfig)


class KnowingDetector(Detector):
    """Finds every object, with keyed noise on its box: less with more steps and with guidance."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(spread))

    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def encode(self, batch: Batch) -> Any:
        return None

    def detect(
        self, encoded: Any, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Detections]]:
        return [[self._found(batch, row, seed, sampling) for row in range(len(batch))] for seed in eval_seeds]

    def _found(self, batch: Batch, row: int, seed: int, sampling: Sampling) -> Detections:
        truth = batch.targets[row]
        noise = numpy_generator(seed, "knowing", batch.image_ids[row]).normal(0, 1, truth.boxes_xyxy.shape)
        boxes = truth.boxes_xyxy + self.spread * torch.from_numpy(noise).float() / (
            sampling.steps + sampling.guidance.scale
        )
        return Detections(boxes, torch.linspace(0.9, 0.1, len(truth.labels)), truth.labels)

    def check_sampling(self, sampling: Sampling) -> None:
        pass

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {}


def build(config: RunConfig, num_classes: int, fetch_weights: bool = True) -> KnowingDetector:
    return KnowingDetector(config.model.spread)


def register(set_item: Callable[[Any, Any, Any], None]) -> None:
    """Enter the family into the tables; `set_item` is monkeypatch.setitem."""
    set_item(SECTIONS, "knowing", __name__)
    set_item(FAMILIES, "knowing", __name__)
    set_item(EVALUATIONS, "knowing", "noisebox.evaluation.boxes")


def an_experiment() -> ExperimentConfig:
    lineages = list(SPREADS)
    guidance = {"scales": [0, 0.5], "modes": ["all"], "langevin_steps": [2]}
    return ExperimentConfig(
        scale="test",
        train_seeds=list(SEEDS),
        recipes=["baseline", "finetune"],
        scratch=["baseline"],
        parents={"finetune": ["baseline"]},
        lineages=lineages,
        asked={"baseline": ["main"], "baseline+finetune": ["main", "guidance"]},
        protocols={
            "main": {"eval_seeds": [0, 1, 4], "sample_steps": [1, 2]},
            "guidance": {"eval_seeds": [1], "sample_steps": [2], **guidance},
        },
        pictures={"images": 1, "lineages": lineages},
    )


def make_project(root: Path) -> Path:
    """Write the repository; its family is known only while this runs and while `register` holds."""
    with pytest.MonkeyPatch.context() as patch:
        register(patch.setitem)
        for split in ("train", "val"):
            write(root / "data/tiny", split, content(images=6))
        definition = {
            split: {"images": f"data/tiny/images/{split}", "annotations": f"data/tiny/{split}.json"}
            for split in ("train", "val")
        }
        dataset = root / graph.dataset_file(DATASET)
        dataset.parent.mkdir(parents=True)
        dataset.write_text(yaml.safe_dump({"kind": "coco", **definition, "classes": list(CLASSES)}))
        data_hash = prepare_dataset(DATASET, root)["hash"]
        experiment = an_experiment()
        (root / graph.EXPERIMENT).write_text(yaml.safe_dump(experiment.model_dump(mode="json", exclude_none=True)))
        patch.chdir(root)
        for lineage, spread in SPREADS.items():
            for seed in SEEDS:
                _train(lineage, seed, spread + seed / 10, data_hash)
                _evaluate(experiment, lineage, seed)
        for path in graph.report_outputs():
            if path.endswith(".tsv") and path != graph.RESULTS_MANIFEST:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text("run\tAP\nbaseline\t12.3456\n")
    report(root)
    return root


def _train(lineage: str, seed: int, spread: float, data_hash: str) -> None:
    """Write graph.RUN_FILES as far as anything here reads them."""
    config = toy_config(lineage=lineage, seed=seed).model_copy(
        update={
            **{"family": "knowing", "dataset": DATASET, "model": KnowingConfig(spread=spread)},
            "image": ImageConfig(eval_short_edge=HEIGHT, max_edge=WIDTH),
        }
    )
    run = Path(graph.run_folder(lineage, seed))
    save_weights(run / "model_final.pth", config, spread)
    (run / "metrics.csv").write_text("mode,step,loss\ntrain,5,1.5\n")
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    facts = {"lineage": lineage, "seed": seed, "dataset": DATASET, "data_hash": data_hash, "iterations": 12}
    made = environment(config, Path()) | {"git_commit": "c" * 40, "git_dirty": lineage != "baseline"}
    timing = {"timing": {"wall_s": 3.0, "written": WRITTEN}}
    (run / "run.json").write_text(json.dumps({**facts, "parent": None, "teacher": None, **made, **timing}))


def save_weights(path: Path, config: RunConfig, spread: float) -> None:
    state = {"model": KnowingDetector(spread).state_dict(), "config": config.model_dump(mode="json")}
    save_checkpoint(path, {**state, "classes": list(CLASSES), "iteration": 12})


def _evaluate(experiment: ExperimentConfig, lineage: str, seed: int) -> None:
    path = Path(graph.checkpoint(lineage, seed))
    state = torch.load(path, weights_only=True)
    config = RunConfig(**state["config"])
    model = build_model(config, len(CLASSES))
    model.load_state_dict(state["model"])
    evaluate(model, config, path, experiment.asked_of(lineage), 1, open_split(DATASET, "val"), list(CLASSES))


def report(root: Path) -> None:
    """Write the manifest as the report does."""
    runs = [read_run(lineage, seed, root) for lineage in SPREADS for seed in SEEDS]
    write_manifest(root / graph.RESULTS_MANIFEST, report_entries(an_experiment(), runs, root))


def import_results(root: Path, lineage: str, seed: int) -> Path:
    """Hand in results of a run as if they were somebody's, and make the manifest anew; returns where they lie."""
    header, *rows = (root / results_path(lineage, seed)).read_text().splitlines()
    path = root / imported_path(lineage, seed)
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([f"{header}\tsource", *(f"{row}\told/log.txt:7" for row in rows)]) + "\n")
    report(root)
    return path


def hash_anew(root: Path, *paths: str) -> None:
    """Make the manifest agree with files that were tampered with."""
    manifest = root / graph.RESULTS_MANIFEST
    entries = [
        replace(entry, sha256=hashlib.sha256((root / entry.path).read_bytes()).hexdigest())
        if entry.path in paths
        else entry
        for entry in read_manifest(manifest)
    ]
    write_manifest(manifest, entries)
