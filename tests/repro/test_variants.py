"""Variants: what each changes of Table 4's runs; tables, figures and the README read records of all of them."""

import dataclasses
import json

import numpy as np
import pytest

from regate import ReGateConfig
from regate.gate import POLICIES
from regate.schedule import expected_reduction
from repro import budgets, compare, figures, readme, recipes, tables, timing
from repro.by_tag import separation, share_kept
from repro.calibrate import kinds_of
from repro.material import SEEING
from repro.record import NAME, Point, RecordError, read, write
from repro.variants import SEEDS, TIERS, VARIANTS
from tests.repro.synthetic import committed, flops_at, record, tokens_at

ALL = recipes.everything(5, tuple(TIERS))


def test_every_run_has_a_name_of_its_own_and_is_found_by_it():
    names = [recipe.name for recipe in ALL]
    assert len(set(names)) == len(names)
    assert all(NAME.fullmatch(name) for name in names)
    assert "table5-internvl-lambda0-s0" in names
    assert recipes.named("rivals-internvl-random_ltd-s1", 2) == recipes.recipe_of("random_ltd", seed=1)
    with pytest.raises(ValueError, match="unknown run 'table5-internvl-lambda7-s0'; known: table4"):
        recipes.named("table5-internvl-lambda7-s0", 2)


def test_tiers_have_their_seeds_and_shared_runs_stand_once():
    by_method: dict[str, int] = {}
    for recipe in ALL:
        by_method[recipe.method] = by_method.get(recipe.method, 0) + (recipe.student == "internvl")
    assert {m: by_method[m] for m in ("stock", "dense", "regate")} == {"stock": 5, "dense": 5, "regate": 5}
    for tier, variants in TIERS.items():
        assert {by_method[method] for method in variants} == {SEEDS[tier]}


def test_configurations_are_valid_and_differ(tmp_path):
    seen = {}
    for method in VARIANTS:
        recipe = recipes.recipe_of(method)
        if recipe.gate:
            ReGateConfig(output_dir=str(tmp_path), use_cpu=True, **recipe.gate)
        known = dataclasses.replace(recipe, table="", method="", evaluate_every=1)
        assert known not in seen.values(), f"{method} is another's run"
        seen[method] = known
        assert recipe.data.questions_per_task * len(recipe.data.tasks) >= 2000


@pytest.mark.parametrize("percent", [35, 50, 75])
def test_a_budget_shortens_the_whole_schedule(percent):
    whole, short = recipes.regate(), recipes.recipe_of(f"regate-budget{percent}")
    assert short.steps == round(whole.steps * percent / 100)

    def saved(recipe):
        gate = recipe.gate
        return expected_reduction(recipe.steps, keep_ratio=0.5, warmup=gate["gate_warmup_steps"], cycle=gate["cycle"],
                                  dense_steps=gate["dense_steps"])  # fmt: skip

    assert saved(short) == pytest.approx(saved(whole), abs=0.02)
    assert recipes.recipe_of(f"dense-budget{percent}").gate == recipes.dense().gate


def test_kinds_of_steps_are_calibrated_once_each_and_only_have_their_own():
    kinds = kinds_of(ALL)
    assert {"stock", "dense", "random_ltd", "regate 0.5, predictors, visual 1"} <= set(kinds)
    for recipe in ALL:
        assert {recipe.step_kind(sparse) for sparse in (False, True)} <= set(kinds) | {recipe.step_kind(True)}
        if recipe.gate and recipe.gate != {"policy": "dense"}:
            assert recipe.step_kind(True) in kinds, recipe.name
    assert recipes.recipe_of("lambda0").step_kind(True) == recipes.regate().step_kind(True)
    assert recipes.recipe_of("active-predictors-kept").step_kind(True) != recipes.regate().step_kind(True)
    for kind, recipe in kinds.items():
        if recipe.gate.get("policy", "dense") != "dense":  # a trainer refuses reference losses of another measure
            assert (recipe.teacher == SEEING) == (POLICIES[recipe.gate["policy"]].measure == "dependence"), kind
        whole = kind.split(": ")[-1] in ("stock", "dense", "random_ltd")
        assert recipe.step_kind(not whole) == kind
        if recipe.gate and not whole:
            assert recipe.gate["dense_steps"] == recipe.gate["gate_warmup_steps"] == 0
    assert kinds["random_ltd"].random_ltd["steps"] == round(14 * 171 / 256)


# --- times ---

