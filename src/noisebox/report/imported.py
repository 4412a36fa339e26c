"""Past experiments in the report: what `noisebox import-logs` left in `imported/`, in a table of its own.

They were trained and evaluated elsewhere, on what their logs name, if anything. So a mean is over rows that name the
same dataset and as many images, and no row is held against another, nor against a lineage of the graph.
"""

from pathlib import Path

import pandas as pd

from noisebox import graph
from noisebox.report.evaluations import DATASET, GUIDANCE, IMPORTED, METRICS, WAY, read_evaluation
from noisebox.report.markdown import ABSENT, links, number, plural, table
from noisebox.report.sections import interval_cell, numbers_link, reach_note, seeds_cell
from noisebox.report.statistics import PAIR, summarise
from noisebox.report.tables import Row, class_columns, joined, records, rounded

CELL = ["run", *DATASET, "images", *WAY]
COLUMNS = [
    *[*CELL, "AP", "AP_std", "AP_std_flat", "AP_low", "AP_high", *METRICS[1:]],
    *["train_seeds", "eval_seeds", "runs", "nan_runs", "results", "logs", "ckpt_sha256"],
]


def read_imported(root: Path) -> pd.DataFrame:
    """The rows of every imported results.tsv: lineages by name, in each datasets, ways to sample and seeds in rising
    order; `file` is where a row lies, `log` where it is from.

    Raises UserError when a file is broken, or of another run than its folder says.
    """
    parts = [pd.DataFrame(columns=[*IMPORTED, *DATASET, "file", "log"])]
    for path, run in graph.imported_results(root).items():
        rows = read_evaluation(root / path, IMPORTED, *run, optional=DATASET)
        logs = [source.rpartition(":")[0] for source in rows["source"]]
        unnamed = {name: "" for name in DATASET if name not in rows}
        parts.append(rows.assign(file=path, log=logs, **unnamed))
    return pd.concat(parts[1:] or parts, ignore_index=True).sort_values([*CELL, *PAIR], ignore_index=True)


def imported_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`tables/imported.tsv`: `summarise` for every metric and class of each lineage on one dataset and sampled in one
    way; each row names its results.tsv, the logs that these are from, and what is known of the checkpoints."""
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS)
    classes = class_columns(rows)
    summary = rounded(summarise(rows, [*METRICS, *classes], CELL))
    of_cell = rows.groupby(CELL, sort=False)
    evidence = {"results": of_cell["file"].agg(joined), "logs": of_cell["log"].agg(joined)}
    evidence["ckpt_sha256"] = of_cell["ckpt_sha256"].agg(lambda digests: joined(filter(None, digests)))
    return summary.merge(pd.DataFrame(evidence).reset_index(), on=CELL)[[*COLUMNS, *classes]]


def section(rows: pd.DataFrame) -> list[str]:
    """The section of the summary; nothing where nothing was imported."""
    if rows.empty:
        return []
    header = [
        *["lineage", "dataset", "images", "steps", "guidance", "AP", "95 % interval", "std", "flat std"],
        *["AP50", "AP75", "train × eval seeds", "results.tsv", "from"],
    ]
    cells = [
        [
            *[f"`{row['run']}`", f"`{row['dataset']}`" if row["dataset"] else ABSENT, row["images"] or ABSENT],
            *[str(row["sample_step"]), _guidance(row), number(row["AP"]), interval_cell(row, "AP", number)],
            ABSENT if row["train_seeds"] == 1 else number(row["AP_std"]),
            ABSENT if row["runs"] == 1 else number(row["AP_std_flat"]),
            *[number(row["AP50"]), number(row["AP75"]), _seeds(row), links(row["results"])],
            plural(len(row["logs"].split(",")), "log"),
        ]
        for row in records(rows)
    ]
    caption = (
        "*What logs say of past experiments, trained and evaluated elsewhere (`noisebox import-logs`). AP, its 95 % "
        f"interval and standard deviations as under [Average precision](#average-precision). {reach_note(rows)} "
        f"Dataset and images: what the logs name ({ABSENT}: nothing). APs on different datasets are not comparable, "
        "and a name alone does not make two datasets the same; so no difference is taken, neither between these rows "
        "nor to lineages of the graph. No log names the commit of its code. Each row of a results.tsv names its "
        f"checkpoint, log and line.* {numbers_link('imported')}"
    )
    return ["## Past experiments", f"{table(header, cells)}\n\n{caption}"]


def _guidance(row: Row) -> str:
    """`0.1, all, k 2, top 50`, or a dash without guidance."""
    scale, mode, steps, topk = (row[name] for name in GUIDANCE)
    return f"{scale:g}, {mode}, k {steps}{f', top {topk}' if topk else ''}" if scale else ABSENT


def _seeds(row: Row) -> str:
    """`3 × 5`; where some train seeds have fewer eval seeds than others, how many runs there are."""
    even = row["runs"] == row["train_seeds"] * row["eval_seeds"]
    return seeds_cell(row) if even else f"{row['train_seeds']} × up to {row['eval_seeds']}, {row['runs']} runs"
