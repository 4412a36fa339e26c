"""Files of weights that others wrote, `.pth` of PyTorch and `.pkl` of Detectron2's model zoo, read without running any
code that they may hold."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy._core import multiarray, numeric
from torch import Tensor

from noisebox.errors import UserError


def _encode(text: str, encoding: str) -> bytes:
    """How the bytes of an array are written by protocol 2 of pickle."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


# What may be called while a file is read, by the names that numpy 1 and numpy 2 give it: arrays and their scalars.
_ARRAYS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": multiarray._reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": multiarray.scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": numeric._frombuffer for core in ("core", "_core")},  # type: ignore[attr-defined]
}
_IN_PICKLES = {**_ARRAYS, "_codecs.encode": _encode, "collections.OrderedDict": OrderedDict}
_DTYPES = [type(np.dtype(code)) for code in np.typecodes["All"]]


@dataclass(frozen=True)
class WeightFile:
    """`tensors` by their public names, and the `iteration` of the training that wrote them, 0 where it is not told."""

    path: Path
    tensors: dict[str, Tensor]
    iteration: int


class _ArraysOnly(pickle.Unpickler):
    """Reads plain containers and arrays; whatever else a pickle asks for is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _IN_PICKLES[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}") from None


def read_weights(path: Path, key: str | None = None) -> WeightFile:
    """Read the tensors of a file: those under `key`, by default `model` or, where the file has no such key, its own.

    A file that ends in `.pkl` is a pickle of arrays, any other one of PyTorch. Raises UserError when it is missing,
    damaged, holds more than arrays and plain values, or has no tensors there.
    """
    content = _content(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; weights are a mapping of names to tensors")
    if key is not None and key not in content:
        raise UserError(f"{path} has no key {key!r}; its keys are: {_names(content)}")
    found = content[key] if key is not None else content.get("model", content.get("blobs", content))
    tensors = {str(name): _tensor(value) for name, value in found.items()} if isinstance(found, dict) else {}
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items() if tensor is not None}
    if not named:
        where = f"under {key!r}" if key is not None else "under 'model', and none beside it"
        raise UserError(f"{path} has no tensors {where}; its keys are: {_names(content)}")
    iteration = content.get("iteration")
    return WeightFile(path, named, iteration if isinstance(iteration, int) and iteration > 0 else 0)


def _content(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _unpickled(file) if path.suffix == ".pkl" else _loaded(file)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the file of weights in it") from None
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:  # any bytes may stand in the file, and any error may come of them
        asked = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        if asked:
            raise UserError(
                f"{path} asks for {asked[1]}, which could run code: files of tensors, arrays and plain values are read"
            ) from None
        kind = "pickle of arrays" if path.suffix == ".pkl" else "file of PyTorch's"
        raise UserError(f"{path} is damaged, or is no {kind}; fetch it again") from None


def _unpickled(file: BinaryIO) -> Any:
    return _ArraysOnly(file, encoding="latin1").load()


def _loaded(file: BinaryIO) -> Any:
    """What torch reads; its archive's checksums, at which it does not look, are looked at."""
    if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
        raise EOFError
    file.seek(0)
    wanted: list[Any] = [*((call, name) for name, call in _ARRAYS.items()), *_DTYPES]
    known = torch.serialization.get_safe_globals()
    admitted = [each for each in wanted if each not in known]  # what others admitted before stays so after
    with torch.serialization.safe_globals(admitted):
        return torch.load(file, map_location="cpu", weights_only=True)


def _tensor(value: Any) -> Tensor | None:
    """A tensor or an array of numbers as a tensor; None where it is something else."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
        return torch.tensor(value.astype(value.dtype.newbyteorder("=")))
    return value if isinstance(value, Tensor) else None


def _names(content: dict[Any, Any]) -> str:
    few = [str(name) for name in content][:5]
    return ", ".join(few) + (", …" if len(content) > len(few) else "") if few else "none"
