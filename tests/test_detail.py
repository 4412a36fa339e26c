"""The figures of the breakdowns: what they show in pixels, and which files are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from noisebox.errors import UserError
from noisebox.report import detail
from noisebox.report.breakdown import Breakdown, read_breakdown
from noisebox.report.plots import DPI, WIDTH, appearance

CLASSES = ["car", "person", "absent"]
COSTS = {"class": 3.0, "location": 20.0, "both": 0.5, "duplicate": 0.0, "background": 7.25, "missed": 11.0}
LOOKS = {"baseline": appearance(0), "baseline+finetune": appearance(1)}


def content(ap50: float = 40.0, factor: float = 1.0, **changes: Any) -> dict[str, Any]:
    """What an evaluation of ten cars and four people may have written, its costs times a factor."""
    fall = [round(1 - k / 100, 2) for k in range(101)]
    return {
        "sample_step": 5,
        "eval_seeds": [0],
        "images": 3,
        "classes": CLASSES,
        "objects": [10, 4, 0],
        "AP50": ap50,
        "curves": {iou: [fall, [0.5] * 101, [None] * 101] for iou in ("0.5", "0.75")},
        "sizes": {size: [ap50, 12.5, None] for size in ("all", "small", "medium", "large")},
        "confusion": {"iou": 0.5, "score": 0.3, "counts": [[6, 1, 0, 3], [2, 1, 0, 1], [0, 0, 0, 0], [5, 0, 1, 0]]},
        "errors": {"iou": 0.5, "near": 0.1, **{k: {"count": 4, "cost": factor * cost} for k, cost in COSTS.items()}},
        **changes,
    }


def read(path: Path, *contents: dict[str, Any]) -> list[Breakdown]:
    found = []
    for each in contents:
        path.write_text(json.dumps(each))
        found.append(read_breakdown(path))
    return found


@pytest.fixture
def of(tmp_path: Path) -> dict[str, list[Breakdown]]:
    """Two train seeds of one lineage and one of another."""
    file = tmp_path / "breakdown.json"
    return {"baseline": read(file, content(), content(50.0, 2.0)), "baseline+finetune": read(file, content())}


def test_rare_classes_are_folded_into_one() -> None:
    counts = np.arange(36).reshape(6, 6)
    few = detail.folded(counts, [1, 3], True)
    assert few.sum() == counts.sum()
    assert few[0].tolist() == [counts[1, 1], counts[1, 3], counts[1, [0, 2, 4]].sum(), counts[1, 5]]
    assert few[2, 2] == counts[np.ix_([0, 2, 4], [0, 2, 4])].sum()
    assert (detail.folded(counts, range(5), False) == counts).all()


def test_figures_are_half_a_column_wide_and_the_same_every_time(of: dict[str, list[Breakdown]], tmp_path: Path) -> None:
    for turn in ("one", "two"):
        detail.curves_plot(of, LOOKS, tmp_path / turn / "curves.png")
        detail.confusion_plot(of, tmp_path / turn / "confusion.png")
        detail.errors_plot(of, LOOKS, tmp_path / turn / "errors.png")
    for name in ("curves.png", "confusion.png", "errors.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        with Image.open(tmp_path / "one" / name) as figure:
            assert figure.width == round(WIDTH * DPI)


def test_bars_are_as_long_as_the_costs(of: dict[str, list[Breakdown]], tmp_path: Path) -> None:
    """Counted in pixels of the second lineage's colour, which has no points on its bars: location to missed as 20 to
    11."""
    detail.errors_plot(of, LOOKS, tmp_path / "errors.png")
    with Image.open(tmp_path / "errors.png") as figure:
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    colour = [int(LOOKS["baseline+finetune"].colour[k : k + 2], 16) for k in (1, 3, 5)]
    lengths = (np.abs(pixels - colour).max(-1) < 3)[: int(0.8 * len(pixels))].sum(1)
    bars = [
        int(np.median(bar[bar > 0])) for bar in np.split(lengths, np.flatnonzero(np.diff(lengths > 0)) + 1) if bar[0]
    ]
    assert len(bars) == 5  # a cost of 0 has no bar
    assert np.array(bars) / max(bars) == pytest.approx(np.array([3, 20, 0.5, 7.25, 11]) / 20, abs=0.02)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"classes": ["car"]}, "is not what an evaluation writes"),
        ({"AP50": "high"}, "is not what an evaluation writes: could not convert"),
        ({"errors": {}}, "key 'class' is missing"),
        ({"objects": [1, 2]}, "the counts are not those of 3 classes"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=rf"breakdown\.json.*{complaint}"):
        read(tmp_path / "breakdown.json", content(**change))
    with pytest.raises(UserError, match="does not exist"):
        read_breakdown(tmp_path / "none.json")


def test_other_data_are_refused(of: dict[str, list[Breakdown]], tmp_path: Path) -> None:
    other = read(tmp_path / "breakdown.json", content(objects=[9, 4, 0]))
    with pytest.raises(UserError, match=r"baseline, baseline\+finetune, other were evaluated on different objects"):
        detail.confusion_plot({**of, "other": other}, tmp_path / "confusion.png")
