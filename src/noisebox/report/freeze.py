"""`noisebox freeze`: a folder with checkpoints and all that their claims stand on, which nothing changes any more.

A deliverable is laid out like the repository, so everything in it lies where `graph` says, and has a manifest of its
own. It appears whole or not at all.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from noisebox import graph
from noisebox.errors import UserError, what_fits
from noisebox.files import atomic_path, read_json, read_yaml, write_text
from noisebox.report import markdown
from noisebox.report.bev_evaluations import RESULTS as BEV_RESULTS
from noisebox.report.evaluations import RESULTS, read_evaluation
from noisebox.report.manifest import CHECKPOINT, IMPORTED, Entry, compare, entry_of, read_manifest, write_manifest
from noisebox.report.statistics import summarise

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def freeze(name: str, lineages: Sequence[str], root: Path = Path()) -> Path:
    """Copy every run of `lineages` that the report's manifest has to `deliverables/<name>`, and return that folder.

    Raises UserError when the name is taken or is none, a lineage is not in the manifest, a file is missing or is not
    what the manifest says, or the dataset at hand is not the one that the runs were trained on.
    """
    if not re.fullmatch(NAME, name):
        raise UserError(f"{name!r} is no name for a folder: use letters, digits, '.', '_' and '-'")
    target = root / graph.deliverable(name)
    if target.exists():
        raise UserError(f"{target} exists, and a deliverable never changes: choose another name")
    entries = _chosen(lineages, root)
    staging = target.parent / f".writing-{name}"
    shutil.rmtree(staging, ignore_errors=True)  # what a killed freeze left
    try:
        more = _beside(entries)
        _copy([*(entry.path for entry in entries), *more], root, staging)
        if faults := compare(staging, entries).mismatches:
            way = f"run noisebox report, which makes {graph.RESULTS_MANIFEST} anew"
            raise UserError(f"{faults[0]}; {way}".replace(f"{staging}/", ""))
        described = _dataset(entries, root)
        _copy(described, root, staging)
        more |= {path: {} for path in described}
        entries += [entry_of(staging, path, Path(path).stem, **facts) for path, facts in more.items()]
        write_manifest(staging / graph.MANIFEST, entries)
        write_text(staging / "README.md", readme(name, entries, staging))
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _chosen(lineages: Sequence[str], root: Path) -> list[Entry]:
    """The rows of the report's manifest that are about some lineages, without what past experiments say of them."""
    path = root / graph.RESULTS_MANIFEST
    if not path.exists():
        raise UserError(f"{path} does not exist; this makes it: noisebox report")
    entries = [entry for entry in read_manifest(path) if entry.kind != IMPORTED]
    known = list(dict.fromkeys(entry.lineage for entry in entries if entry.lineage))
    for lineage in lineages:
        if lineage not in known:
            raise UserError(f"{path} has no lineage {lineage!r}; {what_fits(lineage, known, 'it has')}")
    return [entry for entry in entries if entry.lineage in lineages]


