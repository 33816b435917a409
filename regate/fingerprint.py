"""Short hashes of all that decides which tokens a sample becomes: reference losses are valid for one set of them only.

Two processors with equal fingerprints make the same `input_ids` and `labels` of the same conversation, and a hash does
not change by saving and loading.
"""

import hashlib
import json
from collections.abc import Mapping, Set
from typing import Any

from regate.targets import ENCODER_VERSION, template_of
from regate.tokens import tokenizer_of

# Settings of image and video processors, and of processors, that decide how many placeholders a picture gets.
_PICTURE_SETTINGS = (
    "crop_size",
    "crop_to_patches",
    "do_center_crop",
    "do_image_splitting",
    "do_pad",
    "do_pan_and_scan",
    "do_resize",
    "image_grid_pinpoints",
    "max_image_size",
    "max_num_patches",
    "max_patches",
    "max_pixels",
    "max_video_tokens",
    "merge_size",
    "min_patches",
    "min_pixels",
    "patch_size",
    "size",
    "temporal_patch_size",
)
_PROCESSOR_SETTINGS = (
    "frame_times",
    "image_seq_len",
    "image_seq_length",
    "images_kwargs",
    "num_additional_image_tokens",
    "num_frames",
    "num_image_tokens",
    "patch_size",
    "projector_type",
    "vision_aspect_ratio",
    "vision_feature_select_strategy",
)
# Spaces, digits, cases, scripts and signs that tokenizers treat differently.
_PROBES = (
    "The red ball moves left, doesn't it?  Two  spaces.",
    " 1234567 3.14 x=2**10; def f(a):\n\treturn a\n\n",
    "Äußerst naïve Straße ĳ ﬁ 你好，世界 こんにちは 🙂 Привет",
)


def fingerprint_of(processor: Any, max_length: int | None, num_frames: int) -> dict[str, str]:
    """Hashes of 16 hex digits each.

    Args:
        processor: with a tokenizer and a chat template.
        max_length, num_frames: as given to `regate.data.ConversationEncoder`.

    Returns:
        {"tokenizer": vocabulary, merges, special tokens; "template": chat template and the version of the rules that
        find targets; "truncation": max_length, num_frames and the settings that decide how many placeholders a picture
        gets}

    Raises:
        ValueError: no tokenizer, or no chat template.
    """
    tokenizer = tokenizer_of(processor)
    added = {token: i for token, i in tokenizer.get_vocab().items() if i in tokenizer.added_tokens_decoder}
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    parts = {"image": getattr(processor, "image_processor", None), "video": getattr(processor, "video_processor", None)}
    settings = {name: _settings(part, _PICTURE_SETTINGS) for name, part in parts.items()}
    settings["processor"] = _settings(processor, _PROCESSOR_SETTINGS)
    return {
        "tokenizer": _hash([tokenizer_fingerprint(tokenizer), sorted(added.items()), special]),
        "template": _hash([ENCODER_VERSION, type(processor).__name__, template_of(processor)]),
        "truncation": _hash([max_length, num_frames, settings]),
    }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of how text becomes tokens: vocabulary and merges without added tokens, and the tokens of a few probes.

    A student's tokenizer is often its language model's with image markers added: these two have the same fingerprint.
    Whether added tokens agree is told by `tokenizer_difference`.

    Returns:
        16 hex digits.
    """
    tokenizer = tokenizer_of(tokenizer)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    vocabulary = sorted((i, token) for token, i in tokenizer.get_vocab().items() if token not in added)
    merges: list[list[str]] = []
    if getattr(tokenizer, "is_fast", False):
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    probes = [tokenizer.encode(text, add_special_tokens=False) for text in _PROBES]
    return _hash([vocabulary, merges, probes])


def tokenizer_difference(student: Any, teacher: Any, unseen: Set[int] = frozenset()) -> str | None:
    """Why a teacher with this tokenizer cannot score the student's tokens, in words; None where it can.

    Args:
        student, teacher: tokenizers or processors.
        unseen: ids that the teacher never gets to see (`regate.tokens.placeholder_token_ids`).

    Returns:
        None, or a clause such as "id 386 is '<|im_end|>' for the student and '<end>' for the teacher".
    """
    student, teacher = tokenizer_of(student), tokenizer_of(teacher)
    if tokenizer_fingerprint(student) != tokenizer_fingerprint(teacher):
        return f"their vocabularies or merges differ ({len(student)} and {len(teacher)} tokens)"
    theirs = {i: token.content for i, token in teacher.added_tokens_decoder.items()}
    ids = {content: i for i, content in theirs.items()}
    for i, token in sorted(student.added_tokens_decoder.items()):
        if i in unseen:
            continue
        if theirs.get(i, token.content) != token.content:
            return f"id {i} is {token.content!r} for the student and {theirs[i]!r} for the teacher"
        if ids.get(token.content, i) != i:
            return f"{token.content!r} is {i} for the student and {ids[token.content]} for the teacher"
    return None


def _settings(part: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _plain(getattr(part, name)) for name in names if getattr(part, name, None) is not None}


def _plain(value: Any) -> Any:
    """Values that are the same before and after saving: mappings without empty fields, lists for tuples."""
    if isinstance(value, Mapping) or hasattr(value, "__dataclass_fields__"):
        items = value.items() if isinstance(value, Mapping) else vars(value).items()
        return {str(k): _plain(v) for k, v in sorted(items) if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (int, float, str, bool)) else str(value)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
