"""A DiffusionDet at one sampling step as a program that needs no Noisebox, of torch.export or ONNX; or at any number of
steps as a folder of Diffusers. A program is held against the detector, and timed."""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from noisebox.config import RunConfig
from noisebox.diffusion.sampler import Prediction
from noisebox.diffusion.suppression import kept_boxes
from noisebox.errors import UserError
from noisebox.files import atomic_folder, sha256, write_json
from noisebox.machine import prepare
from noisebox.models.diffusiondet.detector import DiffusionDet
from noisebox.models.diffusiondet.pooling import Pyramid
from noisebox.randomness import KeyedRows
from noisebox.structures import whwh_of
from noisebox.training.checkpoint import load_model

Format = Literal["diffusers", "torch-export", "onnx"]
Answer = Sequence[Tensor]  # boxes_xyxy (B, P, 4), scores (B, P), labels (B, P)
Program = Callable[..., Answer]

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FILES = {"torch-export": "model.pt2", "onnx": "model.onnx"}
FACTS = "export.json"
OUTPUTS = ("boxes_xyxy", "scores", "labels")
STRIDE = 32
MOST_IMAGES = 64  # at once
CHECKED_IMAGES = 2
TIMED_RUNS = 9


class OneStep(nn.Module):
    """Detection at one sampling step in tensors alone, for images of one size."""

    def __init__(self, detector: DiffusionDet) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, images: Tensor, sizes_hw: Tensor, noise: Tensor, label_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, P, 4) in pixels of `images`, scores (B, P), falling, and labels (B, P); the score of a duplicate,
        or of a box without an area in the image, is 0.

        `images`: (B, 3, H, W) in [0, 1]. `sizes_hw`: (B, 2) int64, their sizes without padding, which is at the right
        and bottom. `noise`: (B, P, 4), standard normal. `label_state`: (B, P, K + 1), what the labels start from, where
        the detector has them.
        """
        detector = self.detector
        image_whwh = whwh_of(sizes_hw)
        pyramid = Pyramid.of(detector.backbone(images, sizes_hw))
        t = torch.full_like(sizes_hw[:, 0], detector.config.timesteps - 1)
        boxes_xyxy = detector.diffusion.to_boxes(noise * detector.diffusion.sigmas.float(), image_whwh)
        every_image = torch.ones_like(t).cumsum(0) - 1
        said: Prediction = detector.denoiser(pyramid, every_image, image_whwh)(boxes_xyxy, t, label_state)
        found = detector.sampler.strongest(said)
        kept = kept_boxes(found.boxes_xyxy, found.labels, detector.config.sampler.nms_threshold)
        boxes_xyxy = found.boxes_xyxy.clamp(min=0).minimum(image_whwh[:, None])
        kept = kept & (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(-1)
        return boxes_xyxy, found.scores * kept, found.labels


class Difference(NamedTuple):
    """Between two answers: how many boxes each has; how far, in pixels, the farthest box of one is from the nearest of
    its class in the other; and how much scores of one rank differ."""

    boxes: tuple[int, int]
    pixels: float
    scores: float


def export(
    checkpoint: Path, form: Format, out: Path, size: tuple[int, int] | None = None, say: Callable[[str], None] = print
) -> None:
    """Write a checkpoint of family diffusiondet to the folder `out` in another form, and `say` what came of it.

    `size`, of a program only: height and width of its images; by default those into which the checkpoint's evaluation
    brings any image that is wider than high.

    Raises UserError when the checkpoint is of another family, `out` is in use, or packages are missing; `out` appears
    whole or not at all.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; name another with --out, or remove it")
    if size is not None and form == "diffusers":
        raise UserError("--size is of a program; a pipeline of Diffusers takes images of any size")
    if size is not None and min(size) < STRIDE:
        raise UserError(f"--size {size[0]} {size[1]}: height and width must be {STRIDE} pixels or more")
    missing = [name for name in ONNX_PACKAGES if form == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}; install with: pip install 'noisebox[onnx]'")
    model, config, state = load_model(checkpoint)
    if not isinstance(model, DiffusionDet):
        raise UserError(f"{checkpoint} is of family {config.family}; what is exported is of family diffusiondet")
    prepare(config.threads)
    with atomic_folder(out) as folder:
        if form == "diffusers":
            said = _write_pipeline(folder, model, config, state["classes"])
        else:
            facts = {"checkpoint_sha256": sha256(checkpoint), "classes": list(state["classes"])}
            said = _write_program(folder, form, model, config, size, facts)
    for line in [*said, str(out)]:
        say(line)


def _write_pipeline(folder: Path, model: DiffusionDet, config: RunConfig, classes: Sequence[str]) -> list[str]:
    from noisebox.interop.diffusers import DetectionPipeline

    DetectionPipeline.of_model(model, config, classes).save_pretrained(folder)
    return ["load it with: noisebox.interop.diffusers.DetectionPipeline.from_pretrained(folder)"]


