"""`noisebox train --profile`: a trace that the usual viewer opens, of as many steps as were asked for."""

import gzip
import json
from pathlib import Path

import pytest
from toy_detector import CLASSES, register, toy_batches, toy_config

from noisebox.training.profiling import COSTLIEST, WARM_UP, profile_training


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_are_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    register(monkeypatch.setitem)
    trace = tmp_path / "traces/toy/seed3.json.gz"
    table = profile_training(toy_config(), CLASSES, toy_batches(0, WARM_UP + steps), trace, steps)
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    spans = [event["name"] for event in events if event.get("ph") == "X"]
    assert spans.count("loader") == spans.count("step") == steps
    assert any("Optimizer.step" in name for name in spans) and any(name.startswith("aten::") for name in spans)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["seed3.json.gz"], "no run is touched"
    header, _, *rows = table.strip().splitlines()[1:]
    assert "Self CPU" in header and len([row for row in rows if "%" in row]) == COSTLIEST
