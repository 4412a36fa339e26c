"""`noisebox import-logs`: what Detectron2's logs say of evaluations becomes rows, and the published means come out."""

import csv
import logging
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import ROOT, run
from scipy import stats

from noisebox.config import ExperimentConfig, load_experiment
from noisebox.errors import UserError
from noisebox.interop.detectron2_logs import read_log
from noisebox.interop.import_logs import Told, import_logs
from noisebox.report.imported import imported_table, read_imported, section
from noisebox.report.spec import make_table

pytest_plugins = ("reported_fixtures",)

GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
VALUES = ("46.4293", "70.1", "50.25", "nan", "40.0", "60.0")


def stamped(message: str, name: str = "detectron2") -> str:
    return f"[11/26 10:00:00] {name} INFO: {message}"


def copied(*values: str) -> list[str]:
    lines = ("Task: bbox", "AP,AP50,AP75,APs,APm,APl", ",".join(values))
    return [stamped(f"copypaste: {line}", "detectron2.evaluation.testing") for line in lines]


def session(weights: str, *, seed: int = 0, steps: int = 1, eval_only: bool = True, **own: Any) -> list[str]:
    """The beginning of a log: command line and configuration, whose colours Detectron2 keeps in the file."""
    config = {
        "MODEL": {"WEIGHTS": weights, "DiffusionDet": {"SAMPLE_STEP": steps, **own}},
        "SEED": seed,
        "SOLVER": {"MAX_ITER": 10000},
        "OUTPUT_DIR": str(Path(weights).parent),
    }
    arguments = f"Namespace(config_file='x.yaml', eval_only={eval_only}, num_gpus=1, opts=['SEED', '{seed}'])"
    dump = [f"{GREEN}{line}{PLAIN}" for line in yaml.safe_dump(config).splitlines()]
    return [stamped(f"Command line arguments: {arguments}"), stamped("Running with full config:"), *dump, ""]


def per_class(**values: str) -> list[str]:
    cells = [f"{name} | {value}" for name, value in values.items()]
    return [
        stamped("Per-category bbox AP: ", "detectron2.evaluation.coco_evaluation"),
        f"| {' | '.join(['category | AP'] * 2)} |",
        "|:---|:---|:---|:---|",
        f"| {' | '.join(cells[:2])} |",
        f"| {' | '.join([*cells[2:], '|'])} |",
    ]


