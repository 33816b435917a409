"""VideoLLaMA2 for transformers: frames -> SigLIP or CLIP -> spatio-temporal connector -> Qwen2 or Mistral.

The language model is a stock class; visual tokens take the seats of placeholders in its input embeddings. An image is
a video of `num_frames` equal frames. Checked on the CPU only: this file was never run on a GPU.

Legend: B rows, L positions, D hidden size, V vocabulary; N videos, M images, T frames, P patches, C tower channels, S
visual tokens of a clip.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.utils import can_return_tuple

from regate.models.videollama2.configuration import VideoLlama2Config
from regate.models.videollama2.connector import StcConnector

MODALITIES = ("image", "video")


@dataclass
class VideoLlama2ModelOutputWithPast(BaseModelOutputWithPast):
    """Output of `VideoLlama2Model`.

    image_hidden_states float [M, S, D], video_hidden_states float [N, S, D]: visual tokens, where there are any.
    """

    image_hidden_states: Tensor | None = None
    video_hidden_states: Tensor | None = None


@dataclass
class VideoLlama2CausalLMOutputWithPast(ModelOutput):
    """Output of `VideoLlama2ForConditionalGeneration`: loss [], logits [B, L, V], and the model's own."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
    video_hidden_states: Tensor | None = None


class VideoLlama2PreTrainedModel(PreTrainedModel):
    """What both classes tell transformers about themselves."""

    config: VideoLlama2Config
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: set[str] = {"RegStageBlock"}  # noqa: RUF012 (transformers adds the tower's and the decoder's)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers', for our checkpoints and for the original ones, but nothing may be missing.

        Raises:
            ValueError: keys that are missing, unexpected or of another shape, named.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        refuse_incomplete(pretrained_model_name_or_path, info, ignore_mismatched_sizes)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """As transformers', but always with our names of the weights, whichever names they were loaded from."""
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):  # of a connector that starts from scratch
            init.normal_(module.weight, std=prod(module.weight.shape[1:]) ** -0.5)


