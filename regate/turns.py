"""One sample as users write it -> one row of the table of conversations: the structural checks, sample by sample."""

import functools
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regate.media import IMAGE_ENDINGS, keep_bytes

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TAG = re.compile(r"<(image|video)>")


class BadSample(ValueError):
    """A sample that cannot be used. Whoever skips bad samples catches this and nothing else.

    Attributes:
        sample_id: the user's id, or the row number where that is all that is known, or None.
        file: the file at fault: of the conversations, or an image or a video.
    """

    def __init__(self, message: str, sample_id: Any = None, file: str | None = None) -> None:
        super().__init__(message)
        self.sample_id, self.file = sample_id, file

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.sample_id, self.file)


class _Embedded(str):
    """The path of a file that a data set held inside, and that we wrote out: no user chose it."""


def parse_sample(row: Any, root: Path, origin: str, follow_links: bool = False) -> dict[str, Any]:
    """Checks one sample and brings it into the form of the table.

    Args:
        row: {"id", "image" | "video": str or list, "conversations": [{"from", "value"}]}, or "messages" with
            [{"role", "content"}], or VideoChat2's "QA" with [{"i", "q", "a"}] (instruction, question, answer); "images"
            and "videos" are understood as well. `<image>` and `<video>` in a text say where the media stand; where no
            text holds one, they stand before the first question. "start" and "end" are seconds, of one video.
        root: absolute; media are looked for in it and nowhere else.
        follow_links: take links inside of it that lead out of it.
        origin: the file that the sample comes from, for messages.

    Returns:
        {"id": str, "messages": JSON, "images": [str], "videos": [str]}

    Raises:
        BadSample: naming `origin`, the sample, the field, what was found and what was expected.
    """
    name = str(row["id"]) if isinstance(row, Mapping) and "id" in row else None

    def bad(field: str, found: str, expected: str, file: str = origin) -> BadSample:
        return BadSample(f"{origin}: sample {name!r}, {field}: found {found}, expected {expected}.", name, file)

    if not isinstance(row, Mapping):
        raise bad("the sample", _kind(row), "an object with id, image or video, and conversations")
    messages, inline = _messages(row, bad)
    listed = {what: _paths(row, what, bad) for what in ("image", "video")}
    for what, key in (("image", "images"), ("video", "videos")):
        if inline[what] and listed[what]:
            raise bad(key, "paths both here and inside the messages", "either")
        listed[what] = listed[what] or inline[what]
    if "file_name" in row and not listed["image"] and not listed["video"]:
        ending = Path(str(row["file_name"])).suffix.lower()
        listed["image" if ending in IMAGE_ENDINGS and ending != ".gif" else "video"] = [str(row["file_name"])]
    _place(messages, listed, bad)
    _set_clip(messages, row, bad)
    resolve = functools.partial(_resolve, root=root, bad=bad, follow_links=follow_links)
    files = {what: [resolve(value, what) for value in values] for what, values in listed.items()}
    written = json.dumps(messages, ensure_ascii=False)
    try:
        f"{name}{written}{files}".encode()
    except UnicodeEncodeError as error:
        raise bad("a text", f"half a character ({error.object[error.start]!a})", "valid Unicode") from None
    return {"id": name, "messages": written, "images": files["image"], "videos": files["video"]}


def _messages(row: Mapping, bad: Any) -> tuple[list[dict], dict[str, list[str]]]:
    """Turns as chat messages, and the media paths that stand inside them."""
    if row.get("QA") is not None:
        return qa_messages(row["QA"], bad), {"image": [], "video": []}
    field = "conversations" if row.get("conversations") is not None else "messages"
    turns = row.get(field)
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise bad(field, f"a string that is no JSON ({turns[:40]!r})", "a list of turns") from None
    if not isinstance(turns, list) or not turns:
        raise bad(field, "nothing" if turns is None else _kind(turns), 'a list of turns: [{"from", "value"}, ...]')
    inline: dict[str, list[str]] = {"image": [], "video": []}
    messages = []
    for index, turn in enumerate(turns):
        where = f"{field}[{index}]"
        if not isinstance(turn, Mapping):
            raise bad(where, _kind(turn), 'an object with "from" and "value" (or "role" and "content")')
        role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(role, str) or role not in _ROLES:
            raise bad(f"{where}.from", repr(role), f"one of {', '.join(_ROLES)}")
        items = _items(content, where, inline, bad)
        if _ROLES[role] == "assistant":
            if not any(item.get("text", "").strip() for item in items):
                raise bad(where, "an empty answer", "text")
            if any(item["type"] != "text" for item in items):
                raise bad(where, "an image or a video in an answer", "text only")
        elif not items:
            raise bad(where, "an empty turn", "text, an image or a video")
        messages.append({"role": _ROLES[role], "content": items})
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise bad(field, "no answer", "at least one turn of gpt (assistant)")
    if "user" not in roles[: roles.index("assistant")]:
        raise bad(field, "an answer before any question", "a turn of human (user) first")
    if roles[-1] != "assistant":
        raise bad(field, f"a last turn of {roles[-1]}", "an answer at the end (drop the last question)")
    return messages, inline


