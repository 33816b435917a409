"""A thousand bad samples of twenty kinds, from a seed: conversations that are wrong, and files that are."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.faults import broken_files as files

MEGABYTE = 10**6


@dataclass(frozen=True)
class Case:
    """A bad sample.

    Attributes:
        kind, name: one of `KINDS`; the sample's id.
        content: what the JSON file holds: a list of samples, this one among them, or raw bytes.
        usable: it may also be used: it is odd, but it says what it is.
        whole_file: the file cannot be read without it, so it is refused whatever the policy.
    """

    kind: str
    name: str
    content: list[Any] | bytes
    usable: bool = False
    whole_file: bool = False


@dataclass
class Place:
    """Where cases put their files: ``root``, the data's folder, and ``outside``, which nobody may read."""

    root: Path
    outside: Path

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.outside.mkdir(parents=True, exist_ok=True)
        self.video = files.video(self.root / "good.mp4")
        self.image = files.image(self.root / "good.png")
        self.bomb = files.png(self.root / "bomb.png", 20_000, 20_000)
        self.long = files.long_video(self.root / "long.mp4", 100_000)
        self.secret = files.video(self.outside / "secret.mp4")
        self.secret_image = files.image(self.outside / "secret.png")
        (self.outside / "frames").mkdir(exist_ok=True)
        files.image(self.outside / "frames" / "0.png")

    def new(self, name: str) -> Path:
        """A path in the data's folder that is not there yet."""
        return self.root / name


