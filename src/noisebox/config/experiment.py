"""`params/experiment.yaml`: which lineages are made, which seeds, and what each checkpoint is asked."""

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from noisebox import graph
from noisebox.config.sampling import GuidanceConfig, Sampling
from noisebox.config.section import Count, NotNegative, Positive, Section
from noisebox.errors import what_fits


class PicturesConfig(Section):
    """The picture grid: the first `images` validation images, and whose detections stand beside the ground truth."""

    images: Count = 6
    lineages: Annotated[list[str], Field(min_length=1)]


class ProtocolConfig(Section):
    """What checkpoints are asked: each eval seed at each step count."""

    eval_seeds: Annotated[list[Count], Field(min_length=1)]
    sample_steps: Annotated[list[Positive], Field(min_length=1)]

    def asked(self) -> list[Sampling]:
        """The ways to sample, each to be run under each eval seed."""
        return [Sampling(steps=steps) for steps in self.sample_steps]


class GuidanceProtocol(ProtocolConfig):
    """Quality guidance: no guidance, and each scale above 0 × mode × number of Langevin steps."""

    scales: Annotated[list[NotNegative], Field(min_length=1)]
    modes: Annotated[list[Literal["final", "all"]], Field(min_length=1)]
    langevin_steps: Annotated[list[Positive], Field(min_length=1)]

    def asked(self) -> list[Sampling]:
        grid = itertools.product(sorted(set(self.scales) - {0}), self.modes, self.langevin_steps)
        guided = [GuidanceConfig(scale=scale, mode=mode, langevin_steps=count) for scale, mode, count in grid]
        every = [GuidanceConfig(), *guided]
        return [Sampling(steps=steps, guidance=guidance) for steps in self.sample_steps for guidance in every]


class ProtocolsConfig(Section):
    """The protocols by name. A lineage that is asked several is evaluated once, in all the ways that they ask for.

    `main` makes the main table, `steps` the trade-off of AP and time, `guidance` the guidance sweep, `ablations` the
    ablation table, `distillation` holds students against their teachers.
    """

    main: ProtocolConfig
    steps: ProtocolConfig | None = None
    guidance: GuidanceProtocol | None = None
    ablations: ProtocolConfig | None = None
    distillation: ProtocolConfig | None = None

    def by_name(self) -> dict[str, ProtocolConfig]:
        """Those that the experiment has."""
        return {name: protocol for name in type(self).model_fields if (protocol := getattr(self, name)) is not None}


class Line(Section):
    """What is made of one line of research: `recipes` are in use and smoke-tested; `scratch` are those trained from
    scratch, `parents` says what each of the others goes on from; `lineages` are evaluated and reported. `searches` are
    the budget searches by name, each with the recipe of `scratch` that it tunes."""

    recipes: list[str] = []
    scratch: list[str] = []
    parents: dict[str, list[str]] = {}
    lineages: list[str] = []
    searches: dict[str, str] = {}

    @model_validator(mode="after")
    def _lineages_are_planned(self) -> Self:
        planned = set(self.planned_lineages())
        for name in self.lineages:
            lineage = graph.Lineage.parse(name)
            for ancestor in lineage.ancestry():
                if ancestor.name not in planned:
                    fit = (
                        f"add {ancestor.parent.name!r} to parents.{ancestor.recipe}"
                        if ancestor.parent
                        else f"add {ancestor.recipe!r} to scratch"
                    )
                    raise ValueError(f"lineages names {name!r}, but nothing trains {ancestor.name!r}: {fit}")
            for recipe in lineage.parts:
                if recipe not in self.recipes:
                    raise ValueError(f"lineages names {name!r}, but recipes does not list {recipe!r}")
        return self

    @model_validator(mode="after")
    def _recipes_are_in_use(self) -> Self:
        if joined := next((name for name in self.recipes if "+" in name), None):
            raise ValueError(f"recipes names {joined!r}, a lineage: it goes under lineages, what it is joined of here")
        grown = [recipe for recipe, parents in self.parents.items() if parents]
        for place, names in (("scratch", self.scratch), ("parents", grown)):
            for name in names:
                if name not in self.recipes:
                    raise ValueError(f"{place} names {name!r}, but {what_fits(name, self.recipes, 'recipes has')}")
        return self

    @model_validator(mode="after")
    def _searches_tune_what_is_trained(self) -> Self:
        for name, recipe in self.searches.items():
            if recipe not in self.scratch:
                fit = what_fits(recipe, self.scratch, "scratch has")
                raise ValueError(f"searches.{name} tunes {recipe!r}, but {fit}")
        return self

    def planned_lineages(self) -> list[str]:
        """Every lineage that has a training stage: those from scratch, then recipe by recipe."""
        grown = [f"{parent}+{recipe}" for recipe, parents in self.parents.items() for parent in parents]
        return [*self.scratch, *grown]


