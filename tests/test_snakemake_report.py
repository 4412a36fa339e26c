"""The page of `snakemake --report`, of a small graph with stand-ins for outputs: it is whole, and clicked through."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run, small_experiment
from PIL import Image

from noisebox import graph

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RUNS = [(lineage, seed) for lineage in small_experiment()["lineages"] for seed in small_experiment()["train_seeds"]]
SHOWN = {
    *(path for path in graph.report_outputs() if not path.endswith("metrics.json")),
    *(f"{graph.evaluation_folder(lineage, seed)}/results.tsv" for lineage, seed in RUNS),
}
RULES = {"data", "smoke", "train", "evaluate", "report"}
UNASKED = "reports/tables/guidance.tsv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, new_project: Callable[[Path], Path]) -> Path:
    """A project with every output and Snakemake's records of it, and the page."""
    root = new_project(tmp_path_factory.mktemp("finished") / "project")
    outputs = [graph.DATA_MANIFEST, *(graph.smoke_tsv(recipe) for recipe in small_experiment()["recipes"])]
    for lineage, seed in RUNS:
        outputs += graph.run_outputs(lineage, seed) + graph.evaluation_outputs(lineage, seed)
    for path in [*outputs, *graph.report_outputs()]:
        stand_in(root / path)
    (root / UNASKED).write_text("run\tAP\n")
    run(root, "snakemake", "--touch", "--forceall", "--no-hooks", "--cores", "1")
    run(root, "snakemake", "--report", "reports/report.html")
    return root


def stand_in(path: Path) -> None:
    """Something of the file's format; a picture is higher than any window."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.new("RGB", (400, 3000)).save(path)
    elif path.suffix == ".svg":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="400" height="3000"/>')
    else:
        path.write_text(f"run\tAP\nbaseline\t12.5\n{path.name}\tnan\n")


def embedded(root: Path, name: str) -> Any:
    """A variable of the page's script."""
    page = (root / "reports/report.html").read_text()
    mark = f"var {name} = "
    return json.JSONDecoder().raw_decode(page, page.index(mark, page.index(f'<script id="{name}">')) + len(mark))[0]


def test_every_result_has_a_category_and_a_caption(finished: Path) -> None:
    """A caption that is missing fails the report itself; one that is faulty says so in its own text."""
    results = embedded(finished, "results")
    assert set(results) == SHOWN
    for path, result in results.items():
        assert result["caption"] and "system-message" not in result["caption"], path
        assert ("<table" in result["caption"]) == path.endswith(".tsv"), path
    folders = {
        category: {str(Path(path).parent) for paths in lists.values() for path in paths}
        for category, lists in embedded(finished, "categories").items()
    }
    assert folders == {
        "Summary": {"reports"},
        "Evidence": {"reports"},
        "Tables": {"reports/tables"},
        "Plots": {"reports/plots"},
        "Pictures": {"reports/pictures"},
        "Comparison": {"reports/comparison"},
        "Runs": {graph.evaluation_folder(lineage, seed) for lineage, seed in RUNS},
    }


def test_default_profile_is_in_force(finished: Path) -> None:
    """Snakemake looks for it in places that depend on the Snakefile's, and says nothing where it finds none."""
    assert (finished / "workflow/report/report.css").read_text() in (finished / "reports/report.html").read_text()


def test_front_page_describes_the_experiment(finished: Path) -> None:
    experiment = small_experiment()
    front = (finished / "reports/report.html").read_text().split('id="workflow-desc"')[1].split("</script>")[0]
    assert "system-message" not in front and "main.tsv" in front
    assert experiment["scale"] in front and all(lineage in front for lineage in experiment["lineages"])


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, CHROMIUM)), driver.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("there is no Chromium: install your system's, or run `playwright install chromium`")
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, finished: Path) -> Iterator[Any]:
    """The page, opened; whatever goes wrong in it, or is loaded from elsewhere, fails the test."""
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(5000)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda made: wrong.append(made.url) if not made.url.startswith(("file:", "data:")) else None)
    page.goto((finished / "reports/report.html").as_uri())
    page.add_style_tag(content="* { transition: none !important }")
    yield page
    page.close()
    assert wrong == []


def test_every_result_is_reached_by_clicking(page: Any, finished: Path) -> None:
    reached = set()
    for category, lists in page.evaluate("categories").items():
        for subcategory, paths in lists.items():
            for place in range(len(paths)):
                reached.add(look_at(page, row_of(page, category, subcategory, place), finished))
    assert reached == SHOWN


def row_of(page: Any, category: str, subcategory: str, place: int) -> Any:
    """From the menu to a row of a list; of two formats, or two seeds, those of the second come after a switch."""
    page.locator("nav nav a").first.click()
    page.locator("nav ul").get_by_text(category, exact=True).click()
    if subcategory != "Other":
        page.locator("nav ul").get_by_text(subcategory, exact=True).click()
    rows = page.locator("nav tbody tr")
    rows.first.wait_for()
    if place >= rows.count():
        page.locator("fieldset label").nth(1).click()
    return rows.nth(place % rows.count())


def look_at(page: Any, row: Any, root: Path) -> str:
    """Open a row's result, by its eye and by its i; returns its path, which the page then names."""
    eye, about, saved = row.locator("a").nth(0), row.locator("a").nth(1), None
    if eye.get_attribute("download"):
        with page.expect_download() as download:
            eye.click()
        saved = Path(download.value.path()).read_bytes()
    else:
        eye.click()
        picture = page.locator("#app > div > div img")
        assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") == 400
        assert picture.bounding_box()["y"] >= 0, "the upper edge is out of reach"
    about.click()
    path = str(page.locator("nav nav li.grow").inner_text())
    assert page.locator("nav .prose").inner_text()
    assert saved is None or saved == (root / path).read_bytes()
    return path


def test_front_page_leads_to_results_and_rules(page: Any) -> None:
    assert page.locator("#rulegraph canvas").count() == 1
    assert {node["rule"] for node in page.evaluate("rulegraph_spec.data[0].values")} == RULES | {"all"}
    page.get_by_role("link", name="main.tsv").click()
    assert "baseline" in page.locator("nav .prose table").inner_text()
    page.locator("nav").get_by_text("Snakemake rule").locator("xpath=following::a[1]").click()
    assert "noisebox report" in page.locator("nav").first.inner_text()


def test_run_times_are_drawn(page: Any) -> None:
    page.locator("nav ul").get_by_text("Statistics", exact=True).click()
    page.locator("#runtimes canvas").wait_for()
    page.locator("#timeline canvas").wait_for()
    assert {job["rule"] for job in page.evaluate("runtimes_spec.data.values")} == RULES
