"""Which token ids are special, and which are only seats for visual features.

Two questions that the gate, the teacher and the counters all ask, answered in one place:

* `placeholder_token_ids`: ids whose embeddings the model replaces by visual (or audio) features;
* `special_token_ids`: those, and all markers that are never candidates of the gate: end of turn, end and beginning of
  text, padding, starts and ends of images and videos.

Both are pure functions of a processor (or a tokenizer) and a model configuration.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# Fields of a configuration or a processor that name the seat of a feature. `*_index` is the older spelling.
_PLACEHOLDERS = ("image_token_id", "video_token_id", "audio_token_id")
_OLDER_NAMES = {
    "image_token_id": "image_token_index",
    "video_token_id": "video_token_index",
    "audio_token_id": "audio_token_index",
}
# Fields with defaults that many configurations carry without meaning them (`bos_token_id=1`).
_TEXT_MARKERS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id")
_ENDINGS = ("_token_id", "_token_ids", "_token_index")


def placeholder_token_ids(processor: Any, config: Any = None) -> set[int]:
    """Ids whose embeddings are replaced by features: `image_token_id`, `video_token_id`, `audio_token_id`.

    Args:
        processor: a processor, or a tokenizer (then only `config` knows anything), or None.
        config: a model configuration, or None.

    Returns:
        The ids; empty for a text-only model.

    Raises:
        ValueError: processor and configuration give different ids for one placeholder, so they are not of one model.
    """
    found: set[int] = set()
    for name in _PLACEHOLDERS:
        ours = _as_ids(_read(config, name) if _read(config, name) is not None else _read(config, _OLDER_NAMES[name]))
        theirs = _as_ids(_read(processor, name)) if hasattr(processor, "tokenizer") else set()
        if ours and theirs and ours != theirs:
            raise ValueError(
                f"{name} is {sorted(ours)} in the model's configuration but {sorted(theirs)} in the processor: "
                "the two are not of one model. Load both from the same path, or give both the same id."
            )
        found |= ours | theirs
    return found


def special_token_ids(processor: Any, config: Any = None) -> set[int]:
    """Ids of all markers: what is never a candidate of the gate.

    All special tokens of the tokenizer, all `*_token_id`, `*_token_ids` and `*_token_index` of the configuration (and
    of its text configuration) and of the processor. Beginning, end and padding ids of a configuration count only where
    the tokenizer does not know them as ordinary text: many configurations carry defaults that they never meant.

    Args:
        processor: a processor or a tokenizer.
        config: a model configuration, or None.

    Returns:
        The ids, placeholders included.

    Raises:
        ValueError: no tokenizer is found, or processor and configuration disagree about a placeholder.
    """
    tokenizer = tokenizer_of(processor)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {int(i) for i in tokenizer.all_special_ids}
    found |= {int(i) for i, token in added.items() if getattr(token, "special", False)}
    size = len(tokenizer)
    for source in (config, _text_config(config), processor):
        for name in _token_fields(source):
            ids = _as_ids(_read(source, name))
            if name in _TEXT_MARKERS:
                ids = {i for i in ids if i in added or i >= size}
            found |= ids
    return found | placeholder_token_ids(processor, config)


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, or the tokenizer itself.

    Raises:
        ValueError: `processor` is neither.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "all_special_ids") or not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise ValueError(
            f"found {type(processor).__name__}, expected a processor with a tokenizer, or a tokenizer: "
            "pass what AutoProcessor.from_pretrained or AutoTokenizer.from_pretrained returns"
        )
    return tokenizer


def _text_config(config: Any) -> Any:
    """The configuration of the language model inside `config`, or None."""
    if config is None:
        return None
    text = getattr(config, "get_text_config", lambda: None)()
    return None if text is config else text


def _token_fields(source: Any) -> list[str]:
    """Names of the fields of `source` that hold token ids."""
    if source is None:
        return []
    names: Iterable[str]
    names = source.keys() if isinstance(source, Mapping) else vars(source).keys()
    known = ["image_token_ids", *_PLACEHOLDERS, *_OLDER_NAMES.values()]
    return sorted({n for n in [*names, *known] if n.endswith(_ENDINGS) and not n.startswith("_")})


def _read(source: Any, name: str) -> Any:
    if isinstance(source, Mapping):
        return source.get(name)
    return getattr(source, name, None)


def _as_ids(value: Any) -> set[int]:
    """A token id, a list of them or nothing -> the set of those that can be ids."""
    values = value if isinstance(value, (list, tuple, set)) else [value]
    return {int(v) for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0}
