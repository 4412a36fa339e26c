"""Means, intervals, paired differences and verdicts against scipy.stats, plain Python, simulations and published AP."""

import itertools
import math
import statistics as python
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from noisebox.randomness import numpy_generator
from noisebox.report import evaluations, sections, statistics, tables

GOLDEN = Path(__file__).parent / "golden/published_ap.tsv"
ap_values = st.floats(0, 100, allow_subnormal=False)
units = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=8)


def results_of(ap_of: dict[tuple[int, int], float]) -> pd.DataFrame:
    """Rows of results.tsv, from AP by (train seed, eval seed)."""
    rows = [{"train_seed": train, "eval_seed": each, "AP": ap} for (train, each), ap in ap_of.items()]
    return pd.DataFrame(rows, columns=["train_seed", "eval_seed", "AP"])


def published() -> pd.DataFrame:
    return evaluations.read_table(GOLDEN, {**evaluations.RUN, "AP": float})


# Published runs


def test_published_values() -> None:
    table = statistics.summarise(published())
    rounded = table.set_index("run")[["AP", "AP_std", "AP_std_flat"]].round(4).T.to_dict("list")
    assert rounded == {
        "baseline": [46.4293, 0.4985, 0.7817],
        "baseline+geofeat": [46.7774, 0.2957, 0.6955],
        "baseline+d3pm_qhead": [46.9068, 0.5545, 0.6829],
    }
    counts = ["sample_step", "train_seeds", "eval_seeds", "runs", "nan_runs"]
    assert table[counts].to_numpy().tolist() == [[1, 3, 5, 15, 0]] * 3
    np.testing.assert_allclose(
        table[["AP_low", "AP_high"]], [[44.9126, 47.9460], [45.8776, 47.6771], [45.2200, 48.5937]], atol=6e-5
    )


def test_published_differences_are_inconclusive() -> None:
    """Published as improvements. Over the 15 pairs, as if each were a training, both would be beyond chance."""
    results = published()
    baseline = results[results["run"] == "baseline"]
    table = tables.differences_table(results, defaultdict(lambda: "90")).set_index("run")
    columns = ["delta", "delta_low", "delta_high", "delta_p", "delta_p_holm"]
    expected = {
        "baseline+geofeat": [0.3481, -0.3032, 0.9994, 0.1482, 0.1706],
        "baseline+d3pm_qhead": [0.4775, -0.1644, 1.1195, 0.0853, 0.1706],
    }
    assert list(table.index) == list(expected)
    for run, numbers in expected.items():
        assert table.loc[run, columns].tolist() == pytest.approx(numbers, abs=1.1e-4)
        facts = ["reference", "relation", "pairs", "train_seeds", "unpaired", "delta_verdict"]
        assert table.loc[run, facts].tolist() == ["baseline", "parent", 15, 3, 0, "inconclusive"]
        pairs = results[results["run"] == run].merge(baseline, on=statistics.PAIR)
        assert stats.ttest_rel(pairs["AP_x"], pairs["AP_y"]).pvalue < 0.05


# One sample of independent values


@settings(max_examples=60)
@given(units)
@example([1.0, 1.001])
@example([20.0, 20.0, 20.5])
def test_interval_and_p_value_are_scipys(values: list[float]) -> None:
    assume(np.ptp(values) > 1e-6)
    expected = stats.ttest_1samp(values, 0)
    low, high = expected.confidence_interval(0.95)
    assert statistics.interval(values) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert statistics.p_value(values) == pytest.approx(expected.pvalue, rel=1e-7)


def test_reach_of_few_train_seeds() -> None:
    """Two-sided 95 % points of Student's t, as in any table of it."""
    assert [statistics.reach(count) for count in (2, 3, 4, 5, 31)] == pytest.approx(
        [12.706, 4.303, 3.182, 2.776, 2.042], abs=5e-4
    )


@pytest.mark.parametrize("values", [[], [40.0], [40.0, math.nan], [0.0, 0.0, 0.0], [0.35, 0.35], [0.1 + 0.2, 0.3]])
def test_nothing_to_judge_by(values: list[float]) -> None:
    """Too few, a nan, or no spread but that of rounding."""
    assert [math.isnan(end) for end in statistics.interval(values)] == [True, True]
    assert math.isnan(statistics.p_value(values))


# Nested seeds

