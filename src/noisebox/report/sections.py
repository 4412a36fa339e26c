"""The sections of summary.md, each the Markdown of one table, with a caption that says what its numbers are.

The numbers and verdicts are those of `tables/*.tsv`, rounded there already.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from noisebox import graph
from noisebox.config import ExperimentConfig, GuidanceProtocol
from noisebox.report import pictures
from noisebox.report.breakdown import Breakdown
from noisebox.report.evaluations import SIZES, Asked, Evaluated, Run, detections_path, results_path
from noisebox.report.markdown import ABSENT, MINUS, link, links, listed, number, plural, signed, table
from noisebox.report.pictures import Pictures
from noisebox.report.statistics import reach
from noisebox.report.tables import CONTROL, UNEQUAL, Row, Taught, class_columns, not_asked, records

SHORT = 12  # characters of a hash


# What was run


def what_was_run(experiment: ExperimentConfig, runs: Sequence[Run], iterations: Mapping[str, str]) -> str:
    """Scale, data, lineages, seeds, protocols and code."""
    of_length: dict[str, list[str]] = {}
    for lineage, count in iterations.items():
        of_length.setdefault(count, []).append(f"`{lineage}`")
    lines = [
        f"- **Scale** `{experiment.scale}`, **data** {_data(runs)}",
        f"- **Lineages** {'; '.join(f'{listed(names)} ({count} iterations)' for count, names in of_length.items())}",
        f"- **Train seeds** {listed(run.train_seed for run in runs)}",
    ]
    for name, protocol in experiment.protocols.by_name().items():
        line = (
            f"- **Protocol `{name}`** {plural(len(experiment.lineages_asked(name)), 'lineage')}; eval seeds "
            f"{listed(protocol.eval_seeds)}; sampling steps {listed(sorted(protocol.sample_steps))}"
        )
        if isinstance(protocol, GuidanceProtocol):
            scales = listed(f"{scale:g}" for scale in sorted(protocol.scales))
            line += f"; scales {scales}; modes {listed(protocol.modes)}; k {listed(sorted(protocol.langevin_steps))}"
        lines.append(line)
    lines.append(f"- **Code** {listed(_commit(run) for run in runs)}")
    lines += [f"- {told}" for told in _not_comparable(runs)]
    return "\n".join(lines)


def data_note(runs: Sequence[Evaluated], summary: str = "") -> list[str]:
    """What `what_was_run` says of data and images, for the head of a section of other runs; nothing where these are all
    of one data and as many images. `summary` is the path to summary.md from another page."""
    told = _not_comparable(runs, summary)
    if not told and len(_images(runs)) == 1:
        return []
    return [" ".join(f"{sentence}." for sentence in (f"**Data** {_data(runs)}", *told))]


def _data(runs: Sequence[Evaluated]) -> str:
    """On which data runs were trained, and on how many images evaluated."""
    datasets = listed(f"`{run.provenance.get('dataset') or 'unknown'}`" for run in runs)
    hashes = listed(_data_hash(run) for run in runs)
    return f"{datasets} (sha256 {hashes}), evaluated on {listed(_images(runs))} images"


def _images(runs: Sequence[Evaluated]) -> list[int]:
    """The different numbers of images that runs were evaluated on."""
    return list(dict.fromkeys(count for run in runs for count in run.results["images"]))


def _not_comparable(runs: Sequence[Evaluated], summary: str = "") -> list[str]:
    """That runs were trained on different data; nothing where they were not."""
    if len({_data_hash(run) for run in runs}) == 1:
        return []
    return [f"**Not comparable: the runs were trained on different data**, see [Provenance]({summary}#provenance)"]


def _data_hash(run: Evaluated) -> str:
    return f"`{(run.provenance.get('data_hash') or 'unknown')[:SHORT]}`"


def _commit(run: Evaluated) -> str:
    commit = run.provenance.get("git_commit")
    named = f"commit `{commit[:SHORT]}`" if commit else "no commit"
    return named + (" with uncommitted changes" if run.provenance.get("git_dirty") else "")


# Average precision


def main(rows: pd.DataFrame) -> str:
    """The main table."""
    header = [
        "lineage",
        "iterations",
        "steps",
        "AP",
        "95 % interval",
        "std",
        "flat std",
        "AP50",
        "AP75",
        "train × eval seeds",
        "results.tsv",
    ]
    cells = [
        [
            f"`{row['run']}`",
            row["iterations"],
            steps_cell(row),
            number(row["AP"]),
            interval_cell(row, "AP", number),
            ABSENT if row["train_seeds"] == 1 else number(row["AP_std"]),
            ABSENT if row["runs"] == 1 else number(row["AP_std_flat"]),
            number(row["AP50"]),
            number(row["AP75"]),
            seeds_cell(row),
            links(row["results"]),
        ]
        for row in records(rows)
    ]
    below = " No AP is below 0, though the arithmetic of an interval may be." if (rows["AP_low"] < 0).any() else ""
    caption = (
        "*AP: mean over train seeds of each one's mean over eval seeds; AP50 and AP75 likewise. 95 % interval: "
        f"Student's t over the train seeds' means. {reach_note(rows)}{below} std: population standard deviation across "
        f"these means; flat std: of all runs. Iterations: of the lineage's last stage.{noiseless_note(rows)}* "
        f"{numbers_link('main')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def searches(experiment: ExperimentConfig) -> str:
    """Where the page of each search lies."""
    of_recipe = experiment.every_search().items()
    return "\n".join(f"- [`{name}`](searches/{name}.md): short trainings of `{recipe}`" for name, recipe in of_recipe)


def steps_cell(row: Row) -> str:
    """A count of sampling steps, or a dash where there are none to count."""
    return _count(row["sample_step"])


def at_steps(row: Row) -> str:
    """` at 5 steps`, or nothing where there are none to count."""
    return "" if pd.isna(row["sample_step"]) else f" at {plural(row['sample_step'], 'step')}"


def _count(value: Any) -> str:
    return ABSENT if pd.isna(value) else str(value)


def _eval_seeds(row: Row) -> str:
    """` × 5 eval seeds`, or nothing where there are none to count."""
    return "" if pd.isna(row["eval_seeds"]) else f" × {row['eval_seeds']} eval seeds"


def noiseless_note(rows: pd.DataFrame) -> str:
    """Which lineages have neither sampling steps nor eval seeds, and why; nothing where all have both."""
    names = listed(f"`{run}`" for run in rows["run"][rows["sample_step"].isna()])
    return f" {ABSENT}: no noise is drawn by {names}, so each checkpoint has one value." if names else ""


def reach_note(rows: pd.DataFrame) -> str:
    """What the number of train seeds means for the intervals of a table."""
    seeds = int(rows["train_seeds"].min())
    if seeds < 2:
        return "With one train seed there is none."
    return (
        f"With {seeds} train seeds it has {plural(seeds - 1, 'degree')} of freedom and goes {reach(seeds):.1f} "
        f"standard errors to either side (with very many 2.0): the fewer trainings, the less is known of the next."
    )


def interval_cell(row: Row, name: str, written: Callable[[float], str] = signed) -> str:
    """The ends of a 95 % interval, or a dash where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return ABSENT if math.isnan(low) else f"{written(low)} to {written(high)}".replace("-", MINUS)


