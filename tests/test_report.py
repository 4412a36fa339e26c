"""The report: its arithmetic against published and brute-force numbers, its bytes, its words, and what it refuses."""

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from noisebox import graph
from noisebox.config import ExperimentConfig
from noisebox.errors import UserError
from noisebox.report import pictures, plots, summary, tables

GOLDEN = Path(__file__).parent / "golden/published_ap.tsv"
CLASSES = ("car", "motorbike", "person")
LINEAGES = ("baseline", "baseline+finetune")
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AP-{name}" for name in CLASSES)]


def an_experiment(lineages: tuple[str, ...] = LINEAGES, train_seeds: tuple[int, ...] = (0, 1)) -> ExperimentConfig:
    parents = {"finetune": ["baseline"]} if len(lineages) > 1 else {}
    return ExperimentConfig(
        scale="test",
        train_seeds=list(train_seeds),
        recipes=["baseline", *parents],
        parents=parents,
        lineages=list(lineages),
        evaluation={"eval_seeds": [0, 1, 2], "sample_steps": [1, 5], "pictures": 2},
    )


def evaluated(root: Path, experiment: ExperimentConfig) -> Path:
    """Write what `noisebox evaluate` would, with invented numbers that differ in every cell."""
    rng = np.random.default_rng(5)
    for image in range(2):
        path = root / f"data/images/{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(90, 110, (48, 64, 3), dtype=np.uint8)).save(path)
    for lineage in experiment.lineages:
        for seed in experiment.train_seeds:
            write_evaluation(root, lineage, seed, experiment, rng)
    return root


def write_evaluation(
    root: Path, lineage: str, seed: int, experiment: ExperimentConfig, rng: np.random.Generator
) -> None:
    folder, checkpoint = root / graph.evaluation_folder(lineage, seed), root / graph.checkpoint(lineage, seed)
    for path in (folder, checkpoint.parent):
        path.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(b"weights")
    evidence = {"ckpt": graph.checkpoint(lineage, seed), "ckpt_sha256": f"{len(lineage):02d}{seed}" + "a" * 61}
    protocol = experiment.evaluation
    keys = [
        {"run": lineage, "train_seed": seed, "eval_seed": eval_seed, "sample_step": step}
        for step in protocol.sample_steps
        for eval_seed in protocol.eval_seeds
    ]
    scores = [{name: f"{rng.uniform(10, 60):.4f}" for name in METRICS} for _ in keys]
    write_rows(
        folder / "results.tsv", [{**k, **s, "images": 80, **evidence} for k, s in zip(keys, scores, strict=True)]
    )
    seconds = {1: 0.01, 5: 0.15 if seed else 0.05}
    speed = [
        {
            **{"run": lineage, "train_seed": seed, "sample_step": step, "inference_s_per_img": f"{seconds[step]:.6f}"},
            **{
                "inference_fps": f"{1 / seconds[step]:.3f}",
                "device": "cpu",
                "threads": 1,
                "batch": 16,
                "eval_seeds": 3,
            },
            **evidence,
        }
        for step in protocol.sample_steps
    ]
    write_rows(folder / "speed.tsv", speed)
    rows = [f"train,{lineage},{step},{20 / step:.6g},0.001," for step in range(2, 14, 2)]
    curve = ["mode,phase,step,loss,lr,AP", *rows, f"val,{lineage},12,,,33.1"]
    (folder / "training.csv").write_text("\n".join(curve) + "\n")
    run = {"dataset": "world_test", "data_hash": "d" * 64, "git_commit": "c" * 40, "git_dirty": True, "iterations": 12}
    (folder / "run.json").write_text(json.dumps(run))
    boxes = [{"box_xyxy": [8, 16, 24, 40], "label": "car"}]
    found = [{**boxes[0], "score": 0.8}, {"box_xyxy": [30, 5, 50, 20], "label": "person", "score": 0.1}]
    images = [
        {
            "id": k,
            "file": f"data/images/{k}.png",
            "width": 64,
            "height": 48,
            "ground_truth": boxes,
            "detections": found[k:],
        }
        for k in range(2)
    ]
    detections = {"sample_step": 5, "eval_seed": 0, "score_threshold": 0.05, "images": images}
    (folder / "detections.json").write_text(json.dumps(detections))


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, lineterminator="\n")


