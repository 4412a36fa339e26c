"""The report: its arithmetic against published and brute-force numbers, its bytes, its words, and what it refuses."""

import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from noisebox import graph
from noisebox.config import ExperimentConfig, Sampling
from noisebox.errors import UserError
from noisebox.pixels import rgb_pixels
from noisebox.report import evaluations, imported, pictures, plots, summary, tables
from noisebox.report.breakdown import KINDS
from noisebox.report.manifest import read_manifest

CLASSES = ("car", "motorbike", "person")
LINEAGES = ("baseline", "baseline+finetune")
STUDENT = "baseline+distill"
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AP-{name}" for name in CLASSES)]
UNGUIDED = (0.0, "none", 0, 0)
PROTOCOLS: dict[str, dict[str, Any]] = {
    "steps": {"eval_seeds": [0, 3], "sample_steps": [10, 1]},
    "guidance": {
        **{"eval_seeds": [1, 2], "sample_steps": [5]},
        **{"scales": [0, 0.1, 0.5], "modes": ["final", "all"], "langevin_steps": [1, 2]},
    },
    "ablations": {"eval_seeds": [0, 1], "sample_steps": [1]},
    "distillation": {"eval_seeds": [0, 4], "sample_steps": [1, 2, 10]},
}

ASKED = {
    "main": LINEAGES,
    "steps": ("baseline",),
    "guidance": ("baseline+finetune",),
    "ablations": (*LINEAGES, STUDENT),
    "distillation": ("baseline", STUDENT),
}
ABLATIONS = {
    "length": {"short": "baseline", "long": "baseline+finetune"},
    "lesson": {"objects": "baseline+finetune", "teacher": STUDENT, "neither": "baseline"},
}


def an_experiment(
    lineages: tuple[str, ...] = LINEAGES,
    train_seeds: tuple[int, ...] = (0, 1),
    protocols: dict[str, dict[str, Any]] | None = None,
    asked: dict[str, tuple[str, ...]] | None = None,
) -> ExperimentConfig:
    """`asked` says by which lineages each of the protocols is asked, where not as in ASKED."""
    protocols = {"main": {"eval_seeds": [0, 1, 2], "sample_steps": [1, 5]}, **(protocols or {})}
    asked = {name: {**ASKED, **(asked or {})}[name] for name in protocols}
    parents = {lineage.partition("+")[2]: ["baseline"] for lineage in lineages if "+" in lineage}
    shown = [lineage for lineage in lineages if lineage != STUDENT]
    return ExperimentConfig(
        scale="test",
        train_seeds=list(train_seeds),
        recipes=["baseline", *parents],
        scratch=["baseline"],
        parents=parents,
        lineages=list(lineages),
        asked={lineage: [name for name in asked if lineage in asked[name]] for lineage in lineages},
        protocols=protocols,
        ablations=ABLATIONS if "ablations" in protocols else {},
        pictures={"images": 2, "lineages": shown},
    )


def a_full_experiment(
    protocols: dict[str, dict[str, Any]] | None = None, asked: dict[str, tuple[str, ...]] | None = None
) -> ExperimentConfig:
    """Every protocol; of three lineages the student is in the ablations and the distillation alone."""
    return an_experiment((*LINEAGES, STUDENT), protocols={**PROTOCOLS, **(protocols or {})}, asked=asked)


def evaluated(root: Path, experiment: ExperimentConfig, lesson: dict[str, Any] | None = None) -> Path:
    """Write what `noisebox evaluate` would, with invented numbers that differ in every cell; `lesson` changes what the
    student's run.json says of its teacher."""
    rng = np.random.default_rng(5)
    for image in range(2):
        path = root / f"data/images/{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(90, 110, (48, 64, 3), dtype=np.uint8)).save(path)
    for lineage in experiment.detectors():
        for seed in experiment.train_seeds:
            write_evaluation(root, lineage, seed, experiment, lesson or {}, rng)
    return root


def checkpoint_sha256(lineage: str, seed: int) -> str:
    return f"{len(lineage):02d}{seed}" + "a" * 61


def cells(sampling: Sampling) -> dict[str, Any]:
    guidance = sampling.guidance
    guided = (guidance.scale, guidance.mode, guidance.langevin_steps, guidance.topk or 0)
    of_guidance = zip(evaluations.GUIDANCE, guided if guidance.scale else UNGUIDED, strict=True)
    return {"sample_step": sampling.steps, **dict(of_guidance), "crops": 0}


def write_evaluation(
    root: Path,
    lineage: str,
    seed: int,
    experiment: ExperimentConfig,
    lesson: dict[str, Any],
    rng: np.random.Generator,
) -> None:
    folder, checkpoint = root / graph.evaluation_folder(lineage, seed), root / graph.checkpoint(lineage, seed)
    for path in (folder, checkpoint.parent):
        path.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(b"weights")
    evidence = {"ckpt": graph.checkpoint(lineage, seed), "ckpt_sha256": checkpoint_sha256(lineage, seed)}
    run = {"run": lineage, "train_seed": seed}
    results, speed = [], []
    for sampling, eval_seeds in experiment.asked_of(lineage).items():
        for eval_seed in eval_seeds:
            scores = {name: f"{rng.uniform(10, 60):.4f}" for name in METRICS}
            results.append({**run, "eval_seed": eval_seed, **cells(sampling), **scores, "images": 80, **evidence})
        seconds = {1: 0.01, 5: 0.15 if seed else 0.05}.get(sampling.steps, 0.04 * sampling.steps)
        seconds *= 1 + 4 * sampling.guidance.scale * sampling.guidance.langevin_steps
        timing = {"inference_s_per_img": f"{seconds:.6f}", "inference_fps": f"{1 / seconds:.3f}", "device": "cpu"}
        settings = {"threads": 1, "batch": 16, "eval_seeds": len(eval_seeds)}
        speed.append({**run, **cells(sampling), **timing, **settings, **evidence})
    write_rows(folder / "results.tsv", results)
    write_rows(folder / "speed.tsv", speed)
    rows = [f"train,{lineage},{step},{20 / step:.6g},0.001," for step in range(2, 14, 2)]
    curve = ["mode,phase,step,loss,lr,AP", *rows, f"val,{lineage},12,,,33.1"]
    (folder / "training.csv").write_text("\n".join(curve) + "\n")
    teacher = {
        **{"lineage": "baseline", "seed": seed, "checkpoint": graph.checkpoint("baseline", seed)},
        **{"sha256": checkpoint_sha256("baseline", seed), "kind": "sampler", "teacher_steps": 10, "student_steps": 2},
        **lesson,
    }
    facts = {"dataset": "world_test", "data_hash": "d" * 64, "git_commit": "c" * 40, "git_dirty": True}
    learned = {"iterations": 12, "teacher": teacher if lineage == STUDENT else None}
    (folder / "run.json").write_text(json.dumps({**facts, **learned}))
    boxes = [{"box_xyxy": [8, 16, 24, 40], "label": "car"}]
    found = [{**boxes[0], "score": 0.8}, {"box_xyxy": [30, 5, 50, 20], "label": "person", "score": 0.1}]
    size = {"width": 64, "height": 48}
    images = [
        {"id": k, "file": f"data/images/{k}.png", **size, "ground_truth": boxes, "detections": found[k:]}
        for k in range(2)
    ]
    detections = {"sample_step": 5, "eval_seed": 0, "score_threshold": 0.05, "images": images}
    (folder / "detections.json").write_text(json.dumps(detections))
    (folder / "breakdown.json").write_text(json.dumps(a_breakdown(np.random.default_rng([len(lineage), seed]))))


OBJECTS = (10, 4, 0)  # no person


