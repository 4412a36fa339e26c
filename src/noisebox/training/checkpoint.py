"""Checkpoints: one content, one sequence of bytes; written whole or not at all; read without running code.

A checkpoint is a dict. `model` holds the tensors by name, as Detectron2 writes them; `config`, `classes` and
`iteration` say how to build the model around them. `last.pth` holds more, see `training.loop`.
"""

import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.files import atomic_path, sha256, write_text
from noisebox.models import build_model


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors: taken from a checkpoint, left as initialised, and found in the checkpoint but not taken."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.loaded)} tensors loaded, {_some(self.new)} new, {_some(self.unused)} unused"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} ({shown})" if names else "0"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (dicts, lists, tuples, tensors, plain values) atomically, and `<name>.sha256` beside it.

    Equal content gives equal bytes, under any file name. Raises UserError when the place cannot be written.
    """
    content = _canonical(state)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer hides what the file said, such as that the disk is full
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    write_sha256(path)


def write_sha256(path: Path) -> None:
    """Write `<name>.sha256` in the form that `sha256sum --check` reads."""
    write_text(path.with_name(path.name + ".sha256"), f"{sha256(path)}  {path.name}\n")


def _canonical(value: Any) -> Any:
    """A copy whose pickle depends on the content alone.

    Pickle writes an object met twice as a reference, and torch writes a storage shared by two tensors once; both
    depend on how the content came to be. So containers are rebuilt with sorted keys, strings are interned, and every
    tensor gets a contiguous storage of its own on the CPU.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda item: (type(item[0]).__name__, item[0]))
        return {_canonical(key): _canonical(entry) for key, entry in ordered}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(_canonical(entry) for entry in value)
    if isinstance(value, str):
        return sys.intern(str(value))
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


class UnreadableError(UserError):
    """A checkpoint that is there and may be whole, but cannot be opened."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises UserError when it is missing, damaged or something else."""
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; train it first, or fetch it with dvc pull")
    try:
        with path.open("rb"):
            pass
    except OSError as error:  # of the file, not of what is in it
        raise UnreadableError(f"{path} cannot be read ({error.strerror})") from None
    try:
        # torch does not look at the checksums in its archive
        damaged = zipfile.ZipFile(path).testzip() if zipfile.is_zipfile(path) else None
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # any bytes may stand in the file, and any error may come of them
        state = None
    if not isinstance(state, dict):
        raise UserError(
            f"{path} is damaged or is no checkpoint of tensors and plain values; name one, or, where a stage made it, "
            "delete it and run again"
        )
    return state


def load_weights(model: nn.Module, state: dict[str, Any], source: Path | str) -> LoadReport:
    """Copy into `model` what `state["model"]` has of the same name and shape.

    Raises UserError when no parameter fits; `source` names the checkpoint in that message.
    """
    own, given = model.state_dict(), state.get("model")
    if not isinstance(given, dict):
        raise UserError(f"{source} has no key 'model' with the weights; a checkpoint of noisebox or Detectron2 fits")
    fitting = {
        name: tensor
        for name, tensor in given.items()
        if isinstance(tensor, Tensor) and name in own and own[name].shape == tensor.shape
    }
    if not any(name in fitting for name, _ in model.named_parameters()):
        raise UserError(f"no weight in {source} fits the model by name and shape; choose a parent of the same family")
    model.load_state_dict(fitting, strict=False)
    return LoadReport(
        loaded=tuple(name for name in own if name in fitting),
        new=tuple(name for name in own if name not in fitting),
        unused=tuple(sorted(given.keys() - fitting.keys())),
    )


def load_model(path: Path) -> tuple[Any, RunConfig, dict[str, Any]]:
    """The trained model (on the CPU, in eval mode), its configuration and the whole checkpoint.

    Raises UserError when the file is no checkpoint of noisebox, or the code no longer builds the model it was made by.
    """
    state = load_checkpoint(path)
    missing = {"model", "config", "classes", "iteration"} - state.keys()
    if missing:
        raise UserError(f"{path} was not written by noisebox: it has no {', '.join(sorted(missing))}")
    try:
        config = RunConfig(**state["config"])
        model = build_model(config, len(state["classes"]), fetch_weights=False)
        model.load_state_dict(state["model"])
    except (ValidationError, KeyError, TypeError, RuntimeError):
        raise UserError(f"{path} does not fit this version of the code; train it again") from None
    return model.eval(), config, state
