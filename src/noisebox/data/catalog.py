"""The datasets of `params/datasets/`: made or checked by `noisebox data`, described in data/manifest.json, opened here.

The manifest says which dataset `data/` stands for and hashes all of its content. Whatever trains or evaluates opens its
splits here, and is refused when the manifest speaks of something else.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from noisebox import graph
from noisebox.config import Count, Positive, Section, check_section, which_exist
from noisebox.data.coco import CocoSplit, ImageRecord, decode_image, read_bytes, read_split
from noisebox.errors import UserError
from noisebox.files import clear_unfinished, read_yaml, sha256, write_json

SPLITS = ("train", "val")
MANIFEST_KEYS = {"dataset", "definition", "classes", "splits", "hash"}
READERS = 8  # threads that read and decode images; reading waits on the disk, decoding releases Python's lock

Progress = Callable[[int, int], None]


class WorldDataset(Section):
    """The embedded street world: image k of a split is the same however many there are."""

    kind: Literal["world"]
    seed: Count = 0
    image_size: tuple[Positive, Positive]
    train: Positive
    val: Positive


class CocoFiles(Section):
    """One split of a user's data; paths count from the repository's root, `~` and `$NAME` are expanded."""

    images: str
    annotations: str


class CocoDataset(Section):
    """A user's own data in COCO form; `classes` selects and orders the categories, by default all by rising id."""

    kind: Literal["coco"]
    train: CocoFiles
    val: CocoFiles
    classes: Annotated[list[str], Field(min_length=1)] | None = None

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: list[str] | None) -> list[str] | None:
        for name in classes or ():
            if classes is not None and classes.count(name) > 1:
                raise ValueError(f"{name!r} is listed twice")
        return classes


# One line a kind: the schema of its files in params/datasets/.
KINDS: dict[str, type[WorldDataset] | type[CocoDataset]] = {"world": WorldDataset, "coco": CocoDataset}


def load_dataset(name: str, root: Path = Path()) -> WorldDataset | CocoDataset:
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
    return check_section(KINDS[kind], content, path)


def prepare_dataset(name: str, root: Path = Path(), progress: Progress | None = None) -> dict[str, Any]:
    """What `noisebox data` does: make the dataset if it is embedded, check all of it, and write the manifest.

    Every image is read and decoded once. An embedded dataset that the manifest already describes is left as it lies.
    `progress(done, total)` counts images, first those written, then those checked. Returns the manifest; raises
    UserError at the first fault, before the manifest is written.
    """
    definition = load_dataset(name, root)
    clear_unfinished((root / graph.DATA_MANIFEST).parent)
    manifest = None
    if isinstance(definition, WorldDataset):
        manifest = _unchanged(name, definition, root, progress)
        if manifest is None:
            _write_world(name, definition, root, progress)
    manifest = manifest or _describe(name, definition, root, progress)
    write_json(root / graph.DATA_MANIFEST, manifest)
    return manifest


def read_manifest(root: Path = Path()) -> dict[str, Any]:
    """data/manifest.json; raises UserError when `noisebox data` has not written it yet."""
    path = root / graph.DATA_MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `noisebox data` first") from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or set(manifest) != MANIFEST_KEYS:
        raise UserError(f"{path} is not what `noisebox data` writes; run it again")
    return manifest


def open_split(name: str, split: str, root: Path = Path()) -> CocoSplit:
    """A split of the dataset that the manifest describes, "train" or "val".

    An embedded dataset whose folder is gone is made again. Raises UserError when the manifest speaks of another dataset
    or definition, when the annotations have changed since, or when the dataset made again is not the one described.
    """
    definition, manifest = load_dataset(name, root), read_manifest(root)
    path = root / graph.DATA_MANIFEST
    if manifest["dataset"] != name:
        raise UserError(
            f"{path} describes dataset {manifest.get('dataset')!r}, not {name!r}; run `noisebox data` first"
        )
    if manifest["definition"] != definition.model_dump(mode="json"):
        raise UserError(f"{root / graph.dataset_file(name)} has changed since {path}; run `noisebox data` first")
    if isinstance(definition, WorldDataset) and not _is_complete(name, root):
        _write_world(name, definition, root, None)
        if _describe(name, definition, root, None) != manifest:
            raise UserError(
                f"{root / graph.dataset_folder(name)} was missing, and made again it is not what {path} describes "
                "(another platform or version draws other bytes); run `noisebox data` to go on with the new images"
            )
    opened = _read(name, definition, split, root)
    if sha256(opened.annotation_file) != manifest["splits"][split]["annotations_sha256"]:
        raise UserError(f"{opened.annotation_file} has changed since {path}; run `noisebox data` first")
    return opened


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