def a_breakdown(rng: np.random.Generator) -> dict[str, Any]:
    """What an evaluation says of two eval seeds at five steps; of large objects there are none."""
    invented = [[round(number, 4) if count else None for number in rng.uniform(0, 60, 4)] for count in OBJECTS]
    sizes = dict(zip(("all", "small", "medium", "large"), zip(*invented, strict=True), strict=True))
    falls = [[round(1 - k / 100, 2) if count else None for k in range(101)] for count in OBJECTS]
    counts = rng.integers(0, 9, (4, 4)).tolist()
    errors = {kind: {"count": int(rng.integers(0, 99)), "cost": round(rng.uniform(0, 30), 4)} for kind in KINDS}
    return {
        **{"sample_step": 5, "eval_seeds": [0, 1], "images": 80, "classes": CLASSES, "objects": OBJECTS},
        **{"AP50": round(rng.uniform(10, 60), 4), "curves": {"0.5": falls, "0.75": falls}},
        **{"sizes": {**sizes, "large": [None] * 3}, "confusion": {"iou": 0.5, "score": 0.3, "counts": counts}},
        "errors": {"iou": 0.5, "near": 0.1, **errors},
    }


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, lineterminator="\n")


def edit_results(root: Path, lineage: str, seed: int, edit: Callable[[pd.DataFrame], object]) -> None:
    path = root / evaluations.results_path(lineage, seed)
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    edit(table)
    table.to_csv(path, sep="\t", index=False, lineterminator="\n")


