"""VideoLLaMA2 (Cheng et al., 2024) for transformers: configuration, model, processor, conversion of the original files.

from regate.models import videollama2

videollama2.register()
model = AutoModelForImageTextToText.from_pretrained("VideoLLaMA2.1-7B-16F")    # the original release, as it is
processor = AutoProcessor.from_pretrained("VideoLLaMA2.1-7B-16F")
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)

from regate.models.videollama2.configuration import (
    OriginalMistralConfig,
    OriginalQwen2Config,
    VideoLlama2Config,
    visual_tokens,
)
from regate.models.videollama2.conversion import load_base, register_key_map
from regate.models.videollama2.image_processing import VideoLlama2ImageProcessor
from regate.models.videollama2.modeling import (
    VideoLlama2ForConditionalGeneration,
    VideoLlama2Model,
    VideoLlama2PreTrainedModel,
)
from regate.models.videollama2.processing import VideoLlama2Processor, build_processor
from regate.models.videollama2.video_processing import VideoLlama2VideoProcessor

__all__ = [
    "VideoLlama2Config",
    "VideoLlama2ForConditionalGeneration",
    "VideoLlama2ImageProcessor",
    "VideoLlama2Model",
    "VideoLlama2PreTrainedModel",
    "VideoLlama2Processor",
    "VideoLlama2VideoProcessor",
    "build_processor",
    "load_base",
    "register",
    "visual_tokens",
]


def register() -> None:
    """Makes the Auto classes of transformers find these. More than once does no harm."""
    register_key_map()
    for config in (VideoLlama2Config, OriginalQwen2Config, OriginalMistralConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(VideoLlama2Config, VideoLlama2Model, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto.register(VideoLlama2Config, VideoLlama2ForConditionalGeneration, exist_ok=True)
    # Both backends are PIL and numpy: transformers asks for "torchvision" by default, and warns where there is none.
    images = dict.fromkeys(("torchvision", "pil"), VideoLlama2ImageProcessor)
    AutoImageProcessor.register(VideoLlama2Config, image_processor_classes=images, exist_ok=True)
    AutoVideoProcessor.register(
        VideoLlama2Config, video_processor_classes={"torchvision": VideoLlama2VideoProcessor}, exist_ok=True
    )
    AutoProcessor.register(VideoLlama2Config, VideoLlama2Processor, exist_ok=True)
