"""The verb that times: bench."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from noisebox.cli.app import app, say
from noisebox.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 1000  # characters: no table is wider


@app.command()
def bench(
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="Of train, protocol, steps, matcher, attention, distillation, crops, loader, depth, report, counting: "
            "--parts train protocol.",
            show_default="train protocol, or with --crops train crops",
        ),
    ] = None,
    depth: Annotated[str, typer.Option(help="Backbone: 18, 50 (ResNet), or any backbone name.")] = "18",
    freeze_at: Annotated[int, typer.Option(help="model.freeze_at; Detectron2's default is 2.", min=0, max=5)] = 0,
    hidden: Annotated[int, typer.Option(help="Channels of pyramid and head.", min=8)] = 256,
    dim_dynamic: Annotated[int, typer.Option(help="Channels of the dynamic convolution.", min=1)] = 64,
    heads: Annotated[int, typer.Option(help="Stages of the head.", min=1)] = 6,
    feedforward: Annotated[int, typer.Option(help="Width of the feed-forward layers.", min=1)] = 2048,
    proposals: Annotated[int, typer.Option(help="Boxes per image.", min=1)] = 100,
    classes: Annotated[int, typer.Option(help="Object classes.", min=1)] = 3,
    size: Annotated[tuple[int, int], typer.Option(help="Image height and width.")] = (128, 160),
    batch: Annotated[int, typer.Option(help="Images per training iteration.", min=1)] = 4,
    boxes: Annotated[int, typer.Option(help="Objects per image.", min=0)] = 6,
    steps: Annotated[
        int | None, typer.Option(help="Sampling step counts: --steps 1 5 20.", show_default="1 5 20")
    ] = None,
    crops: Annotated[
        int | None,
        typer.Option(help="Time YOLC, at so many crops an image: --crops 1 2 4.", show_default="DiffusionDet"),
    ] = None,
    crop_canvas: Annotated[float, typer.Option(help="Sides of a crop's canvas to the image's.", min=0.01, max=1)] = 1.0,
    seeds: Annotated[int, typer.Option(help="Eval seeds.", min=1)] = 5,
    images: Annotated[int, typer.Option(help="Images per evaluation pass.", min=1)] = 8,
    train_iters: Annotated[int, typer.Option(help="Training iterations timed.", min=1)] = 6,
    repeats: Annotated[int, typer.Option(help="How often all else is timed.", min=1)] = 3,
    items: Annotated[
        int | None,
        typer.Option(
            help="Images, frames, runs of loader, depth, report (a multiple of 10), counting.",
            min=1,
            show_default="each its own",
        ),
    ] = None,
    stored: Annotated[tuple[int, int], typer.Option(help="Height and width of the loader's files.")] = (480, 640),
    workers: Annotated[int, typer.Option(help="Processes of the loader, beside one alone.", min=1)] = 2,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")] = "cpu",
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the products.")] = "fp32",
    amp: Annotated[bool, typer.Option("--amp", help="The same as --precision bf16.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Through torch.compile, as solver.compile.")] = False,
    winograd: Annotated[bool, typer.Option("--winograd", help="Large convolutions as solver.winograd.")] = False,
    json: Annotated[Path | None, typer.Option(help="File for the numbers; - prints them, and no table.")] = None,
    growth: Annotated[bool, typer.Option("--growth", help="Time each part as one size grows.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what --growth writes.")] = Path("reports/bench"),
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two files of --json: nothing is timed.", show_default=False)
    ] = None,
) -> None:
    """Time training, sampling, data, counting and the report.

    Prints a table: medians after a warm-up, with the shortest and the longest run; images a second; and the share of
    the rate that a large matrix product reaches on the same machine in the same precision. On a GPU the peak memory is
    that of the part, on a CPU that of the process so far.

    With --growth, growth.tsv says what grows with what and how fast: the exponent k of cost ~ size^k, fitted over the
    sizes; growth.png and growth.svg draw it. With --compare, the ratios of what two results have in common.
    """
    if compare:
        from noisebox.bench.compare import compare as run_compare
        from noisebox.bench.compare import table as ratio_table

        ratios, differences = run_compare(*compare)
        _print(ratio_table(ratios, *compare))
        for line in differences or ["same settings, hardware and packages"]:
            say(line)
        return

    from noisebox.bench.settings import BenchSettings

    if more and not parts and steps is None and crops is None:
        raise UserError(
            f"noisebox bench: {more[0]!r} is one word too many; parts follow --parts, counts --steps, --crops"
        )
    if growth and json:
        raise UserError("--growth writes growth.tsv to --out, and no JSON: leave --json out")
    numbers = tuple(int(word) for word in more or [] if word.isdecimal())
    if numbers and steps is not None and crops is not None:
        raise UserError("--steps and --crops together take one number each: of more nobody can say whose they are")
    words = [parts, *(word for word in more or [] if not word.isdecimal())] if parts else more or []
    settings = BenchSettings(
        depth=depth, freeze_at=freeze_at, hidden=hidden, dim_dynamic=dim_dynamic, heads=heads, feedforward=feedforward,
        proposals=proposals, classes=classes, size=size, batch=batch, boxes=boxes, seeds=seeds, images=images,
        train_iters=train_iters, repeats=repeats, items=items, stored=stored, workers=workers,
        steps=(steps, *(numbers if crops is None else ())) if steps is not None else (1, 5, 20),
        crops=(crops, *numbers) if crops is not None else (), crop_canvas=crop_canvas,
        threads=threads, device=device, precision="bf16" if amp else precision, compile=compile,
        winograd=winograd,
    )  # fmt: skip
    if growth:
        from noisebox.bench.growth import write_growth

        for path in write_growth(parts and words, settings, out):
            say(str(path))
        return

    from noisebox.bench.run import bench as run_bench
    from noisebox.bench.run import table as bench_table

    result = run_bench(words if parts else ["train", "crops" if settings.crops else "protocol"], settings)
    if json != Path("-"):
        _print(bench_table(result))  # first, for the file may be none that can be written
    _hand_over(result, json)


def _print(table: "Table") -> None:
    """Print a table: where no terminal has a width, as wide as it is; on a narrow one no number is cut, lines wrap."""
    from rich.cells import cell_len
    from rich.console import Console

    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    console = Console(width=None if Console().is_terminal else WIDE)
    console.print(table, crop=False)


def _hand_over(result: dict[str, Any], path: Path | None) -> None:
    """Write numbers as JSON to a file, or print them where the file is `-`."""
    import json

    from noisebox.files import write_json

    if path == Path("-"):
        say(json.dumps(result, indent=1))
    elif path:
        write_json(path, result)
