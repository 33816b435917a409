"""ReGATE's models in other people's tools."""

from typing import Any


def lmms_eval_manifest() -> Any:
    """What lmms-eval finds by its entry point: where the model class is, without importing it."""
    from lmms_eval.models.registry_v2 import ModelManifest  # an extra, and it asks for this while it is being imported

    return ModelManifest(model_id="regate", chat_class_path="regate.integrations.lmms_eval.RegateModel")
