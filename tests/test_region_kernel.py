"""The kernels of RoIAlign: on a GPU where there is one, else as Triton interprets them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).parent / "region_kernel_cases.py"


def test_every_case() -> None:
    """In a process of its own: Triton reads when it is imported whether it compiles or interprets."""
    pytest.importorskip("triton")
    ways = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", CASES], env=ways, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
