"""The connectors against a literal twin and against numbers that were computed elsewhere."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import CLIPVisionConfig, MistralConfig, Qwen2Config, SiglipVisionConfig

from regate.models.videollama2 import VideoLlama2Config, VideoLlama2ForConditionalGeneration, visual_tokens
from regate.models.videollama2.connector import StcConnector
from tests.models.tiny_videollama2 import tiny_config, widen

QWEN2_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def paper_config() -> VideoLlama2Config:
    return VideoLlama2Config(text_config=Qwen2Config(**QWEN2_7B), vision_config=SiglipVisionConfig(**SIGLIP_SO400M))


def norm(x, weights, name):
    """Layer norm over channels, from its definition."""
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"].view(1, -1, 1, 1) + weights[f"{name}.bias"].view(1, -1, 1, 1)


def stage(x, weights, name):
    """timm's RegStage with layer norms, block by block. x [F, C, H, W]."""
    for number in range(1, 5):
        block = {
            k.removeprefix(f"{name}.b{number}."): v for k, v in weights.items() if k.startswith(f"{name}.b{number}.")
        }
        y = F.silu(norm(F.conv2d(x, block["conv1.conv.weight"]), block, "conv1.bn"))
        y = F.conv2d(y, block["conv2.conv.weight"], padding=1, groups=y.shape[1])
        y = F.silu(norm(y, block, "conv2.bn"))
        squeezed = F.silu(F.conv2d(y.mean((2, 3), keepdim=True), block["se.fc1.weight"], block["se.fc1.bias"]))
        y = y * torch.sigmoid(F.conv2d(squeezed, block["se.fc2.weight"], block["se.fc2.bias"]))
        y = norm(F.conv2d(y, block["conv3.conv.weight"]), block, "conv3.bn")
        if "downsample.conv.weight" in block:
            x = norm(F.conv2d(x, block["downsample.conv.weight"]), block, "downsample.bn")
        x = F.silu(x + y)
    return x


def twin(x, weights, padding):
    """The connector from its state dict: x [N, T, P, C] -> [N, S, D], one clip at a time."""
    side = int(x.shape[2] ** 0.5)
    clips = []
    for clip in x:
        frames = clip.permute(0, 2, 1).reshape(len(clip), -1, side, side)  # [T, C, H, W]
        frames = stage(frames, weights, "s1")
        volume = frames.permute(1, 0, 2, 3)[None]  # [1, D, T, H, W]
        volume = F.silu(
            F.conv3d(volume, weights["sampler.0.weight"], weights["sampler.0.bias"], stride=2, padding=padding)
        )
        frames = stage(volume[0].permute(1, 0, 2, 3), weights, "s2")
        tokens = frames.permute(0, 2, 3, 1).reshape(-1, frames.shape[1])  # frame, row, column
        hidden = F.gelu(F.linear(tokens, weights["readout.0.weight"], weights["readout.0.bias"]))
        clips.append(F.linear(hidden, weights["readout.2.weight"], weights["readout.2.bias"]))
    return torch.stack(clips)


@pytest.mark.parametrize("release", ["v2.1", "v2.0"])
def test_equals_a_literal_twin_forward_and_backward(release):
    config = tiny_config(release)
    connector = StcConnector(config)
    widen(connector)
    x = torch.randn(2, 5, 16, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours = connector(x)
    theirs = twin(x, dict(connector.named_parameters()), padding=0 if release == "v2.1" else 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    parameters = [x, *connector.parameters()]
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), parameters),
        torch.autograd.grad((theirs * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_every_norm_has_the_epsilon_of_the_release():
    connector = StcConnector(tiny_config("v2.1"))
    norms = [module for module in connector.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 4 * 3 + 1
    assert {module.eps for module in norms} == {1e-5}


def test_real_size():
    """376.9M parameters in 113 tensors; 7.99B to train once the tower is frozen."""
    with torch.device("meta"):
        model = VideoLlama2ForConditionalGeneration(paper_config())
    connector = model.model.multi_modal_projector
    assert sum(p.numel() for p in connector.parameters()) == 376_889_248
    assert len(connector.state_dict()) == 113
    model.get_encoder(modality="video").requires_grad_(False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == pytest.approx(7.99e9, rel=1e-3)


@pytest.mark.parametrize(
    ("vision", "projector", "frames", "expected"),
    [
        (SiglipVisionConfig(**SIGLIP_SO400M), "stc_connector_v35", 16, 1352),
        (CLIPVisionConfig(**CLIP_L), "stc_connector", 16, 1521),
        (CLIPVisionConfig(**CLIP_L), "stc_connector", 8, 845),
    ],
)
def test_numbers_of_visual_tokens(vision, projector, frames, expected):
    config = VideoLlama2Config(
        text_config=MistralConfig(), vision_config=vision, projector_type=projector, num_frames=frames
    )
    assert config.visual_tokens() == expected
    with torch.device("meta"):
        patches = config.patches_per_side**2
        connector = StcConnector(config)
        assert connector(torch.empty(1, frames, patches, vision.hidden_size)).shape[1] == expected


@functools.cache
def meta_connector(release: str) -> StcConnector:
    with torch.device("meta"):
        return StcConnector(tiny_config(release))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(2, 6), st.sampled_from(["v2.1", "v2.0"]))
def test_the_formula_counts_what_the_connector_makes(frames, side, release):
    connector = meta_connector(release)
    made = connector(torch.empty(1, frames, side * side, 24, device="meta")).shape[1]
    assert visual_tokens(tiny_config(release).projector_type, frames, side, side) == made


def test_too_few_frames_are_named():
    with pytest.raises(ValueError, match="found 1 frames of 27 x 27 patches, expected at least 2"):
        visual_tokens("stc_connector_v35", 1, 27, 27)
    assert visual_tokens("stc_connector", 1, 24, 24) == 169


def test_starts_with_features_of_a_sane_size():
    """From scratch: visual tokens neither vanish nor drown the text embeddings, and every weight gets a gradient."""
    torch.manual_seed(0)
    model = VideoLlama2ForConditionalGeneration(tiny_config("v2.1"))
    tokens = model.get_video_features(torch.randn(4, 4, 3, 32, 32)).pooler_output
    assert 0.005 < tokens.std() < 1
    assert tokens.std(dim=0).mean() > 1e-4  # clips differ
    tokens.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.model.multi_modal_projector.parameters())
