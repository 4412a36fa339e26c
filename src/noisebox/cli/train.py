"""Verbs that train one recipe or lineage: smoke, train, overfit."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from noisebox import graph
from noisebox.cli.app import (
    Dataset,
    Lineage,
    Scale,
    Seed,
    app,
    checkpoint_of,
    logged,
    prepare_try,
    say,
    with_auto_batch,
)
from noisebox.cli.detectron2 import OverridableCommand, train_config
from noisebox.cli.launch import Processes, in_turn, shared
from noisebox.errors import UserError
from noisebox.garbage import left_alone

if TYPE_CHECKING:
    from noisebox.config import RunConfig


@app.command()
def smoke(
    recipe: Annotated[str, typer.Argument(help="A file of params/recipes/.", show_default=False)],
    scale: Scale = None,
    dataset: Dataset = None,
) -> None:
    """Train a recipe for a few iterations and check it.

    With --scale or --dataset it is none of the graph's, and its table goes to tries/.
    """
    from noisebox.config import load_experiment, resolve, smoke_config
    from noisebox.tasks import open_task

    _one_recipe("smoke", recipe)
    elsewhere = graph.try_name(0, scale, dataset) if scale or dataset else None
    out = Path(graph.try_folder(recipe, elsewhere)) / "smoke.tsv" if elsewhere else Path(graph.smoke_tsv(recipe))
    with logged("smoke", recipe, *([elsewhere] if elsewhere else [])):
        named = {"dataset": dataset} if dataset else {}
        config = smoke_config(resolve(recipe, 0, scale or load_experiment().scale, smoke=True, overrides=named))
        if elsewhere:
            prepare_try(config)
        task = open_task(config)

        with left_alone(stays=True):
            from noisebox.training.smoke import smoke as run_smoke

        run_smoke(config, out, task.classes, task.batch(0))
        say(str(out))


@app.command(cls=OverridableCommand)
def train(
    lineage: Lineage = "",
    pairs: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    seed: Seed = 0,
    scale: Scale = None,
    dataset: Dataset = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    iters: Annotated[int | None, typer.Option(help="Iterations.", min=1)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images, in place of iterations.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Images an iteration, or auto: all that fit.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts that a batch is computed in.", min=1)] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Longest gradient; 0: any.", min=0)] = None,
    subset_size: Annotated[int | None, typer.Option(help="Train on so many images.", min=1)] = None,
    subset_seed: Annotated[int | None, typer.Option(help="Another seed draws others.", min=0)] = None,
    overfit: Annotated[bool | None, typer.Option("--overfit", help="Train and evaluate on the first ones.")] = None,
    resize_schedule: Annotated[str | None, typer.Option(help=r"[\[epoch, short edge], ...], from epoch 1.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="Through torch.compile.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of any key; repeatable.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint to start from.", show_default="the lineage's parent, or none")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="runs/..., with options tries/...")
    ] = None,
    if_changed: Annotated[
        Literal["refuse", "resume", "fresh"],
        typer.Option(help="What to do with an interrupted training of other settings, code or data."),
    ] = "refuse",
    profile: Annotated[bool, typer.Option("--profile", help="Trace a few steps instead; no run is touched.")] = False,
    profile_steps: Annotated[int, typer.Option(help="Steps to trace.", min=1)] = 5,
    processes: Processes = None,
    config_file: Annotated[
        Path | None, typer.Option(help="A YAML of Detectron2 in place of a lineage; then KEY VALUE pairs.")
    ] = None,
    eval_only: Annotated[bool, typer.Option("--eval-only", help="With it: evaluate MODEL.WEIGHTS.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="With it: go on in OUTPUT_DIR, settings changed or not.")] = (
        False
    ),
    num_gpus: Annotated[int, typer.Option(help="With it: processes, one a GPU.", min=0)] = 1,
) -> None:
    """Train a lineage, or go on with a killed training.

    Options stand over what params/ say. A training with any is none of the
    graph's, so it goes to tries/<lineage>/seed<k>/. With --scale or --dataset
    that is tries/<lineage>/<scale>-<dataset>-seed<k>/, of what is given, its
    parent and teacher are tries of the same scale and dataset, and the
    dataset is checked first if it was not yet. A try that learns from depth makes its ground truth
    first, in tries/depth_gt/<dataset>/, where the graph has none of it.

    A finished try of other options is replaced with --if-changed fresh only.
    A killed training is gone on with. Where something changed meanwhile that
    its result depends on, it is refused: --if-changed resume goes on with
    the new one, --if-changed fresh starts anew.

    With --profile, a few steps from fresh weights are traced into
    traces/<lineage>/seed<k>.json.gz, for ui.perfetto.dev, and the ten
    costliest operations are printed.

    With --config-file, a configuration of Detectron2 and its overrides say
    all, as in train_net.py; see docs/detectron2.md:

    \b
        noisebox train --config-file x.yaml SOLVER.MAX_ITER 500
    """
    from noisebox.config import RunConfig, load_experiment, overrides_of, resolve, teacher_of
    from noisebox.tasks import open_task

    named = {
        "precision": precision, "solver.max_iter": iters, "solver.epochs": epochs, "solver.batch_size": batch_size,
        "solver.accumulate": accumulate, "solver.clip_norm": clip_norm, "solver.subset_size": subset_size,
        "solver.subset_seed": subset_seed, "solver.overfit": overfit, "solver.compile": compile,
        "image.resize_schedule": resize_schedule,
    }  # fmt: skip
    typed = [f"{key}={value}" for key, value in named.items() if value is not None]
    overrides = overrides_of([*typed, *(settings or [])]) | ({"dataset": dataset} if dataset else {})
    words = [*([lineage] if lineage else []), *(pairs or [])]
    if config_file:
        if seed or scale or start or output_dir or profile or processes:
            raise UserError(
                "with --config-file, SEED, MODEL.WEIGHTS and OUTPUT_DIR say seed, start and folder and --num-gpus the "
                "processes; there is no scale, and nothing is profiled"
            )
        what_if = "resume" if resume else if_changed
        train_config(config_file, words, overrides, eval_only, num_gpus, what_if)
        return
    if len(words) != 1:
        more = f", and {words[1]!r} is one word too many" if words else ""
        raise UserError(f"noisebox train takes one lineage, such as baseline{more}; KEY VALUE go with --config-file")
    if eval_only or resume or num_gpus != 1:
        raise UserError("--eval-only, --resume and --num-gpus go with --config-file")

    which = graph.try_name(seed, scale, dataset)
    tried = bool(overrides or scale or start)
    folder = graph.try_folder(lineage, which) if tried else graph.run_folder(lineage, seed)
    run = output_dir or Path(folder)
    if tried and run.resolve().is_relative_to(Path(graph.RUNS).resolve()):
        raise UserError(
            f"{run} lies in {graph.RUNS}/, which holds what the graph trains: a training with options would pass for "
            "one without; name another --output-dir"
        )

    def resolved() -> RunConfig:
        return resolve(lineage, seed, scale or load_experiment().scale, overrides=overrides)

    def prepare(config: RunConfig) -> None:
        if tried:
            prepare_try(config)

    wanted, verb = 1 if profile else processes, "profile" if profile else "try" if tried else "train"
    with shared(wanted, scale, lambda: prepare(resolved())), logged(verb, lineage, which):
        config = resolved()
        if (tried or output_dir) and not profile:
            said = ", ".join(f"{key} {value}" for key, value in overrides.items())
            say(f"{lineage} {which} goes to {run}{', with ' if said else ''}{said}")
        parent = graph.Lineage.parse(lineage).parent
        if parent and start is None and not profile:
            start = checkpoint_of(parent.name, seed, scale, dataset)
        mentor = teacher_of(lineage, seed, place=partial(graph.checkpoint, scale=scale, dataset=dataset))
        teacher = Path(mentor) if mentor else None
        in_turn(lambda: prepare(config))
        task = with_auto_batch(in_turn(lambda: open_task(config)), run)
        if (tried or output_dir) and not profile:
            from noisebox.training.folder import keep_foreign, keep_others

            in_turn(lambda: keep_foreign(run) if if_changed == "fresh" else keep_others(run, task.config, start))

        if profile:
            from noisebox.training.profiling import WARM_UP, profile_training

            trace = Path(graph.trace_file(lineage, seed))
            stream = task.batches(0, WARM_UP + profile_steps)
            say(profile_training(task.config, task.classes, stream, trace, profile_steps, teacher))
            say(f"{trace}: open it in ui.perfetto.dev")
            return

        with left_alone(stays=True):
            from noisebox.training.loop import train_task

        of_graph = not (tried or output_dir)
        check = partial(_check_params, run, config, resolved) if of_graph else None
        train_task(task, run, parent=start, teacher=teacher, if_changed=if_changed, keep=of_graph, still_asked=check)
        say(str(run / "model_final.pth"))


@app.command()
def overfit(
    recipe: Annotated[str, typer.Argument(help="A file of params/recipes/.", show_default=False)],
    images: Annotated[int, typer.Option(help="How many to learn by heart.", min=1)] = 10,
    iters: Annotated[int, typer.Option(help="Iterations.", min=1)] = 400,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of any key; repeatable.")] = None,
) -> None:
    """See whether a recipe can learn a few images by heart.

    Trains on the first images without augmentation or shuffling, evaluates
    on the same, and says what to check where it did not learn them: then
    targets, losses or decoding are wrong, or it needs longer. Its run lies
    in tries/<recipe>/overfit/.

    Exit code 0: it knows them (AP50, or mIoU of a map, of at least 90);
    1: it does not; 2: a mistake.
    """
    from noisebox.config import load_experiment, overrides_of, resolve
    from noisebox.tasks import open_task

    _one_recipe("overfit", recipe)
    with logged("overfit", recipe):
        overrides = {"solver.overfit": True, "solver.subset_size": images, "solver.max_iter": iters}
        overrides |= overrides_of(settings or [])
        config = resolve(recipe, 0, load_experiment().scale, smoke=True, overrides=overrides)
        run = Path(graph.try_folder(recipe, "overfit"))
        task = with_auto_batch(open_task(config.model_copy(update={"distill": None})), run)

        from noisebox.training.overfit import advice
        from noisebox.training.overfit import overfit as run_overfit

        memory = run_overfit(task, run)
        reached = f"{memory.metric} {memory.value:.1f} on the {task.images} images shown"
        say(
            f"{recipe}: {reached}, {memory.enough:g} is enough" if memory.learnt else f"{recipe}: only {reached}; check"
        )
        for line in [] if memory.learnt else advice(memory, task):
            say(f"- {line}")
        say(str(run / "model_final.pth"))
    raise typer.Exit(0 if memory.learnt else 1)


def _one_recipe(verb: str, recipe: str) -> None:
    """Raises UserError where a lineage is named: these trainings start from scratch, whatever a recipe goes on from."""
    if "+" in recipe:
        raise UserError(f"noisebox {verb} takes one recipe, such as {recipe.rpartition('+')[2]}, not a lineage")


def _check_params(run: Path, config: "RunConfig", resolved: Callable[[], "RunConfig"]) -> None:
    """Raises UserError where params/ no longer say what was trained: newer than they are, it would pass for current."""
    from noisebox.training.provenance import HARMLESS, changes, difference

    before, now = ({"config": each.model_dump(mode="json")} for each in (config, resolved()))
    if set(changes(before, now)) - set(HARMLESS):
        raise UserError(
            f"{run} was trained to its end, but params/ say another thing by now: {difference(before, now)}; run again "
            "to train it so, or put that back before, to keep what was trained"
        )
