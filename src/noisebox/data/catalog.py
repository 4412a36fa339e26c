"""The datasets of `params/datasets/`: made or checked by `noisebox data`, described in a manifest, opened here.

There is one manifest for each line of research (graph.data_manifest). It says which dataset that is and hashes all of
its content. Whatever trains or evaluates opens its splits here, and is refused when the manifest speaks of something
else. A dataset that tries alone are made on has a manifest beside them (graph.try_manifest).
"""

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from noisebox import graph
from noisebox.config.section import check_section, which_exist
from noisebox.data.datasets import Dataset, EmbeddedDataset, Progress
from noisebox.errors import UserError
from noisebox.files import clear_unfinished, only_here, read_yaml, unreadable, write_json
from noisebox.progress import Progress as ShownProgress

MANIFEST_KEYS = {"dataset", "definition", "classes", "splits", "hash"}

# One line a kind: the module whose `DATASETS` has the schema of its files in params/datasets/.
KINDS = {
    "world": "noisebox.data.boxes",
    "world_aerial": "noisebox.data.boxes",
    "coco": "noisebox.data.boxes",
    "voc": "noisebox.data.boxes",
    "visdrone": "noisebox.data.boxes",
    "lvis": "noisebox.data.boxes",
    "objects365": "noisebox.data.boxes",
    "crowdhuman": "noisebox.data.boxes",
    "detectron2": "noisebox.data.boxes",
    "world_drive": "noisebox.data.bev",
    "nuscenes": "noisebox.data.bev",
}


def load_dataset(name: str, root: Path = Path()) -> Dataset:
    """Read and check `params/datasets/<name>.yaml`; UserError names file, key and what fits."""
    path = root / graph.dataset_file(name)
    if Path(name).name != name:
        raise UserError(f"dataset {name!r} is no name; it must be that of a file in {path.parent}, without .yaml")
    if not path.exists():
        raise UserError(f"dataset {name!r} is missing: {path} does not exist; {which_exist(path)}")
    content = read_yaml(path)
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        fault = f"kind {kind!r} is unknown" if "kind" in content else "key 'kind' is missing"
        raise UserError(f"{path}: {fault}; it must be one of: {', '.join(KINDS)}")
    schema: type[Dataset] = import_module(KINDS[kind]).DATASETS[kind]
    return check_section(schema, content, path)


def prepare_dataset(
    name: str, root: Path = Path(), progress: Progress | None = None, manifest_file: str = graph.DATA_MANIFEST
) -> dict[str, Any]:
    """What `noisebox data` does: make the dataset if it is embedded, check all of it, and write the manifest.

    Every image is read and decoded once. An embedded dataset that the manifest already describes is left as it lies.
    `progress(done, total)` counts images, first those written, then those checked. Returns the manifest; raises
    UserError at the first fault, before the manifest is written.
    """
    definition = load_dataset(name, root)
    path = root / manifest_file
    with only_here(path.with_suffix(".lock"), f"{path} is being made"):
        clear_unfinished(path.parent, path.name, name)  # another line's dataset may be in the making beside it
        manifest = None
        if isinstance(definition, EmbeddedDataset):
            manifest = _unchanged(name, definition, root, progress, manifest_file)
            if manifest is None:
                definition.write(name, root, progress)
        manifest = manifest or _described(name, definition, root, progress)
        write_json(path, manifest)
    return manifest


def read_manifest(root: Path = Path(), manifest_file: str = graph.DATA_MANIFEST) -> dict[str, Any]:
    """A manifest; raises UserError when `noisebox data` has not written it yet."""
    path = root / manifest_file
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `noisebox data` first") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or set(manifest) != MANIFEST_KEYS:
        raise UserError(f"{path} is not what `noisebox data` writes; run it again")
    return manifest


