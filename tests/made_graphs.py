"""What tests ask of a graph that an engine has made: the bytes of its results, and what would still run."""

from pathlib import Path

from conftest import run

NOTHING = "Nothing to be done"
UP_TO_DATE = "Data and pipelines are up to date."


def results(root: Path) -> dict[str, bytes]:
    """Every checkpoint and result TSV."""
    kept = [*root.glob("runs/*/seed*/*.pth"), *root.glob("evals/*/seed*/results.tsv"), *root.glob("runs/*/smoke.tsv")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in kept}


def planned(root: Path) -> list[str]:
    """The commands that Snakemake would run now."""
    done = run(root, "snakemake", "-n", "--printshellcmds")
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    commands = sorted({line.removeprefix("Shell command: ") for line in lines if "noisebox " in line})
    assert bool(commands) != (NOTHING in done.stdout + done.stderr)
    return commands


def reproduced(root: Path, *arguments: str) -> list[str]:
    """The stages that `dvc repro`, or `dvc exp run`, ran."""
    done = run(root, "dvc", *(arguments or ["repro"]))
    return sorted(line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage"))