def edit_results(root: Path, lineage: str, seed: int, edit: Callable[[pd.DataFrame], object]) -> None:
    path = root / tables.results_path(lineage, seed)
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    edit(table)
    table.to_csv(path, sep="\t", index=False, lineterminator="\n")


def markdown_rows(text: str, heading: str) -> list[list[str]]:
    """The body cells of the first table below a heading, links reduced to their text."""
    table = text.split(heading + "\n", 1)[1].strip().split("\n\n")[0].splitlines()
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line).strip("| ") for line in table]
    return [[cell.strip(" `") for cell in line.split(" | ")] for line in plain[2:]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return evaluated(tmp_path, an_experiment())


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that nobody changes."""
    root = evaluated(tmp_path_factory.mktemp("reported"), an_experiment())
    summary.write_report(an_experiment(), root)
    return root


# The arithmetic


def test_published_values() -> None:
    table = tables.summarise(tables.read_table(GOLDEN, {**tables.RUN, "AP": float}))
    rounded = table.set_index("run")[["AP", "AP_std", "AP_std_flat"]].round(4).T.to_dict("list")
    assert rounded == {
        "baseline": [46.4293, 0.4985, 0.7817],
        "baseline+geofeat": [46.7774, 0.2957, 0.6955],
        "baseline+d3pm_qhead": [46.9068, 0.5545, 0.6829],
    }
    assert (
        table[["sample_step", "train_seeds", "eval_seeds", "runs", "nan_runs"]].to_numpy().tolist()
        == [[1, 3, 5, 15, 0]] * 3
    )


ap_values = st.floats(0, 100, allow_subnormal=False)
protocols = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(ap_values, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([1, 5, 20])), protocols, min_size=1))
def test_arithmetic_is_that_of_plain_python(protocol_of: dict[tuple[str, int], list[list[float]]]) -> None:
    results = pd.DataFrame(
        [
            {"run": run, "train_seed": train_seed, "eval_seed": eval_seed, "sample_step": step, "AP": ap}
            for (run, step), by_seed in protocol_of.items()
            for train_seed, aps in enumerate(by_seed)
            for eval_seed, ap in enumerate(aps)
        ]
    )
    for row in tables.summarise(results).to_dict("records"):
        by_seed = protocol_of[row["run"], row["sample_step"]]
        means, flat = [statistics.fmean(aps) for aps in by_seed], [ap for aps in by_seed for ap in aps]
        expected = [
            statistics.fmean(means),
            statistics.pstdev(means) if len(means) > 1 else math.nan,
            statistics.pstdev(flat) if len(flat) > 1 else math.nan,
        ]
        np.testing.assert_allclose([row["AP"], row["AP_std"], row["AP_std_flat"]], expected, atol=1e-9)
        assert (row["train_seeds"], row["eval_seeds"], row["runs"]) == (len(means), len(by_seed[0]), len(flat))


def test_numbers_in_the_summary_are_those_of_the_results(reported: Path) -> None:
    raw = pd.concat(
        [
            pd.read_csv(reported / tables.results_path(lineage, seed), sep="\t")
            for lineage in LINEAGES
            for seed in (0, 1)
        ]
    )
    written = pd.read_csv(reported / "reports/tables/main.tsv", sep="\t")
    shown = markdown_rows((reported / "reports/summary.md").read_text(), "## Average precision")
    assert [row[:2] for row in shown] == [[lineage, step] for lineage in LINEAGES for step in "15"]
    for row, cells in zip(written.to_dict("records"), shown, strict=True):
        runs = raw[(raw["run"] == row["run"]) & (raw["sample_step"] == row["sample_step"])]
        for name in METRICS:
            assert row[name] == pytest.approx(runs.groupby("train_seed")[name].mean().mean(), abs=1e-4)
        numbers = [row[name] for name in ("AP", "AP_std", "AP_std_flat", "AP50", "AP75")]
        assert cells[2:] == [*(f"{number:.2f}" for number in numbers), "2 × 3", "seed0 seed1"]
        assert row["results"] == ",".join(tables.results_path(row["run"], seed) for seed in (0, 1))
    scalars = json.loads((reported / "reports/metrics.json").read_text())
    assert [scalars[row["run"]][f"AP@{row['sample_step']}"] for row in written.to_dict("records")] == list(
        written["AP"]
    )


def test_speed_is_that_of_speed_tsv(reported: Path) -> None:
    rows = markdown_rows((reported / "reports/summary.md").read_text(), "## Speed")
    assert [row[:5] for row in rows[:2]] == [
        ["baseline", "1", "0.0100", "100.0", "1.0"],
        ["baseline", "5", "0.1000", "10.0", "10.0"],
    ]


# What is written


def test_same_inputs_same_bytes_anywhere(reported: Path, root: Path) -> None:
    written = summary.write_report(an_experiment(), root)
    assert [path.relative_to(root).as_posix() for path in written] == graph.report_outputs()
    for path in graph.report_outputs():
        assert (root / path).read_bytes() == (reported / path).read_bytes(), path


def test_every_link_of_the_summary_resolves(reported: Path) -> None:
    text = (reported / "reports/summary.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith("#")]
    assert len(links) > 30
    assert [link for link in links if not (reported / "reports" / link).is_file()] == []
    assert "commit `cccccccccccc` with uncommitted changes" in text


def test_nan_run_is_shown_and_makes_the_mean_nan(root: Path) -> None:
    edit_results(root, "baseline", 1, lambda table: table.__setitem__("AP", ["nan", *table["AP"][1:]]))
    summary.write_report(an_experiment(), root)
    text = (root / "reports/summary.md").read_text()
    assert markdown_rows(text, "## Average precision")[0][2:5] == ["nan", "nan", "nan"]
    assert "**AP is nan in 1 of 24 runs.**" in text
    assert "`baseline` train seed 1 at 1 step: eval seed 0 ([results.tsv](../evals/baseline/seed1/results.tsv))" in text
    assert list(pd.read_csv(root / "reports/tables/main.tsv", sep="\t")["nan_runs"]) == [1, 0, 0, 0]
    assert json.loads((root / "reports/metrics.json").read_text())["baseline"]["AP@1"] is None


def test_absent_class_is_a_dash(root: Path) -> None:
    for lineage in LINEAGES:
        for seed in (0, 1):
            edit_results(root, lineage, seed, lambda table: table.__setitem__("AP-person", "nan"))
    summary.write_report(an_experiment(), root)
    text = (root / "reports/summary.md").read_text()
    assert {row[4] for row in markdown_rows(text, "### By class and size")} == {"–"}
    assert "–: nan in every run" in text
    assert "AP is nan" not in text


def test_one_train_seed_has_no_spread(tmp_path: Path) -> None:
    experiment = an_experiment(("baseline",), (3,))
    summary.write_report(experiment, evaluated(tmp_path, experiment))
    text = (tmp_path / "reports/summary.md").read_text()
    assert [row[3] for row in markdown_rows(text, "## Average precision")] == ["–", "–"]
    assert "±" not in text.split("## What was run")[0]


def test_finetune_curve_goes_on_after_its_parent(root: Path) -> None:
    runs = [summary.read_run(lineage, 0, root) for lineage in LINEAGES]
    parent, child = summary.training_curves(runs)
    assert (parent.start, child.start) == (0, 12)
    assert parent.steps == (2, 4, 6, 8, 10, 12)
    assert parent.loss[0] == 10


def test_lineages_look_different() -> None:
    looks = [plots.appearance(place) for place in range(24)]
    assert len(set(looks)) == 24
    assert len({look.colour for look in looks[:6]}) == 6


# The pictures


def test_boxes_lie_where_they_are(root: Path) -> None:
    of_run = pictures.read_pictures(root / "evals/baseline/seed0/detections.json")
    grid = np.asarray(pictures.picture_grid({"baseline": of_run}, CLASSES, root))
    car = np.array([int(pictures.COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)])
    factor = pictures.CELL // 64
    top, left = pictures.MARGIN + pictures.HEAD_LINE, pictures.MARGIN
    drawn = np.argwhere((grid[top : top + 48 * factor, left : left + 64 * factor] == car).all(axis=-1))
    assert drawn.min(axis=0).tolist() == [16 * factor, 8 * factor]
    assert drawn.max(axis=0).tolist() == [40 * factor - 1, 24 * factor - 1]


def test_weak_detections_are_told(reported: Path) -> None:
    strong, weak = pictures.read_pictures(reported / "evals/baseline/seed0/detections.json").images
    assert [box.score for box in pictures.shown(strong)[0]] == [0.8]
    assert ([box.score for box in pictures.shown(weak)[0]], pictures.shown(weak)[1]) == ([0.1], False)
    assert "In 2 cells none does; there the best 3 are dashed." in (reported / "reports/summary.md").read_text()


def test_more_classes_than_colours_are_named(root: Path) -> None:
    of_run = pictures.read_pictures(root / "evals/baseline/seed0/detections.json")
    few, many = (pictures.picture_grid({"baseline": of_run}, [*CLASSES, *more], root) for more in ("", "abcdefgh"))
    assert few.size == many.size
    changed = np.argwhere(np.asarray(few) != np.asarray(many))[:, 0]
    assert pictures.MARGIN < changed.min() < pictures.CELL / 2  # a label on the first image
    assert changed.max() > few.height - pictures.MARGIN - pictures.HEAD_LINE  # no legend


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b"no image"), "cannot be read"),
        (lambda path: Image.new("RGB", (48, 64)).save(path), "is 48×64, but was evaluated as 64×48"),
    ],
)
def test_image_that_does_not_fit(root: Path, spoil: Callable[[Path], object], complaint: str) -> None:
    spoil(root / "data/images/1.png")
    with pytest.raises(UserError, match=rf"data/images/1\.png.*{complaint}"):
        summary.write_report(an_experiment(), root)
    assert not (root / "reports").exists()


# What is refused


def test_missing_file_names_its_command(root: Path) -> None:
    (root / "evals/baseline+finetune/seed1/speed.tsv").unlink()
    with pytest.raises(
        UserError, match=r"seed1/speed\.tsv does not exist.*noisebox evaluate baseline\+finetune --seed 1$"
    ):
        summary.write_report(an_experiment(), root)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("AP50", "AP5O", "column 'AP50' is missing"),
        ("AP75", "AP50", "column 'AP75' is missing"),
        ("\tAPs\t", "\tAP\tAPs\t", "column 'AP' appears twice"),
        ("baseline\t1\t0", "baseline\tone\t0", "line 2: column 'train_seed' must be a whole number, not 'one'"),
        ("baseline\t1\t1", "baseline\t0\t1", "column 'train_seed' says 0 where the folder says 1"),
        ("baseline\t1\t1", "other\t1\t1", "column 'run' says other where the folder says baseline"),
        ("baseline\t1\t1", "baseline\t1\t0", "2 rows for run baseline, train_seed 1, eval_seed 0, sample_step 1"),
        ("baseline\t1\t2\t5\t", "baseline\t1\t2\t5\t-1", "line 7: column 'AP' must lie in 0 to 100 or be nan"),
        ("baseline\t1\t2\t5\t", "baseline\t1\t2\t5\t?", "line 7: column 'AP' must be a number or nan"),
        ("baseline\t1\t2\t5\t", "baseline\t1\t2\t7\t", "differ in eval seeds or sampling steps"),
        ("\t80\truns/baseline/seed1/model_final.pth", "", "line 2: 14 cells for 16 columns"),
        ("\t80\truns/baseline/seed1/model_final.pth", "\t80\t", "line 2: column 'ckpt' is empty"),
        ("081a", "081b", "name several checkpoints"),
    ],
)
def test_broken_results(root: Path, old: str, new: str, complaint: str) -> None:
    path = root / "evals/baseline/seed1/results.tsv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        summary.write_report(an_experiment(), root)
    assert complaint in str(caught.value)
    assert "evals/baseline/seed1" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("results.tsv", "", "column 'run' is missing; the header has nothing"),
        ("results.tsv", "\t".join(tables.RESULTS) + "\n", "has a header but no rows"),
        ("speed.tsv", "\xff", "is not a table in UTF-8 text"),
        ("training.csv", "mode,step,loss\ntrain,2,1\ntrain,2,1\n", "two rows of mode 'train' for step 2"),
        ("detections.json", "{}", "key 'images' is missing"),
        ("detections.json", '{"images": [', "is not what an evaluation writes"),
        ("detections.json", '{"images": [{"ground_truth": [{"box_xyxy": [NaN, 1, 2, 3]}]}]}', "is not finite"),
        ("run.json", "[]", "must hold a mapping"),
        ("run.json", "{", "is not valid JSON"),
    ],
)
def test_broken_files(root: Path, name: str, content: str, complaint: str) -> None:
    path = root / "evals/baseline/seed0" / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{complaint}"):
        summary.write_report(an_experiment(), root)


def test_report_imports_no_torch() -> None:
    code = "import sys, noisebox.report.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
