"""Conversations -> what a model trains on: tokens, targets, pixels, batches.

    encode = ConversationEncoder(processor, max_length=2048, num_frames=8)
    encode(dataset[0])                  # {"input_ids": [L], "labels": [L], "attention_mask": [L], "pixel_values": ...}
    collate = ConversationCollator(processor, max_length=2048, num_frames=8)
    model(**collate([dataset[0], dataset[1]]))

Any processor of transformers with a chat template will do: each sample goes through it alone, and visual inputs are
joined along their first dimension, as the processors do themselves. B samples, L tokens.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from regate.conversations import BadSamples, load_conversations
from regate.media import MediaError, Video, load_video, midpoints, read_image, read_video
from regate.media_cache import FrameCache
from regate.targets import answer_spans, mask_from_offsets, mask_from_prefixes, render, template_of
from regate.tokens import placeholder_token_ids, special_token_ids, tokenizer_of
from regate.turns import BadSample
from regate.vision_rows import KEY, VisionRows

__all__ = [
    "BadSample",
    "BadSamples",
    "ConversationCollator",
    "ConversationEncoder",
    "MediaError",
    "load_conversations",
    "read_image",
    "read_video",
]

IGNORE = -100
# Inputs with one value a token. All others belong to images and videos.
_FILL = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE, "mm_token_type_ids": 0, "token_type_ids": 0}


class ConversationEncoder:
    """One row of a table of conversations -> the model's inputs, unbatched.

    Args:
        processor: of any multimodal model of transformers, with a chat template.
        max_length: cut the text's tail beyond so many tokens; None: never.
        num_frames: frames of each video.
        frames: where decoded frames are kept; None: videos are decoded each time.

    Raises:
        ValueError: max_length or num_frames below 1; no chat template.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        num_frames: int = 8,
        frames: FrameCache | None = None,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}, expected at least 1, or None")
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}, expected at least 1")
        template_of(processor)
        self.processor, self.max_length, self.num_frames = processor, max_length, num_frames
        self._load = load_video if frames is None else frames.load
        placeholders = placeholder_token_ids(processor)
        self._placeholders = torch.tensor(sorted(placeholders), dtype=torch.int64)
        tokenizer = tokenizer_of(processor)
        self._window = getattr(tokenizer, "model_max_length", sys.maxsize)  # 1e30 where none is known
        self._longest = max(map(len, tokenizer.get_vocab()))
        self._expected = (
            f"expected at most the {self._window} tokens of the tokenizer's model_max_length. Cut such samples with "
            "max_length (--max-length), or shorten the text."
        )
        self._markers = special_token_ids(processor) - placeholders

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Encodes one sample.

        Args:
            sample: with `messages` (JSON or a list), `images` and `videos` (paths); `id` or `sample_id` name it in
                errors.

        Returns:
            input_ids, attention_mask: int64 [L]; labels: int64 [L], -100 on all but answers; mm_token_type_ids and the
            like [L] where the processor makes them; visual inputs as the processor makes them for one sample.

        Raises:
            BadSample: a file that cannot be read; placeholders that do not match the pictures, or would be cut off; no
                target left.
            ValueError: a chat template that does not tell where answers stand.
        """
        name = sample.get("id", sample.get("sample_id"))
        messages = sample["messages"]
        messages = json.loads(messages) if isinstance(messages, str) else messages
        self._check_size(name, messages)
        try:
            images = [read_image(path) for path in sample.get("images") or []]
            videos = self._videos(messages, sample.get("videos") or [])
        except MediaError as error:
            raise BadSample(f"sample {name!r}: {error}", name, error.file) from error
        files = [*(sample.get("images") or []), *(sample.get("videos") or [])]
        try:
            text = render(self.processor, messages)
            inputs, offsets, replacements = self.process(text, images, videos)
        except (ValueError, IndexError) as error:
            raise BadSample(f"sample {name!r}: {type(self.processor).__name__} refuses it: {error}", name) from error
        ids = inputs["input_ids"]
        if offsets is not None and replacements is not None:
            spans = answer_spans(self.processor, messages, text)
            mask = mask_from_offsets(self.processor, spans, offsets, replacements, ids, self._markers)
        else:
            encode = partial(self._part, images=images, videos=videos)
            mask = mask_from_prefixes(self.processor, messages, encode, ids, self._markers)
        mask &= ~torch.isin(ids, self._placeholders)
        inputs["labels"] = torch.where(mask, ids, IGNORE)
        self._check_placeholders(name, files, inputs, len(images), len(videos), replacements)
        return self._truncate(name, inputs)

    def _videos(self, messages: list[dict], paths: list[str]) -> list[Video]:
        """The frames of each video; a message may name the seconds of a clip, a processor how its model samples."""
        items = [item for message in messages for item in message["content"] if item["type"] == "video"]
        clips = [(item["start"], item["end"]) if "start" in item else None for item in items]
        choose = getattr(self.processor, "choose_frames", midpoints)
        clips += [None] * (len(paths) - len(clips))  # fewer placeholders than files is told as that, later
        return [self._load(path, self.num_frames, clip, choose) for path, clip in zip(paths, clips, strict=False)]

    def process(
        self, text: str, images: list, videos: list[Video], told: bool = True
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, list[dict] | None]:
        """Runs the processor on one sample.

        Returns:
            Inputs; the characters of each token, int [L, 2], or None where the processor does not tell; what it put in
            the place of each placeholder, or None.
        """
        tokenizer = tokenizer_of(self.processor)
        kwargs: dict[str, Any] = {"return_tensors": "pt"}
        if told and getattr(tokenizer, "is_fast", False):
            kwargs |= {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
            kwargs["add_special_tokens"] = False
        if images:
            kwargs["images"] = [images]
        if videos:
            kwargs |= {"videos": [v.frames for v in videos], "do_sample_frames": False}
            kwargs["video_metadata"] = [
                {
                    "total_num_frames": v.total,
                    "fps": v.fps,
                    "duration": v.total / v.fps if v.fps else None,
                    "frames_indices": v.indices,
                }
                for v in videos
            ]
        out = dict(self.processor(text=[text], **kwargs))
        offsets = out.pop("offset_mapping", None)
        replacements = out.pop("text_replacement_offsets", None)
        if isinstance(replacements, torch.Tensor):  # an empty list, made a tensor
            replacements = [[]]
        inputs = {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}
        for key in _FILL.keys() & inputs.keys():
            inputs[key] = inputs[key][0]
        return inputs, None if offsets is None else offsets[0], None if replacements is None else list(replacements[0])

    def _part(self, messages: list[dict], text: str, images: list, videos: list[Video]) -> torch.Tensor:
        """int64 [l]: the tokens of a part of a conversation, with the pictures that it refers to."""
        kinds = [item["type"] for message in messages for item in message["content"]]
        inputs, _, _ = self.process(text, images[: kinds.count("image")], videos[: kinds.count("video")], told=False)
        return inputs["input_ids"]

    def _check_placeholders(
        self, name: Any, files: list[str], inputs: dict, images: int, videos: int, replacements: list[dict] | None
    ) -> None:
        """Raises where the placeholders among the tokens are not as many as the features that will take their seats."""
        found = int(torch.isin(inputs["input_ids"], self._placeholders).sum())
        expected = expected_placeholders(self.processor, inputs)
        if expected is None and replacements is not None and len(self._placeholders):
            tokens = self.processor.tokenizer.convert_ids_to_tokens(self._placeholders.tolist())
            expected = sum(r["replacement"].count(token) for r in replacements for token in tokens)
        if (expected is not None and found != expected) or bool(found) != bool(images + videos):
            raise BadSample(
                f"sample {name!r}: found {found} placeholders among the tokens, expected "
                f"{expected if expected is not None else 'some' if images + videos else 0} for {images} images and "
                f"{videos} videos ({', '.join(files) or 'no file'}). Look for the tokenizer's image and video markers "
                "in the text, and whether the processor's settings are those of the model.",
                name,
                files[0] if files else None,
            )

    def _check_size(self, name: Any, messages: list[dict]) -> None:
        """Refuses a text that cannot fit whatever its tokens are, before seconds are spent on finding them."""
        size = sum(len(item.get("text", "")) for message in messages for item in message["content"])
        if self.max_length is None and size > self._window * self._longest:
            raise BadSample(f"sample {name!r}: found a text of {size:,} characters, {self._expected}", name)

    def _truncate(self, name: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Cuts the tail; refuses to cut placeholders, or all targets."""
        length, limit = len(inputs["input_ids"]), self.max_length
        if limit is None and length > self._window:
            raise BadSample(f"sample {name!r}: found {length} tokens, {self._expected}", name)
        advice = "Raise max_length (--max-length), lower num_frames (--num-frames) or shorten the text."
        if limit is not None and length > limit:
            if torch.isin(inputs["input_ids"][limit:], self._placeholders).any():
                raise BadSample(
                    f"sample {name!r}: found {length} tokens with placeholders of images or videos beyond the first "
                    f"{limit}, expected them to fit. {advice}",
                    name,
                )
            for key in _FILL.keys() & inputs.keys():
                inputs[key] = inputs[key][:limit]
        if not (inputs["labels"][1:] != IGNORE).any():
            cut = f" (cut from {length})" if limit is not None and length > limit else ""
            raise BadSample(
                f"sample {name!r}: found no target among its {len(inputs['labels'])} tokens{cut}, expected at least "
                f"one. {advice}",
                name,
            )
        return inputs


