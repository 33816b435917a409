"""Learned positions of VideoChat2's tower: the table itself, its first frame for an image, interpolated for others."""

import pytest
import torch

from regate.models.videochat2 import VideoChat2VisionConfig, VideoChat2VisionModel
from regate.models.videochat2.vision import sinusoid_positions

SHAPE = {
    "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 12,
    "patch_size": 4, "position_frames": 4,
}  # fmt: skip


@pytest.fixture
def towers():
    torch.manual_seed(0)
    fixed = VideoChat2VisionModel(VideoChat2VisionConfig(**SHAPE)).eval()
    learned = VideoChat2VisionModel(VideoChat2VisionConfig(**SHAPE, use_learnable_pos_emb=True)).eval()
    learned.load_state_dict(fixed.state_dict(), strict=False)
    return fixed, learned


@pytest.mark.parametrize("frames", [1, 2, 4, 7])
def test_a_table_that_holds_the_sinusoids_gives_what_they_give(towers, frames):
    fixed, learned = towers
    with torch.no_grad():
        learned.pos_embed[0] = sinusoid_positions(4, 3, 12, 4)
    pixels = torch.randn(2, frames, 3, 12, 12)
    with torch.no_grad():
        want, got = (tower(pixels).last_hidden_state for tower in (fixed, learned))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_it_trains(towers):
    _, learned = towers
    assert learned.pos_embed.std() > 0
    learned(torch.randn(1, 4, 3, 12, 12)).last_hidden_state.square().sum().backward()
    assert learned.pos_embed.grad.abs().min(-1).values.max() > 0