def _beside(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """By path, what a new evaluation of the checkpoints needs beside `entries`, and what a manifest says of it."""
    more: dict[str, dict[str, Any]] = {}
    for entry in (entry for entry in entries if entry.kind == CHECKPOINT):
        lineage, seed = entry.lineage, entry.train_seed or 0
        run = [*graph.evaluation_inputs(lineage, seed), f"{entry.path}.sha256"]
        run.append(f"{graph.run_folder(lineage, seed)}/config.yaml")
        facts = {name: getattr(entry, name) for name in ("lineage", "train_seed", "git_commit", "data_hash", "when")}
        more |= {path: facts for path in run if path != entry.path}
    return more


def _copy(paths: Sequence[str], root: Path, staging: Path) -> None:
    """Copy files; raises UserError, before any is, where one is missing."""
    for path in paths:
        if not (root / path).is_file():
            raise UserError(f"{root / path} does not exist, so it cannot be delivered; `dvc pull` may bring it back")
    for path in paths:
        with atomic_path(staging / path) as temporary:
            shutil.copyfile(root / path, temporary)


def _dataset(entries: Sequence[Entry], root: Path) -> list[str]:
    """The files that describe the datasets which the runs were trained on."""
    files: dict[str, None] = {}
    for entry in entries:
        described = graph.data_manifest(_line(root, entry))
        manifest = read_json(root / described)
        if entry.data_hash != manifest.get("hash"):
            raise UserError(
                f"{root / described} describes other data than {entry.path} was made from; name its dataset "
                "in the scale and run `noisebox data`"
            )
        files |= dict.fromkeys([described, graph.dataset_file(manifest["dataset"])])
    return list(files)


def _line(folder: Path, entry: Entry) -> str:
    """The line of research that a run belongs to, by its resolved configuration."""
    config = read_yaml(folder / f"{graph.run_folder(entry.lineage, entry.train_seed or 0)}/config.yaml")
    return graph.line_of(config["family"])


def readme(name: str, entries: Sequence[Entry], folder: Path) -> str:
    """One page: what is delivered, how it is checked and evaluated again, and how it is shared."""
    place = graph.deliverable(name)
    data = [read_json(path) for path in sorted((folder / "data").glob("*.json"))]
    scale = read_yaml(next(folder.glob(f"{graph.run_folder('*', '*')}/config.yaml")))["scale"]
    first = next(entry for entry in entries if entry.kind == CHECKPOINT)
    embedded = all(each["definition"]["kind"].startswith("world") for each in data)
    named = markdown.listed(f"`{graph.dataset_file(each['dataset'])}`" for each in data)
    fetch = "draws it" if embedded else f"checks it, once {named} names where it lies"
    datasets = markdown.listed(f"`{each['dataset']}`, hash `{each['hash'][:12]}`" for each in data)
    commits = markdown.listed(f"`{entry.git_commit}`" for entry in entries if entry.git_commit)
    return f"""# {name}

A deliverable of Noisebox: checkpoints, and the results that they gave. It does not change any more:
`{graph.MANIFEST}` has the sha256 of every other file.

{_levels(entries, folder)}

*AP, or mIoU where a lineage segments, from 0 to 100 without guidance: mean over train seeds and standard deviation
across them, by sampling steps. Every single result, those with guidance too, is a row of a `results.tsv`.*

| path | what |
|---|---|
| `runs/<lineage>/seed<k>/model_final.pth` | the checkpoint: weights, resolved configuration, classes |
| `runs/<lineage>/seed<k>/config.yaml`, `run.json`, `metrics.csv` | configuration, origin and curve of its training |
| `evals/<lineage>/seed<k>/results.tsv`, `speed.tsv` | AP and time of every eval seed × steps × guidance |
| `data/*.json`, {named} | what the dataset holds; its definition |

Code: {commits or "no commit known"}. Scale: `{scale}`. Dataset: {datasets}.

## Check it, and evaluate it again

From the root of a clone of the repository:

```console
$ noisebox verify {place}                # every hash, and a few rows evaluated again
$ noisebox verify {place} --rows 0       # the hashes alone; this folder is all it needs
$ noisebox verify {place} --rows 1000000 # every row evaluated again
```

Exit code 0: all is as the manifest says; 1: something differs, told line by line; 2: it could not be checked. A row
must come out to the printed digits. That needs the dataset: `noisebox data` {fetch}. Without it the hashes alone are
checked, which is said, unless `--rows` asks for more.

To ask the checkpoints something else, put them where a clone expects them, at scale `{scale}`:

```console
$ cp -r {place}/runs .
$ noisebox evaluate {first.lineage} --seed {first.train_seed}
```

## Share it

```console
$ dvc add {place} && git add deliverables && git commit -m "{name}" && git push && dvc push
```

and in another clone:

```console
$ git pull && dvc pull {place} && noisebox verify {place}
```
"""


def _levels(entries: Sequence[Entry], folder: Path) -> str:
    """AP or mIoU without guidance, by lineage, sampling steps and crops."""
    runs = [entry for entry in entries if entry.kind == "results" and entry.train_seed is not None]
    tables = []
    for run in runs:
        columns = BEV_RESULTS if _line(folder, run) == "bev" else RESULTS
        table = read_evaluation(folder / run.path, columns, run.lineage, run.train_seed or 0)
        if "mIoU" in table:
            table = table.rename(columns={"mIoU": "AP"}).assign(guidance_scale=0.0, crops=0)
        tables.append(table.sort_values("sample_step", kind="stable"))
    results = pd.concat(tables)
    unguided = results[results["guidance_scale"] == 0]
    rows = summarise(unguided, cell=["run", "sample_step", "crops"]).to_dict("records")
    header = ["lineage", "steps", "AP or mIoU", "std", "train seeds", "results"]
    cells = [
        [
            *[
                f"`{row['run']}`" + (", crops" if row["crops"] else ""),
                str(row["sample_step"]),
                markdown.number(row["AP"]),
                markdown.number(row["AP_std"]),
            ],
            *[str(row["train_seeds"]), str(row["runs"])],
        ]
        for row in rows
    ]
    return markdown.table(header, cells)