def open_split(name: str, split: str, root: Path = Path(), manifest_file: str = graph.DATA_MANIFEST) -> Any:
    """A split of the dataset that the manifest describes, "train" or "val": a CocoSplit or a BevSplit.

    An embedded dataset whose folder is gone is made again. Raises UserError when the manifest speaks of another dataset
    or definition, when the annotations have changed since, or when the dataset made again is not the one described.
    """
    definition, manifest = load_dataset(name, root), read_manifest(root, manifest_file)
    path = root / manifest_file
    if manifest["dataset"] != name:
        raise UserError(
            f"{path} describes dataset {manifest.get('dataset')!r}, not {name!r}; run `noisebox data` first"
        )
    if manifest["definition"] != definition.model_dump(mode="json"):
        raise UserError(f"{root / graph.dataset_file(name)} has changed since {path}; run `noisebox data` first")
    if isinstance(definition, EmbeddedDataset) and not definition.is_complete(root / graph.dataset_folder(name)):
        definition.write(name, root, None)
        if _described(name, definition, root, None) != manifest:
            raise UserError(
                f"{root / graph.dataset_folder(name)} was missing, and made again it is not what {path} describes "
                "(another platform or version draws other bytes); run `noisebox data` to go on with the new images"
            )
    opened = definition.open(name, split, root)
    if complaint := definition.changed(opened, manifest["splits"][split]):
        of_tries = manifest_file == graph.try_manifest(name)
        raise UserError(f"{complaint}; run `noisebox data{f' --dataset {name}' if of_tries else ''}` first")
    return opened


def manifest_of(name: str, line: str, root: Path = Path()) -> str:
    """The manifest that describes a dataset: its line's; or where that speaks of another, the one that tries made."""
    of_line, of_tries = graph.data_manifest(line), graph.try_manifest(name)
    return of_tries if not _describes(of_line, name, root) and (root / of_tries).exists() else of_line


def prepare_for_try(name: str, family: str, root: Path = Path()) -> None:
    """See that a dataset is described, as it is defined now; where it is not, do as `noisebox data` does, and show how
    that goes, but leave the manifest of its line to the graph.

    Raises UserError where it is none that a family's line can train on.
    """
    line = graph.line_of(family)
    lines = load_dataset(name, root).lines
    if line not in lines:
        raise UserError(
            f"dataset {name!r} is one of line {' and '.join(lines)}, and nothing of line {line} can be trained on it"
        )
    if not _describes(manifest_of(name, line, root), name, root):
        with ShownProgress(f"data {name}") as shown:
            prepare_dataset(name, root, shown.at, graph.try_manifest(name))


def _describes(manifest_file: str, name: str, root: Path) -> bool:
    definition = load_dataset(name, root).model_dump(mode="json")
    try:
        manifest = read_manifest(root, manifest_file)
    except UserError:
        return False
    return (manifest["dataset"], manifest["definition"]) == (name, definition)


def pinned_hash_differs(name: str, root: Path = Path()) -> str | None:
    """A warning when data.dvc pins this dataset's folder and the folder holds other bytes; None otherwise."""
    pin, folder = root / graph.DATA_PIN, graph.dataset_folder(name)
    if not pin.exists():
        return None
    for out in read_yaml(pin).get("outs") or []:
        pinned = out.get("md5")
        if out.get("path") == folder and pinned and pinned != dvc_directory_hash(root / folder):
            return (
                f"{folder} differs from what {graph.DATA_PIN} pins (another platform or definition draws other bytes); "
                "results will differ from the published ones, and `dvc checkout` or `dvc pull` brings the pinned data"
            )
    return None


def dvc_directory_hash(folder: Path) -> str:
    """The hash that DVC 3 gives a folder: the MD5 of the listing of its files' MD5s by path, and `.dir`."""
    listing = [
        {"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unchanged(
    name: str, definition: Dataset, root: Path, progress: Progress | None, manifest_file: str
) -> dict[str, Any] | None:
    """The manifest, if it is there and the folder holds exactly what it describes."""
    try:
        manifest = read_manifest(root, manifest_file)
        if (manifest["dataset"], manifest["definition"]) != (name, definition.model_dump(mode="json")):
            return None
        return manifest if _described(name, definition, root, progress) == manifest else None
    except UserError:
        return None


def _described(name: str, definition: Dataset, root: Path, progress: Progress | None) -> dict[str, Any]:
    """Check a dataset whole, and put into the manifest what it holds.

    `hash` names the content alone, so that the same data under another name or in another place has the same.
    """
    content = definition.describe(name, root, progress)
    return {
        "dataset": name,
        "definition": definition.model_dump(mode="json"),
        **content,
        "hash": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    }
