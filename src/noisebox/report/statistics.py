"""The arithmetic over train and eval seeds: means, spreads, 95 % intervals, paired differences and their verdicts.

Seeds are nested: a train seed trains another checkpoint, an eval seed samples once more from the same one. A claim is
about a recipe, so train seeds are the independent units, and each counts with one value, the mean over its eval seeds.
More eval seeds take noise out of that value, but tell nothing of another training. Intervals and tests are Student's t
over these values. Train seeds with unequal numbers of eval seeds weigh the same: their mean stays unbiased, and so does
its squared standard error s² / n, because it estimates the sum of their variances whether or not these are equal.

What is measured, AP unless said otherwise, is on the 0–100 scale and may be nan; what is made from a nan is nan.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

LEVEL = 0.05  # of a test, and what an interval of 95 % leaves out
NO_SPREAD = 1e-9  # AP: values as near as this to each other differ by rounding alone
CELL = ["run", "sample_step"]
PAIR = ["train_seed", "eval_seed"]

Verdict = Literal["better", "worse", "inconclusive", "no verdict"]


# Intervals and tests over independent values


def interval(values: ArrayLike) -> tuple[float, float]:
    """The 95 % t interval of the mean of independent `values` (n,): mean ± reach(n) · s / √n.

    (nan, nan) where there is nothing to judge by: fewer than two values, a nan, or the same value n times.
    """
    mean, error, count = _mean_and_error(values)
    return mean - reach(count) * error, mean + reach(count) * error


def p_value(values: ArrayLike) -> float:
    """Of the two-sided t test that independent `values` (n,) have mean 0; nan where `interval` is."""
    mean, error, count = _mean_and_error(values)
    return 2 * float(stdtr(count - 1, -abs(mean) / error))


def reach(count: int) -> float:
    """How many standard errors a 95 % interval goes to either side of the mean of `count` values: t at 0.975 with
    count − 1 degrees of freedom; nan for fewer than two."""
    return float(stdtrit(count - 1, 1 - LEVEL / 2)) if count > 1 else math.nan


def _mean_and_error(values: ArrayLike) -> tuple[float, float, int]:
    """The mean of `values` (n,), its standard error (nan where there is nothing to judge by), and n."""
    sample = np.asarray(values, dtype=np.float64)
    count = len(sample)
    if count < 2 or not np.ptp(sample) > NO_SPREAD:
        return mean_of(sample), math.nan, count
    return mean_of(sample), float(np.std(sample, ddof=1)) / math.sqrt(count), count


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of the tests of one table, adjusted so that any false verdict in the table has a chance of LEVEL.

    Holm 1979: of m tests, the k-th smallest p is multiplied by m − k + 1, is never below the one before it, and at most
    1. A nan is no test: it stays nan and does not count.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    rising = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # nan is sorted to the end
    factors = np.arange(len(rising), 0, -1)
    adjusted[rising] = np.minimum(np.maximum.accumulate(factors * p[rising]), 1)
    return [float(value) for value in adjusted]


def verdict(delta: float, p_adjusted: float) -> Verdict:
    """What a difference of AP and its p value, adjusted by `holm`, say; nothing where there was no test."""
    if math.isnan(p_adjusted):
        return "no verdict"
    if p_adjusted >= LEVEL:
        return "inconclusive"
    return "better" if delta > 0 else "worse"


# Over nested seeds


def mean_of(values: ArrayLike) -> float:
    """nan where one of the values is, or there is none: pandas' own mean would leave nan out."""
    sample = np.asarray(values, dtype=np.float64)
    return float(np.mean(sample)) if len(sample) else math.nan


def spread_of(values: ArrayLike) -> float:
    """Population standard deviation; nan where there is one value only, or none."""
    sample = np.asarray(values, dtype=np.float64)
    return float(np.std(sample)) if len(sample) > 1 else math.nan


def seed_means(
    results: pd.DataFrame, metrics: Sequence[str] = ("AP",), cell: Sequence[str] = tuple(CELL)
) -> pd.DataFrame:
    """Per `cell` (lineage and step count) and train seed: the mean over eval seeds of each metric, and how many."""
    grouped = results.groupby([*cell, "train_seed"], sort=False)
    means = grouped[list(metrics)].agg(mean_of)
    return means.assign(eval_seeds=grouped.size()).reset_index()