def judged_cells(row: Row, name: str) -> list[str]:
    """A difference, its interval, and its verdict."""
    return [signed(row[name]), interval_cell(row, name), row[f"{name}_verdict"]]


def seeds_cell(row: Row) -> str:
    return f"{row['train_seeds']} × {_count(row['eval_seeds'])}"


def _spread(row: Row, name: str) -> str:
    """A standard deviation, or a dash where there is one value only."""
    return ABSENT if math.isnan(row[name]) and row["train_seeds"] == 1 else number(row[name])


def numbers_link(*names: str) -> str:
    return f"Numbers: {listed(f'[tables/{name}.tsv](tables/{name}.tsv)' for name in names)}."


def nan_note(results: pd.DataFrame) -> list[str]:
    """Which runs have no AP; nothing where all have one."""
    missing = results[results["AP"].isna()]
    if missing.empty:
        return []
    runs: dict[tuple[str, int, int], list[int]] = {}
    for row in records(missing):
        runs.setdefault((row["run"], row["train_seed"], row["sample_step"]), []).append(row["eval_seed"])
    told = f"**AP is nan in {len(missing)} of {len(results)} runs.** They count: a mean over one of them is nan.\n"
    lines = [
        f"- `{run}` train seed {seed} at {plural(step, 'step')}: eval seed {listed(eval_seeds)} "
        f"({link('results.tsv', results_path(run, seed))})"
        for (run, seed, step), eval_seeds in runs.items()
    ]
    return ["\n".join([told, *lines])]


