"""The time of `noisebox report` over many runs, each evaluated by every protocol, with invented numbers."""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from numpy.random import Generator
from PIL import Image

from noisebox import graph
from noisebox.bench.counting import found_in
from noisebox.bench.made import record, run_config, split_of
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.config import ExperimentConfig
from noisebox.data.coco import CocoSplit
from noisebox.evaluation.boxes import pictures, result_rows, shown
from noisebox.evaluation.breakdown import breakdown
from noisebox.evaluation.detection import NAMES, DetectionMetrics
from noisebox.evaluation.evidence import speed_rows, write_tsv
from noisebox.evaluation.measuring import Asked
from noisebox.evaluation.protocol import Measurement
from noisebox.files import write_json, write_text
from noisebox.randomness import numpy_generator

RUNS, LINEAGES = 500, 10
IMAGE, IMAGES, PICTURED = (120, 160), 20, 4  # height and width; of the validation split, and of those in the picture
ITERATIONS, LOGGED = 2000, 100
STUDENT = "baseline+student"


def timings(settings: BenchSettings) -> list[Timing]:
    """The whole command, from its start to its end: `settings.items` results.tsv of LINEAGES lineages."""
    runs = settings.items or RUNS
    with tempfile.TemporaryDirectory() as folder:
        experiment = _experiment(max(1, runs // LINEAGES))
        _evaluate(experiment, settings, Path(folder))
        command = [sys.executable, "-m", "noisebox", "report"]
        work = timed(
            lambda: subprocess.run(command, cwd=folder, capture_output=True, check=True),
            settings,
            part="report",
            what="noisebox report",
            unit=f"{len(experiment.lineages) * len(experiment.train_seeds)} runs",
        )
    return [work]


def _experiment(train_seeds: int) -> ExperimentConfig:
    """Finetunes of one baseline, the last of which is its student; every protocol is asked of some."""
    recipes = ["baseline", *(f"finetune{number}" for number in range(LINEAGES - 2)), "student"]
    lineages = ["baseline", *(f"baseline+{recipe}" for recipe in recipes[1:])]
    asked = {lineage: ["main"] for lineage in lineages}
    asked["baseline"] += ["steps", "guidance", "ablations", "distillation"]
    asked[STUDENT] += ["ablations", "distillation"]
    guidance = {"scales": [0, 0.1, 0.3], "modes": ["final", "all"], "langevin_steps": [1, 2]}
    content = {
        "scale": "bench",
        "train_seeds": list(range(train_seeds)),
        "recipes": recipes,
        "scratch": ["baseline"],
        "parents": {recipe: ["baseline"] for recipe in recipes[1:]},
        "lineages": lineages,
        "asked": asked,
        "protocols": {
            "main": {"eval_seeds": [0, 1, 2, 3, 4], "sample_steps": [1, 5]},
            "steps": {"eval_seeds": [0, 1], "sample_steps": [1, 5, 10, 20, 50]},
            "guidance": {"eval_seeds": [0], "sample_steps": [2], **guidance},
            "ablations": {"eval_seeds": [0, 1], "sample_steps": [1]},
            "distillation": {"eval_seeds": [0, 1], "sample_steps": [1, 2, 4]},
        },
        "ablations": {"teacher": {"none": "baseline", "baseline": STUDENT}},
        "pictures": {"images": PICTURED, "lineages": lineages[:3]},
    }
    return ExperimentConfig.model_validate(content)


def _evaluate(experiment: ExperimentConfig, settings: BenchSettings, root: Path) -> None:
    """Write what `noisebox evaluate` would for every lineage and train seed."""
    records = [record(index + 1, Path(f"{index}.png"), IMAGE, settings) for index in range(IMAGES)]
    split = split_of(records, settings)
    for image in records:
        Image.new("RGB", (image.width, image.height), "grey").save(root / image.path)
    write_text(root / graph.EXPERIMENT, yaml.safe_dump(experiment.model_dump(mode="json", exclude_none=True)))
    found = dict(found_in(split))
    broken_down = breakdown(split, [found])
    for lineage in experiment.lineages:
        asked = experiment.asked_of(lineage)
        for train_seed in experiment.train_seeds:
            random = numpy_generator(train_seed, "bench results", lineage)
            _write(root, lineage, train_seed, asked, split, random, settings)
            sampling = shown(asked)
            measured = Measurement(detections={(asked[sampling][0], sampling): found})
            folder = root / graph.evaluation_folder(lineage, train_seed)
            write_json(folder / "detections.json", pictures(split, PICTURED, asked, measured))
            facts = {"sample_step": sampling.steps, "eval_seeds": list(asked[sampling])}
            write_json(folder / "breakdown.json", {**facts, **broken_down})


def _write(
    root: Path,
    lineage: str,
    train_seed: int,
    asked: Asked,
    split: CocoSplit,
    random: Generator,
    settings: BenchSettings,
) -> None:
    """A run's results, speed, curve and provenance."""
    folder = root / graph.evaluation_folder(lineage, train_seed)
    config = run_config(settings).model_copy(update={"lineage": lineage, "seed": train_seed})
    digest = f"{len(lineage):032d}{train_seed:032d}"
    evidence = {"ckpt": graph.checkpoint(lineage, train_seed), "ckpt_sha256": digest}

    def measured() -> DetectionMetrics:
        percentages = iter(random.uniform(10, 60, len(NAMES) + len(split.classes)).tolist())
        return DetectionMetrics(
            {name: next(percentages) for name in NAMES}, dict(zip(split.classes, percentages, strict=True))
        )

    metrics = {(seed, sampling): measured() for sampling, seeds in asked.items() for seed in seeds}
    write_tsv(folder / "results.tsv", result_rows(config, split, Measurement(metrics), evidence))
    seconds = {sampling: float(0.01 * sampling.steps * random.uniform(0.9, 1.1)) for sampling in asked}
    write_tsv(folder / "speed.tsv", speed_rows(config, asked, seconds, evidence))
    steps = range(ITERATIONS // LOGGED, ITERATIONS + 1, ITERATIONS // LOGGED)
    curve = [f"train,bench,{step},{20 / step + random.uniform(0, 0.1):.6g},0.001" for step in steps]
    write_text(folder / "training.csv", "\n".join(["mode,phase,step,loss,lr", *curve]) + "\n")
    teacher = {"lineage": "baseline", "seed": train_seed, "checkpoint": graph.checkpoint("baseline", train_seed)}
    teacher |= {"sha256": f"{8:032d}{train_seed:032d}", "kind": "sampler", "teacher_steps": 4, "student_steps": 1}
    facts = {"dataset": "bench", "data_hash": "d" * 64, "git_commit": "c" * 40, "git_dirty": False}
    facts |= {"iterations": ITERATIONS, "teacher": teacher if lineage == STUDENT else None}
    write_json(folder / "run.json", {**facts, "checkpoint": {"size": 1, "written": None}})