def markdown_rows(text: str, heading: str) -> list[list[str]]:
    """The body cells of the first table below a heading, links reduced to their text."""
    table = text.split(heading + "\n", 1)[1].strip().split("\n\n")[0].splitlines()
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in table]
    return [[cell.strip(" `") for cell in line[1:-1].split(" | ")] for line in plain[2:]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return evaluated(tmp_path, an_experiment())


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that nobody changes."""
    root = evaluated(tmp_path_factory.mktemp("reported"), an_experiment())
    summary.write_report(an_experiment(), root)
    return root


@pytest.fixture(scope="module")
def fully_reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of every protocol that nobody changes."""
    root = evaluated(tmp_path_factory.mktemp("full"), a_full_experiment())
    summary.write_report(a_full_experiment(), root)
    return root


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what looks at words and numbers alone: drawing takes nearly all of a report's time."""
    monkeypatch.setattr(summary, "_write_plots", lambda evidence, found, folder: None)


# The arithmetic


def test_numbers_in_the_summary_are_those_of_the_results(reported: Path) -> None:
    raw = pd.concat(
        [
            pd.read_csv(reported / evaluations.results_path(lineage, seed), sep="\t")
            for lineage in LINEAGES
            for seed in (0, 1)
        ]
    )
    written = pd.read_csv(reported / "reports/tables/main.tsv", sep="\t")
    shown = markdown_rows((reported / "reports/summary.md").read_text(), "## Average precision")
    assert [row[:3] for row in shown] == [[lineage, "12", step] for lineage in LINEAGES for step in "15"]
    for row, cells in zip(written.to_dict("records"), shown, strict=True):
        runs = raw[(raw["run"] == row["run"]) & (raw["sample_step"] == row["sample_step"])]
        for name in METRICS:
            assert row[name] == pytest.approx(runs.groupby("train_seed")[name].mean().mean(), abs=1e-4)
        means = runs.groupby("train_seed")["AP"].mean()
        ends = stats.t.interval(0.95, 1, means.mean(), stats.sem(means))
        assert (row["AP_low"], row["AP_high"]) == pytest.approx(ends, abs=1e-3)
        numbers = [row[name] for name in ("AP_std", "AP_std_flat", "AP50", "AP75")]
        shown_interval = f"{row['AP_low']:.2f} to {row['AP_high']:.2f}".replace("-", "−")
        shown_numbers = [f"{row['AP']:.2f}", shown_interval, *(f"{number:.2f}" for number in numbers)]
        assert cells[3:] == [*shown_numbers, "2 × 3", "seed0 seed1"]
        assert row["results"] == ",".join(evaluations.results_path(row["run"], seed) for seed in (0, 1))
    scalars = {lineage: scalars_of(reported, lineage) for lineage in LINEAGES}
    for row in written.to_dict("records"):
        told = [scalars[row["run"]][f"{name}@{row['sample_step']}"] for name in ("AP", "AP_std", "AP50")]
        assert told == [row["AP"], row["AP_std"], row["AP50"]]


def test_speed_is_that_of_speed_tsv(reported: Path) -> None:
    rows = markdown_rows((reported / "reports/summary.md").read_text(), "## Speed")
    assert [row[:5] for row in rows[:2]] == [
        ["baseline", "1", "0.0100", "100.0", "1.0"],
        ["baseline", "5", "0.1000", "10.0", "10.0"],
    ]


def test_errors_and_sizes_are_means_of_the_breakdowns(reported: Path) -> None:
    told = {
        lineage: [json.loads((reported / f"evals/{lineage}/seed{seed}/breakdown.json").read_text()) for seed in (0, 1)]
        for lineage in LINEAGES
    }
    rows = report_table(reported, "errors")
    assert [(row["run"], row["error"]) for row in rows] == list(itertools.product(LINEAGES, KINDS))
    for row in rows:
        one, other = (each["errors"][row["error"]] for each in told[row["run"]])
        mean, half = (one["cost"] + other["cost"]) / 2, abs(one["cost"] - other["cost"]) / 2
        assert row["cost"] == pytest.approx(mean, abs=1e-4)
        assert row["cost_std"] == pytest.approx(half, abs=1e-4)
        assert row["cost_high"] - row["cost"] == pytest.approx(stats.t.ppf(0.975, 1) * half, abs=2e-3)
        assert row["count"] == (one["count"] + other["count"]) / 4  # two train seeds of two eval seeds
        assert row["AP50"] == pytest.approx(np.mean([each["AP50"] for each in told[row["run"]]]), abs=1e-4)
    rows = report_table(reported, "sizes")
    assert [(row["run"], row["class"]) for row in rows] == list(itertools.product(LINEAGES, CLASSES[:2]))
    for row in rows:
        place = CLASSES.index(row["class"])
        assert row["objects"] == OBJECTS[place]
        for size, name in (("all", "AP"), ("small", "APs"), ("medium", "APm")):
            expected = np.mean([each["sizes"][size][place] for each in told[row["run"]]])
            assert row[name] == pytest.approx(expected, abs=1e-4)
        assert row["APl"] == "nan"
    text = (reported / "reports/summary.md").read_text()
    shown = markdown_rows(text, "## Errors")[1]
    costs = [f"+{row['cost']:.2f}" for row in report_table(reported, "errors")[len(KINDS) :]]
    assert shown == [
        LINEAGES[1],
        "5",
        f"{np.mean([each['AP50'] for each in told[LINEAGES[1]]]):.2f}",
        *costs,
        "2 × 2",
        "seed0 seed1",
    ]
    assert "| lineage             | steps | car, small | car, medium | motorbike, small | motorbike, medium |" in text
    assert "Objects: 10 of car, 4 of motorbike.*" in text


def scalars_of(root: Path, lineage: str) -> dict[str, float | None]:
    told: dict[str, float | None] = json.loads((root / graph.METRICS / f"{lineage}.json").read_text())
    return told


def test_metrics_are_of_every_lineage_that_is_reported_and_of_no_other(fully_reported: Path, tmp_path: Path) -> None:
    """The student is not asked the protocol main, but has some of its rows all the same."""
    assert {path.stem for path in (fully_reported / graph.METRICS).iterdir()} == {*LINEAGES, STUDENT}
    main = taken(written_rows(fully_reported, "results.tsv"), run=STUDENT, sample_step=1, eval_seed=[0, 1, 2])
    told = scalars_of(fully_reported, STUDENT)
    some = " of 2 eval seeds"  # never in one column with those that have all
    assert list(told) == [f"AP@1{some}", f"AP_std@1{some}", f"AP50@1{some}"]
    assert [name for name in scalars_of(fully_reported, "baseline") if name.startswith("AP@")] == ["AP@1", "AP@5"]
    assert told[f"AP@1{some}"] == pytest.approx(mean_of(taken(main, guidance_scale=0)), abs=1e-4)
    experiment, root = an_experiment(), shutil.copytree(fully_reported, tmp_path / "again")
    summary.write_report(experiment, evaluated(root, experiment))
    assert {path.stem for path in (root / graph.METRICS).iterdir()} == set(LINEAGES)


@pytest.mark.parametrize("reach", [0.2, 50.0])
def test_a_plot_has_its_place_whether_its_intervals_fit_or_go_on(tmp_path: Path, reach: float) -> None:
    rows = pd.DataFrame({"AP": [30.0, 34.0], "AP_low": [30.0 - reach, 33.8], "AP_high": [30.0 + reach, 34.2]})
    with plots.figure_of(tmp_path / "some.png", {}) as (axes,):
        plots._ap_axis(axes, rows)
        plots._interval_bars(axes, pd.Series([1, 5]), rows, plots.appearance(0))
        triangles = [line.get_marker() for line in axes.lines if line.get_marker() in ("v", "^")]
    assert axes.get_position().height > 0.6 and axes.get_position().width > 0.6
    assert triangles == (["v", "^"] if reach > 1 else [])


# The other protocols, against loops over the files' own rows

Rows = list[dict[str, Any]]


def written_rows(root: Path, name: str) -> Rows:
    """Every row of every results.tsv or speed.tsv, cells as written."""
    files = sorted(root.glob(f"evals/*/*/{name}"))
    tables_ = [pd.read_csv(path, sep="\t", keep_default_na=False) for path in files]
    return [row for table in tables_ for row in table.to_dict("records")]


def report_table(root: Path, name: str) -> Rows:
    rows: Rows = pd.read_csv(root / f"reports/tables/{name}.tsv", sep="\t", keep_default_na=False).to_dict("records")
    return rows


def taken(rows: Rows, **cell: object) -> Rows:
    """The rows that have these cells; a list says which values fit."""
    fits = {name: value if isinstance(value, list) else [value] for name, value in cell.items()}
    return [row for row in rows if all(row[name] in values for name, values in fits.items())]


def mean_of(rows: Rows, name: str = "AP") -> float:
    """By train seed first, as published."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row["train_seed"], []).append(row[name])
    return statistics.fmean(statistics.fmean(values) for values in by_seed.values())


def paired_differences(rows: Rows, reference: Rows) -> list[float]:
    of_pair = {(row["train_seed"], row["eval_seed"]): row["AP"] for row in reference}
    return [row["AP"] - of_pair[row["train_seed"], row["eval_seed"]] for row in rows]


def assert_compared(row: dict[str, Any], name: str, rows: Rows, reference: Rows) -> None:
    """The difference called `name`: its mean, spread, interval and p value by scipy's paired t test of the train seeds'
    means, which for as many eval seeds each are paired as their runs are."""
    deltas = paired_differences(rows, reference)
    assert_numbers(row, **{name: statistics.fmean(deltas), f"{name}_std": statistics.pstdev(deltas)})
    seeds = sorted({row["train_seed"] for row in rows})
    own, other = ([mean_of(taken(side, train_seed=seed)) for seed in seeds] for side in (rows, reference))
    if own == other:
        assert [row[f"{name}_{part}"] for part in ("low", "high", "p", "p_holm")] == ["nan"] * 4
        assert row[f"{name}_verdict"] == "no verdict"
    else:
        test = stats.ttest_rel(own, other)
        low, high = test.confidence_interval(0.95)
        assert_numbers(row, **{f"{name}_low": low, f"{name}_high": high, f"{name}_p": test.pvalue})


def assert_corrected(rows: Rows, *names: str) -> None:
    """p values after Holm 1979, written as the maximum over the smaller ones, and verdicts by these."""
    tested = {(row[name], row[f"{name}_p"]) for row in rows for name in names if row[f"{name}_p"] != "nan"}
    rising = sorted(float(p) for _, p in tested)
    for row, name in itertools.product(rows, names):
        if row[f"{name}_p"] != "nan":
            p, adjusted = float(row[f"{name}_p"]), float(row[f"{name}_p_holm"])
            by_hand = max((len(rising) - k) * smaller for k, smaller in enumerate(rising) if smaller <= p)
            assert adjusted == pytest.approx(min(1, by_hand), abs=1e-3)
            word = "better" if row[name] > 0 else "worse"
            assert row[f"{name}_verdict"] == (word if adjusted < 0.05 else "inconclusive")


def assert_numbers(row: dict[str, Any], **expected: float) -> None:
    numbers = {name: float(row[name]) for name in expected}
    assert numbers == pytest.approx(expected, abs=6e-4 if {"ratio", "speedup"} & expected.keys() else 6e-5)


def test_tradeoff_table(fully_reported: Path) -> None:
    table = report_table(fully_reported, "tradeoff")
    results, speed = written_rows(fully_reported, "results.tsv"), written_rows(fully_reported, "speed.tsv")
    assert [(row["run"], row["sample_step"]) for row in table] == [("baseline", 1), ("baseline", 10)]
    fewest = mean_of(taken(speed, run="baseline", sample_step=1), "inference_s_per_img")
    at_one = taken(results, run="baseline", sample_step=1, eval_seed=[0, 3])
    assert_corrected(table, "delta")
    for row in table:
        cell = {"run": "baseline", "sample_step": row["sample_step"]}
        runs, seconds = taken(results, **cell, eval_seed=[0, 3]), mean_of(taken(speed, **cell), "inference_s_per_img")
        by_seed = [mean_of(taken(runs, train_seed=seed)) for seed in (0, 1)]
        assert_numbers(row, AP=mean_of(runs), AP_std=statistics.pstdev(by_seed), s_per_img=seconds)
        assert_numbers(row, ratio=seconds / fewest)
        assert_compared(row, "delta", runs, at_one)
        assert (row["train_seeds"], row["eval_seeds"]) == (2, 2)
        assert row["results"] == ",".join(evaluations.results_path("baseline", seed) for seed in (0, 1))


def test_guidance_table(fully_reported: Path) -> None:
    table = report_table(fully_reported, "guidance")
    results, speed = written_rows(fully_reported, "results.tsv"), written_rows(fully_reported, "speed.tsv")
    grid = list(itertools.product((0.1, 0.5), ("final", "all"), (1, 2)))
    names = ("guidance_scale", "guidance_mode", "guidance_steps")
    assert [tuple(row[name] for name in names) for row in table] == [(0, "none", 0), *grid]
    of_all = {"run": "baseline+finetune", "sample_step": 5}
    unguided = taken(results, **of_all, eval_seed=[1, 2], guidance_scale=0)
    seconds_unguided = mean_of(taken(speed, **of_all, guidance_scale=0), "inference_s_per_img")
    for row in table:
        cell = {**of_all, **{name: row[name] for name in names}}
        guided, seconds = taken(results, **cell, eval_seed=[1, 2]), mean_of(taken(speed, **cell), "inference_s_per_img")
        assert len(guided) == 4
        assert_compared(row, "delta", guided, unguided)
        assert_numbers(row, AP=mean_of(guided), s_per_img=seconds)
        assert_numbers(row, ratio=seconds / seconds_unguided)
    assert table[0]["delta"] == 0
    assert_corrected(table, "delta")


def test_ablations_table(fully_reported: Path) -> None:
    table, results = report_table(fully_reported, "ablations"), written_rows(fully_reported, "results.tsv")
    groups = ABLATIONS
    expected = [(group, variant, run) for group in groups for variant, run in groups[group].items()]
    assert [(row["group"], row["variant"], row["run"]) for row in table] == expected
    for row in table:
        first = next(iter(groups[row["group"]].values()))
        own, reference = (
            taken(results, run=run, sample_step=1, eval_seed=[0, 1], guidance_scale=0) for run in (row["run"], first)
        )
        assert_numbers(row, AP=mean_of(own))
        assert_compared(row, "delta", own, reference)
        assert (row["iterations"], row["train_seeds"], row["eval_seeds"]) == (12, 2, 2)
    assert_corrected(table, "delta")


def test_a_group_of_ablations_without_variants_has_no_row(fully_reported: Path) -> None:
    evidence = summary.gather(a_full_experiment(), fully_reported)
    groups = {"emptied": {}, **ABLATIONS}
    made = (
        tables.ablations_table(evidence.asked["ablations"], each, evidence.iterations) for each in (groups, ABLATIONS)
    )
    assert next(made).equals(next(made))


def test_differences_table(fully_reported: Path) -> None:
    """Of each lineage to its parent; here the only finetune is the control, and its parent has none."""
    table, results = report_table(fully_reported, "differences"), written_rows(fully_reported, "results.tsv")
    assert [(row["run"], row["reference"], row["relation"], row["sample_step"]) for row in table] == [
        ("baseline+finetune", "baseline", "parent", steps) for steps in (1, 5)
    ]
    for row in table:
        child, parent = (
            taken(results, run=run, sample_step=row["sample_step"], eval_seed=[0, 1, 2], guidance_scale=0)
            for run in LINEAGES[::-1]
        )
        assert_compared(row, "delta", child, parent)
        assert_numbers(row, AP=mean_of(child), reference_AP=mean_of(parent))
        assert (row["pairs"], row["train_seeds"], row["unpaired"]) == (6, 2, 0)
        for name, run in (("results", "baseline+finetune"), ("reference_results", "baseline")):
            assert row[name] == ",".join(evaluations.results_path(run, seed) for seed in (0, 1))
    assert_corrected(table, "delta")


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("fixed", [None, 1])
def test_distillation_table(tmp_path: Path, fixed: int | None) -> None:
    """With the teacher of the student's own train seed, or of one seed for all."""
    experiment = a_full_experiment()
    lesson = {} if fixed is None else {"seed": fixed, "sha256": checkpoint_sha256("baseline", fixed)}
    summary.write_report(experiment, evaluated(tmp_path, experiment, lesson))
    table = report_table(tmp_path, "distillation")
    results, speed = written_rows(tmp_path, "results.tsv"), written_rows(tmp_path, "speed.tsv")
    assert [(row["run"], row["student_steps"], row["sample_step"]) for row in table] == [
        (STUDENT, 2, 1),
        (STUDENT, 2, 2),
    ]
    teachers = {seed: seed if fixed is None else fixed for seed in (0, 1)}

    def lessons(rows: Rows, steps: int) -> Rows:
        of_teacher = taken(rows, run="baseline", sample_step=steps)
        return [{**row, "train_seed": k} for k, seed in teachers.items() for row in taken(of_teacher, train_seed=seed)]

    for row in table:
        student = taken(results, run=STUDENT, sample_step=row["sample_step"], eval_seed=[0, 4])
        one, many = (taken(lessons(results, steps), eval_seed=[0, 4]) for steps in (1, 10))
        assert_compared(row, "gap_1", student, one)
        assert_compared(row, "gap", student, many)
        assert_numbers(row, AP=mean_of(student), teacher_AP_1=mean_of(one), teacher_AP=mean_of(many))
        assert (row["teacher"], row["teacher_steps"], row["pairs_1"], row["pairs"]) == ("baseline", 10, 4, 4)
        own = mean_of(taken(speed, run=STUDENT, sample_step=row["sample_step"]), "inference_s_per_img")
        theirs = mean_of(lessons(speed, 10), "inference_s_per_img")
        assert_numbers(row, s_per_img=own, teacher_s_per_img=theirs, speedup=theirs / own)
        ratios = [
            mean_of(taken(lessons(speed, 10), train_seed=seed), "inference_s_per_img")
            / mean_of(taken(speed, run=STUDENT, sample_step=row["sample_step"], train_seed=seed), "inference_s_per_img")
            for seed in teachers
        ]
        assert_numbers(row, speedup_low=min(ratios), speedup_high=max(ratios))
        assert row["teacher_results"].split(",") == [
            evaluations.results_path("baseline", seed) for seed in dict.fromkeys(teachers.values())
        ]
    assert_corrected(table, "gap_1", "gap")
    shared = "Train seeds that share a teacher are students of this teacher, and tell of no other."
    assert (shared in (tmp_path / "reports/summary.md").read_text()) == (fixed is not None)


def test_the_main_table_has_the_main_protocol_alone(fully_reported: Path) -> None:
    """Whatever other protocols ask of its lineages: other eval seeds, steps and guidance."""
    table, results = report_table(fully_reported, "main"), written_rows(fully_reported, "results.tsv")
    assert [(row["run"], row["sample_step"]) for row in table] == list(itertools.product(LINEAGES, (1, 5)))
    for row in table:
        cell = {"run": row["run"], "sample_step": row["sample_step"], "guidance_scale": 0, "eval_seed": [0, 1, 2]}
        runs = taken(results, **cell)
        assert len(runs) == row["runs"] == 6
        assert_numbers(row, **{name: mean_of(runs, name) for name in METRICS})
    assert len(results) > 4 * 6


def test_sections_show_their_tables(fully_reported: Path) -> None:
    text = (fully_reported / "reports/summary.md").read_text()
    sections = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert sections == [
        *["What was run", "Average precision", "Differences", "Step trade-off", "Distillation", "Ablations"],
        *["Guidance", "Errors", "Speed", "Training", "Pictures"],
        *["Crops in images from above", "Segmentation from above", "Provenance"],
    ]

    def signed(value: float) -> str:
        return f"{value:+.2f}".replace("-", "−")

    def judged(row: dict[str, Any], name: str = "delta") -> list[str]:
        low, high = (signed(float(row[f"{name}_{end}"])) for end in ("low", "high"))
        return [signed(row[name]), f"{low} to {high}", row[f"{name}_verdict"]]

    def both(name: str, heading: str) -> Iterator[tuple[dict[str, Any], list[str]]]:
        return zip(report_table(fully_reported, name), markdown_rows(text, f"## {heading}"), strict=True)

    for row, shown in both("differences", "Differences"):
        assert shown[:3] == ["baseline+finetune", "parent `baseline", str(row["sample_step"])]
        assert shown[3:9] == [*judged(row), f"{row['delta_p_holm']:.3f}", "6", "2"]
    for row, shown in both("tradeoff", "Step trade-off"):
        assert shown[2:4] == [f"{row['AP']:.2f}", f"{row['AP_std']:.2f}"]
        assert shown[4:7] == (["–"] * 3 if row["sample_step"] == 1 else judged(row))
        assert shown[7:9] == [f"{row['s_per_img']:.4f}", f"{row['ratio']:.1f}"]
    for row, shown in both("guidance", "Guidance"):
        assert shown[2] == f"{row['guidance_scale']:g}"
        assert shown[7:10] == (judged(row) if row["guidance_scale"] else ["–"] * 3)
    shown_groups = [row[:2] for row in markdown_rows(text, "## Ablations")]
    assert shown_groups[:3] == [["**length**", "short"], ["", "long"], ["**lesson**", "objects"]]
    for row, shown in both("ablations", "Ablations"):
        assert shown[5:8] == (["–"] * 3 if row["variant"] in ("short", "objects") else judged(row))
    for row, shown in both("distillation", "Distillation"):
        assert shown[:2] == [STUDENT, str(row["sample_step"])]
        assert shown[4:10] == ["its parent", "10", f"{row['teacher_AP']:.2f}", *judged(row, "gap")]
        assert shown[10:14] == [f"{row['teacher_AP_1']:.2f}", *judged(row, "gap_1")]


def test_past_experiments_have_a_section_and_the_arithmetic_of_the_main_table(root: Path, reported: Path) -> None:
    """The graph's own results, handed in once more as if they were somebody's."""
    paths = [evaluations.imported_path("baseline", seed) for seed in (0, 1)]
    for path in paths:
        rows = pd.read_csv(root / path.replace("imported", "evals"), sep="\t", dtype=str)
        (root / path).parent.mkdir(parents=True)
        rows.assign(source="old/log.txt:7").to_csv(root / path, sep="\t", index=False)
    summary.write_report(an_experiment(), root)
    own, past = taken(report_table(root, "main"), run="baseline"), report_table(root, "imported")
    assert [row["sample_step"] for row in past] == [1, 5]
    for row, again in zip(own, past, strict=True):
        for name in (*METRICS, "AP_std", "AP_std_flat", "AP_low", "AP_high", "train_seeds", "eval_seeds", "runs"):
            assert again[name] == row[name]
        assert (again["results"], again["logs"]) == (",".join(paths), "old/log.txt")
    text = (root / "reports/summary.md").read_text()
    assert [row[:6] for row in markdown_rows(text, "## Past experiments")] == [
        ["baseline", "–", "80", str(row["sample_step"]), "–", f"{row['AP']:.2f}"] for row in own
    ]
    entries = [entry for entry in read_manifest(root / graph.RESULTS_MANIFEST) if entry.kind == "imported"]
    assert [(entry.path, entry.train_seed) for entry in entries] == list(zip(paths, (0, 1), strict=True))
    assert (reported / "reports/tables/imported.tsv").read_text() == "\t".join(imported.COLUMNS) + "\n"
    assert "Past experiments" not in (reported / "reports/summary.md").read_text()


def test_outcome_in_numbers_and_verdicts(fully_reported: Path) -> None:
    top = (fully_reported / "reports/summary.md").read_text().split("## What was run")[0]
    one, ten = report_table(fully_reported, "tradeoff")
    student = report_table(fully_reported, "distillation")[1]
    assert f"**More steps** `baseline`: AP {one['AP']:.2f} at 1 step, {ten['AP']:.2f} at 10 (" in top
    assert f", inconclusive, {ten['ratio']:.1f} times the time" in top
    assert f"**Student against teacher** `{STUDENT}`: AP {student['AP']:.2f} at 2 steps; its teacher " in top
    assert f"its teacher {student['teacher_AP_1']:.2f} at 1 step (" in top
    assert f"{student['teacher_AP']:.2f} at 10 steps (" in top
    assert f", inconclusive, at {student['speedup']:.1f} times its speed)" in top
    results = written_rows(fully_reported, "results.tsv")
    child, parent = (
        mean_of(taken(results, run=run, sample_step=5, eval_seed=[0, 1, 2], guidance_scale=0)) for run in LINEAGES[::-1]
    )
    change = f"{child - parent:+.2f} at 5 steps ({parent:.2f} → {child:.2f}, inconclusive)".replace("-", "−")
    assert "**Finetune against its parent** `baseline+finetune`: " in top
    assert change in top
    assert "With two train seeds hardly anything can be told from chance." in top
    assert not re.search(r"\b(better|worse|significant|improve|gain|drop)", top.split("\n\n", 2)[2])


@pytest.mark.usefixtures("without_plots")
def test_verdicts_of_clear_effects(tmp_path: Path) -> None:
    """Three train seeds agree: the finetunes' APs are set, and the words at the top and in the tables follow."""
    finetunes = {"baseline+finetune": 1.0, "baseline+up": 9.0, "baseline+down": -9.0}
    asked = {"main": ("baseline", *finetunes)}
    experiment = an_experiment(("baseline", *finetunes), (0, 1, 2), asked=asked)
    evaluated(tmp_path, experiment)
    for seed, (place, (lineage, gain)) in itertools.product((0, 1, 2), enumerate({"baseline": 0, **finetunes}.items())):
        aps = [f"{30 + gain + seed * (1 + place / 20) + row % 3 / 5:.4f}" for row in range(6)]
        edit_results(tmp_path, lineage, seed, lambda table, aps=aps: table.__setitem__("AP", aps))
    summary.write_report(experiment, tmp_path)
    top, rest = (tmp_path / "reports/summary.md").read_text().split("## What was run")
    parent, control = top.split("- **Finetune against its parent**")[1].split("against its parent trained on as before")
    assert "`baseline+finetune`: +1.05 at 1 step (31.20 → 32.25, better), +1.05 at 5 steps (" in parent
    assert "`baseline+up`: +9.10 at 1 step (31.20 → 40.30, better)" in parent
    assert "`baseline+down`: −8.85 at 1 step (31.20 → 22.35, worse)" in parent
    assert "`baseline+finetune`" not in control
    assert "`baseline+up`: +8.05 at 1 step (32.25 → 40.30, better)" in control
    assert "`baseline+down`: −9.90 at 1 step (32.25 → 22.35, worse)" in control
    assert "hardly anything" not in top
    shown = markdown_rows(rest, "## Differences")
    assert [(row[0], row[1].split()[0], row[5]) for row in shown] == [
        *[("baseline+finetune", "parent", "better")] * 2,
        *[("baseline+up", relation, "better") for _ in (1, 5) for relation in ("parent", "control")],
        *[("baseline+down", relation, "worse") for _ in (1, 5) for relation in ("parent", "control")],
    ]
    assert "The control is the parent trained on as before, by recipe `finetune`." in rest


@pytest.mark.usefixtures("without_plots")
def test_captions_say_how_far_intervals_reach(tmp_path: Path, fully_reported: Path) -> None:
    two = (fully_reported / "reports/summary.md").read_text()
    told = "With 2 train seeds it has 1 degree of freedom and goes 12.7 standard errors to either side"
    assert two.count(told) == 2
    assert "with its 95 % interval over train seeds (bar;" in two
    experiment = an_experiment(train_seeds=(0,))
    summary.write_report(experiment, evaluated(tmp_path, experiment))
    one = (tmp_path / "reports/summary.md").read_text()
    assert "no difference has a verdict" in one.split("## What was run")[0]
    assert "(bar;" not in one
    assert {tuple(row[4:7]) for row in markdown_rows(one, "## Differences")} == {("–", "no verdict", "–")}
    assert "No verdict: one train seed" in one
    assert "With one train seed there is none." in one


def test_intervals_are_drawn(tmp_path: Path, fully_reported: Path) -> None:
    """Train seeds further apart, with the same mean, change the plot of what has no other mark than the mean."""
    experiment = a_full_experiment()
    evaluated(tmp_path, experiment)
    for seed, shift in ((0, -1.0), (1, 1.0)):
        edit_results(tmp_path, "baseline", seed, lambda table, by=shift: _shift(table, by))
    summary.write_report(experiment, tmp_path)
    assert [row["AP"] for row in report_table(tmp_path, "tradeoff")] == pytest.approx(
        [row["AP"] for row in report_table(fully_reported, "tradeoff")], abs=1e-4
    )
    before, after = (root / "reports/plots/tradeoff.png" for root in (fully_reported, tmp_path))
    assert before.read_bytes() != after.read_bytes()


def _shift(table: pd.DataFrame, by: float) -> None:
    table["AP"] = [f"{float(ap) + by:.4f}" for ap in table["AP"]]


@pytest.mark.parametrize("missing", PROTOCOLS)
def test_a_protocol_that_is_not_declared(tmp_path: Path, missing: str) -> None:
    """Its files are there all the same: a table with its header only, a plot of words, a sentence."""
    declared = {name: protocol for name, protocol in PROTOCOLS.items() if name != missing}
    experiment = an_experiment((*LINEAGES, STUDENT), protocols=declared)
    written = summary.write_report(experiment, evaluated(tmp_path, experiment))
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [*graph.report_outputs(), graph.METRICS]
    name = {"steps": "tradeoff"}.get(missing, missing)
    header, *rows = (tmp_path / f"reports/tables/{name}.tsv").read_text().splitlines()
    assert (header.split("\t"), rows) == (getattr(tables, name.upper()), [])
    text = (tmp_path / "reports/summary.md").read_text()
    assert f"\n\nThe experiment declares no protocol {missing}.\n\n" in text
    assert f"plots/{name}.png" not in text


@pytest.mark.usefixtures("without_plots")
def test_what_the_protocol_does_not_ask_for_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    declared = {"distillation": {**PROTOCOLS["distillation"], "sample_steps": [1]}}
    experiment = an_experiment((*LINEAGES, STUDENT), protocols=declared)
    summary.write_report(experiment, evaluated(tmp_path, experiment))
    (row,) = report_table(tmp_path, "distillation")
    assert (row["sample_step"], row["pairs_1"], row["pairs"], row["gap"], row["speedup"]) == (1, 4, 0, "nan", "nan")
    text = (tmp_path / "reports/summary.md").read_text()
    (shown,) = markdown_rows(text, "## Distillation")
    assert shown[5:10] == ["10", "–", "–", "–", "–"]
    reason = f"`{STUDENT}` seed 0 at 2 steps, `baseline` seed 0 at 10 steps, `{STUDENT}` seed 1 at 2 steps"
    assert (
        f"–: not asked for under all eval seeds of protocols.distillation: {reason}, `baseline` seed 1 at 10 steps."
        in text
    )


@pytest.mark.usefixtures("without_plots")
def test_a_teacher_that_was_asked_under_fewer_eval_seeds_has_no_place_beside_the_student(tmp_path: Path) -> None:
    """The protocol steps asks for the teacher's ten steps under eval seeds 0 and 3, distillation under three."""
    declared = {
        "steps": PROTOCOLS["steps"],
        "distillation": {"eval_seeds": [0, 3, 4], "sample_steps": [1, 2]},
    }
    experiment = an_experiment((*LINEAGES, STUDENT), protocols=declared)
    summary.write_report(experiment, evaluated(tmp_path, experiment))
    for row in report_table(tmp_path, "distillation"):
        assert (row["pairs_1"], row["pairs"], row["teacher_AP"]) == (6, 0, "nan")
        assert row["gap_1"] == pytest.approx(row["AP"] - row["teacher_AP_1"], abs=2e-4)


@pytest.mark.usefixtures("without_plots")
def test_the_distillation_plot_has_what_another_protocol_asked_of_the_teacher_and_says_so(tmp_path: Path) -> None:
    declared = {"steps": {"eval_seeds": [0, 4], "sample_steps": [1, 5]}, "distillation": PROTOCOLS["distillation"]}
    experiment = an_experiment((*LINEAGES, STUDENT), protocols=declared)
    summary.write_report(experiment, evaluated(tmp_path, experiment))
    points = tables.tradeoff_table(summary.gather(experiment, tmp_path).asked["distillation"])
    assert list(points["sample_step"][points["run"] == "baseline"]) == [1, 2, 5, 10]
    told = "teachers at all steps measured under the protocol's eval seeds, up to those that were learned from (joined)"
    assert told in (tmp_path / "reports/summary.md").read_text()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"protocols": {"guidance": {**PROTOCOLS["guidance"], "scales": [0]}}},
            "The protocol guidance has no scale above 0.",
        ),
        (
            {"asked": {"distillation": ("baseline",)}},
            "The protocol distillation has no student at the steps that it asks for.",
        ),
    ],
)
def test_a_protocol_with_nothing_to_show(tmp_path: Path, changed: dict[str, dict[str, Any]], words: str) -> None:
    experiment = a_full_experiment(**changed)
    summary.write_report(experiment, evaluated(tmp_path, experiment))
    assert words in (tmp_path / "reports/summary.md").read_text()


