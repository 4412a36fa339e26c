"""Hand-made evaluations of the aerial line: tables, looks and the files beside them, with numbers that tests know."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from noisebox import graph
from noisebox.config import ExperimentConfig

LINEAGES = ["yolc_teacher", "yolc", "yolc+yolc_finetune", "yolc+yolc_kd"]
CLASSES = ("pedestrian", "car")
Scores = Mapping[tuple[str, int, int], tuple[float, float]]  # lineage, train seed, crops: AP and AP small


def aerial_experiment(lineages: list[str] | None = None, pictures: int = 1) -> ExperimentConfig:
    named = LINEAGES if lineages is None else lineages
    line = {
        "recipes": ["yolc_teacher", "yolc", "yolc_finetune", "yolc_kd"],
        "scratch": ["yolc_teacher", "yolc"],
        "parents": {"yolc_finetune": ["yolc"], "yolc_kd": ["yolc"]},
        "lineages": named,
        "pictures": pictures,
    }
    return ExperimentConfig(
        scale="test",
        train_seeds=[0, 1],
        recipes=["baseline"],
        scratch=["baseline"],
        lineages=["baseline"],
        asked={"baseline": ["main"]},
        protocols={"main": {"eval_seeds": [0], "sample_steps": [1]}},
        pictures={"lineages": ["baseline"]},
        aerial=line if named else {},
        data=["detection", "aerial"],
    )


def write_evaluations(root: Path, scores: Scores) -> None:
    """Every file of graph.AERIAL_EVALUATION_FILES; with crops an image takes 0.3 s, without 0.1 s."""
    for lineage, seed in dict.fromkeys((lineage, seed) for lineage, seed, _ in scores):
        folder = root / graph.evaluation_folder(lineage, seed)
        folder.mkdir(parents=True)
        results, speed = [], []
        for crops in (0, 1):
            key = {"run": lineage, "train_seed": seed}
            way = {"sample_step": 1, "guidance_scale": 0, "guidance_mode": "none", "guidance_steps": 0}
            way |= {"guidance_topk": 0, "crops": crops}
            evidence = {"ckpt": graph.checkpoint(lineage, seed), "ckpt_sha256": f"{lineage}-{seed}"}
            ap, small = scores[lineage, seed, crops]
            metrics = {"AP": ap, "AP50": 2 * ap, "AP75": 1, "APs": small, "APm": 1, "APl": "nan"}
            results.append({**key, "eval_seed": 0, **way, **metrics, "images": 4, **evidence})
            timing = {"inference_s_per_img": 0.3 if crops else 0.1, "device": "cpu", "threads": 1, "batch": 4}
            speed.append({**key, **way, **timing, "eval_seeds": 1, **evidence})
        pd.DataFrame(results).to_csv(folder / "results.tsv", sep="\t", index=False)
        pd.DataFrame(speed).to_csv(folder / "speed.tsv", sep="\t", index=False)
        (folder / "run.json").write_text(json.dumps({"lineage": lineage, "iterations": 50 if "+" in lineage else 200}))
        write_looks(folder / "looks.npz")
        for name in set(graph.AERIAL_EVALUATION_FILES) - {file.name for file in folder.iterdir()}:
            (folder / name).write_text("{}")


def write_looks(path: Path) -> None:
    """One grey image of 40 × 64 with a hot spot, a crop, two true boxes, and a box found well and one hardly."""
    heatmap = np.zeros((40, 64), np.float16)
    heatmap[10:14, 20:24] = 1
    arrays = {
        "image_0": np.full((40, 64, 3), 100, np.uint8),
        "heatmap_0": heatmap,
        "crops_0": np.array([[10, 4, 34, 24]]),
        "truth_0": np.array([[18.0, 8.0, 26.0, 16.0], [40.0, 20.0, 60.0, 30.0]]),
        "truth_labels_0": np.array([0, 1]),
    }
    for name in ("coarse", "final"):
        arrays[f"{name}_0"] = np.array([[18.0, 8.0, 26.0, 16.0], [1.0, 1.0, 5.0, 5.0]])
        arrays |= {f"{name}_labels_0": np.array([0, 1]), f"{name}_scores_0": np.array([0.9, 0.05])}
    facts = {"images": ["0.png"], "classes": CLASSES, "crops": True}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez_compressed(path, **arrays)
