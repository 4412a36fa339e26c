"""`noisebox table`: numbers are those of the TSVs by plain Python, and what is missing is a dash with its reason."""

import csv
import io
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from reported_project import an_experiment

from noisebox.errors import UserError
from noisebox.report.evaluations import results_path, speed_path
from noisebox.report.spec import LATEX, Table, as_latex, as_markdown, as_tsv, escaped, make_table

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]
FINETUNE = "baseline+finetune"
LITERATURE = {"name": "theirs", "source": "Chen et al. 2023, table 1", "values": {"AP": "46.80", "AP75": 50}}


def described(root: Path, name: str = "spec.yaml", **content: Any) -> Path:
    path = root / name
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return path


def table_of(root: Path, columns: list[str], *rows: dict[str, Any]) -> Table:
    return make_table(described(root, columns=columns, rows=list(rows)), an_experiment, root)


def raw(root: Path, path: str) -> list[dict[str, str]]:
    with (root / path).open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def edit(root: Path, path: str, change: Callable[[str], str]) -> None:
    (root / path).write_text(change((root / path).read_text()))


# The numbers


def test_numbers_are_those_of_the_tables(reported: Path) -> None:
    columns = ["steps", "AP", "AP_std", "AP75", "AP-cat", "AP-cat_std", "s_per_img", "FPS"]
    row = {"lineage": FINETUNE, "sample_step": 2, "guidance": {"scale": 0.5, "langevin_steps": 2}}
    (line,) = table_of(reported, columns, row).lines
    found = [
        [each for each in raw(reported, results_path(FINETUNE, k)) if each["guidance_scale"] == "0.5"] for k in (0, 1)
    ]
    assert [len(rows) for rows in found] == [1, 1]
    timed = [each for k in (0, 1) for each in raw(reported, speed_path(FINETUNE, k)) if each["guidance_scale"] == "0.5"]
    ap, ap75, cat = ([float(rows[0][name]) for rows in found] for name in ("AP", "AP75", "AP-cat"))
    seconds = statistics.fmean(float(each["inference_s_per_img"]) for each in timed)
    expected = [
        *[statistics.fmean(ap), statistics.pstdev(ap), statistics.fmean(ap75)],
        *[statistics.fmean(cat), statistics.pstdev(cat), seconds, 1 / seconds],
    ]
    assert line.values["steps"] == "2" and line.missing == {}
    assert list(line.values.values())[1:] == pytest.approx(expected)
    checkpoints = [rows[0]["ckpt_sha256"] for rows in found]
    files = [path(FINETUNE, seed) for path in (results_path, speed_path) for seed in (0, 1)]
    assert (line.source, line.checkpoints) == (", ".join(files), ", ".join(checkpoints))


def test_the_mean_is_over_train_seeds_of_means_over_eval_seeds(reported: Path) -> None:
    (all_seeds, some) = table_of(
        reported,
        ["AP", "AP_low", "AP_high"],
        {"lineage": "baseline"},
        {"lineage": "baseline", "eval_seeds": [4, 0], "train_seeds": [1]},
    ).lines
    found = [[row for row in raw(reported, results_path("baseline", k)) if row["sample_step"] == "1"] for k in (0, 1)]
    means = [statistics.fmean(float(row["AP"]) for row in rows) for rows in found]
    reach = 12.706204736 * statistics.stdev(means) / 2**0.5  # t at 0.975 with one degree of freedom
    center = statistics.fmean(means)
    assert list(all_seeds.values.values()) == pytest.approx([center, center - reach, center + reach])
    chosen = [float(row["AP"]) for row in found[1] if row["eval_seed"] in ("0", "4")]
    assert some.values == {"AP": pytest.approx(statistics.fmean(chosen))}
    assert set(some.missing) == {"AP_low", "AP_high"}


