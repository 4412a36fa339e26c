"""Diffusers' pipeline and scheduler: what they find is what evaluation finds, before and after a folder on disk."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from small_detector import CLASSES, awaken, make_detector, opinionated, small_config

from noisebox.config import GuidanceConfig, ImageConfig, Sampling
from noisebox.data.loader import image_batches
from noisebox.diffusion.scheduler import GeneratorRows, HybridDiffusionScheduler
from noisebox.errors import UserError
from noisebox.interop.diffusers import DetectionPipeline, pixels_of
from noisebox.models.diffusiondet.detector import DiffusionDet
from noisebox.randomness import numpy_generator
from noisebox.structures import Detections

NAMES = ["car", "person", "tree"]
SIZING = ImageConfig(eval_short_edge=64, max_edge=96)
IDS = [7, 3, 11]
UNGUIDED = GuidanceConfig()
LABELS = {"label_state": True, "label_d3pm": True}
# Switches of the model, steps, guidance.
WAYS: dict[str, tuple[dict[str, Any], int, GuidanceConfig]] = {
    "one step": ({}, 1, UNGUIDED),
    "renewal": ({}, 4, UNGUIDED),
    "no renewal, eta 0": ({"sampler": {"box_renewal": False, "eta": 0.0}}, 3, UNGUIDED),
    "anisotropic, last step alone": ({"aniso_noise": {"sigma_w": 1.5}, "sampler": {"ensemble": "none"}}, 4, UNGUIDED),
    "self-conditioned": ({"label_state": True}, 3, UNGUIDED),
    "mask": (LABELS, 3, UNGUIDED),
    "uniform": ({**LABELS, "label_kernel": "uniform"}, 3, UNGUIDED),
    "distribution": ({**LABELS, "label_kernel": "uniform", "use_distribution": True}, 3, UNGUIDED),
    "gaussian": ({**LABELS, "label_kernel": "gaussian"}, 3, UNGUIDED),
    "guided at the end": ({"quality_head": True}, 2, GuidanceConfig(scale=0.5, mode="final")),
    "guided": ({**LABELS, "quality_head": True}, 2, GuidanceConfig(scale=0.2, topk=5)),
}


def detector(**switches: Any) -> DiffusionDet:
    return awaken(opinionated(make_detector(**switches)), 0.2)


def pipeline_of(model: DiffusionDet) -> DetectionPipeline:
    config = small_config().model_copy(update={"image": SIZING})
    pipeline = DetectionPipeline.of_model(model, config, NAMES)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Two images of one size, and one of another."""
    rng = numpy_generator(0, "pictures")
    return [Image.fromarray(rng.integers(0, 255, (*hw, 3), dtype=np.uint8)) for hw in ((50, 70), (90, 60), (50, 70))]


def evaluated(
    model: DiffusionDet, pictures: list[Image.Image], eval_seed: int, sampling: Sampling
) -> dict[int, Detections]:
    """What evaluation does with these images, two at once, by their ids."""
    found = {}
    with torch.no_grad():
        for _, batch in image_batches(pixels_of(pictures), IDS, SIZING, 2):
            (of_seed,) = model.detect(model.encode(batch.to("cpu")), batch, [eval_seed], sampling)
            found |= dict(zip(batch.image_ids, of_seed, strict=True))
    return found


def equal(found: Any, expected: dict[int, Detections]) -> bool:
    """Bit for bit, image by image in the order of IDS."""
    rows = zip(found.boxes, found.scores, found.labels, (expected[image] for image in IDS), strict=True)
    return all(
        torch.equal(boxes, theirs.boxes_xyxy)
        and torch.equal(scores, theirs.scores)
        and torch.equal(labels, theirs.labels)
        for boxes, scores, labels, theirs in rows
    )


@pytest.mark.parametrize("way", WAYS)
def test_it_finds_what_evaluation_finds_bit_for_bit(way: str, pictures: list[Image.Image]) -> None:
    switches, steps, guidance = WAYS[way]
    model = detector(**switches)
    expected = evaluated(model, pictures, 5, Sampling(steps=steps, guidance=guidance))
    found = pipeline_of(model)(pictures, steps, eval_seed=5, image_ids=IDS, guidance=guidance)
    assert equal(found, expected)
    assert sum(len(scores) for scores in found.scores) > 20
    other = pipeline_of(model)(pictures, steps, eval_seed=6, image_ids=IDS, guidance=guidance)
    assert not equal(other, expected)


