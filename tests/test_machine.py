"""What is said of a machine before it computes: that it has no GPU, and where bf16 costs time instead of saving it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_detector import toy_config
from typer.testing import CliRunner

from noisebox import machine
from noisebox.bench import timing
from noisebox.cli import app
from noisebox.errors import UserError


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    machine.warn_of_bf16.cache_clear()
    yield
    machine.warn_of_bf16.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("times", [0.5, 1.5, 80.0])
def test_bf16_is_warned_of_where_the_processor_has_none(
    precision: str, times: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "bf16_slowdown", lambda: times)
    for _ in range(2):  # as for each trial of a search
        machine.check_device(toy_config(precision=precision))
    if precision == "bf16" and times == 80.0:
        assert caplog.text.count("takes 80 times as long for a matrix product as in fp32") == 1
    else:
        assert not caplog.records


def test_a_gpu_that_is_not_there_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device cuda, but torch sees no GPU"):
        machine.check_device(toy_config().model_copy(update={"device": "cuda"}))


def test_comparing_precisions_leaves_the_threads_as_they_are() -> None:
    torch.set_num_threads(2)
    assert machine.bf16_slowdown() > 0
    assert torch.get_num_threads() == 2


def test_bench_warns_of_bf16_as_a_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, however many models its parts make ready."""
    monkeypatch.setattr(machine, "bf16_slowdown", lambda: 80.0)
    result = tmp_path / "result.json"
    tiny = ["--depth", "slim", "--hidden", "8", "--heads", "1", "--proposals", "4", "--size", "64", "64"]
    parts = ["--parts", "protocol", "steps", "--seeds", "1", "--steps", "1", "--images", "1", "--repeats", "1"]
    done = CliRunner().invoke(app, ["bench", *parts, *tiny, "--amp", "--json", str(result)])
    assert done.exit_code == 0, done.output
    assert caplog.text.count("precision bf16: this processor takes 80 times as long") == 1
    assert json.loads(result.read_text())["settings"]["precision"] == "bf16"


@pytest.mark.parametrize(("flop_per_s", "side"), [(1e12, 2048), (1e9, 512), (1e6, 256)])
def test_the_rate_is_of_a_product_that_ends(flop_per_s: float, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of the sides whose half takes less than a tenth of a second, and the rate that the clock shows."""
    sides = []
    randn = torch.randn

    def drawn(*shape: int, generator: torch.Generator) -> torch.Tensor:
        sides.append(shape[0])
        return randn(2, 2, generator=generator)

    monkeypatch.setattr(torch, "randn", drawn)
    monkeypatch.setattr(timing, "clocked", lambda device, work: 2 * sides[-1] ** 3 / flop_per_s)
    assert timing.matrix_rate.__wrapped__("cpu", "bf16") == pytest.approx(flop_per_s)
    assert sides[-1] == side