def test_protocols_that_no_lineage_is_asked(tmp_path: Path) -> None:
    """As they stay declared where an experiment has come to name other lineages."""
    others = {name: protocol for name, protocol in PROTOCOLS.items() if name != "ablations"}
    experiment = an_experiment(protocols=others, asked=dict.fromkeys(others, ()))
    summary.write_report(experiment, evaluated(tmp_path, experiment))
    text = (tmp_path / "reports/summary.md").read_text()
    for name in others:
        assert f"\n\nNo lineage is asked the protocol {name}.\n\n" in text
        plot = {"steps": "tradeoff"}.get(name, name)
        assert f"plots/{plot}.png" not in text and (tmp_path / f"reports/plots/{plot}.png").exists()


@pytest.mark.usefixtures("without_plots")
def test_a_teacher_that_is_not_the_checkpoint_learned_from_is_told(tmp_path: Path) -> None:
    experiment = a_full_experiment()
    summary.write_report(experiment, evaluated(tmp_path, experiment, {"sha256": "e" * 64}))
    told = "**The teacher evaluated is not the checkpoint learned from:**"
    assert f"{told} `{STUDENT}` seed 0, `{STUDENT}` seed 1" in (tmp_path / "reports/summary.md").read_text()


# What is written


def test_same_inputs_same_bytes_anywhere(reported: Path, root: Path) -> None:
    written = summary.write_report(an_experiment(), root)
    assert [path.relative_to(root).as_posix() for path in written] == [*graph.report_outputs(), graph.METRICS]
    metrics = [f"{graph.METRICS}/{lineage}.json" for lineage in LINEAGES]
    for path in (*graph.report_outputs(), *metrics):
        assert (root / path).read_bytes() == (reported / path).read_bytes(), path


