"""The graph's depth ground truth: a split of the BEV dataset, published whole, with a table of what its files hold."""

import shutil
from pathlib import Path

from noisebox import graph
from noisebox.data.bev import BevSplit
from noisebox.data.depth import DepthSettings, depth_file, make_depth_gt, read_depth
from noisebox.data.depth_check import write_depth_report
from noisebox.files import only_here, sha256, write_text


def settings_of(split: BevSplit) -> DepthSettings:
    """The dataset's own."""
    view = split.view
    return DepthSettings(*view.size, view.min_depth, view.max_depth)


def make_depth(split: BevSplit, name: str, root: Path = Path(), workers: int | None = None) -> float:
    """Write graph.depth_folder and graph.depth_report of the split `name`, "train" or "val"; returns the mean share of
    pixels with a return.

    The engines delete what they declare before a job starts, so files grow in a folder beside, from which a killed
    stage goes on. Raises UserError as `make_depth_gt` does.
    """
    folder = root / graph.depth_folder(name)
    growing = folder.parent / "work" / name
    with only_here(folder.with_suffix(".lock"), f"{folder} is being made"):
        make_depth_gt(split.frames, growing, settings_of(split), workers)
        rows, ratios = ["image\tcamera\tvalid_ratio\tsha256"], []
        for frame in split.frames:
            path = depth_file(growing, frame)
            _, mask = read_depth(path)
            ratios.append(float(mask.mean()))
            rows.append(f"{frame.stem}\t{frame.camera}\t{ratios[-1]:.6f}\t{sha256(path)}")
        shutil.rmtree(folder, ignore_errors=True)
        growing.replace(folder)
        write_text(root / graph.depth_report(name), "\n".join(rows) + "\n")
    return sum(ratios) / len(ratios)


def check_depth(split: BevSplit, name: str, root: Path = Path(), workers: int | None = None) -> list[Path]:
    """Look at the depth files of a split; returns the table written, and the folder of pictures.

    Raises UserError as `write_depth_report` does.
    """
    folder = root / graph.depth_folder(name)
    report, pictures = folder.parent / f"{name}_report.tsv", folder.parent / f"{name}_pictures"
    write_depth_report(split.frames, folder, settings_of(split), report, pictures, workers)
    return [report, pictures]
