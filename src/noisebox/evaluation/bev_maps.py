"""Maps of any validation images, for `noisebox show-bev`: what an evaluation's maps.npz holds, of images that are asked
for. A map is the one that `noisebox evaluate` would draw, because its noise is keyed by the image's place."""

from collections.abc import Sequence
from pathlib import Path

from noisebox.config import Sampling
from noisebox.errors import UserError
from noisebox.evaluation.bev import measure, write_maps
from noisebox.evaluation.evidence import check_classes, check_fit
from noisebox.evaluation.predict import runnable
from noisebox.machine import placed
from noisebox.models import Segmenter
from noisebox.progress import Progress
from noisebox.tasks.bev import BevTask
from noisebox.training.checkpoint import load_model


def write_shown_maps(checkpoint: Path, path: Path, places: Sequence[int], *, steps: int, eval_seed: int) -> None:
    """Write to `path` the maps of the validation images at `places`, under one eval seed at one count of steps; a model
    that draws no noise is asked at 1 step under eval seed 0.

    Raises UserError when the validation split has no such image, or the checkpoint's model draws no maps.
    """
    model, config, state = load_model(checkpoint)
    if not isinstance(model, Segmenter):
        raise UserError(f"{checkpoint} is a {type(model).__name__}, which draws no maps: use noisebox show")
    split = BevTask(config).val
    check_classes(checkpoint, state["classes"], split.classes, config.dataset)
    places = list(dict.fromkeys(places))
    for place in places:
        if place >= len(split.frames):
            raise UserError(f"{split.name} has no image {place}; it has {len(split.frames)}, counted from 0")
    config = runnable(config, config.eval_batch_size)
    asked = {Sampling(steps=1): [0]} if model.deterministic else {Sampling(steps=steps): [eval_seed]}
    check_fit(model, checkpoint, asked)
    placed(model, config)
    with Progress(f"show-bev {config.lineage} seed{config.seed}", len(places)) as progress:
        measured = measure(model, split, config, asked, progress, pictured=places, places=places)
    write_maps(path, config, split, places, measured)
