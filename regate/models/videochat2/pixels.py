"""Images and videos -> pixels, with PIL and numpy (no torchvision); files are read by `regate.media` (PyAV).

As in the original's evaluation every frame is squeezed to a square by bicubic interpolation. Its training crops and
flips at random, which is not done here. Statistics are ImageNet's (the original's training) or CLIP's (its demos).

Shapes: T frames, H x W pixels.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import VideoMetadata, make_batched_metadata, make_batched_videos

from regate.media import load_video

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def middle_frames(total: int, num_frames: int) -> list[int]:
    """The original's "middle" sampling: the middle frame of each of `num_frames` parts, borders rounded down.

    A video with fewer frames than that is taken whole, and its last frame repeated.

    Returns:
        `num_frames` ascending frame numbers in [0, total).

    Raises:
        ValueError: either number is below 1.
    """
    if total < 1 or num_frames < 1:
        raise ValueError(f"total is {total} and num_frames is {num_frames}, expected both to be at least 1")
    parts = min(num_frames, total)
    borders = np.linspace(0, total, parts + 1).astype(int).tolist()  # rounded as there
    frames = [(start + end - 1) // 2 for start, end in pairwise(borders)]
    return frames + frames[-1:] * (num_frames - parts)


class VideoChat2ImageProcessor(PilBackend):
    """Images -> `pixel_values` float32 [images, 3, H, W]."""

    do_convert_rgb = True
    do_resize = True
    size: ClassVar[dict[str, int]] = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    do_normalize = True
    image_mean, image_std = STATISTICS["imagenet"]

    def resize(self, image: np.ndarray, size: SizeDict, resample: Any = None, **kwargs: Any) -> np.ndarray:
        """uint8 [3, H, W] of another size; as it is where the size is right."""
        if image.shape[-2:] == (size.height, size.width):
            return image
        return super().resize(image, size, resample=resample, **kwargs)


class VideoChat2VideoProcessor(VideoProcessorMixin, VideoChat2ImageProcessor):
    """Videos -> `pixel_values_videos` float32 [videos, T, 3, H, W].

    A video is an array of frames [T, H, W, 3], of which `num_frames` are taken by `middle_frames` unless
    `do_sample_frames` is False; or a file, or a folder of frames, of which they are always taken.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values_videos"]
    do_sample_frames = True
    num_frames = 16

    def sample_frames(self, metadata: VideoMetadata, num_frames: int | None = None, **kwargs: Any) -> np.ndarray:
        """Which frames of a video are taken, int64 [T]."""
        return np.array(middle_frames(metadata.total_num_frames, num_frames or self.num_frames))

    def _decode_and_sample_videos(
        self, videos: Any, video_metadata: Any = None, do_sample_frames: Any = None, sample_indices_fn: Any = None
    ) -> tuple[list[np.ndarray], list[VideoMetadata]]:
        videos = make_batched_videos(videos)
        if not videos or isinstance(videos[0], (str, Path)):
            number = sample_indices_fn.keywords["num_frames"] if sample_indices_fn else self.num_frames
            return _load(videos, number)
        empty = [i for i, video in enumerate(videos) if len(video) == 0]
        if empty:
            raise ValueError(f"video {empty[0]} has 0 frames, expected at least 1")
        metadata = make_batched_metadata(videos, video_metadata=video_metadata)
        if do_sample_frames:
            for i, (video, known) in enumerate(zip(videos, metadata, strict=True)):
                known.frames_indices = sample_indices_fn(known)
                videos[i] = video[known.frames_indices]
        return videos, metadata

    def _prepare_input_videos(self, videos: Any, do_convert_rgb: Any = None, **kwargs: Any) -> list[list[np.ndarray]]:
        """Frames uint8 [3, H, W] of each video."""
        layout = kwargs.get("input_data_format")
        return [[self.process_image(np.asarray(frame), do_convert_rgb, layout) for frame in video] for video in videos]

    def _preprocess(self, videos: list[list[np.ndarray]], return_tensors: Any = None, **kwargs: Any) -> BatchFeature:
        frames = super()._preprocess([frame for video in videos for frame in video], return_tensors=None, **kwargs)
        flat = iter(frames["pixel_values"])
        pixels = [np.stack([next(flat) for _ in video]) for video in videos]
        return BatchFeature({"pixel_values_videos": pixels}, tensor_type=return_tensors)


def _load(paths: list[str | Path], num_frames: int) -> tuple[list[np.ndarray], list[VideoMetadata]]:
    """Frames [T, H, W, 3] of files and folders; `regate.media.MediaError` names one that cannot be read."""
    loaded = [load_video(path, num_frames, choose=middle_frames) for path in paths]
    metadata = [
        VideoMetadata(
            total_num_frames=video.total,
            fps=video.fps,
            duration=video.total / video.fps if video.fps else None,
            frames_indices=np.array(video.indices),
        )
        for video in loaded
    ]
    return [video.frames for video in loaded], metadata
