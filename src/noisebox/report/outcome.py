"""The top of summary.md: what more steps, distillation and finetunes gave, in numbers and verdicts of the tables."""

import math
from collections.abc import Collection, Sequence

import pandas as pd

from noisebox.report.markdown import listed, number, plural, signed
from noisebox.report.sections import at_steps, speedup
from noisebox.report.tables import Row, records

FEW = 3  # lineages that a sentence names one by one


def outcome(
    main: pd.DataFrame,
    tradeoff: pd.DataFrame,
    distillation: pd.DataFrame,
    differences: pd.DataFrame,
    students: Collection[str],
) -> str:
    """What came out of more steps, of distillation, and of finetunes, which are all lineages but for `students`."""
    as_trained = distillation[distillation["sample_step"] == distillation["student_steps"]]
    finetunes = differences[~differences["run"].isin(list(students))]
    against = {
        relation: [_against(rows) for _, rows in of_relation.groupby("run", sort=False)]
        for relation, of_relation in finetunes.groupby("relation", sort=False)
    }
    told = [
        _told("More steps", [_more_steps(rows) for _, rows in tradeoff.groupby("run", sort=False)]),
        _told("Student against teacher", [_against_teacher(row) for row in records(as_trained)]),
        _told("Finetune against its parent", against.get("parent", [])),
        _told("Finetune against its parent trained on as before", against.get("control", [])),
    ]
    return "\n\n".join([_levels(main), *(["\n".join(filter(None, told))] if any(told) else [])])


def _told(what: str, sentences: Sequence[str]) -> str:
    if len(sentences) <= 1:
        return "".join(f"- **{what}** {sentence}" for sentence in sentences)
    return "\n".join([f"- **{what}**", *(f"  - {sentence}" for sentence in sentences)])


def _levels(main: pd.DataFrame) -> str:
    fewest, most = int(main["sample_step"].min()), int(main["sample_step"].max())
    sentence = f"At {plural(fewest, 'sampling step')} AP (0–100) {_range(main[main['sample_step'] == fewest])}"
    if most > fewest:
        sentence += f"; at {plural(most, 'step')} it {_range(main[main['sample_step'] == most])}"
    noiseless = main[main["sample_step"].isna()]
    if len(noiseless):
        sentence += f"; without steps, because no noise is drawn, it {_range(noiseless)}"
    seeds = " or ".join(str(count) for count in sorted(main["train_seeds"].unique()))
    if seeds == "1":
        return (
            f"{sentence}. There is one train seed, so nothing is known about the spread across trainings, and no "
            "difference has a verdict."
        )
    few = " With two train seeds hardly anything can be told from chance." if seeds == "2" else ""
    return (
        f"{sentence}. These are means over {seeds} train seeds ± the standard deviation across them. A difference is "
        "called better or worse where a t test over the train seeds tells it from chance, at 5 % for its whole table, "
        f"and else inconclusive.{few}"
    )


def _range(rows: pd.DataFrame) -> str:
    """The APs of a few lineages, or the lowest and highest of many."""
    told = {
        run: f"{number(ap)}{'' if math.isnan(std) else f' ± {number(std)}'} for `{run}`"
        for run, ap, std in zip(rows["run"], rows["AP"], rows["AP_std"], strict=True)
    }
    measured = rows.dropna(subset=["AP"]).sort_values("AP", kind="stable")["run"].tolist()
    if len(told) <= FEW or not measured:
        return "is " + listed(told.values())
    missing = len(told) - len(measured)
    ends = f"runs from {told[measured[0]]} to {told[measured[-1]]} over {len(told)} lineages"
    return ends + (f", {missing} of them nan" if missing else "")


def _more_steps(rows: pd.DataFrame) -> str:
    every = records(rows)
    first, last = every[0], every[-1]
    sentence = f"`{first['run']}`: AP {number(first['AP'])} at {plural(first['sample_step'], 'step')}"
    if first is last:
        return sentence
    sentence += (
        f", {number(last['AP'])} at {last['sample_step']} "
        f"({_judged(last, 'delta')}, {last['ratio']:.1f} times the time)"
    )
    best = max((row for row in every if not math.isnan(row["AP"])), key=lambda row: row["AP"], default=first)
    return sentence if best in (first, last) else f"{sentence}, highest {number(best['AP'])} at {best['sample_step']}"


def _against_teacher(row: Row) -> str:
    own = f"`{row['run']}`: AP {number(row['AP'])} at {plural(row['sample_step'], 'step')}"
    one = f"{number(row['teacher_AP_1'])} at 1 step ({_judged(row, 'gap_1')})"
    many = (
        f"{number(row['teacher_AP'])} at {plural(row['teacher_steps'], 'step')} "
        f"({_judged(row, 'gap')}, at {speedup(row)} times its speed)"
    )
    told = [one] if row["pairs_1"] else []
    told += [many] if row["pairs"] and row["teacher_steps"] > 1 else []
    return f"{own}; its teacher {' and '.join(told) or 'was not measured'}"


def _against(rows: pd.DataFrame) -> str:
    changes = listed(
        f"{signed(row['delta'])}{at_steps(row)} "
        f"({number(row['reference_AP'])} → {number(row['AP'])}, {row['delta_verdict']})"
        for row in records(rows)
    )
    return f"`{rows['run'].iloc[0]}`: {changes}"


def _judged(row: Row, name: str) -> str:
    """A difference and its verdict."""
    return f"{signed(row[name])}, {row[f'{name}_verdict']}"