def _read(name: str, definition: WorldDataset | CocoDataset, split: str, root: Path) -> CocoSplit:
    if isinstance(definition, WorldDataset):
        folder = root / graph.dataset_folder(name)
        images, annotations = folder / "images" / split, folder / "annotations" / f"{split}.json"
        return read_split(f"{name}/{split}", annotations, images)
    files: CocoFiles = getattr(definition, split)
    images, annotations = _expanded(files.images, root), _expanded(files.annotations, root)
    for key, path, exists in (("images", images, images.is_dir()), ("annotations", annotations, annotations.is_file())):
        if not exists:
            wanted = "folder" if key == "images" else "file"
            raise UserError(f"{root / graph.dataset_file(name)}: {split}.{key}: there is no {wanted} {path}")
    return read_split(f"{name}/{split}", annotations, images, definition.classes)


def _expanded(path: str, root: Path) -> Path:
    return root / Path(os.path.expandvars(path)).expanduser()


def _is_complete(name: str, root: Path) -> bool:
    """Whether the folder of an embedded dataset is there; it appears whole or not at all."""
    return all((root / graph.dataset_folder(name) / "annotations" / f"{split}.json").is_file() for split in SPLITS)


def _write_world(name: str, definition: WorldDataset, root: Path, progress: Progress | None) -> None:
    """Take away what lies in the world's place, draw it beside, and move it there.

    Where another process was faster, its folder stays.
    """
    from noisebox.data.world import write_world

    folder = root / graph.dataset_folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        if os.path.lexists(folder):
            folder.rename(staging / "stale")
        counts = {split: getattr(definition, split) for split in SPLITS}
        write_world(staging / name, definition.seed, counts, definition.image_size, progress)
        try:
            (staging / name).replace(folder)
        except OSError:
            if not _is_complete(name, root):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unchanged(name: str, definition: WorldDataset, root: Path, progress: Progress | None) -> dict[str, Any] | None:
    """The manifest, if it is there and the folder holds exactly what it describes."""
    try:
        manifest = read_manifest(root)
        if (manifest["dataset"], manifest["definition"]) != (name, definition.model_dump(mode="json")):
            return None
        return manifest if _describe(name, definition, root, progress) == manifest else None
    except UserError:
        return None


def _describe(
    name: str, definition: WorldDataset | CocoDataset, root: Path, progress: Progress | None
) -> dict[str, Any]:
    """Check a dataset whole, every image decoded, and put into the manifest what it holds.

    `hash` names the content alone, so that the same data under another name or in another place has the same.
    """
    train, val = (_read(name, definition, split, root) for split in SPLITS)
    if train.classes != val.classes:
        raise UserError(
            f"{val.annotation_file} declares the classes {', '.join(val.classes)}, but {train.annotation_file} "
            f"{', '.join(train.classes)}; list the ones to use under 'classes' in {root / graph.dataset_file(name)}"
        )
    digests = _image_digests([*train.images, *val.images], progress)
    splits = {key: _describe_split(split, digests) for key, split in zip(SPLITS, (train, val), strict=True)}
    content = {"classes": list(train.classes), "splits": splits}
    return {
        "dataset": name,
        "definition": definition.model_dump(mode="json"),
        **content,
        "hash": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    }


def _describe_split(split: CocoSplit, digests: Iterator[str]) -> dict[str, Any]:
    """What the manifest says of a split; takes its images' digests off the iterator."""
    annotations = sha256(split.annotation_file)
    content = hashlib.sha256(annotations.encode())
    for record in split.images:
        content.update(f"\n{next(digests)} {record.file_name}".encode())
    return {
        "images": len(split.images),
        "objects": split.objects_per_class(),
        "annotations_sha256": annotations,
        "sha256": content.hexdigest(),
    }


def _image_digests(records: list[ImageRecord], progress: Progress | None) -> Iterator[str]:
    """The SHA-256 of each image file, in order; raises UserError at the first that does not decode."""
    with ThreadPoolExecutor(READERS) as pool:
        for done, digest in enumerate(pool.map(_checked_digest, records), start=1):
            if progress:
                progress(done, len(records))
            yield digest


def _checked_digest(record: ImageRecord) -> str:
    content = read_bytes(record)
    decode_image(content, record)
    return hashlib.sha256(content).hexdigest()
