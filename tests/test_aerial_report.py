"""The aerial line in the report: tables and verdicts by hand, the picture's pixels, and broken files told."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from aerial_line import LINEAGES, aerial_experiment, write_evaluations
from PIL import Image
from scipy import stats

from noisebox import graph
from noisebox.errors import UserError
from noisebox.report import aerial, aerial_pictures

# AP and AP small: crops give the teacher 1 and 3; kd is 2 and 4 above its parent without crops, 1 above the control.
SCORES = {
    ("yolc_teacher", 0, 0): (20, 10),
    ("yolc_teacher", 1, 0): (22, 12),
    ("yolc_teacher", 0, 1): (21, 12),
    ("yolc_teacher", 1, 1): (23, 16),
    ("yolc", 0, 0): (10, 5),
    ("yolc", 1, 0): (11, 6),
    ("yolc", 0, 1): (11, 6),
    ("yolc", 1, 1): (13, 8),
    ("yolc+yolc_finetune", 0, 0): (11, 6),
    ("yolc+yolc_finetune", 1, 0): (12, 8),
    ("yolc+yolc_finetune", 0, 1): (12, 7),
    ("yolc+yolc_finetune", 1, 1): (13, 9),
    ("yolc+yolc_kd", 0, 0): (12.5, 8),
    ("yolc+yolc_kd", 1, 0): (12.5, 11),
    ("yolc+yolc_kd", 0, 1): (14, 9),
    ("yolc+yolc_kd", 1, 1): (14.5, 12),
}


@pytest.fixture
def made(tmp_path):
    write_evaluations(tmp_path, SCORES)
    evidence = aerial.gather(aerial_experiment(), tmp_path)
    return evidence, aerial.tabulated(evidence)


def test_each_lineage_has_a_row_without_and_one_with_crops(made):
    _, found = made
    assert list(found.aerial.columns) == aerial.AERIAL
    assert list(zip(found.aerial["run"], found.aerial["crops"], strict=True)) == [
        (run, crops) for run in LINEAGES for crops in (0, 1)
    ]
    row = found.aerial.iloc[1]
    assert (row["AP"], row["AP_std"], row["AP50"], row["APs"], row["s_per_img"]) == (22, 1, 44, 14, 0.3)
    low, high = stats.t.interval(0.95, df=1, loc=22, scale=stats.sem([21, 23]))
    assert (row["AP_low"], row["AP_high"]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert row["iterations"] == "200" and found.aerial.iloc[-1]["iterations"] == "50"
    assert row["results"] == "evals/yolc_teacher/seed0/results.tsv,evals/yolc_teacher/seed1/results.tsv"
    assert row["ckpt_sha256"] == "yolc_teacher-0,yolc_teacher-1"


def test_differences_are_those_of_pairs_and_hold_what_they_should(made):
    _, found = made
    table = found.aerial_differences
    keys = ["run", "crops", "relation", "reference", "reference_crops"]
    assert [tuple(row) for row in table[keys].itertuples(index=False)] == [
        ("yolc_teacher", 1, "no crops", "yolc_teacher", 0),
        ("yolc", 1, "no crops", "yolc", 0),
        ("yolc+yolc_finetune", 0, "parent", "yolc", 0),
        ("yolc+yolc_finetune", 1, "no crops", "yolc+yolc_finetune", 0),
        ("yolc+yolc_finetune", 1, "parent", "yolc", 1),
        ("yolc+yolc_kd", 0, "parent", "yolc", 0),
        ("yolc+yolc_kd", 0, "control", "yolc+yolc_finetune", 0),
        ("yolc+yolc_kd", 1, "no crops", "yolc+yolc_kd", 0),
        ("yolc+yolc_kd", 1, "parent", "yolc", 1),
        ("yolc+yolc_kd", 1, "control", "yolc+yolc_finetune", 1),
    ]
    kd = table.iloc[5]
    assert (kd["AP"], kd["reference_AP"], kd["delta"]) == (12.5, 10.5, 2)
    assert (kd["APs"], kd["reference_APs"], kd["delta_small"]) == (9.5, 5.5, 4)
    own, parent = ([SCORES[run, seed, 0] for seed in (0, 1)] for run in ("yolc+yolc_kd", "yolc"))
    for place, name in enumerate(("delta", "delta_small")):
        p = stats.ttest_rel([each[place] for each in own], [each[place] for each in parent]).pvalue
        assert kd[f"{name}_p"] == pytest.approx(p, abs=1e-4)


def test_verdicts_are_corrected_for_both_metrics_of_the_whole_table(made):
    """Teacher's crops give 1 in both seeds: no spread, no verdict, and no test to be corrected for."""
    table = made[1].aerial_differences
    assert table.iloc[0]["delta"] == 1 and math.isnan(table.iloc[0]["delta_p"])
    assert table.iloc[0]["delta_verdict"] == "no verdict"
    tests = {(row[name], row[f"{name}_p"]) for _, row in table.iterrows() for name in ("delta", "delta_small")}
    tests = {test for test in tests if not math.isnan(test[1])}
    smallest = min(p for _, p in tests)
    holm = table[["delta_p_holm", "delta_small_p_holm"]].min().min()
    assert holm == pytest.approx(min(1, len(tests) * smallest), abs=1e-3)


