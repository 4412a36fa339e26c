"""DETR (Carion et al. 2020, arXiv 2005.12872): a transformer says, query by query, one object or none; in one page."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert
from transformers import DetrConfig as TransformersConfig
from transformers import DetrForObjectDetection, ResNetConfig

from noisebox.config import Sampling
from noisebox.config.detr import DetrConfig, DetrLossConfig
from noisebox.errors import UserError
from noisebox.models import Detector, size_monitors
from noisebox.models.backbone import STRIDES, FeatureMaps
from noisebox.models.clipping import clipped
from noisebox.models.detr.criterion import Objects, Output, set_prediction_loss
from noisebox.structures import Batch, Detections

# The library builds its backbone with the rest; the smallest there is makes room for ours.
STAND_IN = ResNetConfig(embedding_size=1, hidden_sizes=[1], depths=[1], layer_type="basic", out_features=["stage1"])


class Detr(Detector):
    """The transformer, queries and heads of transformers' DETR over a backbone that sees each image once. Nothing in it
    is random."""

    def __init__(self, config: DetrConfig, loss: DetrLossConfig, num_classes: int, fetch_weights: bool = True) -> None:
        super().__init__()
        self.config, self.loss = config, loss
        self.network = DetrForObjectDetection(_in_their_words(config, num_classes))
        backbone = DetrBackbone(config, fetch_weights)
        self.network.model.backbone = backbone
        self.network.model.input_projection = nn.Conv2d(sum(backbone.features.channels), config.hidden_dim, 1)
        self._draw_weights()

    def _draw_weights(self) -> None:
        """Xavier's (Glorot and Bengio 2010) in the transformer, as published, and PyTorch's own beside it; the library
        draws others, from which so deep a transformer hardly learns."""
        network, model = self.network, self.network.model
        for part in (model.query_position_embeddings, network.class_labels_classifier, network.bbox_predictor):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    module.reset_parameters()
        for parameter in (*model.encoder.parameters(), *model.decoder.parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    @property
    def deterministic(self) -> bool:
        return True

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"backbone": list(self.network.model.backbone.parameters())}

    def encode(self, batch: Batch) -> Output:
        """What the decoder's layers say, float32."""
        model, images = self.network.model, batch.images
        said = model(images, pixel_mask(batch), output_hidden_states=True)
        _, *earlier, last = said.decoder_hidden_states  # what goes into the decoder, then what each layer says of it
        states = torch.stack([*(model.decoder.layernorm(state) for state in earlier), last])
        logits, boxes = self.network.class_labels_classifier(states), self.network.bbox_predictor(states)
        return Output(logits.float(), boxes.float().sigmoid())

    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        """As the interface says; `seed` and `step` change nothing."""
        output, image_whwh = self.encode(batch), batch.image_whwh
        terms = set_prediction_loss(output, Objects.of(batch.targets, image_whwh), self.loss)
        sizes = output.boxes[-1, ..., 2:] * image_whwh[:, None, :2]
        return {**terms, **size_monitors(sizes.flatten(0, 1))}

    def check_sampling(self, sampling: Sampling) -> None:
        super().check_sampling(sampling)
        if sampling.steps > 1:
            raise UserError(f"{sampling.steps} sampling steps need a detector that denoises; detr does not: ask for 1")

    @torch.no_grad()
    def detect(
        self, encoded: Output, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Detections]]:
        """As the interface says: of each query its likeliest class. Every eval seed has the same."""
        self.check_sampling(sampling)
        boxes = box_convert(encoded.boxes[-1], "cxcywh", "xyxy") * batch.original_whwh[:, None]
        scores, labels = encoded.logits[-1].softmax(-1)[..., :-1].max(-1)
        images = [_ranked(*row) for row in zip(boxes, scores, labels, batch.original_whwh, strict=True)]
        return [list(images) for _ in eval_seeds]


class DetrBackbone(nn.Module):
    """Our backbone in the place of the library's own."""

    def __init__(self, config: DetrConfig, fetch_weights: bool) -> None:
        super().__init__()
        strides = STRIDES[STRIDES.index(config.stride) :]
        self.features = FeatureMaps(config.backbone, config.pretrained, fetch_weights, strides)
        self.stride = config.stride

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """All maps at the size of the finest, put together, (B, channels, h, w), and which of their cells lie in the
        image (B, h, w). `images`: (B, 3, H, W) in [0, 1]; `mask`: (B, H, W), where they are no padding."""
        sizes_hw = torch.stack((mask.any(2).sum(1), mask.any(1).sum(1)), 1)
        finest, *coarser = self.features(images, sizes_hw)
        size = finest.shape[-2:]
        fused = torch.cat([finest, *(F.interpolate(level, size) for level in coarser)], 1)
        rows, columns = (
            torch.arange(count, device=mask.device) * self.stride < extent[:, None]
            for count, extent in zip(size, sizes_hw.unbind(1), strict=True)
        )
        return [(fused, rows[:, :, None] & columns[:, None])]


def pixel_mask(batch: Batch) -> Tensor:
    """(B, H, W) bool: where the images are, and not their padding."""
    height, width = batch.images.shape[-2:]
    rows, columns = (torch.arange(count, device=batch.images.device) for count in (height, width))
    return (rows[:, None] < batch.sizes_hw[:, 0, None, None]) & (columns < batch.sizes_hw[:, 1, None, None])


def _in_their_words(config: DetrConfig, num_classes: int) -> TransformersConfig:
    """The configuration of the library's DETR: without dropout, which would draw from the global generators, and with
    its plain attention, whose gradients are the same every time on a GPU, too."""
    return TransformersConfig(
        backbone_config=STAND_IN,
        num_labels=num_classes,
        num_queries=config.num_queries,
        d_model=config.hidden_dim,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.attention_heads,
        decoder_attention_heads=config.attention_heads,
        encoder_ffn_dim=config.dim_feedforward,
        decoder_ffn_dim=config.dim_feedforward,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        attn_implementation="eager",
    )


def _ranked(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, image_whwh: Tensor) -> Detections:
    """One image's boxes clipped to it, those left without an area dropped, in falling order of score."""
    boxes_xyxy, has_area = clipped(boxes_xyxy, image_whwh)
    order = scores.argsort(descending=True, stable=True)
    kept = order[has_area[order]]
    return Detections(boxes_xyxy[kept], scores[kept], labels[kept])
