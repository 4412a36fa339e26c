"""Public weights in and out: the same detections as the original's, every tensor accounted for, safe reading."""

import logging
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from public_detector import HEAD, NETWORKS, build_public, empty_config, public_config, same_noise
from small_detector import small_config
from test_diffusiondet_golden import golden  # noqa: F401
from torch import nn
from torchvision.models import resnet18, resnet50
from typer.testing import CliRunner

from noisebox.cli import app
from noisebox.config import Sampling
from noisebox.config.diffusiondet import LossConfig
from noisebox.config.resolve import combined
from noisebox.errors import UserError
from noisebox.graph import Lineage
from noisebox.interop.checkpoints import (
    Untold,
    export_checkpoint,
    import_checkpoint,
    schedule_buffers,
    table_of,
)
from noisebox.interop.detectron2_config import SCALE, load_config
from noisebox.interop.detectron2_run import with_own_weights
from noisebox.interop.names import public_name
from noisebox.interop.weight_files import read_weights
from noisebox.models import build_model
from noisebox.models.backbone import Backbone, FeatureMaps
from noisebox.structures import Batch
from noisebox.training.checkpoint import load_checkpoint, load_model, load_weights, save_checkpoint

PIXELS, SCORES = 1e-3, 1e-4  # how far detections may be from the original's
DATASETS = "DATASETS: {TRAIN: [world_test_train], TEST: [world_test_val]}"
TOLD = Untold(proposals=HEAD["NUM_PROPOSALS"], attention_heads=HEAD["NHEADS"])


def images():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (3, *hw), generator=generator, dtype=torch.uint8) for hw in ((150, 200), (190, 170))]


