"""VideoChat2: UMT-L/16 -> Q-Former (that reads the instruction) -> one linear layer -> Mistral.

Written after the facts of the public repository (Ask-Anything, video_chat2); the Q-Former is transformers'
`InstructBlipQFormerModel`, which computes the same. Never run on a GPU; flash attention untested.

Shapes: B rows, L positions, N visual inputs (images and videos), T frames, Q queries = visual tokens of each input,
K instruction tokens, D width of the language model, E of the Q-Former.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, InstructBlipQFormerModel, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.instructblip.modeling_instructblip import BaseModelOutputWithVisionQformerOutputs
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from regate.models.videochat2.configuration import VideoChat2Config
from regate.models.videochat2.vision import VideoChat2VisionModel

BOS_CONSTANT = 1.0  # the original writes the token's id, which is 1, where its embedding belongs


@dataclass
class VideoChat2ModelOutput(BaseModelOutputWithPast):
    """Output of the decoder, and the visual tokens [N, Q, D] of each kind that went in."""

    image_hidden_states: Tensor | None = None
    video_hidden_states: Tensor | None = None


@dataclass
class VideoChat2CausalLMOutput(ModelOutput):
    """Loss and logits [B, L, V] with what `VideoChat2ModelOutput` holds."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
    video_hidden_states: Tensor | None = None


class DropPath(nn.Module):
    """Stochastic depth: in training a row's branch is dropped with probability `rate`, and the others scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)


class VideoChat2Queries(nn.Module):
    """The Q-Former's queries: 32 of its pre-training, 64 that VideoChat2 adds."""

    def __init__(self, config: VideoChat2Config) -> None:
        super().__init__()
        dim = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, dim))
        self.extra_query_tokens = nn.Parameter(torch.zeros(1, config.num_extra_query_tokens, dim))

    def forward(self, inputs: int) -> Tensor:
        """[inputs, Q, E]"""
        return torch.cat([self.query_tokens, self.extra_query_tokens], dim=1).expand(inputs, -1, -1)


class VideoChat2PreTrainedModel(PreTrainedModel):
    """What both classes share: names, flags, initial weights."""

    config: VideoChat2Config
    config_class = VideoChat2Config
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: Any = ("VideoChat2VisionBlock", "InstructBlipQFormerLayer")  # the decoder adds its own
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VideoChat2Queries):
            init.normal_(module.query_tokens, std=self.config.qformer_config.initializer_range)
            init.zeros_(module.extra_query_tokens)