nested = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(ap_values, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@settings(max_examples=40)
@given(st.dictionaries(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([1, 5, 20])), nested, min_size=1))
def test_arithmetic_is_that_of_plain_python(protocol_of: dict[tuple[str, int], list[list[float]]]) -> None:
    results = pd.DataFrame(
        [
            {"run": run, "train_seed": train_seed, "eval_seed": eval_seed, "sample_step": step, "AP": ap}
            for (run, step), by_seed in protocol_of.items()
            for train_seed, aps in enumerate(by_seed)
            for eval_seed, ap in enumerate(aps)
        ]
    )
    for row in statistics.summarise(results).to_dict("records"):
        by_seed = protocol_of[row["run"], row["sample_step"]]
        means, flat = [python.fmean(aps) for aps in by_seed], [ap for aps in by_seed for ap in aps]
        expected = [
            python.fmean(means),
            python.pstdev(means) if len(means) > 1 else math.nan,
            python.pstdev(flat) if len(flat) > 1 else math.nan,
        ]
        np.testing.assert_allclose([row["AP"], row["AP_std"], row["AP_std_flat"]], expected, atol=1e-9)
        assert (row["train_seeds"], row["eval_seeds"], row["runs"]) == (len(means), len(by_seed[0]), len(flat))
        assert (row["AP_low"], row["AP_high"]) == pytest.approx(statistics.interval(means), abs=1e-9, nan_ok=True)


both_sides = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(ap_values | st.none(), ap_values | st.none()), min_size=1
)


@settings(max_examples=80)
@given(both_sides, st.randoms(use_true_random=False))
@example({(0, 0): (40.0, 39.0), (0, 1): (41.0, 39.5), (1, 0): (40.5, 40.0), (2, 0): (41.0, None)}, None)
def test_differences_are_paired_whatever_the_order(
    ap_of: dict[tuple[int, int], tuple[float | None, float | None]], random: "np.random.Generator | None"
) -> None:
    """Against scipy's paired t test of the means of each train seed; only pairs that both sides have count."""
    sides = [{pair: both[side] for pair, both in ap_of.items() if both[side] is not None} for side in (0, 1)]
    own, other = (
        results_of(dict(random.sample(sorted(side.items()), len(side)) if random else side)) for side in sides
    )
    found = statistics.difference(own, other)

    pairs = sorted(sides[0].keys() & sides[1].keys())
    flat = [sides[0][pair] - sides[1][pair] for pair in pairs]
    seeds = sorted({train_seed for train_seed, _ in pairs})
    means = [python.fmean(d for (k, _), d in zip(pairs, flat, strict=True) if k == seed) for seed in seeds]
    assert (found.pairs, found.train_seeds) == (len(pairs), len(seeds))
    assert found.unpaired == len(sides[0].keys() ^ sides[1].keys())
    assert found.mean == pytest.approx(python.fmean(means) if means else math.nan, abs=1e-9, nan_ok=True)
    assert found.std == pytest.approx(python.pstdev(flat) if len(flat) > 1 else math.nan, abs=1e-9, nan_ok=True)
    if len(means) > 1 and np.ptp(means) > 1e-6:
        expected = stats.ttest_rel(means, np.zeros(len(means)))
        low, high = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-4)
    elif len(means) < 2:
        assert all(math.isnan(value) for value in (found.low, found.high, found.p))


def test_one_train_seed_has_a_difference_but_no_verdict() -> None:
    found = statistics.difference(results_of({(3, e): 41.0 + e for e in range(5)}), results_of({(3, 0): 40.0}))
    assert (found.mean, found.pairs, found.train_seeds, found.unpaired) == (1.0, 1, 1, 4)
    assert statistics.verdict(found.mean, *statistics.holm([found.p])) == "no verdict"


def test_a_nan_among_the_pairs_is_no_evidence() -> None:
    own = {(k, e): 40.0 + k + e / 2 for k in range(3) for e in range(2)}
    reference = {pair: 38.0 + pair[0] / 7 for pair in own}
    assert statistics.difference(results_of(own), results_of(reference)).p < 0.1
    found = statistics.difference(results_of(own), results_of({**reference, (1, 1): math.nan}))
    assert [math.isnan(value) for value in found[:5]] == [True] * 5
    assert (found.pairs, found.train_seeds) == (6, 3)


def test_two_rows_for_one_pair_are_refused() -> None:
    once = results_of({(0, 0): 40.0, (0, 1): 41.0})
    twice = pd.concat([once, once])
    for sides in ((once, twice), (twice, once)):
        with pytest.raises(ValueError, match="4 rows for 2 pairs"):
            statistics.difference(*sides)


