"""What of a student trains: all of it, all but frozen parts, or adapters as the student's paper sets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from regate.models.videochat2.tuning import add_lora


def tuned(model: Any, tuning: Mapping[str, Any], seed: int) -> Any:
    """The model with what ``tuning`` says set to train.

    Args:
        model: a prepared student; changed in place.
        tuning: empty: everything trains. ``freeze``: names of modules of ``model.model`` that stay as they are.
            ``lora``: arguments of VideoChat2's `add_lora`; what lies before the decoder trains fully.
        seed: of the adapters' initial weights.

    Raises:
        ValueError: another key.
    """
    unknown = tuning.keys() - {"freeze", "lora"}
    if unknown:
        raise ValueError(f"tuning has {sorted(unknown)}; known are 'freeze' and 'lora'")
    for name in tuning.get("freeze", ()):
        model.model.get_submodule(name).requires_grad_(False)
    if "lora" in tuning:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return add_lora(model, **tuning["lora"])
    return model
