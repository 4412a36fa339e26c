"""`noisebox bench`: every part times what it says, two results are compared, and a law of growth is found again."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from noisebox.bench import growth
from noisebox.bench.compare import compare
from noisebox.bench.run import PARTS
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, counted_flop, matrix_rate, timed
from noisebox.cli import app
from noisebox.errors import UserError

SMALL = ["--depth", "slim", "--hidden", "8", "--heads", "2", "--proposals", "6", "--classes", "2", "--size", "64", "96"]
SMALL += ["--boxes", "2", "--batch", "2", "--images", "2", "--seeds", "2", "--train-iters", "2", "--repeats", "2"]
SMALL += ["--threads", "1", "--items", "10", "--stored", "48", "64"]
TIMED = {  # by part what it times at these settings
    "train": ["diffusiondet"],
    "protocol": ["1 step", "2 steps"],
    "steps": ["features", "1 step", "2 steps"],
    "matcher": ["2 stages, 2 objects"],
    "attention": ["mha", "sdpa"],
    "distillation": ["teacher of 2 steps, student of one", "2 passes of the head"],
    "loader": [
        *["decoding", "resizing, mirroring", "decoded, 1 process", "decoded, 2 processes"],
        *["cached, 1 process", "cached, 2 processes"],
    ],
    "depth": ["1 worker", "2 workers"],
    "report": ["noisebox report"],
    "counting": ["Noisebox", "pycocotools"],
}


def bench(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words], catch_exceptions=True)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part of DiffusionDet and of the data, once."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    done = bench("--parts", *TIMED, "--steps", "1", "2", *SMALL, "--json", str(path))
    assert done.exit_code == 0, done.output
    assert all(part in done.stdout for part in TIMED), "a table is printed"
    return path


def test_every_part_gives_what_it_times(result: Path) -> None:
    rows = json.loads(result.read_text())["timings"]
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["part"], []).append(row["what"])
        assert 0 < row["low_s"] <= row["median_s"] <= row["high_s"] < math.inf and row["runs"] == 2
    assert found == TIMED and set(TIMED) == PARTS.keys() - {"crops"}, "crops have a test of their own"
    iteration = rows[0]
    assert iteration["images_per_s"] == pytest.approx(2 / iteration["median_s"])
    assert 0 < iteration["matrix_share"] < 1
    one, two = (row["flop"] for row in rows if row["part"] == "protocol")
    features, of_one, of_two = (row["flop"] for row in rows if row["part"] == "steps")
    assert of_two == 2 * of_one, "a step is a pass of the head"
    assert two - one == of_one and one == of_one + features / 2, "two eval seeds share an image's features"


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1", "COLUMNS": "40"}])
def test_no_column_is_cut(monkeypatch: pytest.MonkeyPatch, terminal: dict[str, str]) -> None:
    """Neither where standard output is a file nor on a terminal that is too narrow."""
    row = Timing("train", "a long name of what was timed", "iteration of 4 images", (1.234, 1.345), 1, 4, 5e9, 1234.0)
    done = {"settings": asdict(BenchSettings()), "matrix_flop_per_s": 1e11, "timings": [row.row(1e11)]}
    monkeypatch.setattr("noisebox.bench.run.bench", lambda *_: done)
    for name, value in terminal.items():
        monkeypatch.setenv(name, value)
    said = bench().stdout
    assert "…" not in said
    for cell in ("least–most", "MiB", "1.23–1.34 s", "1234"):
        assert cell in said
    assert ("a long name of what was timed, per iteration of 4 images" in said) is not bool(terminal)


def test_operations_are_counted_as_they_are_defined() -> None:
    import torch

    weights = torch.ones(5, 7, requires_grad=True)
    assert counted_flop(lambda: (torch.ones(3, 5) @ weights).sum().backward()) == 2 * (2 * 3 * 5 * 7)
    assert matrix_rate("cpu", "fp32") > 0


def test_a_timing_is_per_unit() -> None:
    calls: list[int] = []
    work = timed(lambda: calls.append(1), BenchSettings(repeats=4), part="p", what="w", unit="u", units=10)
    assert len(work.seconds) == 4 and len(calls) == 5, "one to warm up"
    row = Timing("p", "w", "u", (1.0, 4.0, 2.0), units=2, images=8, flop=100).row(matrix_rate=200)
    assert (row["low_s"], row["median_s"], row["high_s"]) == (0.5, 1.0, 2.0)
    assert (row["images_per_s"], row["flop"], row["matrix_share"]) == (4.0, 50, 0.25)


def written(path: Path, seconds: dict[str, tuple[float, float, float]], **settings: int) -> Path:
    rows = [
        {"part": "train", "what": what, "unit": "iteration", "low_s": low, "median_s": median, "high_s": high}
        for what, (low, median, high) in seconds.items()
    ]
    facts = {"environment": {"hardware": {"cpu": "a"}, "packages": {"torch": "2"}}, "matrix_flop_per_s": 1.0}
    path.write_text(json.dumps({"settings": {"batch": 4, **settings}, "timings": rows, **facts}))
    return path


def test_results_are_compared_with_their_spread(tmp_path: Path) -> None:
    one = written(tmp_path / "a.json", {"x": (3, 4, 6), "mine": (1, 1, 1)})
    other = written(tmp_path / "b.json", {"x": (1, 2, 3), "yours": (1, 1, 1)}, batch=8)
    (ratio,), differences = compare(one, other)
    assert (ratio.what, ratio.ratio, ratio.low, ratio.high) == ("x", 2, 1, 6)
    assert differences == ["settings differ in batch: 4 against 8"]
    done = bench("--compare", str(one), str(other))
    assert done.exit_code == 0 and "settings differ in batch" in done.stdout
    assert "same settings, hardware and packages" in bench("--compare", str(one), str(one)).stdout


def test_what_cannot_be_timed_or_compared_is_told(tmp_path: Path) -> None:
    nothing = written(tmp_path / "a.json", {"mine": (1, 1, 1)})
    other = written(tmp_path / "b.json", {"yours": (1, 1, 1)})
    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "d.json").write_text(nothing.read_text().replace('"what"', '"which"'))
    for words, sentence in {
        ("--parts", "trian"): "--parts names 'trian'; did you mean 'train'?",
        ("--parts", "train", "sampler"): "--parts names 'sampler'; the parts are: train, protocol",
        ("--parts", "crops"): "--parts crops needs numbers of crops, such as --crops 1 2 4",
        ("--growth", "--out", str(nothing / "growth")): "cannot be made",
        ("--growth", "--parts", "crops"): "--growth: nothing grows in crops; these grow: train",
        ("--compare", str(nothing), str(other)): "have timed nothing in common",
        ("--compare", str(tmp_path / "c.json"), str(other)): "c.json is no result of the bench; make one with",
        ("--compare", str(other), str(tmp_path / "d.json")): "d.json is no result of the bench; make one with",
        ("--steps", "0"): "--steps must be whole numbers from 1 on",
        ("--steps", "4", "5", "--crops", "1"): "--steps and --crops together take one number each",
        ("--growth", "--json", "growth.json"): "--growth writes growth.tsv to --out, and no JSON",
    }.items():
        done = bench(*words)
        assert isinstance(done.exception, UserError), (words, done.output)
        assert sentence in str(done.exception)


def test_what_was_timed_is_told_where_its_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = bench("--parts", "matcher", *SMALL, "--json", str(tmp_path / "file/result.json"))
    assert isinstance(done.exception, UserError) and "cannot be made" in str(done.exception)
    assert "matcher" in done.stdout


@given(
    exponent=st.floats(-2, 3), factor=st.floats(1e-6, 1e3),
    sizes=st.lists(st.sampled_from([2**k for k in range(20)]), min_size=2, max_size=6, unique=True),
)  # fmt: skip
@example(exponent=0.0, factor=1.0, sizes=[1, 2])  # no coefficient is but 0
def test_a_planted_power_law_is_found_again(exponent: float, factor: float, sizes: list[int]) -> None:
    law = growth.power_law(sizes, [factor * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.factor == pytest.approx(factor, rel=1e-3)
    assert math.isnan(law.error) if len(sizes) == 2 else law.error == pytest.approx(0, abs=1e-5)


def test_growth_is_tabulated_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that are planted: quadratic in the proposals, linear in the steps."""

    def planted(part: str, settings: BenchSettings) -> list[Timing]:
        cost = settings.proposals**2 if part == "attention" else float(settings.steps[0])
        return [Timing(part, f"{settings.steps[0]} steps", "batch", (cost, 2 * cost, 3 * cost))]

    monkeypatch.setattr(growth, "timings_of", planted)
    paths = growth.write_growth(["attention", "steps"], BenchSettings(), tmp_path / "bench")
    assert [path.name for path in paths] == ["growth.tsv", "growth.png", "growth.svg"]
    assert all(path.stat().st_size for path in paths)
    table = pd.read_csv(paths[0], sep="\t")
    assert table.groupby("part")["exponent"].unique().map(list).to_dict() == {"attention": [2.0], "steps": [1.0]}
    assert table.groupby("part")["what"].unique().map(list).to_dict() == {
        "attention": ["1 steps"],
        "steps": ["sampling steps"],
    }
    assert list(table["low_s"] * 3) == list(table["high_s"]) and table["size"].tolist()[:4] == [100, 200, 500, 1000]
