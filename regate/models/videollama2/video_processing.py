"""Videos -> pixel values, frame by frame as images, without torchvision.

Frames of files are chosen by `regate.media` (PyAV): the midpoints of equal parts. A video that has fewer frames than
are wanted ends in black ones. Legend: T frames of H x W pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import VideoProcessorMixin

from regate.media import load_video, midpoints
from regate.models.videollama2.image_processing import VideoLlama2ImageProcessor

Clip = str | np.ndarray  # a path, or frames [T, H, W, 3]


class SquareVideosKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """do_pad_to_square (bool): pad frames to squares before they are resized, as in training."""

    do_pad_to_square: bool | None


class VideoLlama2VideoProcessor(VideoProcessorMixin, VideoLlama2ImageProcessor):
    """Pixel values float32 [N, T, 3, H, W] of N videos: paths, arrays [T, H, W, 3], or lists of frames.

    `do_sample_frames` brings each video to `num_frames` frames; without, frames are taken as they come. Where
    `video_metadata` tell that the last frame was repeated to fill up a short video, the repetitions become black.
    """

    valid_kwargs = SquareVideosKwargs
    model_input_names = ["pixel_values_videos"]  # noqa: RUF012
    default_to_square = False
    do_sample_frames = True
    num_frames = 16

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Reads, samples and fills up, then treats each frame as an image.

        Raises:
            ValueError: a video of zero frames, videos of unequal numbers of frames, something that is no video.
            MediaError: a file that cannot be read.
        """
        validate_typed_dict(self.valid_kwargs, kwargs)
        for name in self.valid_kwargs.__annotations__:
            kwargs.setdefault(name, getattr(self, name, None))
        clips = as_clips(videos)
        metadata = _per_clip(kwargs.pop("video_metadata"), len(clips))
        num_frames, sample = kwargs.pop("num_frames"), kwargs.pop("do_sample_frames")
        return_tensors, return_metadata = kwargs.pop("return_tensors"), kwargs.pop("return_metadata")
        kwargs = self._standardize_kwargs(**kwargs)
        self._validate_preprocess_kwargs(**kwargs)
        wanted = num_frames if sample else None
        frames = [_frames(clip, about, wanted, num_frames) for clip, about in zip(clips, metadata, strict=True)]
        counts = sorted({len(clip) for clip in frames})
        if len(counts) > 1:
            raise ValueError(
                f"found videos of {' and '.join(map(str, counts))} frames, expected as many in all videos of a call: "
                "pass do_sample_frames=True"
            )
        kwargs |= {"do_pad": False, "pad_size": None, "return_tensors": None}
        pixels = [np.stack(self._preprocess(self._prepare(clip), **kwargs)["pixel_values"]) for clip in frames]
        data: dict[str, Any] = {"pixel_values_videos": pixels}
        output = BatchFeature(data, tensor_type=return_tensors)
        if return_metadata:
            output["video_metadata"] = metadata
        return output

    def _prepare(self, clip: np.ndarray) -> list[np.ndarray]:
        """Frames [T, H, W, 3] -> T frames [3, H, W]."""
        return list(np.moveaxis(clip, -1, 1))


def as_clips(videos: Any) -> list[Clip]:
    """Videos in any form that transformers knows -> a flat list of paths and arrays [T, H, W, 3].

    Args:
        videos: a path; frames [T, H, W, 3] or [T, 3, H, W], as an array, a tensor or a list of images; or (nested)
            lists of these.

    Raises:
        ValueError: a video of zero frames, frames of several sizes, or none of the above.
    """
    if isinstance(videos, (str, Path)):
        return [str(videos)]
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        array = videos.numpy() if isinstance(videos, torch.Tensor) else videos
        if array.ndim == 5:
            return [clip for video in array for clip in as_clips(video)]
        return [_channels_last(array)]
    if not isinstance(videos, Sequence):
        raise ValueError(f"found {type(videos).__name__}, expected a video: a path, an array or a list of frames")
    if not videos:
        raise ValueError("found a video of zero frames (an empty list), expected at least one frame")
    if isinstance(videos[0], Image.Image) or getattr(videos[0], "ndim", None) == 3:
        frames = [np.asarray(f.convert("RGB") if isinstance(f, Image.Image) else f) for f in videos]
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"found frames of several shapes in one video ({sorted(sizes)}), expected one shape")
        return [_channels_last(np.stack(frames))]
    return [clip for video in videos for clip in as_clips(video)]


def _channels_last(frames: np.ndarray) -> np.ndarray:
    """uint8 or float [T, H, W, 3]."""
    if frames.ndim == 4 and len(frames) == 0:
        raise ValueError(f"found a video of zero frames (shape {frames.shape}), expected at least one frame")
    if frames.ndim == 4 and frames.shape[-1] == 3:
        return frames
    if frames.ndim == 4 and frames.shape[1] == 3:
        return np.moveaxis(frames, 1, -1)
    raise ValueError(f"found a video of shape {frames.shape}, expected [frames, height, width, 3]")


def _per_clip(metadata: Any, clips: int) -> list[Mapping | None]:
    """Metadata of each video, flat; None where there are none."""
    if metadata is None:
        return [None] * clips
    flat: list[Mapping | None] = []
    for item in [metadata] if isinstance(metadata, Mapping) else metadata:
        flat.extend(item if isinstance(item, (list, tuple)) else [item])
    if len(flat) != clips:
        raise ValueError(f"found {len(flat)} video_metadata for {clips} videos, expected one for each")
    return flat


def _frames(clip: Clip, about: Mapping | None, wanted: int | None, default: int) -> np.ndarray:
    """The frames [T, H, W, 3] of one video, sampled or as they are, fillers black."""
    if isinstance(clip, str):
        video = load_video(clip, wanted or default)
        return _black_after(video.frames, _ascending(video.indices))
    indices = about["frames_indices"] if about is not None else None
    if indices is not None and len(indices) == len(clip):
        clip = _black_after(clip, _ascending(indices))
    if wanted is None:
        return clip
    if len(clip) >= wanted:
        return clip[midpoints(len(clip), wanted)]
    black = np.zeros((wanted - len(clip), *clip.shape[1:]), clip.dtype)
    return np.concatenate([clip, black])


def _ascending(indices: Sequence[int]) -> int:
    """How many frame numbers at the start ascend: the others repeat the last frame."""
    numbers = [int(i) for i in indices]
    return next((i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1]), len(numbers))


def _black_after(frames: np.ndarray, real: int) -> np.ndarray:
    if real == len(frames):
        return frames
    return np.concatenate([frames[:real], np.zeros_like(frames[real:])])