def _write_program(
    folder: Path,
    form: Format,
    model: DiffusionDet,
    config: RunConfig,
    size: tuple[int, int] | None,
    facts: dict[str, Any],
) -> list[str]:
    """The program and what there is to know of it; returns that in lines."""
    edges = (config.image.eval_short_edge, config.image.max_edge)
    height, width = size or [STRIDE * math.ceil(edge / STRIDE) for edge in edges]
    eager, given = OneStep(model), example(model, CHECKED_IMAGES, height, width)
    one = example(model, 1, height, width)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within torch
        programs: dict[str, Program] = {"eager": eager}
        program = exported(eager, given)
        if form == "onnx":
            _to_onnx(eager, given, folder / FILES[form])
            programs |= {
                "exported": program.module(),
                "onnxruntime": onnx_program(folder / FILES[form], config.threads),
            }
        else:
            torch.export.save(program, folder / FILES[form])
            programs["exported"] = torch.export.load(folder / FILES[form]).module()
        truth = eager(*given.values())
        differences = {
            name: difference(truth, run(*given.values())) for name, run in programs.items() if run is not eager
        }
        latencies = {name: median_latency(run, tuple(one.values())) for name, run in programs.items()}
    shapes = {name: ["batch", *tensor.shape[1:]] for name, tensor in given.items()}
    write_json(
        folder / FACTS,
        {
            "format": form,
            **facts,
            "inputs": shapes,
            "outputs": list(OUTPUTS),
            "differences": {name: found._asdict() for name, found in differences.items()},
            "latency_ms": latencies,
        },
    )
    return _told(form, model, shapes, differences, latencies, config.threads)


def _told(
    form: str,
    model: DiffusionDet,
    shapes: dict[str, list[Any]],
    differences: dict[str, Difference],
    latencies: dict[str, float],
    threads: int,
) -> list[str]:
    inputs = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in shapes.items())
    lines = [
        f"{FILES[form]}: {inputs}; up to {MOST_IMAGES} images at once, of fixed height and width",
        "inside: backbone, head, suppression of duplicates, whose scores become 0; float32",
    ]
    for name, found in differences.items():
        counts = " and ".join(map(str, found.boxes))
        off = f"boxes differ by up to {found.pixels:.2g} px, scores by {found.scores:.2g}"
        lines.append(f"{name} against eager, {CHECKED_IMAGES} images of noise: {counts} boxes; {off}")
    timed = ", ".join(f"{name} {value:.1f} ms" for name, value in latencies.items())
    lines.append(f"one image, {threads} thread{'s' if threads > 1 else ''}, median of {TIMED_RUNS}: {timed}")
    return lines


def example(model: DiffusionDet, images: int, height: int, width: int) -> dict[str, Tensor]:
    """Inputs of `OneStep` by name: images of noise, the first as large as can be, the others smaller and padded."""
    rows = KeyedRows([(0, (image,)) for image in range(images)], "cpu")
    smaller = torch.arange(images)[:, None].minimum(torch.tensor(1)) * torch.tensor([height // 4, width // 5])
    sizes_hw = torch.tensor([[height, width]]) - smaller
    inside = (torch.arange(height)[:, None] < sizes_hw[:, 0, None, None]) & (
        torch.arange(width) < sizes_hw[:, 1, None, None]
    )
    given = {
        "images": rows.uniform("export images", (3, height, width)) * inside[:, None],
        "sizes_hw": sizes_hw,
        "noise": rows.normal("sampler start", (model.config.num_proposals, 4)),
    }
    if model.labels is not None:
        given["label_state"] = model.labels.start(model.config.num_proposals, rows)
    return given


def exported(eager: OneStep, given: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """The program of torch.export, for any number of images up to MOST_IMAGES."""
    return torch.export.export(eager, tuple(given.values()), dynamic_shapes=_free_batch(given))


def _free_batch(given: dict[str, Tensor]) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    return {name: {0: batch} for name in given}


def _to_onnx(eager: OneStep, given: dict[str, Tensor], path: Path) -> None:
    program = cast(
        torch.onnx.ONNXProgram,
        torch.onnx.export(
            eager,
            tuple(given.values()),
            dynamic_shapes=_free_batch(given),
            input_names=list(given),
            output_names=list(OUTPUTS),
            dynamo=True,
            verbose=False,
        ),
    )
    program.save(path)


def onnx_program(path: Path, threads: int) -> Program:
    """An ONNX file as a function of tensors, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*given: Tensor) -> Answer:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def difference(ours: Answer, theirs: Answer) -> Difference:
    """How far two answers to the same images are apart; boxes that were suppressed do not count."""
    farthest, scores = 0.0, (ours[1].sort().values - theirs[1].sort().values).abs().max().item()
    for one, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        farthest = max(farthest, _farthest(one, other), _farthest(other, one))
    return Difference((int((ours[1] > 0).sum()), int((theirs[1] > 0).sum())), farthest, scores)


def _farthest(one: Answer, other: Answer) -> float:
    """How far the farthest box of an image is from the nearest of its class in another answer; inf, if it has none."""
    (boxes, scores, labels), (others, other_scores, other_labels) = one, other
    apart = (boxes[:, None] - others).abs().amax(-1)
    apart = apart.masked_fill((labels[:, None] != other_labels) | (other_scores == 0), torch.inf).amin(1)[scores > 0]
    return apart.max().item() if len(apart) else 0.0


def median_latency(run: Program, given: Sequence[Tensor]) -> float:
    """In milliseconds, after a warm-up."""
    run(*given)
    taken = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        run(*given)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)
