"""ReGATE: reference-guided adaptive token elision for multimodal language models.

    from regate import ReGateConfig, ReGateTrainer, add_reference_losses

For loops of your own: :class:`Elision`, and the pure functions of ``regate.scoring``, ``regate.gate`` and
``regate.schedule``.
"""

from regate.config import ReGateConfig
from regate.elision import Elision, UnsupportedModel
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
]
