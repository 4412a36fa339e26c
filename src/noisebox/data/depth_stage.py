"""The depth ground truth of a split, published whole, with a table of what its files hold: that of the graph's BEV
dataset, or of one that tries alone are made on."""

import shutil
from pathlib import Path

from noisebox import graph
from noisebox.data.bev import BevSplit
from noisebox.data.catalog import manifest_of, open_split, read_manifest
from noisebox.data.depth import all_made, depth_file, make_depth_gt, read_depth, settings_of
from noisebox.data.depth_check import write_depth_report
from noisebox.files import only_here, read_json, sha256, write_json, write_text


def make_depth(
    split: BevSplit, name: str, root: Path = Path(), workers: int | None = None, of_tries: str | None = None
) -> float:
    """Write graph.depth_folder and graph.depth_report of the split `name`, "train" or "val"; returns the mean share of
    pixels with a return. `of_tries` names the dataset where it is not the graph's that is made.

    The engines delete what they declare before a job starts, so files grow in a folder beside, from which a killed
    stage goes on; what one of another dataset left there goes. Raises UserError as `make_depth_gt` does.
    """
    folder = root / graph.depth_folder(name, of_tries)
    growing = folder.parent / "work" / name
    with only_here(folder.with_suffix(".lock"), f"{folder} is being made"):
        make_depth_gt(split.frames, growing, settings_of(split), workers)
        for path in set(growing.glob("*.npz")) - {depth_file(growing, frame) for frame in split.frames}:
            path.unlink()
        rows, ratios = ["image\tcamera\tvalid_ratio\tsha256"], []
        for frame in split.frames:
            path = depth_file(growing, frame)
            _, mask = read_depth(path)
            ratios.append(float(mask.mean()))
            rows.append(f"{frame.stem}\t{frame.camera}\t{ratios[-1]:.6f}\t{sha256(path)}")
        shutil.rmtree(folder, ignore_errors=True)
        growing.replace(folder)
        write_text(root / graph.depth_report(name, of_tries), "\n".join(rows) + "\n")
    return sum(ratios) / len(ratios)


def prepare_depth_for_try(dataset: str, root: Path = Path(), workers: int | None = None) -> str | None:
    """See that a try finds depth ground truth of the images that it trains on: the graph's, where that has all of this
    dataset, or else graph.depth_of_tries, made here where it is not there or was made of other data, size or depths.

    Returns a sentence about what was made; None where it was there. Raises UserError as `make_depth` does.
    """
    manifest = manifest_of(dataset, "bev", root)
    split = open_split(dataset, "train", root, manifest)
    settings = settings_of(split)
    place, folder = root / graph.depth_of_tries(dataset), root / graph.depth_folder("train", dataset)
    made_from = {"data_hash": read_manifest(root, manifest)["hash"]}
    stamp = place / "made_from.json"

    def begun() -> bool:
        return stamp.is_file() and read_json(stamp) == made_from

    if all_made(split.frames, root / graph.depth_folder("train"), settings):
        return None
    if begun() and all_made(split.frames, folder, settings):
        return None
    with only_here(place.with_suffix(".lock"), f"{place} is being made"):
        if not begun():
            shutil.rmtree(place, ignore_errors=True)
            write_json(stamp, made_from)
        ratio = make_depth(split, "train", root, workers, dataset)
    return f"{folder}: {len(split)} files, {100 * ratio:.2f} % of pixels have a return"


def check_depth(split: BevSplit, name: str, root: Path = Path(), workers: int | None = None) -> list[Path]:
    """Look at the depth files of a split; returns the table written, and the folder of pictures.

    Raises UserError as `write_depth_report` does.
    """
    folder = root / graph.depth_folder(name)
    report, pictures = folder.parent / f"{name}_report.tsv", folder.parent / f"{name}_pictures"
    write_depth_report(split.frames, folder, settings_of(split), report, pictures, workers)
    return [report, pictures]
