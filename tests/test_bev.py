"""The BEV family whole: what the losses and maps depend on, DiffBEV beside its baseline, and diffusers' arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from pydantic import ValidationError
from small_bev import CLASSES, SMALL, make_batch, make_segmenter

from noisebox import graph
from noisebox.config import GuidanceConfig, Sampling, resolve
from noisebox.config.bev import BevConfig
from noisebox.data.bev import BevSplit, NuScenesDataset
from noisebox.data.nuscenes import Frame
from noisebox.errors import UserError
from noisebox.files import sha256
from noisebox.randomness import KeyedRows, isolated, normal
from noisebox.training.checkpoint import load_model
from noisebox.training.loop import train

ONE_STEP, THREE_STEPS = Sampling(steps=1), Sampling(steps=3)
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def awaken(model):
    """Let the fusion, which starts at zero, say something."""
    with torch.no_grad():
        model.diffusion.fusion.output.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def segment(model, image_ids, eval_seeds=(0,), sampling=ONE_STEP):
    batch = make_batch(list(image_ids), model.config)
    with torch.no_grad():
        return model.eval().segment(model.encode(batch), batch, list(eval_seeds), sampling)


@pytest.mark.parametrize(
    ("diffusion", "names"),
    [
        (None, {"Lwce", "Ldepth"}),
        ({}, {"Lwce", "Ldepth", "Ldiff", "Lsemantic"}),
        ({"conditions": ["feature", "depth"]}, {"Lwce", "Ldepth", "Ldiff"}),
        ({"conditions": ["semantic"]}, {"Lwce", "Ldepth", "Ldiff", "Lsemantic"}),
    ],
)
def test_every_loss_is_there_and_every_parameter_learns(diffusion, names):
    model = make_segmenter(diffusion)
    if diffusion is not None:
        awaken(model)
    terms = model(make_batch([1, 2], model.config), seed=0, step=0)
    assert set(terms) == names
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    assert all(parameter.grad is not None for parameter in model.parameters())
    backbone = {id(parameter) for parameter in model.parts()["backbone"]}
    assert backbone == {id(parameter) for parameter in model.backbone.parameters()}


def test_weights_of_the_loss_weigh_its_terms():
    batch = make_batch([1], BevConfig(**SMALL))
    plain = make_segmenter({})(batch, seed=0, step=0)
    loss = {"wce_weight": 2.0, "diff_weight": 3.0, "semantic_weight": 1.0, "depth_weight": 0.0}
    weighted = make_segmenter({}, loss=loss)(batch, seed=0, step=0)
    assert "Ldepth" not in weighted
    for name, factor in (("Lwce", 2), ("Ldiff", 3), ("Lsemantic", 2)):
        assert weighted[name].item() == pytest.approx(factor * plain[name].item(), rel=1e-6)


def test_classes_of_weight_zero_teach_nothing():
    only_road = make_segmenter(None, loss={"class_weights": [0, 1, 0, 0, 0, 0], "depth_weight": 0.0})
    batch = make_batch([1], only_road.config)
    logits = only_road.head(only_road.encode(batch).bev)
    road = (batch.labels == 1).nonzero(as_tuple=True)
    expected = -logits.log_softmax(1)[:, 1][road].mean()
    assert only_road(batch, 0, 0)["Lwce"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(UserError, match=r"loss\.class_weights has 2 entries; 6 classes are predicted"):
        make_segmenter(None, loss={"class_weights": [1, 1]})


def test_the_zero_label_is_not_predicted_when_it_is_reduced():
    model = make_segmenter(None, labels={"reduce_zero_label": True})
    batch = make_batch([1], model.config)
    assert segment(model, [1]).shape == (1, 1, len(CLASSES) - 1, 16, 16)
    logits = model.head(model.encode(batch).bev)
    known = ((batch.labels > 0) & (batch.labels < 255)).nonzero(as_tuple=True)
    target = batch.labels[known] - 1
    expected = -logits.log_softmax(1).permute(0, 2, 3, 1)[known].gather(1, target[:, None]).mean()
    assert model(batch, 0, 0)["Lwce"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_baseline_gives_every_eval_seed_and_step_count_the_same_map():
    model = make_segmenter(None)
    maps = segment(model, [1, 2], eval_seeds=[0, 5, 7], sampling=THREE_STEPS)
    assert maps.shape == (3, 2, len(CLASSES), 16, 16)
    assert torch.equal(maps[0], maps[2])
    assert torch.equal(maps[:1], segment(model, [1, 2]))
    alone = segment(model, [2])
    assert torch.allclose(maps[0, 1], alone[0, 0], atol=1e-4)


def test_diffbev_starts_as_the_baseline_whose_weights_it_takes():
    baseline, diffbev = make_segmenter(None, seed=1), make_segmenter({}, seed=2)
    loaded = diffbev.load_state_dict(baseline.state_dict(), strict=False)
    assert loaded.unexpected_keys == []
    assert all(name.startswith("diffusion.") for name in loaded.missing_keys)
    expected = segment(baseline, [1, 2])
    for sampling in (ONE_STEP, THREE_STEPS):
        assert torch.equal(segment(diffbev, [1, 2], eval_seeds=[3], sampling=sampling), expected)
    batch = make_batch([1, 2], baseline.config)
    theirs, ours = (model.train()(batch, seed=0, step=0) for model in (baseline, diffbev))
    assert ours["Lwce"].item() == pytest.approx(theirs["Lwce"].item(), rel=1e-6)
    assert ours["Ldepth"].item() == pytest.approx(theirs["Ldepth"].item(), rel=1e-6)
    assert ours["Lsemantic"].item() == pytest.approx(theirs["Lwce"].item() / 2, rel=1e-6)


def test_a_map_depends_on_eval_seed_image_and_steps_alone(monkeypatch):
    model = awaken(make_segmenter({}))
    together = segment(model, [1, 2, 3], eval_seeds=[4, 9], sampling=THREE_STEPS)
    assert torch.allclose(segment(model, [3], eval_seeds=[9], sampling=THREE_STEPS)[0, 0], together[1, 2], atol=1e-3)
    monkeypatch.setattr("noisebox.models.bev.segmenter.ROWS_PER_PASS", 4)
    assert torch.allclose(segment(model, [1, 2, 3], [4, 9], THREE_STEPS), together, atol=1e-3)
    assert (together[0] - together[1]).abs().max() > 0.1
    assert (segment(model, [1, 2, 3], eval_seeds=[4])[0] - together[0]).abs().max() > 0.1


def test_training_noise_is_keyed_by_seed_step_and_image():
    model = make_segmenter({})
    state = torch.get_rng_state()

    def diff(image_ids, seed=0, step=0):
        return model(make_batch(image_ids, model.config), seed, step)["Ldiff"].item()

    assert diff([1, 2]) == pytest.approx((diff([1]) + diff([2])) / 2, rel=1e-5)
    assert diff([2, 1]) == pytest.approx(diff([1, 2]), rel=1e-5)
    assert len({round(diff([1], seed, step), 6) for seed, step in ((0, 0), (1, 0), (0, 1))}) == 3
    assert torch.equal(torch.get_rng_state(), state)


def latents(model, rows=2):
    shape = (rows, model.diffusion.channels, *model.diffusion.latent_hw)
    return normal(shape, 0, "clean").clamp(-3, 3), normal(shape, 0, "noise")


def said_of(model, clean, noise, noisy, t):
    """What a denoiser that knows the clean feature predicts."""
    if model.diffusion.prediction == "v_prediction":
        return model.diffusion.scheduler.get_velocity(clean, noise, t)
    return {"epsilon": noise, "sample": clean}[model.diffusion.prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0, 500, 999])
def test_the_clean_estimate_is_that_of_the_scheduler_and_inverts_the_noise(prediction, t):
    model = make_segmenter({"prediction": prediction})
    (clean, noise), scheduler = latents(model), model.diffusion.scheduler
    times = torch.tensor([t, t])
    noisy = scheduler.add_noise(clean, noise, times)
    predicted = said_of(model, clean, noise, noisy, times)
    estimate = model.diffusion.clean_estimate(noisy, predicted, times)
    # The signal at t = 999 is 0.6 % of the amplitude, so rounding is 160 times as large as that of the noise.
    assert torch.allclose(estimate, clean, atol=1e-3 if t == 999 else 1e-5)
    scheduler.set_timesteps(1000)
    other = normal(tuple(clean.shape), 0, "anything")
    theirs = scheduler.step(other, t, noisy).pred_original_sample
    assert torch.allclose(model.diffusion.clean_estimate(noisy, other, times), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("timesteps", [2, 10, 100, 1000, 4000])
def test_at_the_last_time_hardly_anything_but_noise_is_left_however_many_there_are(schedule, timesteps):
    model = make_segmenter({"beta_schedule": schedule, "timesteps": timesteps})
    signal = model.diffusion.scheduler.alphas_cumprod
    assert len(signal) == timesteps
    assert 0 < signal[-1] < 1e-3
    if timesteps == 1000:
        assert torch.equal(signal, DDIMScheduler(beta_schedule=schedule).alphas_cumprod)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_sampling_ends_at_the_feature_that_a_perfect_denoiser_knows(monkeypatch, prediction, steps):
    model = make_segmenter({"prediction": prediction})
    clean, _ = latents(model)
    signal = model.diffusion.scheduler.alphas_cumprod
    seen = []

    def perfect(noisy, condition, t):
        seen.append(int(t[0]))
        amplitude = signal[t][:, None, None, None]
        noise = (noisy - amplitude.sqrt() * clean) / (1 - amplitude).sqrt()
        return said_of(model, clean, noise, noisy, t)

    monkeypatch.setattr(model.diffusion, "_predict", perfect)
    found = model.diffusion.sample(clean[:, :0], KeyedRows([(0, (1,)), (0, (2,))], "cpu"), steps)
    assert torch.allclose(found, clean, atol=2e-3)
    assert len(seen) == steps
    assert seen[0] == 999


@pytest.mark.parametrize("conditions", [("feature",), ("semantic",), ("depth",), ("feature", "semantic", "depth")])
def test_the_denoiser_is_shown_the_conditions_that_are_asked_for(conditions):
    model = make_segmenter({"conditions": conditions})
    encoded = model.eval().encode(make_batch([1], model.config))
    width = {"feature": 16, "semantic": len(CLASSES), "depth": 1}
    assert encoded.condition.shape[1] == sum(width[name] for name in conditions)
    assert (encoded.semantic is not None) == ("semantic" in conditions)
    if conditions == ("depth",):
        mass = encoded.condition * 4  # four cells of the grid in one of the condition
        assert (mass >= 0).all()
        assert mass.sum() > 0
    if conditions == ("semantic",):
        assert torch.allclose(encoded.condition.sum(1), torch.ones(8, 8), atol=1e-5)


def test_a_grid_that_the_denoiser_cannot_halve_is_padded_and_cut_again():
    model = awaken(make_segmenter({}, grid={"z_max": 15.0, "x_max": 9.0, "x_min": -8.0, "cell": 1.0}))
    assert segment(model, [1]).shape == (1, 1, len(CLASSES), 14, 17)
    assert model.diffusion.latent_hw == (8, 10)


@pytest.mark.parametrize("diffusion", [None, {}])
def test_bfloat16_keeps_sums_and_losses_in_float32(diffusion):
    model = make_segmenter(diffusion)
    batch = make_batch([1, 2], model.config)
    exact = model(batch, seed=0, step=0)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(batch)
        terms = model(batch, seed=0, step=0)
        maps = model.segment(encoded, batch, [0], THREE_STEPS)
    assert encoded.bev.dtype == encoded.depth_logits.dtype == maps.dtype == torch.float32
    sum(terms.values()).backward()
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(exact[name].item(), rel=0.05)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("diffusion", [None, {"prediction": "sample"}])
def test_it_learns_what_it_is_shown(diffusion):
    model = make_segmenter(diffusion)
    batch = make_batch([1, 2], model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        terms = model(batch, seed=0, step=step)
        sum(terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(terms["Lwce"].item())
    assert losses[-1] < losses[0] / 3
    seen = batch.labels[0] != 255
    right = segment(model, [1])[0, 0].argmax(0)[seen] == batch.labels[0][seen]
    assert right.float().mean() > 0.8


def test_swin_lifts_at_its_own_strides():
    config = SMALL | {"backbone": "swin_tiny_patch4_window7_224", "lift": {"stride": 16, "far": 17.0}}
    with isolated(0, "weights"):
        model = make_segmenter(None, **config)
    model(make_batch([1], model.config), 0, 0)["Lwce"].backward()
    assert segment(model, [1]).isfinite().all()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


def test_what_cannot_be_sampled_is_refused():
    model = make_segmenter({"timesteps": 10})
    with pytest.raises(UserError, match=r"11 sampling steps are more than the 10 of model\.diffusion\.timesteps"):
        model.check_sampling(Sampling(steps=11))
    with pytest.raises(UserError, match="guidance"):
        model.check_sampling(Sampling(steps=1, guidance=GuidanceConfig(scale=1.0)))
    make_segmenter(None).check_sampling(Sampling(steps=5000))


def test_the_configuration_survives_a_checkpoint_and_refuses_widths_that_do_not_fit():
    config = BevConfig(**SMALL, diffusion={"conditions": ["depth"]})
    assert BevConfig(**config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="bev_channels 18 must be a multiple of 4"):
        BevConfig(**(SMALL | {"bev_channels": 18, "diffusion": {}}))
    with pytest.raises(ValidationError, match="more than once"):
        BevConfig(**SMALL, diffusion={"conditions": ["depth", "depth"]})


def test_the_best_checkpoint_is_named_after_its_metric(tmp_path):
    config = resolve("lss", 0, "test", ROOT)
    model = BevConfig(**SMALL)
    solver = config.solver.model_copy(update={"max_iter": 2, "eval_every": 1})
    config = config.model_copy(update={"model": model, "solver": solver})
    run, scores = tmp_path / graph.run_folder("lss", 0), iter((7.0, 3.0))
    batches = (make_batch([1], model) for _ in range(2))
    train(config, run, CLASSES, lambda *_: batches, "", metric="mIoU", validate=lambda _: next(scores), root=ROOT)
    assert sorted(path.name for path in run.iterdir()) == sorted(graph.run_files("bev"))
    _, _, state = load_model(run / "best_mIoU.pth")
    assert state["iteration"] == 1 and not (run / "best.pth").exists()
    assert (run / "best_mIoU.pth.sha256").read_text().split() == [sha256(run / "best_mIoU.pth"), "best_mIoU.pth"]


def seen_at(image, size):
    """A split of one image of 60 × 100 pixels."""
    matrix = np.array([[80.0, 0.0, 50.0], [0.0, 80.0, 30.0], [0.0, 0.0, 1.0]])
    frame = Frame("s", "scene", "CAM_FRONT", 0, image, Path("s.bin"), 100, 60, matrix, np.eye(4))
    view = NuScenesDataset(kind="nuscenes", root="r", classes=["road"], size=size)
    return BevSplit("real/val", ("road",), (frame,), (Path("a.png"),), view)


def test_intrinsics_are_stretched_with_the_image():
    split = seen_at(Path("i.jpg"), (30, 200))
    assert split.intrinsics(0).tolist() == [[160.0, 0.0, 100.0], [0.0, 40.0, 15.0], [0.0, 0.0, 1.0]]


def test_images_of_any_depth_are_seen_as_rgb(tmp_path):
    """What has 8 bits as Pillow makes it, 16-bit grey at its share of the full range."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.jpg")
    with Image.open(tmp_path / "colours.jpg") as image:
        expected = np.asarray(image.convert("RGB").resize((200, 30), Image.Resampling.BILINEAR))
    assert np.array_equal(seen_at(tmp_path / "colours.jpg", (30, 200)).image(0), expected)
    grey = np.linspace(0, 65535, 6000).reshape(60, 100).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    seen = seen_at(tmp_path / "grey.png", (60, 100)).image(0)
    assert np.array_equal(seen, np.repeat(np.rint(grey * (255 / 65535))[..., None], 3, axis=2))
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(UserError, match=r"floats\.tiff cannot be read as an image \(its pixels are 32-bit numbers"):
        seen_at(tmp_path / "floats.tiff", (60, 100)).image(0)
