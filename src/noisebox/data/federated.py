"""Which classes count in an image where a loss is federated: where it counts some of many classes alone.

A class that is not annotated in an image may be there all the same, or be one of hundreds that nobody would look for;
so each image is held to its own classes and to a few others (Gupta et al. 2019, LVIS; Zhou et al. 2021, probabilistic
two-stage detection).
"""

import numpy as np
from numpy.typing import NDArray


def counted_classes(
    labels: NDArray[np.int64], images: NDArray[np.int64], classes: int, power: float, random: np.random.Generator
) -> NDArray[np.bool_]:
    """(K,) bool: the classes of `labels` (G,), and others until they are `classes` in all, drawn without
    replacement in proportion to `images` (K,), the training images that have each class, to the power `power`.

    A class that no image has is not drawn. Of more classes of its own than asked an image keeps all.
    """
    weights = np.where(images > 0, images.astype(np.float64) ** power, 0)
    # Whoever waits an exponential time at a rate of its weight comes k-th as if k were drawn one after the other.
    with np.errstate(divide="ignore"):
        arrival = random.standard_exponential(len(images)) / weights
    arrival[labels] = 0
    first = np.argsort(arrival, kind="stable")[: max(classes, len(np.unique(labels)))]
    counted = np.zeros(len(images), np.bool_)
    counted[first] = np.isfinite(arrival[first])
    return counted
