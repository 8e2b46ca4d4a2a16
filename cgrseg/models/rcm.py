"""Rectangular self-calibration: attention (RCA) and module (RCM).

Paper: CGRSeg, section 3.2 and figures 3 and 4; published file
`mmseg/models/decode_heads/rcm.py`, whose arithmetic and parameter names are kept.

RCA averages a map along each axis and adds the two results: rectangular attention that follows
the rows and columns with large values.  Two strip convolutions calibrate its shape, and the result
gates a depthwise 3x3 convolution of the input.

Legend: N images, C channels, H x W cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RectangularSelfCalibrationAttention(nn.Module):
    """RCA.

    Args:
        channels: C.
        strip_kernel: length of the two strip convolutions, odd.
        square_kernel: side of the local depthwise convolution, odd.
    """

    def __init__(self, channels: int, strip_kernel: int = 11, square_kernel: int = 3) -> None:
        super().__init__()
        half = strip_kernel // 2
        self.dwconv_hw = nn.Conv2d(
            channels, channels, square_kernel, padding=square_kernel // 2, groups=channels
        )
        self.excite = nn.Sequential(
            nn.Conv2d(channels, channels, (1, strip_kernel), padding=(0, half), groups=channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (strip_kernel, 1), padding=(half, 0), groups=channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        rows = x.mean(dim=3, keepdim=True)  # (N, C, H, 1)
        columns = x.mean(dim=2, keepdim=True)  # (N, C, 1, W)
        rectangle = self.excite(rows + columns)  # (N, C, H, W) in 0..1
        return rectangle * self.dwconv_hw(x)


class PointwiseMlp(nn.Module):
    """Two 1x1 convolutions around GELU."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels * ratio, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(channels * ratio, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class RectangularSelfCalibrationModule(nn.Module):
    """RCM: RCA, batch norm and MLP in one residual block, scaled per channel.

    Args:
        channels: C.
        strip_kernel: length of the strip convolutions of the RCA.
        square_kernel: side of the local convolution of the RCA.
        mlp_ratio: ratio of hidden to outer channels.
    """

    def __init__(
        self, channels: int, strip_kernel: int = 11, square_kernel: int = 3, mlp_ratio: int = 2
    ) -> None:
        super().__init__()
        self.token_mixer = RectangularSelfCalibrationAttention(
            channels, strip_kernel, square_kernel
        )
        self.norm = nn.BatchNorm2d(channels)
        self.mlp = PointwiseMlp(channels, mlp_ratio)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        branch = self.mlp(self.norm(self.token_mixer(x)))
        return x + branch * self.gamma.view(1, -1, 1, 1)
