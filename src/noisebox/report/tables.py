"""The numbers of the report: a table for each protocol, by the arithmetic of statistics.py.

AP is on the 0–100 scale everywhere. It is `nan` where there was nothing to measure, and a mean over a `nan` is `nan`.
Every row names the results.tsv it was made from. Differences of AP are paired: both sides of each were trained with
one seed, and sampled from one noise. A difference `delta` has its 95 % interval in `delta_low` and `delta_high`, its p
value in `delta_p`, that after Holm's correction for all differences of the table in `delta_p_holm`, and what this says
in `delta_verdict`; the interval is the plain one, of this difference alone.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from noisebox.config.sampling import UNGUIDED
from noisebox.errors import UserError
from noisebox.graph import Lineage
from noisebox.report.breakdown import KINDS, Breakdown, objects_of
from noisebox.report.evaluations import (
    CLASS_PREFIX,
    METRICS,
    Asked,
    Run,
    Teacher,
    breakdown_path,
    results_path,
    speed_path,
)
from noisebox.report.markdown import plural
from noisebox.report.statistics import (
    CELL,
    Difference,
    difference,
    holm,
    interval,
    mean_of,
    seed_means,
    spread_of,
    summarise,
    verdict,
)

DECIMALS = 4
SECONDS_DECIMALS = 6
RATIO_DECIMALS = 3
GUIDED_CELL = [*CELL, "guidance_scale", "guidance_mode", "guidance_steps"]
AP_OF_SIZE = {"all": "AP", "small": "APs", "medium": "APm", "large": "APl"}
UNEQUAL = "unequal control"
CONTROL = "finetune"  # the recipe that trains on as before: what a finetune gives beyond it is the finetune's own


def compared_columns(name: str) -> list[str]:
    """The columns of a difference of AP."""
    return [name, *(f"{name}_{part}" for part in ("std", "low", "high", "p", "p_holm", "verdict"))]


MEASURED = ["AP", "AP_std", "AP_low", "AP_high"]
DIFFERENCES = [
    *["run", "reference", "relation", "iterations", "reference_iterations", "sample_step"],
    *["AP", "reference_AP", *compared_columns("delta")],
    *["pairs", "train_seeds", "unpaired", "results", "reference_results"],
]
TRADEOFF = [
    *[*CELL, *MEASURED, *compared_columns("delta"), "s_per_img", "ratio"],
    *["train_seeds", "eval_seeds", "results", "speed"],
]
GUIDANCE = [
    *[*GUIDED_CELL, *MEASURED, *compared_columns("delta"), "s_per_img", "ratio"],
    *["train_seeds", "eval_seeds", "results", "speed"],
]
ABLATIONS = [
    *["group", "variant", "run", "iterations", "sample_step", *MEASURED, *compared_columns("delta")],
    *["train_seeds", "eval_seeds", "results"],
]
DISTILLATION = [
    *["run", "kind", "student_steps", "sample_step", *MEASURED, "s_per_img"],
    *["teacher", "teacher_seeds", "teacher_steps", "teacher_AP_1", "teacher_AP", "teacher_s_per_img"],
    *[*compared_columns("gap_1"), "pairs_1", *compared_columns("gap"), "pairs"],
    *["speedup", "speedup_low", "speedup_high"],
    *["train_seeds", "eval_seeds", "results", "teacher_results"],
]
SIZES = [
    *["run", "sample_step", "class", "objects", *AP_OF_SIZE.values()],
    *["train_seeds", "eval_seeds", "breakdown"],
]


Row = dict[str, Any]
Cell = tuple[Any, ...]  # what rows of one cell have in common: lineage, step count, and how was guided


def records(table: pd.DataFrame) -> list[Row]:
    """The rows of a table, each by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def class_columns(table: pd.DataFrame) -> list[str]:
    """The columns of per-class AP, in the dataset's order."""
    return [str(name) for name in table.columns if str(name).startswith(CLASS_PREFIX)]


def joined(values: Iterable[object]) -> str:
    return ",".join(dict.fromkeys(str(value) for value in values))


def _files(rows: pd.DataFrame) -> str:
    """The results.tsv, or speed.tsv, of some rows."""
    path = results_path if "AP" in rows else speed_path
    return joined(path(run, seed) for run, seed in zip(rows["run"], rows["train_seed"], strict=True))


