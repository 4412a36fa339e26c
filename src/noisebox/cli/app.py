"""What all verbs share: the application that they are added to, common arguments, and how they speak and log."""

import fcntl
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from noisebox import graph
from noisebox.cli.launch import launched, speaks
from noisebox.errors import UserError
from noisebox.interrupt import Interrupted

if TYPE_CHECKING:
    from noisebox.config import RunConfig
    from noisebox.tasks import Task

TaskT = TypeVar("TaskT", bound="Task")

# What --help shows them under, and in which order: by what somebody wants.
PANELS = {
    "The graph's stages": ("data", "depth-gt", "smoke", "train", "evaluate", "search", "report"),
    "Look at results": ("predict", "show", "show-bev", "diagnose"),
    "Evidence": ("table", "verify", "freeze"),
    "Data and recipes": ("check", "overfit", "adopt"),
    "Other frameworks": ("import-checkpoint", "export-checkpoint", "import-logs", "export"),
    "Measure": ("bench",),
    "Engines, git and the disk": ("sync", "record", "merge", "code", "prune"),
}


class Verbs(TyperGroup):
    """The verbs, each in its panel."""

    def __init__(self, *, commands: dict[str, Any], **attributes: Any) -> None:
        shown = {}
        for panel, verbs in PANELS.items():
            for verb in verbs:
                shown[verb] = commands[verb]
                shown[verb].rich_help_panel = panel
        super().__init__(commands={**shown, **commands}, **attributes)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Noisebox: reproducible experiments for detectors that denoise, distil and refine.",
)
SHARED = ("train", "evaluate")  # verbs that several processes can share
Lineage = Annotated[str, typer.Argument(help="Recipes joined by '+', such as baseline+finetune.", show_default=False)]
Which = Annotated[
    str,
    typer.Argument(metavar="LINEAGE|CHECKPOINT", help="A lineage, or the path of a .pth file.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Train seed.", min=0)]


def not_empty(option: typer.CallbackParam, name: str | None) -> str | None:
    """A name that an option gives; an empty one, such as that of a shell variable not set, would pass for none."""
    if name == "":
        raise UserError(f"{option.opts[0]} '' names nothing; give a name, or leave the option out")
    return name


Scale = Annotated[
    str | None,
    typer.Option(help="A file of params/scales/, for one try.", show_default="the experiment's", callback=not_empty),
]
Dataset = Annotated[
    str | None,
    typer.Option(help="A file of params/datasets/, for one try.", show_default="the scale's", callback=not_empty),
]


@app.callback()
def _one_verb(context: typer.Context) -> None:
    verb = context.invoked_subcommand
    if launched() > 1 and verb not in SHARED:
        raise UserError(f"noisebox {verb} runs in one process; of all verbs, {' and '.join(SHARED)} share their work")


def checkpoint_of(lineage: str, seed: int, scale: str | None = None, dataset: str | None = None) -> Path:
    """The checkpoint of a run, or of a try at this scale and on this dataset, that must be there."""
    path = Path(graph.checkpoint(lineage, seed, scale, dataset))
    if not path.exists():
        from noisebox.config import load_recipe

        for recipe in graph.Lineage.parse(lineage).parts:
            load_recipe(recipe)  # or says that there is none
        raise UserError(f"{path} does not exist; make it with: {training_of(lineage, seed, scale, dataset)}")
    return path


def training_of(lineage: str, seed: int, scale: str | None, dataset: str | None) -> str:
    """The command that makes what `checkpoint_of` names."""
    given = {"--scale": scale, "--dataset": dataset}
    options = "".join(f" {option} {value}" for option, value in given.items() if value)
    return f"noisebox train {lineage} --seed {seed}{options}"


def is_file(which: str) -> bool:
    """Whether an argument LINEAGE|CHECKPOINT is the path of a checkpoint."""
    return which.endswith(".pth")


def checkpoint_named(which: str, seed: int) -> Path:
    """The checkpoint that an argument LINEAGE|CHECKPOINT names; that of a lineage must be there."""
    return Path(which) if is_file(which) else checkpoint_of(graph.Lineage.parse(which).name, seed)


def prepare_try(config: "RunConfig") -> None:
    """See that what a try is trained on is there, which the graph has already: its dataset is described, and there is
    depth ground truth of it where the loss asks for that."""
    from noisebox.data.catalog import prepare_for_try

    prepare_for_try(config.dataset, config.family)
    if graph.line_of(config.family) == "bev" and config.loss.depth_weight:
        from noisebox.data.depth_stage import prepare_depth_for_try

        if made := prepare_depth_for_try(config.dataset):
            say(made)


def with_auto_batch(task: TaskT, run: Path) -> TaskT:
    """The task of the training in the folder `run`, with the largest batch that fits where its size is auto."""
    from noisebox.config import AUTO

    if task.config.solver.batch_size != AUTO:
        return task

    from noisebox.training.batch_size import with_largest_batch

    found = with_largest_batch(task, run)
    say(f"batch_size auto: {found.config.solver.batch_size}")
    return found


def say(line: str) -> None:
    """One line to standard output, however many processes there are."""
    if speaks():
        typer.echo(line)


@contextmanager
def logged(verb: str, *subject: str) -> Iterator[None]:
    """Keep what a verb logs in `logs/<verb>/<subject>.log` as well, in place of what was there; a mistake or a bug ends
    up there too. Of several processes the first one logs. Where another one logs there, as one that is refused because
    the same run is in training, its lines stay, and those of this one come after them."""
    logger = logging.getLogger("noisebox")
    if not speaks():
        logger.setLevel(logging.CRITICAL)
        yield
        return
    logger.setLevel(logging.INFO)
    file, console = _log_file(Path(graph.log_file(verb, *subject))), logging.StreamHandler(sys.stderr)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(file)
    logger.addHandler(console)
    try:
        yield
    except (Exception, Interrupted) as error:
        told = isinstance(error, UserError | Interrupted)
        said, trace = (str(error), None) if told else ("a bug:", sys.exc_info())
        file.handle(logger.makeRecord("noisebox", logging.ERROR, "", 0, said, (), trace))
        raise
    finally:
        for handler in (file, console):
            logger.removeHandler(handler)
        console.flush()
        with suppress(OSError):
            file.close()


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, where logging would print a traceback for every line: it is on standard error
    as well. It is begun anew, unless another process writes it."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        with suppress(OSError):
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until it is closed
            stream.truncate(0)
        return stream

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _log_file(path: Path) -> logging.Handler:
    from noisebox.files import unwritable

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from None