def log(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The 45 published evaluations as logs, one for each."""
    with (ROOT / "tests/golden/published_ap.tsv").open() as file:
        published = list(csv.DictReader(file, delimiter="\t"))
    assert len(published) == 45
    for row in published:
        run = f"{row['run']}/seed{row['train_seed']}"
        begun = session(f"output/{run}/model_final.pth", seed=int(row["eval_seed"]), steps=int(row["sample_step"]))
        log(tmp_path / "archive" / run / f"eval{row['eval_seed']}", *begun, *copied(row["AP"], *VALUES[1:]))
    return tmp_path / "archive"


def test_the_published_means_come_out(archive: Path, tmp_path: Path) -> None:
    imported = import_logs([archive], Told(), tmp_path)
    assert sorted(imported.rows.values()) == [5] * 9 and not (tmp_path / "evals").exists()
    spec = tmp_path / "spec.yaml"
    lineages = ("baseline", "baseline+geofeat", "baseline+d3pm_qhead")
    rows = [{"lineage": lineage, "imported": True} for lineage in lineages]
    spec.write_text(yaml.safe_dump({"columns": ["AP", "AP_std", "AP_low", "FPS"], "rows": rows}))
    lines = make_table(spec, lambda: load_experiment(ROOT), tmp_path).lines
    assert [line.name for line in lines] == [f"{lineage} (imported)" for lineage in lineages]
    assert [round(float(line.values["AP"]), 4) for line in lines] == [46.4293, 46.7774, 46.9068]
    assert [round(float(line.values["AP_std"]), 4) for line in lines] == [0.4985, 0.2957, 0.5545]
    assert all(line.missing == {"FPS": "logs are imported without their times"} for line in lines)
    assert all("imported/" in line.source and "from 15 logs" in line.source for line in lines)


def test_the_report_has_the_published_numbers(archive: Path, tmp_path: Path) -> None:
    import_logs([archive], Told(), tmp_path)
    rows = read_imported(tmp_path)
    table = imported_table(rows)
    assert list(table["run"]) == ["baseline", "baseline+d3pm_qhead", "baseline+geofeat"]
    assert list(table["AP"]) == [46.4293, 46.9068, 46.7774]
    assert list(table["AP_std"]) == [0.4985, 0.5545, 0.2957]
    assert list(table["AP_std_flat"]) == [0.7817, 0.6829, 0.6955]
    assert set(table[["train_seeds", "eval_seeds", "runs"]].itertuples(index=False)) == {(3, 5, 15)}
    for row in table.itertuples():
        means = rows[rows["run"] == row.run].groupby("train_seed")["AP"].mean()
        assert (row.AP_low, row.AP_high) == pytest.approx(
            stats.t.interval(0.95, 2, means.mean(), stats.sem(means)), 1e-4
        )
        assert row.results == ",".join(f"imported/{row.run}/seed{seed}/results.tsv" for seed in range(3))
        assert len(row.logs.split(",")) == 15 and (row.dataset, row.images, row.ckpt_sha256) == ("", "", "")
    (tmp_path / "imported/baseline/notes").mkdir()
    assert list(imported_table(read_imported(tmp_path / "archive"))) == list(table), "a header where nothing is"


def test_no_mean_is_over_different_datasets_or_ways_to_sample(tmp_path: Path) -> None:
    """Nor does a train seed with fewer eval seeds pass for one that has all."""
    for name, (train_seed, eval_seed, scale, dataset, images) in enumerate(
        [
            (0, 0, 0, "a", 87),
            (0, 1, 0, "a", 87),
            (1, 0, 0, "a", 87),
            (2, 0, 0, "a", 40),
            (3, 0, 0, "b", 87),
            (0, 0, 0.1, "a", 87),
        ]
    ):
        begun = session(f"old/seed{train_seed}/model_final.pth", seed=eval_seed, QUALITY_GUIDANCE_SCALE=scale)
        told = [
            stamped(f"Loaded {images} images in COCO format"),
            stamped(f"Evaluation results for {dataset} in csv format:"),
        ]
        log(tmp_path / f"logs/{name}", *begun, *told, *copied(f"{40 + name}", *VALUES[1:]))
    import_logs([tmp_path / "logs"], Told(), tmp_path)
    table = imported_table(read_imported(tmp_path))
    told = table[["dataset", "images", "guidance_scale", "AP", "train_seeds", "runs"]].itertuples(
        index=False, name=None
    )
    assert list(told) == [
        *[("a", "40", 0, 43, 1, 1), ("a", "87", 0, 41.25, 2, 3)],
        *[("a", "87", 0.1, 45, 1, 1), ("b", "87", 0, 44, 1, 1)],
    ]
    _, text = section(table)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:6]]
    assert [line[4] for line in lines] == ["–", "–", "0.1, all, k 1", "–"]
    assert [line[11] for line in lines] == ["1 × 1", "2 × up to 2, 3 runs", "1 × 1", "1 × 1"]

    (line,) = make_table(spec_of(tmp_path, {"lineage": "old", "imported": True}), no_experiment, tmp_path).lines
    assert line.missing["AP"].startswith("train seed 1 was evaluated under the eval seeds 0, not 0, 1")
    rows = [
        {"lineage": "old", "imported": True, "eval_seeds": [0]},
        {"lineage": "old", "imported": True, "eval_seeds": [0], "train_seeds": [0, 1]},
    ]
    mixed, one = make_table(spec_of(tmp_path, *rows), no_experiment, tmp_path).lines
    assert mixed.missing["AP"] == (
        "its results are on a (87 images) and a (40 images) and b (87 images): choose some by train_seeds or eval_seeds"
    )
    assert one.values["AP"] == pytest.approx((40 + 42) / 2)


def spec_of(root: Path, *rows: dict[str, Any]) -> Path:
    (root / "spec.yaml").write_text(yaml.safe_dump({"columns": ["AP"], "rows": list(rows)}))
    return root / "spec.yaml"


def no_experiment() -> ExperimentConfig:
    raise AssertionError("the rows of logs have train seeds of their own")


@pytest.mark.parametrize("folder", ["eval_seed0", "train_seed0", "run/seed0"])
def test_a_folder_that_says_which_seed_is_meant_names_no_lineage(tmp_path: Path, folder: str) -> None:
    log(tmp_path / "logs", *session(f"output/{folder}/model_final.pth"), *copied(*VALUES))
    with pytest.raises(UserError, match="the log does not say the lineage: give --lineage"):
        import_logs([tmp_path / "logs"], Told(), tmp_path)


def test_rows_of_two_branches_are_kept(tmp_path: Path) -> None:
    """Also of one run, whose file both branches began; and what contradicts itself then is told."""
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    run(tmp_path, "git", "init", "-q", "-b", "ours")
    run(tmp_path, "git", "config", "user.email", "test@example.invalid")
    run(tmp_path, "git", "config", "user.name", "test")
    run(tmp_path, "git", "add", "-A")
    run(tmp_path, "git", "commit", "-qm", "start")
    run(tmp_path, "git", "branch", "theirs")
    for branch, eval_seeds, second in (("ours", (0, 2), "51"), ("theirs", (1, 2), "52")):
        run(tmp_path, "git", "checkout", "-q", branch)
        for seed, first in zip(eval_seeds, ("50", second), strict=True):
            path = log(
                tmp_path / "logs", *session("baseline/seed0/model_final.pth", seed=seed), *copied(first, *VALUES[1:])
            )
            import_logs([path], Told(), tmp_path)
        run(tmp_path, "git", "add", "imported")
        run(tmp_path, "git", "commit", "-qm", branch)
        if branch == "ours":
            continue
        run(tmp_path, "git", "merge", "-q", "--no-edit", "ours")
    kept = rows_of(tmp_path / "imported/baseline/seed0/results.tsv")
    assert sorted((row["eval_seed"], row["AP"]) for row in kept) == [
        *[("0", "50.0000"), ("1", "50.0000"), ("2", "51.0000"), ("2", "52.0000")],
    ]
    with pytest.raises(UserError, match=r"results\.tsv: 2 rows for run baseline, train_seed 0, eval_seed 2"):
        read_imported(tmp_path)


def test_imported_rows_stay_apart_from_evaluated_ones(reported: Path) -> None:
    before = {path: path.read_bytes() for path in reported.glob("evals/**/*.tsv")}
    begun = session("old/baseline/seed0/model_final.pth")
    import_logs([log(reported / "old", *begun, *copied(*VALUES))], Told(), reported)
    assert before and {path: path.read_bytes() for path in before} == before
    spec = reported / "spec.yaml"
    both = [{"lineage": "baseline", "train_seeds": [0]}, {"lineage": "baseline", "imported": True}]
    spec.write_text(yaml.safe_dump({"columns": ["AP"], "rows": both}))
    own, theirs = make_table(spec, lambda: load_experiment(ROOT), reported).lines
    assert theirs.values["AP"] == pytest.approx(46.4293) != own.values["AP"]


def test_a_row_says_what_the_log_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = Path("output/baseline_seed2/model_final.pth")
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    guided = {"QUALITY_GUIDANCE_SCALE": 0.1, "QUALITY_GUIDANCE_STEPS": 2, "QUALITY_GUIDANCE_TOPK": 50}
    path = log(
        tmp_path / "logs",
        *session(str(weights), seed=42, steps=5, **guided),
        stamped("Loaded 87 images in COCO format from val.json", "detectron2.data.datasets.coco"),
        *per_class(car="50.125", motorbike="40.5", person="nan"),
        stamped("Evaluation results for street_val in csv format:", "detectron2.engine.defaults"),
        *copied(*VALUES),
    )
    import_logs([tmp_path / "logs"], Told())
    (row,) = rows_of(tmp_path / "imported/baseline/seed2/results.tsv")
    line = path.read_text().splitlines().index(copied(*VALUES)[0]) + 1
    assert row == {
        "run": "baseline", "train_seed": "2", "eval_seed": "42", "sample_step": "5", "guidance_scale": "0.1",
        "guidance_mode": "all", "guidance_steps": "2", "guidance_topk": "50", "crops": "0",
        "AP": "46.4293", "AP50": "70.1000", "AP75": "50.2500", "APs": "nan", "APm": "40.0000", "APl": "60.0000",
        "AP-car": "50.1250", "AP-motorbike": "40.5000", "AP-person": "nan", "images": "87",
        "dataset": "street_val", "ckpt": str(weights),
        "ckpt_sha256": sha256(b"weights").hexdigest(), "source": f"{path}:{line}",
        "source_sha256": sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip


def test_detectron2_appends_and_every_start_is_a_session_of_its_own(tmp_path: Path) -> None:
    weights = "baseline/seed0/model_final.pth"
    lines = [line for seed in (0, 1) for line in (*session(weights, seed=seed), *copied(f"{40 + seed}", *VALUES[1:]))]
    import_logs([log(tmp_path, *lines)], Told(), tmp_path)
    assert [(row["eval_seed"], row["AP"]) for row in rows_of(tmp_path / "imported/baseline/seed0/results.tsv")] == [
        ("0", "40.0000"),
        ("1", "41.0000"),
    ]


def test_evaluations_while_training_count_only_at_its_end_and_with_an_eval_seed(tmp_path: Path) -> None:
    training = session("baseline/seed0/R-50.pkl", seed=7, eval_only=False)
    for iteration, ap in ((4999, "30.0"), (9979, "46.0")):
        training += [stamped(f" eta: 0:01  iter: {iteration}  loss: 1"), *copied(ap, *VALUES[1:])]
    path = log(tmp_path / "a", *training)
    with pytest.raises(UserError, match="all evaluations were made while training; the last one of each finished"):
        import_logs([path], Told(), tmp_path)
    imported = import_logs([path], Told(eval_seed=0), tmp_path)
    (row,) = rows_of(tmp_path / "imported/baseline/seed0/results.tsv")
    assert (row["AP"], row["ckpt"]) == ("46.0000", "baseline/seed0/model_final.pth")
    assert imported.notes[0].startswith("1 evaluation made while training left out")
    killed = log(tmp_path / "b", *training[: -len(copied(*VALUES)) - 1])
    with pytest.raises(UserError, match="all evaluations were made while training"):
        import_logs([killed], Told(eval_seed=0), tmp_path)


def test_the_train_seed_may_be_that_of_the_trainings_own_log(tmp_path: Path) -> None:
    log(tmp_path / "a", *session("out/R-50.pkl", seed=3, eval_only=False), stamped("iter: 19  loss: 1"))
    log(tmp_path / "b", *session("out/model_final.pth", seed=1), *copied(*VALUES))
    import_logs([tmp_path], Told(lineage="baseline"), tmp_path)
    (row,) = rows_of(tmp_path / "imported/baseline/seed3/results.tsv")
    assert row["eval_seed"] == "1"


def test_options_stand_over_logs_and_later_imports_join(tmp_path: Path) -> None:
    bare = log(tmp_path / "bare", *copied(*VALUES))  # such as lines kept in a mail
    told = Told(lineage="baseline", train_seed=0, eval_seed=4, sample_step=1)
    begun = session("other/seed9/model_final.pth")
    for path in (log(tmp_path / "full", *begun, *copied(*VALUES)), bare):
        imported = import_logs([path], Told(**{**vars(told), "eval_seed": 0 if path != bare else 4}), tmp_path)
    assert list(imported.rows.values()) == [2]
    assert import_logs([bare], told, tmp_path).rows == imported.rows  # the same again changes nothing
    broken = log(tmp_path / "again", *copied("46.5", *VALUES[1:]))
    with pytest.raises(UserError, match=r"again/log.txt:1 and .*bare/log.txt:1 are both of run baseline, train_seed 0"):
        import_logs([broken], told, tmp_path)


def with_bom(path: Path) -> None:
    path.write_text(path.read_text(), encoding="utf-8-sig")


def with_short_zeros(path: Path) -> None:
    path.write_text(path.read_text().replace("\t0.0\t", "\t0\t"))


def through_pandas(path: Path) -> None:
    pd.read_csv(path, sep="\t", keep_default_na=False).to_csv(path, sep="\t", index=False)


@pytest.mark.parametrize("saved", [with_bom, with_short_zeros, through_pandas])
def test_what_another_program_saved_is_the_same(tmp_path: Path, saved: Callable[[Path], None]) -> None:
    logs = [
        log(tmp_path / f"{seed}", *session("baseline/seed0/model_final.pth", seed=seed), *copied(*VALUES))
        for seed in (10, 9)
    ]
    import_logs(logs, Told(), tmp_path)
    results = tmp_path / "imported/baseline/seed0/results.tsv"
    before, as_written = read_imported(tmp_path), results.read_bytes()
    saved(results)
    assert results.read_bytes() != as_written
    assert list(import_logs(logs[:1], Told(), tmp_path).rows.values()) == [2]
    pd.testing.assert_frame_equal(read_imported(tmp_path), before)
    other = log(tmp_path / "other", *session("baseline/seed0/model_final.pth", seed=9), *copied("46.5", *VALUES[1:]))
    with pytest.raises(UserError, match=r"are both of run baseline, train_seed 0, eval_seed 9, .* but AP is 46\.5000"):
        import_logs([other], Told(), tmp_path)


@pytest.mark.parametrize(
    ("lines", "told", "sentence"),
    [
        (["nothing here"], Told(), "no line says `copypaste: Task: bbox`"),
        (copied(*VALUES)[:2], Told(), "line 1: the evaluation is cut off"),
        (copied(*VALUES[:4]), Told(), "line 1: the evaluation is cut off"),
        (copied("46.4", "7O.1", *VALUES[2:]), Told(), "line 3: '7O.1' is no AP"),
        (copied("146.4", *VALUES[1:]), Told(), "line 3: '146.4' is no AP"),
        (copied(*VALUES), Told(), "the log does not say the lineage: give --lineage"),
        (copied(*VALUES), Told(lineage="baseline"), "the log does not say the train seed: give --train-seed"),
        (copied(*VALUES), Told(lineage="baseline", train_seed=0), "does not say the eval seed: give --eval-seed"),
        (copied(*VALUES), Told("baseline", 0, 0), "does not say the sampling steps: give --sample-step"),
        (copied(*VALUES), Told("Base line", 0, 0, 1), "is no lineage"),
        ([*session("a/seed0/x.pth", seed=-1), *copied(*VALUES)], Told(), "does not say the eval seed"),
        (
            [*session("a/x.pth", seed=-1, eval_only=False), *session("a/x.pth"), *copied(*VALUES)],
            Told(lineage="a"),
            "does not say the train seed",
        ),
        ([stamped("Running with full config:"), "A: [1"], Told(), "line 1: the configuration after it is no YAML"),
        (
            [line for ap in ("1", "2") for line in (*session("a/seed0/x.pth"), *copied(ap, *VALUES[1:]))],
            Told(),
            "but AP is 2.0000 and 1.0000: leave one of them out",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_and_nothing_is_written(
    tmp_path: Path, lines: list[str], told: Told, sentence: str
) -> None:
    good = log(tmp_path / "good", *session("baseline/seed0/model_final.pth"), *copied(*VALUES))
    bad = log(tmp_path / "bad", *lines)
    with pytest.raises(UserError, match=re.escape(sentence)):
        import_logs([bad] if "Task" in sentence else [good, bad], told, tmp_path)
    assert not (tmp_path / "imported").exists()


def test_the_verb(reported: Path, command_line: Callable[..., tuple[int, str, str]]) -> None:
    log(reported / "old", *session("baseline/seed0/model_final.pth"), *copied(*VALUES))
    log(reported / "old/idle", *session("baseline/seed0/model_final.pth"))
    code, said, _ = command_line("import-logs", "old")
    assert code == 0 and said.splitlines() == [
        "note: old/idle/log.txt holds no evaluation",
        "note: baseline/seed0/model_final.pth not here, so ckpt_sha256 is empty",
        "imported/baseline/seed0/results.tsv: 1 row",
    ]
    code, _, told = command_line("import-logs", "nowhere")
    assert code == 2 and "nowhere does not exist" in told


def test_logs_that_detectron2_itself_writes(tmp_path: Path) -> None:
    pytest.importorskip("detectron2", reason="Detectron2 is on no package index; README says how to install it")
    from detectron2.config import get_cfg
    from detectron2.engine import default_argument_parser, default_setup
    from detectron2.evaluation import print_csv_format

    config = get_cfg()
    config.OUTPUT_DIR, config.SEED = str(tmp_path / "baseline/seed1"), 4
    config.MODEL.WEIGHTS = f"{config.OUTPUT_DIR}/model_final.pth"
    default_setup(config, default_argument_parser().parse_args(["--eval-only", "SEED", "4"]))
    scores = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), map(float, VALUES), strict=True))
    print_csv_format({"bbox": {**scores, "AP-car": 50.0}})
    logging.shutdown()
    sessions, evaluations = read_log(tmp_path / "baseline/seed1/log.txt")
    assert [(each.eval_only, each.value("SEED"), each.value("MODEL.WEIGHTS")) for each in sessions] == [
        (True, 4, config.MODEL.WEIGHTS)
    ]
    assert [float(evaluations[0].metrics[name]) for name in ("AP", "AP50")] == [46.4293, 70.1]
    import_logs([tmp_path], Told(sample_step=1), tmp_path)
    (row,) = rows_of(tmp_path / "imported/baseline/seed1/results.tsv")
    assert (row["eval_seed"], row["AP"], row["APs"]) == ("4", "46.4293", "nan")
