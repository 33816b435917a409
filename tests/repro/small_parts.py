"""Tiny random parts of the small scale in the formats of the real ones: GGUF, ONNX, wheels, easy-VQA, checkpoints."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AddedToken, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from repro.families.family import world_bpe
from repro.pools import tokenizer_texts
from repro.small.models import easy_vqa_path, language_path, vision_path
from repro.small.packages import Package

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with SmolLM2's markers, of 700 entries."""
    specials = [AddedToken(t, special=True, normalized=False) for t in SPECIALS]
    backend = world_bpe(tokenizer_texts(0, 200), 700, specials)
    start, end = SPECIALS[1:]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=start, eos_token=end, pad_token=end, unk_token=SPECIALS[0]
    )


def llama(vocabulary: int, seed: int = 0) -> LlamaForCausalLM:
    """Two layers, 32 wide."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def dinov2(seed: int = 0, image_size: int = 56) -> Dinov2Model:
    """Two layers, 64 wide, no weight left at its first value."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, mlp_ratio=2, image_size=image_size, patch_size=14
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.embeddings.mask_token.zero_()
    return model


def parts(runs: Path) -> None:
    """What `make models` leaves, tiny."""
    text = tokenizer()
    text.save_pretrained(language_path(runs))
    llama(len(text)).save_pretrained(language_path(runs))
    dinov2().save_pretrained(vision_path(runs))
    easy(easy_vqa_path(runs))


def easy(folder: Path, pictures: int = 6) -> None:
    """easy-VQA's layout with a few pictures."""
    for split in ("train", "test"):
        data = folder / "easy_vqa" / "data" / split
        (data / "images").mkdir(parents=True)
        rows: list[list[Any]] = []
        for number in range(pictures):
            colour, value = [("red", (200, 0, 0)), ("blue", (0, 0, 200))][number % 2]
            Image.new("RGB", (64, 64), value).save(data / "images" / f"{number}.png")
            rows += [["what shape is in the image?", "circle", number], ["what color is the shape?", colour, number]]
            rows += [["is there a red shape?", "yes" if colour == "red" else "no", number]]
        (data / "questions.json").write_text(json.dumps(rows))


# --- wheels ---


def wheel(shelf: Path, package: Package, files: dict[str, bytes]) -> Package:
    """A wheel that calls itself ``package``, on a shelf for pip; the package with the wheel's true hash."""
    shelf.mkdir(parents=True, exist_ok=True)
    name = package.name.replace("-", "_")
    info = f"{name}-{package.version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": b"do as you like\n",
        f"{info}/RECORD": b"",
    }
    path = shelf / f"{name}-{package.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
    return replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


# --- GGUF ---


def write_gguf(path: Path, model: LlamaForCausalLM, text: PreTrainedTokenizerFast) -> None:
    """A Llama as llama.cpp writes it: weights float32, rotary halves interleaved, a GPT-2 tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    spec = json.loads(text.backend_tokenizer.to_str())
    names = [token for token, _ in sorted(text.get_vocab().items(), key=lambda item: item[1])]
    control = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([control if name in SPECIALS else gguf.TokenType.NORMAL for name in names])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in spec["model"]["merges"]])
    writer.add_bos_token_id(text.bos_token_id)
    writer.add_eos_token_id(text.eos_token_id)
    writer.add_pad_token_id(text.pad_token_id)
    writer.add_unk_token_id(text.unk_token_id)
    for name, value in gguf_tensors(model).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """llama.cpp's names and layout."""
    inner, heads, kv = model.model, model.config.num_attention_heads, model.config.num_key_value_heads
    found = {"token_embd.weight": inner.embed_tokens.weight, "output_norm.weight": inner.norm.weight}
    for i, layer in enumerate(inner.layers):
        attention, mlp = layer.self_attn, layer.mlp
        found |= {
            f"blk.{i}.attn_q.weight": _interleaved(attention.q_proj.weight, heads),
            f"blk.{i}.attn_k.weight": _interleaved(attention.k_proj.weight, kv),
            f"blk.{i}.attn_v.weight": attention.v_proj.weight,
            f"blk.{i}.attn_output.weight": attention.o_proj.weight,
            f"blk.{i}.ffn_gate.weight": mlp.gate_proj.weight,
            f"blk.{i}.ffn_up.weight": mlp.up_proj.weight,
            f"blk.{i}.ffn_down.weight": mlp.down_proj.weight,
            f"blk.{i}.attn_norm.weight": layer.input_layernorm.weight,
            f"blk.{i}.ffn_norm.weight": layer.post_attention_layernorm.weight,
        }
    return {name: value.detach().float().numpy().copy() for name, value in found.items()}


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


# --- ONNX ---


