"""The kernels of RoIAlign: on a GPU where there is one, else as Triton interprets them; and that they compile."""

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


@pytest.mark.parametrize("channels", [1, 256])
@pytest.mark.parametrize("rows", ["fp32", "bf16", "fp16"])
def test_they_compile_for_a_gpu_without_one(rows: str, channels: int) -> None:
    """For a Hopper GPU, of compute capability 9.0; 1 channel is what pooling tries first."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from noisebox.models.diffusiondet import region_kernel

    sums = [f"*{rows}", "*i64", "*fp32", "*i64", "*fp32", f"*{rows}", "i32"]
    gradients = [f"*{rows}", "*i64", "*i64", "*fp32", "*fp32", f"*{rows}", "i32"]
    for kernel, types in ((region_kernel._sum_samples, sums), (region_kernel._sum_gradients, gradients)):
        constant = dict(zip(kernel.arg_names[len(types) :], (7, 4, 8, channels), strict=True))
        signature = dict(zip(kernel.arg_names, types, strict=False)) | dict.fromkeys(constant, "constexpr")
        made = compile(ASTSource(fn=kernel, signature=signature, constexprs=constant), target=GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"]
