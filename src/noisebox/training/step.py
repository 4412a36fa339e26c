"""One optimiser step: loss terms summed, gradients accumulated and clipped, weights moved. It knows no files."""

import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from noisebox import processes
from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.machine import check_device, compile_parts, prepare
from noisebox.models import Model
from noisebox.models.winograd import use_winograd
from noisebox.structures import Examples
from noisebox.training.distill import Lesson
from noisebox.training.optim import Ema, build_optimizer, learning_rate, set_learning_rate, train_mode


class Trainer:
    """A detector with its optimiser, EMA and loss scaler. Step s is a pure function of their state, s and its batch."""

    def __init__(self, config: RunConfig, detector: Model, teacher: Model | None = None) -> None:
        """With a distilling configuration, `teacher` is what the detector learns from.

        Raises UserError when the device is not there.
        """
        self.config, self.detector = config, detector
        models = [detector, *([teacher] if teacher else [])]
        if config.solver.winograd:
            use_winograd(*models)
        self.accelerator = _accelerator(config)
        optimizer = build_optimizer(detector, config.solver)
        detector.to(self.accelerator.device)
        self.ema = Ema(detector, config.solver.ema_decay) if config.solver.ema_decay else None
        model: nn.Module = detector
        if config.distill and teacher:
            model = Lesson(detector, teacher.to(self.accelerator.device), config.distill)
        if config.solver.compile:
            compile_parts(self.accelerator.device, *models)
        self._model, self._optimizer = self.accelerator.prepare(model, optimizer)
        train_mode(detector)

    def update(self, batch: Examples, step: int) -> dict[str, float]:
        """Take the optimiser step number `step` (from 0), on this process's share of its batch; returns the loss terms
        of the whole batch and what else the detector monitors, their Means over the micro-batches.

        Raises UserError when a loss term or the gradient is not finite; the weights are then as they were.
        """
        solver = self.config.solver
        set_learning_rate(self._optimizer, learning_rate(step, solver))
        means = Means()
        share = len(batch) // solver.accumulate
        for index in range(1, solver.accumulate + 1):
            part = batch.part(slice((index - 1) * share, index * share))
            # With several processes, gradients need to be exchanged only after the last micro-batch.
            sync = nullcontext() if index == solver.accumulate else self.accelerator.no_sync(self._model)
            with repeatable_attention(self.accelerator.device), sync:
                terms = self._model(part.to(self.accelerator.device), self.config.seed, step)
                values = dict(zip(terms, processes.mean(torch.stack(list(terms.values()))).tolist(), strict=True))
                for name, value in values.items():
                    if is_loss(name) and not math.isfinite(value):
                        raise self._not_finite(f"loss term {name}", value, step)
                means.add(values)
                loss = sum(term for name, term in terms.items() if is_loss(name))
                self.accelerator.backward(loss / solver.accumulate)
        norm = float(self.accelerator.clip_grad_norm_(self.detector.parameters(), solver.clip_norm or math.inf))
        # Under fp16 an overflow is what the loss scaler looks for: it leaves the step out and scales less.
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise self._not_finite("the gradient's norm", norm, step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.detector)
        return means.values()

    def result(self) -> Model:
        """The detector that is evaluated and published: the averaged weights where EMA is on."""
        return self.ema.model if self.ema else self.detector

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, but the step's number."""
        scaler = self.accelerator.scaler
        return {
            "model": self.detector.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. Where another configuration made it, the settings of this one hold, and an average or a
        loss scaler that it lacks starts anew.

        Raises RuntimeError or ValueError when weights or optimiser do not fit.
        """
        self.detector.load_state_dict(state["model"])
        settings = [{key: group[key] for key in ("multiplier", "weight_decay")} for group in self._groups()]
        self._optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self._groups(), settings, strict=True):
            group.update(own)
        if self.ema:
            self.ema.load_state_dict(state["ema"] or state["model"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def _not_finite(self, what: str, value: float, step: int) -> UserError:
        config = self.config
        ways = "lower solver.base_lr or lengthen solver.warmup_iters"
        if config.precision == "fp16":
            ways = f"fp16 overflows easily, so train with precision bf16 or fp32, or {ways}"
        return UserError(f"{config.lineage} seed{config.seed}: {what} is {value} at iteration {step + 1}; {ways}")


def repeatable_attention(device: torch.device) -> AbstractContextManager[None]:
    """Within it, attention has the same gradient every time. On GPUs the fused kernels add it up in whatever order its
    parts come, unless warnings were errors; training alone does without them."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


def is_loss(name: str) -> bool:
    """Whether a term is minimised; the others are monitors."""
    return name.startswith(("loss_", "L"))


class Means:
    """The means of terms that are added one by one. A monitor is nan where there is nothing to measure, such as boxes
    in an image without objects, and its mean is that of the others; a loss that is nan stays so."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self._without: dict[str, int] = {}  # how often a monitor was nan

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "count": self._count, "without": self._without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._count = dict(state["sums"]), state["count"]
        self._without = dict(state.get("without", {}))  # older checkpoints do not tell

    def names(self) -> list[str]:
        return sorted(self._sums)

    def add(self, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            unknown = math.isnan(value) and not is_loss(name)
            self._sums[name] = self._sums.get(name, 0.0) + (0.0 if unknown else value)
            self._without[name] = self._without.get(name, 0) + unknown
        self._count += 1

    def values(self) -> dict[str, float]:
        """The means, nan for a monitor that always was."""
        counts = {name: self._count - self._without.get(name, 0) for name in self._sums}
        return {name: self._sums[name] / count if count else math.nan for name, count in counts.items()}


def summed(terms: dict[str, float]) -> float:
    """The loss that is minimised."""
    return math.fsum(value for name, value in terms.items() if is_loss(name))


def _accelerator(config: RunConfig) -> Accelerator:
    """Device and precision of the configuration, with the process set up for repeatable results."""
    check_device(config)
    prepare(config.threads)
    if config.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing here reads memory before it is written, and filling it all takes a tenth of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Accelerate keeps its settings for the whole process; another training in it may have had others.
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = {"fp32": "no"}.get(config.precision, config.precision)
    # The losses leave no parameter out. But looking for such, DDP sums gradients in the same groups from its first step
    # on; else a resumed training of three processes would round otherwise. See docs/processes.md for what it costs.
    ways = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=config.device == "cpu", mixed_precision=precision, kwargs_handlers=[ways])
