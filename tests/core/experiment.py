"""Small training runs on the tiny models, for identities of the trainer."""

from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import Trainer, TrainingArguments

from regate import ReGateConfig, ReGateTrainer, add_reference_losses
from tests.tiny import tiny_collate, tiny_model, tiny_rows

LENGTHS = [6, 11, 4, 9, 13, 7, 5, 10]


class TinyCollator:
    """Rows of a tiny data set (which hold only an index) -> a batch."""

    def __init__(self, kind: str, processor: Any, rows: list[dict], padding_side: str = "right"):
        self.kind, self.processor, self.rows, self.padding_side = kind, processor, rows, padding_side

    def __call__(self, features: list[dict]) -> dict:
        return tiny_collate(self.processor, [self.rows[f["index"]] for f in features], self.padding_side)


def tiny_data(kind: str, processor: Any, lengths: list[int] = LENGTHS) -> tuple[datasets.Dataset, list[dict]]:
    """A data set of token ids, labels and an index, and the rows the index points at."""
    rows = tiny_rows(kind, processor, lengths)
    columns = {name: [row[name].tolist() for row in rows] for name in ("input_ids", "labels")}
    return datasets.Dataset.from_dict({**columns, "index": list(range(len(rows)))}), rows


def arguments(output_dir: Path, cls: type = ReGateConfig, **kwargs: Any) -> Any:
    """Quiet, deterministic arguments for a CPU run."""
    defaults = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "seed": 3,
    }
    if issubclass(cls, ReGateConfig):
        defaults |= {"gate_warmup_steps": 1, "cycle": 4, "dense_steps": 1}
    return cls(**defaults | kwargs)


def experiment(
    kind: str,
    output_dir: Path,
    *,
    side: str = "right",
    lora: bool = False,
    evaluate: bool = False,
    attention: str = "sdpa",
    **kwargs: Any,
) -> ReGateTrainer:
    """A ReGateTrainer, not yet run, on the tiny model and data of ``kind``; ``attention`` is the decoder's."""
    model, processor = tiny_model(kind)
    model.get_decoder().config._attn_implementation = attention
    data, rows = tiny_data(kind, processor)
    data = add_reference_losses(data, model, processor)
    if lora:
        model = with_lora(model)
    collator = TinyCollator(kind, processor, rows, side)
    args = arguments(output_dir, **kwargs)
    return ReGateTrainer(model, args, collator, data, data if evaluate else None, processing_class=processor)


def stock(kind: str, output_dir: Path, *, side: str = "right", lora: bool = False, **kwargs: Any) -> Trainer:
    """The stock Trainer on the same model and data."""
    model, processor = tiny_model(kind)
    data, rows = tiny_data(kind, processor)
    model = with_lora(model) if lora else model
    collator = TinyCollator(kind, processor, rows, side)
    return Trainer(model, arguments(output_dir, TrainingArguments, **kwargs), collator, data)


def with_lora(model: Any) -> Any:
    """LoRA on the decoder's projections only (T30: bare names would adapt the vision tower, too)."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    pattern = r".*language_model.*\.(q_proj|v_proj|down_proj)" if "language_model" in str(
        [n for n, _ in model.named_modules()]
    ) else r".*text_model.*\.(q_proj|v_proj|down_proj)"  # fmt: skip
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=pattern, init_lora_weights="gaussian"))


def losses(trainer: Trainer) -> list[float]:
    """Logged training losses."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Trainable weights, copied."""
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
