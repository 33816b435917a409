"""Properties of schedule, scores, selection, active sets and the EMA buffer."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regate.difficulty import DifficultyBuffer, Observations
from regate.gate import POLICIES, decide, signals_of
from regate.schedule import expected_reduction, keep_ratio_at
from regate.scoring import (
    IGNORE,
    active_positions,
    count_kept,
    difficulty,
    hashes,
    ordinals,
    select,
    shift_labels,
    spread,
    update_ema,
)

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")
PAPER = {"keep_ratio": 0.5, "warmup": 100, "cycle": 128, "dense_steps": 16}


class TestSchedule:
    @pytest.mark.parametrize("cycles", [1, 5, 18])
    def test_the_papers_schedule_saves_43_75_percent_times_one_minus_100_over_t(self, cycles):
        steps = 100 + 128 * cycles
        assert expected_reduction(steps, **PAPER) == pytest.approx(0.4375 * (1 - 100 / steps), rel=1e-12)

    def test_first_cycle(self):
        ratios = [keep_ratio_at(t, **PAPER) for t in range(100 + 128 + 17)]
        assert ratios[:116] == [1.0] * 116
        assert ratios[116:228] == [0.5] * 112
        assert ratios[228:244] == [1.0] * 16
        assert ratios[244] == 0.5

    @given(st.integers(0, 300), st.integers(0, 50), st.integers(1, 60), st.data())
    def test_dense_exactly_in_warmup_and_at_heads_of_cycles(self, step, warmup, cycle, data):
        dense = data.draw(st.integers(0, cycle))
        ratio = keep_ratio_at(step, keep_ratio=0.25, warmup=warmup, cycle=cycle, dense_steps=dense)
        expected = 1.0 if step < warmup or (step - warmup) % cycle < dense else 0.25
        assert ratio == expected

    def test_beyond_the_paper_the_ratio_moves_and_the_end_is_dense(self):
        schedule = {"keep_ratio": 0.25, "warmup": 2, "cycle": 100, "dense_steps": 0, "steps": 12}
        ratios = [keep_ratio_at(t, **schedule, final_ratio=0.75, cooldown=3) for t in range(12)]
        assert ratios[:2] == [1, 1]
        assert ratios[2] == 0.25
        assert ratios[8] == 0.75
        assert ratios[9:] == [1, 1, 1]
        assert np.allclose(np.diff(ratios[2:9]), 0.5 / 6)
        assert [keep_ratio_at(t, **schedule) for t in range(2, 12)] == [0.25] * 10


class TestDifficulty:
    def test_table_5_labels_are_true_for_convex(self):
        ema, reference = torch.tensor([2.0, 1.0]), torch.tensor([3.0, 5.0])
        assert torch.equal(difficulty(ema, reference, 0.0), ema)  # student EMA only
        assert torch.equal(difficulty(ema, reference, 1.0), reference)  # reference loss only
        assert difficulty(ema, reference, 0.5).tolist() == [2.5, 3.0]

    def test_additive_is_equation_3_as_printed(self):
        d = difficulty(torch.tensor([2.0]), torch.tensor([3.0]), 0.5, "additive")
        assert d.tolist() == [3.5]

    def test_unobserved(self):
        ema, reference = torch.tensor([math.nan, 1.0]), torch.tensor([3.0, 5.0])
        assert difficulty(ema, reference, 0.5).tolist() == [3.0, 3.0]  # on the same scale
        assert difficulty(ema, reference, 0.0).tolist() == [math.inf, 1.0]  # first, until seen


@st.composite
def scored_rows(draw):
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    levels = draw(st.sampled_from([2, 50]))  # few levels: many ties
    score = torch.randint(0, levels, (rows, length), generator=generator).float()
    candidate = torch.rand(rows, length, generator=generator) < draw(st.floats(0, 1))
    return score, candidate


class TestSelect:
    @given(scored_rows(), st.floats(0.01, 1.0))
    def test_keeps_ceil_of_the_hardest_candidates(self, rows, ratio):
        score, candidate = rows
        tie = hashes(0, torch.arange(score.numel()).view(score.shape))
        kept = select(score, candidate, ratio, tie)
        assert not (kept & ~candidate).any()
        n = candidate.sum(1)
        assert kept.sum(1).tolist() == [math.ceil(ratio * c - 1e-9) for c in n.tolist()]
        for row in range(len(score)):
            dropped = candidate[row] & ~kept[row]
            if kept[row].any() and dropped.any():
                assert score[row][kept[row]].min() >= score[row][dropped].max()

    @given(scored_rows(), st.integers(0, 2**31))
    def test_permuting_positions_permutes_the_choice(self, rows, seed):
        score, candidate = rows
        tie = hashes(0, torch.arange(score.numel()).view(score.shape))
        order = torch.randperm(score.shape[1], generator=torch.Generator().manual_seed(seed))
        kept = select(score, candidate, 0.5, tie)
        assert torch.equal(select(score[:, order], candidate[:, order], 0.5, tie[:, order]), kept[:, order])

    def test_whole_numbers_are_not_rounded_up(self):
        for ratio in (0.07, 0.1, 0.35, 0.55, 0.7):
            n = torch.tensor([100])
            assert count_kept(n, ratio).item() == round(ratio * 100)
        assert count_kept(torch.tensor([0, 1, 3]), 0.5).tolist() == [0, 1, 2]

    def test_ties_do_not_prefer_the_first_half(self):
        score = torch.zeros(400, 40)
        everything = torch.ones_like(score, dtype=torch.bool)
        sample, ordinal = torch.arange(400)[:, None].expand(400, 40), torch.arange(40).expand(400, 40)
        kept = select(score, everything, 0.5, hashes(7, sample, ordinal))
        first = kept[:, :20].float().mean().item()
        assert abs(first - 0.5) < 5 * 0.5 / math.sqrt(8000)

    def test_candidates_that_score_minus_infinity_still_precede_others(self):
        score = torch.tensor([[-math.inf, 5.0]])
        kept = select(score, torch.tensor([[True, False]]), 1.0, torch.tensor([[2, 1]]))
        assert kept.tolist() == [[True, False]]

    def test_hashes_depend_on_every_key_and_on_nothing_else(self):
        a = hashes(1, torch.tensor([[5, 6]]), torch.tensor([[0, 0]]))
        assert torch.equal(a, hashes(1, torch.tensor([[5, 6]]), torch.tensor([[0, 0]])))
        assert (a >= 0).all()
        assert a[0, 0] != a[0, 1]
        assert not torch.equal(a, hashes(2, torch.tensor([[5, 6]]), torch.tensor([[0, 0]])))
        assert not torch.equal(a, hashes(1, torch.tensor([[5, 6]]), torch.tensor([[1, 1]])))


# one row: prompt p p, answer a b c d, end of turn e, padding
LABELS = torch.tensor([[IGNORE, IGNORE, 10, 11, 12, 13, 99, IGNORE]])
ATTENDED = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]).bool()
SPECIAL = torch.tensor([99])


def gate(
    active_set: str = "predictors", policy: str = "regate", ratio: float = 0.5, reference=(1.0, 4.0, 2.0, 3.0, 9.0)
):
    target = shift_labels(LABELS) != IGNORE
    nothing = torch.full(LABELS.shape, math.nan)
    signals = signals_of(
        LABELS, torch.tensor([3]), nothing, spread(torch.tensor([reference]), target),
        step=5, seed=0, lambda_=0.5, combine="convex",
    )  # fmt: skip
    return decide(POLICIES[policy], signals, LABELS, ATTENDED, SPECIAL, ratio, active_set)


def positions(mask: torch.Tensor) -> list[int]:
    return mask[0].nonzero().flatten().tolist()


class TestActiveSet:
    """b and d (positions 3 and 5) are the hardest two of the four candidates; e (position 6) is a marker."""

    def test_predictors(self):
        g = gate()
        assert positions(g.kept) == [2, 4, 5]  # the predictors of b, d and e
        assert positions(g.supervised) == [2, 4, 5]
        assert positions(g.active) == [0, 1, 2, 4, 5, 6]

    def test_predictors_and_kept(self):
        assert positions(gate("predictors+kept").active) == [0, 1, 2, 3, 4, 5, 6]

    def test_kept(self):
        a, b = gate("kept-passthrough"), gate("kept-unsupervised")
        assert positions(a.active) == positions(b.active) == [0, 1, 3, 5, 6]
        assert positions(a.supervised) == [2, 4, 5]
        assert positions(b.supervised) == [5]  # only the predictor of e is computed

    def test_dense_and_ratio_1_keep_everything(self):
        for g in (gate(policy="dense"), gate(ratio=1.0)):
            assert positions(g.kept) == [1, 2, 3, 4, 5]
            assert positions(g.active) == [0, 1, 2, 3, 4, 5, 6]
            assert not g.elides

    def test_loss_only_computes_everything(self):
        g = gate(policy="loss_only")
        assert positions(g.kept) == [2, 4, 5]
        assert positions(g.active) == [0, 1, 2, 3, 4, 5, 6]

    def test_random_changes_with_the_step_only(self):
        draws = set()
        for step in range(12):
            target = shift_labels(LABELS) != IGNORE
            nothing = torch.full(LABELS.shape, math.nan)
            signals = signals_of(
                LABELS, torch.tensor([3]), nothing, nothing, step=step, seed=0, lambda_=0.5, combine="convex"
            )
            g, again = (decide(POLICIES["random"], signals, LABELS, ATTENDED, SPECIAL, 0.5) for _ in range(2))
            assert torch.equal(g.kept, again.kept)
            assert (g.kept & target).sum() == 3
            draws.add(tuple(positions(g.kept)))
        assert len(draws) > 1

    def test_missing_reference_loss_is_named(self):
        with pytest.raises(ValueError, match=r"samples \[3\] have targets without a score"):
            gate(reference=(1.0, math.nan, 2.0, 3.0, 9.0))

    @given(st.integers(0, 2**31), st.sampled_from(["predictors", "predictors+kept"]))
    def test_every_supervised_target_has_its_predictor(self, seed, active_set):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 20, (3, 17), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.4] = IGNORE
        target = shift_labels(labels) != IGNORE
        reference = spread(torch.rand(3, 17, generator=generator), target)
        nothing = torch.full(labels.shape, math.nan)
        signals = signals_of(labels, torch.arange(3), nothing, reference, step=0, seed=1, lambda_=0.5, combine="convex")
        attended = torch.ones_like(labels, dtype=torch.bool)
        g = decide(POLICIES["regate"], signals, labels, attended, torch.tensor([7]), 0.5, active_set)
        assert not (g.supervised & ~g.active).any()
        assert (g.active | (labels != IGNORE)).all()  # all context is active
        if active_set == "predictors":
            # A target is kept exactly when its predictor is computed, but for predictors that are context or markers.
            answers = (labels != IGNORE) & (labels != 7)
            assert torch.equal((g.active & answers), (g.kept & answers))


def many(policy: str, ratio: float = 0.5, active_set: str = "predictors", rows: int = 40, **changes):
    """Decisions about rows of a prompt of 5 (visual at 0 to 3), 20 answer tokens and a marker; scores at random."""
    labels = torch.full((rows, 26), IGNORE)
    labels[:, 5:25] = torch.arange(20) % 7
    labels[:, 25] = 99
    target = shift_labels(labels) != IGNORE
    reference = spread(torch.rand(rows, 21, generator=torch.Generator().manual_seed(0)), target)
    nothing = torch.full(labels.shape, math.nan)
    ids = torch.arange(rows)
    signals = signals_of(labels, ids, nothing, reference, step=3, seed=1, lambda_=1.0, combine="convex")
    attended = torch.ones_like(target)
    return decide(POLICIES[policy], signals, labels, attended, SPECIAL, ratio, active_set, **changes), reference


class TestBeyondThePaper:
    def test_chunks_are_kept_whole(self):
        g, _ = many("chunks", ratio=0.4)  # 8 of 20: one chunk of 8, or the last of 4 and half of another
        kept = g.kept[:, 4:24].view(-1, 20)
        for row in kept:
            assert row.sum() == 8
            parts = [row[:8].sum(), row[8:16].sum(), row[16:].sum()]
            assert sorted(map(int, parts)) in ([0, 0, 8], [0, 4, 4])

    def test_earliest_with_prefix_leaves_every_kept_target_its_whole_context(self):
        g, _ = many("earliest", active_set="prefix")
        lengths = (g.kept & g.candidate).sum(1)
        assert lengths.min() <= 3
        assert lengths.max() >= 18
        assert 8 < lengths.double().mean() < 12
        for row, n in zip(range(40), lengths, strict=True):
            assert positions(g.supervised[row : row + 1]) == list(range(4, 4 + n))
            assert positions(g.active[row : row + 1]) == [*range(4 + n), 25]

    def test_prefix_of_any_policy_reaches_up_to_the_last_kept_candidate(self):
        g, _ = many("regate", active_set="prefix", ratio=0.1)
        for row in range(40):
            last = positions((g.kept & g.candidate)[row : row + 1])[-1]
            assert positions(g.active[row : row + 1]) == [*range(last + 1), 25]
        assert torch.equal(g.supervised, g.kept & g.candidate)

    def test_mixed_rows_are_whole_or_sparse_and_keep_the_share(self):
        g, _ = many("mixed", rows=400)
        counts = (g.kept & g.candidate).sum(1)
        assert set(counts.tolist()) == {7, 20}  # a quarter whole, the others a third
        assert counts.double().mean() / 20 == pytest.approx(0.5, abs=0.04)

    def test_batch_keeps_the_hardest_of_all_rows(self):
        g, reference = many("batch")
        chosen, left = g.kept & g.candidate, g.candidate & ~g.kept
        assert chosen.sum() == 400
        assert reference[chosen].min() >= reference[left].max()
        assert len(set(chosen.sum(1).tolist())) > 1

    @pytest.mark.parametrize("policy", ["dense", "regate"])
    def test_a_share_of_visual_positions_is_left_out_and_answers_are_as_without(self, policy):
        visual = torch.zeros(40, 26, dtype=torch.bool)
        visual[:, :4] = True
        g, _ = many(policy, visual=visual, visual_ratio=0.5)
        plain, _ = many(policy)
        assert (g.active[:, :4].sum(1) == 2).all()
        assert len({tuple(row) for row in g.active[:, :4].tolist()}) > 1
        assert torch.equal(g.active[:, 4:], plain.active[:, 4:])
        assert torch.equal(g.supervised, plain.supervised)
        assert g.elides

    def test_a_visual_position_that_predicts_stays(self):
        visual = torch.zeros(40, 26, dtype=torch.bool)
        visual[:, :5] = True
        g, _ = many("dense", visual=visual, visual_ratio=0.2)
        assert g.active[:, 4].all()


def test_predictor_space():
    labels = torch.tensor([[5, IGNORE, 6, 7]])
    target = shift_labels(labels) != IGNORE
    assert shift_labels(labels).tolist() == [[IGNORE, 6, 7, IGNORE]]
    assert ordinals(target)[target].tolist() == [0, 1]
    assert spread(torch.tensor([[0.5, 0.25]]), target)[0, 1:3].tolist() == [0.5, 0.25]
    assert active_positions(labels, labels != 99, labels == 99, target).tolist() == [[False, True, True, False]]


class TestDifficultyBuffer:
    def buffer(self, ids=(7, 3, 9), counts=(2, 3, 1)) -> DifficultyBuffer:
        return DifficultyBuffer(np.array(ids), np.array(counts), beta=0.9)

    def observe(self, buffer, sample, values, epoch):
        rows = [(row, i, v) for row, vs in enumerate(values) for i, v in vs.items()]
        row, ordinal, loss = (torch.tensor(x) for x in zip(*rows, strict=True))
        buffer.update(Observations(torch.tensor(sample), row, ordinal, loss.float()), epoch)

    def test_first_observation_sets_and_later_ones_average(self):
        buffer = self.buffer()
        assert buffer.lookup(torch.tensor([3]), 4).isnan().all()
        self.observe(buffer, [3], [{0: 2.0, 2: 1.0}], epoch=0)
        assert buffer.lookup(torch.tensor([3]), 3).nan_to_num(-1).tolist() == [[2.0, -1.0, 1.0]]
        self.observe(buffer, [3], [{0: 1.0}], epoch=1)
        assert buffer.lookup(torch.tensor([3]), 1).item() == pytest.approx(1.9, abs=1e-3)

    def test_a_repeated_sample_counts_once_an_epoch(self):
        buffer = self.buffer()
        self.observe(buffer, [7, 7], [{0: 2.0}, {0: 8.0, 1: 8.0}], epoch=0)
        self.observe(buffer, [7], [{0: 8.0}], epoch=0)
        assert buffer.lookup(torch.tensor([7]), 2).nan_to_num(-1).tolist() == [[2.0, -1.0]]

    def test_lookup_ends_with_the_answer(self):
        buffer = self.buffer()
        self.observe(buffer, [7], [{0: 1.0, 1: 1.0}], epoch=0)
        self.observe(buffer, [3], [{0: 5.0}], epoch=0)
        assert buffer.lookup(torch.tensor([9, 7]), 3).nan_to_num(-1).tolist() == [[-1, -1, -1], [1, 1, -1]]

    def test_memory(self):
        counts = np.full(10_000, 40)
        buffer = DifficultyBuffer(np.arange(10_000), counts)
        assert buffer.nbytes <= 2 * counts.sum() + 16 * len(counts) + 64

    def test_save_and_load(self, tmp_path):
        buffer, other = self.buffer(), self.buffer()
        self.observe(buffer, [3, 9], [{0: 2.0}, {0: 3.0}], epoch=4)
        buffer.save(tmp_path)
        other.load(tmp_path)
        assert torch.equal(other.ema.view(torch.int16), buffer.ema.view(torch.int16))
        assert torch.equal(other.mark, buffer.mark)
        with pytest.raises(ValueError, match="another training set"):
            self.buffer(counts=(2, 3, 2)).load(tmp_path)
        with pytest.raises(ValueError, match="cannot be read"):
            other.load(tmp_path / "nowhere")

    def test_bad_ids(self):
        with pytest.raises(ValueError, match=r"occur more than once, for example \[3\]"):
            self.buffer(ids=(3, 3, 1))
        with pytest.raises(ValueError, match="must lie in"):
            self.buffer(ids=(3, -1, 1))
        with pytest.raises(KeyError, match=r"\[8\] are not in the training set"):
            self.buffer().lookup(torch.tensor([8]), 1)
        with pytest.raises(ValueError, match="sample 9 has more targets"):
            self.observe(self.buffer(), [9], [{1: 1.0}], epoch=0)

    @given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.floats(0, 0.99))
    def test_the_ema_stays_within_what_was_seen(self, seen, beta):
        ema = torch.tensor([math.nan])
        for loss in seen:
            ema = update_ema(ema, torch.tensor([loss]), beta)
        assert min(seen) - 1e-4 <= ema.item() <= max(seen) + 1e-4

    def test_fp16_moves_where_bf16_stalls(self):
        """Why the buffer is fp16: at beta 0.9 a step of 1 % must not be rounded away."""
        m, loss = torch.tensor([2.0]), torch.tensor([1.97])
        assert update_ema(m, loss, 0.9).half() != m.half()
        assert update_ema(m, loss, 0.9).bfloat16() == m.bfloat16()
