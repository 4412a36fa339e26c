"""Verbs of a budget search: search, adopt."""

from pathlib import Path
from typing import Annotated

import typer

from noisebox import graph
from noisebox.cli.app import app, logged, say
from noisebox.garbage import left_alone


@app.command()
def search(
    file: Annotated[Path, typer.Argument(help="A file of params/searches/.", show_default=False)],
    processes: Annotated[int, typer.Option(help="How many trials run at once.", min=1)] = 1,
    companion: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Run a budget search: many short trainings.

    Trials differ in a few keys. Writes reports/searches/<name>.csv. Killed
    and run again, it goes on where it stopped; run from several terminals,
    they share the trials.
    """
    from noisebox.config import load_experiment
    from noisebox.config.search import Search

    with logged("search", file.stem, *([f"companion{companion}"] if companion else [])):
        found = Search(file, load_experiment().scale)
        keys = found.keys()  # and with them every trial, so that a mistake is told now

        with left_alone(stays=True):
            from noisebox.search.processes import companions
            from noisebox.search.table import ProgressTable
            from noisebox.search.trials import run_search

        table = ProgressTable(keys)
        with companions(file, processes - 1):
            trials = run_search(found, table.told)
        table.finish(trials)
        say(graph.search_csv(found.name))


@app.command()
def adopt(
    file: Annotated[Path, typer.Argument(help="A file of params/searches/, searched.", show_default=False)],
    best: Annotated[int, typer.Option(help="How many of the best.", min=1)] = 1,
) -> None:
    """Make the best of a search recipes.

    They are params/recipes/<search>_best1.yaml and so on.
    """
    from noisebox.config import load_experiment
    from noisebox.search.adopt import adopt as run_adopt

    for line in run_adopt(file, best, load_experiment().scale):
        say(line)
