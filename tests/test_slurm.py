"""The graph on a Slurm cluster, where there is one: `snakemake --profile workflow/profiles/slurm`."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import edit_yaml, run
from made_graphs import results
from test_sharing import EXPERIMENT, one_lineage

RESULT = "runs/baseline/seed0/model_final.pth"
COMMAND = ("snakemake", "--profile", "workflow/profiles/slurm", "--slurm-init-seconds-before-status-checks", "3")


def answers() -> bool:
    return bool(shutil.which("sinfo")) and not subprocess.run(["sinfo"], capture_output=True, check=False).returncode


pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs noisebox[slurm]")
pytestmark = pytest.mark.skipif(not answers(), reason="needs Slurm: sinfo does not answer")


@contextmanager
def on_the_cluster(root: Path) -> Iterator["subprocess.Popen[str]"]:
    """Snakemake under way; whatever is left of it at the end is taken back."""
    with subprocess.Popen(
        [*COMMAND, RESULT], cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            for job in jobs(root):
                run(root, "scancel", job)


def jobs(root: Path) -> list[str]:
    """The jobs in the queue that work in a folder."""
    lines = run(root, "squeue", "--noheader", "--format=%i %Z").stdout.splitlines()
    return [number for number, folder in map(str.split, lines) if folder == str(root)]


def test_a_cancelled_training_goes_on_and_ends_at_the_same_bytes(project: Path, tmp_path: Path) -> None:
    edit_yaml(project / EXPERIMENT, **one_lineage())
    edit_yaml(project / "params/scales/test.yaml", solver__max_iter=120, solver__checkpoint_every=5)
    run(project, "snakemake", "--cores", "1", "runs/baseline/smoke.tsv")
    alone = shutil.copytree(project, tmp_path / "alone")
    run(alone, "snakemake", "--cores", "1", RESULT)

    state = project / "runs/baseline/seed0/work/last.pth"
    with on_the_cluster(project) as process:
        while process.poll() is None and not state.exists():
            time.sleep(0.1)
        (job,) = jobs(project)
        asked = run(project, "scontrol", "show", "job", job).stdout
        run(project, "scancel", job)
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "CPUs/Task=1" in asked and "mem=4000M" in asked and "TimeLimit=01:00:00" in asked
    assert "gpu" not in asked.partition("Comment=")[0], "none is asked for where the scale says gpu: 0"
    assert "is saved at iteration" in said and "Trying to restart job" in said
    assert "going on after iteration" in (project / "logs/train/baseline/seed0.log").read_text()
    assert results(project) == results(alone) != {}
