"""The images a second that training's loader delivers at the published image sizes, and what its parts take."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from noisebox.bench.made import record, run_config, split_of
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, clocked, peak_mib, timed
from noisebox.data.coco import CocoSplit, read_image
from noisebox.data.loader import TrainingBatches, training_loader
from noisebox.data.transforms import shown, training_view
from noisebox.randomness import numpy_generator

IMAGES = 64
GRAIN = 8  # pixels of the stored images that look alike, as in a photograph
NOISE, QUALITY = 6.0, 90  # of 255; of JPEG


def timings(settings: BenchSettings) -> list[Timing]:
    """An epoch's parts in this process; then whole epochs through one and `settings.workers` processes, decoding every
    image, and with all of them cached."""
    with tempfile.TemporaryDirectory() as folder:
        split = _split(Path(folder), settings)
        parts = _parts(split, settings)
        return parts + [
            _epochs(split, settings, workers, cached)
            for cached in (False, True)
            for workers in sorted({1, settings.workers})
        ]


def _parts(split: CocoSplit, settings: BenchSettings) -> list[Timing]:
    """What an image takes to be decoded, and to be resized and mirrored."""
    config, images = run_config(settings).image, split.images
    stored = [torch.from_numpy(read_image(image)).permute(2, 0, 1) for image in images]
    views = [training_view(image.height, image.width, config, 0, 0, image.id) for image in images]
    work: dict[str, Callable[[], object]] = {
        "decoding": lambda: [read_image(image) for image in images],
        "resizing, mirroring": lambda: [shown(each, view) for each, view in zip(stored, views, strict=True)],
    }
    return [
        timed(do, settings, part="loader", what=what, unit="image", units=len(images), images=len(images))
        for what, do in work.items()
    ]


def _epochs(split: CocoSplit, settings: BenchSettings, workers: int, cached: bool) -> Timing:
    """Epoch after epoch, the first as a warm-up, of a loader whose processes stay."""
    config = run_config(settings)
    everything = sum(image.width * image.height * 3 for image in split.images) * workers // 2**20 + workers
    image = config.image.model_copy(update={"cache_mib": everything if cached else 0})
    batches = TrainingBatches(split, config.model_copy(update={"image": image, "workers": workers}))
    each = max(1, len(split.images) // settings.batch)
    loader = training_loader(batches, 0, each * (settings.repeats + 1), workers)

    def epoch() -> None:
        for _ in range(each):
            next(loader)

    epoch()
    seconds = tuple(clocked("cpu", epoch) for _ in range(settings.repeats))
    what = f"{'cached' if cached else 'decoded'}, {workers} process{'' if workers == 1 else 'es'}"
    images = each * settings.batch
    return Timing("loader", what, "image", seconds, images, images, peak_mib=peak_mib("cpu"))


def _split(folder: Path, settings: BenchSettings) -> CocoSplit:
    """JPEG files of patches of colour under noise, which compress as photographs do."""
    height, width = settings.stored
    records = []
    for index in range(settings.items or IMAGES):
        random = numpy_generator(0, "bench stored", index)
        patches = random.integers(0, 256, (-(-height // GRAIN), -(-width // GRAIN), 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))
        noisy = (picture + random.normal(0, NOISE, picture.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(noisy).save(path, quality=QUALITY)
        records.append(record(index + 1, path, (height, width), settings))
    return split_of(records, settings)
