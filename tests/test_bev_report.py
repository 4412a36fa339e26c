"""The report on segmentation from above: tables by hand, curves, maps pixel by pixel, and what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bev_reported import CLASSES, LABELS, MAP, SHARES, SIZE, an_experiment, true_map, write_evaluation, write_maps
from PIL import Image
from scipy import stats

from noisebox import graph
from noisebox.errors import UserError
from noisebox.report import bev, bev_plots
from noisebox.report.bev_evaluations import read_confusion
from noisebox.report.bev_pictures import (
    DIMMED,
    IGNORED,
    RIGHT,
    VEILED,
    WIDEST,
    WRONG,
    class_colours,
    depth_shades,
    grid,
    read_maps,
    sheets,
    write_sheets,
)
from noisebox.report.pictures import CELL, GAP, HEAD_LINE, MARGIN

LSS = {0: 30.0, 1: 33.0}  # mIoU by train seed
DIFFBEV = {  # by train seed, of eval seed and steps
    0: {(0, 1): 31.0, (2, 1): 32.0, (0, 3): 34.0, (2, 3): 35.0},
    1: {(0, 1): 34.0, (2, 1): 36.0, (0, 3): 36.0, (2, 3): 38.0},
}
EXPERIMENT = an_experiment(["lss", "diffbev"], [0, 1], eval_seeds=(0, 2), steps=(3, 1))
PLOTS = {"miou", "loss", "lwce", "ldepth", "ldiff", "lr", "iou"}


def evaluated(root: Path) -> Path:
    for seed in (0, 1):
        write_evaluation(root, "lss", seed, {(0, 1): LSS[seed]})
        write_evaluation(root, "diffbev", seed, DIFFBEV[seed], ("Ldepth", "Ldiff", "Lsemantic", "Lwce"))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return evaluated(tmp_path)


@pytest.fixture
def evidence(root: Path) -> bev.BevEvidence:
    return bev.gather(EXPERIMENT, root)


# Tables


def test_means_are_over_train_seeds_of_means_over_eval_seeds(evidence: bev.BevEvidence) -> None:
    table = bev.bev_table(evidence)
    assert list(zip(table["run"], table["sample_step"], strict=True)) == [("lss", 1), ("diffbev", 1), ("diffbev", 3)]
    expected = {0: LSS.values(), 1: (31.5, 35.0), 2: (34.5, 37.0)}
    for row, means in expected.items():
        found, (one, other) = table.iloc[row], means
        mean = (one + other) / 2
        assert found["mIoU"] == pytest.approx(mean)
        assert found["mIoU_std"] == pytest.approx(abs(one - other) / 2, abs=1e-4)
        ends = (found["mIoU_low"], found["mIoU_high"])
        assert ends == pytest.approx(stats.t.interval(0.95, 1, mean, abs(one - other) / 2), abs=1e-4)
        assert found["accuracy"] == pytest.approx((mean + 100) / 2)
        assert {name: found[f"IoU-{name}"] for name in CLASSES} == pytest.approx(
            {name: share * mean for name, share in SHARES.items()}
        )
    assert list(table["eval_seeds"]) == [1, 2, 2]
    assert list(table["s_per_img"]) == pytest.approx([0.015, 0.015, 0.045])
    assert table["results"][2] == "evals/diffbev/seed0/results.tsv,evals/diffbev/seed1/results.tsv"
    assert table["speed"][0] == "evals/lss/seed0/speed.tsv,evals/lss/seed1/speed.tsv"
    assert table["ckpt_sha256"][0] == ",".join(f"03{seed}" + "b" * 61 for seed in (0, 1))


def test_a_baseline_without_noise_is_held_against_every_eval_seed_and_step_count(evidence: bev.BevEvidence) -> None:
    table = bev.differences_table(evidence)
    assert list(table["reference_step"]) == [1, 1]
    assert list(table["sample_step"]) == [1, 3]
    assert list(table["pairs"]) == [4, 4]
    assert list(table["unpaired"]) == [0, 0]
    for row, means in {0: (1.5, 2.0), 1: (4.5, 4.0)}.items():  # of both train seeds: diffbev minus lss
        found, test = table.iloc[row], stats.ttest_1samp(means, 0)
        assert found["delta"] == pytest.approx(np.mean(means))
        assert found["delta_p"] == pytest.approx(test.pvalue, abs=1e-4)
        assert (found["delta_low"], found["delta_high"]) == pytest.approx(test.confidence_interval(), abs=1e-4)
    p = [stats.ttest_1samp(means, 0).pvalue for means in ((1.5, 2.0), (4.5, 4.0))]
    holm = {min(p): 2 * min(p), max(p): max(2 * min(p), max(p))}
    assert list(table["delta_p_holm"]) == pytest.approx([holm[each] for each in p], abs=1e-4)
    assert list(table["delta_verdict"]) == ["inconclusive", "inconclusive"]
    assert list(table["mIoU"] - table["reference_mIoU"]) == pytest.approx(list(table["delta"]))


def test_a_baseline_with_noise_is_held_against_its_own_step_counts(tmp_path: Path) -> None:
    other = {0: {key: value - 2 for key, value in DIFFBEV[0].items()}, 1: dict.fromkeys(DIFFBEV[1], 20.0)}
    for seed in (0, 1):
        write_evaluation(tmp_path, "diffbev", seed, DIFFBEV[seed])
        write_evaluation(tmp_path, "second", seed, other[seed])
        write_evaluation(tmp_path, "lss", seed, {(0, 1): LSS[seed]})
    experiment = an_experiment(["diffbev", "second", "lss"], [0, 1], eval_seeds=(0, 2), steps=(1, 3))
    table = bev.differences_table(bev.gather(experiment, tmp_path))
    assert list(zip(table["run"], table["sample_step"], table["reference_step"], table["pairs"], strict=True)) == [
        ("second", 1, 1, 4),
        ("second", 3, 3, 4),
        ("lss", 1, 1, 4),
    ]
    assert list(table["delta"]) == pytest.approx([-8.5, -9.5, -1.75])


def test_a_baseline_with_noise_that_was_not_asked_one_step_is_taken_at_its_fewest(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_evaluation(tmp_path, "diffbev", seed, {(e, n): DIFFBEV[seed][e, 3] + n for e in (0, 2) for n in (3, 5)})
        write_evaluation(tmp_path, "lss", seed, {(0, 1): LSS[seed]})
    experiment = an_experiment(["diffbev", "lss"], [0, 1], eval_seeds=(0, 2), steps=(5, 3))
    evidence = bev.gather(experiment, tmp_path)
    found = bev.tabulated(evidence)
    (row,) = found.bev_differences.to_dict("records")
    assert [row[name] for name in ("run", "sample_step", "reference_step", "pairs")] == ["lss", 1, 3, 4]
    assert row["delta"] == pytest.approx(31.5 - 38.75)
    assert "| `diffbev` at 3 steps |" in "\n".join(bev.section(evidence, found))


def test_one_train_seed_has_no_verdict(root: Path) -> None:
    experiment = EXPERIMENT.model_copy(update={"train_seeds": [1]})
    found = bev.tabulated(bev.gather(experiment, root))
    assert list(found.bev_differences["delta"]) == [2.0, 4.0]
    assert set(found.bev_differences["delta_verdict"]) == {"no verdict"}
    assert "no verdict" in bev.outcome(found)


def test_rows_that_the_protocol_does_not_ask_for_are_left_out(root: Path) -> None:
    line = EXPERIMENT.bev.model_copy(
        update={"protocol": EXPERIMENT.bev.protocol.model_copy(update={"sample_steps": [3], "eval_seeds": [2]})}
    )
    found = bev.tabulated(bev.gather(EXPERIMENT.model_copy(update={"bev": line}), root))
    assert list(found.bev["mIoU"]) == [31.5, 36.5]
    assert list(found.bev["s_per_img"]) == pytest.approx([0.015, 0.045])
    assert found.bev_differences[["delta", "pairs", "unpaired"]].to_numpy().tolist() == [[5.0, 2, 0]]


# What is written


def test_everything_is_written_and_the_same_each_time(evidence: bev.BevEvidence, tmp_path: Path) -> None:
    written = []
    for place in ("one", "two"):
        bev.write(evidence, bev.tabulated(evidence), tmp_path / place)
        files = sorted(path for path in (tmp_path / place).rglob("*") if path.is_file())
        written.append({path.relative_to(tmp_path / place).as_posix(): path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert {f"comparison/{name}.{form}" for name in PLOTS for form in ("png", "svg")} <= set(written[0])
    assert set(bev_plots.PLOTS) == PLOTS
    names = {"tables/bev.tsv", "tables/bev_differences.tsv", "comparison/summary.md", "pictures/bev.png"}
    assert names <= set(written[0])
    table = pd.read_csv(tmp_path / "one/tables/bev_differences.tsv", sep="\t")
    assert list(table["delta"]) == [1.75, 4.25]
    text = written[0]["comparison/summary.md"].decode()
    assert all(f"({name}.png)" in text for name in PLOTS)


def test_the_comparison_names_each_best_validation_and_final_miou(evidence: bev.BevEvidence) -> None:
    """In training the mIoU is highest at iteration 30 of 40."""
    text = bev.comparison(evidence, bev.tabulated(evidence))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert rows[:6] == [
        ["`lss`", "0", "31.00", "30 of 40", "30.00", "1"],
        ["`lss`", "1", "34.00", "30 of 40", "33.00", "1"],
        ["`lss`", "mean", "32.50", "–", "31.50", "–"],
        ["`diffbev`", "0", "36.00", "30 of 40", "34.50", "3"],
        ["`diffbev`", "1", "39.00", "30 of 40", "37.00", "3"],
        ["`diffbev`", "mean", "37.50", "–", "35.75", "–"],
    ]
    assert rows[7][:6] == ["`diffbev`", "3", "35.75", "`lss`", "31.50", "+4.25"]


def test_the_section_says_in_words_what_the_tables_say(evidence: bev.BevEvidence) -> None:
    found = bev.tabulated(evidence)
    text = "\n\n".join(bev.section(evidence, found))
    assert "The baseline `lss` reaches an mIoU (0–100) of 31.50." in text
    assert "- `diffbev` reaches 35.75 at 3 steps, 4.25 more: inconclusive" in text
    worse = found.bev_differences.assign(delta=-4.25, delta_verdict="worse")
    assert "at 3 steps, 4.25 less: worse, by more than chance" in bev.outcome(bev.BevTables(found.bev, worse))
    for link in re.findall(r"\]\((?:\.\./)?([^)#]+)\)", text):
        assert link.startswith(("comparison/", "tables/bev", "pictures/bev.png", "evals/")), link
    assert "Validation images by place, 0, 7" in text and "`diffbev` at 3 steps under eval seed 0" in text


def test_other_data_and_other_images_are_told_before_any_verdict(root: Path) -> None:
    def told() -> list[str]:
        evidence = bev.gather(EXPERIMENT, root)
        found = bev.tabulated(evidence)
        return [bev.section(evidence, found)[1], bev.comparison(evidence, found).split("\n\n")[1]]

    assert all(each.startswith("The baseline `lss`") for each in told())
    path = root / "evals/diffbev/seed1/results.tsv"
    path.write_text(path.read_text().replace("\t20\t", "\t7\t"))
    assert told() == ["**Data** `x` (sha256 `dddddddddddd`), evaluated on 20, 7 images."] * 2
    path = root / "evals/diffbev/seed0/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_hash": "e" * 64, "dataset": "other"}))
    data = "**Data** `x`, `other` (sha256 `dddddddddddd`, `eeeeeeeeeeee`), evaluated on 20, 7 images."
    refused = "**Not comparable: the runs were trained on different data**, see [Provenance]"
    assert told() == [f"{data} {refused}({page}#provenance)." for page in ("", "../summary.md")]


def test_without_lineages_there_are_headers_and_words(tmp_path: Path) -> None:
    evidence = bev.gather(an_experiment([], [0]), tmp_path)
    found = bev.tabulated(evidence)
    bev.write(evidence, found, tmp_path / "reports")
    assert bev.section(evidence, found)[1:] == [bev.NOTHING]
    for name, columns in (("bev", bev.BEV), ("bev_differences", bev.DIFFERENCES)):
        assert (tmp_path / f"reports/tables/{name}.tsv").read_text() == "\t".join(columns) + "\n"
    for name in PLOTS:
        with Image.open(tmp_path / f"reports/comparison/{name}.png") as words:
            assert words.height < 0.3 * words.width
    assert (tmp_path / "reports/pictures/bev.png").exists()
    assert bev.NOTHING in (tmp_path / "reports/comparison/summary.md").read_text()


# Curves


def test_curves_are_those_of_their_mode_and_go_on_after_the_parent(root: Path) -> None:
    for seed in (0, 1):
        write_evaluation(root, "lss+diffbev", seed, DIFFBEV[seed], ("Ldepth", "Ldiff", "Lwce"))
    experiment = an_experiment(["lss", "lss+diffbev"], [0, 1], eval_seeds=(0, 2), steps=(1, 3))
    runs = bev.gather(experiment, root).runs
    of_metric = {(curve.lineage, curve.train_seed): curve for curve in bev_plots.curves_of(runs, "val", "mIoU")}
    assert of_metric["lss", 1].steps == (10, 20, 30, 40)
    assert of_metric["lss", 1].values == pytest.approx((33 / 4, 33 / 2, 34, 33))
    assert (of_metric["lss", 1].start, of_metric["lss+diffbev", 1].start) == (0, 40)
    of_diffusion = bev_plots.curves_of(runs, "train", "Ldiff")
    assert [curve.lineage for curve in of_diffusion] == ["lss+diffbev"] * 2
    assert of_diffusion[0].values == pytest.approx(tuple(2 * 4 / step for step in (10, 20, 30, 40)), abs=1e-5)
    assert bev_plots.curves_of(runs, "val", "Ldepth") == []


# Maps


def rgb(colour: str) -> list[int]:
    return [int(colour[k : k + 2], 16) for k in (1, 3, 5)]


SIDE = CELL // MAP[1]  # pixels of a cell, drawn
FACTOR = min(WIDEST * CELL / SIZE[1], MAP[0] * SIDE / SIZE[0])  # of the camera image
CAMERA = round(SIZE[1] * FACTOR)
TOPS = [MARGIN + HEAD_LINE + GAP + HEAD_LINE]
TOPS.append(TOPS[0] + MAP[0] * SIDE + GAP + HEAD_LINE)


def cells_of(sheet: Image.Image, column: int, row: int) -> np.ndarray:
    """The colour in the middle of each cell of a map in a column (1 is the truth) and a row of a sheet."""
    left, top = MARGIN + CAMERA + GAP + (column - 1) * (CELL + GAP), TOPS[row]
    return np.asarray(sheet)[top : top + MAP[0] * SIDE, left : left + CELL][SIDE // 2 :: SIDE, SIDE // 2 :: SIDE]


def test_maps_stand_as_stored_each_cell_in_its_colour(root: Path) -> None:
    maps = read_maps(root / "evals/lss/seed0/maps.npz")
    colours = class_colours(maps)
    sheet, truth = sheets({"lss": maps, "diffbev": read_maps(root / "evals/diffbev/seed0/maps.npz")})[1], true_map(7)
    table = {0: rgb(colours["background"]), 1: rgb(colours["road"]), 2: rgb(colours["car"]), 255: rgb(IGNORED)}
    expected = np.array([[table[value] for value in row] for row in truth.tolist()])
    assert (cells_of(sheet, 1, 0) == expected).all()
    assert sheet.height == TOPS[1] + MAP[0] * SIDE + MARGIN
    said = np.where(truth == 1, 1, 0)
    seen = truth != 255
    predicted = np.array([[table[value] for value in row] for row in said.tolist()])
    veiled = (1 - VEILED) * predicted + VEILED * np.array(rgb(IGNORED))
    errors = np.where(
        (seen & (said != truth))[..., None], rgb(WRONG), np.where(seen[..., None], rgb(RIGHT), rgb(IGNORED))
    )
    for column in (2, 3):
        assert (np.abs(cells_of(sheet, column, 0) - np.where(seen[..., None], predicted, veiled)) <= 1).all()
        assert (cells_of(sheet, column, 1) == errors).all()


def test_depth_is_drawn_where_it_is_known_the_nearest_on_top(root: Path) -> None:
    path = root / "evals/lss/seed0/maps.npz"
    arrays = dict(np.load(path))
    arrays["depth_0"][20, 30], arrays["depth_0"][10, 5] = 8.0, 43.5
    np.savez(path, **arrays)
    sheet = np.asarray(sheets({"lss": read_maps(path)})[0])
    below = sheet[TOPS[1] :, MARGIN:]
    for row, column, metres in ((20, 30, 8.0), (10, 5, 43.5)):
        at = below[int((row + 0.5) * FACTOR), int((column + 0.5) * FACTOR)]
        assert at.tolist() == depth_shades(np.array([metres]), 50)[0].tolist()
    assert below[5, 5].tolist() == [int(100 * DIMMED)] * 3
    near, far = depth_shades(np.array([8.0, 43.5]), 50)
    assert np.abs(near.astype(int) - far).sum() > 150
    arrays["depth_0"][20, 29] = 49.0  # its dot overlaps that of the return beside it where the image is not enlarged
    large = {name: value for name, value in arrays.items() if name != "image_0"}
    large["image_0"] = np.full((240, 400, 3), 100, np.uint8)
    large["depth_0"] = np.zeros((240, 400))
    large["depth_0"][100, 201], large["depth_0"][100, 200] = 8.0, 49.0
    np.savez(path, **large)
    below = np.asarray(sheets({"lss": read_maps(path)})[0])[TOPS[1] :, MARGIN:]
    shades = {tuple(shade) for shade in below[108, 210:224].tolist()}
    assert tuple(near.tolist()) in shades
    assert (below[:260, :432] == near).all(-1).sum() == 9  # whole, with the far one behind it
    assert 0 < (below[:260, :432] == depth_shades(np.array([49.0]), 50)[0]).all(-1).sum() < 9


def test_values_that_do_not_count_are_drawn_as_ignored(tmp_path: Path) -> None:
    """With reduce_zero_label value 0 means nothing; value 9 is no class."""
    path = tmp_path / "maps.npz"
    write_maps(path, 0, 0, 1)
    arrays = dict(np.load(path))
    facts = json.loads(arrays["facts"].tobytes())
    facts["labels"] = {**LABELS, "reduce_zero_label": True}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    arrays["truth_0"][-1] = 9
    np.savez(path, **arrays)
    maps = read_maps(path)
    assert list(class_colours(maps)) == ["road", "car"]
    drawn = cells_of(sheets({"lss": maps})[0], 1, 0)
    ignored = (drawn == rgb(IGNORED)).all(-1)
    assert (ignored == ~np.isin(arrays["truth_0"], (1, 2))).all()


def test_the_grid_is_the_sheets_below_each_other(root: Path, tmp_path: Path) -> None:
    files = {name: root / f"evals/{name}/seed0/maps.npz" for name in ("lss", "diffbev")}
    written = write_sheets(files, tmp_path / "show")
    assert [path.name for path in written] == ["sample_0000.png", "sample_0007.png"]
    pixels = [np.asarray(Image.open(path)) for path in written]
    assert (np.asarray(grid({name: read_maps(path) for name, path in files.items()})) == np.concatenate(pixels)).all()


def test_lineages_that_show_other_images_stand_not_side_by_side(root: Path) -> None:
    write_maps(root / "evals/diffbev/seed0/maps.npz", 0, 0, 3, places=(0, 6))
    with pytest.raises(UserError, match="'lss' and 'diffbev' show different images or classes"):
        bev.write(evidence := bev.gather(EXPERIMENT, root), bev.tabulated(evidence), root / "reports")


# What is refused


def test_an_evaluation_of_before_the_protocol_asked_for_more_is_told(root: Path) -> None:
    """One row is all that there is to say of a model that draws no noise, and of no other."""
    for seed in (0, 1):
        write_evaluation(root, "diffbev", seed, {(0, 1): DIFFBEV[seed][0, 1]}, ("Lwce", "Ldiff"))
    with pytest.raises(UserError, match=r"diffbev/seed0/results.tsv has no row for 1 sampling step under eval seed 2"):
        bev.gather(EXPERIMENT, root)


@pytest.mark.parametrize("name", graph.BEV_EVALUATION_FILES)
def test_a_missing_file_is_named_with_what_makes_it(root: Path, name: str) -> None:
    (root / "evals/diffbev/seed1" / name).unlink()
    with pytest.raises(
        UserError, match=rf"seed1/{re.escape(name)} does not exist; .* noisebox evaluate diffbev --seed 1"
    ):
        bev.gather(EXPERIMENT, root)


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("results.tsv", "\tmIoU\t", "\tmiou\t", "column 'mIoU' is missing"),
        ("results.tsv", "34.0000", "134.0000", "line 4: column 'mIoU' must lie in 0 to 100"),
        ("results.tsv", "51.0000", "x", "line 4: column 'IoU-background' must be a number or nan, not 'x'"),
        ("results.tsv", "diffbev\t0\t2\t3", "diffbev\t0\t1\t3", "no row for 3 sampling steps under eval seed 2"),
        ("results.tsv", "diffbev\t0\t2\t3", "diffbev\t0\t2\t1", "2 rows for run diffbev"),
        ("results.tsv", "IoU-", "iou of ", "has no column of a class, such as IoU-car"),
        ("results.tsv", "IoU-car", "IoU-bus", "results.tsv has other classes than evals/lss/seed0/results.tsv"),
        ("results.tsv", "070bbb", "070aaa", "name several checkpoints"),
        ("speed.tsv", "diffbev\t0\t3", "diffbev\t0\t4", "no row for 3 sampling steps"),
        ("training.csv", "val,x,20", "val,x,10", "two rows of mode 'val' for step 10"),
        ("training.csv", ",lr,", ",rate,", "column 'lr' is missing"),
        ("training.csv", "0.001,", "fast,", "line 2: column 'lr' must be a number or nan, not 'fast'"),
        ("run.json", '"iterations": 40', '"iterations": "many"', "is not what a training writes"),
    ],
)
def test_broken_files_are_told(root: Path, name: str, old: str, new: str, complaint: str) -> None:
    path = root / "evals/diffbev/seed0" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new) if old == "IoU-" else text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        bev.gather(EXPERIMENT, root)
    assert complaint in str(caught.value)
    assert f"diffbev/seed0/{name}" in str(caught.value) or complaint == "name several checkpoints"


def edited(path: Path, change: Any) -> None:
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda arrays: arrays.pop("truth_7"), "truth_7"),
        (lambda arrays: arrays.pop("facts"), "facts"),
        (lambda arrays: arrays.update(depth_0=np.zeros((3, 3))), r"the arrays of image 0 are \(24, 40, 3\), \(3, 3\)"),
        (lambda arrays: arrays.update(facts=np.frombuffer(b"{}", np.uint8)), "'images' is missing"),
        (lambda arrays: arrays.update(facts=np.frombuffer(b"{", np.uint8)), "is not what an evaluation writes"),
    ],
)
def test_broken_maps_are_told(root: Path, change: Any, complaint: str) -> None:
    path = root / "evals/lss/seed0/maps.npz"
    edited(path, change)
    with pytest.raises(UserError, match=complaint) as caught:
        read_maps(path)
    assert "lss/seed0/maps.npz" in str(caught.value)


def test_maps_that_are_cut_off_are_told(root: Path) -> None:
    path = root / "evals/lss/seed0/maps.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="is not what an evaluation writes"):
        read_maps(path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"labels": {"reduce_zero": True}}, "key 'reduce_zero' does not exist"),
        ({"labels": {"reduce_zero_label": True}}, "label value 0 has 3 counts for 2 classes"),
        ({"classes": ["road"]}, "label value 0 has 3 counts for 1 classes"),
        ({"counts": []}, "it counts nothing"),
        ({"counts": [{"eval_seed": 0, "cells": {}}]}, "key 'sample_step' is missing"),
        ({"counts": [{"eval_seed": 0, "sample_step": 1, "cells": {"256": [1, 2, 3]}}]}, "is not what"),
    ],
)
def test_broken_confusions_are_told(root: Path, changes: dict[str, Any], complaint: str) -> None:
    path = root / "evals/lss/seed0/confusion.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=complaint) as caught:
        read_confusion(path)
    assert "confusion.json" in str(caught.value)