class ConversationCollator:
    """Rows of a table of conversations -> one batch for `model(**batch)`.

    Columns other than `messages`, `images`, `videos` are ignored (`id` and `sample_id` name a sample in errors). Can be
    pickled; in a data loader's worker each copy counts for itself.

    Args:
        processor, max_length, num_frames, frames: see `ConversationEncoder`.
        padding_side: "right" or "left"; None: the tokenizer's.
        on_bad_sample: "raise", or "skip" (leave such rows out, log and count them).

    Attributes:
        encode: a row -> its inputs, a `ConversationEncoder`.
        vision: where features of a frozen vision tower are kept, or None (the default). With it a batch holds no
            pixels, but under `regate.vision_rows.KEY` what `regate.vision_cache.VisionCache` needs in their place.
        last_kept: which rows of the last call are in its batch, in order.
        skipped: how many rows were left out in all calls.
        bad: their count and the first messages.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        num_frames: int = 8,
        padding_side: str | None = None,
        on_bad_sample: str = "raise",
        frames: FrameCache | None = None,
    ) -> None:
        if padding_side not in (None, "right", "left"):
            raise ValueError(f"padding_side is {padding_side!r}, expected 'right', 'left' or None")
        if on_bad_sample not in ("raise", "skip"):
            raise ValueError(f"on_bad_sample is {on_bad_sample!r}, expected 'raise' or 'skip'")
        self.encode = ConversationEncoder(processor, max_length, num_frames, frames)
        self.vision: VisionRows | None = None
        tokenizer = tokenizer_of(processor)
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no pad token, expected one: set processor.tokenizer.pad_token")
        self.pad_token_id = tokenizer.pad_token_id
        self.padding_side = padding_side or tokenizer.padding_side
        self.on_bad_sample = on_bad_sample
        self.bad = BadSamples()
        self.last_kept: list[int] = []

    @property
    def skipped(self) -> int:
        return self.bad.count

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Encodes and joins rows.

        Returns:
            input_ids, attention_mask, labels (and mm_token_type_ids where the processor makes them): int64 [B, L];
            visual inputs joined along their first dimension. B is smaller than len(rows) where rows are skipped: see
            `last_kept`.

        Raises:
            BadSample: a row cannot be used and `on_bad_sample` is "raise", or no row can.
        """
        encoded, seen, self.last_kept = [], [], []
        first: BadSample | None = None
        for index, row in enumerate(rows):
            try:
                if self.vision is None:
                    encoded.append(self.encode(row))
                else:
                    inputs, visual = self.vision(row)
                    encoded.append(inputs)
                    seen.append(visual)
                self.last_kept.append(index)
            except BadSample as error:
                if self.on_bad_sample == "raise":
                    raise
                self.bad.add(error)
                first = first or error
        if not encoded:
            message = f"none of the {len(rows)} samples of a batch can be used; the first: {first}"
            raise BadSample(message, getattr(first, "sample_id", None), getattr(first, "file", None))
        batch = join(encoded, self.pad_token_id, self.padding_side)
        return batch if self.vision is None else batch | {KEY: seen}


