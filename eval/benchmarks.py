"""The 13 benchmarks: their tasks in lmms-eval and where their media lie. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

MVBENCH = (
    "action_sequence", "moving_count", "action_prediction", "episodic_reasoning", "action_antonym", "action_count",
    "scene_transition", "object_shuffle", "object_existence", "fine_grained_pose", "unexpected_action",
    "moving_direction", "state_change", "object_interaction", "character_order", "action_localization",
    "counterfactual_inference", "fine_grained_action", "moving_attribute", "egocentric_navigation",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Args:
        name: ours; `regate_<name>` is its group in `eval/suites`.
        title: as in the paper's tables.
        tasks: lmms-eval's.
        media: folder below HF_HOME in which the stock tasks look for videos; "" where pictures are in the data set.
        configs: per task, the configuration of a local data set that holds several where the hub has several data sets.
        even: questions come in pairs, so a limit must be even.
        whole: the stock score needs all questions, so a limit is refused.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    media: str = ""
    configs: tuple[tuple[str, str], ...] = ()
    even: bool = False
    whole: bool = False

    @property
    def group(self) -> str:
        return f"regate_{self.name}"


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("scienceqa", "ScienceQA", ("scienceqa_img", "scienceqa")),
        Benchmark("mme", "MME", ("mme",), even=True),
        Benchmark("vizwiz", "VizWiz", ("vizwiz_vqa_val",)),
        Benchmark("pope", "POPE", ("pope",)),
        Benchmark("seedbench", "SEED-Bench", ("seedbench",)),
        Benchmark("videomme", "VideoMME", ("videomme",), "videomme"),
        Benchmark("longvideobench", "LongVideoBench", ("longvideobench_val_v",), "datasets/longvideobench"),
        Benchmark("mlvu", "MLVU", ("mlvu_dev",), "mlvu", (("mlvu_dev", "dev"),)),
        Benchmark("egoschema", "EgoSchema", ("egoschema_subset",), "egoschema"),
        Benchmark("mvbench", "MVBench", tuple(f"mvbench_{task}" for task in MVBENCH), "mvbench_video"),
        Benchmark("perceptiontest", "Perception Test", ("perceptiontest_val_mc",), "perceptiontest_val"),
        Benchmark("nextqa", "NExT-QA", ("nextqa_mc_test",), "nextqa"),
        Benchmark("vinoground", "Vinoground", ("vinoground",), "vinoground", whole=True),
    )
}
BENCHMARK_OF_TASK: dict[str, Benchmark] = {task: b for b in BENCHMARKS.values() for task in b.tasks}