def test_the_section_tells_the_tables_numbers(made):
    text = "\n\n".join(aerial.section(*made))
    assert text.startswith("## Crops in images from above\n\n- Crops on `yolc_teacher`")
    assert "unequal" not in text
    assert "Crops on `yolc_teacher`: AP 21.00 → 22.00 (+1.00, no verdict), AP small 11.00 → 14.00 (+3.00" in text
    assert "`yolc+yolc_kd` without crops against its control `yolc+yolc_finetune`: AP 11.50 → 12.50" in text
    assert "![Heatmap, crops, coarse and final boxes](pictures/aerial.png)" in text


def test_a_control_of_another_length_and_other_data_are_told(tmp_path):
    write_evaluations(tmp_path, SCORES)
    for seed in (0, 1):
        path = tmp_path / graph.evaluation_folder("yolc+yolc_kd", seed) / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "iterations": 5000, "data_hash": "e" * 64}))
    evidence = aerial.gather(aerial_experiment(), tmp_path)
    found = aerial.tabulated(evidence)
    of_kd = found.aerial_differences[found.aerial_differences["run"] == "yolc+yolc_kd"]
    assert list(of_kd["relation"]) == ["parent", "unequal control", "no crops", "parent", "unequal control"]
    head, *others = aerial.section(evidence, found)[1:]
    assert head.endswith("**Not comparable: the runs were trained on different data**, see [Provenance](#provenance).")
    text = "\n\n".join(others)
    assert "against its unequal control `yolc+yolc_finetune`: AP 11.50 → 12.50" in text
    assert "number of iterations (`yolc+yolc_kd` 5000, `yolc+yolc_finetune` 50): what that gave is in Δ. Inter" in text


def test_without_lineages_there_are_headers_words_and_one_sentence(tmp_path):
    evidence = aerial.gather(aerial_experiment([]), tmp_path)
    found = aerial.tabulated(evidence)
    aerial.write(evidence, found, tmp_path)
    assert aerial.section(evidence, found)[1:] == [aerial.NOTHING]
    for name, columns in (("aerial", aerial.AERIAL), ("aerial_differences", aerial.DIFFERENCES)):
        assert (tmp_path / f"tables/{name}.tsv").read_text() == "\t".join(columns) + "\n"
    assert Image.open(tmp_path / "pictures/aerial.png").height < 300
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["aerial.png"]


def test_the_picture_shows_heat_crops_and_what_scores_enough(made, tmp_path):
    evidence, found = made
    aerial.write(evidence, found, tmp_path)
    picture = np.asarray(Image.open(tmp_path / "pictures/aerial.png").convert("RGB"))
    factor = aerial_pictures.PANEL / 64
    panel = (round(40 * factor), aerial_pictures.PANEL)

    def pixels(place, x, y):
        """Around a point of the image in one of the four panels."""
        top = aerial_pictures.MARGIN + aerial_pictures.HEAD_LINE
        top += place // 2 * (panel[0] + aerial_pictures.HEAD_LINE + aerial_pictures.GAP)
        left = aerial_pictures.MARGIN + place % 2 * (panel[1] + aerial_pictures.GAP)
        row, column = top + round(y * factor), left + round(x * factor)
        return picture[row - 3 : row + 3, column - 3 : column + 3].reshape(-1, 3)

    first, second = (tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in aerial_pictures.COLOURS[:2])
    assert first in map(tuple, pixels(0, 18, 12)) and second in map(tuple, pixels(0, 40, 25))
    assert (255, 255, 255) in map(tuple, pixels(1, 10, 14))
    assert pixels(1, 22, 12).mean() > 2 * pixels(1, 50, 35).mean()
    for place in (2, 3):
        assert first in map(tuple, pixels(place, 18, 12))
        assert second not in map(tuple, pixels(place, 1, 3))  # scores 0.05


@pytest.mark.parametrize(
    ("file", "spoil", "sentence"),
    [
        ("results.tsv", lambda path: _keep(path, 0), "has no row with crops, which aerial.crops in"),
        ("speed.tsv", lambda path: _keep(path, 1), "has no row without crops, which aerial.crops in"),
        ("results.tsv", lambda path: _twice(path), "2 rows for run yolc"),
        ("run.json", lambda path: path.write_text("{}"), "key 'iterations' is missing"),
        ("looks.npz", lambda path: path.unlink(), "does not exist; this makes it: noisebox evaluate yolc_teacher"),
        ("looks.npz", lambda path: path.write_bytes(b"no zip"), "is not what an evaluation writes"),
    ],
)
def test_a_broken_evaluation_is_told_in_one_sentence(tmp_path, file, spoil, sentence):
    write_evaluations(tmp_path, SCORES)
    spoil(tmp_path / graph.evaluation_folder("yolc_teacher", 0) / file)
    with pytest.raises(UserError) as told:
        aerial.gather(aerial_experiment(), tmp_path)
    assert sentence in str(told.value) and "seed0" in str(told.value)


def _keep(path, crops):
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table[table["crops"] == str(crops)].to_csv(path, sep="\t", index=False)


def _twice(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