def export_onnx(model: Dinov2Model) -> Any:
    """A Dinov2 as torch's exporter writes it: names of biases and norms kept, matrices transposed and nameless.

    The position table is a constant of the graph, for pictures of the size of ``model``.
    """
    from onnx import TensorProto, helper, numpy_helper

    config, nodes, constants = model.config, [], []
    counter = iter(range(1900, 9999))

    def constant(value: Any, name: str = "") -> str:
        name = name or f"onnx::MatMul_{next(counter)}"
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def norm(x: str, module: Any, at: str) -> str:
        key = at.strip("/").replace("/", ".")
        scale, shift = constant(module.weight, f"{key}.weight"), constant(module.bias, f"{key}.bias")
        return node("LayerNormalization", [x, scale, shift], f"{at}/Add_1", epsilon=config.layer_norm_eps, axis=-1)

    def linear(x: str, module: Any, at: str) -> str:
        key = at.strip("/").replace("/", ".")
        product = node("MatMul", [x, constant(module.weight.T)], f"{at}/MatMul")
        return node("Add", [constant(module.bias, f"{key}.bias"), product], f"{at}/Add")

    hidden, heads, side = config.hidden_size, config.num_attention_heads, config.image_size // config.patch_size
    embed, first = model.embeddings, "backbone.embeddings"
    patch = "/backbone/embeddings/patch_embeddings/projection/Conv"
    kernel = constant(embed.patch_embeddings.projection.weight, f"{first}.patch_embeddings.projection.weight")
    bias = constant(embed.patch_embeddings.projection.bias, f"{first}.patch_embeddings.projection.bias")
    x = node("Conv", ["input_image", kernel, bias], patch, kernel_shape=[14, 14], strides=[14, 14])
    x = node("Reshape", [x, constant(np.array([1, hidden, side * side]))], "/backbone/embeddings/Reshape")
    x = node("Transpose", [x], "/backbone/embeddings/Transpose", perm=[0, 2, 1])
    x = node("Concat", [constant(embed.cls_token, f"{first}.cls_token"), x], "/backbone/embeddings/Concat_1", axis=1)
    table = [constant(embed.position_embeddings[:, :1]), constant(embed.position_embeddings[:, 1:])]
    x = node("Add", [x, node("Concat", table, "/backbone/embeddings/Concat_6", axis=1)], "/backbone/embeddings/Add")
    for i, layer in enumerate(model.encoder.layer):
        at = f"/backbone/encoder/layer.{i}"
        inner = norm(x, layer.norm1, f"{at}/norm1")
        split = []
        for what, module in (("key", "k_proj"), ("value", "v_proj"), ("query", "q_proj")):
            name = f"{at}/attention/attention/{what}"
            part = linear(inner, getattr(layer.attention, module), name)
            part = node("Reshape", [part, constant(np.array([1, -1, heads, hidden // heads]))], f"{name}/Reshape")
            order = [0, 2, 3, 1] if what == "key" else [0, 2, 1, 3]
            split.append(node("Transpose", [part], f"{name}/Transpose", perm=order))
        key, value, query = split
        scores = node("MatMul", [query, key], f"{at}/attention/attention/MatMul")
        scale = constant(np.float32((hidden // heads) ** -0.5))
        weights = node("Softmax", [node("Mul", [scores, scale], f"{at}/attention/attention/Mul")],
                       f"{at}/attention/attention/Softmax", axis=-1)  # fmt: skip
        seen = node("MatMul", [weights, value], f"{at}/attention/attention/MatMul_1")
        seen = node("Transpose", [seen], f"{at}/attention/attention/Transpose", perm=[0, 2, 1, 3])
        seen = node("Reshape", [seen, constant(np.array([1, -1, hidden]))], f"{at}/attention/attention/Reshape_3")
        seen = linear(seen, layer.attention.o_proj, f"{at}/attention/output/dense")
        scaled = [seen, constant(layer.layer_scale1.lambda1, f"backbone.encoder.layer.{i}.layer_scale1.lambda1")]
        x = node("Add", [node("Mul", scaled, f"{at}/layer_scale1/Mul"), x], f"{at}/Add")
        wide = linear(norm(x, layer.norm2, f"{at}/norm2"), layer.mlp.fc1, f"{at}/mlp/fc1")
        root = node("Div", [wide, constant(np.float32(2**0.5))], f"{at}/mlp/activation/Div")
        erf = node("Add", [node("Erf", [root], f"{at}/mlp/activation/Erf"), constant(np.float32(1))],
                   f"{at}/mlp/activation/Add")  # fmt: skip
        half = node("Mul", [wide, constant(np.float32(0.5))], f"{at}/mlp/activation/Mul")
        narrow = linear(node("Mul", [half, erf], f"{at}/mlp/activation/Mul_1"), layer.mlp.fc2, f"{at}/mlp/fc2")
        scaled = [narrow, constant(layer.layer_scale2.lambda1, f"backbone.encoder.layer.{i}.layer_scale2.lambda1")]
        x = node("Add", [node("Mul", scaled, f"{at}/layer_scale2/Mul"), x], f"{at}/Add_1")
    last = norm(x, model.layernorm, "/backbone/layernorm")
    head = node("ReduceMean", [last], "/decoder/Mean", keepdims=1)  # in the place of the saliency head
    size = config.image_size
    shape = ["batch_size", 3, size, size]
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("input_image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(head, TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