def test_a_saved_pipeline_is_the_same(tmp_path: Path, pictures: list[Image.Image]) -> None:
    model = detector(**LABELS, aniso_noise={"sigma_h": 0.5}, sampler={"eta": 0.5, "renewal_threshold": 0.3})
    expected = evaluated(model, pictures, 0, Sampling(steps=3))
    pipeline_of(model).save_pretrained(tmp_path)
    assert (tmp_path / "detector/diffusion_pytorch_model.safetensors").exists()
    loaded = DetectionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert equal(loaded(pictures, 3, image_ids=IDS), expected)
    found = loaded(pictures, 3, image_ids=IDS, threshold=0.6)
    for scores, labels, names in zip(found.scores, found.labels, found.class_names, strict=True):
        assert scores.min() >= 0.6
        assert names == [NAMES[label] for label in labels]
    loaded.scheduler = HybridDiffusionScheduler.from_config(loaded.scheduler.config, eta=0.0, box_renewal=False)
    again = detector(**LABELS, aniso_noise={"sigma_h": 0.5}, sampler={"eta": 0.0, "box_renewal": False})
    assert equal(loaded(pictures, 3, image_ids=IDS), evaluated(again, pictures, 0, Sampling(steps=3)))


def test_every_form_of_an_image_is_the_same_image(pictures: list[Image.Image]) -> None:
    alone, pipeline = pictures[0], pipeline_of(detector())
    array = np.asarray(alone)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [
        alone,
        array,
        array / 255,
        array[None],
        tensor,
        tensor[None] / 255,
        [tensor],
        [array.astype(np.float32) / 255],
    ]
    (expected,) = pipeline(alone).boxes
    assert len(expected) > 5
    for form in forms:
        (boxes,) = pipeline(form).boxes
        assert torch.equal(boxes, expected)
    turned = alone.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    turned.info["exif"] = exif.tobytes()
    assert torch.equal(pixels_of(turned)[0], tensor)


