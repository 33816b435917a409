"""ReGATE: reference-guided adaptive token elision for multimodal language models.

    from regate import ReGateConfig, ReGateTrainer, add_reference_losses

For loops of your own: :class:`Elision`, and the pure functions of ``regate.scoring``, ``regate.gate`` and
``regate.schedule``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regate.config import ReGateConfig
    from regate.decoder import UnsupportedModel
    from regate.dependence import add_visual_dependence
    from regate.elision import Elision
    from regate.gate import POLICIES, Policy
    from regate.reference_column import add_reference_losses
    from regate.trainer import ReGateTrainer

__all__ = [
    "POLICIES",
    "Elision",
    "Policy",
    "ReGateConfig",
    "ReGateTrainer",
    "UnsupportedModel",
    "add_reference_losses",
    "add_visual_dependence",
]
_HOMES = {
    "ReGateConfig": "config",
    "Elision": "elision",
    "UnsupportedModel": "decoder",
    "POLICIES": "gate",
    "Policy": "gate",
    "add_reference_losses": "reference_column",
    "add_visual_dependence": "dependence",
    "ReGateTrainer": "trainer",
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use: the command line and the processors do not wait for Trainer."""
    if name not in _HOMES:
        raise AttributeError(f"module 'regate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"regate.{_HOMES[name]}"), name)