def batch_of(pictures):
    height, width = (max(image.shape[side] for image in pictures) for side in (1, 2))
    padded = torch.zeros(len(pictures), 3, height, width, dtype=torch.uint8)
    for row, image in zip(padded, pictures, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    sizes = torch.tensor([image.shape[1:] for image in pictures])
    return Batch(padded, sizes, sizes, tuple(range(len(pictures))), ()).to("cpu")


def assert_same_detections(public, ours, steps, pictures):
    public.sampling_timesteps, public.is_ddim_sampling = steps, True
    batch = batch_of(pictures)
    with same_noise(len(pictures), ours.config.num_proposals, 4) as again, torch.no_grad():
        again()
        theirs = [each["instances"] for each in public([{"image": image} for image in pictures])]
        again()
        (found,) = ours.detect(ours.encode(batch), batch, [0], Sampling(steps=steps))
    for expected, image in zip(theirs, found, strict=True):
        assert len(expected) == len(image.scores) > 10
        # In order of scores, where equal ones may change places: each has a partner of its class, and is its only one.
        distance = torch.cdist(expected.pred_boxes.tensor, image.boxes_xyxy, p=torch.inf)
        nearest = distance.masked_fill(expected.pred_classes[:, None] != image.labels, torch.inf).min(1)
        assert nearest.values.max() < PIXELS
        assert len(set(nearest.indices.tolist())) == len(expected)
        assert (expected.scores - image.scores[nearest.indices]).abs().max() < SCORES
        assert expected.scores.std() > 0.01  # and they say something


def missing_when_loaded(public, path, caplog):
    """What Detectron2's checkpointer complains of when it loads a file into the public model."""
    from detectron2.checkpoint import DetectionCheckpointer

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(public).load(str(path))
    return [record.getMessage() for record in caplog.records if "checkpoint" in record.name]


@pytest.mark.parametrize("network", NETWORKS)
def test_detections_are_those_of_the_public_detector_and_so_they_are_after_going_back(network, tmp_path, caplog):
    public = build_public(public_config(network))
    from detectron2.checkpoint import DetectionCheckpointer

    optimizer = torch.optim.AdamW(public.parameters())
    DetectionCheckpointer(public, str(tmp_path), optimizer=optimizer).save("model", iteration=7)
    made = import_checkpoint(tmp_path / "model.pth", tmp_path / "ours.pth", TOLD)
    assert made.backbone == network
    assert len(made.translation.used) + len(made.translation.derived) == len(public.state_dict())
    assert not made.translation.missing and not made.translation.unused
    ours, _, state = load_model(made.path)
    assert state["iteration"] == 7 and len(state["classes"]) == HEAD["NUM_CLASSES"]
    assert_same_detections(public, ours, 1, images())
    assert_same_detections(public, ours, 3, images()[:1])  # with renewal and the ensemble of steps, as published

    sent = export_checkpoint(made.path, tmp_path / "public.pth")
    cfg = empty_config()
    cfg.merge_from_list(sent.settings)
    fresh = build_public(cfg, seed=1)
    assert missing_when_loaded(fresh, sent.path, caplog) == []
    for name, value in public.state_dict().items():
        assert torch.allclose(fresh.state_dict()[name].double(), value.double(), rtol=1e-9, atol=0), name
    assert_same_detections(fresh, ours, 1, images())


def test_a_file_in_the_form_of_the_model_zoo_and_colours_in_another_order(tmp_path, caplog):
    cfg = public_config("resnet18")
    cfg.merge_from_list(["MODEL.PIXEL_MEAN", [103.53, 116.28, 100.0], "MODEL.PIXEL_STD", [57.375, 50.0, 58.395]])
    public = build_public(cfg)
    arrays = {name: value.numpy() for name, value in public.state_dict().items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    told = Untold(
        proposals=HEAD["NUM_PROPOSALS"], attention_heads=HEAD["NHEADS"], bgr=True,
        pixel_mean=tuple(cfg.MODEL.PIXEL_MEAN), pixel_std=tuple(cfg.MODEL.PIXEL_STD),
    )  # fmt: skip
    made = import_checkpoint(tmp_path / "zoo.pkl", tmp_path / "ours.pth", told)
    ours = load_model(made.path)[0]
    blue_first = [image.flip(0) for image in images()]
    swapped = nn.Module()
    swapped.forward = lambda given: public([{"image": image} for image in blue_first])  # what INPUT.FORMAT BGR shows it
    assert_same_detections(swapped, ours, 1, images())

    sent = export_checkpoint(made.path, tmp_path / "public.pth")  # with colours in our order
    cfg = empty_config()
    cfg.merge_from_list(sent.settings)
    fresh = build_public(cfg, seed=1)
    assert missing_when_loaded(fresh, sent.path, caplog) == []
    assert_same_detections(fresh, ours, 1, images())

    incomplete = torch.load(sent.path, weights_only=True)
    del incomplete["model"]["head.time_mlp.1.bias"]
    torch.save(incomplete, tmp_path / "incomplete.pth")
    assert "head.time_mlp.1.bias" in "".join(missing_when_loaded(fresh, tmp_path / "incomplete.pth", caplog))


# What follows needs no Detectron2: its names are in the golden file and in the rules of its converter of torchvision.


def detectron2_name(name):
    """How Detectron2's own tool renames torchvision's ResNets."""
    name = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return name if name.startswith("res") else f"stem.{name}"


def lively_resnet(build):
    """torchvision's network, random, whose batch norms do something; in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build().eval()
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                value.normal_(0, 0.3)
    return network


@pytest.mark.parametrize(("build", "name"), [(resnet18, "resnet18"), (resnet50, "resnet50")])
def test_a_backbone_alone_computes_what_torchvisions_does(build, name, tmp_path):
    network = lively_resnet(build)
    arrays = {detectron2_name(key): value.numpy() for key, value in network.state_dict().items()}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "torchvision"}, protocol=2))
    made = import_checkpoint(tmp_path / "R.pkl", tmp_path / "R.pth")
    assert made.backbone == name and made.config is None and not made.translation.missing
    left = {n for n in made.translation.unused if "num_batches_tracked" not in n}
    assert left == {"backbone.bottom_up.stem.fc.weight", "backbone.bottom_up.stem.fc.bias"}
    ours = FeatureMaps(name, pretrained=True, fetch_weights=False).eval()
    weights = {key.removeprefix("backbone."): value for key, value in load_checkpoint(made.path)["model"].items()}
    ours.load_state_dict(weights)
    picture = images()[0][None, :, :128, :160] / 255
    x = (picture - ours.mean) / ours.std
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for layer, level in zip("1234", ours(picture, torch.tensor([[128, 160]])), strict=True):
            x = getattr(network, f"layer{layer}")(x)
            assert x.std() > 0.1
            assert torch.allclose(level, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
    with pytest.raises(UserError, match="no classes, config, iteration"):
        load_model(made.path)  # there is no detector in it


def test_the_golden_heads_names_are_all_used(golden, tmp_path):  # noqa: F811
    """Under the names of the golden file, beside a backbone under torchvision's, comes a whole detector."""
    sizes, arrays = golden
    head = {name.removeprefix("weights/"): a for name, a in arrays.items() if name.startswith("weights/head.")}
    width = sizes["hidden_dim"]
    with torch.random.fork_rng():
        pyramid = Backbone("resnet18", width, pretrained=True, fetch_weights=False).pyramid
    fpn = {public_name(f"backbone.pyramid.{name}"): value for name, value in pyramid.state_dict().items()}
    assert set(fpn) == {
        f"backbone.fpn_{part}{level}.{kind}"
        for part in ("lateral", "output")
        for level in (2, 3, 4, 5)
        for kind in ("weight", "bias")
    }
    bottom_up = {
        f"backbone.bottom_up.{detectron2_name(name)}": value
        for name, value in lively_resnet(resnet18).state_dict().items()
        if not name.startswith("fc.")
    }
    torch.save({"model": head | fpn | bottom_up, "iteration": 12}, tmp_path / "model.pth")
    made = import_checkpoint(tmp_path / "model.pth", tmp_path / "ours.pth", Untold(classes="car,person,truck"))
    assert {name for name in made.translation.used if name.startswith("head.")} == set(head)
    assert all(name.endswith("num_batches_tracked") for name in made.translation.unused)
    for key, value in sizes.items():
        if key in ("hidden_dim", "num_heads", "dim_dynamic", "dim_feedforward", "num_cls", "num_reg"):
            assert getattr(made.config, key) == value
    _, _, state = load_model(made.path)
    assert state["classes"] == ["car", "person", "truck"] and state["iteration"] == 12
    assert all(torch.equal(state["model"][name], value) for name, value in head.items())


def saved(path, detector, config, classes=("a", "b", "c"), iteration=3):
    """A checkpoint of ours, as a training writes it."""
    state = {"model": detector.state_dict(), "config": config.model_dump(), "classes": list(classes)}
    save_checkpoint(path, {**state, "iteration": iteration})
    return path


def sampled(**sampler):
    """A detector that the public one has, but for the way in which it samples."""
    return {"backbone": "resnet18", "pretrained": True, "attention_heads": 8, "sampler": sampler}


@pytest.fixture
def ours(tmp_path):
    """A small detector of ours on a ResNet-18 with frozen batch norms, as a training writes it."""
    changes = sampled()
    return saved(tmp_path / "ours.pth", detector_like(changes), small_config(model=changes))


def detector_like(changes):
    from noisebox.models.diffusiondet.detector import DiffusionDet

    config = small_config(model=changes).model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiffusionDet(config, LossConfig(), 3, fetch_weights=False)


def test_what_is_exported_comes_back_as_it_was(ours, tmp_path):
    sent = export_checkpoint(ours, tmp_path / "public.pth")
    back = import_checkpoint(sent.path, tmp_path / "back.pth", Untold(classes="a,b,c", proposals=20))
    before, after = load_checkpoint(ours), load_checkpoint(back.path)
    assert before["model"].keys() == after["model"].keys()
    assert all(torch.equal(after["model"][name], value) for name, value in before["model"].items())
    sampler = before["config"]["model"]["sampler"] | {"ensemble": "public"}
    assert after["config"]["model"] == before["config"]["model"] | {"sampler": sampler}
    assert export_checkpoint(back.path, tmp_path / "again.pth").path.read_bytes() == sent.path.read_bytes()
    settings = dict(zip(sent.settings[::2], sent.settings[1::2], strict=True))
    assert settings["MODEL.RESNETS.DEPTH"] == "18" and settings["MODEL.DiffusionDet.NUM_CLASSES"] == "3"
    rows = [line.split("\t") for line in table_of(sent.path).read_text().splitlines()]
    assert rows[0] == ["status", "public", "noisebox"]
    assert len(rows) == 1 + len(before["model"]) + len(schedule_buffers(1000))
    assert ["used", "backbone.bottom_up.stem.conv1.norm.bias", "backbone.body.bn1.bias"] in rows


def test_a_posterior_is_what_two_gaussians_come_to():
    """Bayes' rule over the schedule: precisions add up, and means are weighed by them."""
    table = schedule_buffers(50)
    betas, before, bars = table["betas"][1:], table["alphas_cumprod_prev"][1:], table["alphas_cumprod"][1:]
    precision = (1 - betas) / betas + 1 / (1 - before)
    assert torch.allclose(table["posterior_variance"][1:], 1 / precision)
    assert torch.allclose(table["posterior_mean_coef1"][1:], before.sqrt() / (1 - before) / precision)
    assert torch.allclose(table["posterior_mean_coef2"][1:], (1 - betas).sqrt() / betas / precision)
    assert torch.allclose(table["sqrt_recipm1_alphas_cumprod"][1:] ** 2, (1 - bars) / bars)


def test_averaged_weights_are_taken_by_their_key_and_half_precision_is_widened(ours, tmp_path):
    public = torch.load(export_checkpoint(ours, tmp_path / "public.pth").path, weights_only=True)["model"]
    averaged = {f"module.{name}": value.half() for name, value in public.items() if value.dtype == torch.float32}
    torch.save({"model": public, "ema_state": averaged, "scheduler": {"last": np.float64(0.5)}}, tmp_path / "both.pth")
    made = import_checkpoint(tmp_path / "both.pth", tmp_path / "ema.pth", key="ema_state")
    state = load_checkpoint(made.path)["model"]
    assert all(value.dtype == torch.float32 for value in state.values())
    name = "head.time_mlp.1.weight"
    assert torch.equal(state[name], public[name].half().float()) and not torch.equal(state[name], public[name])


class Loud:
    def __reduce__(self):
        return os.system, ("touch called",)


@pytest.mark.parametrize("write", [lambda content, path: path.write_bytes(pickle.dumps(content)), torch.save])
def test_a_file_that_would_run_code_is_refused_before_it_does(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("bad.pth" if write is torch.save else "bad.pkl")
    write({"model": {"stem.conv1.weight": Loud()}}, path)
    with pytest.raises(UserError, match=r"asks for posix\.system, which could run code") as error:
        read_weights(path)
    assert "\n" not in str(error.value) and not Path("called").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol_are_read(protocol, tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64(2), "c": np.ones(3, ">i4")}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "iteration": 5}, protocol=protocol))
    read = read_weights(tmp_path / "w.pkl")
    assert read.iteration == 5
    assert {name: value.tolist() for name, value in read.tensors.items()} == {
        name: np.asarray(value).tolist() for name, value in arrays.items()
    }