def turns(question: str = "what happens ?", answer: str = "the ball moves .") -> list[dict[str, Any]]:
    """One question and its answer, as LLaVA writes them."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def sample(name: str, **fields: Any) -> dict[str, Any]:
    """A good sample, but for ``fields``."""
    return {"id": name, "conversations": turns()} | fields


def media(name: str, path: Path, rng: random.Random) -> dict[str, Any]:
    """A sample about a file, as a picture or as a video by its ending."""
    what = "image" if path.suffix in (".png", ".jpg") else "video"
    return sample(name, **{what: path.name if rng.random() < 0.5 else str(path)})


Kind = Callable[[str, random.Random, Place], Case]


def _truncated(name: str, rng: random.Random, place: Place) -> Case:
    return Case("", name, [media(name, files.cut(place.video, place.new(f"{name}.mp4"), rng), rng)])


def _empty(name: str, rng: random.Random, place: Place) -> Case:
    path = place.new(name + rng.choice([".mp4", ".png", ".jpg", ".webm"]))
    path.touch()
    return Case("", name, [media(name, path, rng)])


def _noise(name: str, rng: random.Random, place: Place) -> Case:
    return Case("", name, [media(name, files.noise(place.new(name + rng.choice([".mp4", ".png"])), rng), rng)])


def _wrong_ending(name: str, rng: random.Random, place: Place) -> Case:
    source, ending = rng.choice([(place.video, ".png"), (place.image, ".jpg"), (place.image, ".mp4"), (None, ".jpg")])
    path = place.new(name + ending)
    path.write_bytes(source.read_bytes() if source else b"hello, I am a text\n")
    return Case("", name, [media(name, path, rng)], usable=source == place.image)


def _tiny(name: str, rng: random.Random, place: Place) -> Case:
    size = rng.choice([(1, 1), (1, 2), (1, 500), (500, 1)])
    return Case("", name, [media(name, files.image(place.new(f"{name}.png"), size), rng)], usable=True)


def _huge(name: str, rng: random.Random, place: Place) -> Case:
    path = place.new(f"{name}.png")
    if rng.random() < 0.5:
        os.link(place.bomb, path)
    else:
        files.png(path, rng.choice([20_000, 60_000, 2**31 - 1]), rng.choice([20_000, 60_000]), real=False)
    return Case("", name, [media(name, path, rng)])


def _no_frames(name: str, rng: random.Random, place: Place) -> Case:
    return Case("", name, [media(name, files.without_frames(place.video, place.new(f"{name}.mp4")), rng)])


def _many_frames(name: str, rng: random.Random, place: Place) -> Case:
    path = place.new(f"{name}.mp4")
    if real := rng.random() < 0.2:
        os.link(place.long, path)
    else:
        files.claiming(place.video, path, rng.choice([100_000, 2**30, 2**32 - 1]))
    return Case("", name, [media(name, path, rng)], usable=real)


def _no_unicode(name: str, rng: random.Random, place: Place) -> Case:
    if rng.random() < 0.5:
        answer = rng.choice(["\ud800 half", "the \udfff ball", "\ude00\ud83d turned"])
        field = rng.choice(["answer", "question"])
        return Case("", name, [sample(name, conversations=turns(**{field: answer}))])
    raw = json.dumps([sample(name)]).encode()
    at = raw.index(b"ball") + rng.randrange(4)
    return Case("", name, raw[:at] + bytes([rng.choice([0xFF, 0xC0, 0xED, 0x80])]) + raw[at:], whole_file=True)


def _long_text(name: str, rng: random.Random, place: Place) -> Case:
    text = rng.choice(["a", "ball ", "\u0001", "<video", "한", "\n"])
    long = "the " + text * (MEGABYTE // len(text.encode())) + " end"
    return Case("", name, [sample(name, conversations=turns(**{rng.choice(["answer", "question"]): long}))])


def _missing(name: str, rng: random.Random, place: Place) -> Case:
    row, pick = sample(name), rng.randrange(5)
    if pick == 0:
        del row["conversations"]
    elif pick == 1:
        del row["conversations"][rng.randrange(2)]["value"]
    elif pick == 2:
        del row["conversations"][rng.randrange(2)]["from"]
    elif pick == 3:
        row["conversations"] = rng.choice([[], row["conversations"][:1], row["conversations"][1:]])
    else:
        row = {"id": name, "messages": [{"role": "user"}, {"content": "yes"}]}
    return Case("", name, [row])


_WRONG: tuple[Any, ...] = (7, -1, True, 2.5, {}, [[]], [3], {"a": 1}, [None], "", 10**400, [{"from": 1}])


def _types(name: str, rng: random.Random, place: Place) -> Case:
    row, value = sample(name, image="good.png"), rng.choice(_WRONG)
    field = rng.choice(["conversations", "image", "value", "from", "start"])
    if field in ("conversations", "image"):
        row[field] = value if value not in ([], {}) or field == "conversations" else 7
        if field == "image" and value == []:
            row[field] = 7
    elif field == "start":
        row |= {"video": "good.mp4", "start": rng.choice(["1", True, [], {}]), "end": 1.0}
        del row["image"]
    else:
        row["conversations"][1][field] = 7 if value == "" else value
    return Case("", name, [row])


def _escape(name: str, rng: random.Random, place: Place) -> Case:
    up = os.path.relpath(place.outside, place.root)
    path = rng.choice(
        [f"{up}/secret.mp4", str(place.secret), "../../../../../../etc/passwd", "/etc/passwd", f"a/../{up}/secret.mp4",
         f"file://{place.secret}", "http://127.0.0.1:9/x.mp4", "good.mp4\0", f"./{up}//secret.mp4", "/dev/zero",
         f"concat:{place.secret}|good.mp4", "/proc/self/environ", "~/x.mp4", "pipe:0", "x" * 5000, "..", f"{up}/frames"]
    )  # fmt: skip
    return Case("", name, [sample(name, **{rng.choice(["video", "image"]): path})])


def _link(name: str, rng: random.Random, place: Place) -> Case:
    pick = rng.randrange(6)
    path = place.new(f"{name}.mp4")
    if pick == 0:
        path.symlink_to(place.secret)
    elif pick == 1:
        path = place.new(f"{name}.png")
        path.symlink_to(os.path.relpath(place.secret_image, place.root))
    elif pick == 2:
        (place.new(f"{name}-far")).symlink_to(place.outside)
        path = place.new(f"{name}-far") / "secret.mp4"
    elif pick == 3:
        (between := place.new(f"{name}-between.mp4")).symlink_to(place.secret)
        path.symlink_to(between.name)
    elif pick == 4:
        path.symlink_to(rng.choice(["/dev/zero", "/proc/self/mem", "nowhere.mp4", path.name]))
    else:
        path = place.new(f"{name}-frames")
        path.mkdir()
        (path / "0.png").symlink_to(place.secret_image)
    return Case("", name, [sample(name, **{"image" if path.suffix == ".png" else "video": str(path)})])


def _no_file(name: str, rng: random.Random, place: Place) -> Case:
    return Case("", name, [media(name, files.no_file(place.new(name + rng.choice([".mp4", ".png"])), rng), rng)])


def _folder(name: str, rng: random.Random, place: Place) -> Case:
    path, pick = place.new(name + rng.choice([".mp4", ".png", ".jpg"])), rng.randrange(3)
    path.mkdir()
    if pick:
        files.image(path / "0.png")
        if pick == 2:
            files.image(path / "1.png", (9, 9))
            (path / "2.png").write_bytes(b"no picture")
    what = "video" if pick == 2 else rng.choice(["image", "image", "video"]) if pick == 0 else "image"
    return Case("", name, [sample(name, **{what: path.name})])


def _clip(name: str, rng: random.Random, place: Place) -> Case:
    nan, infinity = float("nan"), float("inf")
    start, end = rng.choice(
        [(nan, 1.0), (0.0, nan), (infinity, 1.0), (0.0, infinity), (-1.0, 1.0), (0.5, 0.1), (0.2, 0.2), (1e300, 1e301),
         (None, 1.0), (0.0, None), (99.0, 100.0)]
    )  # fmt: skip
    return Case("", name, [sample(name, video="good.mp4", start=start, end=end)])


def _nested(name: str, rng: random.Random, place: Place) -> Case:
    pick = rng.randrange(6)
    if pick == 0:
        deep = b"[" * 100_000 + b"]" * 100_000
        return Case("", name, b'[{"id": "%s", "conversations": %s}]' % (name.encode(), deep), whole_file=True)
    if pick == 1:
        return Case("", name, b'{"id": "%s", "conversations": %s}' % (name.encode(), b"9" * 9000), whole_file=True)
    if pick == 2:
        return Case("", name, json.dumps([sample(name)]).encode()[:-10], whole_file=True)
    row = [
        sample(name, conversations=[turns(), turns()]),
        sample(name, conversations=turns(answer=[["the ball"]])),  # type: ignore[arg-type]
        sample(name, image=[["good.png"]]),
    ][pick - 3]
    return Case("", name, [row])


def _playlist(name: str, rng: random.Random, place: Place) -> Case:
    path = place.new(name + rng.choice([".mp4", ".m3u8", ".png", ".jpg", ".txt", ".webm"]))
    return Case("", name, [media(name, files.playlist(path, place.secret, rng), rng)])


def _ids(name: str, rng: random.Random, place: Place) -> Case:
    other: Any = rng.choice([name, name, None, "", "  ", 1.5, True, [], {}])
    rows = [sample(name), sample(name) | {"id": other}]
    if other is None and rng.random() < 0.5:
        del rows[1]["id"]
    return Case("", name, rows, whole_file=True)


KINDS: dict[str, Kind] = {
    "truncated mp4": _truncated,
    "empty file": _empty,
    "noise or zeros in a file": _noise,
    "wrong ending": _wrong_ending,
    "picture of 1x1 and the like": _tiny,
    "picture of 20000x20000 and more": _huge,
    "video without frames": _no_frames,
    "video of 100,000 frames, real or claimed": _many_frames,
    "no Unicode": _no_unicode,
    "text of a megabyte": _long_text,
    "missing keys": _missing,
    "wrong types": _types,
    "path out of the data's folder": _escape,
    "link out of the data's folder": _link,
    "pipe or socket": _no_file,
    "folder in place of a file": _folder,
    "clip of no time": _clip,
    "nested or cut JSON": _nested,
    "list of other files": _playlist,
    "ids missing or repeated": _ids,
}


def cases(count: int, seed: int, place: Place) -> Iterator[Case]:
    """``count`` bad samples, the kinds in turn; their files are there when a case comes."""
    rng = random.Random(seed)
    for i in range(count):
        kind = list(KINDS)[i % len(KINDS)]
        made = KINDS[kind](f"bad-{i:04d}", rng, place)
        yield Case(kind, made.name, made.content, made.usable, made.whole_file)
