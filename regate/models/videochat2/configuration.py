"""Configuration of VideoChat2: UMT-L/16, a Q-Former with text, one linear projection, Mistral-7B.

Defaults are those of the stage-3 model on Mistral-7B-Instruct-v0.2; oddities of its training are named switches with
the training's behaviour as default.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, InstructBlipQFormerConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# Mistral-7B-Instruct-v0.2 where it differs from transformers' defaults, which are those of v0.1.
_MISTRAL_V02 = {
    "model_type": "mistral",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_window": None,
}
_BERT_WITH_DEC = {"vocab_size": 30523}  # bert-base-uncased and the token [DEC]


@strict
class VideoChat2VisionConfig(PreTrainedConfig):
    """UMT-L/16, cut where VideoChat2 reads it.

    Args:
        num_hidden_layers: blocks that exist and are run: 23 of UMT-L's 24 (the original's `return_index=-2`).
        position_frames: frames that the sinusoidal positions are made for; they are interpolated linearly to others.
        use_learnable_pos_emb: positions are parameters, made for `position_frames` frames. The published towers have
            sinusoids, whose fastest wave is too slow for the columns of a grid of few patches.
        layer_norm_eps: of the blocks.
        final_layer_norm_eps: of the norm behind the last block (the original's `vision_layernorm`).
    """

    model_type = "videochat2_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 23
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    position_frames: int = 4
    use_learnable_pos_emb: bool = False
    hidden_act: str = "gelu"
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-6
    final_layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size is {self.image_size}, expected a multiple of patch_size ({self.patch_size})")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, expected a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )


@strict
class VideoChat2Config(PreTrainedConfig):
    """All of VideoChat2.

    Args:
        text_config, vision_config, qformer_config: of the parts, or their fields. `encoder_hidden_size` of the
            Q-Former is always the vision tower's width.
        num_query_tokens, num_extra_query_tokens: queries of the Q-Former; together the visual tokens of an image or a
            video.
        video_token_id, image_token_id: seats of visual tokens in `input_ids`; may lie beyond the text vocabulary.
        num_frames: that the model was trained with; informative, the tower takes any number.
        qformer_text_input: the instruction goes to the Q-Former as well.
        qformer_drop_path_rate: stochastic depth of the last Q-Former layer in training, growing linearly from 0.
        constant_bos: the embedding of the beginning-of-text token is the constant 1.0, as in the original's training;
            False: its row of the table, as in the original's demos.
    """

    model_type = "videochat2"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="mistral"),
        "vision_config": VideoChat2VisionConfig,
        "qformer_config": InstructBlipQFormerConfig,
    }

    text_config: Any = None
    vision_config: Any = None
    qformer_config: Any = None
    num_query_tokens: int = 32
    num_extra_query_tokens: int = 64
    video_token_id: int = 32000
    image_token_id: int = 32001
    num_frames: int = 16
    qformer_text_input: bool = True
    qformer_drop_path_rate: float | int = 0.2
    constant_bos: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = dict(_MISTRAL_V02)
        if self.qformer_config is None:
            self.qformer_config = dict(_BERT_WITH_DEC)
        super().__post_init__(**kwargs)
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.text_config, name, None))
        if self.video_token_id == self.image_token_id:
            raise ValueError(f"video_token_id and image_token_id are both {self.video_token_id}, expected two ids")

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of one image or one video: 96."""
        return self.num_query_tokens + self.num_extra_query_tokens