def main_table(results: pd.DataFrame, iterations: dict[str, str]) -> pd.DataFrame:
    """`tables/main.tsv`: `summarise` for every metric and class, rounded; each row names its TSVs and checkpoints, and
    by `iterations` how long the lineage's last stage was."""
    table = summarise(results, [*METRICS, *class_columns(results)]).round(DECIMALS)
    files = [results_path(run, seed) for run, seed in zip(results["run"], results["train_seed"], strict=True)]
    rows = results.assign(results=files).groupby(CELL, sort=False)
    evidence = rows[["results", "ckpt_sha256"]].agg(joined)
    table.insert(1, "iterations", [iterations[run] for run in table["run"]])
    return table.merge(evidence.reset_index(), on=CELL)


def steps_table(results: pd.DataFrame) -> pd.DataFrame:
    """`tables/steps.tsv`: AP at each step count per train seed, a mean over eval seeds; `AP_std` is their spread."""
    table = seed_means(results)
    spread = results.groupby([*CELL, "train_seed"], sort=False)["AP"].agg(spread_of)
    table["AP_std"] = spread.to_numpy()
    return table[["run", "train_seed", "sample_step", "AP", "AP_std", "eval_seeds"]].round(DECIMALS)


def speed_table(speed: pd.DataFrame) -> pd.DataFrame:
    """`tables/speed.tsv`: seconds per image and eval seed, a mean over train seeds; images per second; and the cost as
    a multiple of the lineage's fewest sampling steps. Nothing but speed.tsv goes in."""
    files = [speed_path(run, seed) for run, seed in zip(speed["run"], speed["train_seed"], strict=True)]
    grouped = speed.assign(speed=files).groupby(CELL, sort=False)
    seconds = grouped["inference_s_per_img"].mean()
    table = pd.DataFrame({"s_per_img": seconds.round(SECONDS_DECIMALS), "img_per_s": (1 / seconds).round(3)})
    table["ratio"] = (seconds / seconds.groupby("run").transform("first")).round(RATIO_DECIMALS)
    where = grouped[["device", "threads", "batch", "eval_seeds"]].agg(joined)
    return table.join(where).assign(train_seeds=grouped.size(), speed=grouped["speed"].agg(joined)).reset_index()


def differences_table(results: pd.DataFrame, iterations: Mapping[str, str]) -> pd.DataFrame:
    """`tables/differences.tsv`: per lineage and step count its AP against that of each of its `references` that is in
    `results`. `unpaired` runs of either side have no partner on the other: they are in neither `delta` nor `pairs`.

    `iterations` of each lineage's last stage tell which control is an UNEQUAL one.
    """
    measured = dict(iter(results.groupby(CELL, sort=False)))
    rows = []
    for (run, steps), own in measured.items():
        for relation, reference in references(str(run)).items():
            theirs = measured.get((reference, steps))
            if theirs is None:
                continue
            delta = difference(own, theirs)
            lengths = {"iterations": iterations[str(run)], "reference_iterations": iterations[reference]}
            row = {"run": run, "reference": reference, "relation": by_length(relation, *lengths.values()), **lengths}
            row |= {
                "sample_step": steps,
                "AP": _ap(own),
                "reference_AP": _ap(theirs),
                **difference_cells("delta", delta),
            }
            row |= {"pairs": delta.pairs, "train_seeds": delta.train_seeds, "unpaired": delta.unpaired}
            row |= {"results": _files(own), "reference_results": _files(theirs)}
            rows.append(row)
    return judged(rows, DIFFERENCES, "delta")


def references(run: str, control: str = CONTROL) -> dict[str, str]:
    """What a lineage is held against: its `parent`, and its control, the parent trained on as before by recipe
    `control`."""
    parent = Lineage.parse(run).parent
    if parent is None:
        return {}
    as_before = f"{parent.name}+{control}"
    return {"parent": parent.name, **({"control": as_before} if run != as_before else {})}


def by_length(relation: str, iterations: str, reference_iterations: str) -> str:
    """The relation to a reference: a control that was trained on for another number of iterations is an UNEQUAL one."""
    return UNEQUAL if relation == "control" and iterations != reference_iterations else relation


def difference_cells(name: str, delta: Difference) -> Row:
    """A difference as the columns of a table, before the table's other differences are known."""
    cells = {name: delta.mean, f"{name}_std": delta.std}
    return cells | {f"{name}_low": delta.low, f"{name}_high": delta.high, f"{name}_p": delta.p}


def judged(rows: list[Row], columns: list[str], *names: str) -> pd.DataFrame:
    """The table of some rows, rounded, once the differences `names` in them are judged all together."""
    tests = [(row[name], row[f"{name}_p"]) for row in rows for name in names]
    distinct = [test for test in dict.fromkeys(tests) if not math.isnan(test[1])]  # one test may be shown twice
    adjusted = dict(zip(distinct, holm([p for _, p in distinct]), strict=True))
    for row in rows:
        for name in names:
            p = adjusted.get((row[name], row[f"{name}_p"]), math.nan)
            row |= {f"{name}_p_holm": p, f"{name}_verdict": verdict(row[name], p)}
    return rounded(pd.DataFrame(rows, columns=columns))


