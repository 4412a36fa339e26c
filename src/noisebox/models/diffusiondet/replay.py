"""Passes of the head on a GPU that are launched once and replayed from then on, as CUDA graphs.

A pass is a thousand kernels. For few proposals the host takes longer to launch them than the GPU to run them: twenty
steps for one image take a third of the time when replayed. The kernels are the same, and so are the results.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from noisebox.models.diffusiondet.head import DynamicHead, HeadOutput
from noisebox.models.diffusiondet.pooling import Pyramid

MOST_PROPOSALS = 4096  # with more in a pass it is the GPU that takes longer
MOST_GRAPHS = 4  # each keeps the memory of its pass


class Recording(NamedTuple):
    """A graph, the tensors that it reads, in the order of the head's arguments, and those that it writes; and some of
    the head's weights, held so that, when they have moved, no others come to lie where they lay."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: HeadOutput
    weights: Tensor


class ReplayedHead:
    """What a head says, without gradients of its weights; a shape is recorded when it comes for the second time.

    Weights may change in place, as they do in training; of weights that were moved, another recording is made. All
    recordings read one copy of a pyramid's table, which is as large as the largest that came.
    """

    def __init__(self, head: DynamicHead) -> None:
        self._head = head
        self._pyramid: Pyramid | None = None
        self._copied: ref[Tensor] | None = None  # the table that `_pyramid` is a copy of
        self._met: set[tuple[Any, ...]] = set()
        self._recordings: dict[tuple[Any, ...], Recording] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReplayedHead":
        """Of the copied head, with nothing recorded."""
        return ReplayedHead(deepcopy(self._head, memo))

    def __call__(self, pyramid: Pyramid, boxes_xyxy: Tensor, *conditions: Tensor | None) -> HeadOutput:
        """As `DynamicHead.forward`, which says it where there is no GPU, too much to do, a gradient wanted, or somebody
        who watches each operation, as one who counts them."""
        given = [boxes_xyxy, *(each for each in conditions if each is not None)]
        pays = boxes_xyxy.is_cuda and boxes_xyxy.shape[:2].numel() <= MOST_PROPOSALS
        if not pays or boxes_xyxy.requires_grad or is_in_torch_dispatch_mode():
            return self._said(pyramid, given)
        weights = next(self._head.parameters()).detach()
        key = (boxes_xyxy.shape, len(given), torch.is_autocast_enabled("cuda"), weights.data_ptr())
        full = len(self._recordings) == MOST_GRAPHS
        if key not in self._recordings and (key not in self._met or full):
            self._met.add(key)
            return self._said(pyramid, given)
        copy = self._copy_of(pyramid)
        if key not in self._recordings:  # or no longer, as the copy is another
            self._recordings[key] = self._recorded(copy, given, weights)
        recording = self._recordings[key]
        for read, value in zip(recording.inputs, given, strict=True):
            read.copy_(value)
        recording.graph.replay()
        logits, boxes, quality, _ = recording.output
        return HeadOutput(logits.clone(), boxes.clone(), None if quality is None else quality.clone())

    def _said(self, pyramid: Pyramid, given: list[Tensor]) -> HeadOutput:
        said: HeadOutput = self._head(pyramid, *given)
        return said

    def _copy_of(self, pyramid: Pyramid) -> Pyramid:
        """The copy that recordings read, made to say what `pyramid` does; in place, if that fits."""
        kept = self._pyramid
        if kept and self._copied and self._copied() is pyramid.table:
            return kept
        if kept and kept.table.dtype == pyramid.table.dtype and len(kept.table) >= len(pyramid.table):
            kept.table[: len(pyramid.table)] = pyramid.table
            kept.levels.copy_(pyramid.levels)
        else:
            self._recordings.clear()
            kept = self._pyramid = replace(pyramid, table=pyramid.table.clone(), levels=pyramid.levels.clone())
        self._copied = ref(pyramid.table)
        return kept

    def _recorded(self, pyramid: Pyramid, given: list[Tensor], weights: Tensor) -> Recording:
        inputs, dtype = [value.clone() for value in given], torch.get_autocast_dtype("cuda")
        # Weights are cast in the graph, and not once before it, so that it sees how they change.
        with torch.autocast("cuda", dtype, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # libraries prepare what a graph may not contain
                self._said(pyramid, inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = self._said(pyramid, inputs)
        return Recording(graph, inputs, output, weights)
