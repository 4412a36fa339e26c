"""`noisebox verify`, second half: rows of results.tsv evaluated again from their checkpoints, to the printed digits."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noisebox import graph
from noisebox.config import RunConfig, Sampling
from noisebox.data.catalog import open_split, read_manifest
from noisebox.errors import UserError
from noisebox.files import read_json
from noisebox.machine import placed
from noisebox.randomness import numpy_generator
from noisebox.report.manifest import CHECKPOINT, Entry
from noisebox.tasks import measured_rows
from noisebox.training.checkpoint import load_model
from noisebox.training.provenance import environment

ROWS = 3  # evaluated again unless more or fewer are asked for
Row = dict[str, str]


@dataclass(frozen=True)
class Claim:
    """A run's results.tsv and the checkpoint that it was made from, both with the bytes that the manifest names."""

    checkpoint: Entry
    results: Entry

    def rows(self, folder: Path) -> list[Row]:
        """The rows as they are printed."""
        with (folder / self.results.path).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))


@dataclass(frozen=True)
class Outcome:
    """How many rows were evaluated again, a sentence for each that came out otherwise, and why others were left out."""

    rows: int = 0
    mismatches: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def evaluate_again(folder: Path, sound: Sequence[Entry], count: int, seed: int, repository: Path = Path()) -> Outcome:
    """Evaluate `count` rows again, drawn from all results.tsv of `sound` by the key (seed, "verify").

    Rows that differ in the eval seed alone were sampled as one batch, and products of other shapes round otherwise; so
    they are evaluated together again, and all of them are compared. `folder` is the manifest's; the dataset is that of
    `repository`. Rows are left out where the dataset, or the device that they were evaluated on, is not here.
    """
    of_kind = {kind: {entry.run: entry for entry in sound if entry.kind == kind} for kind in (CHECKPOINT, "results")}
    claims = [
        Claim(of_kind[CHECKPOINT][run], of_kind["results"][run])
        for run in of_kind["results"]
        if run in of_kind[CHECKPOINT]
    ]
    every = [(claim, row) for claim in claims for row in claim.rows(folder)]
    drawn = sorted(numpy_generator(seed, "verify").permutation(len(every))[:count].tolist())
    wanted: dict[Claim, dict[Sampling, None]] = {}
    for claim, row in (every[place] for place in drawn):
        wanted.setdefault(claim, {})[Sampling.of_columns(row)] = None
    outcomes = [_outcome(folder, claim, list(samplings), repository) for claim, samplings in wanted.items()]
    return Outcome(
        sum(each.rows for each in outcomes),
        tuple(line for each in outcomes for line in each.mismatches),
        tuple(dict.fromkeys(line for each in outcomes for line in each.left_out)),
    )


def _outcome(folder: Path, claim: Claim, samplings: Sequence[Sampling], repository: Path) -> Outcome:
    try:
        return _again(folder, claim, samplings, repository)
    except UserError as error:
        return Outcome(left_out=(str(error),))


def _again(folder: Path, claim: Claim, samplings: Sequence[Sampling], repository: Path) -> Outcome:
    """Evaluate all rows of some ways to sample from one checkpoint, and compare them cell by cell.

    Raises UserError when the dataset or the device is not here.
    """
    path = folder / claim.checkpoint.path
    model, config, state = load_model(path)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{path} was evaluated on a GPU, and there is none to be seen here")
    split = _validation(claim.checkpoint, config, state["classes"], repository)
    rows = [(line, Sampling.of_columns(row), row) for line, row in enumerate(claim.rows(folder), start=2)]
    printed = [each for each in rows if each[1] in samplings]
    asked = {way: [int(row["eval_seed"]) for _, own, row in printed if own == way] for way in samplings}
    placed(model, config)
    evidence = {"ckpt": claim.checkpoint.path, "ckpt_sha256": claim.checkpoint.sha256}
    found = measured_rows(model, split, config, asked, evidence, f"verify {config.lineage} seed{config.seed}")
    mismatches = []
    for line, way, row in printed:
        again = found[int(row["eval_seed"]), way]
        if different := [name for name, value in again.items() if row.get(name) != str(value)]:
            place = f"{folder / claim.results.path}, line {line}: {different[0]}"
            mismatches.append(f"{place} is {row.get(different[0])}, but the checkpoint gives {again[different[0]]}")
    if mismatches:
        mismatches += _elsewhere(folder, config, repository)
    return Outcome(len(printed), tuple(mismatches))


def _validation(checkpoint: Entry, config: RunConfig, classes: Sequence[str], repository: Path) -> Any:
    """The validation split that a checkpoint was evaluated on; raises UserError when it is not here."""
    described = graph.data_manifest(graph.line_of(config.family))
    manifest = read_manifest(repository, described)
    if manifest["hash"] != checkpoint.data_hash:
        raise UserError(
            f"{repository / described} describes {manifest['dataset']!r} with hash {manifest['hash'][:12]}, "
            f"but {checkpoint.path} was trained on data with hash {checkpoint.data_hash[:12] or 'unknown'}; name that "
            "dataset in the scale and run `noisebox data`"
        )
    split = open_split(manifest["dataset"], "val", repository, described)
    if list(split.classes) != list(classes):
        raise UserError(f"{checkpoint.path} was trained for other classes than {split.name} has")
    return split


def _elsewhere(folder: Path, config: RunConfig, repository: Path) -> list[str]:
    """A sentence where the run was made on another machine or PyTorch, which may round otherwise."""
    run = folder / graph.evaluation_folder(config.lineage, config.seed) / "run.json"
    made, here = read_json(run), environment(config, repository)
    compared = (("packages", "torch"), *(("hardware", name) for name in ("cpu", "instructions", "gpu")))
    facts = [
        (name, *(place[section][name] for place in (made, here)))
        for section, name in compared
        if name in made.get(section, {})
    ]
    told = [f"{name} {there}, here {now}" for name, there, now in facts if there != now]
    return [f"{run}: made with {'; '.join(told)}; rounding may differ"] if told else []