def tradeoff_table(asked: Asked) -> pd.DataFrame:
    """`tables/tradeoff.tsv`: per lineage and step count AP, its difference to the fewest steps, seconds per image, and
    their ratio to the fewest steps. At the fewest steps the difference is 0."""
    rows, summary, speeds = [], _summary_rows(asked.results, CELL), _by_cell(asked.speed, CELL)
    fewest = asked.results.groupby("run", sort=False)["sample_step"].min()
    measured = _by_cell(asked.results, CELL)
    for (run, steps), at_steps in measured.items():
        speed, least = speeds[run, steps], (run, fewest[run])
        row = {**summary[run, steps], **difference_cells("delta", difference(at_steps, measured[least]))}
        row |= {"s_per_img": _seconds(speed), "ratio": _seconds(speed) / _seconds(speeds[least])}
        rows.append(row | {"results": _files(at_steps), "speed": _files(speed)})
    return judged(rows, TRADEOFF, "delta")


def guidance_table(asked: Asked) -> pd.DataFrame:
    """`tables/guidance.tsv`: per lineage, step count and way of guiding (scale, mode, Langevin steps): AP, its
    difference to no guidance, seconds per image, and their ratio to no guidance. Without guidance the difference is 0.
    """
    rows, summary, speeds = [], _summary_rows(asked.results, GUIDED_CELL), _by_cell(asked.speed, GUIDED_CELL)
    measured = _by_cell(asked.results, GUIDED_CELL)
    for cell, guided in measured.items():
        speed, without = speeds[cell], (*cell[: len(CELL)], *UNGUIDED[:3])
        row = {**summary[cell], **difference_cells("delta", difference(guided, measured[without]))}
        row |= {"s_per_img": _seconds(speed), "ratio": _seconds(speed) / _seconds(speeds[without])}
        rows.append(row | {"results": _files(guided), "speed": _files(speed)})
    return judged(rows, GUIDANCE, "delta")


def ablations_table(asked: Asked, groups: Mapping[str, Mapping[str, str]], iterations: dict[str, str]) -> pd.DataFrame:
    """`tables/ablations.tsv`: per group, variant and step count: AP, and its difference to the group's first variant.
    A lineage that is in several groups has a row in each; a group without variants has none."""
    rows, summary, measured = [], _summary_rows(asked.results, CELL), _by_cell(asked.results, CELL)
    for group, variants in groups.items():
        first = next(iter(variants.values()), None)
        for variant, lineage in variants.items():
            for steps in [steps for run, steps in measured if run == lineage]:
                own = measured[lineage, steps]
                row = {**summary[lineage, steps], **difference_cells("delta", difference(own, measured[first, steps]))}
                row |= {"group": group, "variant": variant, "iterations": iterations[lineage]}
                rows.append(row | {"results": _files(own)})
    return judged(rows, ABLATIONS, "delta")


Taught = Mapping[str, Mapping[int, Teacher]]  # of each student, by its train seed


def students(runs: Sequence[Run], lineages: Iterable[str]) -> Taught:
    """The teachers of those of `lineages` that have one.

    Raises UserError when the runs of a lineage learned from different teachers, or in different ways.
    """
    taught: dict[str, dict[int, Teacher]] = {}
    for lineage in dict.fromkeys(lineages):
        of_lineage = [run for run in runs if run.lineage == lineage]
        ways = {
            (t.lineage, t.kind, t.teacher_steps, t.student_steps) if (t := run.teacher) else None for run in of_lineage
        }
        if len(ways) > 1:
            raise UserError(
                f"the train seeds of {lineage!r} learned from different teachers, says the run.json of each: train "
                f"them again, such as with: noisebox train {lineage} --seed {of_lineage[0].train_seed}"
            )
        if of_teacher := {run.train_seed: run.teacher for run in of_lineage if run.teacher}:
            taught[lineage] = of_teacher
    return taught