def test_a_model_without_noise_is_paired_with_every_eval_seed() -> None:
    """By hand: of train seed 0 the differences are 1 and 3, of train seed 1 they are 3, 3.5 and 4."""
    own = results_of({(0, 0): 41.0, (0, 4): 43.0, (1, 0): 45.0, (1, 4): 45.5, (1, 5): 46.0}).rename(
        columns={"AP": "mIoU"}
    )
    fixed = results_of({(2, 0): 50.0, (1, 0): 42.0, (0, 0): 40.0}).rename(columns={"AP": "mIoU"})
    found = statistics.difference(own, statistics.under_eval_seeds(fixed, own), "mIoU")
    error = 1.5 / 2  # of two means m and n: |m - n| / 2
    assert (found.mean, found.pairs, found.train_seeds, found.unpaired) == (2.75, 5, 2, 1)
    assert found.std == pytest.approx(python.pstdev([1, 3, 3, 3.5, 4]))
    assert (found.low, found.high) == pytest.approx((2.75 - 12.7062 * error, 2.75 + 12.7062 * error), abs=1e-4)
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2.75 / error))  # t with 1 degree of freedom is Cauchy's
    turned = statistics.difference(statistics.under_eval_seeds(fixed, own), own, "mIoU")
    assert (turned.mean, turned.p, turned.pairs) == pytest.approx((-found.mean, found.p, 5))
    with pytest.raises(ValueError, match="5 rows for 2 train seeds"):
        statistics.under_eval_seeds(own, fixed)


def test_more_eval_seeds_are_no_more_evidence_of_other_trainings() -> None:
    """Repeating every eval seed narrows an interval over pairs, not one over train seeds."""
    few = {(k, e): 40 + k + 0.1 * e for k in range(3) for e in range(2)}
    many = {(k, 2 * copy + e): ap for (k, e), ap in few.items() for copy in range(10)}
    zero = dict.fromkeys(many, 0.0)
    first, second = (statistics.difference(results_of(ap_of), results_of(zero)) for ap_of in (few, many))
    assert (first.low, first.high) == pytest.approx((second.low, second.high))
    assert (first.pairs, second.pairs) == (6, 60)


# Simulations

DRAWS = 3000
COVERAGE = (0.935, 0.965)  # of intervals of 95 %: 3.8 standard errors of a share of 3,000 draws to either side
EFFECT = 0.8  # AP: the mean gain of a finetune
START, GAIN, NOISE = 1.5, 0.6, 0.5  # AP: deviations between train seeds, of their starts and gains, and of a run


def simulated(train_seeds: int, eval_seeds: Sequence[int], purpose: str) -> pd.DataFrame:
    """A row per draw, train seed and eval seed; of train seed k there are the first `eval_seeds[k]`.

    `AP` is a finetune's, `AP_reference` its parent's: they have the train seed's start in common, and the eval seed's
    noise with all train seeds too. `AP_alone` has no more than its train seed's start.
    """
    rng = numpy_generator(0, f"simulated {purpose}", train_seeds, *eval_seeds)
    shape = (DRAWS, train_seeds, max(eval_seeds))
    start, gain = (rng.normal(0, deviation, (*shape[:2], 1)) for deviation in (START, GAIN))
    common = rng.normal(0, NOISE, (DRAWS, 1, shape[2]))
    of_runs = [rng.normal(0, NOISE, shape) for _ in range(3)]
    table = pd.DataFrame(
        {
            **dict(zip(("draw", "train_seed", "eval_seed"), np.indices(shape).reshape(3, -1), strict=True)),
            "AP": (40 + start + common + EFFECT + gain + of_runs[0]).ravel(),
            "AP_reference": (40 + start + common + of_runs[1]).ravel(),
            "AP_alone": (40 + start + of_runs[2]).ravel(),
        }
    )
    return table[table["eval_seed"] < np.asarray(eval_seeds)[table["train_seed"]]]


designs = pytest.mark.parametrize(
    ("train_seeds", "eval_seeds"), [(3, [5] * 3), (5, [5] * 5), (3, [1, 5, 5]), (5, [5, 2, 4, 1, 5])]
)


def covered(low: "pd.Series[float]", high: "pd.Series[float]", truth: float) -> float:
    """In what share of all draws an interval is there and holds the truth."""
    assert len(low) == DRAWS
    return float(((low < truth) & (truth < high)).mean())


