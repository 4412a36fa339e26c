"""What models need to know of the processes that share a batch."""

from torch import Tensor, distributed


def mean_over_processes(count: Tensor) -> Tensor:
    """`count` averaged over the processes that share a batch, whose gradients are averaged as well."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        return count / distributed.get_world_size()
    return count