def test_literature_is_printed_as_it_was_given(reported: Path) -> None:
    table = table_of(reported, ["AP", "AP75", "AP50"], LITERATURE)
    assert table.lines[0].missing == {"AP50": "not given by Chen et al. 2023, table 1"}
    text = as_markdown(table)
    assert re.search(r"\| theirs +\| 46.80 \| +50 \| +– \|", text)
    assert "- – theirs, AP50: not given by Chen et al. 2023, table 1" in text
    assert text.endswith("- theirs: Chen et al. 2023, table 1\n")


def test_a_table_is_not_written_over_its_own_description(reported: Path, command_line: CommandLine) -> None:
    spec = described(reported, "spec.md", columns=["AP"], rows=[{"lineage": "baseline"}])
    text = spec.read_text()
    code, _, told = command_line("table", spec, "--out", reported)
    assert code == 2 and "would be overwritten by the table: choose another --out" in told
    assert spec.read_text() == text


def test_a_table_of_the_report_is_not_overwritten(reported: Path, command_line: CommandLine) -> None:
    """As `--out reports/tables` would, with a file of such a name."""
    spec = described(reported, "main.yaml", columns=["AP"], rows=[{"lineage": "baseline"}])
    before = {path: path.read_bytes() for path in (reported / "reports").rglob("*.*")}
    code, _, told = command_line("table", spec.name, "--out", "reports/tables")
    assert code == 2 and "reports/tables/main.tsv is the report's and would be overwritten: rename" in told
    assert {path: path.read_bytes() for path in (reported / "reports").rglob("*.*")} == before
    assert command_line("table", spec.name, "--out", "reports")[0] == 0


# What is missing


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"lineage": "other"}, "AP", "evals/other/seed0/results.tsv does not exist; this makes it: noisebox evaluate"),
        ({"lineage": "baseline", "train_seeds": [0, 7]}, "FPS", "evals/baseline/seed7/speed.tsv does not exist"),
        ({"lineage": "baseline", "sample_step": 9}, "AP", "seed0/results.tsv has no row for 9 sampling steps"),
        (
            {"lineage": FINETUNE, "sample_step": 2, "guidance": {"scale": 0.5, "langevin_steps": 1}},
            "AP",
            "has no row for 2 sampling steps, guidance scale 0.5, mode all, k 1",
        ),
        ({"lineage": "baseline", "eval_seeds": [0, 9]}, "AP", "evaluated under the eval seeds 0, not 0, 9"),
        ({"lineage": "baseline", "train_seeds": [0]}, "AP_std", "train seeds that differ are needed, two at least"),
        ({"lineage": "baseline"}, "AP-horse", "evals/baseline/seed0/results.tsv has no column 'AP-horse'"),
    ],
)
def test_what_is_missing_is_a_dash_with_a_reason(reported: Path, row: dict[str, Any], column: str, reason: str) -> None:
    table = table_of(reported, [column, "steps"], row)
    (line,) = table.lines
    assert reason in line.missing[column] and set(line.values) == {"steps"}
    (note,) = [each for each in as_markdown(table).splitlines() if each.startswith(f"- – {row['lineage']}, {column}: ")]
    assert reason in note
    (cells,) = list(csv.DictReader(io.StringIO(as_tsv(table)), delimiter="\t"))
    assert cells[column] == "–" and reason in cells["missing"]


def test_a_second_look_at_crops_is_a_way_of_its_own(reported: Path) -> None:
    path = results_path("baseline", 0)
    header, *rows = raw(reported, path)[0], *raw(reported, path)
    looked = [{**row, "AP": f"{float(row['AP']) + 1:.4f}", "crops": "1"} for row in rows if row["sample_step"] == "1"]
    for row in looked:
        edit(reported, path, lambda text, row=row: text + "\t".join(row[name] for name in header) + "\n")
    way = {"lineage": "baseline", "train_seeds": [0]}
    once, twice, none = table_of(
        reported, ["AP"], way, way | {"crops": True}, way | {"crops": True, "sample_step": 4}
    ).lines
    assert float(twice.values["AP"]) - float(once.values["AP"]) == pytest.approx(1)
    assert none.missing == {"AP": f"{path} has no row for 4 sampling steps, crops"}


