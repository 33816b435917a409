"""The text-only teacher: how hard each answer token is to guess from text alone (Eq. 1), added to a data set.

The teacher sees the student's sequence with every visual token replaced by the pad token. By default the placeholders
are masked from attention as well, so they are left out before the forward pass: the same losses at a lower cost.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regate.decoder import causal_decoder
from regate.elision import compact_inputs
from regate.scoring import IGNORE, shift_labels

logger = logging.getLogger(__name__)
_LOGITS_AT_ONCE = 2**26  # elements; bounds the head's memory whatever the vocabulary


@dataclass(frozen=True)
class TextTeacher:
    """A frozen text-only language model: decoder, head, and which tokens it cannot see.

    pad_id replaces each of placeholder_ids; ``attend_placeholders`` lets the others attend to them.
    """

    model: nn.Module
    decoder: nn.Module
    head: nn.Module
    placeholder_ids: tuple[int, ...]
    pad_id: int
    attend_placeholders: bool = False

    @classmethod
    def of(
        cls, model: nn.Module, placeholder_ids: Iterable[int] = (), pad_id: int = 0, attend_placeholders: bool = False
    ) -> "TextTeacher":
        """The language backbone of ``model`` (multimodal, PEFT or a plain causal LM) as it is now."""
        decoder = causal_decoder(model)
        return cls(model, decoder, model.get_output_embeddings(), tuple(placeholder_ids), pad_id, attend_placeholders)

    @contextlib.contextmanager
    def frozen(self):
        """Evaluation mode, no gradients, no adapters; everything as it was afterwards."""
        training = self.model.training
        adapters = getattr(self.model, "disable_adapter", contextlib.nullcontext)
        self.model.eval()
        try:
            with torch.inference_mode(), adapters():
                yield
        finally:
            self.model.train(training)

    def fingerprint(self) -> str:
        """Hash of the weights of decoder and head, the same in any float dtype and with or without adapters on top."""
        return weights_fingerprint(self.decoder, self.head)

    def losses(self, rows: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Reference losses l_ref (Eq. 1) of rows ``(input_ids [L_b], labels [L_b])``, -100 = no target.

        Returns float32 [number of targets that have a predictor] for each row, in nats. Call inside :meth:`frozen`.
        """
        states, wanted, counts = self.states(rows)
        losses = [
            nn.functional.cross_entropy(self.head(s).float(), w, reduction="none")
            for s, w in zip(states.split(self.chunk), wanted.split(self.chunk), strict=True)
        ]
        return list(torch.cat(losses).cpu().split(counts))

    @property
    def chunk(self) -> int:
        """Rows of logits that are computed at once."""
        return max(1, _LOGITS_AT_ONCE // self.decoder.config.vocab_size)

    def states(self, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
        """Hidden states [N, D] that predict the targets of ``rows``, row by row, the targets int64 [N], and how many of
        them are each row's. Call inside :meth:`frozen`."""
        device = self.head.weight.device
        input_ids, labels, real = (t.to(device) for t in _pad(rows))  # [B, L]
        shifted = shift_labels(labels)
        target = shifted != IGNORE
        placeholder = torch.isin(input_ids, torch.tensor(self.placeholder_ids, device=device, dtype=torch.long))
        input_ids = input_ids.masked_fill(placeholder, self.pad_id)
        known = self.model.get_input_embeddings().weight.shape[0]
        if max(input_ids.max(), shifted.max()) >= known:
            beyond = sorted({int(i) for i in torch.cat([input_ids, shifted]).unique() if i >= known})
            raise ValueError(
                f"token ids {beyond} are beyond the teacher's {known} embeddings: not the student's tokenizer. "
                "Use a teacher of the same family that knows the student's markers."
            )
        # A placeholder that predicts a target is computed all the same: there is no other state to predict it from.
        active = real if self.attend_placeholders else real & (~placeholder | target)
        layout, inputs = compact_inputs(self.decoder, {"input_ids": input_ids}, active)
        hidden = self.decoder(**inputs, use_cache=False).last_hidden_state  # [B, M, D]
        return hidden[layout.gather(target) & layout.real], shifted[target], target.sum(dim=1).tolist()


_WRAPPERS = ("base_layer", "original_module")  # PEFT's names for what it wraps


def weights_fingerprint(*modules: nn.Module) -> str:
    """16 hex digits of a hash of all weights, rounded to bfloat16; LoRA matrices and PEFT's wrappers are left out."""
    digest = hashlib.blake2b(digest_size=8)
    for number, module in enumerate(modules):
        weights = {}
        for name, parameter in module.state_dict().items():
            parts = name.split(".")
            if not any(part.startswith("lora_") or "rotary" in part for part in parts):
                weights[".".join(part for part in parts if part not in _WRAPPERS)] = parameter
        for name, parameter in sorted(weights.items()):
            digest.update(f"{number}.{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def length_batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped by length, longest first, so that rows x longest of a group is at most ``batch_tokens``."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def score_rows(
    teacher: TextTeacher,
    rows: list[tuple[Tensor, Tensor]],
    batch_tokens: int,
    report: Callable[[int, int], Any] = lambda rows, tokens: None,
) -> list[Tensor]:
    """Reference losses of ``rows`` in their order, batched by length; ``report(rows, tokens)`` is told of every batch
    done: its rows, and the tokens that the teacher attended to."""
    hidden = torch.tensor(teacher.placeholder_ids, dtype=torch.long)
    lengths = [len(ids) if teacher.attend_placeholders else int((~torch.isin(ids, hidden)).sum()) for ids, _ in rows]
    losses: list[Tensor] = [torch.empty(0)] * len(rows)
    with teacher.frozen():
        for batch in length_batches(lengths, batch_tokens):
            for index, loss in zip(batch, teacher.losses([rows[i] for i in batch]), strict=True):
                losses[index] = loss
            report(len(batch), sum(lengths[i] for i in batch))
    return losses


def load_teacher(teacher: nn.Module | str | os.PathLike[str], processor: Any, attend_placeholders: bool) -> TextTeacher:
    """A teacher from a model or a path, with the placeholders of ``processor``.

    A path may hold a causal LM or a multimodal model. ValueError if its tokenizer is not the student's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    import regate.models  # noqa: F401 - the Auto classes know our students
    from regate.tokens import placeholder_token_ids

    tokenizer = getattr(processor, "tokenizer", processor)
    if not isinstance(teacher, nn.Module):
        from regate.fingerprint import tokenizer_difference

        theirs, unseen = AutoTokenizer.from_pretrained(teacher), placeholder_token_ids(processor)
        difference = tokenizer_difference(tokenizer, theirs, unseen) if tokenizer is not None else None
        if difference:
            raise ValueError(
                f"the teacher at {teacher} has another tokenizer than the student: {difference}. Its losses would be "
                "of other tokens; use a teacher of the same family."
            )
        multimodal = hasattr(AutoConfig.from_pretrained(teacher), "text_config")
        auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        teacher = auto.from_pretrained(teacher, dtype="auto")
    vocabulary = teacher.get_input_embeddings().weight.shape[0]
    if tokenizer is not None and max(tokenizer.get_vocab().values()) >= vocabulary:
        # Image markers may lie past a text model's table: they are replaced. Anything else is another tokenizer.
        beyond = {i for i in tokenizer.get_vocab().values() if i >= vocabulary}
        beyond -= placeholder_token_ids(processor) | set(tokenizer.all_special_ids)
        if beyond:
            raise ValueError(
                f"the teacher knows {vocabulary} tokens, the student's tokenizer has ids up to {max(beyond)}: not the "
                "same tokenizer. Use a teacher of the same family."
            )
    config = getattr(teacher, "config", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        pad = getattr(teacher.get_decoder().config, "pad_token_id", None)
    return TextTeacher.of(
        teacher, sorted(placeholder_token_ids(processor, config)), 0 if pad is None else pad, attend_placeholders
    )


def _pad(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    pad = nn.utils.rnn.pad_sequence
    input_ids = pad([ids for ids, _ in rows], batch_first=True, padding_value=0)
    labels = pad([labels for _, labels in rows], batch_first=True, padding_value=IGNORE)
    real = pad([torch.ones_like(ids, dtype=torch.bool) for ids, _ in rows], batch_first=True, padding_value=False)
    return input_ids, labels, real
