"""The vision tower UMT-L/16: a ViT whose tokens of all frames attend to each other.

Written after the facts of the public repository (Ask-Anything, video_chat2); parameters keep its names inside a block.
Never run on a GPU.

Shapes: N clips, T frames, P patches of a frame (G x G), S = T * P tokens, D width, H heads.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from regate.models.videochat2.configuration import VideoChat2VisionConfig


def sinusoid_positions(num_frames: int, grid: int, dim: int, position_frames: int, device: Any = None) -> Tensor:
    """Positions of a clip's tokens: one sinusoid over frames and patches, made for `position_frames` frames.

    For another number of frames it is interpolated linearly over time. An image takes the positions of the first
    frame, not an interpolation.

    Returns:
        float32 [T * G * G, D], computed in float64.
    """
    frames = 1 if num_frames == 1 else position_frames
    position_S1 = torch.arange(frames * grid * grid, dtype=torch.float64, device=device)[:, None]
    pair_D = torch.arange(dim, dtype=torch.float64, device=device).div(2, rounding_mode="floor")
    angle_SD = position_S1 / 10000.0 ** (2 * pair_D / dim)
    table_SD = torch.where(torch.arange(dim, device=device) % 2 == 0, angle_SD.sin(), angle_SD.cos()).float()
    return interpolate_positions(table_SD, frames, num_frames)


def interpolate_positions(table_SD: Tensor, frames: int, num_frames: int) -> Tensor:
    """A table of positions of `frames` frames, linearly interpolated over time to `num_frames`: [T * P, D]."""
    if num_frames == frames:
        return table_SD
    table_CT = table_SD.reshape(frames, -1).T[None]  # [1, P * D, frames]
    return nn.functional.interpolate(table_CT, size=num_frames, mode="linear")[0].T.reshape(-1, table_SD.shape[-1])


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention, [N, H, S, D/H] each, no mask: ([N, S, H, D/H], weights [N, H, S, S])."""
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class VideoChat2VisionAttention(nn.Module):
    """Joint space-time attention; one matrix for query, key and value, biases for query and value only."""

    is_causal = False

    def __init__(self, config: VideoChat2VisionConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scaling = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, hidden_NSD: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[N, S, D] -> [N, S, D], and the weights where the implementation gives them."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = nn.functional.linear(hidden_NSD, self.qkv.weight, bias)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [N, H, S, D/H] each
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out_NSHK, weights = attend(
            self,
            query,
            key,
            value,
            None,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
            **kwargs,
        )
        return self.proj(out_NSHK.flatten(2)), weights


class VideoChat2VisionMLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: VideoChat2VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(hidden)))


class VideoChat2VisionBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(self, config: VideoChat2VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VideoChat2VisionAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VideoChat2VisionMLP(config)

    def forward(self, hidden_NSD: Tensor, **kwargs: Any) -> Tensor:
        hidden_NSD = hidden_NSD + self.attn(self.norm1(hidden_NSD), **kwargs)[0]
        return hidden_NSD + self.mlp(self.norm2(hidden_NSD))


class VideoChat2PatchEmbed(nn.Module):
    """Patches of each frame by itself: a 3-D convolution over one frame."""

    def __init__(self, config: VideoChat2VisionConfig) -> None:
        super().__init__()
        size = (1, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, pixels_NTCHW: Tensor) -> Tensor:
        """[N, T, 3, H, W] -> [N, S, D], frame after frame."""
        return self.proj(pixels_NTCHW.transpose(1, 2)).flatten(2).transpose(1, 2)


class VideoChat2VisionModel(PreTrainedModel):
    """UMT-L/16 up to its last block but one, and the norm that VideoChat2 puts behind it."""

    config: VideoChat2VisionConfig
    config_class = VideoChat2VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    supports_gradient_checkpointing = True
    _no_split_modules: Any = ("VideoChat2VisionBlock",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, type]] = {
        "hidden_states": VideoChat2VisionBlock,
        "attentions": VideoChat2VisionAttention,
    }

    def __init__(self, config: VideoChat2VisionConfig) -> None:
        super().__init__(config)
        self.patch_embed = VideoChat2PatchEmbed(config)
        if config.use_learnable_pos_emb:
            positions = config.position_frames * (config.image_size // config.patch_size) ** 2
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, config.hidden_size))
        self.blocks = nn.ModuleList(VideoChat2VisionBlock(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VideoChat2VisionAttention):
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
        elif isinstance(module, VideoChat2VisionModel) and self.config.use_learnable_pos_emb:
            init.trunc_normal_(module.pos_embed, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    def _positions(self, num_frames: int, device: Any) -> Tensor:
        """Positions of a clip's tokens, [T * P, D]."""
        config, grid = self.config, self.config.image_size // self.config.patch_size
        if not config.use_learnable_pos_emb:
            return sinusoid_positions(num_frames, grid, config.hidden_size, config.position_frames, device)
        if num_frames == 1:
            return self.pos_embed[0, : grid * grid]
        return interpolate_positions(self.pos_embed[0], config.position_frames, num_frames)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Clips -> tokens.

        Args:
            pixel_values: float [N, T, 3, H, W]; T = 1 is an image and takes an image's positions.

        Returns:
            last_hidden_state [N, T * P, D], normalised.

        Raises:
            ValueError: another number of dimensions, no frame, or frames of another size than `config.image_size`.
        """
        size = self.config.image_size
        expected = (self.config.num_channels, size, size)
        if pixel_values.ndim != 5 or pixel_values.shape[2:] != expected or 0 in pixel_values.shape:
            raise ValueError(
                f"pixel values have the shape {tuple(pixel_values.shape)}, expected [clips, frames, "
                f"{', '.join(map(str, expected))}] with at least one of each. Is the processor the model's own?"
            )
        hidden_NSD = self.patch_embed(pixel_values.to(self.patch_embed.proj.weight.dtype))
        positions_SD = self._positions(pixel_values.shape[1], hidden_NSD.device)
        hidden_NSD = hidden_NSD + positions_SD.to(hidden_NSD.dtype)
        for block in self.blocks:
            hidden_NSD = block(hidden_NSD, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=self.layernorm(hidden_NSD))