class DetrSection(Line):
    """Detectors of family detr, in the main table beside those that denoise: on the same data, and with one value a
    train seed, because they draw no noise. Searches of theirs are run by hand."""

    @model_validator(mode="after")
    def _searches_have_no_stage(self) -> Self:
        for name in self.searches:
            by_hand = f"noisebox search {graph.search_file(name)}"
            raise ValueError(f"searches names {name!r}, but dvc.yaml has no stage for it here: run {by_hand} by hand")
        return self

    def asked(self) -> dict[Sampling, list[int]]:
        """What the main table has of a lineage; one eval seed and one step say all."""
        return {Sampling(steps=1): [0]}


class AerialLine(Line):
    """The line of cluster crops (family yolc): each lineage is evaluated without and with crops, as `crops` lists."""

    crops: Annotated[list[bool], Field(min_length=1)] = [False, True]
    pictures: Count = 2

    def asked(self) -> dict[Sampling, list[int]]:
        """What an evaluation runs; there is no noise, so one eval seed says all."""
        return {Sampling(steps=1, crops=crops): [0] for crops in self.crops}


class BevLine(Line):
    """The line of segmentation from above (family bev): `depth_gt` are the splits that get depth ground truth,
    `protocol` is what each lineage is evaluated by; of the validation images `pictures`, by place, maps are shown."""

    depth_gt: list[Literal["train", "val"]] = []
    protocol: ProtocolConfig = ProtocolConfig(eval_seeds=[0], sample_steps=[1])
    pictures: list[Count] = [0]