def qa_messages(qa: Any, bad: Any) -> list[dict]:
    """VideoChat2's [{"i", "q", "a"}] as chat messages.

    The first instruction is the system message; the original reads no other. An empty question is no turn: the answer
    follows the video, or the answer before it. The original shuffles the list anew in every epoch; here it stays.
    """
    if not isinstance(qa, list) or not qa:
        raise bad("QA", _kind(qa), 'a list of questions: [{"i", "q", "a"}, ...]')
    messages: list[dict] = []
    for index, pair in enumerate(qa):
        if not isinstance(pair, Mapping):
            raise bad(f"QA[{index}]", _kind(pair), 'an object with "q" and "a" (and "i")')
        texts = {}
        for key, default in (("i", ""), ("q", None), ("a", None)):
            texts[key] = pair.get(key, default)
            if not isinstance(texts[key], str):
                raise bad(f"QA[{index}].{key}", "nothing" if texts[key] is None else _kind(texts[key]), "text")
        if not texts["a"].strip():
            raise bad(f"QA[{index}].a", "an empty answer", "text")
        if index == 0 and texts["i"].strip():
            messages.append({"role": "system", "content": _text(texts["i"])})
        if index == 0 or texts["q"].strip():
            messages.append({"role": "user", "content": _text(texts["q"])})
        messages.append({"role": "assistant", "content": _text(texts["a"])})
    return messages


def _text(text: str) -> list[dict]:
    return [{"type": "text", "text": text}] if text.strip() else []


def _clip(fields: Mapping, where: str, bad: Any) -> dict[str, float]:
    """{"start", "end"} in seconds, or {} where neither is given."""
    given = {key: fields[key] for key in ("start", "end") if fields.get(key) is not None}
    if not given:
        return {}
    for key in ("start", "end"):
        value = given.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
            found = "nothing" if value is None else repr(value)
            raise bad(f"{where}{key}", found, "seconds, as a number, with both start and end")
    if not 0 <= given["start"] < given["end"]:
        raise bad(f"{where}start", f"a clip from {given['start']:g} s to {given['end']:g} s", "0 <= start < end")
    return {key: float(value) for key, value in given.items()}


def _set_clip(messages: list[dict], row: Mapping, bad: Any) -> None:
    """Writes the row's start and end to its video."""
    clip = _clip(row, "", bad)
    if not clip:
        return
    videos = [item for message in messages for item in message["content"] if item["type"] == "video"]
    if len(videos) != 1:
        raise bad("start", f"a clip and {len(videos)} videos", "one video (or start and end inside its message)")
    videos[0].update(clip)


def _items(content: Any, where: str, inline: dict[str, list[str]], bad: Any) -> list[dict]:
    """The content of one turn as [{"type": "text", "text"}, {"type": "image"}, {"type": "video"}]; fills `inline`."""
    if isinstance(content, str):
        parts = _TAG.split(content)
        # Space beside a tag is no text. (Not in the pattern: a megabyte of spaces would take it hours.)
        parts = [p if i % 2 else _trimmed(p, i > 0, i < len(parts) - 1) for i, p in enumerate(parts)]
        items = [{"type": part} if i % 2 else {"type": "text", "text": part} for i, part in enumerate(parts)]
        return [item for item in items if item["type"] != "text" or item["text"].strip()]
    if not isinstance(content, list):
        raise bad(where, "no text" if content is None else _kind(content), "text")
    items = []
    for item in content:
        what = item.get("type") if isinstance(item, Mapping) else None
        if what == "text" and isinstance(item.get("text"), str):
            if item["text"].strip():
                items.append({"type": "text", "text": item["text"]})
        elif what in ("image", "video"):
            path = next((item[key] for key in (what, "path", "url") if item.get(key) is not None), None)
            if path is not None:
                if not isinstance(path, str):
                    raise bad(f"{where}.{what}", _kind(path), "a path")
                inline[what].append(path)
            items.append({"type": what} | _clip(item, where, bad) if what == "video" else {"type": what})
        else:
            raise bad(where, f"content {str(item)[:60]!r}", '{"type": "text" | "image" | "video", ...}')
    return items


