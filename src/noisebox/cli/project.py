"""Verbs between the engines, git and the disk: code, sync, merge, record, prune."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from noisebox import graph
from noisebox.cli.app import app, say
from noisebox.errors import UserError


def project() -> Path:
    """The folder that these verbs are about, the current one; raises UserError when no project lies there."""
    if not Path(graph.EXPERIMENT).exists():
        raise UserError(f"there is no {graph.EXPERIMENT} here: run this in the folder that holds the project's params/")
    return Path()


@app.command()
def code() -> None:
    """Link the code behind each stage anew, for DVC.

    For after a change of the lists in graph.py: DVC knows the code behind a
    stage by the links in code/, which are in git.
    """
    from noisebox.linked_code import link_code

    for folder in link_code(project()) or ["nothing to link anew"]:
        say(folder)


@app.command()
def sync() -> None:
    """Tell Snakemake what DVC says is up to date.

    For after `dvc pull`, `dvc repro` and `dvc exp run`: Snakemake goes by
    time and by what it made itself.
    """
    from noisebox.engines import sync as run_sync

    for line in run_sync(project()):
        say(line)


@app.command()
def merge() -> None:
    """After a `git merge`: settle what the engines write.

    Settles dvc.lock, data.dvc and the report's files, and stages them for
    the commit. Stages of both sides stay, and nothing is made again that
    was made from what the merge holds. Conflicts in other files, such as
    params/experiment.yaml, come first and are yours.
    """
    from noisebox.merge import merge as run_merge

    for line in run_merge(project()):
        say(line)


@app.command()
def record(
    outputs: Annotated[list[str] | None, typer.Argument(help="Outputs just made.", show_default=False)] = None,
) -> None:
    """Tell DVC what Snakemake made; runs by itself.

    Without arguments it reads JSON: what was `made`, and what was found
    `current`.
    """
    from noisebox.engines import record as run_record

    root = project()
    told = {"made": outputs, "current": []} if outputs else _told_by_snakemake()
    for line in run_record(root, **told):
        say(line)


def _told_by_snakemake() -> dict[str, list[str]]:
    """What standard input says; raises UserError where that is not what the Snakefile writes."""
    try:
        told = {} if sys.stdin.isatty() else json.load(sys.stdin)
        return {key: [str(path) for path in told[key]] for key in ("made", "current")}
    except (ValueError, TypeError, KeyError):
        raise UserError(
            "noisebox record without outputs reads what Snakemake has to say, as JSON: run snakemake, which records by "
            "itself, or name the outputs"
        ) from None


@app.command()
def prune(yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Free the disk of last.pth and best.pth that DVC holds.

    Of finished runs, last.pth and best.pth (in the BEV line best_mIoU.pth)
    go, if their bytes are in DVC's cache or in a remote; so does what killed
    processes left, if no training can go on from it. All else stays,
    model_final.pth always.

    `dvc status` then calls these files deleted. That is no loss: `dvc
    checkout` brings them back (`dvc pull`, if only a remote has them), and
    `dvc repro` does so rather than train again. Snakemake does not miss
    them. DVC's cache keeps its copy; emptying that is for `dvc gc`.
    """
    from noisebox.prune import plan_of, remove, size_in_words

    plan = plan_of(project())
    for line in plan.kept:
        say(f"kept: {line}")
    for item in plan.items:
        say(f"{size_in_words(item.size):>9}  {item.path} ({item.why})")
    if not plan.items:
        say("nothing to prune")
    elif yes or typer.confirm(f"Delete these {len(plan.items)}, and free {size_in_words(plan.size)}?"):
        for line in remove(plan):
            say(line)
