"""ReGateTrainer: transformers' Trainer in which each step computes only what the gate keeps.

What differs from Trainer: (1) each batch is gated before it is counted, so that the loss is divided by the supervised
targets of the whole optimizer step; (2) logits are computed only where a supervised target is predicted, in dense steps
too, and in sparse steps the decoder runs on active positions only; (3) the difficulty EMA is updated after each step
and saved with it. Checkpoints are SafeTrainer's: complete or not used, and resuming loads every weight or fails.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import ProcessorMixin, TrainerCallback

from regate.accounting import FlopModel, StepClock, StepLog, Tokens, causal_pairs, count_tokens, peak_memory_bytes
from regate.checkpoint import SafeTrainer, last_complete
from regate.collate import NO_PLACE, OF_COLLATOR, OWN_COLUMNS, GateCollator, intact
from regate.config import ReGateConfig
from regate.difficulty import DifficultyBuffer, Observations
from regate.elision import Elision
from regate.exchange import Exchange, Report, merged
from regate.fillers import find_fillers
from regate.gate import POLICIES, Gate, decide, signals_of
from regate.paths.select import select_paths
from regate.reference import weights_fingerprint
from regate.reference_column import check_reference, encoding_identity
from regate.schedule import keep_ratio_at
from regate.scoring import IGNORE, ordinals, shift_labels, spread
from regate.tail import rows_of_its_own
from regate.tokens import placeholder_token_ids, special_token_ids
from regate.trace import Trace

logger = logging.getLogger(__name__)
_CONVERSATION_COLUMNS = ("id", "messages", "images", "videos")
_KEY = "_gated"  # where a batch carries its Gated through Trainer


@dataclass(frozen=True)
class Gated:
    """One micro-batch's gate and what is needed to account for it; tensors [B, L] in predictor space, [B] ids."""

    gate: Gate
    sample: Tensor | None
    shifted: Tensor
    ema: Tensor
    reference: Tensor
    has_visual: bool


@dataclass
class Step:
    """What the micro-batches of one optimizer step add up to."""

    epoch: int
    ratio: float
    visual_ratio: float = 1.0
    counts: list[Tensor] = field(default_factory=list)  # int64 [10]: Tokens, causal pairs, skipped, samples
    sums: list[Tensor] = field(default_factory=list)  # float64 [8]: four (sum, count) pairs
    observations: list[Observations] = field(default_factory=list)