def test_the_order_of_rows_in_a_file_does_not_matter(tmp_path: Path, fully_reported: Path) -> None:
    experiment = a_full_experiment()
    for path in evaluated(tmp_path, experiment).glob("evals/*/*/*.tsv"):
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([header, *reversed(rows)]) + "\n")
    summary.write_report(experiment, tmp_path)
    for output in set(graph.report_outputs()) - {graph.RESULTS_MANIFEST}:  # which tells the files' own hashes
        assert (tmp_path / output).read_bytes() == (fully_reported / output).read_bytes(), output


def test_plots_show_what_is_theirs_alone(tmp_path: Path, fully_reported: Path) -> None:
    """The student is in neither main nor pictures, so neither its curve nor its detections are drawn."""
    experiment = a_full_experiment()
    for path in evaluated(tmp_path, experiment).glob(f"evals/{STUDENT}/*"):
        (path / "training.csv").write_text("mode,phase,step,loss\ntrain,x,5,99\n")
        detections = json.loads((path / "detections.json").read_text())
        (path / "detections.json").write_text(json.dumps({**detections, "images": []}))
        breakdown = json.loads((path / "breakdown.json").read_text())
        (path / "breakdown.json").write_text(json.dumps({**breakdown, "objects": [99, 1, 1]}))
    edit_results(tmp_path, STUDENT, 0, lambda table: table.__setitem__("AP", "33.3"))
    summary.write_report(experiment, tmp_path)
    names = [f"plots/{name}.{form}" for name in graph.PLOTS for form in ("png", "svg")]
    changed = [
        name
        for name in [*names, "pictures/detections.png"]
        if (tmp_path / "reports" / name).read_bytes() != (fully_reported / "reports" / name).read_bytes()
    ]
    assert changed == ["plots/distillation.png", "plots/distillation.svg"]