COSTS = {
    ("internvl", "micro"): timing.Calibration("internvl", "micro", {"dense": 0.5, "sparse": 0.25}, {"cpu": "x"}, True)
}


def test_calibrated_time_is_steps_by_kind_times_their_cost(tmp_path):
    one = record("regate", alone=False, timeline=[["dense", 100], ["sparse", 300]])
    timed = timing.calibrated(one, COSTS)
    assert timed.train_seconds == 100 * 0.5 + 300 * 0.25
    assert timed.point(120).train_seconds == 50 + 20 * 0.25
    assert timed.hardware == {"cpu": "x"}
    assert timed.timed == "calibrated"
    write(timed, tmp_path)
    assert '"timed"' not in (tmp_path / f"{one.name}.json").read_text()
    assert read(tmp_path / f"{one.name}.json").timed == ""


def test_times_stay_where_a_kind_is_not_known_or_the_machine_was_not_quiet():
    unknown = record("regate", alone=False, timeline=[["dense", 100], ["other", 300]])
    assert timing.calibrated(unknown, COSTS) is unknown
    none = record("regate", alone=False)
    assert timing.calibrated(none, COSTS) is none
    alone = record("regate", timeline=[["dense", 400]])
    assert timing.timed_alone([alone], COSTS) == [alone]
    assert timing.timed_alike([alone], COSTS)[0].train_seconds == 200
    noisy = {key: dataclasses.replace(value, alone=False) for key, value in COSTS.items()}
    assert timing.calibrated(alone, noisy) is alone
    with pytest.raises(RecordError, match="timeline"):
        record("regate", timeline=[["dense", 3]])


def test_a_kind_costs_what_its_fastest_round_took(tmp_path):
    made = {"student": "internvl", "scale": "micro", "hardware": {"cpu": "x"}, "alone": True}
    measured = {"dense": [1.5, 50.0, 1.75], "sparse": [9.0, 1.0]}
    (tmp_path / "a.json").write_text(json.dumps(made | {"measured": measured}))
    found, problems = timing.load([tmp_path])
    assert not problems
    assert found["internvl", "micro"].seconds == {"dense": 1.5, "sparse": 1.0}


@pytest.mark.parametrize("text", ["{", "[]", '{"measured": {"dense": []}}', '{"measured": 3}', '{"measured": {}}'])
def test_damaged_calibrations_are_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    found, problems = timing.load([tmp_path])
    assert not found
    assert "a.json" in str(problems[0])


# --- budgets ---


def test_first_cost_is_interpolated_between_budgets():
    costs, accuracy = [0.35, 0.5, 0.75, 1.0], [0.5, 0.6, 0.7, 0.72]
    assert budgets.first_at(costs, accuracy, 0.65) == pytest.approx(0.625)
    assert budgets.first_at(costs, accuracy, 0.4) == 0.35
    assert budgets.first_at(costs, accuracy, 0.9) == float("inf")


def _curve(gain: float, seeds: int = 5) -> budgets.Curve:
    rng = np.random.default_rng(0)
    level = rng.normal(0.7, 0.005, seeds)
    steps = np.array([-0.1, -0.05, -0.01, 0.0])
    costs = np.tile([0.35, 0.5, 0.75, 1.0], (seeds, 1))
    return budgets.Curve(tuple(range(seeds)), level[:, None] + steps + gain, level, {"flops": costs})


def test_needed_budget_has_an_interval_over_seeds_and_says_when_it_is_not_reached():
    better = budgets.needed(_curve(0.03), "flops", np.random.default_rng(1))
    assert better.share == pytest.approx(0.625)
    assert better.low == pytest.approx(better.high)  # all seeds differ from their baseline alike
    assert "62 %" in better.words()
    worse = budgets.needed(_curve(-0.03), "flops", np.random.default_rng(1))
    assert worse.words().startswith("not reached (95 % interval over seeds not reached")
    shifted = budgets.needed(_curve(0.03), "flops", np.random.default_rng(1), shift=1)
    assert shifted.low < shifted.share < shifted.high
    one = budgets.needed(_curve(0.2, seeds=1), "flops", np.random.default_rng(1))
    assert one.words() == "at most 35 % (one seed: no interval)"


# --- all tables ---