class VideoLlama2Model(VideoLlama2PreTrainedModel):
    """Vision tower, connector and language model, without a head."""

    _keys_to_ignore_on_load_unexpected = (r"^lm_head\.",)

    def __init__(self, config: VideoLlama2Config) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = StcConnector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self._no_split_modules = present_classes(self)

    @can_return_tuple
    def get_video_features(self, pixel_values_videos: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Visual tokens of videos.

        Args:
            pixel_values_videos: float [N, T, 3, H, W].

        Returns:
            last_hidden_state float [N, T, P, C]: what the connector saw; pooler_output float [N, S, D].
        """
        return self._see(None, pixel_values_videos)["video"]

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Visual tokens of images, each repeated to `num_frames` frames.

        Args:
            pixel_values: float [M, 3, H, W].

        Returns:
            last_hidden_state float [M, T, P, C]: what the connector saw; pooler_output float [M, S, D].
        """
        return self._see(pixel_values, None)["image"]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> VideoLlama2ModelOutputWithPast:
        """Runs the language model with visual tokens in the seats of their placeholders.

        Args:
            input_ids: int64 [B, L], with one placeholder for each visual token; or `inputs_embeds` float [B, L, D],
                which hold them already.
            pixel_values: float [M, 3, H, W], images in the order of their placeholders.
            pixel_values_videos: float [N, T, 3, H, W], videos in the order of theirs.
            mm_encoder_outputs: visual tokens computed before, {"image" | "video": with pooler_output [., S, D]}.
            attention_mask, position_ids, past_key_values, **kwargs: the language model's.

        Raises:
            ValueError: placeholders and visual tokens that are not as many, both numbers named; pixels next to
                `inputs_embeds`, or next to tokens computed before.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("found both or neither of input_ids and inputs_embeds, expected exactly one")
        features = self._features(pixel_values, pixel_values_videos, mm_encoder_outputs)
        if inputs_embeds is None:
            assert input_ids is not None
            filled = past_key_values is not None and past_key_values.get_seq_length() > 0
            inputs_embeds = self._embed(input_ids, features, generating=filled)
        elif features:
            raise ValueError("found visual inputs next to inputs_embeds, expected input_ids: they say where those sit")
        if self.training and not features and _ranks() > 1:
            inputs_embeds = inputs_embeds + self._nothing(inputs_embeds)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return VideoLlama2ModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features.get("image"),
            video_hidden_states=features.get("video"),
        )

    def _patches(self, frames: Tensor) -> Tensor:
        """Frames, float [F, 3, H, W] -> the tower's hidden states of their patches, [F, P, C]."""
        vision = self.config.vision_config
        if frames.shape[-2:] != (vision.image_size, vision.image_size):
            raise ValueError(
                f"found frames of {frames.shape[-2]} x {frames.shape[-1]} pixels, the vision tower expects "
                f"{vision.image_size} x {vision.image_size}: use the processor of this model"
            )
        layer = self.config.vision_feature_layer
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.vision_tower.parameters())
        # A frozen tower keeps nothing for the backward pass, whatever hooks make its input require gradients.
        with torch.set_grad_enabled(trains):
            output = self.vision_tower(
                frames.to(self.vision_tower.dtype), output_hidden_states=[layer], return_dict=True
            )
        hidden = output.hidden_states[layer]
        return hidden[:, 1:] if vision.model_type == "clip_vision_model" else hidden  # CLIP's first is no patch

    def _see(self, images: Tensor | None, videos: Tensor | None) -> dict[str, BaseModelOutputWithPooling]:
        """Visual tokens of images [M, 3, H, W] and videos [N, T, 3, H, W], by modality.

        Tower and connector are called once for both (where videos have `num_frames` frames): ranks that share out the
        weights must make the same calls, whatever their rows hold.
        """
        frames, clips = [], {}
        if videos is not None:
            if videos.ndim != 5 or not videos.shape[1]:
                raise ValueError(
                    f"pixel_values_videos has shape {tuple(videos.shape)}, expected [videos, frames, 3, height, width] "
                    "with at least one frame"
                )
            self.config.visual_tokens(videos.shape[1])  # raises where the connector cannot halve so few frames
            frames.append(videos.flatten(0, 1))
        if images is not None:
            if images.ndim != 4:
                raise ValueError(
                    f"pixel_values has shape {tuple(images.shape)}, expected [images, 3, height, width] (videos go "
                    "into pixel_values_videos)"
                )
            frames.append(images)
        patches = list(self._patches(torch.cat(frames)).split([len(part) for part in frames]))  # [., P, C] each
        if videos is not None:
            clips["video"] = patches[0].unflatten(0, videos.shape[:2])
        if images is not None:
            clips["image"] = patches[-1][:, None].expand(-1, self.config.num_frames, -1, -1)
        if len({clip.shape[1] for clip in clips.values()}) == 1:
            tokens = self.multi_modal_projector(torch.cat(list(clips.values()))).split([len(c) for c in clips.values()])
        else:
            tokens = tuple(self.multi_modal_projector(clip) for clip in clips.values())
        return {
            modality: BaseModelOutputWithPooling(last_hidden_state=clip, pooler_output=seen)
            for (modality, clip), seen in zip(clips.items(), tokens, strict=True)
        }

    def _features(
        self, pixel_values: Tensor | None, pixel_values_videos: Tensor | None, computed: dict | None
    ) -> dict[str, Tensor]:
        """Visual tokens of each modality that there is, [., S, D]."""
        outputs = {modality: output for modality, output in (computed or {}).items() if output is not None}
        for modality, pixels in (("image", pixel_values), ("video", pixel_values_videos)):
            if pixels is not None and modality in outputs:
                raise ValueError(
                    f"found both pixels and mm_encoder_outputs[{modality!r}], expected one of them for a modality"
                )
        if pixel_values is not None or pixel_values_videos is not None:
            outputs |= self._see(pixel_values, pixel_values_videos)
        return {modality: output.pooler_output for modality, output in outputs.items()}

    def _nothing(self, like: Tensor) -> Tensor:
        """Zero [], computed from a black image: a rank whose rows are text makes the calls that the others make."""
        size = self.config.vision_config.image_size
        black = like.new_zeros(1, 3, size, size)
        return self._see(black, None)["image"].pooler_output.sum() * 0

    def _embed(self, input_ids: Tensor, features: dict[str, Tensor], generating: bool) -> Tensor:
        """Embeddings of `input_ids` int64 [B, L] with visual tokens in the seats of their placeholders: [B, L, D]."""
        seats = {modality: input_ids == getattr(self.config, f"{modality}_token_id") for modality in MODALITIES}
        # Placeholders may lie beyond the table: any row of it will do, none is read.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(seats["image"] | seats["video"], 0))
        for modality in MODALITIES:
            seat, tokens = seats[modality], features.get(modality)
            if tokens is None and generating:  # the prompt's placeholders are in the cache
                continue
            count, given = int(seat.sum()), 0 if tokens is None else tokens.shape[0] * tokens.shape[1]
            if count != given:
                raise ValueError(
                    f"found {count} {modality} placeholders (token {getattr(self.config, f'{modality}_token_id')}) in "
                    f"input_ids but {given} visual tokens of {modality}s, expected as many: "
                    + ("the processor is not that of this model" if count and given else "one of the two is missing")
                )
            if tokens is not None:
                embeds = embeds.masked_scatter(seat[..., None], tokens.to(embeds.device, embeds.dtype))
        return embeds


class VideoLlama2ForConditionalGeneration(VideoLlama2PreTrainedModel, GenerationMixin):
    """VideoLLaMA2 with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: VideoLlama2Config) -> None:
        super().__init__(config)
        self.model = VideoLlama2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
        self._no_split_modules = present_classes(self)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_video_features(self, pixel_values_videos: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `VideoLlama2Model.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `VideoLlama2Model.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> VideoLlama2CausalLMOutputWithPast:
        """Logits [B, L, V] and, with labels, the loss.

        Args:
            labels: int64 [B, L], -100 = no target.
            logits_to_keep: only the last so many positions, or those of an index; 0: all.
            others: see `VideoLlama2Model.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return VideoLlama2CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            video_hidden_states=outputs.video_hidden_states,
        )


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def present_classes(model: PreTrainedModel) -> set[str]:
    """`_no_split_modules` that the model has. SigLIP lists its text tower's too, and FSDP raises for what is absent."""
    return set(model._no_split_modules) & {type(module).__name__ for module in model.modules()}


def refuse_incomplete(origin: Any, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
    """Raises ValueError, naming the first keys, where weights were missing, unexpected or of another shape.

    Args:
        origin: where they come from, for the message.
        info: `missing_keys`, `unexpected_keys`: of names; `mismatched_keys`: of (name, shape found, shape expected).
    """
    shapes = [] if ignore_mismatched_sizes else info["mismatched_keys"]
    problems = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(f"{key} {tuple(was)}, expected {tuple(needed)}" for key, was, needed in shapes),
    }
    told = [
        f"{len(keys)} keys are {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in problems.items()
        if keys
    ]
    if told:
        raise ValueError(f"{origin}: does not fit the model. " + "; ".join(told))
