"""`noisebox bench --crops`: the crops that are timed are there, and what is asked for in vain is told."""

import json

import pytest
import torch
from small_yolc import make_yolc
from typer.testing import CliRunner

from noisebox.bench.crops import crowded
from noisebox.cli import app
from noisebox.errors import UserError
from noisebox.models.yolc.lsm import crowded_regions

SMALL = ["--depth", "slim", "--hidden", "8", "--classes", "2", "--size", "96", "128", "--boxes", "2", "--batch", "1"]
SMALL += ["--images", "2", "--train-iters", "1", "--threads", "1"]


@pytest.mark.parametrize("crops", range(7))
def test_as_many_crops_are_planted_as_are_timed(crops):
    heatmap = crowded(crops, (2, 3, 320, 512)).sigmoid()
    sizes = torch.tensor([[320, 512]] * 2)
    found = crowded_regions(heatmap, sizes, make_yolc().config.cluster_threshold, max(crops, 1), 64)
    assert [len(regions) for regions in found] == [crops, crops]


def test_the_command_times_each_number_of_crops():
    done = CliRunner().invoke(app, ["bench", "--crops", "1", "3", *SMALL, "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    train, *looks, more = found["timings"]
    assert train["what"] == "yolc" and [row["what"] for row in looks] == ["0 crops", "1 crop", "3 crops"]
    assert min(row["low_s"] for row in looks) > 0 and (more["what"], more["unit"]) == ("each crop more", "crop")
    assert more["median_s"] == pytest.approx((looks[2]["median_s"] - looks[0]["median_s"]) / 3)
    assert found["settings"]["crops"] == [1, 3]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--crops", "7", *SMALL], "--crops must be whole numbers from 1 to 6"),
        (["--crops", "2", *SMALL, "--size", "64", "64"], "--crops 2: an image of 64 × 64 gives 0"),
    ],
)
def test_what_cannot_be_timed_is_told(words, sentence):
    done = CliRunner().invoke(app, ["bench", *words])
    assert isinstance(done.exception, UserError) and sentence in str(done.exception)
