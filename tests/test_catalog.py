"""Datasets by name: definitions, what `noisebox data` makes and records, and when opening is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from coco_files import content, write
from nuscenes_root import VERSION, write_root
from PIL import Image

from noisebox import graph
from noisebox.data import catalog
from noisebox.data.catalog import (
    dvc_directory_hash,
    load_dataset,
    open_split,
    pinned_hash_differs,
    prepare_dataset,
    read_manifest,
)
from noisebox.data.nuscenes import read_nuscenes
from noisebox.errors import UserError

WORLD = {"kind": "world", "seed": 3, "image_size": [32, 40], "train": 3, "val": 2}


def define(root: Path, name: str, definition: dict[str, Any]) -> None:
    path = root / graph.dataset_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(definition))


def signs(root: Path, **more: Any) -> None:
    """A user's dataset `signs`, in a folder beside the repository's root."""
    paths = {split: write(root.parent / "signs", split, content()) for split in ("train", "val")}
    files = {split: {"images": str(images), "annotations": str(file)} for split, (file, images) in paths.items()}
    define(root, "signs", {"kind": "coco", **files, **more})


@pytest.fixture(scope="module")
def world_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    define(root, "tiny", WORLD)
    prepare_dataset("tiny", root)
    return root


@pytest.fixture
def world(world_once: Path, tmp_path: Path) -> Path:
    """A root whose embedded dataset `tiny` is made."""
    return Path(shutil.copytree(world_once, tmp_path / "root"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_the_repository_defines_its_datasets() -> None:
    repository = Path(__file__).parent.parent
    names = sorted(path.stem for path in (repository / "params/datasets").glob("*.yaml"))
    assert {"world_test", "world_demo"} <= set(names)
    for name in names:
        load_dataset(name, repository)


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({}, "key 'kind' is missing; it must be one of: world, world_aerial, coco, voc, visdrone"),
        ({"kind": "yolo"}, "kind 'yolo' is unknown"),
        ({"kind": ["coco"]}, "kind ['coco'] is unknown"),
        ({**WORLD, "trian": 3}, "key 'trian' does not exist; did you mean 'train'?"),
        ({**WORLD, "val": 0}, "val: input should be greater than or equal to 1"),
        ({**WORLD, "image_size": [32]}, "image_size"),
        ({"kind": "coco", "train": {"images": "a", "annotations": "b"}}, "key 'val' is missing"),
    ],
)
def test_a_wrong_definition_names_file_and_key(root: Path, definition: dict[str, Any], said: str) -> None:
    define(root, "signs", definition)
    with pytest.raises(UserError) as told:
        load_dataset("signs", root)
    assert str(root / "params/datasets/signs.yaml") in str(told.value) and said in str(told.value)


def test_an_unknown_dataset_names_the_nearest(root: Path) -> None:
    define(root, "signs", WORLD)
    with pytest.raises(UserError, match=r"'sings' is missing: .*sings\.yaml does not exist; did you mean 'signs'\?"):
        load_dataset("sings", root)
    with pytest.raises(UserError, match="no name"):
        load_dataset("../signs", root)


def test_a_class_listed_twice(root: Path) -> None:
    signs(root, classes=["cat", "dog", "cat"])
    with pytest.raises(UserError, match=r"signs\.yaml: classes: 'cat' is listed twice"):
        load_dataset("signs", root)


def test_the_manifest_says_what_the_data_is(root: Path) -> None:
    signs(root, classes=["dog", "cat"])
    seen: list[tuple[int, int]] = []
    manifest = prepare_dataset("signs", root, lambda done, total: seen.append((done, total)))
    assert seen == [(k, 6) for k in range(1, 7)]
    assert manifest == read_manifest(root)
    assert (manifest["dataset"], manifest["classes"]) == ("signs", ["dog", "cat"])
    written_down = yaml.safe_load((root / "params/datasets/signs.yaml").read_text())
    assert manifest["definition"] == {**written_down, "boxes": "strict"}
    assert manifest["splits"]["val"]["images"] == 3
    assert manifest["splits"]["val"]["objects"] == {"dog": 2, "cat": 1}
    written = (root / graph.DATA_MANIFEST).read_bytes()
    assert prepare_dataset("signs", root) == manifest
    assert (root / graph.DATA_MANIFEST).read_bytes() == written
    assert open_split("signs", "train", root).classes == ("dog", "cat")


def test_the_hash_names_content_alone(root: Path, tmp_path: Path) -> None:
    signs(root)
    first = prepare_dataset("signs", root)
    (tmp_path / "signs").rename(tmp_path / "moved")
    moved = yaml.safe_load((root / "params/datasets/signs.yaml").read_text().replace("/signs/", "/moved/"))
    define(root, "other", moved)
    second = prepare_dataset("other", root)
    assert second["hash"] == first["hash"] and second["definition"] != first["definition"]
    image = tmp_path / "moved/images/val/1.png"
    shutil.copy(tmp_path / "moved/images/val/0.png", image)
    third = prepare_dataset("other", root)
    assert third["hash"] != second["hash"]
    assert third["splits"]["train"] == second["splits"]["train"]


def drives(root: Path) -> Path:
    """A user's dataset `drives`: a nuScenes root with maps of labels, in a folder beside the repository's root."""
    where = write_root(root.parent / "nuscenes")
    for split in ("train", "val"):
        for frame in read_nuscenes(where, VERSION).frames(split):
            label = where / "ann_bev_dir" / split / f"{frame.stem}.png"
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (100, 98), 1).save(label)
    facts = {"kind": "nuscenes", "root": str(where), "version": VERSION, "classes": ["ground", "road"]}
    define(root, "drives", {**facts, "size": [36, 64]})
    return where


@pytest.mark.parametrize("view", [{"size": [36, 60]}, {"min_depth": 2}, {"max_depth": 20}])
def test_the_hash_of_maps_tells_how_their_images_are_seen(view: dict[str, Any], root: Path) -> None:
    drives(root)
    written_down = yaml.safe_load((root / graph.dataset_file("drives")).read_text())
    manifests = []
    for name, changes in (("drives", {}), ("same", {}), ("other", view)):
        define(root, name, {**written_down, **changes})
        manifests.append(prepare_dataset(name, root))
        assert read_manifest(root) == manifests[-1]
    one, same, other = manifests
    assert one["hash"] == same["hash"] != other["hash"]
    assert other["splits"]["val"] == one["splits"]["val"] | view


def test_paths_count_from_the_root_and_are_expanded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNS", str(tmp_path / "signs"))
    monkeypatch.setenv("HOME", str(tmp_path))
    signs(root)
    files = {
        "train": {"images": "$SIGNS/images/train", "annotations": "~/signs/train.json"},
        "val": {"images": "../signs/images/val", "annotations": "${SIGNS}/val.json"},
    }
    define(root, "signs", {"kind": "coco", **files})
    manifest = prepare_dataset("signs", root)
    assert manifest["definition"]["train"] == files["train"], "the manifest is the same on every machine"
    with pytest.raises(UserError, match=r"signs\.yaml: val\.images: there is no folder .*nowhere"):
        files["val"]["images"] = "$SIGNS/nowhere"
        define(root, "signs", {"kind": "coco", **files})
        prepare_dataset("signs", root)


def test_a_damaged_image_is_refused_before_anything_is_written(root: Path, tmp_path: Path) -> None:
    signs(root)
    image = tmp_path / "signs/images/val/2.png"
    image.write_bytes(image.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"image 12: .*images/val/2\.png cannot be read as an image"):
        prepare_dataset("signs", root)
    assert not (root / graph.DATA_MANIFEST).exists()


def test_a_damaged_camera_image_is_refused_although_both_its_ends_are_whole(root: Path) -> None:
    image = next(drives(root).glob("samples/CAM_FRONT/*.jpg"))
    content = bytearray(image.read_bytes())
    content[content.index(b"\xff\xc4") + 6] ^= 0xFF  # in the first table of the code that its pixels are in
    image.write_bytes(content)
    with pytest.raises(UserError, match=rf"{image.name} cannot be read as an image \(broken data stream"):
        prepare_dataset("drives", root)
    assert not (root / graph.DATA_MANIFEST).exists()


def test_splits_must_agree_about_classes(root: Path, tmp_path: Path) -> None:
    signs(root)
    other = content()
    other["categories"][0]["name"] = "wolf"
    (tmp_path / "signs/val.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"val\.json declares .* wolf.* 'classes' in .*signs\.yaml"):
        prepare_dataset("signs", root)


def test_a_split_opens_only_as_the_manifest_describes_it(root: Path, tmp_path: Path) -> None:
    signs(root)
    with pytest.raises(UserError, match=r"detection\.json does not exist; run `noisebox data` first"):
        open_split("signs", "train", root)
    prepare_dataset("signs", root)
    define(root, "tiny", WORLD)
    with pytest.raises(UserError, match="describes dataset 'signs', not 'tiny'"):
        open_split("tiny", "train", root)
    changed = content()
    changed["annotations"].pop()
    (tmp_path / "signs/train.json").write_text(json.dumps(changed))
    assert len(open_split("signs", "val", root).images) == 3
    with pytest.raises(UserError, match=r"train\.json has changed since"):
        open_split("signs", "train", root)
    signs(root, classes=["cat"])
    with pytest.raises(UserError, match=r"signs\.yaml has changed since"):
        open_split("signs", "train", root)
    (root / graph.DATA_MANIFEST).write_text("[]")
    with pytest.raises(UserError, match="is not what `noisebox data` writes"):
        open_split("signs", "train", root)


def test_the_world_is_written_once(world: Path) -> None:
    folder = world / graph.dataset_folder("tiny")
    image, manifest = folder / "images/train/000001.png", read_manifest(world)
    assert manifest["splits"]["train"]["images"] == 3 and manifest["classes"] == ["car", "motorbike", "person"]
    os.utime(image, ns=(1, 1))
    assert prepare_dataset("tiny", world) == manifest
    assert image.stat().st_mtime_ns == 1, "what is whole is left alone"
    image.write_bytes(image.read_bytes()[:-1] + b"?")
    assert prepare_dataset("tiny", world) == manifest
    assert image.stat().st_mtime_ns != 1, "what is damaged is drawn again"
    define(world, "tiny", {**WORLD, "val": 1})
    assert prepare_dataset("tiny", world)["splits"]["val"]["images"] == 1
    assert not (folder / "images/val/000002.png").exists()
    assert sorted(path.name for path in (world / "data").iterdir()) == ["detection.json", "tiny"]


def test_a_missing_world_is_drawn_again_or_refused(world: Path) -> None:
    folder = world / graph.dataset_folder("tiny")
    before = dvc_directory_hash(folder)
    shutil.rmtree(folder)
    assert len(open_split("tiny", "val", world).images) == 2
    assert dvc_directory_hash(folder) == before
    shutil.rmtree(folder)
    manifest = read_manifest(world)
    manifest["splits"]["val"]["sha256"] = "0" * 64
    (world / graph.DATA_MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"data/tiny was missing, and made again it is not what .* describes"):
        open_split("tiny", "train", world)


def test_of_two_that_draw_the_world_the_first_stays(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from noisebox.data import world as package

    folder, drawn = world / graph.dataset_folder("tiny"), package.write_world

    def overtaken(target: Path, *arguments: Any) -> None:
        drawn(target, *arguments)
        shutil.copytree(target, folder)
        (folder / "first").touch()

    shutil.rmtree(folder)
    monkeypatch.setattr(package, "write_world", overtaken)
    assert len(open_split("tiny", "val", world).images) == 2
    assert (folder / "first").exists()


def test_dvc_gives_the_folder_the_same_hash(world: Path) -> None:
    """DVC itself is the judge of the directory hash, and of what a pin looks like."""
    folder = world / graph.dataset_folder("tiny")
    (folder / "images" / "ärger b.txt").write_bytes(b"line\r\n")
    for command in (["init", "-q", "--no-scm"], ["add", "-q", "data/tiny"]):
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=world, env=environment, check=True, timeout=120)
    pin = yaml.safe_load((world / "data/tiny.dvc").read_text())
    assert pin["outs"][0]["md5"] == dvc_directory_hash(folder)
    assert pinned_hash_differs("tiny", world) is None, "no data.dvc, nothing pinned"
    pin["outs"][0]["path"] = "data/tiny"
    (world / "data.dvc").write_text(yaml.safe_dump(pin))
    assert pinned_hash_differs("tiny", world) is None
    assert pinned_hash_differs("other", world) is None
    (folder / "images" / "ärger b.txt").write_bytes(b"line\n")
    warning = pinned_hash_differs("tiny", world)
    assert warning is not None and "data/tiny differs from what data.dvc pins" in warning


def test_the_catalog_needs_no_torch() -> None:
    code = f"import sys, {catalog.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
