"""VideoLLaMA2's processor: text with `<image>` and `<video>`, images and videos -> the model's inputs."""

from typing import Any

from PIL.Image import Resampling
from transformers import AddedToken, AutoTokenizer, PreTrainedConfig, ProcessorMixin
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from regate.models.videollama2.configuration import VideoLlama2Config, visual_tokens
from regate.models.videollama2.image_processing import VideoLlama2ImageProcessor
from regate.models.videollama2.original import is_original
from regate.models.videollama2.templates import TEMPLATES
from regate.models.videollama2.video_processing import VideoLlama2VideoProcessor, as_clips

IMAGE, VIDEO = "<image>", "<video>"


class VideoLlama2Processor(ProcessorMixin):
    """Tokenizer, image processor and video processor of one model.

    Args:
        patch_size: pixels along a patch of the vision tower.
        projector_type: of the model: how many visual tokens frames make.
        num_frames: how often the model repeats an image.

    Raises:
        ValueError: a tokenizer that knows no `<image>` or `<video>`, or an unknown connector.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        video_processor: Any = None,
        patch_size: int = 14,
        projector_type: str = "stc_connector_v35",
        num_frames: int = 16,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template)
        self.patch_size, self.projector_type, self.num_frames = patch_size, projector_type, num_frames
        self.image_token, self.video_token = IMAGE, VIDEO
        self.image_token_id, self.video_token_id = (_token_id(tokenizer, token) for token in (IMAGE, VIDEO))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As transformers'; of an original release, which holds a tokenizer only, the processor is built."""
        config = _original_config(pretrained_model_name_or_path)
        if config is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)
        return build_processor(VideoLlama2Config.from_dict(config), tokenizer, config.get("image_aspect_ratio", "pad"))

    def prepare_inputs_layout(self, *args: Any, videos: Any = None, **kwargs: Any) -> tuple:
        """As transformers', with videos in any form made a flat list of paths and arrays."""
        return super().prepare_inputs_layout(*args, videos=None if videos is None else as_clips(videos), **kwargs)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        """One marker for each visual token of a video: their number follows from its frames and their size."""
        frames, _, height, width = video_inputs["pixel_values_videos"][video_idx].shape
        return self.video_token * self._tokens(frames, height, width)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """One marker for each visual token of an image, which the model repeats to `num_frames` frames."""
        _, height, width = image_inputs["pixel_values"][image_idx].shape
        return self.image_token * self._tokens(self.num_frames, height, width)

    def _tokens(self, frames: int, height: int, width: int) -> int:
        return visual_tokens(self.projector_type, frames, height // self.patch_size, width // self.patch_size)


def build_processor(
    config: VideoLlama2Config,
    tokenizer: Any,
    image_aspect_ratio: str | None = "pad",
    chat_template: str | None = None,
) -> VideoLlama2Processor:
    """The processor that belongs to a model.

    Args:
        config: of the model.
        tokenizer: of the model, or of its language model: `<image>` and `<video>` are added where missing.
        image_aspect_ratio: "pad" (pad to squares, as in training), or anything else for the vision tower's own way.
        chat_template: left out, that of the language model's kind.

    Raises:
        ValueError: the tokenizer's markers have other ids than the configuration says.
    """
    add_markers(tokenizer)
    for field, token in (("image_token_id", IMAGE), ("video_token_id", VIDEO)):
        if getattr(config, field) != _token_id(tokenizer, token):
            raise ValueError(
                f"{field} is {getattr(config, field)} in the model's configuration but {token} is "
                f"{_token_id(tokenizer, token)} in the tokenizer: load the tokenizer of this model, or set {field} "
                "when you load the model"
            )
    pixels = _pixel_settings(config.vision_config) | {"do_pad_to_square": image_aspect_ratio == "pad"}
    kind = config.text_config.model_type
    template = chat_template or TEMPLATES.get(kind)
    if template is None:
        raise ValueError(f"found no chat template for a language model {kind}, expected one: pass chat_template")
    return VideoLlama2Processor(
        VideoLlama2ImageProcessor(**pixels),
        tokenizer,
        VideoLlama2VideoProcessor(**pixels, num_frames=config.num_frames),
        patch_size=config.vision_config.patch_size,
        projector_type=config.projector_type,
        num_frames=config.num_frames,
        chat_template=template,
    )


def add_markers(tokenizer: Any) -> None:
    """Adds `<image>` and `<video>` to a tokenizer that lacks them, and a pad token to one without (in place)."""
    known = tokenizer.get_vocab()
    missing = [AddedToken(token, special=True, normalized=False) for token in (IMAGE, VIDEO) if token not in known]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token


def _pixel_settings(vision: Any) -> dict[str, Any]:
    """Settings of the image processor that the vision tower was trained with."""
    side = vision.image_size
    if vision.model_type == "siglip_vision_model":
        return {"size": {"height": side, "width": side}, "resample": Resampling.BICUBIC}
    return {
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "image_mean": list(OPENAI_CLIP_MEAN),
        "image_std": list(OPENAI_CLIP_STD),
        "resample": Resampling.BICUBIC,
    }


def _token_id(tokenizer: Any, token: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise ValueError(
            f"the tokenizer ({type(tokenizer).__name__}, {len(vocabulary)} entries) has no {token}, expected it: build "
            "the processor with build_processor, or add the token"
        )
    return vocabulary[token]


def _original_config(path: Any) -> dict[str, Any] | None:
    """`config.json` where it is that of an original release, else None."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except OSError:  # a processor that was saved alone
        return None
    return config if is_original(config) else None