def distillation_table(asked: Asked, taught: Taught) -> pd.DataFrame:
    """`tables/distillation.tsv`: each student at one step and at the steps it was trained for, as far as these are
    asked, against its teacher.

    `teacher_AP_1` is the teacher's AP at one step, `teacher_AP` that at `teacher_steps`, as `teacher_s_per_img`;
    `gap_1` and `gap` are the student's AP minus these, over `pairs_1` and `pairs` pairs; `speedup` is the teacher's
    seconds per image over the student's, with that of the train seeds of the least and the most. What the protocol does
    not ask for is nan, of 0 pairs.
    """
    rows, summary = [], _summary_rows(asked.results, CELL)
    measured, speeds = _by_cell(asked.results, CELL), _by_cell(asked.speed, CELL)
    for lineage, of_seed in taught.items():
        teacher = next(iter(of_seed.values()))
        lessons, timings = _as_teacher(asked.results, of_seed), _as_teacher(asked.speed, of_seed)
        one, many = (lessons[lessons["sample_step"] == steps] for steps in (1, teacher.teacher_steps))
        timed = timings[timings["sample_step"] == teacher.teacher_steps]
        teacher_seconds = _seconds(timed)
        for cell in dict.fromkeys((lineage, steps) for steps in (1, teacher.student_steps)):
            if cell not in measured:
                continue
            seconds = _seconds(speeds[cell])
            gap_1, gap = difference(measured[cell], one), difference(measured[cell], many)
            row = {**summary[cell], "kind": teacher.kind, "student_steps": teacher.student_steps}
            row |= {"teacher": teacher.lineage, "teacher_seeds": joined(t.seed for t in of_seed.values())}
            row |= {"teacher_steps": teacher.teacher_steps}
            row |= {"teacher_AP_1": _ap(one), **difference_cells("gap_1", gap_1), "pairs_1": gap_1.pairs}
            row |= {"teacher_AP": _ap(many), **difference_cells("gap", gap), "pairs": gap.pairs}
            row |= {"s_per_img": seconds, "teacher_s_per_img": teacher_seconds, "speedup": teacher_seconds / seconds}
            ratios = _of_seeds(timed) / _of_seeds(speeds[cell])
            row |= {"speedup_low": ratios.min(), "speedup_high": ratios.max()}
            row |= {"results": _files(measured[cell]), "teacher_results": joined(many["file"])}
            rows.append(row)
    return judged(rows, DISTILLATION, "gap_1", "gap")


def not_asked(asked: Asked, taught: Taught) -> list[tuple[str, int, int]]:
    """What a full comparison of students and teachers lacks: (lineage, train seed, sampling steps)."""
    there = set(asked.results[["run", "train_seed", "sample_step"]].itertuples(index=False, name=None))
    wanted: dict[tuple[str, int, int], None] = {}
    for lineage, of_seed in taught.items():
        for train_seed, teacher in of_seed.items():
            own = [(lineage, train_seed, steps) for steps in (1, teacher.student_steps)]
            wanted |= dict.fromkeys([*own, *((teacher.lineage, teacher.seed, n) for n in (1, teacher.teacher_steps))])
    return [each for each in wanted if each not in there]


def errors_table(runs: Sequence[Run]) -> pd.DataFrame:
    """`tables/errors.tsv`: per lineage and kind of error the AP50 that it costs (`cost`), and how often it is there: a
    mean over train seeds of the means over eval seeds. `AP50` is that of the same detections."""
    rows = []
    for lineage, breakdowns in of_lineage(runs).items():
        for kind in KINDS:
            costs = [each.costs[kind] for each in breakdowns]
            low, high = interval(costs)
            row = {
                "run": lineage,
                "sample_step": _steps(breakdowns),
                "AP50": mean_of([each.ap50 for each in breakdowns]),
            }
            row |= {"error": kind, "count": mean_of([each.counts[kind] for each in breakdowns]), "cost": mean_of(costs)}
            row |= {"cost_std": spread_of(costs), "cost_low": low, "cost_high": high}
            rows.append(row | _breakdown_files(runs, lineage))
    return rounded(pd.DataFrame(rows))


def sizes_table(runs: Sequence[Run]) -> pd.DataFrame:
    """`tables/sizes.tsv`: per lineage and class that has objects how many, and AP by their size, means as above.

    Raises UserError when the lineages were evaluated on different objects.
    """
    breakdowns = of_lineage(runs)
    classes, objects = objects_of(breakdowns)
    rows = []
    for lineage, own in breakdowns.items():
        for place in objects.nonzero()[0]:
            row = {"run": lineage, "sample_step": _steps(own), "class": classes[place], "objects": objects[place]}
            row |= {name: mean_of([each.sizes[size][place] for each in own]) for size, name in AP_OF_SIZE.items()}
            rows.append(row | _breakdown_files(runs, lineage))
    return rounded(pd.DataFrame(rows, columns=SIZES))


