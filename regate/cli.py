"""The command line: `regate reference`, `regate train`, `regate show`.

    regate reference --model PATH --data train.json --output data/scored
    regate train --model PATH --data data/scored --output runs/first
    regate show --data data/scored --index 0

Here are the options; what they do is in `regate.commands`, imported only when a command runs.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(kw_only=True)
class Reference:
    """Score conversations with the text-only teacher and save them with the losses.

    Run it again after an interruption: it goes on where it was.
    """

    model: str
    """The model to be trained: a folder or a name on the hub. Its processor makes the tokens."""
    data: Path
    """Conversations: JSON, JSONL, or a folder (datasets, parquet, metadata.jsonl)."""
    output: Path
    """The folder to write."""
    teacher: str | None = None
    """Another language model with the same tokenizer. Left out: the model's own language backbone."""
    media_root: Path | None = None
    """The folder that images and videos lie in. Left out: the folder of the data."""
    follow_links: bool = False
    """Read files outside of that folder, too, that links in it lead to."""
    max_length: int | None = None
    """Cut conversations to so many tokens."""
    num_frames: int = 8
    """Frames of each video."""
    attend_placeholders: bool = False
    """Let the teacher attend to the (blank) visual positions."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """Stop at a sample that cannot be used, or log it and leave it out."""
    batch_tokens: int = 16384
    """Tokens a batch of the teacher: less if memory runs out."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the teacher's weights; auto: as they are stored."""
    cache_frames: Path | None = None
    """A folder to keep decoded video frames in: training with the same --cache-frames does not decode again."""
    cache_gb: float = 100.0
    """Limit of that folder, in 1e9 bytes."""
    overwrite: bool = False
    """Replace what is in the output folder."""


