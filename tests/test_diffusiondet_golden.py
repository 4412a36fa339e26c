"""Agreement with the public DiffusionDet, to 1e-4, on the numbers in golden/diffusiondet_head.npz.

The file's schedule tables are not a schedule: they look like draws from N(0, 0.05²), half of the betas are negative, as
if every vector of the model, buffers included, had been given random values. The file's predicted noise and q_sample
were computed with them, so none of these is compared; test_gaussian holds ours to the closed form instead.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from noisebox.config.diffusiondet import DiffusionDetConfig, LossConfig
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.models.diffusiondet.criterion import set_prediction_loss
from noisebox.models.diffusiondet.head import DynamicHead, HeadOutput
from noisebox.models.diffusiondet.matcher import PaddedTargets, dynamic_k_matches, matching_cost, pairwise_iou
from noisebox.models.diffusiondet.pooling import Pyramid
from noisebox.structures import Targets

TOLERANCE = 1e-4
PREFIX = "weights/head."


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "diffusiondet_head.npz") as file:
        arrays = {name: file[name] for name in file.files}
    config = json.loads(str(arrays.pop("config")))
    return config, {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def diffusion(golden):
    return GaussianDiffusion(1000, golden[0]["snr_scale"])


@pytest.fixture(scope="module")
def stages(golden, diffusion):
    """Logits and boxes of every stage, from the file's weights, features, noisy boxes and times."""
    config, arrays = golden
    sizes = {key: value for key, value in config.items() if key in DiffusionDetConfig.model_fields}
    head = DynamicHead(DiffusionDetConfig(**sizes), config["num_classes"])
    head.load_state_dict({name.removeprefix(PREFIX): a for name, a in arrays.items() if name.startswith(PREFIX)})
    pyramid = Pyramid.of([arrays[f"feat_p{level}"] for level in (2, 3, 4, 5)])
    boxes = diffusion.to_boxes(arrays["x_t"], arrays["image_whwh"])
    with torch.no_grad():
        return head(pyramid, boxes, arrays["t"], torch.arange(2), arrays["image_whwh"])


@pytest.fixture(scope="module")
def loss_config(golden):
    return LossConfig(**{key: value for key, value in golden[0].items() if key in LossConfig.model_fields})


@pytest.fixture(scope="module")
def targets(golden):
    arrays = golden[1]
    return PaddedTargets.of([Targets(arrays[f"gt{i}_boxes_xyxy"], arrays[f"gt{i}_labels"]) for i in range(2)])


def close(ours, theirs):
    return torch.allclose(ours.double(), theirs.double(), rtol=0, atol=TOLERANCE)


def test_every_stage(golden, stages):
    assert close(stages.logits, golden[1]["stage_logits"])
    assert close(stages.boxes_xyxy, golden[1]["stage_boxes"])


def test_x_start(golden, diffusion, stages):
    x_start = diffusion.clamp(diffusion.from_boxes(stages.boxes_xyxy[-1], golden[1]["image_whwh"]))
    assert close(x_start, golden[1]["pred_x_start"])


def test_q_sample_given_the_files_weights(golden, diffusion, monkeypatch):
    """Which weight goes to the signal and which to the noise; their values in the file are no schedule's."""
    arrays = golden[1]
    tables = [arrays["schedule_sqrt_alphas_cumprod"], arrays["schedule_sqrt_one_minus_alphas_cumprod"]]
    monkeypatch.setattr(diffusion, "_weights", lambda t, dtype: [table[t][:, None, None] for table in tables])
    assert close(diffusion.q_sample(arrays["q_x0"], arrays["t"], arrays["q_eps"]), arrays["q_out"])


@pytest.mark.parametrize("image", [0, 1])
def test_who_is_matched_with_whom(golden, targets, loss_config, image):
    arrays = golden[1]
    iou, giou = pairwise_iou(arrays["match_boxes"], targets.boxes_xyxy)
    cost = matching_cost(
        arrays["match_logits"], arrays["match_boxes"], giou, targets, arrays["image_whwh"], loss_config
    )
    matched, gt_index = dynamic_k_matches(cost, iou, targets.valid, loss_config.ota_k)
    selected = matched[image]
    assert torch.equal(selected, arrays[f"match{image}_selected"])
    assert torch.equal(gt_index[image][selected], arrays[f"match{image}_gt_of_selected"])
    for gt, best in enumerate(arrays[f"match{image}_best_proposal_of_gt"].tolist()):
        own = selected & (gt_index[image] == gt)
        assert cost[image, :, gt].masked_fill(~own, torch.inf).argmin() == best


def test_every_loss(golden, targets, loss_config):
    arrays = golden[1]
    said = HeadOutput(arrays["match_logits"][None], arrays["match_boxes"][None])
    terms = set_prediction_loss(said, targets, arrays["image_whwh"], loss_config)
    weights = {
        "loss_ce": loss_config.class_weight,
        "loss_bbox": loss_config.l1_weight,
        "loss_giou": loss_config.giou_weight,
    }
    assert terms.keys() == weights.keys()
    for name, weight in weights.items():
        assert close(terms[name] / weight, arrays[f"loss_{name}"])