def test_every_plot_is_there_in_two_forms_of_one_size(fully_reported: Path) -> None:
    for name in graph.PLOTS:
        path = fully_reported / f"reports/plots/{name}.svg"
        drawing = ElementTree.parse(path).getroot()
        inches = [float(drawing.attrib[side].removesuffix("pt")) / 72 for side in ("width", "height")]
        with Image.open(path.with_suffix(".png")) as picture:
            assert picture.size == pytest.approx([plots.DPI * side for side in inches], abs=1)
        assert inches[0] == pytest.approx(plots.WIDTH)
        assert "dc:date" not in path.read_text()


def test_every_link_of_the_summary_resolves(fully_reported: Path) -> None:
    text = (fully_reported / "reports/summary.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith("#")]
    assert len(links) > 90
    assert [link for link in links if not (fully_reported / "reports" / link).is_file()] == []
    assert "commit `cccccccccccc` with uncommitted changes" in text


def test_nan_run_is_shown_and_makes_the_mean_nan(root: Path) -> None:
    edit_results(root, "baseline", 1, lambda table: table.__setitem__("AP", ["nan", *table["AP"][1:]]))
    summary.write_report(an_experiment(), root)
    text = (root / "reports/summary.md").read_text()
    assert markdown_rows(text, "## Average precision")[0][3:7] == ["nan", "–", "nan", "nan"]
    assert markdown_rows(text, "## Differences")[0][3:7] == ["nan", "–", "no verdict", "–"]
    assert "**AP is nan in 1 of 24 runs.**" in text
    assert "`baseline` train seed 1 at 1 step: eval seed 0 ([results.tsv](../evals/baseline/seed1/results.tsv))" in text
    assert list(pd.read_csv(root / "reports/tables/main.tsv", sep="\t")["nan_runs"]) == [1, 0, 0, 0]
    assert scalars_of(root, "baseline")["AP@1"] is None


def test_absent_class_is_a_dash(root: Path) -> None:
    for lineage in LINEAGES:
        for seed in (0, 1):
            edit_results(root, lineage, seed, lambda table: table.__setitem__("AP-person", "nan"))
    summary.write_report(an_experiment(), root)
    text = (root / "reports/summary.md").read_text()
    assert {row[4] for row in markdown_rows(text, "### By class and size")} == {"–"}
    assert "–: nan in every run" in text
    assert "AP is nan" not in text


def test_a_validation_split_without_objects_is_reported(tmp_path: Path) -> None:
    """As where the chosen classes have none there: every AP is nan, which is no failure."""
    experiment = a_full_experiment()
    root = evaluated(tmp_path, experiment)
    for lineage, seed in itertools.product(experiment.detectors(), experiment.train_seeds):
        edit_results(root, lineage, seed, lambda table: table.__setitem__(METRICS, "nan"))
        breakdown = root / graph.evaluation_folder(lineage, seed) / "breakdown.json"
        nothing = {kind: {"count": 0, "cost": None} for kind in KINDS}
        empty = {**json.loads(breakdown.read_text()), "classes": ["car"], "objects": [0], "AP50": None}
        empty |= {"curves": {iou: [[None] * 101] for iou in ("0.5", "0.75")}, "errors": nothing}
        empty |= {"sizes": {size: [None] for size in empty["sizes"]}}
        breakdown.write_text(json.dumps(empty | {"confusion": {"score": 0.3, "counts": [[0, 0], [4, 0]]}}))
    written = summary.write_report(experiment, root)
    assert all(path.exists() for path in written)
    text = (root / "reports/summary.md").read_text()
    assert "No AP by class and size: the validation split has no object." in text
    header, *rows = (root / "reports/tables/sizes.tsv").read_text().splitlines()
    assert (header.split("\t"), rows) == (tables.SIZES, [])


def test_one_train_seed_has_no_spread(tmp_path: Path) -> None:
    experiment = an_experiment(("baseline",), (3,))
    summary.write_report(experiment, evaluated(tmp_path, experiment))
    text = (tmp_path / "reports/summary.md").read_text()
    assert [row[4:6] for row in markdown_rows(text, "## Average precision")] == [["–", "–"]] * 2
    assert "No lineage of the main table has its parent or its control there too." in text
    assert "±" not in text.split("## What was run")[0]


def test_finetune_curve_goes_on_after_its_parent(root: Path) -> None:
    runs = [evaluations.read_run(lineage, 0, root) for lineage in LINEAGES]
    parent, child = summary.training_curves(runs)
    assert (parent.start, child.start) == (0, 12)
    assert parent.steps == (2, 4, 6, 8, 10, 12)
    assert parent.values[0] == 10


def test_lineages_look_different() -> None:
    looks = [plots.appearance(place) for place in range(24)]
    assert len(set(looks)) == 24
    assert len({look.colour for look in looks[:6]}) == 6


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=12, unique=True))
def test_ticks_stand_clear_of_each_other(seconds: list[float]) -> None:
    times = pd.Series(seconds)
    gap = plots.TICK_GAP * (np.log(times.max()) - np.log(times.min()))
    kept = plots.apart(times)
    assert (np.diff(np.log(kept)) > gap - 1e-12).all()
    left_out = times.drop(kept.index)
    assert all(np.abs(np.log(kept / each)).min() <= gap + 1e-12 for each in left_out)
    assert times.min() in kept.to_list()


