"""The validated configuration: what `params/` says, checked whole before any work starts.

`section` is what all parts are made of, `sampling` the ways to sample, `run` what every training has, `experiment` what
is made and asked, one module a family what only that family knows, and `resolve` reads the files.
"""

from noisebox.config.experiment import (
    ExperimentConfig,
    GuidanceProtocol,
    PicturesConfig,
    ProtocolConfig,
    ProtocolsConfig,
)
from noisebox.config.resolve import load_experiment, load_recipe, load_scale, overrides_of, resolve, teacher_of
from noisebox.config.run import (
    AUTO,
    ImageConfig,
    RecipeConfig,
    ResourcesConfig,
    RunConfig,
    ScaleConfig,
    SmokeConfig,
    SolverConfig,
    smoke_config,
)
from noisebox.config.sampling import GuidanceConfig, Sampling
from noisebox.config.section import Count, NotNegative, Positive, Section, check_section, which_exist

__all__ = [
    "AUTO",
    "Count",
    "ExperimentConfig",
    "GuidanceConfig",
    "GuidanceProtocol",
    "ImageConfig",
    "NotNegative",
    "PicturesConfig",
    "Positive",
    "ProtocolConfig",
    "ProtocolsConfig",
    "RecipeConfig",
    "ResourcesConfig",
    "RunConfig",
    "Sampling",
    "ScaleConfig",
    "Section",
    "SmokeConfig",
    "SolverConfig",
    "check_section",
    "load_experiment",
    "load_recipe",
    "load_scale",
    "overrides_of",
    "resolve",
    "smoke_config",
    "teacher_of",
    "which_exist",
]
