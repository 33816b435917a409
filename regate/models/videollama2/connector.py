"""The spatio-temporal convolutional connectors of VideoLLaMA2: patches of T frames -> visual tokens.

    x_NTPC --RegStage--> Conv3d (kernel = stride = 2) --SiLU--> RegStage --Linear-GELU-Linear--> y_NSD

Modules are named as in the original checkpoints, whose RegStage is timm's. Legend: N clips, T frames, P patches of a
frame, C channels of the vision tower, D hidden size of the language model, S visual tokens, H x W a grid of patches.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from regate.models.videollama2.configuration import VideoLlama2Config, projector_padding

DEPTH = 4  # blocks of a stage
EPS = 1e-5  # not timm's usual 1e-6
SQUEEZE = 4  # squeeze-excite narrows by this factor


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of x_NCHW."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        return F.layer_norm(x_NHWC, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution without a bias, then a norm over channels."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = LayerNorm2d(channels_out, eps=EPS)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.bn(self.conv(x_NCHW))


class SqueezeExcite(nn.Module):
    """Scales channels by a gate that sees their means."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, narrow, 1)
        self.fc2 = nn.Conv2d(narrow, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mean_NC11 = x_NCHW.mean((2, 3), keepdim=True)
        return x_NCHW * self.fc2(F.silu(self.fc1(mean_NC11))).sigmoid()


class RegStageBlock(GradientCheckpointingLayer):
    """1x1, depthwise 3x3, squeeze-excite, 1x1, shortcut: RegNet-Y's block with layer norms."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels_out)
        self.conv2 = ConvNorm(channels_out, channels_out, kernel=3, groups=channels_out)
        self.se = SqueezeExcite(channels_out, round(channels_in / SQUEEZE))
        self.conv3 = ConvNorm(channels_out, channels_out)
        self.downsample = ConvNorm(channels_in, channels_out) if channels_in != channels_out else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.silu(self.conv1(x_NCHW))
        y = self.se(F.silu(self.conv2(y)))
        return F.silu(self.conv3(y) + self.downsample(x_NCHW))


class RegStage(nn.Module):
    """`DEPTH` blocks, named b1, b2, ..."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        widths = [channels_in, *[channels_out] * DEPTH]
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            self.add_module(f"b{number}", RegStageBlock(before, after))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        for block in self.children():
            x_NCHW = block(x_NCHW)
        return x_NCHW


class StcConnector(nn.Module):
    """`stc_connector_v35`, and `stc_connector`, whose convolution over time and space pads by one on all sides."""

    def __init__(self, config: VideoLlama2Config) -> None:
        super().__init__()
        channels, hidden = config.vision_config.hidden_size, config.text_config.hidden_size
        self.s1 = RegStage(channels, hidden)
        padding = projector_padding(config.projector_type)
        self.sampler = nn.Sequential(nn.Conv3d(hidden, hidden, 2, stride=2, padding=padding), nn.SiLU())
        self.s2 = RegStage(hidden, hidden)
        self.readout = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def forward(self, x_NTPC: Tensor) -> Tensor:
        """Patches of clips, float [N, T, P, C], P a square -> visual tokens, float [N, S, D], frame by frame."""
        clips, frames, patches, _ = x_NTPC.shape
        side = math.isqrt(patches)
        x = x_NTPC.unflatten(2, (side, side)).permute(0, 1, 4, 2, 3)  # [N, T, C, H, W]
        x = self.s1(x.flatten(0, 1)).unflatten(0, (clips, frames))  # [N, T, D, H, W]
        x = self.sampler(x.transpose(1, 2)).transpose(1, 2)  # [N, T', D, H', W']
        x = self.s2(x.flatten(0, 1)).unflatten(0, (clips, -1))
        return self.readout(x.permute(0, 1, 3, 4, 2).flatten(1, 3))