class ReGateTrainer(SafeTrainer):
    """Trainer with ReGATE's gate. Arguments are Trainer's; ``args`` is a :class:`regate.ReGateConfig`.

    ``train_dataset`` is a ``datasets.Dataset`` that :func:`regate.add_reference_losses` has scored (policies ``dense``
    and ``random`` need no scores). With conversations as rows the collator is built from ``processing_class``.
    ``output_dir/steps.jsonl`` logs every step, ``output_dir/trace.parquet`` what was decided about ``trace_samples``;
    each function in ``observers`` is called with the optimizer step and every micro-batch's :class:`Gated`.

    Raises ValueError before the first step for data that does not fit (see ``reference_column``),
    :class:`regate.UnsupportedModel` for models it would get wrong, FloatingPointError if a loss is not finite.
    """

    args: ReGateConfig
    loss_is_scaled_for_ga = True
    data_collator: Any
    _signature_columns: Any

    def __init__(
        self,
        model: nn.Module,
        args: ReGateConfig,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(args, ReGateConfig):
            raise ValueError(f"args must be a ReGateConfig; got {type(args).__name__}")
        for name in ("model_init", "compute_loss_func"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not supported: the gate is bound to one model and its own loss")
        columns = getattr(train_dataset, "column_names", None) or []
        if data_collator is None and "messages" in columns:
            if not isinstance(processing_class, ProcessorMixin):
                raise ValueError("rows are conversations: pass the model's processor as processing_class")
            from regate.data import ConversationCollator
            from regate.media_cache import FrameCache

            frames = FrameCache(args.cache_frames, args.cache_gb) if args.cache_frames else None
            data_collator = ConversationCollator(
                processing_class, args.max_length, args.num_frames, on_bad_sample=args.on_bad_sample, frames=frames
            )
        elif args.cache_frames:
            raise ValueError("cache_frames works in the trainer's own collator: give yours frames=FrameCache(...)")
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.args.n_gpu > 1:
            raise ValueError(f"{self.args.n_gpu} GPUs in one process: launch one process a GPU (accelerate launch)")
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            raise ValueError(
                "context and sequence parallelism split the sequence that the gate compacts: not supported"
            )
        self.vision: Any = None
        if args.cache_vision:
            from regate.vision_cache import VisionCache

            self.vision = VisionCache.of_trainer(self)
        self.data_collator = GateCollator(self.data_collator, self._fillers())
        # The stock count of targets sees the gated labels, whatever the model's forward accepts.
        self.model_accepts_loss_kwargs = True
        self.policy = POLICIES[args.policy]
        self.buffer = self._make_buffer(columns)
        paths = select_paths(
            self.model, args.attention_path, args.loss_path, args.compile_decoder, args.device, args.bf16 or args.fp16
        )
        self.elision = Elision(self.model, paths)
        logger.info("%s, attn_implementation %s", paths, self.elision.decoder.config._attn_implementation)
        config = self.model.config
        if processing_class is None and self.policy.score is not None:
            raise ValueError("pass the processor or tokenizer as processing_class: the gate never drops its markers")
        self._special_ids = _ids(special_token_ids(processing_class, config) if processing_class else set())
        self._placeholder_ids = _ids(placeholder_token_ids(processing_class, config))
        self._flops = FlopModel.of(self.elision.decoder, self.elision.head)
        self._step = Step(epoch=0, ratio=1.0)
        self._last_entry: dict[str, Any] = {}
        self.num_skipped = 0
        self._exchange = Exchange(self.accelerator)
        self.step_log = StepLog(Path(args.output_dir) / "steps.jsonl")
        self.observers: list[Callable[[int, Gated], None]] = []
        self.trace = Trace(Path(args.output_dir) / "trace.parquet", args.trace_samples) if args.trace_samples else None
        self.clock = StepClock()
        self.add_callback(self.clock)
        self.add_callback(_StepEnd(self))

    # ---- data ----------------------------------------------------------------------------------------------------

    def _make_buffer(self, columns: list[str]) -> DifficultyBuffer | None:
        if self.train_dataset is None or not (self.policy.needs_reference or "reference_losses" in columns):
            return None
        if not isinstance(self.train_dataset, datasets.Dataset):
            raise ValueError(f"train_dataset must be a datasets.Dataset; got {type(self.train_dataset).__name__}")
        expected = {"teacher": self.args.teacher} if self.args.teacher else {}
        if not self.args.teacher and self.policy.needs_reference:
            expected["teacher"] = weights_fingerprint(self.model.get_decoder(), self.model.get_output_embeddings())
        if self.policy.needs_reference:
            expected["measure"] = self.policy.measure
        expected |= encoding_identity(columns, self.processing_class, self.args.max_length, self.args.num_frames)
        counts = check_reference(self.train_dataset, expected)
        sample_ids = self.train_dataset.with_format("numpy", columns=["sample_id"])[:]["sample_id"]
        return DifficultyBuffer(sample_ids, counts, self.args.beta)

    def _fillers(self) -> dict[str, dict[str, Any]]:
        zero3 = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        sharded = self.accelerator.num_processes > 1 and (self.is_fsdp_enabled or zero3)
        if not sharded or self.vision is not None or not isinstance(self.train_dataset, datasets.Dataset):
            return {}
        return find_fillers(self.train_dataset, GateCollator(self.data_collator))

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        if self.vision is not None and (is_training or self.vision.rows.tower is None):
            self.vision.bind(self.args.device)  # after a checkpoint was loaded
        return super()._get_dataloader(*args, is_training=is_training, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return super()._prepare_inputs(intact(inputs))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = [*self._signature_columns, *OWN_COLUMNS, *_CONVERSATION_COLUMNS]
        self._signature_columns = list(dict.fromkeys(columns))

    # ---- gate ----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        ratio = keep_ratio_at(
            self.state.global_step,
            keep_ratio=self.args.keep_ratio,
            warmup=self.args.gate_warmup_steps,
            cycle=self.args.cycle,
            dense_steps=self.args.dense_steps,
            final_ratio=self.args.keep_ratio_final,
            cooldown=self.args.gate_cooldown_steps,
            steps=self.state.max_steps,
        )
        self._step = Step(
            epoch=int(self.state.epoch + 1e-6),
            ratio=1.0 if self.policy.score is None else ratio,
            visual_ratio=self.args.visual_keep_ratio if ratio < 1 else 1.0,
        )
        return super().get_batch_samples(map(self._gated, self.clock.waiting(epoch_iterator)), num_batches, device)

    def _gated(self, batch: dict[str, Any]) -> dict[str, Any]:
        labels: Tensor = intact(batch)["labels"]
        if labels.ndim != 2:
            raise ValueError(f"labels of shape [batch, length] are expected; got {tuple(labels.shape)}")
        mask = batch.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != labels.shape):
            raise ValueError("the batch's attention_mask must have the labels' shape, 1 on tokens and 0 on padding")
        attended = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
        sample, given = batch.pop("sample_id", None), batch.pop("reference_losses", None)
        place, skipped = batch.pop("row", None), batch.pop("num_skipped", 0)
        shifted = shift_labels(labels)
        target = shifted != IGNORE
        reference = ema = torch.full(labels.shape, math.nan, device=labels.device)
        if self.buffer is not None:
            self._require_lengths(sample, given, target)
            reference = spread(given.to(labels.device), target)
            ema = spread(self.buffer.lookup(sample, given.shape[1]).to(labels.device), target)
        elif sample is None and self.policy.score is not None:
            raise ValueError("the rows have no sample_id, by which the gate tells samples apart: add that column")
        signals = signals_of(
            labels,
            torch.zeros(len(labels), dtype=torch.long, device=labels.device) if sample is None else sample,
            ema,
            reference,
            step=self.state.global_step,
            seed=self.args.seed,
            lambda_=self.args.lambda_,
            combine=self.args.combine,
        )
        placeholder = torch.isin(batch["input_ids"], self._placeholder_ids.to(labels.device))
        gate = decide(
            self.policy,
            signals,
            labels,
            attended,
            self._special_ids.to(labels.device),
            self._step.ratio,
            self.args.active_set,
            placeholder & attended,
            self._step.visual_ratio,
        )
        # Rows that only fill a batch are computed and enter nothing.
        place = list(range(len(labels))) if place is None else place
        asked = sum(at < NO_PLACE for at in place) + skipped
        own = rows_of_its_own(asked)
        samples = sum(at < own for at in place)
        counted = (batch["input_ids"], labels, attended, gate.active, gate.supervised)
        if samples < len(labels):
            once = torch.tensor([at < own for at in place], device=labels.device)  # [B]
            gate = gate.of_rows(once)
            counted = tuple(tensor[once] for tensor in counted)
        ids, theirs, real, active, supervised = counted
        counts = count_tokens(ids, theirs, real, self._placeholder_ids.to(labels.device), active, supervised)
        extra = torch.stack([causal_pairs(active), *counts.new_tensor([min(own, asked) - samples, samples])])
        self._step.counts.append(torch.cat([counts, extra]))
        # Trainer counts these, and compute_loss takes its targets from them.
        # Drawn targets stand for all of them, so their weighted losses are divided by the number of all.
        counted = gate.supervised if gate.weight is None else gate.target
        batch["shift_labels"] = shifted.masked_fill(~counted, IGNORE)
        batch[_KEY] = Gated(gate, sample, shifted, ema, reference, bool(placeholder.any()))
        return batch

    def _require_lengths(self, sample: Tensor | None, given: Tensor | None, target: Tensor) -> None:
        if sample is None or given is None:
            raise ValueError("the rows lost sample_id or reference_losses before the collator; keep these columns")
        wrong = target.sum(1) != (~given.isnan()).sum(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"sample {int(sample[row])} has {int(target[row].sum())} targets and "
                f"{int((~given[row].isnan()).sum())} reference losses: template, truncation or frames changed since "
                "add_reference_losses. Run it again with this training's processor, max_length and num_frames."
            )

    # ---- loss ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ):
        inputs = {k: v for k, v in inputs.items() if k not in (*OWN_COLUMNS, *OF_COLLATOR)}
        gated: Gated | None = inputs.pop(_KEY, None)
        seeing = self.vision(inputs) if self.vision is not None else contextlib.nullcontext()
        if gated is None:  # evaluation
            with seeing:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        gate, shifted = gated.gate, inputs.pop("shift_labels")
        del inputs["labels"]
        with (
            seeing,
            self.elision(
                gate.active if gate.elides or self.elision.paths.padding_free else None,
                gate.supervised,
                shifted[gate.supervised],
                passthrough=gate.elides and self.args.active_set == "kept-passthrough",
                expects_multimodal_rope=gated.has_visual,
            ) as step,
        ):
            outputs = model(**inputs)
        losses = step.losses(outputs)  # [N]
        # Over no target the sum is a zero that hangs on the graph, so that no rank waits for its gradients in vain.
        total = (losses if gate.weight is None else losses * gate.weight[gate.supervised].to(losses.dtype)).sum()
        if not math.isfinite(total.item()):
            raise FloatingPointError(
                f"the loss is {total.item()} in step {self.state.global_step}, samples "
                f"{None if gated.sample is None else gated.sample.tolist()}. The last complete checkpoint is "
                f"{last_complete(self.args.output_dir, contents=False)}; look at these samples, or lower the learning "
                "rate."
            )
        self._observe(gated, losses.detach())
        # DDP and FSDP average gradients over ranks, and the number is of all ranks.
        number = max(float(num_items_in_batch or 0), 1.0)
        loss = total * (self.accelerator.num_processes // self.get_tp_size()) / number
        return (loss, outputs) if return_outputs else loss

    def _observe(self, gated: Gated, losses: Tensor) -> None:
        """Take a micro-batch's losses [N] of supervised targets for the EMA, the log and the trace."""
        gate = gated.gate
        loss = torch.full(gated.ema.shape, math.nan, device=losses.device)
        loss[gate.supervised] = losses
        elided = gate.target & ~gate.supervised
        self._step.sums.append(
            torch.cat(
                [
                    _sum_and_count(gated.reference, gate.supervised),
                    _sum_and_count(gated.reference, elided),
                    _sum_and_count(loss, gate.supervised),
                    _sum_and_count(gated.ema, elided),  # an elided target has no loss in this step
                ]
            )
        )
        if self.buffer is not None:
            row = gate.supervised.nonzero()[:, 0]
            ordinal = ordinals(gate.target)[gate.supervised]
            self._step.observations.append(Observations(gated.sample, row, ordinal, losses.float()))
        for observe in self.observers:
            observe(self.state.global_step, gated)
        if self.trace is not None and gated.sample is not None:
            score = torch.full_like(loss, math.nan) if gate.score is None else gate.score
            self.trace.observe(
                self.state.global_step,
                gated.sample,
                gate.target,
                gate.ratio,
                reference=gated.reference,
                ema=gated.ema,
                score=score,
                kept=gate.kept,
                loss=loss,
            )

    def _finish_step(self) -> None:
        """After the optimizer's step: exchange what was observed, update the EMA, log."""
        step = self._step
        own = Report(
            torch.stack(step.counts).sum(0).cpu(),
            torch.stack(step.sums).sum(0).cpu(),
            merged(step.observations),
            self.trace.taken() if self.trace is not None else b"",
        )
        reports = self._exchange(own)
        if self.buffer is not None:
            self.buffer.update(merged([report.seen for report in reports]), step.epoch)
        if self.trace is not None:
            for report in reports:
                self.trace.add(report.trace)
        counts = torch.stack([report.counts for report in reports]).sum(0)
        sums = torch.stack([report.sums for report in reports]).sum(0)
        *kinds, pairs, skipped, samples = counts.tolist()
        tokens = Tokens(*kinds)
        self.num_skipped += skipped
        means = [s / n if n else None for s, n in sums.view(4, 2).tolist()]
        self._last_entry = {
            "step": self.state.global_step - 1,
            "ratio": step.ratio,
            "visual_ratio": step.visual_ratio,
            "tokens": tokens,
            "decoder_flops": self._flops.decoder_step(tokens.active, pairs),
            "head_flops": self._flops.head_step(tokens.supervised),
            "samples": samples,
            "seconds": self.clock.seconds[-1],
            "data_seconds": self.clock.data_seconds[-1],
            "peak_memory_bytes": peak_memory_bytes(),
            "reference_kept": means[0],
            "reference_elided": means[1],
            "loss_kept": means[2],
            "ema_elided": means[3],
            "skipped": skipped,
        }
        if self.is_world_process_zero():
            self.step_log.add(**self._last_entry)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        stock = set(logs)
        if "loss" in logs and self._last_entry:
            entry = self._last_entry
            logs |= {k: v for k, v in entry.items() if isinstance(v, (int, float)) and k not in ("step", "skipped")}
            logs |= {f"tokens_{k}": v for k, v in vars(entry["tokens"]).items()}
            logs["skipped_samples"] = self.num_skipped
            self.step_log.flush()
        own = logs.keys() - stock
        super().log(logs, start_time)
        # steps.jsonl has these numbers; trainer_state.json, which every checkpoint writes anew, need not grow by them.
        for name in own:
            self.state.log_history[-1].pop(name, None)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any):
        try:
            return super().train(*args, **kwargs)
        finally:
            self._save_logs()

    def _rewind(self, step: int, checkpoint: str | None) -> None:
        if self.is_world_process_zero():
            self.step_log.rewind(step, checkpoint)
            if self.trace is not None:
                self.trace.rewind(step)

    def _save_logs(self) -> None:
        if self.is_world_process_zero():
            self.step_log.flush()
            if self.trace is not None:
                self.trace.save()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._save_logs()
        super()._save_checkpoint(model, trial)

    def _add_to_checkpoint(self, directory: Path) -> None:
        if self.is_world_process_zero():
            self.step_log.save_state(directory)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.buffer is not None and self.args.should_save:
            self.buffer.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.buffer is not None and checkpoint is not None:
            self.buffer.load(checkpoint)


class _StepEnd(TrainerCallback):
    """Calls the trainer between the optimizer's step and logging, saving or evaluating; after its StepClock."""

    def __init__(self, trainer: ReGateTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._finish_step()


def _sum_and_count(values: Tensor, where: Tensor) -> Tensor:
    where = where & values.isfinite()
    return torch.stack([values.masked_fill(~where, 0).double().sum(), where.sum().double()])


def _ids(ids: set[int]) -> Tensor:
    return torch.tensor(sorted(ids), dtype=torch.long)
