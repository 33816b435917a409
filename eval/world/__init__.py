"""The embedded world: short procedural clips with sentence questions and answers, made offline from seeds. No torch."""

from eval.world.dataset import example, training_set
from eval.world.language import conversation
from eval.world.markup import Turn
from eval.world.plain import caption, corpus
from eval.world.render import boxes, render
from eval.world.sample import sample_scene
from eval.world.scene import Act, Relation, Scene, Thing
from eval.world.vocabulary import FRAMES, SIZE, SPLITS, WORLD_VERSION

__all__ = [
    "FRAMES",
    "SIZE",
    "SPLITS",
    "WORLD_VERSION",
    "Act",
    "Relation",
    "Scene",
    "Thing",
    "Turn",
    "boxes",
    "caption",
    "conversation",
    "corpus",
    "example",
    "render",
    "sample_scene",
    "training_set",
]
