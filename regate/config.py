"""ReGateConfig: TrainingArguments and the method's own fields, each named after its symbol in the paper."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from regate.gate import POLICIES
from regate.paths.select import ATTENTION_PATHS, LOSS_PATHS
from regate.scoring import ACTIVE_SETS, COMBINATIONS


@dataclass
class ReGateConfig(TrainingArguments):
    """Arguments of :class:`regate.ReGateTrainer`. Defaults are the paper's (Section 4.1) where it has one.

    Raises ValueError naming the field, what was given and the range, for any value outside it.
    """

    keep_ratio: float = field(default=0.5, metadata={"help": "p_sparse (Eq. 4): share of answer tokens kept, (0, 1]."})
    lambda_: float = field(
        default=0.5, metadata={"help": "lambda (Eq. 3): weight of the teacher's loss, 0 = EMA only; convex: [0, 1]."}
    )
    beta: float = field(default=0.9, metadata={"help": "beta (Eq. 2): decay of the student's EMA, [0, 1)."})
    cycle: int = field(default=128, metadata={"help": "C (Eq. 4): length of a cycle in optimizer steps."})
    dense_steps: int = field(default=16, metadata={"help": "F (Eq. 4): dense steps at the head of each cycle, <= C."})
    gate_warmup_steps: int = field(default=100, metadata={"help": "Dense optimizer steps before the first cycle."})
    keep_ratio_final: float | None = field(
        default=None,
        metadata={"help": "Beyond the paper: the ratio of sparse steps moves from keep_ratio to this one, linearly."},
    )
    gate_cooldown_steps: int = field(
        default=0, metadata={"help": "Beyond the paper: dense optimizer steps at the end, after the last cycle."}
    )
    visual_keep_ratio: float = field(
        default=1.0,
        metadata={"help": "Beyond the paper: share of visual positions computed in sparse steps, drawn at random."},
    )
    combine: str = field(
        default="convex",
        metadata={"help": "convex: (1-lambda) m + lambda l_ref; additive: Eq. 3 as printed, m + lambda l_ref."},
    )
    active_set: str = field(
        default="predictors",
        metadata={"help": f"Which answer positions the decoder computes for kept targets: {', '.join(ACTIVE_SETS)}."},
    )
    policy: str = field(default="regate", metadata={"help": "Gate policy: a name in regate.gate.POLICIES."})
    teacher: str | None = field(
        default=None,
        metadata={"help": "Fingerprint of the teacher whose losses are expected; None: the student's own backbone."},
    )
    max_length: int | None = field(default=None, metadata={"help": "Truncate conversations to so many positions."})
    num_frames: int = field(default=8, metadata={"help": "Frames sampled from each video."})
    on_bad_sample: str = field(default="raise", metadata={"help": "raise, or skip: log, count and leave out."})
    attention_path: str = field(
        default="auto",
        metadata={
            "help": "How attention runs on active positions: padded (any attention), packed (flash attention) or flex; "
            "auto: by the model's attn_implementation. docs/gpu.md."
        },
    )
    loss_path: str = field(
        default="auto",
        metadata={
            "help": "How losses come out of the head: logits, chunked, liger or cce; auto: what is installed and the "
            "head allows. docs/gpu.md."
        },
    )
    compile_decoder: bool = field(
        default=False, metadata={"help": "torch.compile the decoder, once for all lengths, in training steps only."}
    )
    cache_frames: str | None = field(
        default=None, metadata={"help": "Folder where decoded video frames are kept, for this and later runs."}
    )
    cache_vision: str | None = field(
        default=None, metadata={"help": "Folder where features of the frozen vision tower are kept."}
    )
    cache_gb: float = field(default=100.0, metadata={"help": "Limit of each of these folders, in 1e9 bytes."})
    trace_samples: list[int] = field(
        default_factory=list,
        metadata={"help": "Sample ids traced step by step: losses, scores, decisions."},
    )

    def __post_init__(self):
        super().__post_init__()
        self._within("keep_ratio", 0 < self.keep_ratio <= 1, "in (0, 1]")
        self._within("beta", 0 <= self.beta < 1, "in [0, 1)")
        self._within("gate_warmup_steps", self.gate_warmup_steps >= 0, ">= 0")
        self._within("cycle", self.cycle >= 1, ">= 1")
        self._within("dense_steps", 0 <= self.dense_steps <= self.cycle, f"in [0, cycle={self.cycle}]")
        final = self.keep_ratio_final
        self._within("keep_ratio_final", final is None or 0 < final <= 1, "None or in (0, 1]")
        self._within("gate_cooldown_steps", self.gate_cooldown_steps >= 0, ">= 0")
        self._within("visual_keep_ratio", 0 < self.visual_keep_ratio <= 1, "in (0, 1]")
        self._within("combine", self.combine in COMBINATIONS, f"one of {COMBINATIONS}")
        self._within("lambda_", self.lambda_ >= 0, ">= 0")
        self._within("lambda_", self.combine != "convex" or self.lambda_ <= 1, "in [0, 1] with combine='convex'")
        self._within("active_set", self.active_set in ACTIVE_SETS, f"one of {ACTIVE_SETS}")
        self._within("policy", self.policy in POLICIES, f"one of {tuple(POLICIES)}")
        whole = self.active_set not in ("kept-unsupervised", "prefix") or not POLICIES[self.policy].drawn
        self._within("active_set", whole, "one that supervises every kept target: drawn ones stand for the others, too")
        self._within("attention_path", self.attention_path in ATTENTION_PATHS, f"one of {ATTENTION_PATHS}")
        self._within("loss_path", self.loss_path in LOSS_PATHS, f"one of {LOSS_PATHS}")
        self._within("on_bad_sample", self.on_bad_sample in ("raise", "skip"), "'raise' or 'skip'")
        self._within("num_frames", self.num_frames >= 1, ">= 1")
        self._within("cache_gb", self.cache_gb > 0, "> 0")
        self._within("max_length", self.max_length is None or self.max_length >= 1, "None or >= 1")
        self._within(
            "label_smoothing_factor", self.label_smoothing_factor == 0, "0: losses of kept targets are unsmoothed"
        )
        self._within(
            "average_tokens_across_devices",
            self.average_tokens_across_devices,
            "True: the loss is divided by the supervised targets of all ranks",
        )
        self._within(
            "enable_jit_checkpoint", not self.enable_jit_checkpoint, "False: SIGTERM saves and stops without it"
        )
        # The stock filter would replace a NaN loss by an average; the trainer stops on one instead.
        self.logging_nan_inf_filter = False

    def _within(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"{name} must be {expected}; got {getattr(self, name)!r}")