@dataclasses.dataclass(kw_only=True)
class Train:
    """Train on scored conversations.

    Run it again after an interruption: it goes on from the last complete checkpoint in the output folder.
    """

    model: str
    """The model to train: a folder or a name on the hub."""
    data: Path
    """What `regate reference` wrote; for the policies dense and random, conversations as they are will do."""
    output: Path
    """The folder for checkpoints, logs and, in `final`, the trained model with its processor."""

    keep_ratio: float = 0.5
    """p: share of the answer tokens that sparse steps keep, in (0, 1]."""
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 0.5
    """Weight of the teacher's loss against the student's running loss."""
    cycle: int = 128
    """C: steps of a cycle."""
    dense_steps: int = 16
    """F: dense steps at the head of each cycle."""
    gate_warmup_steps: int = 100
    """Dense steps before the first cycle."""
    keep_ratio_final: float | None = None
    """Beyond the paper: the share kept in sparse steps moves from --keep-ratio to this one over the run."""
    gate_cooldown_steps: int = 0
    """Beyond the paper: dense steps at the end of the run."""
    visual_keep_ratio: float = 1.0
    """Beyond the paper: share of visual positions computed in sparse steps, drawn at random."""
    beta: float = 0.9
    """Decay of the student's running loss."""
    combine: Literal["convex", "additive"] = "convex"
    """(1 - lambda) m + lambda l_ref, or m + lambda l_ref."""
    active_set: Literal["predictors", "predictors+kept", "kept-passthrough", "kept-unsupervised", "prefix"] = (
        "predictors"
    )
    """Which answer positions are computed for the kept targets."""
    policy: str = "regate"
    """What chooses targets: regate, dense (all), random, loss_only (nothing is elided)."""
    attention_path: Literal["auto", "padded", "packed", "flex"] = "auto"
    """How attention runs on the computed positions (docs/gpu.md)."""
    loss_path: Literal["auto", "logits", "chunked", "liger", "cce"] = "auto"
    """How losses come out of the head (docs/gpu.md)."""
    compile_decoder: bool = False
    """torch.compile the decoder, once for all lengths."""
    teacher: str | None = None
    """Accept reference losses of the teacher with this fingerprint. Left out: of the teacher that `regate reference`
    was given, or else of the model's own language backbone."""
    trace_samples: tuple[int, ...] = ()
    """sample_ids whose losses, scores and decisions are written to trace.parquet."""

    media_root: Path | None = None
    """The folder that images and videos lie in, where the data are conversations as they are."""
    follow_links: bool = False
    """Read files outside of that folder, too, that links in it lead to."""
    max_length: int | None = None
    """Cut conversations to so many tokens. Left out: as the data were scored."""
    num_frames: int | None = None
    """Frames of each video. Left out: as the data were scored, or 8."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """Stop at a sample that cannot be used, or log it and leave it out."""
    workers: int | None = None
    """Processes that load data, a rank. Left out: 0 on the CPU, where they would take cores from the training; with a
    GPU the rank's share of the cores less one, at most 8."""
    cache_frames: Path | None = None
    """A folder to keep decoded video frames in, for this and later runs."""
    cache_vision: Path | None = None
    """A folder to keep the features of a frozen vision tower in, for later epochs and runs: neither videos nor the
    tower are touched again. Needs --freeze-vision or --lora-r."""
    cache_gb: float = 100.0
    """Limit of each of these folders, in 1e9 bytes."""

    learning_rate: float = 1e-5
    lr_scheduler: str = "cosine"
    """Any of transformers' schedules."""
    lr_warmup_steps: float = 0.03
    """Steps until the full learning rate; below 1: a share of all steps."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int = -1
    """Optimizer steps; overrides epochs where it is positive."""
    batch_size: int = 1
    """Samples a device and micro-batch."""
    accumulation: int = 1
    """Micro-batches an optimizer step."""
    bf16: bool = False
    """Compute in bfloat16 (weights stay in --dtype)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the weights; auto: as they are stored."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    freeze_vision: bool = False
    """Leave the vision encoder as it is."""
    lora_r: int = 0
    """Rank of LoRA on the decoder's linear layers; all else is frozen. 0: full fine-tuning. Needs peft."""
    lora_alpha: int | None = None
    """Left out: twice the rank."""
    lora_dropout: float = 0.0
    seed: int = 42
    cpu: bool = False
    """Use no GPU."""

    save_steps: int = 500
    """Steps from checkpoint to checkpoint."""
    keep_checkpoints: int = 2
    """Older checkpoints are deleted."""
    logging_steps: int = 10


@dataclasses.dataclass(kw_only=True)
class Show:
    """Show one scored sample: its answer tokens, their reference losses, and which of them a ratio keeps."""

    data: Path
    """What `regate reference` wrote."""
    index: int = 0
    """The row."""
    keep_ratio: float = 0.5
    """Share of the answer tokens that are kept, by reference loss alone."""
    model: str | None = None
    """Where the processor is. Left out: the model that the data were scored for."""


Command = (
    Annotated[Reference, tyro.conf.subcommand("reference")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)


def main(argv: list[str] | None = None) -> None:
    """Runs one command; exits with 2 and one message where the user can mend what is wrong, with 1 where training
    diverged, with 130 on Ctrl-C, with 143 on SIGTERM while it trained, which saves a checkpoint first. With
    REGATE_DEBUG set, errors show their traceback."""
    args: Reference | Train | Show = tyro.cli(
        Command,  # type: ignore[arg-type]
        args=argv,
        prog="regate",
        description="Train multimodal language models on the answer tokens that are worth it.",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    from regate import commands

    try:
        if isinstance(args, Reference):
            commands.reference(args)
        elif isinstance(args, Train):
            commands.train(args)
        else:
            commands.show(args)
    except (ValueError, OSError) as error:
        _leave(error, 2)
    except FloatingPointError as error:
        _leave(error, 1)
    except KeyboardInterrupt:
        print("\nregate: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _leave(error: Exception, status: int) -> None:
    if os.environ.get("REGATE_DEBUG"):
        raise error
    print(f"regate: error: {error}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