class ExperimentConfig(Line):
    """`params/experiment.yaml`: which scale, which lineages, which seeds, which protocols.

    Lineages that denoise boxes stand at the top, those of other families under `detr`, `aerial` and `bev`; `data` are
    the lines whose datasets are made.

    `asked` names the protocols of each lineage: so naming one more lineage is no reason to evaluate another again.
    `ablations` are groups of lineages that differ in one switch, each variant's lineage by the variant's name.

    `tuned` are recipes trained from scratch with the best of the search of their own name.
    """

    scale: str
    train_seeds: Annotated[list[Count], Field(min_length=1)]
    recipes: Annotated[list[str], Field(min_length=1)]
    scratch: Annotated[list[str], Field(min_length=1)]
    lineages: Annotated[list[str], Field(min_length=1)]
    asked: dict[str, Annotated[list[str], Field(min_length=1)]]
    protocols: ProtocolsConfig
    ablations: dict[str, dict[str, str]] = {}
    pictures: PicturesConfig
    detr: DetrSection = DetrSection()
    aerial: AerialLine = AerialLine()
    bev: BevLine = BevLine()
    data: list[Literal["detection", "aerial", "bev"]] = ["detection"]
    tuned: list[str] = []

    @model_validator(mode="after")
    def _every_line_has_data(self) -> Self:
        for name, section in self.sections().items():
            if section.recipes and graph.SECTIONS[name] not in self.data:
                raise ValueError(f"data lacks {graph.SECTIONS[name]!r}, on which {section.recipes[0]!r} trains")
        if self.bev.recipes and set(self.bev.depth_gt) != {"train", "val"}:
            raise ValueError("bev.depth_gt must be [train, val]: training learns from the one, pictures show the other")
        return self

    @model_validator(mode="after")
    def _tuned_agree(self) -> Self:
        for name in self.tuned:
            if name not in self.recipes:
                raise ValueError(f"tuned names {name!r}, but {what_fits(name, self.recipes, 'recipes has')}")
            if name not in self.searches:
                fit = what_fits(name, list(self.searches), "searches has")
                raise ValueError(f"tuned names {name!r}, which takes the best of the search of its name, but {fit}")
        return self

    @model_validator(mode="after")
    def _asked_agrees(self) -> "ExperimentConfig":
        protocols = list(self.protocols.by_name())
        shown = [name for group in self.ablations.values() for name in group.values()]
        for place, names, there in (
            ("asked", self.asked, self.lineages),
            ("ablations", shown, self.lineages),
            ("pictures", self.pictures.lineages, self.detectors()),
        ):
            for name in names:
                if name not in there:
                    raise ValueError(f"{place} names {name!r}, but {what_fits(name, there, 'lineages has')}")
        for lineage in self.lineages:
            if lineage not in self.asked:
                raise ValueError(f"lineages names {lineage!r}, but asked does not: give it protocols, such as [main]")
            for name in self.asked[lineage]:
                if name not in protocols:
                    fit = what_fits(name, protocols, "protocols has")
                    raise ValueError(f"asked.{lineage} names protocol {name!r}, but {fit}")
        for name in shown:
            if "ablations" not in self.asked[name]:
                raise ValueError(f"ablations names {name!r}: add ablations to asked.{name}")
        if "main" not in {name for names in self.asked.values() for name in names}:
            raise ValueError("asked gives no lineage the protocol main, so the main table would be empty")
        return self

    def planned_lineages(self) -> list[str]:
        return [*super().planned_lineages(), *self.tuned]

    def sections(self) -> dict[str, Line]:
        """What is made, by the names of graph.SECTIONS; the lists of detection stand at the top."""
        return {"detection": self, "detr": self.detr, "aerial": self.aerial, "bev": self.bev}

    def every(self, key: Literal["recipes", "lineages"]) -> list[str]:
        """The recipes or lineages of all sections, each once."""
        return list(dict.fromkeys(name for section in self.sections().values() for name in getattr(section, key)))

    def detectors(self) -> list[str]:
        """The lineages of detection, of all families, each once."""
        return list(dict.fromkeys([*self.lineages, *self.detr.lineages]))

    def every_search(self) -> dict[str, str]:
        """The searches of all lines."""
        return {name: recipe for section in self.sections().values() for name, recipe in section.searches.items()}

    def lineages_asked(self, protocol: str) -> list[str]:
        """The lineages that are asked a protocol, in the experiment's order; those of detr are in the main table."""
        asked = [lineage for lineage in dict.fromkeys(self.lineages) if protocol in self.asked[lineage]]
        return [*asked, *dict.fromkeys(self.detr.lineages)] if protocol == "main" else asked

    def asked_of(self, lineage: str) -> dict[Sampling, list[int]]:
        """What an evaluation of the lineage runs: each way to sample that a protocol asks for, with its eval seeds.

        A lineage that the experiment does not name is asked the protocol main.
        """
        if lineage in self.detr.lineages:
            return self.detr.asked()
        asked: dict[Sampling, set[int]] = {}
        protocols = self.protocols.by_name()
        for name in self.asked.get(lineage, ["main"]):
            for sampling in protocols[name].asked():
                asked.setdefault(sampling, set()).update(protocols[name].eval_seeds)
        return {sampling: sorted(seeds) for sampling, seeds in asked.items()}