class VideoChat2Model(VideoChat2PreTrainedModel):
    """VideoChat2 without its language-model head."""

    def __init__(self, config: VideoChat2Config) -> None:
        super().__init__(config)
        self.vision_tower = VideoChat2VisionModel._from_config(config.vision_config)
        self.queries = VideoChat2Queries(config)
        self.qformer = InstructBlipQFormerModel._from_config(config.qformer_config)
        _prepare_qformer(self.qformer, config)
        self.multi_modal_projector = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        # Units for FSDP: whole layers. The Q-Former's class lists the parts of its layers as well.
        self._no_split_modules = {*VideoChat2PreTrainedModel._no_split_modules, *self.language_model._no_split_modules}

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithVisionQformerOutputs:
        """Videos -> visual tokens.

        Args:
            pixel_values_videos: float [N, T, 3, H, W].
            qformer_input_ids: int64 [N, K], the instruction in the Q-Former's own tokens; where the model reads none
                (`config.qformer_text_input` is False) they are ignored.
            qformer_attention_mask: int64 [N, K], 0 on padding; None: no padding.
            kwargs: `output_attentions`, `output_hidden_states`.

        Returns:
            pooler_output [N, Q, D], the visual tokens; last_hidden_state [N, Q, E], the Q-Former's; `vision_outputs`
            and `qformer_outputs`.

        Raises:
            ValueError: no instruction for a model that needs it, or another number of them than N.
        """
        number = len(pixel_values_videos)
        vision = self.vision_tower(pixel_values_videos, return_dict=True, **kwargs)
        queries_NQE = self.queries(number)
        mask_NK: Tensor | None = None
        if not self.config.qformer_text_input:
            qformer_input_ids = None
        elif qformer_input_ids is None or len(qformer_input_ids) != number:
            found = "none" if qformer_input_ids is None else f"{len(qformer_input_ids)} rows"
            raise ValueError(f"qformer_input_ids: found {found}, expected one row for each of {number} visual inputs")
        elif qformer_attention_mask is not None and qformer_attention_mask.shape != qformer_input_ids.shape:
            raise ValueError(
                f"qformer_attention_mask: found the shape {tuple(qformer_attention_mask.shape)}, expected that of "
                f"qformer_input_ids, {tuple(qformer_input_ids.shape)}"
            )
        else:
            mask_NK = torch.ones_like(qformer_input_ids) if qformer_attention_mask is None else qformer_attention_mask
            mask_NK = torch.cat([mask_NK.new_ones(queries_NQE.shape[:2]), mask_NK], dim=1)
        qformer = self.qformer(
            qformer_input_ids,
            attention_mask=mask_NK,
            query_embeds=queries_NQE,
            encoder_hidden_states=vision.last_hidden_state,
            return_dict=True,
            **kwargs,
        )
        seen_NQE = qformer.last_hidden_state[:, : queries_NQE.shape[1]]
        return BaseModelOutputWithVisionQformerOutputs(
            last_hidden_state=seen_NQE,
            pooler_output=self.multi_modal_projector(seen_NQE),
            vision_outputs=vision,
            qformer_outputs=qformer,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithVisionQformerOutputs:
        """Images float [N, 3, H, W] -> visual tokens, as videos of one frame: see `get_video_features`."""
        return self.get_video_features(
            pixel_values[:, None], qformer_input_ids, qformer_attention_mask, return_dict=True, **kwargs
        )

    def encode_visuals(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
    ) -> dict[str, BaseModelOutputWithPooling]:
        """Visual tokens of all images and videos of a batch, by kind.

        Instructions come in the order in which the visual inputs stand in the text, row after row; `input_ids` tell
        which of them are of images and which of videos.

        Raises:
            ValueError: another number of placeholders than the inputs need, or of instructions than there are inputs.
        """
        encoders = {
            "image": (self.get_image_features, pixel_values),
            "video": (self.get_video_features, pixel_values_videos),
        }
        given = {what: (encode, pixels) for what, (encode, pixels) in encoders.items() if pixels is not None}
        for what, (_, pixels) in given.items():
            self._require_seats(input_ids, what, len(pixels) * self.config.num_visual_tokens)
        seats = {what: input_ids == self._token_id(what) for what in given}
        outputs = {}
        for what, (encode, pixels) in given.items():
            ids, mask = qformer_input_ids, qformer_attention_mask
            if len(given) == 2 and ids is not None:
                chosen_N = seats[what][seats["image"] | seats["video"]][:: self.config.num_visual_tokens]
                if len(ids) != len(chosen_N):
                    raise ValueError(
                        f"qformer_input_ids: found {len(ids)} rows, expected one row for each of {len(chosen_N)} "
                        "visual inputs"
                    )
                ids, mask = ids[chosen_N], None if mask is None else mask[chosen_N]
            outputs[what] = encode(pixels, ids, mask, return_dict=True)
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: Mapping[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> VideoChat2ModelOutput:
        """Runs the decoder on text with visual tokens in their seats.

        Args:
            input_ids: int64 [B, L], with `num_visual_tokens` placeholders for each image or video.
            pixel_values, pixel_values_videos: float [images, 3, H, W] and [videos, T, 3, H, W], in reading order.
            qformer_input_ids, qformer_attention_mask: int64 [images + videos, K]: see `encode_visuals`.
            mm_encoder_outputs: {"image", "video"}: features computed before, in the place of pixels.
            attention_mask, position_ids, past_key_values, inputs_embeds: as for any decoder.

        Raises:
            ValueError: placeholders and features do not match; not exactly one of input_ids and inputs_embeds; pixels
                or features with inputs_embeds, which hold no placeholders; pixels and features of one kind.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        given = dict(mm_encoder_outputs or {})
        pixels = {"image": pixel_values, "video": pixel_values_videos}
        twice = [what for what, value in pixels.items() if value is not None and what in given]
        if twice:
            raise ValueError(f"found both pixels and mm_encoder_outputs of {twice[0]}, expected one of them")
        if input_ids is None:
            if given or any(value is not None for value in pixels.values()):
                raise ValueError("images and videos need input_ids, whose placeholders say where they stand")
            features: dict[str, Tensor | None] = {}
        else:
            encoded = self.encode_visuals(
                input_ids, pixel_values, pixel_values_videos, qformer_input_ids, qformer_attention_mask
            )
            features = {what: output.pooler_output for what, output in (given | encoded).items()}
            if past_key_values is None or past_key_values.get_seq_length() == 0:
                for what in pixels.keys() - encoded.keys():
                    feature = features.get(what)
                    self._require_seats(input_ids, what, 0 if feature is None else feature.shape[:2].numel())
            inputs_embeds = self._embed(input_ids, features)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return VideoChat2ModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features.get("image"),
            video_hidden_states=features.get("video"),
        )

    def _token_id(self, what: str) -> int:
        return getattr(self.config, f"{what}_token_id")

    def _require_seats(self, input_ids: Tensor, what: str, expected: int) -> None:
        """Raises unless there are as many placeholders as visual tokens."""
        found = int((input_ids == self._token_id(what)).sum())
        if found != expected:
            size = self.config.num_visual_tokens
            raise ValueError(
                f"found {found} {what} placeholders ({what}_token_id {self._token_id(what)}) in input_ids, expected "
                f"{expected}: {size} for each of {expected // size} {what}s"
            )

    def _embed(self, input_ids: Tensor, features: Mapping[str, Tensor | None]) -> Tensor:
        """[B, L, D]: the table's rows, visual tokens [N, Q, D] in their seats, the constant of the BOS token."""
        seats = {what: input_ids == self._token_id(what) for what in ("image", "video")}
        # Placeholders may lie beyond the table.
        embeds_BLD = self.get_input_embeddings()(input_ids.masked_fill(seats["image"] | seats["video"], 0))
        bos = self.config.text_config.bos_token_id
        if self.config.constant_bos and bos is not None:
            embeds_BLD = embeds_BLD.masked_fill((input_ids == bos)[..., None], BOS_CONSTANT)
        for what, feature in features.items():
            if feature is not None:
                embeds_BLD = embeds_BLD.masked_scatter(seats[what][..., None], feature.to(embeds_BLD))
        return embeds_BLD


class VideoChat2ForConditionalGeneration(VideoChat2PreTrainedModel, GenerationMixin):
    """VideoChat2 with its language-model head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VideoChat2Config) -> None:
        super().__init__(config)
        self.model = VideoChat2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_video_features(self, pixel_values_videos: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See `VideoChat2Model.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, *args, **kwargs)

    def get_image_features(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See `VideoChat2Model.get_image_features`."""
        return self.model.get_image_features(pixel_values, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: Mapping[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> VideoChat2CausalLMOutput:
        """Inputs of `VideoChat2Model.forward`, and labels int64 [B, L] with -100 on all but targets."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            vocabulary = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs)
        return VideoChat2CausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            video_hidden_states=outputs.video_hidden_states,
        )

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Left to `_maybe_prepare_encoder_kwargs_for_generation`: instructions of both kinds come in one tensor."""
        return model_kwargs

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Encodes images and videos once, before beams or several answers repeat the rows."""
        names = ("pixel_values", "pixel_values_videos", "qformer_input_ids", "qformer_attention_mask")
        visuals = {name: model_kwargs.pop(name, None) for name in names}
        given = dict(model_kwargs.get("mm_encoder_outputs") or {})
        if visuals["pixel_values"] is not None or visuals["pixel_values_videos"] is not None:
            input_ids = model_kwargs["input_ids"] if inputs_tensor.is_floating_point() else inputs_tensor
            given |= self.model.encode_visuals(input_ids, **visuals)
        model_kwargs["mm_encoder_outputs"] = given
        return super()._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args, **kwargs)


def _prepare_qformer(qformer: InstructBlipQFormerModel, config: VideoChat2Config) -> None:
    """Stochastic depth as in the original's Q-Former; without text, no weights that only text would use."""
    layers = qformer.encoder.layer
    rates = torch.linspace(0, config.qformer_drop_path_rate, len(layers), device="cpu").tolist()
    for layer, rate in zip(layers, rates, strict=True):
        if not config.qformer_text_input:
            layer.intermediate = layer.output = None
        branches = [layer.attention.output, layer.output, layer.output_query]
        if layer.has_cross_attention:
            branches.append(layer.crossattention.output)
        for branch in branches:
            if branch is not None and rate:
                branch.dropout = nn.Sequential(branch.dropout, DropPath(rate))
    if not config.qformer_text_input:
        qformer.embeddings.word_embeddings = qformer.embeddings.position_embeddings = None