# The pictures


def test_boxes_lie_where_they_are(root: Path) -> None:
    of_run = pictures.read_pictures(root / "evals/baseline/seed0/detections.json")
    grid = np.asarray(pictures.picture_grid({"baseline": of_run}, CLASSES, root))
    car = np.array([int(pictures.COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)])
    factor = pictures.CELL // 64
    top, left = pictures.MARGIN + pictures.HEAD_LINE, pictures.MARGIN
    drawn = np.argwhere((grid[top : top + 48 * factor, left : left + 64 * factor] == car).all(axis=-1))
    assert drawn.min(axis=0).tolist() == [16 * factor, 8 * factor]
    assert drawn.max(axis=0).tolist() == [40 * factor - 1, 24 * factor - 1]


def test_grey_of_16_bits_is_drawn_as_the_detector_sees_it(root: Path) -> None:
    path = root / "data/images/0.png"
    Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)).save(path)
    picture = pictures.Picture(0, "data/images/0.png", 64, 48, (), ())
    drawn = np.asarray(pictures.load_photograph(root, picture))
    with Image.open(path) as stored:
        assert (drawn == rgb_pixels(stored)).all() and drawn[[0, -1], [0, -1], 0].tolist() == [0, 255]


def test_weak_detections_are_told(reported: Path) -> None:
    strong, weak = pictures.read_pictures(reported / "evals/baseline/seed0/detections.json").images
    assert [box.score for box in pictures.shown(strong)[0]] == [0.8]
    assert ([box.score for box in pictures.shown(weak)[0]], pictures.shown(weak)[1]) == ([0.1], False)
    assert "In 2 cells none does; there the best 3 are dashed." in (reported / "reports/summary.md").read_text()


def test_more_classes_than_colours_are_named(root: Path) -> None:
    of_run = pictures.read_pictures(root / "evals/baseline/seed0/detections.json")
    few, many = (pictures.picture_grid({"baseline": of_run}, [*CLASSES, *more], root) for more in ("", "abcdefgh"))
    assert few.size == many.size
    changed = np.argwhere(np.asarray(few) != np.asarray(many))[:, 0]
    assert pictures.MARGIN < changed.min() < pictures.CELL / 2  # a label on the first image
    assert changed.max() > few.height - pictures.MARGIN - pictures.HEAD_LINE  # no legend


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b"no image"), "cannot be read"),
        (lambda path: Image.new("RGB", (48, 64)).save(path), "is 48×64, but was evaluated as 64×48"),
    ],
)
def test_image_that_does_not_fit(root: Path, spoil: Callable[[Path], object], complaint: str) -> None:
    spoil(root / "data/images/1.png")
    with pytest.raises(UserError, match=rf"data/images/1\.png.*{complaint}"):
        summary.write_report(an_experiment(), root)
    assert not (root / "reports").exists()


# What is refused


def test_missing_file_names_its_command(root: Path) -> None:
    (root / "evals/baseline+finetune/seed1/speed.tsv").unlink()
    with pytest.raises(
        UserError, match=r"seed1/speed\.tsv does not exist.*noisebox evaluate baseline\+finetune --seed 1$"
    ):
        summary.write_report(an_experiment(), root)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("AP50", "AP5O", "column 'AP50' is missing"),
        ("AP75", "AP50", "column 'AP75' is missing"),
        ("\tAPs\t", "\tAP\tAPs\t", "column 'AP' appears twice"),
        ("baseline\t1\t0", "baseline\tone\t0", "line 2: column 'train_seed' must be a whole number, not 'one'"),
        ("baseline\t1\t1", "baseline\t0\t1", "column 'train_seed' says 0 where the folder says 1"),
        ("baseline\t1\t1", "other\t1\t1", "column 'run' says other where the folder says baseline"),
        ("baseline\t1\t1", "baseline\t1\t0", "2 rows for run baseline, train_seed 1, eval_seed 0, sample_step 1"),
        (
            "\t2\t5\t0.0\tnone\t0\t0\t0\t",
            "\t2\t5\t0.0\tnone\t0\t0\t0\t-1",
            "line 7: column 'AP' must lie in 0 to 100 or be nan",
        ),
        (
            "\t2\t5\t0.0\tnone\t0\t0\t0\t",
            "\t2\t5\t0.0\tnone\t0\t0\t0\t?",
            "line 7: column 'AP' must be a number or nan",
        ),
        ("guidance_topk", "topk", "column 'guidance_topk' is missing"),
        ("\t0.0\tnone", "\t-1\tnone", "line 2: column 'guidance_scale' must be a number from 0 on, not '-1'"),
        ("\t0.0\tnone", "\t0.0\tsome", "line 2: column 'guidance_mode' must be none, final or all, the latter"),
        (
            *("baseline\t1\t2\t5\t", "baseline\t1\t2\t7\t"),
            "results.tsv has no row for 5 sampling steps under eval seed 2, which protocols.main in "
            "params/experiment.yaml asks for; this makes it: noisebox evaluate baseline --seed 1",
        ),
        ("\t80\truns/baseline/seed1/model_final.pth", "", "line 2: 19 cells for 21 columns"),
        ("\t80\truns/baseline/seed1/model_final.pth", "\t80\t", "line 2: column 'ckpt' is empty"),
        ("081a", "081b", "name several checkpoints"),
    ],
)
def test_broken_results(root: Path, old: str, new: str, complaint: str) -> None:
    path = root / "evals/baseline/seed1/results.tsv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        summary.write_report(an_experiment(), root)
    assert complaint in str(caught.value)
    assert "evals/baseline/seed1" in str(caught.value)