def test_nan_is_no_number(reported: Path) -> None:
    edit(
        reported,
        results_path("baseline", 1),
        lambda text: re.sub(r"(?m)^(baseline\t1\t4\t1\t.*?)\d+\.\d{4}", r"\1nan", text),
    )
    (line,) = table_of(reported, ["AP", "AP50"], {"lineage": "baseline"}).lines
    assert line.missing == {"AP": "nan in evals/baseline/seed1/results.tsv: there was nothing to measure"}
    assert "AP50" in line.values


def test_train_seeds_under_other_eval_seeds_are_not_mixed(reported: Path) -> None:
    edit(reported, results_path("baseline", 1), lambda text: re.sub(r"(?m)^baseline\t1\t4\t1\t.*\n", "", text))
    (line,) = table_of(reported, ["AP"], {"lineage": "baseline"}).lines
    assert line.missing == {"AP": "train seed 1 was evaluated under the eval seeds 0, 1, not 0, 1, 4"}
    (line,) = table_of(reported, ["AP"], {"lineage": "baseline", "eval_seeds": [0, 1]}).lines
    assert line.missing == {}


def test_results_on_different_data_are_neither_mixed_nor_shown_without_a_word(reported: Path) -> None:
    """As where one lineage, or one train seed of it, was trained again after a change of the data."""
    rows = [{"lineage": name, "train_seeds": seeds} for name, seeds in (("baseline", [0]), (FINETUNE, [0, 1]))]
    assert "Not comparable" not in as_markdown(table_of(reported, ["AP"], *rows, LITERATURE | {"values": {}}))
    provenance = Path(results_path(FINETUNE, 0)).with_name("run.json")
    before = json.loads((reported / provenance).read_text())["data_hash"][:12]
    edit(reported, str(provenance), lambda text: text.replace(before, "0123456789ab"))
    either = [f"tiny, sha256 {known} (6 images)" for known in ("0123456789ab", before)]
    whole = table_of(reported, ["AP"], *rows)
    assert whole.lines[1].missing == {
        "AP": f"its results are on {' and '.join(either)}: choose some by train_seeds or eval_seeds"
    }
    one = table_of(reported, ["AP"], *(row | {"train_seeds": [0]} for row in rows))
    told = f"Not comparable, because the data differ: baseline on {either[1]}; {FINETUNE} on {either[0]}"
    assert told in as_markdown(one) and f"\\par {told}" in as_latex(one) and set(one.lines[1].values) == {"AP"}


def test_a_broken_evaluation_is_an_error(reported: Path) -> None:
    edit(reported, results_path("baseline", 0), lambda text: text[:-5] + "\tx\n")
    with pytest.raises(UserError, match="is the file cut off"):
        table_of(reported, ["AP"], {"lineage": "baseline"})


# The three forms


def test_the_three_forms_say_the_same(reported: Path, command_line: CommandLine) -> None:
    rows = [{"lineage": "baseline", "name": "ours & co"}, LITERATURE]
    described(reported, "wide.yaml", columns=["AP", "AP75", "s_per_img"], rows=rows, caption="50 % of_it")
    code, said, _ = command_line("table", "wide.yaml")
    assert code == 0
    code, written, _ = command_line("table", "wide.yaml", "--out", "made/here")
    assert (code, written.split()) == (0, [f"made/here/wide.{suffix}" for suffix in ("md", "tsv", "tex")])
    texts = [(reported / path).read_text() for path in written.split()]
    assert texts[0] == said and texts[0].startswith("**50 % of_it**\n\n| method ")
    (ours, theirs) = list(csv.DictReader(io.StringIO(texts[1]), delimiter="\t"))
    assert (ours["method"], theirs["AP"], theirs["s_per_img"]) == ("ours & co", "46.80", "–")
    assert all(re.fullmatch(r"\d+\.\d{4}", ours[name]) for name in ("AP", "AP75"))
    assert re.fullmatch(r"\d\.\d{6}", ours["s_per_img"])
    assert theirs["source"] == "Chen et al. 2023, table 1" and theirs["ckpt_sha256"] == ""
    assert f"ours \\& co & {float(ours['AP']):.2f} & {float(ours['AP75']):.2f} & " in texts[2]
    assert "theirs & 46.80 & 50 & -- \\\\" in texts[2] and "\\caption{50 \\% of\\_it}" in texts[2]


