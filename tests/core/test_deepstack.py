"""T4: features that are injected into the first layers at visual positions (Qwen3-VL) survive compaction."""

import pytest
import torch
import transformers
from torch import nn

from regate import Elision, UnsupportedModel


class TextModel(nn.Module):
    """Qwen3-VL's text decoder with a head, fed as its multimodal model feeds it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = transformers.Qwen3VLTextConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, rope_parameters={"rope_type": "default", "rope_theta": 1e4,
            "mrope_section": [2, 1, 1]}, pad_token_id=0,
        )  # fmt: skip
        self.decoder = transformers.Qwen3VLTextModel(self.config)
        self.head = nn.Linear(32, 40, bias=False)

    def get_decoder(self):
        return self.decoder

    def get_output_embeddings(self):
        return self.head

    def forward(self, **inputs):
        return self.head(self.decoder(**inputs).last_hidden_state)


def inputs(batch: int = 2, length: int = 18):
    generator = torch.Generator().manual_seed(1)
    visual = torch.zeros(batch, length, dtype=torch.bool)
    visual[0, 2:6] = visual[1, 3:8] = True
    steps = torch.arange(length)
    positions = torch.stack([steps, steps // 2, steps // 3])[:, None].expand(3, batch, length)
    features = [torch.randn(int(visual.sum()), 32, generator=generator) for _ in range(2)]
    embeds = torch.randn(batch, length, 32, generator=generator)
    active = torch.rand(batch, length, generator=generator) < 0.6
    active[:, :9] = True
    return embeds, visual, features, positions, active


def test_deepstack_features_and_three_row_positions_equal_a_masked_full_run():
    model = TextModel()
    embeds, visual, features, positions, active = inputs()
    length = active.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & active[:, None, :] | torch.eye(length).bool()
    full = {"inputs_embeds": embeds, "position_ids": positions, "visual_pos_masks": visual}
    theirs = model(**full, attention_mask=allowed[:, None], deepstack_visual_embeds=features, use_cache=False)
    with Elision(model)(active):
        ours = model(**full, attention_mask=torch.ones(2, length), deepstack_visual_embeds=features)
    torch.testing.assert_close(ours[active], theirs[active], rtol=1e-5, atol=1e-5)


def test_an_elided_visual_position_is_refused():
    model = TextModel()
    embeds, visual, features, positions, active = inputs()
    active[0, 3] = False
    with pytest.raises(UnsupportedModel, match="visual positions must all be active"), Elision(model)(active):
        model(
            inputs_embeds=embeds, position_ids=positions, visual_pos_masks=visual, deepstack_visual_embeds=features,
            attention_mask=torch.ones(2, 18),
        )  # fmt: skip