def _trimmed(text: str, left: bool, right: bool) -> str:
    text = text.lstrip() if left else text
    return text.rstrip() if right else text


def _paths(row: Mapping, what: str, bad: Any) -> list[str]:
    """The media paths under `image` or `images` (`video` or `videos`)."""
    keys = [key for key in (what, what + "s") if row.get(key) is not None]
    if len(keys) > 1:
        raise bad(what, f"both {keys[0]} and {keys[1]}", "one of them")
    if not keys:
        return []
    values = row[keys[0]] if isinstance(row[keys[0]], list) else [row[keys[0]]]
    paths = []
    for value in values:
        if isinstance(value, Mapping) and "bytes" in value:  # an Image or a Video of `datasets`, not decoded
            value = _Embedded(keep_bytes(value["bytes"], value.get("path"))) if value["bytes"] else value.get("path")
        if not isinstance(value, str) or not value.strip():
            raise bad(
                keys[0], _kind(value) if not isinstance(value, str) else "an empty path", "a path, or a list of paths"
            )
        paths.append(value)
    return paths


def _place(messages: list[dict], listed: dict[str, list[str]], bad: Any) -> None:
    """Makes the messages refer to each listed file once, in place."""
    items = [item for message in messages for item in message["content"]]
    tags = [item for item in items if item["type"] != "text"]
    if not tags:
        seats = [{"type": what} for what in ("image", "video") for _ in listed[what]]
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = seats + first["content"]
        return
    if not listed["image"] and len(tags) == len(listed["video"]):  # some video data say <image> for a video
        for tag in tags:
            tag["type"] = "video"
        return
    for what in ("image", "video"):
        seats = sum(tag["type"] == what for tag in tags)
        if seats != len(listed[what]):
            raise bad(
                what, f"{len(listed[what])} files and {seats} <{what}> in the text", "as many of one as of the other"
            )


def _resolve(value: str, what: str, root: Path, bad: Any, follow_links: bool) -> str:
    """An absolute path inside `root` of a file that exists."""
    if isinstance(value, _Embedded):
        return str(value)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", value):
        raise bad(what, f"an address ({value[:80]})", "a local file: download it first")
    full = os.path.normpath(os.path.join(root, value))
    if "\0" in value or os.path.commonpath([full, root]) != str(root):
        raise bad(
            what, f"{value!r}, which lies outside of the media folder {root}", "a path inside it (see media_root)"
        )
    try:
        mode = os.stat(full).st_mode
    except (OSError, ValueError) as error:
        found = f"no file at {full}" + ("" if isinstance(error, FileNotFoundError) else f" ({error})")
        raise bad(what, found, f"the {what} there (paths are relative to media_root, {root})", full) from None
    if what == "image" and stat.S_ISDIR(mode):
        raise bad(what, f"a folder at {full}", "an image (a folder of frames goes under `video`)", full)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise bad(what, f"a pipe, a socket or a device at {full}", f"the {what} there", full)
    target, inside = _real(full), _real_folder(root)
    if not follow_links and os.path.commonpath([target, inside]) != inside:
        raise bad(
            what,
            f"{value!r}, a link out of the media folder {root} to {target}",
            "a file inside it, or leave to follow links (follow_links=True, --follow-links)",
            full,
        )
    return full


@functools.lru_cache(maxsize=65536)
def _real_folder(folder: str | Path) -> str:
    return os.path.realpath(folder)


def _real(path: str) -> str:
    """The file that a path leads to; folders are looked up once."""
    if os.path.islink(path) or os.path.isdir(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(os.path.dirname(path)), os.path.basename(path))


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
