"""The stock Trainer with a log of its steps, on any number of ranks and with accumulation: the baseline at paper scale.

What differs from Trainer: checkpoints are complete or not used (SafeTrainer), and each batch is counted as it goes by.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from regate.accounting import FlopModel, StepClock, StepLog, Tokens, causal_pairs, count_tokens, peak_memory_bytes
from regate.checkpoint import SafeTrainer
from regate.tokens import placeholder_token_ids


class StockTrainer(SafeTrainer):
    """Writes ``output_dir/steps.jsonl`` with the fields of ReGateTrainer's; logits are computed at all positions."""

    def __init__(self, *args: Any, processing_class: Any, **kwargs: Any):
        super().__init__(*args, processing_class=processing_class, **kwargs)
        model: Any = self.model
        self._flops = FlopModel.of(model.get_decoder(), model.get_output_embeddings())
        self._placeholders = torch.tensor(sorted(placeholder_token_ids(processing_class, model.config)))
        self._counts: list[Tensor] = []  # int64 [9] a micro-batch: Tokens, causal pairs, positions of the padded batch
        self.step_log = StepLog(Path(self.args.output_dir) / "steps.jsonl")
        self.clock = StepClock()
        self.add_callback(self.clock)
        self.add_callback(_StepEnd(self))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        attended = inputs["attention_mask"].bool()
        counts = count_tokens(inputs["input_ids"], inputs["labels"], attended, self._placeholders.to(attended.device))
        extra = torch.stack([causal_pairs(attended), counts.new_tensor(attended.numel())])
        self._counts.append(torch.cat([counts, extra]))
        return super().training_step(model, inputs, *args, **kwargs)

    def _finish_step(self) -> None:
        """After the optimizer's step: counts of all ranks, one line of the log."""
        counts = torch.stack(self._counts).sum(0)
        self._counts = []
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, "sum")
        *kinds, pairs, positions = counts.tolist()
        tokens = Tokens(*kinds)
        if self.is_world_process_zero():
            self.step_log.add(
                step=self.state.global_step - 1,
                ratio=1.0,
                tokens=tokens,
                decoder_flops=self._flops.decoder_step(tokens.active, pairs),
                head_flops=self._flops.head_step(positions),
                seconds=self.clock.seconds[-1],
                peak_memory_bytes=peak_memory_bytes(),
                skipped=0,
            )

    def _rewind(self, step: int, checkpoint: str | None) -> None:
        self._counts = []
        if self.is_world_process_zero():
            self.step_log.rewind(step, checkpoint)

    def _add_to_checkpoint(self, directory: Path) -> None:
        if self.is_world_process_zero():
            self.step_log.save_state(directory)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.is_world_process_zero():
            self.step_log.flush()
        super()._save_checkpoint(model, trial)

    def train(self, *args: Any, **kwargs: Any):
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.is_world_process_zero():
                self.step_log.flush()


class _StepEnd(TrainerCallback):
    """Calls the trainer between the optimizer's step and logging or saving; after its StepClock."""

    def __init__(self, trainer: StockTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._finish_step()
