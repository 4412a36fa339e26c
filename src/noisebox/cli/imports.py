"""Verbs that take over what other frameworks left: import-logs."""

from pathlib import Path
from typing import Annotated

import typer

from noisebox.cli.app import app, say


@app.command(name="import-logs")
def import_logs(
    places: Annotated[list[Path], typer.Argument(help="Folders, or log.txt files.", show_default=False)],
    lineage: Annotated[str | None, typer.Option(help="Whose results these are.", show_default="the paths'")] = None,
    train_seed: Annotated[int | None, typer.Option(help="Its train seed.", min=0, show_default="the paths'")] = None,
    eval_seed: Annotated[int | None, typer.Option(help="Of the noise.", min=0, show_default="SEED")] = None,
    sample_step: Annotated[int | None, typer.Option(help="Sampling steps.", min=1, show_default="SAMPLE_STEP")] = None,
    dataset: Annotated[str | None, typer.Option(help="Of several that were evaluated, this one.")] = None,
) -> None:
    """Read Detectron2's logs of past experiments into tables.

    Writes imported/<lineage>/seed<k>/results.tsv, apart from evals/, with
    the log and line of each row. The report, which either engine then makes
    anew, has them under Past experiments; `noisebox table` shows such a
    lineage in a row with `imported: true`.

    Lineage and train seed are those of a path such as
    baseline+geofeat/seed0/model_final.pth or baseline_seed0, in
    MODEL.WEIGHTS, OUTPUT_DIR, or the log's own; options stand over all that
    logs say.
    """
    from noisebox.interop.import_logs import Told
    from noisebox.interop.import_logs import import_logs as run_import

    imported = run_import(places, Told(lineage, train_seed, eval_seed, sample_step, dataset))
    for note in imported.notes:
        say(f"note: {note}")
    for path, rows in imported.rows.items():
        say(f"{path}: {rows} row{'' if rows == 1 else 's'}")