def by_tag(kept: float) -> dict:
    auc = {name: {"others": 0.5, "template": 0.6, "wording": 0.4} for name in ("reference", "ema", "difficulty")}
    counts = {"visual": 100, "template": 100, "wording": 100, "special": 10}

    def window(step, share):
        return {"step": step, "sparse_steps": 3, "targets": counts, "kept": counts | {"visual": int(100 * share)},
                "separation": auc}  # fmt: skip

    return {"windows": [window(1, kept / 2), window(2, kept), window(3, kept)]}


def records() -> list:
    found = []
    for recipe in recipes.everything(2, tuple(TIERS)):
        if recipe.student != "internvl":
            continue
        like = recipe.method if recipe.method in ("stock", "dense") else "regate"
        final = 0.7 + 0.02 * recipe.seed + 0.1 * (recipe.steps / 256 - 1)
        one = record(like, recipe.seed, name=recipe.name, table=recipe.table, final=final, alone=False)
        tags = by_tag(0.6) if recipe.gate else None
        found.append(dataclasses.replace(one, method=recipe.method, by_tag=tags))
    return committed(found)


def test_tables_and_figures_of_all_variants_are_drawn_from_records_alone():
    published = tables.read_published()
    files = tables.files(records(), published)
    names = {"table4", "table5", "rivals", "budgets", "ablations", "push", "tokens_by_kind"}
    assert {name.rsplit(".", 1)[0] for name in files} == names
    assert "ReGATE (λ = 0.5, aligned teacher)" in files["table5.md"]
    assert "51.3" in files["table5.md"]  # the paper's lambda 0
    assert "avg 45.4" in files["table5.md"]  # its smaller teacher
    assert "no difference seen" in files["rivals.md"]
    assert "ReGATE needs for the baseline's final accuracy on validation" in files["budgets.md"]
    assert "Placebo, dense against the baseline of another seed" in files["budgets.md"]
    assert "60.0 ±0.0" in files["tokens_by_kind.md"]
    assert "†" in files["rivals.md"]
    for variant in VARIANTS.values():
        name = compare.table_name(variant.table)
        assert variant.label in files[f"{name}.md"]
    assert files == tables.files(records(), published)  # the generators' seeds are explicit

    drawn = {drawing.name: drawing for drawing in figures.drawings(records())}
    assert {name.split("-internvl")[0] for name in drawn} == {"efficiency", "budgets", "lambda", "tokens-by-kind"}
    for drawing in drawn.values():
        pictures = drawing.pictures()
        assert all(len(picture) > 5000 for picture in pictures.values())

    text = readme.section(records(), {})
    for claim in ("35 to 38 %", "41 % fewer", "λ = 0.5 is best", "aligned teacher is best", "than a coin"):
        assert claim in text


def test_the_readme_says_what_half_of_the_time_reaches():
    def runs(method, seconds, accuracy):
        for seed in (0, 1):
            end = Point(400, tokens_at("dense", 400), seconds, flops_at("dense", 400), {"content_accuracy": accuracy})
            yield dataclasses.replace(record("dense", seed), method=method, train_seconds=seconds, curve=(end,))

    slow = [*runs("stock", 100.0, 0.7), *runs("frozen", 80.0, 0.8)]
    fast = [*runs("dense-budget35", 35.0, 0.5), *runs("frozen-budget60", 48.0, 0.6), *runs("lr2", 100.0, 0.75)]
    (group,) = compare.groups(slow + fast)
    count, best, control = readme._in_half_of_the_time(group)
    assert "0 of 2 attempts" in count
    assert "frozen tower, 60 % (48 % of the time): on validation lower by 10.0 points" in best
    assert "on MVBench's twin no difference seen" in best
    assert "twice the learning rate (100 % of the time): on validation higher by 5.0 points" in control
    assert readme._in_half_of_the_time(compare.groups(slow)[0]) == []


def test_shares_by_tag_are_of_sparse_steps():
    one = record("regate", by_tag=by_tag(0.6))
    assert share_kept(one, "visual", "last") == 0.6
    assert share_kept(one, "visual", "first") == 0.3
    assert share_kept(one, "visual") == pytest.approx(0.5)
    assert separation(one, "ema", "wording") == 0.4
    assert share_kept(record("stock"), "visual") is None


def test_the_readme_is_filled_between_its_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    assert "differ" in readme.stale(path, "new")[0]
    path.write_text(readme.filled(path.read_text(), "new"))
    assert path.read_text() == f"before\n{readme.BEGIN}\nnew\n{readme.END}\nafter\n"
    assert readme.stale(path, "new") == []
    with pytest.raises(ValueError, match="put both back"):
        readme.filled("nothing", "new")