def train_seeds(steps: pd.DataFrame) -> str:
    """AP of each train seed, a column each."""
    seeds = list(steps["train_seed"].unique())
    cells: dict[tuple[str, str], list[str]] = {}
    for row in records(steps):
        linked = link(number(row["AP"]), results_path(row["run"], row["train_seed"]))
        cells.setdefault((row["run"], steps_cell(row)), []).append(linked)
    rows = [[f"`{run}`", step, *values] for (run, step), values in cells.items()]
    caption = f"*AP; each value links to its results.tsv.* {numbers_link('steps')}"
    return f"{table(['lineage', 'steps', *(f'train seed {seed}' for seed in seeds)], rows)}\n\n{caption}"


def steps_caption(main: pd.DataFrame) -> str:
    """What the plot of AP against steps shows."""
    same = " What draws no noise is the same at all steps." if main["sample_step"].isna().any() else ""
    overlap = " Bars that overlap say nothing of a difference, which is paired: see [Differences](#differences)."
    return (
        f"*AP against sampling steps, lineages beside each other: mean over train seeds (line){bars(main)}, each train "
        f"seed (points).{same}{overlap if bars(main) else ''}* {numbers_link('main', 'steps')}"
    )


def bars(rows: pd.DataFrame) -> str:
    """What the bars of a plot of `rows` show; nothing where there are none."""
    if rows["AP_low"].isna().all():
        return ""
    return " with its 95 % interval over train seeds (bar; a triangle: it goes on beyond the plot)"


def classes(main: pd.DataFrame) -> str:
    """AP by class and size of object."""
    columns = [*class_columns(main), *SIZES]
    absent = [name for name in columns if main[name].isna().all()]
    rows = [
        [
            f"`{row['run']}`",
            steps_cell(row),
            *(ABSENT if name in absent else number(row[name]) for name in columns),
        ]
        for row in records(main)
    ]
    names = [name.removeprefix("AP-") for name in class_columns(main)]
    header = ["lineage", "steps", *names, "small", "medium", "large"]
    reason = f" {ABSENT}: nan in every run, as where the ground truth has no such object." if absent else ""
    caption = f"*AP, means as above, from the same results.tsv.{reason}* {numbers_link('main')}"
    return f"{table(header, rows)}\n\n{caption}"


# Differences

INTERVAL = "95 % interval: Student's t over the train seeds' means of paired differences, for each difference alone."
VERDICT = (
    "Verdict: better or worse where the p value of that t test, after Holm's correction for all differences of this "
    "table, is below 0.05, else inconclusive; so an interval may leave out 0 and the verdict still be inconclusive. No "
    "verdict: one train seed, an AP that is nan, or the same difference in every train seed."
)
AS_BEFORE = "Interval and verdict as under [Differences](#differences), corrected for all differences of this table."


