"""The micro students: one factory for three families, each of the class of its paper-scale student."""

from repro.families.family import Family, StudentSize, count_parameters
from repro.families.internvl import InternVL
from repro.families.videochat2 import VideoChat2
from repro.families.videollama2 import VideoLlama2

FAMILIES: dict[str, Family] = {f.name: f for f in (InternVL(), VideoLlama2(), VideoChat2())}

__all__ = ["FAMILIES", "Family", "StudentSize", "count_parameters", "family_of"]


def family_of(processor: object) -> Family:
    """The family that a processor belongs to.

    Raises:
        ValueError: a processor of no micro student.
    """
    for family in FAMILIES.values():
        if type(processor).__name__ == family.processor_class:
            return family
    known = ", ".join(f.processor_class for f in FAMILIES.values())
    raise ValueError(f"{type(processor).__name__} belongs to no micro student; known: {known}")
