"""The one training loop: from a configuration and a stream of batches to the files of a run folder.

Killed at any instant and started again, it ends at the same bytes (but for `run.json`, which tells the time): batches,
noise and learning rate are functions of the step, `work/last.pth` holds everything else, and every file is written
whole or not at all. Asked to end by a signal, it saves first; see docs/faults.md. Where several processes share it, the
first one writes; what one meets, a signal or a mistake, is told to all between two steps; see docs/processes.md.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from noisebox import graph, processes
from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.files import write_text
from noisebox.interrupt import Interrupted, held_back
from noisebox.models import BOX_MONITORS, Model, build_model
from noisebox.progress import Progress
from noisebox.structures import Examples
from noisebox.tasks import Task
from noisebox.training.checkpoint import LoadReport, load_checkpoint, load_weights, save_checkpoint, write_sha256
from noisebox.training.distill import load_teacher
from noisebox.training.folder import claimed, clear, load_last, publish, save_last, take_back
from noisebox.training.metrics import Metrics
from noisebox.training.optim import learning_rate, train_mode
from noisebox.training.provenance import HARMLESS, Record, changes, difference, environment, fingerprint
from noisebox.training.step import Trainer, summed

Batches = Callable[[int, int], Iterable[Examples]]
Validate = Callable[[Model], float]
IfChanged = Literal["refuse", "resume", "fresh"]

log = logging.getLogger("noisebox")


def train_task(
    task: Task,
    run: Path,
    *,
    parent: Path | None = None,
    teacher: Path | None = None,
    if_changed: IfChanged = "refuse",
    keep: bool = False,
    still_asked: Callable[[], None] | None = None,
) -> None:
    """Train a task in the folder `run` as `train` does: its model on its batches, measured by its metric."""
    train(
        task.config,
        run,
        task.classes,
        task.batches,
        task.data_hash,
        metric=task.metric,
        validate=task.validate,
        parent=parent,
        teacher=teacher,
        images=task.images,
        if_changed=if_changed,
        keep=keep,
        still_asked=still_asked,
    )


def train(
    config: RunConfig,
    run: Path,
    classes: Sequence[str],
    batches: Batches,
    data_hash: str,
    *,
    metric: str = "AP",
    validate: Validate | None = None,
    parent: Path | None = None,
    teacher: Path | None = None,
    root: Path = Path(),
    images: int | None = None,
    if_changed: IfChanged = "refuse",
    keep: bool = False,
    still_asked: Callable[[], None] | None = None,
) -> None:
    """Train, or go on with, one run, and publish `graph.run_files` in the folder `run`.

    `batches(start, stop)` gives the batches of the steps start … stop - 1, each a function of its step, or of each the
    share of this process. `validate`
    gives a model's `metric`, higher is better; it is asked every `solver.eval_every` steps and after the last.
    `parent` is the checkpoint to start from, `teacher` the one to learn from where the configuration distils. `root` is
    the repository, for the hashes of the code and the commit. `images`, how many make an epoch, is needed where
    checkpoints of epochs are kept. `if_changed` says what to do with an interrupted training of another configuration,
    code or input: refuse unless the change is harmless, go on with the new one ("resume"), or start anew ("fresh").
    `keep` is for a run that an engine has to note: what it has lost then comes back without training. `still_asked`
    raises UserError where the result is no longer what is asked for; then it stays in `work/`.

    Raises UserError when the folder is taken or cannot be written, parent or teacher do not fit, the device is not
    there, an interrupted training is refused, or a loss is not finite; `work/last.pth` then stays whole. Raises
    Interrupted after a signal, when the step under way is done and saved.
    """
    if config.distill and teacher is None:
        raise UserError(f"{config.lineage} distils, so it needs a teacher's checkpoint")
    solver = config.solver
    processes.rows_of(solver.batch_size, solver.accumulate, processes.number(), processes.count())  # or raises
    with processes.company(), claimed(run) as work:
        with processes.agreed():
            if processes.first():
                take_back(run)
            detector = build_model(config, len(classes), fetch_weights=parent is None)
            mentor, its_config = load_teacher(teacher, config, detector, classes) if teacher else (None, None)
            loaded = _warm_start(config, detector, parent, classes)
            inputs = fingerprint(config.family, parent, teacher, data_hash, root)
        training = _Training(config, classes, Trainer(config, detector, mentor), inputs, work, metric)
        resumed = training.resume(if_changed)
        facts = _facts(config, inputs) | _descent(parent, loaded, inputs) | _lesson(config, teacher, its_config, inputs)
        facts |= {"changes": training.changes}
        record = Record(work / "run.json", facts | environment(config, root), resumed)
        with processes.agreed():
            if processes.first():
                training.describe()
                record.write()
        label = f"{config.lineage} seed{config.seed}"
        remaining = range(training.step, solver.iterations)
        # Closed however the training ends: the loader's processes would be waited for in vain.
        made = closing(processes.together(batches(training.step, solver.iterations)))
        with Progress(label, solver.iterations, training.step) as progress, held_back() as held, made as stream:
            for _, batch in zip(remaining, stream, strict=True):
                loss = training.advance(batch)
                training.keep_epoch(images)
                evaluating = training.due(solver.eval_every)
                if evaluating and validate:
                    training.validate(validate)
                signal = processes.highest(held.number or 0)
                if evaluating or training.due(solver.checkpoint_every) or signal:
                    with processes.agreed():
                        if processes.first():
                            training.save()
                            record.write()
                progress.advance(1, loss=loss)
                if signal:
                    raise Interrupted(signal, f"{run} is saved at iteration {training.step}, run again to go on")
        with processes.agreed():
            if processes.first():
                training.finish()
                record.write()
                if still_asked:
                    still_asked()
                publish(run, graph.run_files(graph.line_of(config.family)), keep=keep)


class _Training:
    """A training under way: what it has reached, and the way of that to `work/` and back."""

    def __init__(
        self,
        config: RunConfig,
        classes: Sequence[str],
        trainer: Trainer,
        inputs: dict[str, Any],
        work: Path,
        metric: str,
    ) -> None:
        self.config, self.classes, self.trainer, self.inputs, self.work = config, classes, trainer, inputs, work
        self.metrics = Metrics(work / "metrics.csv", graph.Lineage.parse(config.lineage).recipe, metric)
        self.best_file = work / graph.best_checkpoint(graph.line_of(config.family))
        self.step = 0  # optimiser steps taken
        self.best: float | None = None  # the highest metric so far
        self.warned = False  # of collapsed boxes
        self.changes: list[dict[str, Any]] = []  # of configuration or inputs, under way

    def resume(self, if_changed: IfChanged) -> bool:
        """Go on from `work/last.pth` if it was made from the same inputs, or is to be gone on with all the same;
        otherwise empty `work/`."""
        state = processes.in_turn(lambda: load_last(self.work))
        if state is not None:
            now = {"config": self.config.model_dump(mode="json"), **self.inputs}
            before = {"config": state.get("config"), **state.get("fingerprint", {})}
            changed = difference(before, now)
            if changed is None:
                self._restore(state)
                log.info("%s: going on after iteration %d", self.work.parent, self.step)
                return True
            if if_changed == "resume" or (if_changed == "refuse" and set(changes(before, now)) <= set(HARMLESS)):
                self._restore_changed(state, changed)
                return True
            refusal = f"{self.work.parent}: not going on with the interrupted training, because {changed}"
            if if_changed == "refuse":
                raise UserError(
                    f"{refusal}; add --if-changed resume to go on with the new one, --if-changed fresh to start anew"
                )
            log.warning(refusal)
        if processes.first():
            clear(self.work)
        return False

    def advance(self, batch: Examples) -> float:
        """Take one step and write the row that is due; returns the loss."""
        terms = self.trainer.update(batch, self.step)
        rate = learning_rate(self.step, self.config.solver)
        self.step += 1
        self.metrics.add(terms)
        if self.due(self.config.solver.log_every):
            self._warn_of_collapse(self.metrics.write_train(self.step, rate))
        return summed(terms)

    def _warn_of_collapse(self, means: dict[str, float]) -> None:
        """Say once when predicted boxes have shrunk to points or lines, as geometry from scratch has made them."""
        for side in BOX_MONITORS:
            if means.get(side, math.inf) < 1 and not self.warned:
                self.warned = True
                log.warning(
                    "%s seed%d: at iteration %d the %s of predicted boxes is %.2f pixels: they are collapsing; "
                    "a lower rate, or starting from a trained parent, helps",
                    self.config.lineage, self.config.seed, self.step, side.replace("_", " "), means[side],
                )  # fmt: skip

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens now; 0 is never."""
        return every > 0 and (self.step % every == 0 or self.step == self.config.solver.iterations)

    def validate(self, validate: Validate) -> None:
        """Measure the metric, and keep the weights in `best_file` if it is the highest so far."""
        detector = self.trainer.result()
        detector.eval()
        with torch.no_grad():
            value = validate(detector)
        train_mode(self.trainer.detector)
        self.metrics.write_validation(self.step, value)
        score = -math.inf if math.isnan(value) else value
        if self.best is None or score > self.best:
            self.best = score
            if processes.first():
                save_checkpoint(self.best_file, self._result())

    def keep_epoch(self, images: int | None) -> None:
        """Write `checkpoint_epoch_N.pth` when an epoch that is to be kept ended with this step."""
        solver = self.config.solver
        if images and solver.checkpoint_epochs and processes.first():
            before, ended = (solver.epochs_in(step, images) for step in (self.step - 1, self.step))
            kept = ended // solver.checkpoint_epochs * solver.checkpoint_epochs
            if kept > before:
                save_checkpoint(self.work / graph.EPOCHS.replace("*", str(kept)), self._result())

    def save(self) -> None:
        """Write `last.pth`, from which `resume` goes on."""
        state = {
            **self._described(self.trainer.state_dict()),
            "best": self.best,
            "metrics": self.metrics.state_dict(),
            "fingerprint": self.inputs,
            "changes": self.changes,
        }
        save_last(self.work, state)

    def finish(self) -> None:
        """Put into `work/` what is still missing of the run's files."""
        save_checkpoint(self.work / "model_final.pth", self._result())
        if self.best is None or not self.best_file.exists():  # unmeasured, it is of a shorter training, if it is there
            save_checkpoint(self.best_file, self._result())
        for path in (self.best_file, self.work / "last.pth", *self.work.glob(graph.EPOCHS)):
            write_sha256(path)  # a kill may have come between a checkpoint and its hash

    def describe(self) -> None:
        """Write `config.yaml`."""
        content = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        write_text(self.work / "config.yaml", content)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["iteration"] > self.config.solver.iterations:
            raise UserError(
                f"{self.work.parent}: the interrupted training has done {state['iteration']} iterations, more than the "
                f"{self.config.solver.iterations} that are asked for now: ask for more, or add --if-changed fresh to "
                "start anew"
            )
        self.trainer.load_state_dict(state)
        self.metrics.load_state_dict(state["metrics"])
        self.step, self.best = state["iteration"], state["best"]
        self.changes = state.get("changes", [])

    def _restore_changed(self, state: dict[str, Any], changed: str) -> None:
        """Go on although something changed; what is kept of it goes into `run.json`."""
        try:
            self._restore(state)
        except (RuntimeError, ValueError):
            raise UserError(
                f"{self.work.parent}: the interrupted training does not fit the model any more, because {changed}; "
                "add --if-changed fresh to start anew"
            ) from None
        self.changes = [*self.changes, {"after_iteration": self.step, "what": changed}]
        log.warning("%s: going on after iteration %d, although %s", self.work.parent, self.step, changed)

    def _result(self) -> dict[str, Any]:
        return self._described({"model": self.trainer.result().state_dict()})

    def _described(self, weights: dict[str, Any]) -> dict[str, Any]:
        config = self.config.model_dump(mode="json")
        return {**weights, "config": config, "classes": list(self.classes), "iteration": self.step}