def join(encoded: list[dict[str, torch.Tensor]], pad_token_id: int, padding_side: str) -> dict[str, torch.Tensor]:
    """Encoded samples -> one batch: text [B, L] padded on one side, visual inputs one after the other.

    Visual inputs whose further dimensions differ (numbers of tiles) are filled up with zeros at the end, as processors
    do.
    """
    batch = {}
    length = max(len(inputs["input_ids"]) for inputs in encoded)
    for key in dict.fromkeys(key for inputs in encoded for key in inputs):
        parts = [inputs[key] for inputs in encoded if key in inputs]
        if key in _FILL:
            fill = pad_token_id if key == "input_ids" else _FILL[key]
            batch[key] = torch.stack([_pad(part, (length,), fill, padding_side) for part in parts])
        else:
            shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
            batch[key] = torch.cat([_pad(part, (len(part), *shape), 0, "right") for part in parts])
    return batch


def expected_placeholders(processor: Any, inputs: Mapping[str, torch.Tensor]) -> int | None:
    """How many features the visual inputs of one sample will make, where the processor's settings tell; else None."""
    grids = [
        (inputs.get(f"{what}_grid_thw"), getattr(processor, f"{what}_processor", None)) for what in ("image", "video")
    ]
    if any(grid is not None for grid, _ in grids):
        return sum(
            int(grid.prod(dim=-1).sum()) // getattr(part, "merge_size", 1) ** 2
            for grid, part in grids
            if grid is not None
        )
    per_picture = getattr(processor, "image_seq_length", None) or getattr(processor, "image_seq_len", None)
    pixels = inputs.get("pixel_values")
    if isinstance(per_picture, int) and pixels is not None and pixels.dim() in (4, 5):
        if pixels.dim() == 4:  # [pictures, C, H, W]
            return per_picture * len(pixels)
        return per_picture * int((pixels.flatten(2) != 0).any(dim=2).sum())  # all-zero pictures are padding
    return None


def _pad(part: torch.Tensor, shape: tuple[int, ...], fill: int, side: str) -> torch.Tensor:
    """`part` inside a larger tensor: at its start, or (one dimension) at its end."""
    if part.shape == shape:
        return part
    out = part.new_full(shape, fill)
    if side == "left":
        out[shape[0] - len(part) :] = part
    else:
        out[tuple(slice(0, size) for size in part.shape)] = part
    return out
