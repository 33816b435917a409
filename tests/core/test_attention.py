"""Attention over frames: equal to a softmax written by hand and to what the classes return; placed where it belongs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regate.attention import answer_attention, attention_over_frames, predictors
from regate.elision import UnsupportedModel
from regate.saliency import cover, find_sinks, hits, mass_inside, over_slices, pointing, without
from regate.visual_grid import Grid, UnknownGrid, seen_part, visual_grids
from repro.families import FAMILIES
from repro.micro_data import Encoder, MicroCollator
from tests import tiny
from tests.media_files import write_video

WHOLE = (0.0, 0.0, 1.0, 1.0)


def videos(kind, processor, side="right", lengths=(6, 11), num_frames=4, seed=0):
    """A batch of videos alone: the rows 0, 3, ... of `tiny_rows`."""
    asked = [n for length in lengths for n in (length, 1, 1)]
    rows = tiny.tiny_rows(kind, processor, asked, seed, num_frames)[::3]
    return tiny.tiny_collate(processor, rows, side)


def stock(model, batch):
    """What the class itself returns: [layers, B, heads, L, L]."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return torch.stack(model.eval()(**inputs, output_attentions=True).attentions)


def hand_softmax(model, batch):
    """softmax(Q K^T / sqrt(d)) of every layer of a Qwen2 decoder, from its weights and the inputs of its layers."""
    decoder, config = model.get_decoder(), model.config.text_config
    with torch.no_grad():
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        states = model.eval()(**inputs, output_hidden_states=True).hidden_states
    real, length = batch["attention_mask"].bool(), batch["input_ids"].shape[1]
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    dim = config.hidden_size // heads
    position = torch.arange(length)
    angle = position[:, None] * config.rope_parameters["rope_theta"] ** (-torch.arange(0, dim, 2) / dim)

    def rotate(x):  # [B, heads, L, dim]
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    out = []
    for layer, x in zip(decoder.layers, states, strict=False):
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * layer.input_layernorm.weight
        q = rotate(layer.self_attn.q_proj(x).unflatten(-1, (heads, dim)).transpose(1, 2))
        k = rotate(layer.self_attn.k_proj(x).unflatten(-1, (shared, dim)).transpose(1, 2))
        k = torch.stack([k[:, h // (heads // shared)] for h in range(heads)], 1)
        allowed = (position[:, None] >= position)[None, None] & real[:, None, None]
        scores = (q @ k.transpose(-1, -2) / dim**0.5).masked_fill(~allowed, -torch.inf)
        out.append(torch.softmax(scores, -1))
    return torch.stack(out).detach()  # [layers, B, heads, L, L]


def assert_same(maps, full, batch, queries):
    for row, (one, chosen) in enumerate(zip(maps, queries, strict=True)):
        rows = full[:, row, :, chosen].numpy()  # [layers, heads, Q, L]
        positions = one.grid.positions
        np.testing.assert_allclose(one.weights, rows[..., positions], atol=1e-6)
        np.testing.assert_allclose(one.rest, 1 - rows[..., positions].sum((-3, -2, -1)), atol=1e-5)
        np.testing.assert_allclose(one.rest + one.weights.sum((-3, -2, -1)), 1, atol=1e-5)
        assert (one.queries == chosen.numpy()).all()
        assert one.weights.max() > 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_softmax_by_hand(side):
    model, processor = tiny.tiny_model("internvl")  # 4 query heads, 2 key heads
    batch = videos("internvl", processor, side)
    queries = predictors(batch["labels"])
    assert_same(attention_over_frames(model, batch, queries), hand_softmax(model, batch), batch, queries)


@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_what_the_class_returns(kind, side):
    model, processor = tiny.tiny_model(kind)
    batch = videos(kind, processor, side)
    queries = predictors(batch["labels"])
    maps = attention_over_frames(model, batch, queries)
    assert_same(maps, stock(model, batch), batch, queries)
    assert [m.weights.shape[:3] for m in maps] == [(2, 4, 6), (2, 4, 11)]
    assert (
        np.isin(batch["input_ids"].numpy()[1, maps[1].grid.positions], batch["input_ids"][1, queries[1]])
    ).sum() == 0


def test_padding_changes_nothing(kind):
    model, processor = tiny.tiny_model(kind)
    queries = predictors(videos(kind, processor)["labels"])
    for side in ("right", "left"):
        batch = videos(kind, processor, side)
        short, _ = attention_over_frames(model, batch, predictors(batch["labels"]))
        [alone] = attention_over_frames(model, videos(kind, processor, lengths=(6,)), queries[:1])
        np.testing.assert_allclose(short.weights, alone.weights, atol=1e-6)


def test_lora():
    model, processor = tiny.tiny_model("llava_onevision")
    lora = peft.LoraConfig(target_modules=r".*language_model.*\.(q|k)_proj", init_lora_weights=False, lora_dropout=0.5)
    adapted = peft.get_peft_model(model, lora)
    batch = videos("llava_onevision", processor)
    queries = predictors(batch["labels"])
    before = attention_over_frames(adapted, batch, queries)
    with adapted.disable_adapter():
        plain = attention_over_frames(adapted, batch, queries)
    assert np.abs(before[0].weights - plain[0].weights).max() > 1e-3
    assert_same(before, stock(adapted.merge_and_unload(), batch), batch, queries)


def test_the_model_is_afterwards_what_it_was(kind):
    model, processor = tiny.tiny_model(kind)
    model.get_decoder().layers[0].eval()
    modes = [m.training for m in model.modules()]
    configs = [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
    hooks = [len(m._forward_hooks) for m in model.get_decoder().modules()]
    batch = videos(kind, processor)
    attention_over_frames(model, batch, predictors(batch["labels"]))
    with pytest.raises(ValueError, match="queries of row 0"):
        attention_over_frames(model, batch, [torch.tensor([10**6]), torch.tensor([1])])
    broken = {k: v for k, v in batch.items() if not k.startswith("pixel_values")} | {"pixel_values": torch.zeros(1)}
    with pytest.raises(Exception):  # noqa: B017 whatever the class says of it
        attention_over_frames(model, broken, predictors(batch["labels"]))
    assert modes == [m.training for m in model.modules()]
    assert configs == [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
    assert "eager" not in configs
    assert hooks == [len(m._forward_hooks) for m in model.get_decoder().modules()]


def test_only_one_layer_is_in_memory():
    """No [L, L] weights outlive their layer: the second layer's hook finds the first one's freed."""
    import gc
    import weakref

    model, processor = tiny.tiny_model("internvl", layers=3)
    batch, alive = videos("internvl", processor), []

    def watch(module, args, output):
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 0
        alive.append(weakref.ref(output[1]))

    handles = [layer.self_attn.register_forward_hook(watch) for layer in model.get_decoder().layers]
    attention_over_frames(model, batch, predictors(batch["labels"]))
    assert len(alive) == len(handles) == 3


# --- places ---


def local(model):
    """Takes attention out of the vision tower, so that a visual token depends on its own cell alone."""
    decoder = {id(m) for m in model.get_decoder().modules()}

    def nothing(module, args, output):
        zero = torch.zeros_like
        return (zero(output[0]), *output[1:]) if isinstance(output, tuple) else zero(output)

    found = [m for m in model.modules() if type(m).__name__.endswith("Attention") and id(m) not in decoder]
    for module in found:
        module.register_forward_hook(nothing)
    assert found


def embeddings(model, batch):
    """What the decoder is given: [B, L, D]."""
    seen = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(kwargs["inputs_embeds"].detach().clone()), with_kwargs=True
    )
    with torch.no_grad():
        model(**{k: v for k, v in batch.items() if k != "labels"})
    handle.remove()
    return seen[0]


def from_frames(kind, processor, frames):
    """The batch of one row for given frames, uint8 [F, H, W, 3]."""
    content = [{"type": "video"}, {"type": "text", "text": "What?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    about = {"total_num_frames": len(frames), "fps": 1.0, "duration": 9.0, "frames_indices": list(range(len(frames)))}
    inputs = processor(
        text=[text], videos=[frames], do_sample_frames=False, video_metadata=[about], return_tensors="pt"
    )
    return {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor) and k != "token_type_ids"}


def test_a_change_in_a_cell_changes_the_token_of_that_cell(kind):
    model, processor = tiny.tiny_model(kind)
    local(model.eval())
    height, width = (32, 48) if kind == "qwen2_vl" else (32, 32)  # one class keeps the shape of frames
    frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    batch = from_frames(kind, processor, frames)
    [grid] = visual_grids(model.config, batch)
    slices, rows, columns = grid.positions.shape
    assert (rows, columns) == ((2, 3) if kind == "qwen2_vl" else (2, 2))
    assert grid.num_frames == 4
    assert sorted(f for shown in grid.frames for f in shown) == [0, 1, 2, 3]
    assert slices == (2 if kind == "qwen2_vl" else 4)
    before = embeddings(model, batch)
    for t, shown in enumerate(grid.frames):
        for frame in shown:
            for r in range(rows):
                for c in range(columns):
                    changed = frames.copy()
                    cell = changed[frame, r * height // rows : (r + 1) * height // rows]
                    cell[:, c * width // columns : (c + 1) * width // columns] ^= 128
                    after = embeddings(model, from_frames(kind, processor, changed))
                    moved = (after - before).abs().amax(-1)[0].nonzero().flatten().tolist()
                    assert moved == [grid.positions[t, r, c]]


def test_pictures_of_a_row_are_its_frames(kind):
    _, processor = tiny.tiny_model(kind)
    model, _ = tiny.tiny_model(kind)
    batch = tiny.tiny_batch(kind, processor, lengths=[3, 3], num_frames=2)  # a video, an image
    if kind == "llava_onevision":
        with pytest.raises(UnknownGrid, match="twice"):
            visual_grids(model.config, batch)
        return
    video, image = visual_grids(model.config, batch)
    assert video.num_frames == 2
    assert image.frames == ((0,),)
    assert image.positions.shape == (1, 2, 2)


def test_what_has_no_place_is_refused():
    ids = torch.tensor([[5, 9, 9, 9, 9, 5]])
    with pytest.raises(UnknownGrid, match="Q-Former"):
        visual_grids(SimpleNamespace(model_type="videochat2"), {"input_ids": ids})
    with pytest.raises(UnknownGrid, match=r"'mystery'.*known are internvl"):
        visual_grids(SimpleNamespace(model_type="mystery"), {"input_ids": ids})
    model, processor = tiny.tiny_model("smolvlm")
    batch = tiny.tiny_batch("smolvlm", processor, lengths=[3, 3, 3])
    with pytest.raises(UnknownGrid, match="row 2 has no visual tokens"):
        visual_grids(model.config, batch)
    tiles = batch["input_ids"][:1].clone()
    first = int((tiles[0] == model.config.image_token_id).nonzero()[0])
    tiles[0, first - 1] = 7  # <row_1_col_1>
    with pytest.raises(UnknownGrid, match="different markers"):
        visual_grids(model.config, {"input_ids": tiles})
    model, processor = tiny.tiny_model("internvl")
    eight = torch.full((1, 9), model.config.image_token_id)
    eight[0, 0] = 3
    with pytest.raises(UnknownGrid, match="found 8 visual tokens at position 1, expected 4"):
        visual_grids(model.config, {"input_ids": eight})
    with pytest.raises(UnsupportedModel, match="no inner decoder"):
        attention_over_frames(
            model.get_decoder(), {"input_ids": eight}, [torch.tensor([8])], [Grid(np.ones((1, 1, 1), int), ((0,),))]
        )


@pytest.mark.parametrize(("connector", "shape", "frames"), [
    ("stc_connector_v35", (4, 2, 2), ((0, 1), (2, 3), (4, 5), (6, 7))),
    ("stc_connector", (5, 3, 3), ((0,), (1, 2), (3, 4), (5, 6), (7,))),
])  # fmt: skip
def test_videollama2_halves_time_and_space(connector, shape, frames):
    config = SimpleNamespace(
        model_type="videollama2", projector_type=connector, num_frames=8, image_token_id=98, video_token_id=99,
        vision_config=SimpleNamespace(image_size=64, patch_size=16),
    )  # fmt: skip
    count = int(np.prod(shape))
    inputs = {
        "input_ids": torch.tensor([[1, *[99] * count, 2], [1, 2, *[98] * count]]),
        "pixel_values_videos": torch.zeros(1, 8, 3, 64, 64),
    }
    video, image = visual_grids(config, inputs)
    assert video.positions.shape == shape
    assert video.positions.flatten().tolist() == list(range(1, count + 1))
    assert video.frames == frames
    assert image.frames == ((0,),) * shape[0]
    low, high = (0.0, 1.0) if connector.endswith("v35") else (-0.25, 1.25)  # one patch of four on each side
    assert video.extent == (low, low, high, high)
    with pytest.raises(UnknownGrid, match="more visuals"):
        visual_grids(config, {"input_ids": inputs["input_ids"]})


def test_a_change_in_a_cell_of_videollama2_changes_its_token():
    """The whole model, less what mixes neighbours: the tower's attention and the connector's residual branches."""
    family = FAMILIES["videollama2"]
    tokenizer = family.tokenizer(["what happens ? a red star hops ."] * 50, 400)
    model = family.build(tokenizer).eval()
    processor = family.processor(tokenizer, family.size)
    local(model)
    for name, block in model.model.multi_modal_projector.named_modules():
        if name.count(".") == 1 and name[:2] in ("s1", "s2"):
            block.register_forward_hook(lambda block, args, out: torch.nn.functional.silu(block.downsample(args[0])))
    encode, collate = Encoder(processor), MicroCollator(processor)

    def batch_of(frames):
        return collate([{**encode.encode("what happens ?", "a red star .", 8), "frames": frames.tobytes()}])

    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    batch = batch_of(frames)
    [grid] = visual_grids(model.config, batch)
    assert grid.positions.shape == (4, 2, 2)
    before = embeddings(model, batch)
    for frame in range(8):
        for r, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
            changed = frames.copy()
            changed[frame, r * 32 : r * 32 + 32, c * 32 : c * 32 + 32] ^= 128
            moved = (embeddings(model, batch_of(changed)) - before).abs().amax(-1)[0].nonzero().flatten().tolist()
            assert moved == [grid.positions[frame // 2, r, c]]
            assert frame in grid.frames[frame // 2]
    queries = predictors(batch["labels"])
    assert_same(attention_over_frames(model, batch, queries), stock(model, batch), batch, queries)


def test_a_processor_that_pads_to_squares_shows_less_of_the_grid():
    square = SimpleNamespace(video_processor=SimpleNamespace(do_pad_to_square=True))
    seen = seen_part(square, 100, 200)
    assert seen == (0.0, -0.5, 1.0, 1.5)
    grid = Grid(np.zeros((1, 2, 2), int), ((0,),)).seen_through(seen)
    assert grid.extent == seen
    assert seen_part(SimpleNamespace(video_processor=None), 100, 200) == WHOLE
    with pytest.raises(UnknownGrid, match="crops"):
        seen_part(SimpleNamespace(video_processor=SimpleNamespace(do_center_crop=True)), 100, 200)


# --- from a file ---


def test_a_video_file_a_question_and_an_answer(kind, tmp_path):
    model, processor = tiny.tiny_model(kind)
    path = write_video(tmp_path / "clip.mp4", frames=12, size=(48, 32))
    found = answer_attention(model, processor, path, "What happens?", "The red ball moves to the left.", num_frames=4)
    assert found.frames.shape == (4, 32, 48, 3)
    assert "".join(found.tokens).strip().startswith("The red ball moves to the left.")
    layers, heads, queries, slices, *_ = found.maps.weights.shape
    assert (layers, heads, queries) == (2, 4, len(found.tokens))
    assert slices == len(found.maps.grid.frames) == (2 if kind == "qwen2_vl" else 4)
    with pytest.raises(ValueError, match="the answer is empty"):
        answer_attention(model, processor, path, "What?", " ")
    with pytest.raises(ValueError, match="no such file"):
        answer_attention(model, processor, tmp_path / "gone.mp4", "What?", "Yes.")
    model.config.get_text_config().max_position_embeddings = 8
    with pytest.raises(ValueError, match="at most 8"):
        answer_attention(model, processor, path, "What?", "Yes.")


# --- sinks and boxes ---


def test_a_token_that_every_query_attends_to_is_a_sink():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(64), size=(2, 3, 20)).astype(np.float32).reshape(2, 3, 20, 4, 4, 4)
    assert not find_sinks(weights).any()
    weights *= 0.5
    weights[1, 2, :, 3, 0, 1] += 0.5  # in one head only
    weights[0, 0, :9, 0, 0, 0] += 0.5  # of less than half of the queries: an object
    sinks = find_sinks(weights)
    assert np.argwhere(sinks).tolist() == [[1, 2, 3, 0, 1]]
    cleaned = without(weights, sinks)
    assert (cleaned[1, 2, :, 3, 0, 1] == 0).all()
    assert cleaned.sum() == pytest.approx(weights.sum() - weights[1, 2, :, 3, 0, 1].sum())
    assert (find_sinks(weights * np.float32(0.01)) == sinks).all()  # a head that hardly looks at frames
    with pytest.raises(ValueError, match="found 7 answer tokens, expected at least 8"):
        find_sinks(weights[:, :, :7])


@given(
    st.lists(st.floats(0, 64), min_size=4, max_size=4),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_cover_adds_up_to_the_box(corners, rows, columns):
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    covered = cover(np.array([x0, y0, x1, y1]), (rows, columns), (64, 64), WHOLE)
    assert covered.shape == (rows, columns)
    assert covered.min() >= 0
    assert covered.max() <= 1 + 1e-9
    assert covered.mean() * 64 * 64 == pytest.approx((x1 - x0) * (y1 - y0), abs=1e-6)


def test_boxes_and_cells():
    box = np.array([[0, 0, 16, 32], [np.nan] * 4, [20, 30, 30, 40]])  # 64 x 64, cells of 32
    covered = cover(box, (2, 2), (64, 64), WHOLE)
    assert covered[0].tolist() == [[0.5, 0], [0, 0]]
    assert not covered[1].any()
    assert covered[2] == pytest.approx(np.array([[20, 0], [80, 0]]) / 1024)
    hit = hits(box, (2, 2), (64, 64), WHOLE)
    assert hit.astype(int).tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [1, 0]]]
    fine = hits(np.array([10.0, 10, 30, 30]), (8, 8), (64, 64), WHOLE)  # centres at 4, 12, 20, 28, ...
    assert np.argwhere(fine).tolist() == [[r, c] for r in (1, 2, 3) for c in (1, 2, 3)]
    padded = cover(np.array([0.0, 0, 64, 64]), (4, 4), (64, 64), (-0.5, -0.5, 1.5, 1.5))
    assert padded.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_mass_and_pointing():
    covered, hit = np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool)
    covered[0, 0, 0], hit[0, 0, 0] = 0.5, True
    weights = np.array([[[[0.2, 0.1], [0.1, 0.0]]], [[[0.1, 0.2], [0.1, 0.0]]], np.zeros((1, 2, 2))])
    np.testing.assert_allclose(mass_inside(weights, covered), [0.25, 0.125, np.nan])
    np.testing.assert_allclose(pointing(weights, hit), [1, 0, np.nan])
    even = np.ones((1, 2, 2))
    assert mass_inside(even, covered) == covered.mean()  # even attention: the box's share of the area
    assert pointing(even, hit) == hit.mean()  # and a guesser's chance
    frames = over_slices(np.stack([np.zeros((2, 2)), np.ones((2, 2)), np.ones((2, 2))]), ((0, 1), (2,)))
    assert frames[:, 0, 0].tolist() == [0.5, 1.0]


def test_predictors_are_one_before_their_targets():
    labels = torch.tensor([[-100, -100, 4, 5], [7, -100, 8, -100]])
    assert [p.tolist() for p in predictors(labels)] == [[1, 2], [1]]


def test_grids_of_your_own():
    model, processor = tiny.tiny_model("internvl")
    batch = videos("internvl", processor, lengths=(4,))
    [grid] = visual_grids(model.config, batch)
    mine = dataclasses.replace(grid, positions=grid.positions.reshape(4, 1, 4))
    queries = predictors(batch["labels"])
    [maps], [same] = (attention_over_frames(model, batch, queries, [g]) for g in (mine, grid))
    np.testing.assert_array_equal(maps.weights.reshape(same.weights.shape), same.weights)