@designs
def test_intervals_of_a_lineage_cover_its_mean(train_seeds: int, eval_seeds: list[int]) -> None:
    runs = simulated(train_seeds, eval_seeds, "lineage").drop(columns="AP")
    table = statistics.summarise(runs.rename(columns={"AP_alone": "AP"}).assign(sample_step=1, run=runs["draw"]))
    assert COVERAGE[0] <= covered(table["AP_low"], table["AP_high"], 40) <= COVERAGE[1]
    flat_error = table["AP_std_flat"] / np.sqrt(table["runs"] - 1)
    reach = statistics.reach(sum(eval_seeds))
    assert covered(table["AP"] - reach * flat_error, table["AP"] + reach * flat_error, 40) < 0.85


@designs
def test_intervals_of_a_difference_cover_the_effect(train_seeds: int, eval_seeds: list[int]) -> None:
    """Those over all pairs, as if each were a training, do not."""
    runs = simulated(train_seeds, eval_seeds, "difference")
    parents = runs.drop(columns="AP").rename(columns={"AP_reference": "AP"})
    drawn = zip(runs.groupby("draw"), parents.groupby("draw"), strict=True)
    found = pd.DataFrame([statistics.difference(own, reference) for (_, own), (_, reference) in drawn])
    assert COVERAGE[0] <= covered(found["low"], found["high"], EFFECT) <= COVERAGE[1]
    assert found["mean"].mean() == pytest.approx(EFFECT, abs=4 * 0.8 / math.sqrt(DRAWS * train_seeds))
    flat_error = found["std"] / np.sqrt(found["pairs"] - 1)
    reach = statistics.reach(sum(eval_seeds))
    assert covered(found["mean"] - reach * flat_error, found["mean"] + reach * flat_error, EFFECT) < 0.9


# Many comparisons

p_values = st.lists(st.floats(0, 1), max_size=6)


def test_holm_of_a_worked_example() -> None:
    """By hand: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04 raised to the one before it."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.01, math.nan, 0.04, 0.03, math.nan, 0.005]) == pytest.approx(
        [0.03, math.nan, 0.06, 0.06, math.nan, 0.02], nan_ok=True
    )
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@settings(max_examples=100)
@given(p_values)
def test_holm_is_the_closure_of_bonferroni(p: list[float]) -> None:
    """Marcus, Peritz and Gabriel 1976: a test is rejected if every set of tests with it in is, by Bonferroni's rule."""
    tests = range(len(p))
    subsets = [chosen for size in tests for chosen in itertools.combinations(tests, size + 1)]
    closed = [max(min(1, len(s) * min(p[k] for k in s)) for s in subsets if test in s) for test in tests]
    assert statistics.holm(p) == pytest.approx(closed)


@settings(max_examples=60)
@given(p_values)
def test_holm_step_by_step(p: list[float]) -> None:
    """Holm 1979: from the smallest p on reject while it is below 0.05 / (tests left)."""
    rejected: set[int] = set()
    for done, test in enumerate(sorted(range(len(p)), key=lambda test: p[test])):
        if p[test] * (len(p) - done) >= 0.05:
            break
        rejected.add(test)
    assert {test for test, adjusted in enumerate(statistics.holm(p)) if adjusted < 0.05} == rejected


@pytest.mark.parametrize("shared", [0.0, 1.0])
@pytest.mark.parametrize("train_seeds", [3, 5])
def test_a_table_without_effects_rarely_has_a_verdict(train_seeds: int, shared: float) -> None:
    """Eight comparisons without effect, each with its own reference or all with the same one."""
    tables_drawn, comparisons = 1000, 8
    rng = numpy_generator(0, "no effect", train_seeds, int(shared))
    own = rng.normal(size=(tables_drawn, comparisons, train_seeds))
    differences = own - shared * rng.normal(size=(tables_drawn, 1, train_seeds))
    false_verdicts, uncorrected = 0, 0
    for of_table in differences:
        p = [statistics.p_value(units) for units in of_table]
        verdicts = {
            statistics.verdict(float(units.mean()), adjusted)
            for units, adjusted in zip(of_table, statistics.holm(p), strict=True)
        }
        false_verdicts += verdicts != {"inconclusive"}
        uncorrected += min(p) < 0.05
    assert false_verdicts / tables_drawn <= 0.07
    assert uncorrected / tables_drawn > 0.15