def of_lineage(runs: Sequence[Run]) -> dict[str, list[Breakdown]]:
    """The breakdowns of each lineage, one a train seed."""
    breakdowns: dict[str, list[Breakdown]] = {}
    for run in runs:
        breakdowns.setdefault(run.lineage, []).append(run.breakdown)
    return breakdowns


def _steps(breakdowns: Sequence[Breakdown]) -> str:
    return joined(each.sample_step for each in breakdowns)


def _breakdown_files(runs: Sequence[Run], lineage: str) -> Row:
    own = [run for run in runs if run.lineage == lineage]
    files = joined(breakdown_path(lineage, run.train_seed) for run in own)
    return {"train_seeds": len(own), "eval_seeds": len(own[0].breakdown.eval_seeds), "breakdown": files}


def _summary_rows(results: pd.DataFrame, cell: list[str]) -> dict[Cell, Row]:
    """`summarise` by cell."""
    rows = records(summarise(results, cell=cell)) if len(results) else []
    return {tuple(row[name] for name in cell): row for row in rows}


def _by_cell(table: pd.DataFrame, cell: list[str]) -> dict[Cell, pd.DataFrame]:
    """The rows of each cell, in the order in which cells first appear."""
    return {tuple(key): rows for key, rows in table.groupby(cell, sort=False)}


def _as_teacher(table: pd.DataFrame, of_seed: Mapping[int, Teacher]) -> pd.DataFrame:
    """The rows of each train seed's teacher, under the student's train seed; `file` names where they are from."""
    parts = []
    for train_seed, teacher in of_seed.items():
        rows = table[(table["run"] == teacher.lineage) & (table["train_seed"] == teacher.seed)]
        parts.append(rows.assign(file=_files(rows), train_seed=train_seed))
    return pd.concat(parts, ignore_index=True)


def _ap(results: pd.DataFrame) -> float:
    """Mean over train seeds of each one's mean over eval seeds."""
    return mean_of(results.groupby("train_seed", sort=False)["AP"].agg(mean_of))


def _seconds(speed: pd.DataFrame) -> float:
    """Seconds per image, a mean over train seeds."""
    return mean_of(speed["inference_s_per_img"])


def _of_seeds(speed: pd.DataFrame) -> "pd.Series[float]":
    """Seconds per image by train seed."""
    return speed.set_index("train_seed")["inference_s_per_img"]


def without_noise(table: pd.DataFrame, lineages: Collection[str]) -> pd.DataFrame:
    """A finished table in which those of `lineages`, which draw no noise, have neither sampling steps nor eval seeds:
    they have one value a train seed, whatever else was asked."""
    fixed = table["run"].isin(list(lineages))
    counts = [name for name in ("sample_step", "eval_seeds") if name in table]
    return table.assign(**{name: table[name].convert_dtypes().mask(fixed) for name in counts})


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """AP, seconds and ratios with as many decimals as in every table."""
    decimals = {
        **dict.fromkeys(["s_per_img", "teacher_s_per_img"], SECONDS_DECIMALS),
        **dict.fromkeys(["ratio", "speedup", "speedup_low", "speedup_high"], RATIO_DECIMALS),
    }
    numbers = table.select_dtypes("float").columns.drop("guidance_scale", errors="ignore")
    return table.round({name: decimals.get(name, DECIMALS) for name in numbers})


def scalars(
    results: pd.DataFrame, eval_seeds: int, noiseless: Collection[str] = ()
) -> dict[str, dict[str, float | None]]:
    """The `metrics/<lineage>.json` of each lineage in some results: AP, its standard deviation across train seeds, and
    AP50, at each step count, or once if it is `noiseless`; None where there is no number.

    The names tell what was measured under fewer than `eval_seeds` eval seeds, since DVC puts equal names into one
    column.
    """
    metrics: dict[str, dict[str, float | None]] = {}
    for row in records(summarise(results, ["AP", "AP50"]).round(DECIMALS)):
        at = "" if row["run"] in noiseless else f"@{row['sample_step']}"
        if at and row["eval_seeds"] < eval_seeds:
            at += f" of {plural(row['eval_seeds'], 'eval seed')}"
        values = {f"{name}{at}": row[name] for name in ("AP", "AP_std", "AP50")}
        metrics.setdefault(row["run"], {}).update({key: None if math.isnan(v) else v for key, v in values.items()})
    return metrics


def tsv(table: pd.DataFrame) -> str:
    """A table as TSV text, `nan` where there is no number."""
    return table.to_csv(sep="\t", index=False, na_rep="nan", lineterminator="\n")
