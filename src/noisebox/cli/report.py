"""Verbs that write and check evidence: report, table, verify, freeze."""

from pathlib import Path
from typing import Annotated

import typer

from noisebox.cli.app import app, logged, say
from noisebox.errors import UserError
from noisebox.garbage import left_alone


@app.command()
def report(
    search: Annotated[
        str | None, typer.Option(help="Write reports/searches/<name>.md instead.", show_default=False)
    ] = None,
) -> None:
    """Write reports/summary.md with tables, plots and pictures."""
    if search is not None:
        _report_search(search)
        return

    # Nearly all that a report makes lives to its end: looking for garbage among it costs a sixth of the time.
    with left_alone():
        from noisebox.config import load_experiment
        from noisebox.report.summary import write_report

        with logged("report"):
            for path in write_report(load_experiment(), Path()):
                say(str(path))


def _report_search(name: str) -> None:
    """The page of a budget search."""
    from noisebox.report.searches import write_search_report

    with logged("report", name):
        for path in write_search_report(name, Path()):
            say(str(path))


@app.command()
def table(
    spec: Annotated[Path, typer.Argument(help="A YAML or JSON file with columns and rows.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for the .md, .tsv and .tex.", show_default=False)] = None,
) -> None:
    """Make a results table from a file that describes it.

    Prints Markdown; with --out it writes Markdown, TSV and LaTeX, named like
    the file. Such a file:

    \b
        caption: Street world
        columns: [AP, AP_std, AP-car, FPS, steps]
        rows:
          - {lineage: baseline, sample_step: 5, name: ours}
          - lineage: baseline+qhead
            guidance: {scale: 0.1, mode: all}
            train_seeds: [0, 1]     # by default the experiment's
            eval_seeds: [0, 1]      # by default all that there are
          - {lineage: yolc, crops: true, name: YOLC with crops}
          - {lineage: baseline, imported: true}     # by noisebox import-logs
          - name: theirs
            source: Chen et al. 2023, table 1
            values: {AP: "46.80", steps: 1}

    Columns: steps, s_per_img, FPS, AP, AP50, AP75, APs, APm, APl, AP-<class>;
    of AP also _std, _low and _high: over train seeds, the population standard
    deviation and the ends of the 95 % interval. What is missing is a dash,
    and the reason stands below the table. Rows are of lineages that detect;
    those of BEV have their own tables in reports/tables/.
    """
    from noisebox.config import load_experiment
    from noisebox.report.spec import FORMS, as_markdown, make_table, write_table

    made = make_table(spec, load_experiment)
    if out is None:
        say(as_markdown(made).rstrip())
    elif (out / spec.name).exists() and spec.samefile(out / spec.name) and spec.suffix in FORMS:
        raise UserError(f"{spec} would be overwritten by the table: choose another --out")
    else:
        for path in write_table(made, out, spec.stem):
            say(str(path))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The repository, or a deliverable.")] = Path(),
    rows: Annotated[
        int | None,
        typer.Option(help="Rows of results to evaluate again.", min=0, show_default="3, if the data is here"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other rows.", min=0)] = 0,
) -> None:
    """Check every file of the manifest, and results anew.

    Every file that is here is held to its sha256 in results_manifest.tsv,
    that of reports/ or of a deliverable, where none may be missing. Some
    rows of results.tsv, and those that differ from them in the eval seed
    alone, are evaluated again from their checkpoints and must come out to
    the printed digits. Where the dataset is not here, that is said and left
    out, unless --rows asks for it.

    Exit code 0: nothing differs; 1: something does, each told in a line;
    2: a mistake, or it could not be checked.
    """
    from noisebox.progress import Progress
    from noisebox.report.manifest import check

    with Progress(f"verify {folder}") as progress:
        checked = check(folder, progress.at)
    said, mismatches = checked.said, checked.mismatches
    if rows != 0:
        from noisebox.evaluation.verify import ROWS, evaluate_again

        again = evaluate_again(folder, checked.sound, ROWS if rows is None else rows, seed)
        mismatches = [*mismatches, *again.mismatches]
        if again.left_out and rows is not None and not mismatches:
            raise UserError(again.left_out[0])
        said = [*said, f"{again.rows} rows of results evaluated again"]
        said += [f"not evaluated again: {reason}" for reason in again.left_out]
    for line in [*said, *mismatches]:
        say(line)
    raise typer.Exit(1 if mismatches else 0)


@app.command()
def freeze(
    name: Annotated[str, typer.Argument(help="Of the folder below deliverables/.", show_default=False)],
    lineages: Annotated[str, typer.Option(help="What to deliver: --lineages baseline baseline+geofeat.")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Copy lineages into a deliverable that stands alone.

    Checkpoints, results, resolved configurations and the description of the
    dataset go to deliverables/<name>/, with a manifest of their own and a
    README.md: how to check them, evaluate them again, share them with DVC.
    """
    from noisebox.report.freeze import freeze as run_freeze

    folder = run_freeze(name, list(dict.fromkeys([lineages, *(more or [])])))
    say(f"{folder}; check it with: noisebox verify {folder}")
