"""How VideoChat2 is tuned: LoRA on the language model, everything before it trained in full.

Needs PEFT (`pip install regate[peft]`). Never run on a GPU.
"""

from typing import Any

from regate.models.videochat2.modeling import VideoChat2ForConditionalGeneration

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
TRAINED_IN_FULL = ("vision_tower", "queries", "qformer", "multi_modal_projector")


def add_lora(
    model: VideoChat2ForConditionalGeneration,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.1,
    targets: tuple[str, ...] = TARGETS,
) -> Any:
    """The model with what the original trains: LoRA matrices, vision tower, queries, Q-Former and projection.

    The four modules go by PEFT's `modules_to_save`: they are saved with the adapter, and their first weights stay
    beside them, frozen (0.5 B parameters at the published size).

    Args:
        model: whose weights are changed in place: PEFT wraps its modules.
        r, alpha, dropout: of LoRA; the original's.
        targets: layers of the language model, by their last name, and `lm_head`.

    Returns:
        `peft.PeftModel`; all else is frozen.

    Raises:
        ValueError: a target that the language model does not have.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    have = {name.rsplit(".", 1)[-1] for name, _ in model.model.language_model.named_modules()} | {"lm_head"}
    if unknown := sorted(set(targets) - have):
        raise ValueError(f"targets: found {', '.join(unknown)}, expected layers of the language model, or lm_head")
    inner = "|".join(name for name in targets if name != "lm_head")
    patterns = [rf"model\.language_model\..*\.({inner})"] * bool(inner) + ["lm_head"] * ("lm_head" in targets)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(patterns),
        modules_to_save=list(TRAINED_IN_FULL),
    )
    return get_peft_model(model, config)
