"""What moves the weights: AdamW with a rate per group, a learning rate that is a function of the step, and EMA."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from noisebox.config import SolverConfig
from noisebox.models import Model


def build_optimizer(model: Model, solver: SolverConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the trainable parameters; each group's `multiplier` scales its rate.

    A multiplier of 0 freezes: those parameters leave the optimiser and need no gradient, so nothing is computed for
    them. What the model itself has frozen stays so.
    """
    parts = model.parts()
    named = {id(parameter) for parameters in parts.values() for parameter in parameters}
    others = [parameter for parameter in model.parameters() if id(parameter) not in named]
    groups: list[dict[str, Any]] = [{"params": others, "multiplier": 1.0}]
    for part, every in parts.items():
        parameters = [parameter for parameter in every if parameter.requires_grad]
        multiplier = getattr(solver, f"{part}_multiplier")
        if multiplier > 0 and parameters:
            groups.append({"params": parameters, "multiplier": multiplier})
        for parameter in parameters:
            parameter.requires_grad_(multiplier > 0)
    return torch.optim.AdamW(groups, lr=solver.lr, weight_decay=solver.weight_decay, fused=True)


def train_mode(model: nn.Module) -> None:
    """Put a model into training mode, but for the parts whose parameters are all frozen: their running statistics and
    their dropout must rest too."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def learning_rate(step: int, solver: SolverConfig) -> float:
    """The rate of step 0, 1, …: linear warm-up from `warmup_factor`, times `decay_factor` at each passed milestone."""
    warmup = min(1.0, step / solver.warmup_iters) if solver.warmup_iters else 1.0
    passed = sum(step >= round(fraction * solver.iterations) for fraction in solver.decay_at)
    factor: float = (solver.warmup_factor + (1 - solver.warmup_factor) * warmup) * solver.decay_factor**passed
    return solver.lr * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


class Ema:
    """The exponential moving average of a model's weights: after each step, average += (1 - decay) (weights - average).

    It starts at the weights that the training starts from. Buffers and integers are copied as they are.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for average, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(weight, 1 - self.decay)
        for copied, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.model.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)
