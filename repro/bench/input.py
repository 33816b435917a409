"""What a step waits for: samples a second and the wait for data, with and without workers and caches.

    make bench-input

Trains on real mp4 files (clips of the embedded world, enlarged and slowed down to the size of web video), through the
trainer and collator that a user has. The ways of reading are run in turn, round after round, each with warm caches
("first epoch" fills one). Writes a record, prints its table.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

from eval import world
from eval.machine import ROOT, environment
from regate import ReGateConfig, ReGateTrainer
from regate.accounting import read_steps
from regate.commands import add_lora
from regate.conversations import load_conversations
from regate.gate import METHOD_VERSION
from repro.bench.material import STUDENT
from repro.bench.record import BenchRecord, write
from repro.bench.run import now
from repro.bench.table import input_table

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>\n' }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Built = tuple[Any, Any]  # model, processor


def write_videos(folder: Path, samples: int, enlarge: int, slow: int) -> Path:
    """``samples`` conversations about clips of 8 * ``slow`` frames of (64 * ``enlarge``) ** 2 pixels; their JSON."""
    rows = []
    for number in range(samples):
        scene = world.sample_scene(70_000 + number, "train")
        turn = world.conversation(scene, random.Random(number))
        frames = world.render(scene)
        with av.open(str(folder / f"{number:04d}.mp4"), "w") as container:
            stream: Any = container.add_stream("libx264", rate=4 * slow, options={"preset": "veryfast", "crf": "23"})
            stream.height, stream.width, stream.pix_fmt = (
                frames.shape[1] * enlarge,
                frames.shape[2] * enlarge,
                "yuv420p",
            )
            for frame in frames.repeat(enlarge, 1).repeat(enlarge, 2).repeat(slow, 0):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        talk = [{"from": "human", "value": f"<video>\n{turn.question}"}, {"from": "gpt", "value": turn.answer}]
        rows.append({"id": str(number), "video": f"{number:04d}.mp4", "conversations": talk})
    path = folder / "train.json"
    path.write_text(json.dumps(rows))
    return path


def micro() -> Built:
    """The prepared micro InternVL: 64-pixel frames, everything but the tower trains."""
    model = AutoModelForImageTextToText.from_pretrained(STUDENT, dtype=torch.float32)
    model.get_encoder(modality="image").requires_grad_(False)
    return model, AutoProcessor.from_pretrained(STUDENT)


def onevision() -> Built:
    """LLaVA-OneVision's class with random weights: SigLIP of ViT-S's size at 224 pixels, Qwen2 with a third of
    SmolLM2-135M's layers and a small vocabulary, LoRA on the decoder."""
    t = transformers
    tokenizer = AutoProcessor.from_pretrained(STUDENT).tokenizer
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    square, grid = {"height": 224, "width": 224}, [[224, 224]]
    processor = t.LlavaOnevisionProcessor(
        image_processor=t.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        video_processor=t.LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=196,
        vision_feature_select_strategy="full",
        chat_template=_CHATML,
    )
    vision = {"model_type": "siglip_vision_model", "hidden_size": 384, "intermediate_size": 1536, "patch_size": 16}
    vision |= {"num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 224, "vision_use_head": False}
    text = {"model_type": "qwen2", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 10}
    text |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": len(tokenizer)}
    config = t.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    torch.manual_seed(0)
    return add_lora(t.LlavaOnevisionForConditionalGeneration(config), 8), processor


BUILDERS: dict[str, Callable[[], Built]] = {"micro": micro, "onevision": onevision}


def measure_input(
    model: str = "micro",
    samples: int = 64,
    batch_size: int = 4,
    rounds: int = 3,
    num_frames: int = 8,
    workers: int = 2,
    enlarge: int = 6,
    slow: int = 12,
    device: str = "cpu",
) -> dict[str, Any]:
    """Samples a second of each way of reading; see the module.

    Args:
        model: a name in BUILDERS.
        samples: videos; a run is one epoch of them.
        rounds: how often each way is run.
        enlarge, slow: the videos have (64 * enlarge) ** 2 pixels and 8 * slow frames.
        device: "cpu" or "cuda".

    Returns:
        {"samples_per_second": {way: one a round}, "waiting": {way: share of the time waiting for data}, "cpu_seconds":
        {way: CPU seconds a sample of this process and its workers, the run's start included}}
    """
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        f"{workers} workers": {"dataloader_num_workers": workers},
        "cached frames": {"cache_frames": "frames"},
        "cached vision, first epoch": {"cache_vision": "new"},
        "cached vision": {"cache_vision": "vision"},
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        folder = Path(temporary)
        rows = load_conversations(write_videos(folder, samples, enlarge, slow))
        for number in range(rounds + 1):
            for name, options in ways.items():
                if not number and name not in ("cached frames", "cached vision"):
                    continue  # the first round only fills these
                options = {k: str(folder / v) if isinstance(v, str) else v for k, v in options.items()}
                if options.get("cache_vision", "").endswith("new"):
                    options["cache_vision"] += f"-{number}"
                built, processor = BUILDERS[model]()
                args = ReGateConfig(
                    output_dir=str(folder / "run"),
                    policy="dense",
                    num_frames=num_frames,
                    per_device_train_batch_size=batch_size,
                    num_train_epochs=1,
                    report_to=[],
                    save_strategy="no",
                    disable_tqdm=True,
                    use_cpu=device == "cpu",
                    **options,
                )
                trainer = ReGateTrainer(built, args, train_dataset=rows, processing_class=processor)
                before = sum(os.times()[:4])
                trainer.train()
                work = sum(os.times()[:4]) - before
                steps = read_steps(folder / "run" / "steps.jsonl")[1:]  # the first starts workers and checks the cache
                seconds = sum(step["seconds"] for step in steps)
                waited = sum(step["data_seconds"] for step in steps)
                if number:
                    speed = sum(step["samples"] for step in steps) / seconds
                    found[name].append((speed, waited / seconds, work / samples))
    names = ("samples_per_second", "waiting", "cpu_seconds")
    return {name: {way: [run[at] for run in runs] for way, runs in found.items()} for at, name in enumerate(names)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the trainer's own lines on standard output."""
    transformers.utils.logging.set_verbosity_error()
    logger = logging.getLogger("regate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(BUILDERS), default=sorted(BUILDERS))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--enlarge", type=int, default=6, help="videos have (64 times this) ** 2 pixels")
    parser.add_argument("--slow", type=int, default=12, help="videos have 8 times so many frames")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = vars(parser.parse_args(argv))
    models, runs = args.pop("models"), args.pop("runs")
    made, started = environment(ROOT, threads=torch.get_num_threads()), now()
    measured = {model: measure_input(model, **args) for model in models}
    config = args | {"models": models, "method_version": METHOD_VERSION, "world_version": world.WORLD_VERSION}
    record = BenchRecord("input", args["device"], 0, config, started, now(), **made, measured=measured)
    path = write(record, runs / "bench")
    print(f"{input_table(record)}\nWritten: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
