"""A frozen vision tower that runs once a sample: its outputs are stored, and later stand in for its forward pass.

No model is known here by name. The tower is what `get_encoder(modality="image")` gives; its `forward` is replaced by
one that returns stored outputs. The model itself is given stand-ins for the pixels, in which each picture holds its
number in place of its content: whatever the model does on the way to its tower (choosing tiles, dropping padding,
joining images and videos), at the tower's door the numbers tell which pictures are asked for, and in which order.

Features are computed one sample at a time, whatever the batch: so a sample has the same features, bit for bit, in the
run that stores them and in every later one. Against a run without a cache that holds for batches of one sample; in
larger ones a matrix product of another height may round differently in the last bit. Before the first entry of a kind
is written, the inputs of the decoder with the cache are compared with those without it; where they differ, the model is
refused. Written for any device, checked on the CPU only: this file was never run on a GPU.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
import transformers
import xxhash
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from regate.elision import UnsupportedModel
from regate.store import bytes_of, key_of
from regate.vision_rows import KEY, VisionRows, Visual, is_pixels, leading, number_of_pictures

_DIGITS, _BASE = 4, 128  # a picture's number as digits that every float dtype holds exactly
_FIELDS = ("last_hidden_state", "pooler_output")
_PIXELS_ELSEWHERE = "makes something of the pixels other than giving them to its vision tower"


class TowerOutput:
    """Outputs of a tower: of one call, or joined from stored ones. Remembers which of them the model reads.

    fields: {"last_hidden_state", "pooler_output", "hidden_states.I": Tensor [rows, ...]}; levels: how many hidden
    states the tower gave, for negative indices; model: its name, for messages.
    """

    def __init__(self, model: str, fields: dict[str, Tensor], levels: int):
        self._model, self._fields, self._levels, self.read = model, fields, levels, set[str]()

    @classmethod
    def of(cls, model: str, output: Any) -> "TowerOutput":
        """What a tower returned."""
        if not isinstance(output, transformers.utils.ModelOutput):
            raise _unsupported(model, f"has a vision tower that returns a {type(output).__name__}")
        levels = output.get("hidden_states") or ()
        fields = {name: output[name] for name in _FIELDS if isinstance(output.get(name), Tensor)}
        fields |= {f"hidden_states.{i}": level for i, level in enumerate(levels) if level is not None}
        return cls(model, fields, len(levels))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Levels(self) if name == "hidden_states" else self.take(name)

    def __getitem__(self, name: Any) -> Any:
        return getattr(self, name if isinstance(name, str) else next(iter(self._fields)) if name == 0 else f"[{name}]")

    def take(self, name: str) -> Tensor:
        """A field, remembered as read; UnsupportedModel if there is none."""
        if name not in self._fields:
            known = ", ".join(self._fields)
            raise _unsupported(self._model, f"reads `{name}` of its vision tower's output, where there is {known}")
        self.read.add(name)
        return self._fields[name]


class _Levels(Sequence):
    """`hidden_states` of a TowerOutput."""

    def __init__(self, output: TowerOutput):
        self._output = output

    def __len__(self) -> int:
        return self._output._levels

    def __getitem__(self, index: Any) -> Tensor:
        return self._output.take(f"hidden_states.{range(len(self))[index]}")


class VisionCache:
    """Features of a model's frozen vision tower, stored and used in the place of its forward pass.

        cache = VisionCache(model, rows)          # rows: VisionRows, given to the collator
        cache.bind(device)                        # before the data loader starts
        with cache(batch):                        # a batch of the collator: puts in what is missing
            model(**batch)

    Raises ValueError for a tower that trains or is random, UnsupportedModel, by name, for models that are not
    understood.
    """

    def __init__(self, model: nn.Module, rows: VisionRows, autocast: Callable[[], Any] = contextlib.nullcontext):
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.name = type(base).__name__
        self.base, self.rows, self.autocast = base, rows, autocast
        self.tower: Any = frozen_tower(base)
        self.decoder: Any = base.get_decoder()
        self._tower_forward, self._decoder_forward = self.tower.forward, self.decoder.forward
        self._checked: set[tuple] = set()

    @classmethod
    def of_trainer(cls, trainer: Any) -> "VisionCache":
        """For a ReGateTrainer with ``cache_vision``, on its collator; ValueError where it cannot work."""
        from regate.data import ConversationCollator

        args, collator = trainer.args, trainer.data_collator
        if not isinstance(collator, ConversationCollator):
            raise ValueError(
                "cache_vision needs conversations as rows and the trainer's own collator, or a ConversationCollator; "
                f"found {type(collator).__name__}"
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or args.torch_compile:
            raise ValueError(
                "cache_vision: a tower that is compiled, or whose weights are shared out (FSDP, DeepSpeed), must run "
                "on all ranks in each step. Leave cache_vision out, or train with DDP"
            )
        collator.vision = VisionRows(args.cache_vision, args.cache_gb, collator.encode)
        return cls(trainer.model, collator.vision, trainer.accelerator.autocast)

    def bind(self, device: torch.device) -> None:
        """Says whose features these are: of the weights as they are now, in this precision, on this kind of device."""
        config = self.base.config.to_dict()
        config = {k: v for k, v in config.items() if k not in ("text_config", "_name_or_path", "dtype", "use_cache")}
        digest = xxhash.xxh3_128()
        for name, tensor in [*self.tower.named_parameters(), *self.tower.named_buffers()]:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(bytes_of(tensor))
        with self.autocast():
            precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        attention = getattr(self.tower.config, "_attn_implementation", None)
        libraries = [torch.__version__, transformers.__version__]
        parts = [self.name, config, digest.hexdigest(), str(precision), machine, attention, libraries]
        self.rows.tower = key_of(json.loads(json.dumps(parts, default=str)))

    @contextlib.contextmanager
    def __call__(self, batch: dict[str, Any]) -> Iterator[None]:
        """For one forward pass: puts stand-ins of the pixels into ``batch`` and answers for the tower.

        Features that are not stored yet are computed first, and stored.
        """
        present: list[Visual] = [visual for visual in batch.pop(KEY, []) if visual is not None]
        for visual in present:
            self.fill(visual, batch["input_ids"].device)
        with self._replay(batch, present):
            yield

    def fill(self, visual: Visual, device: torch.device) -> None:
        """Computes and stores the features of a row where there are none yet; so they can be made ahead of training."""
        if visual["features"] is None:
            features = self._record(visual, device)
            self.rows.store.put(visual["key"], features)
            visual["features"] = features

    # ---- stored outputs in the place of the tower ------------------------------------------------------------------

    @contextlib.contextmanager
    def _replay(self, batch: dict[str, Any], visuals: list[Visual]) -> Iterator[None]:
        if not visuals:
            yield
            return
        batch |= stand_ins(visuals, batch["input_ids"].device)
        pieces: dict[int, tuple[list[int], dict[str, Tensor], int]] = {}
        base = 1
        for visual in visuals:
            for ids, fields, levels in _pieces(visual["features"], batch["input_ids"].device):
                pieces[base + ids[0]] = ([base + i for i in ids], fields, levels)
            base += number_of_pictures(visual)

        def answer(*args: Any, **kwargs: Any) -> TowerOutput:
            ids, parts, levels = self._numbers(args, kwargs).flatten().tolist(), [], 0
            while ids:
                expected, fields, levels = pieces.pop(ids[0], ([], {}, 0))
                if not expected or ids[: len(expected)] != expected:
                    raise _unsupported(
                        self.name, "calls its tower on other pictures in a batch than for a sample alone"
                    )
                parts.append(fields)
                ids = ids[len(expected) :]
            joined = {name: _join([part[name] for part in parts]) for name in parts[0]}
            return TowerOutput(self.name, joined, levels)

        with self._instead(self.tower, answer):
            yield
        if pieces:
            raise _unsupported(self.name, "does not give all of a batch's pictures to its tower")

    # ---- a sample's outputs, computed ------------------------------------------------------------------------------

    @torch.no_grad()
    def _record(self, visual: Visual, device: torch.device) -> dict[str, Tensor]:
        """Runs the model, up to its decoder, on one sample, and returns what it reads of its tower's outputs."""
        inputs = {name: value.to(device) for name, value in visual["inputs"].items() if name != "labels"}
        pixels = {name: value for name, value in inputs.items() if is_pixels(name)}
        rows = [value.flatten(0, len(leading(value.shape)) - 1) for _, value in sorted(pixels.items())]
        calls: list[tuple[Tensor, TowerOutput]] = []

        def compute(*args: Any, **kwargs: Any) -> TowerOutput:
            numbers = self._numbers(args, kwargs)
            given = _pixels_of(args, kwargs)
            real = _chosen(rows, numbers.flatten() - 1).reshape(given.shape).to(given.dtype)
            args = tuple(real if value is given else value for value in args)
            kwargs = {name: real if value is given else value for name, value in kwargs.items()}
            output = TowerOutput.of(self.name, self._tower_forward(*args, **kwargs))
            calls.append((numbers, output))
            return output

        with self._instead(self.tower, compute):
            self._decoder_inputs(inputs | stand_ins([visual], device))
        features = {}
        for i, (numbers, output) in enumerate(calls):
            features[f"{i}.numbers"] = numbers - 1
            features[f"{i}.levels"] = torch.tensor(output._levels)
            for name in sorted(output.read):
                order = _order(output._fields[name])
                # Stored as it lies in memory: the same numbers in another order of dimensions round differently.
                features[f"{i}.{name}"] = output._fields[name].permute(order).contiguous()
                features[f"{i}.order.{name}"] = torch.tensor(order)
        seen = [number for numbers, _ in calls for number in numbers.flatten().tolist()]
        if not seen or len(set(seen)) < len(seen):
            raise _unsupported(self.name, "calls its vision tower " + ("twice on a picture" if seen else "not at all"))
        kind = tuple(sorted((name, value.ndim) for name, value in pixels.items()))
        if kind not in self._checked:
            self._check(visual | {"features": features}, inputs)
            self._checked.add(kind)
        return features

    def _check(self, visual: Visual, inputs: dict[str, Tensor]) -> None:
        """Refuses the model unless its decoder gets with stored features what it gets with pixels: for the sample
        alone bit for bit, and twice in one batch within rounding."""
        from regate.data import join

        for times in (1, 2):
            batch = join([inputs] * times, 0, "right")
            expected = self._decoder_inputs(batch, joined=True)
            tokens = {name: value for name, value in batch.items() if not is_pixels(name)}
            try:
                with self._replay(tokens, [visual] * times):
                    found = self._decoder_inputs(tokens, joined=True)
            except UnsupportedModel:
                raise
            except (RuntimeError, ValueError, IndexError) as error:
                raise _unsupported(self.name, f"{_PIXELS_ELSEWHERE} ({error})") from error
            same = torch.equal if times == 1 else _close
            if found.keys() != expected.keys() or not all(same(found[name], expected[name]) for name in found):
                raise _unsupported(self.name, _PIXELS_ELSEWHERE)

    def _decoder_inputs(self, inputs: dict[str, Tensor], joined: bool = False) -> dict[str, Tensor]:
        """Tensors that the decoder is given, in evaluation mode. ``inputs``: a batch, or (not joined) one sample."""
        from regate.data import join

        seen: dict[str, Tensor] = {}

        def stop(*args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
            seen.update({name: value for name, value in kwargs.items() if isinstance(value, Tensor)})
            return BaseModelOutputWithPast(last_hidden_state=kwargs.get("inputs_embeds"))

        batch = inputs if joined else join([inputs], 0, "right")
        modes = {module: module.training for module in self.base.modules()}
        self.base.eval()
        try:
            with torch.no_grad(), self.autocast(), self._instead(self.decoder, stop):
                self.base.base_model(**{name: value for name, value in batch.items() if name != "labels"})
        finally:
            for module, training in modes.items():
                module.training = training
        return seen

    # ---- helpers ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _instead(self, module: nn.Module, forward: Callable) -> Iterator[None]:
        """Another forward for a module; its hooks stay."""
        before = vars(module).get("forward")
        module.forward = forward
        try:
            yield
        finally:
            if before is None:
                del module.forward
            else:
                module.forward = before

    def _numbers(self, args: tuple, kwargs: dict) -> Tensor:
        """int64 [rows, pictures of a row]: the numbers in the stand-ins that a tower is given; from 1."""
        pixels = _pixels_of(args, kwargs)
        if pixels is None:
            raise _unsupported(self.name, "gives its vision tower something other than pixels")
        digits = (pixels[..., 0, 0, :_DIGITS] if pixels.ndim >= 4 else pixels[..., :_DIGITS]).double().cpu()
        weights = torch.tensor([_BASE**i for i in range(_DIGITS)], dtype=torch.double)
        numbers = (digits * weights).sum(-1)
        if ((digits != digits.round()) | (digits < 0) | (digits >= _BASE)).any() or (numbers < 1).any():
            raise _unsupported(self.name, f"{_PIXELS_ELSEWHERE}, or gives it pictures that only fill up")
        return numbers.long().reshape(len(pixels), -1)


def _unsupported(model: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"cache_vision: {model} {what}; this is not supported. Train without cache_vision")


def frozen_tower(model: Any) -> nn.Module:
    """The vision tower of ``model``.

    Raises UnsupportedModel if the class does not say which module that is, ValueError if it is not frozen or not the
    same in each call (dropout, batch statistics).
    """
    name = type(model).__name__
    tower = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model or model.get_encoder(modality="video") is not tower:
        raise UnsupportedModel(f"cache_vision: {name} does not say which one of its modules sees")
    if model.base_model is model or model.get_decoder() in (None, model, model.base_model):
        raise UnsupportedModel(f"cache_vision: {name} has no inner model with a decoder; pass the model with its head")
    trained = [parameter for parameter, weight in tower.named_parameters() if weight.requires_grad]
    if trained:
        raise ValueError(
            f"cache_vision needs a frozen vision tower; {len(trained)} tensors of {type(tower).__name__} are to be "
            f"trained ({trained[0]}, ...). Freeze it (--freeze-vision, or "
            "model.get_encoder(modality='image').requires_grad_(False)), or leave cache_vision out"
        )
    for path, module in tower.named_modules():
        rates = [(k, v) for k, v in vars(module).items() if "drop" in k and isinstance(v, float) and v > 0]
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            rates.append(("p", module.p))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            rates.append(("batch statistics", 1.0))
        if rates:
            raise ValueError(
                f"cache_vision needs a vision tower that gives the same features in each call; {path or 'the tower'} "
                f"({type(module).__name__}) has {rates[0][0]} = {rates[0][1]:g}. Set it to 0 in the model's vision "
                "configuration, or leave cache_vision out"
            )
    return tower


def stand_ins(visuals: list[Visual], device: torch.device) -> dict[str, Tensor]:
    """Pixels of a batch, float32, in which picture n holds the digits of n + 1 (and padding zeros): joined along
    the first dimension and filled up with zeros in the others, as `regate.data.join` does with true ones."""
    parts: dict[str, list[Tensor]] = {}
    base = 1
    for visual in visuals:
        for name, shape in sorted(visual["shapes"].items()):
            count = prod(leading(shape))
            numbers = torch.arange(base, base + count).reshape(leading(shape))
            parts.setdefault(name, []).append(numbers * visual["real"][name].cpu())
            base += count
    batch = {}
    for name, numbers in parts.items():
        shapes = [visual["shapes"][name] for visual in visuals if name in visual["shapes"]]
        largest = tuple(max(sizes) for sizes in zip(*(shape[1:] for shape in shapes), strict=True))
        whole = (sum(len(part) for part in numbers), *largest)
        joined = torch.zeros(leading(whole), dtype=torch.long)
        start = 0
        for part in numbers:
            joined[(slice(start, start + len(part)), *(slice(0, size) for size in part.shape[1:]))] = part
            start += len(part)
        digits = torch.stack([joined // _BASE**i % _BASE for i in range(_DIGITS)], dim=-1).float()
        if len(whole) >= 4:
            lines = torch.zeros(*leading(whole), 1, 1, whole[-1])
            lines[..., 0, 0, :_DIGITS] = digits
            batch[name] = lines.to(device).expand(whole)
        else:
            lines = torch.zeros(whole, device=device)
            lines[..., :_DIGITS] = digits.to(device)
            batch[name] = lines
    return batch


def _pieces(features: dict[str, Tensor], device: torch.device) -> Iterator[tuple[list[int], dict[str, Tensor], int]]:
    """Stored outputs in the smallest parts that a batch may join anew: (numbers of pictures, fields, levels)."""
    for i in sorted({int(name.split(".", 1)[0]) for name in features}):
        fields = {}
        for name in features:
            if name.startswith(f"{i}.order."):
                field, order = name.removeprefix(f"{i}.order."), features[name]
                fields[field] = features[f"{i}.{field}"].to(device).permute(*order.argsort().tolist())
        numbers, levels = features[f"{i}.numbers"].tolist(), int(features[f"{i}.levels"])
        if all(len(value) == len(numbers) for value in fields.values()):  # row by row
            for row, ids in enumerate(numbers):
                yield ids, {name: value[row : row + 1] for name, value in fields.items()}, levels
        else:
            yield [n for ids in numbers for n in ids], fields, levels


def _order(value: Tensor) -> list[int]:
    """Dimensions from the outermost to the innermost in memory."""
    return sorted(range(value.ndim), key=lambda d: -value.stride(d))


def _join(parts: list[Tensor]) -> Tensor:
    """Parts one after the other along the first dimension, in memory as they are."""
    order = _order(max(parts, key=len))
    inverse = [order.index(d) for d in range(len(order))]
    return torch.cat([part.permute(order) for part in parts], dim=inverse[0]).permute(inverse)


def _pixels_of(args: tuple, kwargs: dict) -> Any:
    """The one floating tensor among a tower's arguments, or None."""
    found = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point() and v.ndim >= 2]
    return found[0] if len(found) == 1 else None


def _chosen(parts: list[Tensor], numbers: Tensor) -> Tensor:
    """Pictures by number, int64 [n], of a sample whose inputs hold ``parts``: [n, ...]."""
    start = 0
    for part in parts:
        if start <= int(numbers.min()) and int(numbers.max()) < start + len(part):
            return part[(numbers - start).to(part.device)]
        start += len(part)
    return torch.cat(parts)[numbers.to(parts[0].device)]  # the model joined them, so they have one size


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: integers exactly."""
    if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.float().abs().max()) or 1.0
    epsilon = torch.finfo(a.dtype).eps
    return float((a.float() - b.float()).abs().max()) <= 64 * epsilon * scale