def test_words_of_several_lines_become_one(reported: Path) -> None:
    """A block of YAML ends in a line break; and what a comment in LaTeX leaves on the next line would be printed."""
    values = {"AP": "46.80\n", "AP-two\nlines": "1\n 2"}
    rows = [
        {"lineage": "baseline", "name": "two\nlines"},
        {"name": " their\n\nown", "source": "Chen et al.\n\n2023\n", "values": values},
    ]
    ragged = table_of(reported, ["AP", "AP-two\nlines"], *rows)
    plain = [
        {"lineage": "baseline", "name": "two lines"},
        {"name": "their own", "source": "Chen et al. 2023", "values": {"AP": "46.80", "AP-two lines": "1 2"}},
    ]
    assert ragged == table_of(reported, ["AP", "AP-two lines"], *plain)
    assert "| their own | 46.80 |" in as_markdown(ragged)
    with pytest.raises(UserError, match=r"rows\.0\.name: string should have at least 1 character"):
        table_of(reported, ["AP"], LITERATURE | {"name": "\n"})


def test_the_latex_is_well_formed(reported: Path) -> None:
    text = as_latex(
        table_of(reported, ["AP", "AP-cat", "FPS", "steps"], {"lineage": FINETUNE}, LITERATURE | {"values": {}})
    )
    environments = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    assert environments == [("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")]
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [4, 4, 4]
    assert f"  % {FINETUNE}: {results_path(FINETUNE, 0)}, {results_path(FINETUNE, 1)}, " in text
    assert "  \\par theirs: Chen et al. 2023, table 1\n" in text
    assert "{lrrrr}" in text and text.count("{") == text.count("}")


def test_latex_takes_no_name_for_an_option(reported: Path) -> None:
    """As the line before does of what follows it, over white space: see [4pt] of \\\\ and of \\midrule, and \\\\*."""
    names = ["[12] ours", "*star", "a [1]", "2 * 2"]
    text = as_latex(table_of(reported, ["AP"], *(LITERATURE | {"name": name, "values": {}} for name in names)))
    rows = [line.strip().removesuffix(r" & -- \\") for line in text.splitlines() if line.endswith(r"& -- \\")]
    assert rows == ["{}[12] ours", "{}*star", "a [1]", "2 * 2"]
    assert not re.search(r"(\\\\|rule)\s*[\[*]", text)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from(sorted(LATEX)), max_size=30))
def test_nothing_special_to_latex_stays(text: str) -> None:
    rest = escaped(text)
    for replacement in sorted(LATEX.values(), key=len, reverse=True):
        rest = rest.replace(replacement, "")
    assert not set(rest) & {*"&%$#_{}~^\\<>|"}


@given(st.text("ab&%_{}~^\\ ", max_size=20))
def test_escaping_loses_nothing(text: str) -> None:
    back = escaped(text)
    tokens = {replacement: character for character, replacement in LATEX.items()}
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    assert re.sub(pattern, lambda found: tokens[found[0]], back) == text


# Descriptions


