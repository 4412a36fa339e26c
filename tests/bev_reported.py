"""Evaluations of lineages that segment from above, as `noisebox evaluate` writes them, with numbers that a test gives.

Nothing here is trained: `write_evaluation` takes the mIoU by (eval seed, steps), and everything else is made up of it.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noisebox import graph
from noisebox.config import ExperimentConfig, ProtocolConfig
from noisebox.config.experiment import BevLine

CLASSES = ("background", "road", "car")
LABELS = {"reduce_zero_label": False, "ignore_index": 255}
SHARES = {"background": 1.5, "road": 1.0, "car": 0.5}  # IoU of each class, in mIoUs: their mean is 1
UNGUIDED = {"guidance_scale": 0.0, "guidance_mode": "none", "guidance_steps": 0, "guidance_topk": 0, "crops": 0}
SIZE, MAP = (24, 40), (12, 10)  # height and width of images, rows and columns of maps
ITERATIONS, EVERY = 40, 10

Scores = Mapping[tuple[int, int], float]  # mIoU by eval seed and steps


def an_experiment(
    lineages: Sequence[str], train_seeds: Sequence[int], eval_seeds: Sequence[int] = (0,), steps: Sequence[int] = (1,)
) -> ExperimentConfig:
    recipes = list(dict.fromkeys(recipe for lineage in lineages for recipe in lineage.split("+")))
    parents: dict[str, list[str]] = {}
    for lineage in lineages:
        if "+" in lineage:
            parents.setdefault(lineage.rpartition("+")[2], []).append(lineage.rpartition("+")[0])
    line = BevLine(
        recipes=recipes,
        scratch=[lineage for lineage in lineages if "+" not in lineage],
        parents=parents,
        lineages=list(lineages),
        depth_gt=["train", "val"],
        protocol=ProtocolConfig(eval_seeds=list(eval_seeds), sample_steps=list(steps)),
        pictures=[0, 7],
    )
    return ExperimentConfig(
        scale="test",
        train_seeds=list(train_seeds),
        recipes=["baseline"],
        scratch=["baseline"],
        lineages=["baseline"],
        asked={"baseline": ["main"]},
        protocols={"main": {"eval_seeds": [0], "sample_steps": [1]}},
        pictures={"images": 1, "lineages": ["baseline"]},
        bev=line,
        data=["detection", "bev"],
    )


def write_evaluation(
    root: Path,
    lineage: str,
    seed: int,
    miou: Scores,
    terms: Sequence[str] = ("Lwce", "Ldepth"),
    cells: Mapping[str, Sequence[int]] | None = None,
    labels: Mapping[str, Any] = LABELS,
) -> Path:
    """Write graph.BEV_EVALUATION_FILES, and return their folder; `cells` are the counts of confusion.json."""
    folder = root / graph.evaluation_folder(lineage, seed)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = {"ckpt": graph.checkpoint(lineage, seed), "ckpt_sha256": f"{len(lineage):02d}{seed}" + "b" * 61}
    rows, speed = [], []
    for (eval_seed, steps), value in miou.items():
        key = {"run": lineage, "train_seed": seed, "eval_seed": eval_seed, "sample_step": steps}
        classes = {f"IoU-{name}": f"{share * value:.4f}" for name, share in SHARES.items()}
        scores = {"mIoU": f"{value:.4f}", "accuracy": f"{(value + 100) / 2:.4f}", **classes}
        rows.append({**key, **scores, "images": 20, **checkpoint})
    for steps in dict.fromkeys(steps for _, steps in miou):
        timed = {"inference_s_per_img": f"{0.01 * steps * (seed + 1):.6f}", "inference_fps": "1.000", "device": "cpu"}
        how = {"sample_step": steps, **UNGUIDED, **timed, "threads": 1, "batch": 4, "eval_seeds": 1}
        speed.append({"run": lineage, "train_seed": seed, **how, **checkpoint})
    (folder / "results.tsv").write_text(as_table(rows))
    (folder / "speed.tsv").write_text(as_table(speed))
    of_cells = cells or {"0": [90, 10, 0], "1": [10, 80, 10], "2": [0, 5, 5], "255": [7, 7, 7]}
    counts = [{"eval_seed": s, "sample_step": n, "cells": of_cells} for s, n in miou]
    content = {"classes": list(CLASSES), "labels": dict(labels), "counts": counts}
    (folder / "confusion.json").write_text(json.dumps(content))
    write_maps(folder / "maps.npz", seed, *max(miou, key=lambda key: (key[1], -key[0])))
    (folder / "training.csv").write_text(training(seed, max(miou.values()), terms))
    provenance = {"lineage": lineage, "seed": seed, "iterations": ITERATIONS, "data_hash": "d" * 64, "dataset": "x"}
    (folder / "run.json").write_text(json.dumps(provenance))
    return folder


def as_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), delimiter: str = "\t") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), delimiter=delimiter, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def training(seed: int, end: float, terms: Sequence[str] = ("Lwce", "Ldepth")) -> str:
    """metrics.csv: losses that fall as 1 / step, and an mIoU that is highest at iteration 30, by 1 above `end`."""
    rows: list[dict[str, Any]] = []
    for step in range(EVERY, ITERATIONS + 1, EVERY):
        losses = {name: f"{(place + 1) * (4 + seed) / step:.6g}" for place, name in enumerate(terms)}
        total = sum(float(value) for value in losses.values())
        rows.append({"mode": "train", "phase": "x", "step": step, "loss": f"{total:.6g}", **losses, "lr": "0.001"})
        value = end + 1 if step == 30 else end * step / ITERATIONS
        rows.append({"mode": "val", "phase": "x", "step": step, "mIoU": f"{value:.4f}"})
    return as_table(rows, ["mode", "phase", "step", "loss", *terms, "lr", "mIoU"], ",")


def true_map(place: int) -> np.ndarray:
    """Background, a road in the middle, a car on it; the upper corners are not seen."""
    values = np.zeros(MAP, np.uint8)
    values[:, 3:7] = 1
    values[place % 5 + 3 :][:3, 4:6] = 2
    values[:3, :2] = values[:3, -2:] = 255
    return values


def write_maps(path: Path, seed: int, eval_seed: int, steps: int, places: Sequence[int] = (0, 7)) -> None:
    """Predictions that lack the car."""
    arrays: dict[str, Any] = {}
    for place in places:
        truth = true_map(place)
        arrays[f"image_{place}"] = np.full((*SIZE, 3), 100 + seed, np.uint8)
        depth = np.zeros(SIZE, np.float16)
        depth[20, 30], depth[10, 5] = 8.0, 43.5
        arrays[f"depth_{place}"] = depth
        arrays[f"truth_{place}"] = truth
        arrays[f"predicted_{place}"] = np.where(truth == 1, 1, 0).astype(np.uint8)
    named = {str(place): f"stem{place}" for place in places}
    facts = {"images": named, "eval_seed": eval_seed, "sample_step": steps, "classes": list(CLASSES), "labels": LABELS}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez_compressed(path, **arrays)
