"""VideoChat2 (OpenGVLab/Ask-Anything, video_chat2) as a model of transformers; see docs/videochat2.md."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoVideoProcessor,
)

from regate.models.videochat2.configuration import VideoChat2Config, VideoChat2VisionConfig
from regate.models.videochat2.conversion import load_original, load_processor
from regate.models.videochat2.modeling import VideoChat2ForConditionalGeneration, VideoChat2Model
from regate.models.videochat2.pixels import VideoChat2ImageProcessor, VideoChat2VideoProcessor
from regate.models.videochat2.processing import VideoChat2Processor, chat_template
from regate.models.videochat2.tuning import add_lora
from regate.models.videochat2.vision import VideoChat2VisionModel

__all__ = [
    "VideoChat2Config",
    "VideoChat2ForConditionalGeneration",
    "VideoChat2ImageProcessor",
    "VideoChat2Model",
    "VideoChat2Processor",
    "VideoChat2VideoProcessor",
    "VideoChat2VisionConfig",
    "VideoChat2VisionModel",
    "add_lora",
    "chat_template",
    "load_original",
    "load_processor",
    "register",
]


def register() -> None:
    """Tells transformers' Auto classes of VideoChat2. May be called again."""
    AutoConfig.register(VideoChat2Config.model_type, VideoChat2Config, exist_ok=True)
    AutoConfig.register(VideoChat2VisionConfig.model_type, VideoChat2VisionConfig, exist_ok=True)
    AutoModel.register(VideoChat2Config, VideoChat2Model, exist_ok=True)
    AutoModel.register(VideoChat2VisionConfig, VideoChat2VisionModel, exist_ok=True)
    AutoModelForImageTextToText.register(VideoChat2Config, VideoChat2ForConditionalGeneration, exist_ok=True)
    # One class each, under the backend that is asked for first: they need no other.
    images = dict.fromkeys(("torchvision", "pil"), VideoChat2ImageProcessor)
    AutoImageProcessor.register(VideoChat2Config, image_processor_classes=images, exist_ok=True)
    videos = dict.fromkeys(("torchvision", "pil"), VideoChat2VideoProcessor)
    AutoVideoProcessor.register(VideoChat2Config, video_processor_classes=videos, exist_ok=True)
    AutoProcessor.register(VideoChat2Config, VideoChat2Processor, exist_ok=True)