def public_of(ours, tmp_path):
    return torch.load(export_checkpoint(ours, tmp_path / "public.pth").path, weights_only=True)


def test_what_does_not_fit_is_told_in_one_sentence(ours, tmp_path):
    """Each fault at one tensor of a sound file."""
    sound = public_of(ours, tmp_path)["model"]
    stage = "head.head_series.1."
    faults = {
        "lacks 1 tensors .* such as head.head_series.1.norm1.bias": {f"{stage}norm1.bias": None},
        r"norm1.bias has the shape \(3,\), \(32,\) would fit": {f"{stage}norm1.bias": torch.ones(3)},
        "1 tensors of the network have no place .* such as head.label_embedding": {
            "head.label_embedding": torch.ones(2)
        },
        "alphas_cumprod is not the one": {"alphas_cumprod": torch.linspace(1, 0, 1000)},
        "class_logits.weight is missing": {"head.head_series.0.class_logits.weight": None},
        "NUM_DYNAMIC 2": {"head.head_series.0.inst_interact.dynamic_layer.weight": torch.ones(256, 32)},
        "3, 2, 2, 2 blocks a stage": {"backbone.bottom_up.res2.2.conv1.weight": torch.ones(2)},
        "holds no backbone": {"backbone.bottom_up.stem.conv1.weight": None},
    }
    for message, changes in faults.items():
        changed = {name: value for name, value in (sound | changes).items() if value is not None}
        torch.save({"model": changed}, tmp_path / "changed.pth")
        with pytest.raises(UserError, match=message) as error:
            import_checkpoint(tmp_path / "changed.pth", tmp_path / "no.pth")
        assert "\n" not in str(error.value) and "changed.pth" in str(error.value)
    assert not (tmp_path / "no.pth").exists()