def test_json_and_yaml_describe_alike(reported: Path) -> None:
    content = {"columns": ["AP", "AP75"], "rows": [{"lineage": "baseline"}, LITERATURE]}
    made = [make_table(described(reported, name, **content), an_experiment, reported) for name in ("a.json", "a.yaml")]
    assert made[0] == made[1]


def test_the_experiment_is_asked_only_where_a_row_names_no_seeds(reported: Path) -> None:
    def unknown() -> Any:
        raise UserError("no experiment here")

    path = described(
        reported, columns=["AP"], rows=[{"lineage": "baseline", "train_seeds": [1]}, LITERATURE | {"values": {}}]
    )
    assert len(make_table(path, unknown, reported).lines) == 2
    with pytest.raises(UserError, match="no experiment here"):
        make_table(described(reported, columns=["AP"], rows=[{"lineage": "baseline"}]), unknown, reported)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"columns": ["AP"]}, "key 'rows' is missing"),
        ({"columns": [], "rows": [LITERATURE]}, "columns: list should have at least 1 item"),
        ({"columns": ["APP"], "rows": [LITERATURE]}, "columns names 'APP'; did you mean 'AP'?"),
        ({"columns": ["mAP"], "rows": [LITERATURE]}, "columns names 'mAP'; did you mean"),
        ({"columns": ["AP", "AP"], "rows": [LITERATURE]}, "columns names 'AP' twice"),
        ({"columns": ["AP"], "rows": ["baseline"]}, "rows.0: input should be a valid dictionary, not 'baseline'"),
        ({"columns": ["AP"], "rows": [{"linage": "baseline"}]}, "rows.0 must name either a lineage, which is measured"),
        ({"columns": ["AP"], "rows": [{"lineage": "a", "source": "b"}]}, "rows.0 must name either a lineage, which"),
        ({"columns": ["AP"], "rows": [{"lineage": "A b"}]}, "rows.0.lineage: 'A b' is no lineage"),
        ({"columns": ["AP"], "rows": [{"lineage": "a", "step": 1}]}, "key 'rows.0.step' does not exist; known keys: "),
        ({"columns": ["AP"], "rows": [{"lineage": "a", "sample_step": 0}]}, "rows.0.sample_step: input should be"),
        (
            {"columns": ["AP"], "rows": [{"lineage": "a", "guidance": {"scal": 1}}]},
            "key 'rows.0.guidance.scal' does not exist; did you mean 'scale'?",
        ),
        ({"columns": ["AP"], "rows": [{"source": "x", "values": {}}]}, "key 'rows.0.name' is missing"),
        ({"columns": ["AP75"], "rows": [LITERATURE]}, "rows.0.values names 'AP'; did you mean 'AP75'?"),
        (
            {"columns": ["AP"], "rows": [{**LITERATURE, "values": {"AP": None}}]},
            "rows.0.values.AP: must be a number, or words in quotes",
        ),
    ],
)
def test_a_wrong_description_is_told_in_one_sentence(
    reported: Path, command_line: CommandLine, content: dict[str, Any], complaint: str
) -> None:
    described(reported, "spec.yaml", **content)
    code, said, told = command_line("table", "spec.yaml")
    assert (code, said) == (2, "") and len(told.splitlines()) == 1
    assert told.startswith(f"noisebox: spec.yaml: {complaint}")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("spec.json", "{", "spec.json is not valid JSON"),
        ("spec.json", "[]", "spec.json must hold a mapping of keys to values, not a list"),
        ("spec.yaml", "[]", "spec.yaml must hold a mapping of keys to values, not a list"),
        ("spec.json", None, "spec.json does not exist"),
        ("spec.yaml", None, "spec.yaml does not exist"),
    ],
)
def test_a_file_that_is_no_description(
    reported: Path, command_line: CommandLine, name: str, text: str | None, complaint: str
) -> None:
    if text is not None:
        (reported / name).write_text(text)
    code, _, told = command_line("table", name)
    assert code == 2 and complaint in told and len(told.splitlines()) == 1
