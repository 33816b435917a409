"""A small training loop for preparing students: AdamW, cosine, exact resume. (Fine-tuning runs use the Trainer.)

Everything random about step `t` comes from `(seed, t)`, so that a killed run goes on bit for bit: a batch is a function
of the step, dropout is off, and the state file holds weights, optimizer and the learning curve.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

StepLoss = Callable[[int], tuple[torch.Tensor, dict[str, float]]]
Evaluate = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class StageConfig:
    """Length and optimizer of one stage."""

    steps: int
    batch_size: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    final_lr: float = 0.05  # share of lr that the cosine ends at

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then cosine from `lr` to `final_lr * lr`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def parameter_groups(modules: Sequence[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases, scales) do not. Frozen parameters are left out."""
    params = list({id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values())
    return [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def save_atomic(state: Any, path: Path) -> None:
    """`torch.save` that is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    with open(part, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def run_stage(
    name: str,
    stage: StageConfig,
    modules: dict[str, nn.Module],
    loss_at: StepLoss,
    state_file: Path,
    *,
    evaluate: Evaluate | None = None,
    eval_every: int = 250,
    save_every: int = 250,
    stop_at: int | None = None,
    progress: bool = True,
    origin: str = "",
) -> tuple[list[dict[str, float]], float, list[str]]:
    """Trains `modules` (by name: what is trained and saved).

    Returns the learning curve, the seconds it took, and every `origin` (commit) that a part of it was run by.

    Args:
        loss_at: step -> (loss, numbers to log); draws its batch from the step alone.
        state_file: written every `save_every` steps and at the end; found again, the run goes on from it.
        stop_at: leave after this step, as a kill would (tests).

    Raises:
        FloatingPointError: a loss is not finite.
    """
    params = parameter_groups(list(modules.values()), stage.weight_decay)
    optimizer = torch.optim.AdamW(params, lr=stage.lr, betas=stage.betas, fused=True)
    trained = [p for group in params for p in group["params"]]
    start, curve, seconds, origins = 0, [], 0.0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        optimizer.load_state_dict(state["optimizer"])
        start, curve, seconds = state["step"], state["curve"], state["seconds"]
        origins = state["origins"]
    if start < stage.steps and origin not in origins:
        origins = [*origins, origin]

    def save(step: int) -> None:
        weights = {key: module.state_dict() for key, module in modules.items()}
        done = seconds + time.perf_counter() - began
        numbers = {"step": step, "curve": curve, "seconds": done, "origins": origins}
        save_atomic({"modules": weights, "optimizer": optimizer.state_dict(), **numbers}, state_file)

    began = time.perf_counter()
    bar = tqdm(range(start, stage.steps), initial=start, total=stage.steps, desc=name, disable=not progress)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = stage.lr_at(step)
        loss, numbers = loss_at(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: loss is {loss.item()} at step {step}; the last state is kept")
        loss.backward()
        nn.utils.clip_grad_norm_(trained, stage.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = step + 1 == stage.steps
        if last or (step + 1) % eval_every == 0:
            point = {"step": step + 1, "loss": loss.item(), **numbers, **(evaluate() if evaluate else {})}
            curve.append({key: float(value) for key, value in point.items()})
            bar.write(f"{name} " + " ".join(f"{key} {value:.4g}" for key, value in point.items()))
        if last or (step + 1) % save_every == 0:
            save(step + 1)
        if stop_at is not None and step + 1 >= stop_at:
            break
    return curve, seconds + time.perf_counter() - began, origins