def test_statistics_that_look_like_caffes_need_a_word(tmp_path):
    network = lively_resnet(resnet50)
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.zero_()
    torch.save({detectron2_name(name): value for name, value in network.state_dict().items()}, tmp_path / "R.pth")
    with pytest.raises(UserError, match=r"the stride .* lies in the 1x1"):
        import_checkpoint(tmp_path / "R.pth", tmp_path / "out.pth")
    vouched = Untold(stride_in_3x3=True)
    assert import_checkpoint(tmp_path / "R.pth", tmp_path / "out.pth", vouched).backbone == "resnet50"


def test_what_is_no_diffusiondet_is_refused_or_gives_its_backbone(ours, tmp_path):
    sound = public_of(ours, tmp_path)["model"]
    other = {name: value for name, value in sound.items() if name.startswith("backbone.")}
    torch.save({"model": other | {"roi_heads.box_predictor.weight": torch.ones(2)}}, tmp_path / "rcnn.pth")
    with pytest.raises(UserError, match="no head of the public DiffusionDet, but roi_heads; with --backbone-only"):
        import_checkpoint(tmp_path / "rcnn.pth", tmp_path / "out.pth")
    made = import_checkpoint(tmp_path / "rcnn.pth", tmp_path / "out.pth", backbone_only=True)
    assert made.translation.unused == ("roi_heads.box_predictor.weight",) and not made.translation.missing
    before, after = load_checkpoint(ours)["model"], load_checkpoint(made.path)["model"]
    assert after.keys() == {name for name in before if name.startswith("backbone.")}
    caffe = {"conv1_w": np.ones((64, 3, 7, 7), np.float32), "res_conv1_bn_s": np.ones(64, np.float32)}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(caffe))
    with pytest.raises(UserError, match=r"Caffe2 .* 1x1 .* torchvision-R-50.pkl"):
        import_checkpoint(tmp_path / "R-50.pkl", tmp_path / "out.pth")


