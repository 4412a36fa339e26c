"""The code that a stage declares is the code that it imports: followed through the source, verb by verb."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

from noisebox import graph
from noisebox.config.families import SECTIONS
from noisebox.data.catalog import KINDS
from noisebox.linked_code import FOLDERS, link_code, links, read_links
from noisebox.models import FAMILIES
from noisebox.tasks import EVALUATIONS, TASKS

SOURCE = ROOT / "src"
# They name, word or speed things, and compute nothing; the package's own page holds the version only.
WORDS = {f"src/noisebox/{name}.py" for name in ("graph", "errors", "interrupt", "garbage", "__init__")}
WORLDS = "src/noisebox/data/world"  # only `data` draws them; everything else knows the data by its hash


def module_file(name: str) -> Path | None:
    path = SOURCE / name.replace(".", "/")
    return (
        path / "__init__.py" if path.is_dir() else path.with_suffix(".py") if path.with_suffix(".py").exists() else None
    )


def imported(tree: ast.AST) -> set[str]:
    """Every noisebox module named in imports anywhere below a node, type-checking blocks aside."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        names |= imported(node)
    return {name for name in names if name.startswith("noisebox") and module_file(name)}


def closure(names: set[str], drawn: bool = True) -> set[str]:
    """Files of the modules and of all that they import; families are left to `FAMILY_CODE`, and where the worlds are
    `drawn` already, what draws them is left out."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        file = module_file(name)
        if file is None or (path := file.relative_to(ROOT).as_posix()) in found:
            continue
        if drawn and path.startswith(WORLDS):
            continue
        found.add(path)
        waiting |= imported(ast.parse(file.read_text()))
        parent = name.rpartition(".")[0]
        waiting |= {parent} if parent else set()
    return {path for path in found if not _is_only_words(ROOT / path)}


def _is_only_words(file: Path) -> bool:
    body = ast.parse(file.read_text()).body
    return file.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in body)


def verb_imports(verb: str) -> set[str]:
    commands = {
        node.name: node
        for file in (SOURCE / "noisebox/cli").glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    return imported(commands[verb])


@pytest.mark.parametrize("verb", graph.CODE)
def test_declared_code_covers_the_imports(verb: str) -> None:
    modules = verb_imports(verb) | (set(KINDS.values()) if verb == "data" else set())
    assert closure(modules, verb != "data") - WORDS <= set(graph.code_files(verb, root=ROOT))


@pytest.mark.parametrize("family", graph.FAMILY_CODE)
def test_a_familys_code_covers_its_imports(family: str) -> None:
    modules = {table[family] for table in (FAMILIES, SECTIONS, TASKS)}
    for verb in ("smoke", "train", "evaluate"):
        computing = modules | ({EVALUATIONS[family]} if verb == "evaluate" else set())
        assert closure(computing) - WORDS <= set(graph.code_files(verb, family, ROOT))


def test_trainings_and_evaluations_do_not_wait_for_the_scheduler_of_diffusers() -> None:
    modules = {table["diffusiondet"] for table in (FAMILIES, SECTIONS, TASKS, EVALUATIONS)}
    modules |= verb_imports("train") | verb_imports("evaluate")
    assert "src/noisebox/diffusion/sampler.py" in closure(modules)
    assert "src/noisebox/diffusion/scheduler.py" not in closure(modules)


@pytest.mark.parametrize("family", EVALUATIONS)
def test_a_family_is_evaluated_and_verified(family: str) -> None:
    module = import_module(EVALUATIONS[family])
    assert callable(module.evaluate_run) and callable(module.measured_rows)


def test_every_declared_path_exists() -> None:
    for entries in (*graph.CODE.values(), *graph.FAMILY_CODE.values()):
        for entry in entries:
            assert (ROOT / entry).exists(), entry


def test_code_is_linked_as_it_is_listed() -> None:
    """`noisebox code` mends what differs."""
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "code").iterdir()} == {
        graph.code_folder(*which) for which in FOLDERS
    }
    for which in FOLDERS:
        folder = ROOT / graph.code_folder(*which)
        assert read_links(folder) == links(*which), folder
        linked = {path.resolve().relative_to(ROOT).as_posix() for path in folder.iterdir()}
        assert linked == set(graph.code_files(*which, ROOT)) & set(graph.code_entries(*which))


def test_links_follow_the_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what changed is told; what is no longer listed, or is no link, goes."""
    assert link_code(tmp_path) == sorted(graph.code_folder(*which) for which in FOLDERS)
    assert link_code(tmp_path) == []
    (tmp_path / "code/train-retired").mkdir()
    (tmp_path / "code/data/files.py").unlink()
    (tmp_path / "code/data/files.py").write_text("a copy")
    monkeypatch.setitem(graph.CODE, "report", (*graph.CODE["report"], "src/noisebox/machine.py"))
    assert link_code(tmp_path) == ["code/data", "code/report", "code/train-retired"]
    assert (tmp_path / "code/report/machine.py").readlink() == Path("../../src/noisebox/machine.py")
    assert (tmp_path / "code/data/files.py").is_symlink() and not (tmp_path / "code/train-retired").exists()


def test_arrows_point_one_way() -> None:
    """cli → {training, evaluation, report} → models → diffusion; data beside models; report without torch."""
    forbidden = {
        "diffusion": ("models", "data", "training", "evaluation", "report"),
        "models": ("data", "training", "evaluation", "report"),
        "data": ("models", "diffusion", "training", "evaluation", "report"),
        "report": ("models", "diffusion", "training", "evaluation", "data"),
    }
    for room, others in forbidden.items():
        for file in (SOURCE / "noisebox" / room).rglob("*.py"):
            for name in imported(ast.parse(file.read_text())):
                assert name.split(".")[1:2] not in [[other] for other in others], f"{file} imports {name}"
