"""The ways to sample from a checkpoint, which evaluations are asked for and their rows are keyed by."""

from collections.abc import Mapping
from typing import Any, Literal

from noisebox.config.section import NotNegative, Positive, Section


class GuidanceConfig(Section):
    """Quality guidance at inference (after classifier guidance, Dhariwal and Nichol 2021): at each guided step the
    noisy boxes climb `langevin_steps` times, by `scale`, the gradient of the quality that the head predicts.

    `mode: final` guides the last sampling step alone. `normalise` gives each proposal's gradient unit length. `topk`
    lets only so many proposals move, those with the highest class scores. Scale 0 is no guidance.
    """

    scale: NotNegative = 0.0
    mode: Literal["final", "all"] = "all"
    langevin_steps: Positive = 1
    normalise: bool = True
    topk: Positive | None = None


UNNORMALISED = "_unnormalised"  # what follows the mode in a table where gradients keep their length
UNGUIDED = (0.0, "none", 0, 0)  # the columns of guidance where there is none


class Sampling(Section):
    """One way to sample from a checkpoint: so many steps, with which guidance, and with or without a second look at
    `crops` around the densest places."""

    steps: Positive
    guidance: GuidanceConfig = GuidanceConfig()
    crops: bool = False

    def columns(self) -> dict[str, Any]:
        """This way as columns of results.tsv and speed.tsv: without guidance 0, `none`, 0, 0; `guidance_topk` 0 lets
        every proposal move; `crops` is 0 or 1."""
        guidance = self.guidance
        mode = guidance.mode if guidance.normalise else f"{guidance.mode}{UNNORMALISED}"
        cells = (guidance.scale, mode, guidance.langevin_steps, guidance.topk or 0)
        names = ("guidance_scale", "guidance_mode", "guidance_steps", "guidance_topk")
        guided = dict(zip(names, cells if guidance.scale else UNGUIDED, strict=True))
        return {"sample_step": self.steps, **guided, "crops": int(self.crops)}

    @classmethod
    def of_columns(cls, row: Mapping[str, Any]) -> "Sampling":
        """The way that a row is about; its cells may be text, as they are printed."""
        steps, scale, crops = int(row["sample_step"]), float(row["guidance_scale"]), bool(int(row["crops"]))
        if scale == 0:
            return cls(steps=steps, crops=crops)
        count, topk = int(row["guidance_steps"]), int(row["guidance_topk"]) or None
        mode, unnormalised, _ = row["guidance_mode"].partition(UNNORMALISED)
        guidance = GuidanceConfig(scale=scale, mode=mode, langevin_steps=count, normalise=not unnormalised, topk=topk)
        return cls(steps=steps, guidance=guidance, crops=crops)