def test_mistakes_on_the_command_line(ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sent = export_checkpoint(ours, tmp_path / "public.pth").path
    Path("text.pth").write_text("no weights\n")
    Path("text.pkl").write_text("no weights\n")
    Path("whole.pth").write_bytes(sent.read_bytes()[:-2000])
    torch.save({"a": 1}, "plain.pth")
    torch.save([torch.ones(2)], "list.pth")
    Path("names.json").write_text('{"categories": [{"id": 2, "name": "x"}, {"id": 1, "name": "y"}]}')
    mistakes = {
        ("nowhere.pth",): "nowhere.pth does not exist",
        (".",): "is a folder",
        ("text.pth",): "text.pth is damaged, or is no file of PyTorch's",
        ("text.pkl",): "text.pkl is damaged, or is no pickle of arrays",
        ("whole.pth",): "whole.pth is damaged",
        ("plain.pth",): "plain.pth has no tensors",
        ("list.pth",): "list.pth holds a list",
        ("public.pth", "--key", "ema"): "has no key 'ema'; its keys are: model",
        ("public.pth", "--out", "x.pkl"): "x.pkl must end in .pth",
        ("public.pth", "--out", "public.pth"): "is the file to read",
        ("public.pth", "--classes", "a,b"): "--classes a,b names 2; a class for the background",
        ("public.pth", "--classes", "names.json"): "names 2",
        ("public.pth", "--attention-heads", "5"): "hidden_dim 32 must be a multiple of attention_heads 5",
        ("public.pth", "--pixel-std", "0", "1", "1"): "pixel_std",
        ("public.pth", "--pixel-mean", "0.5", "0.4", "0.4"): "0.5 0.4 0.4: must be on the scale of 0 to 255",
    }
    for words, sentence in mistakes.items():
        done = CliRunner().invoke(app, ["import-checkpoint", *words])
        assert isinstance(done.exception, UserError), (words, done.exception)
        assert sentence in str(done.exception) and "\n" not in str(done.exception), (words, str(done.exception))
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": "slim"}, "Detectron2 has no backbone 'slim'"),
        ({"backbone": "resnet18"}, "GroupNorm"),
        ({"backbone": "resnet18", "pretrained": True, "geo_feat": {"enabled": True}}, "geo_feat"),
        ({"backbone": "resnet18", "pretrained": True, "timesteps": 100}, "timesteps 100"),
        (sampled(eta=0.0), "model.sampler.eta 0.0; the public DiffusionDet has 1.0, and no key for another"),
        (sampled(box_renewal=False), "model.sampler.box_renewal False"),
        (sampled(renewal_threshold=0.4), "model.sampler.renewal_threshold 0.4"),
        (sampled(nms_threshold=0.9), "model.sampler.nms_threshold 0.9; the public DiffusionDet has 0.5 or 1.0"),
    ],
)
def test_what_the_public_detector_lacks_is_not_exported(changes, sentence, tmp_path):
    path = saved(tmp_path / "ours.pth", detector_like(changes), small_config(model=changes))
    with pytest.raises(UserError, match=sentence):
        export_checkpoint(path, tmp_path / "public.pth")
    assert not (tmp_path / "public.pth").exists()