def differences(rows: pd.DataFrame) -> str:
    """Each lineage against its parent, and against the control."""
    if rows.empty:
        return f"No lineage of the main table has its parent or its control there too.\n\n*{INTERVAL} {VERDICT}*"
    header = [
        *["lineage", "reference", "steps", "Δ", "95 % interval", "verdict", "p (Holm)", "pairs", "train seeds"],
        *["results.tsv", "reference's results.tsv"],
    ]
    cells = [
        [
            *[f"`{row['run']}`", f"{row['relation']} `{row['reference']}`", steps_cell(row)],
            *[*judged_cells(row, "delta"), ABSENT if math.isnan(row["delta_p_holm"]) else p_cell(row["delta_p_holm"])],
            *[str(row["pairs"]), str(row["train_seeds"]), links(row["results"]), links(row["reference_results"])],
        ]
        for row in records(rows)
    ]
    has_control = rows["relation"].isin(["control", UNEQUAL]).any()
    control = f" The control is the parent trained on as before, by recipe `{CONTROL}`." if has_control else ""
    caption = (
        "*Δ: AP minus that of the reference, paired by train and eval seed; mean over train seeds."
        f"{control}{unequal_note(rows)}{unpaired_note(rows)} {INTERVAL} {reach_note(rows)} {VERDICT}* "
        f"{numbers_link('differences')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def unequal_note(rows: pd.DataFrame) -> str:
    """How long each UNEQUAL control and what is held against it were trained on; nothing where there is none."""
    lengths = listed(
        f"`{row['run']}` {row['iterations']}, `{row['reference']}` {row['reference_iterations']}"
        for row in records(rows[rows["relation"] == UNEQUAL].drop_duplicates("run"))
    )
    if not lengths:
        return ""
    return f" An unequal one was trained on for another number of iterations ({lengths}): what that gave is in Δ."


def p_cell(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def unpaired_note(rows: pd.DataFrame) -> str:
    """How much was left out because the other side lacks it; nothing where all is paired."""
    parted = rows[rows["unpaired"] > 0]
    if parted.empty:
        return ""
    told = listed(
        f"{plural(row['unpaired'], 'run')} of `{row['run']}` and `{row['reference']}`{at_steps(row)}"
        for row in records(parted)
    )
    return f" Only seeds that both sides have count; left out: {told}."


# The other protocols


def tradeoff(rows: pd.DataFrame) -> str:
    """AP and time of each step count."""
    header = [
        *["lineage", "steps", "AP", "std", "Δ", "95 % interval", "verdict", "s / image", "ratio"],
        *["train × eval seeds", "results.tsv", "speed.tsv"],
    ]
    fewest = rows.groupby("run")["sample_step"].min()
    cells = [
        [
            *[f"`{row['run']}`", str(row["sample_step"]), number(row["AP"]), _spread(row, "AP_std")],
            *([ABSENT] * 3 if row["sample_step"] == fewest[row["run"]] else judged_cells(row, "delta")),
            *[
                f"{row['s_per_img']:.4f}",
                f"{row['ratio']:.1f}",
                seeds_cell(row),
                links(row["results"]),
                links(row["speed"]),
            ],
        ]
        for row in records(rows)
    ]
    caption = (
        "*AP and its standard deviation across train seeds as in the main table. Δ: AP minus that at the fewest steps, "
        f"paired by train and eval seed. {AS_BEFORE} Seconds per image and eval seed; ratio: to the fewest steps.* "
        f"{numbers_link('tradeoff')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def distillation(rows: pd.DataFrame, asked: Asked, taught: Taught, runs: Sequence[Run]) -> str:
    """Students against their teachers."""
    header = [
        *["student", "steps", "AP", "std", "teacher", "n", "AP, n steps", "gap", "95 % interval", "verdict"],
        *["AP, 1 step", "gap to it", "95 % interval", "verdict"],
        *["s / image", "teacher's s / image", "speed-up", "train × eval seeds", "results.tsv"],
    ]
    cells = []
    for row in records(rows):
        many = [number(row["teacher_AP"]), *judged_cells(row, "gap")] if row["pairs"] else [ABSENT] * 4
        one = [number(row["teacher_AP_1"]), *judged_cells(row, "gap_1")] if row["pairs_1"] else [ABSENT] * 4
        seconds = [f"{row['teacher_s_per_img']:.4f}", speedup(row)] if row["pairs"] else [ABSENT] * 2
        cells.append(
            [
                *[f"`{row['run']}`", str(row["sample_step"]), number(row["AP"]), _spread(row, "AP_std")],
                *[_teacher(row), str(row["teacher_steps"]), *many, *one],
                *[f"{row['s_per_img']:.4f}", *seconds, seeds_cell(row), links(row["results"])],
            ]
        )
    missing = listed(f"`{run}` seed {seed} at {plural(n, 'step')}" for run, seed, n in not_asked(asked, taught))
    reason = f" {ABSENT}: not asked for under all eval seeds of protocols.distillation: {missing}." if missing else ""
    caption = (
        "*n: the steps of the teacher's that the student learned from. Gap: the student's AP minus the teacher's at n "
        f"steps or at 1 step, paired by train and eval seed.{_one_teacher(rows)} {AS_BEFORE} Speed-up: the teacher's "
        "seconds per image at n steps over the student's, the least and the most of a train seed where these differ."
        f"{reason}* {numbers_link('distillation')}"
    )
    return "\n\n".join([table(header, cells), caption, *_other_checkpoints(taught, runs)])


def speedup(row: Row) -> str:
    """`6.0 to 8.4`, or one number where all train seeds have it."""
    low, high = f"{row['speedup_low']:.1f}", f"{row['speedup_high']:.1f}"
    return low if low == high else f"{low} to {high}"


def _one_teacher(rows: pd.DataFrame) -> str:
    """That students of one and the same teacher say nothing of other teachers; nothing where there are none."""
    if not any(row["train_seeds"] > len(row["teacher_seeds"].split(",")) for row in records(rows)):
        return ""
    return " Train seeds that share a teacher are students of this teacher, and tell of no other."


def _teacher(row: Row) -> str:
    parent = graph.Lineage.parse(row["run"]).parent
    return "its parent" if parent and parent.name == row["teacher"] else f"`{row['teacher']}`"


def _other_checkpoints(taught: Taught, runs: Sequence[Run]) -> list[str]:
    """Which students learned from a checkpoint that is not the one evaluated here; nothing where none did."""
    evaluated = {(run.lineage, run.train_seed): run.results["ckpt_sha256"].iloc[0] for run in runs}
    other = [
        f"`{lineage}` seed {seed}"
        for lineage, of_seed in taught.items()
        for seed, teacher in of_seed.items()
        if evaluated.get((teacher.lineage, teacher.seed), teacher.sha256) != teacher.sha256
    ]
    return (
        [f"**The teacher evaluated is not the checkpoint learned from:** {listed(other)}; train again."]
        if other
        else []
    )


def ablations(rows: pd.DataFrame) -> str:
    """The variants, group by group."""
    header = [
        *["group", "variant", "steps", "AP", "std", "Δ", "95 % interval", "verdict"],
        *["iterations", "train × eval seeds", "lineage", "results.tsv"],
    ]
    cells, group = [], None
    for row in records(rows):
        first = row["group"] != group
        reference = rows[rows["group"] == row["group"]]["variant"].iloc[0] == row["variant"]
        group = row["group"]
        deltas = [ABSENT] * 3 if reference else judged_cells(row, "delta")
        cells.append(
            [
                *[f"**{group}**" if first else "", row["variant"], str(row["sample_step"]), number(row["AP"])],
                *[_spread(row, "AP_std"), *deltas, row["iterations"], seeds_cell(row)],
                *[f"`{row['run']}`", links(row["results"])],
            ]
        )
    caption = (
        f"*Δ: AP minus that of the group's first variant, paired by train and eval seed. {AS_BEFORE} Iterations: of "
        f"the lineage's last stage.* {numbers_link('ablations')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def guidance(rows: pd.DataFrame) -> str:
    """Each way of guiding against none."""
    header = [
        *["lineage", "steps", "scale", "mode", "k", "AP", "std", "Δ", "95 % interval", "verdict", "s / image"],
        *["ratio", "train × eval seeds", "results.tsv"],
    ]
    cells = []
    for row in records(rows):
        unguided = row["guidance_scale"] == 0
        deltas = [ABSENT] * 3 if unguided else judged_cells(row, "delta")
        cells.append(
            [
                *[f"`{row['run']}`", str(row["sample_step"]), f"{row['guidance_scale']:g}", row["guidance_mode"]],
                *[
                    ABSENT if unguided else str(row["guidance_steps"]),
                    number(row["AP"]),
                    _spread(row, "AP_std"),
                    *deltas,
                ],
                *[f"{row['s_per_img']:.4f}", f"{row['ratio']:.2f}", seeds_cell(row), links(row["results"])],
            ]
        )
    caption = (
        "*k: Langevin steps at each guided sampling step. Δ: AP minus that without guidance, paired by train and eval "
        f"seed. {AS_BEFORE} Ratio: of seconds per image to those without guidance.* {numbers_link('guidance')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


# What lies behind an AP

MOST_CLASSES = 4  # of the table by class and size, those of the most objects


def errors(rows: pd.DataFrame) -> str:
    """What each kind of error costs."""
    kinds = list(rows["error"].unique())
    cells = []
    for lineage, own in rows.groupby("run", sort=False):
        (row, *_), costs = records(own), own["cost"]
        cells.append(
            [
                *[f"`{lineage}`", steps_cell(row), number(row["AP50"]), *(signed(cost) for cost in costs)],
                *[seeds_cell(row), links(row["breakdown"])],
            ]
        )
    caption = (
        "*What each kind of error costs: the AP50 that putting it right would give, all others left as they are (Bolya "
        "et al. 2020), mean over train seeds of each one's mean over eval seeds. A false detection is a duplicate if a "
        "better one has its object already, of the wrong class if it lies on an object of another, badly located if it "
        "overlaps an object of its class by an IoU of 0.1 to 0.5, both if that object is of another class, and else on "
        "background; an object is missed if it was not found and no error of class or place is about it. Costs do not "
        "add up: one error hides others.* "
        f"{numbers_link('errors')}"
    )
    return f"{table(['lineage', 'steps', 'AP50', *kinds, 'train × eval seeds', 'breakdown.json'], cells)}\n\n{caption}"


def errors_caption(rows: pd.DataFrame) -> str:
    """What the plot of errors shows."""
    line = "" if rows["cost_low"].isna().all() else " with its 95 % interval (line; it may go on beyond the plot)"
    return (
        f"*What each kind of error costs: mean over train seeds (bar){line}, each train seed (points).* "
        f"{numbers_link('errors')}"
    )


def sizes(rows: pd.DataFrame) -> str:
    """AP by class and size at once."""
    if rows.empty:
        return "No AP by class and size: the validation split has no object."
    objects = {row["class"]: row["objects"] for row in records(rows)}
    steps = {row["run"]: steps_cell(row) for row in records(rows)}
    ap = {(row["run"], row["class"], size): row[size] for row in records(rows) for size in SIZES}
    most = sorted(objects, key=lambda name: -objects[name])[:MOST_CLASSES]
    columns = [
        (name, size)
        for name in objects
        for size in SIZES
        if name in most and not all(math.isnan(ap[lineage, name, size]) for lineage in steps)
    ]
    cells = [
        [f"`{lineage}`", steps[lineage], *(number(ap[lineage, name, size]) for name, size in columns)]
        for lineage in steps
    ]
    counts = listed(f"{count} of {name}" for name, count in objects.items() if name in most)
    others = f"; the other {len(objects) - len(most)} classes are in the TSV" if len(objects) > len(most) else ""
    caption = (
        "*AP by class and size of object (small: below 32² pixels; medium: below 96²; large: above), means as above; "
        f"without sizes that a class does not have. Objects: {counts}{others}.* {numbers_link('sizes')}"
    )
    words = dict(zip(SIZES, ("small", "medium", "large"), strict=True))
    return f"{table(['lineage', 'steps', *(f'{name}, {words[size]}' for name, size in columns)], cells)}\n\n{caption}"


def confusion_caption(breakdowns: Sequence[Breakdown]) -> str:
    """What the confusion matrices count."""
    scores = listed(f"{each.score:g}" for each in breakdowns)
    return (
        "*Confusion: what each true object is detected as, in percent of its row, by detections of a score of at least "
        f"{scores} and an IoU of at least 0.5; last column: not detected; last row: what detections on background are "
        "taken for. Train and eval seeds are added up.* Counts: breakdown.json as above."
    )


# Speed, pictures, provenance


def speed(rows: pd.DataFrame) -> str:
    """Seconds per image of the main protocol."""
    header = ["lineage", "steps", "s / image", "images / s", "ratio", "speed.tsv"]
    cells = [
        [
            f"`{row['run']}`",
            steps_cell(row),
            f"{row['s_per_img']:.4f}",
            f"{row['img_per_s']:.1f}",
            f"{row['ratio']:.1f}",
            links(row["speed"]),
        ]
        for row in records(rows)
    ]
    where = listed(
        f"{row['device']} (threads {row['threads']}; batches of {row['batch']} images{_eval_seeds(row)})"
        for row in records(rows)
    )
    caption = (
        "*Seconds per image and eval seed, mean over train seeds; images per second: its inverse; ratio: to the fewest "
        f"steps. Measured on {where}; timings vary with the machine and its load.* {numbers_link('speed')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def pictures_caption(pictured: Mapping[str, Pictures], train_seed: int) -> str:
    """What the picture grid shows of each lineage, trained with a seed."""
    ways = {
        f"`{lineage}`": f"{plural(own.sample_step, 'step')}, eval seed {own.eval_seed}"
        for lineage, own in pictured.items()
    }
    alike = len(set(ways.values())) == 1
    sampled = listed(ways.values()) if alike else "; ".join(f"{lineage}: {way}" for lineage, way in ways.items())
    below = sum(not pictures.shown(image)[1] for own in pictured.values() for image in own.images)
    dashed = f" In {plural(below, 'cell')} none does; there the best {pictures.FALLBACK} are dashed." if below else ""
    files = ", ".join(link(f"`{lineage}`", detections_path(lineage, train_seed)) for lineage in pictured)
    images = plural(len(next(iter(pictured.values())).images), "validation image")
    return (
        f"*The first {images}: ground truth, then what each lineage, trained with seed {train_seed}, detects "
        f"({sampled}) with a score of at least {pictures.SCORE}.{dashed}* Detections: {files}."
    )


def provenance(runs: Sequence[Evaluated]) -> str:
    """Which checkpoint, data and code are behind which files, per run."""
    rows = []
    for run in runs:
        checkpoint, sha256 = run.results.iloc[0][["ckpt", "ckpt_sha256"]]
        files = ("results.tsv", "speed.tsv", "training.csv", "run.json")
        rows.append(
            [
                f"`{run.lineage}`",
                str(run.train_seed),
                link(f"`{sha256[:SHORT]}`", checkpoint),
                _data_hash(run),
                _commit(run),
                " ".join(link(name, _evaluated(run, name)) for name in files),
            ]
        )
    header = ["lineage", "train seed", "checkpoint sha256", "data sha256", "code", "files"]
    return (
        "runs/ and evals/ are not in git: `make demo` makes them on the embedded data, and "
        f"`dvc pull` brings them where the project has a DVC remote.\n\n{table(header, rows)}"
    )


def _evaluated(run: Evaluated, name: str) -> str:
    return f"{graph.evaluation_folder(run.lineage, run.train_seed)}/{name}"