def test_train_seeds_with_different_teachers(tmp_path: Path) -> None:
    experiment = a_full_experiment()
    path = evaluated(tmp_path, experiment) / graph.evaluation_folder(STUDENT, 1) / "run.json"
    path.write_text(path.read_text().replace('"teacher_steps": 10', '"teacher_steps": 20'))
    with pytest.raises(UserError, match=rf"train seeds of '{re.escape(STUDENT)}' learned from different teachers"):
        summary.write_report(experiment, tmp_path)


@pytest.mark.parametrize(
    ("name", "edit", "complaint"),
    [
        (
            *("results.tsv", lambda table: table[table["guidance_scale"] != "0.5"]),
            "no row for 5 sampling steps, guidance scale 0.5, mode final, k 1 under eval seed 1, which protocols.guid",
        ),
        (
            *("speed.tsv", lambda table: table[table["guidance_mode"] != "all"]),
            "no row for 5 sampling steps, guidance scale 0.1, mode all, k 1, which protocols.guidance",
        ),
    ],
)
def test_a_row_that_a_protocol_asks_for_is_missing(
    tmp_path: Path, name: str, edit: Callable[[pd.DataFrame], pd.DataFrame], complaint: str
) -> None:
    experiment = a_full_experiment()
    path = evaluated(tmp_path, experiment) / graph.evaluation_folder("baseline+finetune", 1) / name
    edit(pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)).to_csv(path, sep="\t", index=False)
    with pytest.raises(UserError) as caught:
        summary.write_report(experiment, tmp_path)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"evals/baseline+finetune/seed1/{name} has")
    assert str(caught.value).endswith("this makes it: noisebox evaluate baseline+finetune --seed 1")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("results.tsv", "", "column 'run' is missing; the header has nothing"),
        ("results.tsv", "\t".join(evaluations.RESULTS) + "\n", "has a header but no rows"),
        ("speed.tsv", "\xff", "is not a table in UTF-8 text"),
        ("training.csv", "mode,step,loss\ntrain,2,1\ntrain,2,1\n", "two rows of mode 'train' for step 2"),
        ("detections.json", "{}", "key 'images' is missing"),
        ("detections.json", '{"images": [', "is not valid JSON"),
        ("detections.json", '{"images": [0]}', "is not what an evaluation writes"),
        ("detections.json", '{"images": [{"ground_truth": [{"box_xyxy": [NaN, 1, 2, 3]}]}]}', "is not finite"),
        ("run.json", "[]", "must hold a mapping"),
        ("run.json", "{", "is not valid JSON"),
        ("run.json", "{}", "key 'iterations' is missing"),
        ("run.json", '{"iterations": "many"}', "is not what a training writes"),
        ("run.json", '{"iterations": 5, "teacher": {"lineage": "baseline"}}', "key 'seed' is missing"),
    ],
)
def test_broken_files(root: Path, name: str, content: str, complaint: str) -> None:
    path = root / "evals/baseline/seed0" / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{complaint}"):
        summary.write_report(an_experiment(), root)


def test_report_imports_no_torch() -> None:
    code = "import sys, noisebox.report.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Lineages that draw no noise

NOISELESS = ("detr", "detr+detr_finetune")


def with_detr() -> ExperimentConfig:
    section = {
        "recipes": ["detr", "detr_finetune"],
        "scratch": ["detr"],
        "parents": {"detr_finetune": ["detr"]},
        "lineages": list(NOISELESS),
    }
    experiment = an_experiment().model_dump(exclude_none=True)
    return ExperimentConfig(**{**experiment, "detr": section})


@pytest.fixture(scope="module")
def noiseless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with lineages that draw no noise that nobody changes."""
    root = evaluated(tmp_path_factory.mktemp("noiseless"), with_detr())
    summary.write_report(with_detr(), root)
    return root


def test_without_noise_there_is_one_value_a_train_seed(noiseless: Path) -> None:
    results, text = written_rows(noiseless, "results.tsv"), (noiseless / "reports/summary.md").read_text()
    table = report_table(noiseless, "main")
    steps = [*itertools.product(LINEAGES, "15"), *itertools.product(NOISELESS, ["nan"])]
    assert [(row["run"], row["sample_step"]) for row in table] == steps
    shown = markdown_rows(text, "## Average precision")[-2:]
    by_seed = markdown_rows(text, "Each train seed, mean over its eval seeds:\n")[-2:]
    for row, cells, each in zip(table[-2:], shown, by_seed, strict=True):
        values = [run["AP"] for run in taken(results, run=row["run"])]
        assert len(values) == 2
        assert_numbers(row, AP=statistics.fmean(values), AP_std=statistics.pstdev(values))
        assert_numbers(row, AP_std_flat=statistics.pstdev(values))
        ends = stats.t.interval(0.95, 1, statistics.fmean(values), stats.sem(values))
        assert (float(row["AP_low"]), float(row["AP_high"])) == pytest.approx(ends, abs=1e-3)
        assert (row["train_seeds"], row["eval_seeds"], row["runs"]) == (2, "nan", 2)
        assert cells[2:4] == ["–", f"{row['AP']:.2f}"] and cells[-2] == "2 × –"
        assert each == [row["run"], "–", *(f"{value:.2f}" for value in values)]
    assert "–: no noise is drawn by `detr`, `detr+detr_finetune`, so each checkpoint has one value." in text
    told = (
        f"without steps, because no noise is drawn, it is {table[-2]['AP']:.2f} ± {table[-2]['AP_std']:.2f} for `detr`"
    )
    assert told in text
    for lineage, row in zip(NOISELESS, table[-2:], strict=True):
        assert scalars_of(noiseless, lineage) == {name: row[name] for name in ("AP", "AP_std", "AP50")}
    assert "AP@1" in scalars_of(noiseless, "baseline")


def test_without_noise_differences_are_paired_by_train_seed(noiseless: Path) -> None:
    results, table = written_rows(noiseless, "results.tsv"), report_table(noiseless, "differences")
    *others, row = table
    assert [each["run"] for each in others] == ["baseline+finetune"] * 2
    assert (row["run"], row["reference"], row["sample_step"]) == (NOISELESS[1], NOISELESS[0], "nan")
    own, reference = (taken(results, run=lineage) for lineage in reversed(NOISELESS))
    assert_compared(row, "delta", own, reference)
    assert_corrected(table, "delta")
    assert (row["pairs"], row["train_seeds"], row["unpaired"]) == (2, 2, 0)
    text = (noiseless / "reports/summary.md").read_text()
    change = f"`{NOISELESS[1]}`: {row['delta']:+.2f} (".replace("-", "−")
    assert change in text and row["delta_verdict"] in text


def test_the_manifest_names_what_was_asked_without_noise(noiseless: Path) -> None:
    entries = pd.read_csv(noiseless / graph.RESULTS_MANIFEST, sep="\t", keep_default_na=False)
    assert set(entries[entries["lineage"] == "detr"]["protocols"]) == {"main"}


def test_without_noise_the_one_row_must_be_there(tmp_path: Path) -> None:
    root = evaluated(tmp_path, with_detr())

    def asked_of_others(table: pd.DataFrame) -> None:
        table["eval_seed"] = "3"

    edit_results(root, "detr", 1, asked_of_others)
    told = r"evals/detr/seed1/results\.tsv has no row for 1 sampling step under eval seed 0.*evaluate detr --seed 1"
    with pytest.raises(UserError, match=told):
        summary.write_report(with_detr(), root)


def test_the_plot_shows_what_has_no_steps_at_those_of_the_others(noiseless: Path) -> None:
    results = summary.gather(with_detr(), noiseless).asked["main"].results
    drawn = plots.at_every_step(results, NOISELESS)
    for lineage in NOISELESS:
        own = results[results["run"] == lineage].sort_values("train_seed")["AP"].tolist()
        for steps in (1, 5):
            at = drawn[(drawn["run"] == lineage) & (drawn["sample_step"] == steps)]
            assert at.sort_values("train_seed")["AP"].tolist() == own and len(own) == 2
    others = [~table["run"].isin(NOISELESS) for table in (drawn, results)]
    assert drawn[others[0]].reset_index(drop=True).equals(results[others[1]].reset_index(drop=True))
    assert "What draws no noise is the same at all steps." in (noiseless / "reports/summary.md").read_text()