def test_a_quality_head_stays_at_home(tmp_path):
    changes = {"backbone": "resnet18", "pretrained": True, "quality_head": True}
    path = saved(tmp_path / "ours.pth", detector_like(changes), small_config(model=changes))
    sent = export_checkpoint(path, tmp_path / "public.pth")
    assert sent.translation.unused == tuple(
        f"head.head_series.{stage}.quality.{kind}" for stage in (0, 1) for kind in ("bias", "weight")
    )


def test_a_configurations_weights_are_imported_if_their_names_are_public(ours, tmp_path):
    """Ours stay as they are, also without a configuration, as an imported backbone or another framework leaves them."""
    tensors = torch.load(ours, weights_only=True)["model"]
    bare = tmp_path / "bare.pth"
    torch.save({"model": tensors}, bare)
    (tmp_path / "x.yaml").write_text(f"OUTPUT_DIR: {tmp_path}/out\n{DATASETS}")
    for own in (ours, bare):
        asked = load_config(tmp_path / "x.yaml", ["MODEL.WEIGHTS", str(own)], ROOT)
        assert with_own_weights(asked) == asked
    sent = export_checkpoint(ours, tmp_path / "public.pth").path
    asked = with_own_weights(load_config(tmp_path / "x.yaml", ["MODEL.WEIGHTS", str(sent)], ROOT))
    assert asked.weights == f"{tmp_path}/out/start.pth"
    came = torch.load(asked.weights, weights_only=True)["model"]
    assert came.keys() == tensors.keys() and all(torch.equal(came[name], tensors[name]) for name in tensors)


