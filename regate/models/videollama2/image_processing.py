"""Images and frames -> pixel values, with PIL and NumPy alone: pad to a square, resize, crop, normalise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL.Image import Resampling
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import ImagesKwargs


def pad_to_square(image_CHW: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """An image in the middle of the smallest square that holds it, on the mean colour (fractions of 255, cut)."""
    channels, height, width = image_CHW.shape
    side = max(height, width)
    if height == width:
        return image_CHW
    square = np.empty((channels, side, side), image_CHW.dtype)
    square[:] = np.array([int(value * 255) for value in mean], image_CHW.dtype)[:, None, None]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = image_CHW
    return square


class SquareKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """do_pad_to_square (bool): pad images to squares before they are resized, as in training."""

    do_pad_to_square: bool | None


class VideoLlama2ImageProcessor(PilBackend):
    """Pixel values float32 [3, H, W] of images, as SigLIP's processor makes them; CLIP's are other settings.

    `do_pad_to_square` is how the models were trained (`image_aspect_ratio="pad"`); the original demos do without.
    """

    valid_kwargs = SquareKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012
    resample = Resampling.BICUBIC
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    size = {"height": 384, "width": 384}  # noqa: RUF012
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad_to_square = True
    default_to_square = False

    def _preprocess(
        self, images: list[np.ndarray], image_mean: Any, do_pad_to_square: bool | None, **kwargs: Any
    ) -> BatchFeature:
        if do_pad_to_square:
            images = [pad_to_square(image, image_mean) for image in images]
        return super()._preprocess(images, image_mean=image_mean, **kwargs)
