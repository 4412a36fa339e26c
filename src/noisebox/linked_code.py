"""`code/`: for each verb and family a folder of links to the code behind it, kept in git.

DVC spends most of its time on objects, one for each dependency of each stage; a folder is one, whatever it holds. It
follows links to files, so a folder has another hash as soon as one of the linked files changes. Links to folders it
does not follow: dvc.yaml names those beside, and what is added in them counts by itself.
"""

import os
from pathlib import Path

from noisebox import graph
from noisebox.files import atomic_folder

# A smoke run is a training and a search is many, so their stages depend on the folder of `train`.
FOLDERS = [
    *((verb, None) for verb in ("data", "depth_gt", "report")),
    *((verb, family) for verb in ("train", "evaluate") for family in graph.FAMILY_CODE),
]


def link_code(root: Path) -> list[str]:
    """Make `code/` hold the links that graph.py's lists ask for and nothing else; returns the folders that changed.

    Raises UserError where it cannot be written.
    """
    wanted = {graph.code_folder(verb, family): links(verb, family) for verb, family in FOLDERS}
    present = {path.relative_to(root).as_posix(): read_links(path) for path in (root / graph.LINKED_CODE).glob("*")}
    if changed := sorted(name for name in {*wanted, *present} if wanted.get(name) != present.get(name)):
        with atomic_folder(root / graph.LINKED_CODE) as temporary:
            for folder in wanted:
                place = temporary / Path(folder).name
                place.mkdir()
                for name, target in wanted[folder].items():
                    (place / name).symlink_to(target)
    return changed


def links(verb: str, family: str | None) -> dict[str, str]:
    """The links of a folder: `config.run.py` leads to `../../src/noisebox/config/run.py`."""
    folder = graph.code_folder(verb, family)
    files = [entry for entry in graph.code_entries(verb, family) if entry.endswith(".py")]
    return {file.removeprefix("src/noisebox/").replace("/", "."): os.path.relpath(file, folder) for file in files}


def read_links(folder: Path) -> dict[str, str]:
    """The links that a folder holds; what is no link leads nowhere."""
    found = folder.iterdir() if folder.is_dir() else ()
    return {path.name: str(path.readlink()) if path.is_symlink() else "" for path in found}