def test_generators_say_it_all(pictures: list[Image.Image]) -> None:
    pipeline = pipeline_of(detector(**LABELS))

    def found(generator: Any, images: list[Image.Image] = pictures) -> list[torch.Tensor]:
        state = torch.get_rng_state()
        scores: list[torch.Tensor] = pipeline(images, 3, generator=generator).scores
        assert torch.equal(torch.get_rng_state(), state)
        return scores

    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    first, again, other = (found(seeded(seed)[0]) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    listed = found(seeded(1, 2, 3))
    for place, seed in enumerate((1, 2, 3)):
        (alone,) = found(seeded(seed), [pictures[place]])
        torch.testing.assert_close(alone, listed[place], rtol=0, atol=1e-4)


# The scheduler


def test_without_renewal_it_is_diffusers_ddim() -> None:
    """The same schedule and steps as DDIMScheduler with our betas, where both divide the schedule alike."""
    ours = HybridDiffusionScheduler(num_proposals=6, eta=0.0, box_renewal=False)
    betas = ours.sampler.diffusion.betas.float().numpy()
    theirs = DDIMScheduler(
        trained_betas=betas, prediction_type="sample", timestep_spacing="trailing", clip_sample_range=2.0
    )
    generator = torch.Generator().manual_seed(0)
    x0, x = (torch.randn(2, 6, 4, generator=generator) for _ in range(2))
    t = torch.tensor([10, 700])
    torch.testing.assert_close(ours.add_noise(x0, x, t), theirs.add_noise(x0, x, t), rtol=0, atol=1e-3)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(5)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    ours_x = theirs_x = x * ours.init_noise_sigma
    for time in ours.timesteps:
        ours_x = ours.step(x0, time, ours_x).prev_sample
        theirs_x = theirs.step(x0, time, theirs_x, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(ours_x, theirs_x, rtol=0, atol=2e-3)
    assert torch.equal(ours_x, x0.clamp(-2, 2))


def test_noised_labels_have_the_marginals_of_the_process() -> None:
    """Of the mask kernel: at time t a label is still known with probability alpha_bar."""
    scheduler = HybridDiffusionScheduler(num_proposals=4000, num_classes=CLASSES, **LABELS)
    t = torch.tensor([100, 600])
    known = torch.ones(2, 4000, dtype=torch.long)
    state = scheduler.add_label_noise(known, t, generator=torch.Generator().manual_seed(0))
    kept = state[..., 1].mean(1)
    alpha_bar = scheduler.sampler.diffusion.alphas_cumprod[t].float()
    assert ((kept - alpha_bar).abs() < 4 * math.sqrt(0.25 / 4000)).all()
    assert torch.equal(state[..., 1] + state[..., CLASSES], torch.ones(2, 4000))


def test_boxes_go_into_the_space_of_the_diffusion_and_back() -> None:
    scheduler, whwh = HybridDiffusionScheduler(), torch.tensor([[96.0, 64.0, 96.0, 64.0]])
    boxes = torch.tensor([[[10.0, 5.0, 40.0, 60.0], [0.0, 0.0, 96.0, 64.0]]])
    torch.testing.assert_close(scheduler.to_boxes(scheduler.from_boxes(boxes, whwh), whwh), boxes)
    assert torch.equal(scheduler.from_boxes(boxes, whwh)[0, 1], torch.tensor([0.0, 0.0, 2.0, 2.0]))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"num_inference_steps": 1001}, "1001 sample steps do not fit a schedule of 1000"),
    ({"num_inference_steps": 0}, "num_inference_steps must be 1 or more"),
    ({"image_ids": [1]}, "image_ids= has 1 ids for 3 images"),
    ({"generator": [torch.Generator()]}, "generator= is a list of 1 for 3 images"),
    ({"guidance": {"scale": 1.0}}, "quality guidance needs a detector with a quality head"),
    ({"guidance": {"scal": 1.0}}, "guidance: key 'scal' does not exist; did you mean 'scale'"),
    ({"images": []}, "no image was given"),
    ({"images": "photo.jpg"}, "no image was given"),
    ({"images": [np.zeros((5, 5), np.uint8)]}, r"image 0 has shape \(5, 5\)"),
    ({"images": np.full((5, 5, 3), 1.5)}, "image 0 has pixels of other values"),
    ({"images": torch.full((3, 5, 5), torch.nan)}, "image 0 has pixels of other values"),
    ({"images": [None]}, "image 0 is a NoneType"),
]


@pytest.mark.parametrize(("options", "complaint"), MISTAKES)
def test_mistakes_are_told(options: dict[str, Any], complaint: str, pictures: list[Image.Image]) -> None:
    with pytest.raises(UserError, match=complaint):
        pipeline_of(make_detector().eval())(**({"images": pictures} | options))


def test_mistakes_with_the_scheduler_are_told() -> None:
    x, logits = torch.zeros(1, 6, 4), torch.zeros(1, 6, 3)
    plain = HybridDiffusionScheduler(num_proposals=6)
    plain.set_timesteps(2)
    told: list[tuple[str, Any]] = [
        ("give logits=", lambda: plain.step(x, 999, x)),
        ("give generator=", lambda: plain.step(x, 999, x, logits)),
        ("timestep 998 is none of", lambda: plain.step(x, 998, x, logits)),
        ("has 5 proposals, the scheduler 6", lambda: plain.step(x, 999, x[:, :5], logits)),
        ("label_state= goes with", lambda: plain.step(x, 999, x, logits, logits)),
        ("needs a scheduler with label_state", lambda: plain.add_label_noise(x[..., 0].long(), torch.tensor([5]))),
        ("is a list of 2 for 1", lambda: GeneratorRows([torch.Generator()] * 2, 1, "cpu")),
        ("HybridDiffusionScheduler: .*label_state", lambda: HybridDiffusionScheduler(label_d3pm=True)),
        ("HybridDiffusionScheduler: sampler.eta: .*not 2", lambda: HybridDiffusionScheduler(eta=2.0)),
    ]
    for complaint, mistake in told:
        with pytest.raises(UserError, match=complaint):
            mistake()