def configured(path, *pairs):
    """The model of a configuration with its weights, as --eval-only builds it."""
    asked = with_own_weights(load_config(path, pairs, ROOT))
    config = combined(Lineage.parse(asked.name), asked.seed, SCALE, asked.scale, [asked.recipe])
    model = build_model(config, 3, fetch_weights=False)
    assert not load_weights(model, load_checkpoint(Path(asked.weights)), asked.weights).new
    return model.eval()


def detected(model, steps):
    batch = batch_of([image[:, :64, :96] for image in images()])
    with torch.no_grad():
        (found,) = model.detect(model.encode(batch), batch, [0], Sampling(steps=steps))
    return found


def assert_the_very_same(found, others):
    for image, other in zip(found, others, strict=True):
        assert len(image.scores) > 3
        assert torch.equal(image.boxes_xyxy, other.boxes_xyxy) and torch.equal(image.scores, other.scores)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_configuration_samples_public_weights_as_the_public_code_does(ours, steps, tmp_path):
    """Imported ones do so, which is held against the public code above: the last of several steps is left out."""
    sent = export_checkpoint(ours, tmp_path / "public.pth")
    (tmp_path / "x.yaml").write_text(f"OUTPUT_DIR: {tmp_path}/out\n{DATASETS}")
    model = configured(tmp_path / "x.yaml", "MODEL.WEIGHTS", str(sent.path), *sent.settings)
    imported = load_model(import_checkpoint(sent.path, tmp_path / "imported.pth", Untold(proposals=20)).path)[0]
    assert_the_very_same(detected(model, steps), detected(imported, steps))


def test_the_verb_prints_the_settings_and_what_stays_different(ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["export-checkpoint", str(ours), "--out", "public.pth"]).output.splitlines()
    assert "  MODEL.DiffusionDet.USE_NMS True" in said
    assert said[-1].startswith("note: at one step the public detector finds the same; of several it leaves the last")


@pytest.mark.parametrize(
    ("sampler", "steps", "told"),
    [({"ensemble": "public"}, 3, []), ({"ensemble": "public", "nms_threshold": 1.0}, 3, []), ({}, 1, ["all of them"]),
     ({"ensemble": "none", "nms_threshold": 1.0}, 1, ["the last alone"])],
)  # fmt: skip
def test_what_is_exported_detects_by_its_settings_what_it_did(sampler, steps, told, tmp_path):
    """And what would be otherwise over several steps is told."""
    changes = sampled(**sampler)
    path = saved(tmp_path / "ours.pth", detector_like(changes), small_config(model=changes))
    sent = export_checkpoint(path, tmp_path / "public.pth")
    assert all(words in note for words, note in zip(told, sent.notes, strict=True))
    (tmp_path / "x.yaml").write_text(f"OUTPUT_DIR: {tmp_path}/out\n{DATASETS}")
    model = configured(tmp_path / "x.yaml", "MODEL.WEIGHTS", str(sent.path), *sent.settings)
    assert_the_very_same(detected(model, steps), detected(load_model(path)[0], steps))


def test_what_others_let_torch_load_stays_so(tmp_path: Path) -> None:
    """A file is read with arrays admitted for that moment alone, and not taken from who admitted them before."""
    torch.save({"model": {"weight": torch.zeros(2)}, "loss": np.float32(1.5)}, tmp_path / "theirs.pth")
    with torch.serialization.safe_globals([type(np.dtype(np.float32))]):
        before = set(torch.serialization.get_safe_globals())
        assert list(read_weights(tmp_path / "theirs.pth").tensors) == ["weight"]
        assert set(torch.serialization.get_safe_globals()) == before
