"""Both engines' graphs, resolved by the engines themselves and brought to one form, for tests that compare them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo

SNAKEMAKE = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    resolved = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=Path("Snakefile"))
    dag = resolved.dag(DAGSettings(targets=set(sys.argv[1:]), forceall=True))
    dag.execute_workflow(executor="dryrun")
    jobs = [job for job in dag.workflow_api._workflow.dag.jobs if job.shellcmd]
    print("JOBS" + json.dumps([
        {"rule": job.rule.name, "command": job.shellcmd, "inputs": [str(path) for path in job.input],
         "outputs": [str(path) for path in job.output], "params": dict(job.params.items()),
         "log": list(map(str, job.log)), "benchmark": str(job.benchmark or ""), "threads": job.threads,
         "message": job.message, "resources": {key: job.resources[key] for key in job.resources.keys()}}
        for job in jobs]))
"""


@dataclass(frozen=True)
class Job:
    """One job as an engine sees it; paths relative to the repository."""

    command: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    params: tuple[tuple[str, str], ...]


def snakemake_details(root: Path, *targets: str) -> list[dict[str, Any]]:
    """Every job of Snakemake's graph for the targets (by default all), whether it needs to run or not."""
    command = [sys.executable, "-c", SNAKEMAKE, *targets]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("JOBS")), None)
    assert line, done.stdout + done.stderr
    return list(json.loads(line.removeprefix("JOBS")))


def snakemake_jobs(root: Path, *targets: str) -> dict[frozenset[str], Job]:
    jobs = [
        Job(each["command"], frozenset(each["inputs"]), frozenset(each["outputs"]), _params(each["params"]))
        for each in snakemake_details(root, *targets)
    ]
    return {job.outputs: job for job in jobs}


def dvc_jobs(root: Path) -> dict[frozenset[str], Job]:
    """Every stage of dvc.yaml: parameter files are inputs, and a folder is the files that lie or are made in it."""
    with Repo(str(root)) as repo:
        stages = [stage for stage in repo.index.stages if stage.cmd]
        made = {_relative(out.fs_path, root) for stage in stages for out in stage.outs}
        jobs = []
        for stage in stages:
            inputs, params = set(), {}
            for dep in stage.deps:
                path = _relative(dep.fs_path, root)
                if values := getattr(dep, "params", None):
                    params.update({key: dep.read_params()[key] for key in values})
                elif (root / path).is_dir() or any(out.startswith(path + "/") for out in made):
                    inputs |= {out for out in made if out.startswith(path + "/")}
                    inputs |= {_relative(file, root) for file in repo.dvcignore.find(dep.fs, dep.fs_path)}
                else:
                    inputs.add(path)
            outputs = frozenset(_relative(out.fs_path, root) for out in stage.outs)
            jobs.append(Job(stage.cmd, frozenset(inputs), outputs, _params(params)))
    return {job.outputs: job for job in jobs}


def _relative(path: str | Path, root: Path) -> str:
    return Path(os.path.relpath(Path(path).resolve(), root.resolve())).as_posix()


def _params(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """By one word of their keys: DVC names `asked.baseline` and `bev.protocol` what Snakemake calls `asked` and
    `protocol`."""
    words = {re.sub(r"^(aerial|bev)\.", "", key).partition(".")[0]: value for key, value in values.items()}
    return tuple(sorted((word, json.dumps(value, sort_keys=True)) for word, value in words.items()))
