"""An opened image as detectors read it and pictures show it: turned as its annotations are meant, RGB of 8 bits."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

EXIF_ORIENTATION = 0x0112


def turned_as(image: Image.Image, stated: tuple[int, int]) -> Image.Image:
    """An image turned as its EXIF orientation says, where that gives it the (width, height) that its annotations state,
    since they are meant so; else as it is stored."""
    if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    return turned if turned.size == stated else image


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """An image as RGB (height, width, 3): grey and palette images become RGB, 16-bit grey is scaled to 8 bits,
    transparency is dropped. Raises ValueError for 32-bit pixels."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers; save it with 8 or 16 bits")
    if image.mode != "RGB" and image.has_transparency_data:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
