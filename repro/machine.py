"""What a record says about where it was made; evaluations say the same."""

from eval.machine import environment

__all__ = ["environment"]