def _warm_start(config: RunConfig, detector: Model, parent: Path | None, classes: Sequence[str]) -> LoadReport | None:
    if parent is None:
        return None
    state = load_checkpoint(parent)
    report = load_weights(detector, state, parent)
    log.warning("%s seed%d starts from %s: %s", config.lineage, config.seed, parent, report)
    before = state.get("classes", classes)
    if len(before) == len(classes) and list(before) != list(classes):  # of another number, they would be new
        was, now = next(pair for pair in zip(before, classes, strict=True) if pair[0] != pair[1])
        log.warning("%s was trained on other classes: its weights of %s now stand for %s, for one", parent, was, now)
    return report


def _facts(config: RunConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says of the run itself."""
    facts = {name: getattr(config, name) for name in ("lineage", "seed", "scale", "dataset")}
    return {**facts, "data_hash": inputs["data"], "iterations": config.solver.iterations}


def _descent(parent: Path | None, loaded: LoadReport | None, inputs: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says of the checkpoint that a run started from."""
    origin = {"checkpoint": str(parent), "sha256": inputs["parent"], **asdict(loaded)} if loaded else None
    return {"parent": origin}


def _lesson(
    config: RunConfig, teacher: Path | None, its_config: RunConfig | None, inputs: dict[str, Any]
) -> dict[str, Any]:
    """What `run.json` says of the teacher."""
    if teacher is None or its_config is None or config.distill is None:
        return {"teacher": None}
    who = {"lineage": its_config.lineage, "seed": its_config.seed, "checkpoint": str(teacher)}
    how = config.distill.model_dump(exclude={"enable", "teacher", "teacher_seed"})
    return {"teacher": {**who, "sha256": inputs["teacher"], **how}}