def summarise(
    results: pd.DataFrame, metrics: Sequence[str] = ("AP",), cell: Sequence[str] = tuple(CELL)
) -> pd.DataFrame:
    """The published arithmetic, per `cell` (lineage and step count), and its interval.

    Each of `metrics` is the mean over train seeds of their means over eval seeds. Of the first, say AP, `AP_std` is the
    population standard deviation across those means of train seeds, `AP_std_flat` that of all runs; both are nan where
    there is one value only. `AP_low` and `AP_high` are the ends of the `interval` over train seeds. `runs` counts the
    runs, `nan_runs` those whose AP is nan.
    """
    cell, first = list(cell), metrics[0]
    per_seed = seed_means(results, metrics, cell).groupby(cell, sort=False)
    all_runs = results.groupby(cell, sort=False)[first]
    summary = per_seed[list(metrics)].agg(mean_of)
    summary.insert(1, f"{first}_std", per_seed[first].agg(spread_of))
    summary.insert(2, f"{first}_std_flat", all_runs.agg(spread_of))
    summary.insert(3, f"{first}_low", per_seed[first].agg(lambda means: interval(means)[0]))
    summary.insert(4, f"{first}_high", per_seed[first].agg(lambda means: interval(means)[1]))
    counts = {"train_seeds": per_seed.size(), "eval_seeds": per_seed["eval_seeds"].max(), "runs": all_runs.size()}
    return summary.assign(**counts, nan_runs=all_runs.agg(lambda values: int(values.isna().sum()))).reset_index()


class Difference(NamedTuple):
    """Of one metric, over the pairs that both sides have.

    `mean` is that over train seeds of their mean differences, `low` and `high` the ends of its `interval`, `p` its
    `p_value`; `std` is the population standard deviation over the pairs. `unpaired` runs of either side have no
    partner on the other, and do not count.
    """

    mean: float
    std: float
    low: float
    high: float
    p: float
    pairs: int
    train_seeds: int
    unpaired: int


def difference(results: pd.DataFrame, reference: pd.DataFrame, metric: str = "AP") -> Difference:
    """The metric of `results` minus that of `reference`, paired by (train seed, eval seed).

    Pairing removes what both sides have in common: the start of their training, and the noise they were sampled from.
    Without a pair all is nan; with one train seed there is a mean, but no interval and no p value. Raises ValueError
    when a side has two rows for one pair.
    """
    own, other = _by_pair(results, metric), _by_pair(reference, metric)
    differences = {pair: value - other[pair] for pair, value in own.items() if pair in other}
    of_seed: dict[int, list[float]] = {}
    for (train_seed, _), value in differences.items():
        of_seed.setdefault(train_seed, []).append(value)
    means = [mean_of(values) for values in of_seed.values()]
    return Difference(
        mean_of(means),
        spread_of(list(differences.values())),
        *interval(means),
        p_value(means),
        pairs=len(differences),
        train_seeds=len(means),
        unpaired=len(own) + len(other) - 2 * len(differences),
    )


def under_eval_seeds(fixed: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """`fixed`, results of a model that draws no noise, one row a train seed, under each eval seed that `results` have
    of that train seed: it would say the same under all. A train seed that `results` lack keeps its row.

    Raises ValueError when a train seed has several rows.
    """
    if fixed["train_seed"].duplicated().any():
        raise ValueError(f"{len(fixed)} rows for {fixed['train_seed'].nunique()} train seeds")
    repeated = fixed.merge(results[PAIR].drop_duplicates(), "left", "train_seed", suffixes=("_own", ""))
    eval_seeds = repeated["eval_seed"].fillna(repeated["eval_seed_own"]).astype(int)
    return repeated.assign(eval_seed=eval_seeds).drop(columns="eval_seed_own")


def _by_pair(results: pd.DataFrame, metric: str) -> dict[tuple[int, int], float]:
    """The metric by (train seed, eval seed)."""
    of_pair = dict(zip(zip(results["train_seed"], results["eval_seed"], strict=True), results[metric], strict=True))
    if len(of_pair) < len(results):
        raise ValueError(f"{len(results)} rows for {len(of_pair)} pairs of train and eval seed")
    return of_pair
