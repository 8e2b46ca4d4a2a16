"""Evaluation pipeline: from an image of any size to the network's input.

As published: resize bilinearly in 8 bits, normalize, pad with zeros at the right and the bottom.
The Pascal Context recipe resizes twice instead of padding: within the scale, then each side up to
the next multiple.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.config.schema import TestConfig
from cgrseg.data import color
from cgrseg.data.geometry import Size, resize_image, round_up, scaled_size
from cgrseg.errors import EnvironmentProblem
from cgrseg.surroundings import missing_memory

Image = NDArray[np.uint8]


# Minimum bytes per pixel: uint8 and float32 RGB, and the first features.
_INPUT_BYTES = 40


class EvalTransform:
    """Resize and normalize as published; :mod:`cgrseg.inference.views` pads.

    Args:
        config: scale, resize mode and divisor.
    """

    def __init__(self, config: TestConfig) -> None:
        self.config = config

    def size_for(self, size: Size) -> Size:
        """Height, width that an image of this height, width is resized to, before padding."""
        if self.config.resize == "none":
            return size
        height, width = scaled_size(size, self.config.scale)
        if self.config.resize == "keep_ratio_divisible":
            return round_up(height, self.config.divisor), round_up(width, self.config.divisor)
        return height, width

    def resize(self, image: Image) -> Image:
        """Resize uint8 RGB (H, W, 3) as configured, without padding.

        Raises:
            EnvironmentProblem: memory is too small for the result.
        """
        size: Size = (image.shape[0], image.shape[1])
        if self.config.resize == "keep_ratio_divisible":
            # Two steps, as published: the second one samples the first one's result.
            image = resize_image(image, scaled_size(size, self.config.scale))
        target = self.size_for(size)
        error = missing_memory(target[0] * target[1] * _INPUT_BYTES)
        if error is not None:
            raise EnvironmentProblem(
                f"an image of {size[0]}x{size[1]}",
                found=f"{error}: it is resized to {target[0]}x{target[1]}",
                expected="room for the network's input and its first features",
                remedy="set a smaller test.scale (and test.ratios), or close other programs",
            )
        return resize_image(image, target)

    def normalize(self, image: Image) -> Tensor:
        """uint8 RGB (H, W, 3) to float32 (3, H, W) with ImageNet's mean and deviation."""
        return torch.from_numpy(color.normalize(image))