@pytest.mark.parametrize(
    ("delta", "p", "said"),
    [
        (0.3, 0.049, "better"),
        (-0.3, 0.001, "worse"),
        (0.3, 0.05, "inconclusive"),
        (-9.0, 0.2, "inconclusive"),
        (0.3, math.nan, "no verdict"),
        (math.nan, math.nan, "no verdict"),
    ],
)
def test_verdict(delta: float, p: float, said: str) -> None:
    assert statistics.verdict(delta, p) == said


# The table of differences


def lineage_results(run: str, sample_step: int, ap_of: dict[tuple[int, int], float]) -> pd.DataFrame:
    return results_of(ap_of).assign(run=run, sample_step=sample_step)


def test_references_are_parent_and_control() -> None:
    assert tables.references("baseline") == {}
    assert tables.references("baseline+finetune") == {"parent": "baseline"}
    assert tables.references("baseline+geofeat") == {"parent": "baseline", "control": "baseline+finetune"}
    assert tables.references("baseline+a+b") == {"parent": "baseline+a", "control": "baseline+a+finetune"}


def test_a_clear_gain_is_better_against_parent_and_control_and_its_reverse_is_worse() -> None:
    pairs = list(itertools.product(range(3), range(2)))
    level = {"baseline": 30.0, "baseline+finetune": 31.0, "baseline+up": 40.0, "baseline+down": 20.0}
    results = pd.concat(
        lineage_results(run, steps, {(k, e): ap + (k - 1) * (0.1 + place / 40) + e for k, e in pairs})
        for place, (run, ap) in enumerate(level.items())
        for steps in (1, 5)
    )
    table = tables.differences_table(results, dict.fromkeys(level, "90"))
    assert list(table.columns) == tables.DIFFERENCES
    assert table[["run", "relation", "sample_step"]].to_numpy().tolist() == [
        *[["baseline+finetune", "parent", steps] for steps in (1, 5)],
        *[["baseline+up", relation, steps] for steps in (1, 5) for relation in ("parent", "control")],
        *[["baseline+down", relation, steps] for steps in (1, 5) for relation in ("parent", "control")],
    ]
    verdicts = table.groupby("run")["delta_verdict"].unique().map(list).to_dict()
    assert verdicts == {"baseline+finetune": ["better"], "baseline+up": ["better"], "baseline+down": ["worse"]}
    np.testing.assert_allclose(table["delta"], table["AP"] - table["reference_AP"], atol=1e-9)
    longer = tables.differences_table(results, {**dict.fromkeys(level, "90"), "baseline+up": "200"})
    relations = longer.set_index("run")["relation"].groupby("run").unique().map(list)
    assert relations["baseline+up"] == ["parent", "unequal control"]
    assert relations["baseline+down"] == ["parent", "control"]


def test_seeds_that_one_side_lacks_are_counted_as_such() -> None:
    own = {(0, 0): 41.0, (0, 1): 42.0, (1, 0): 44.0, (2, 0): 90.0}
    parent = {(0, 0): 40.0, (1, 0): 41.0, (1, 1): 5.0}
    results = pd.concat([lineage_results("baseline", 1, parent), lineage_results("baseline+geofeat", 1, own)])
    table = tables.differences_table(results, defaultdict(lambda: "90"))
    (row,) = table.to_dict("records")
    assert (row["delta"], row["pairs"], row["train_seeds"], row["unpaired"]) == (2.0, 2, 2, 3)
    assert row["results"].count(",") == 2
    told = "Only seeds that both sides have count; left out: 3 runs of `baseline+geofeat` and `baseline` at 1 step."
    assert told in sections.differences(table)


def test_a_comparison_shown_twice_is_one_test() -> None:
    """Two lineages of an ablation that stand in two groups: the second showing is no second chance."""
    runs = {"first": 40.0, "second": 41.0}
    results = pd.concat(
        lineage_results(run, 1, {(k, e): ap + k * (1 if run == "first" else 1.3) for k in range(3) for e in range(2)})
        for run, ap in runs.items()
    )
    asked = evaluations.Asked(results, pd.DataFrame())
    once, twice = (
        tables.ablations_table(asked, {group: {run: run for run in runs} for group in groups}, dict.fromkeys(runs, "9"))
        for groups in ("a", "ab")
    )
    assert once["delta_p_holm"].iloc[1] == once["delta_p"].iloc[1] == twice["delta_p_holm"].iloc[3]
    assert twice["delta_verdict"].tolist() == ["no verdict", "better"] * 2
