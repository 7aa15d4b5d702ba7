"""Trace the GPU launches of a full-size group on meta tensors, with a prompt of typical
length."""

import collections.abc
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ultraflash_cli.engine.cache_policy import ONE_FEWER, CacheManagement
from ultraflash_cli.engine.layers.context import TYPICAL_TOKENS
from ultraflash_cli.engine.layers.dit import DitConfig
from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.profiles import ULTRAFLASH
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitInputs
from ultraflash_kernels import dispatch
from ultraflash_kernels.fp8_linear import op as fp8_linear_op
from ultraflash_kernels.memory_conv import library as memory_conv_library

__all__ = ["TRACES", "Launch", "StageTrace", "trace"]

_HEIGHT, _WIDTH = (side // 8 for side in ULTRAFLASH.base_size)

_FREE = frozenset(
    ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh")
)
"""Operations that launch nothing; torch reports which others are views."""

_WEIGHT_OF = {"memory_conv": 2, "earlier_conv": 2, "fused_conv": 1}
"""Position of the kernels among the arguments of fused convolutions."""


class Launch(NamedTuple):
    """One call of an operation of ``ultraflash_kernels`` or torch with given sizes."""

    op: str
    bytes: int
    """Bytes read and written."""
    flops: int
    """A multiply-add counts as 2."""
    rows: int = 0
    """Number of rows of the left factor of a matmul, or channels of a convolution: those
    out, or twice those in where they are fewer."""


@dataclass(frozen=True)
class StageTrace:
    """The launches of a stage for a group in the middle of a clip."""

    name: str
    frames: int
    """Output frames of the group."""
    launches: Mapping[Launch, int]

    @property
    def count(self) -> int:
        """Number of launches."""
        return sum(self.launches.values())

    @property
    def bytes(self) -> int:
        """Bytes moved by all launches."""
        return sum(count * launch.bytes for launch, count in self.launches.items())

    @property
    def pass_bytes(self) -> int:
        """Bytes moved by elementwise launches, that is, all except matmuls, attention
        and convolutions."""
        return sum(count * launch.bytes for launch, count in self.launches.items() if not launch.flops)

    @property
    def flops(self) -> int:
        """Arithmetic of all launches; a multiply-add counts as 2."""
        return sum(count * launch.flops for launch, count in self.launches.items())


class _Tracer(TorchDispatchMode):
    """Lists operations on meta tensors; composite operations of torch are
    decomposed."""

    def __init__(self, block_pairs: int) -> None:
        super().__init__()
        self.launches: Counter[Launch] = Counter()
        self._block_pairs = block_pairs

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = func.name().split("::")[1].split(".")[0]
        if op in ("scaled_dot_product_attention", "sketched_attention"):
            query, key = args[0], args[1]
            out = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
            pairs = args[3] if op == "sketched_attention" else query.shape[:-1].numel() * key.shape[2]
            self._add("scaled_dot_product_attention", [*args[:3], out], 4 * query.shape[-1] * pairs)
            return out if op == "scaled_dot_product_attention" else (out, func(*args, **kwargs)[1])
        if op in ("convolution", "upsample_nearest2d"):
            return self._picture_op(func, op, args, kwargs)

        if _is_composite(func.name()):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        out = func(*args, **kwargs)
        if op in _FREE or getattr(func, "is_view", False):
            return out

        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        touched = given if op == "copy_" else given + made
        self._add(op, touched, self._flops(op, args, made), _rows(op, args))
        return out

    def _picture_op(self, func: Any, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the result in a GPU's memory layout; on meta tensors torch would
        choose a different one."""
        out = func(*args, **kwargs)
        if out.ndim == 4:
            out = out.contiguous(memory_format=torch.channels_last)
        if op != "convolution":
            self._add(op, [args[0], out], 0)
            return out
        x, weight, bias = args[:3]
        self._add(op, [x, weight, out], 2 * out.numel() * weight[0].numel(), _channels(weight))
        if bias is not None:
            self._add("bias of a convolution", [out, out], 0)
        return out

    def _add(self, op: str, touched: Sequence[Tensor], flops: int, rows: int = 0) -> None:
        self.launches[Launch(op, sum(each.numel() * each.element_size() for each in touched), flops, rows)] += 1

    def _flops(self, op: str, args: Sequence[Any], made: Sequence[Tensor]) -> int:
        if op in ("addmm", "addmm_", "_addmm_activation", "baddbmm", "linear_gelu"):
            return 2 * made[0].numel() * args[1].shape[-1]
        if op in ("mm", "bmm", "_scaled_mm", "linear"):
            return 2 * made[0].numel() * args[0].shape[-1]
        if op in _WEIGHT_OF:
            return 2 * made[0].numel() * args[_WEIGHT_OF[op]][0].numel()
        if op.startswith("dense_attention"):
            return 4 * args[0].numel() * args[1].shape[2]
        if op.startswith("text_attention"):
            return 4 * args[0].numel() * args[2].shape[2]
        if op.startswith("block_list_attention"):
            query = args[0]
            return 4 * self._block_pairs * query.shape[3] ** 2 * query.shape[4]
        return 0


def _is_composite(name: str) -> bool:
    key = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)  # pyright: ignore[reportPrivateUsage]


def _rows(op: str, args: Sequence[Any]) -> int:
    if op in ("mm", "_scaled_mm", "linear"):
        return args[0].numel() // args[0].shape[-1]
    if op in ("addmm", "addmm_", "_addmm_activation", "linear_gelu"):
        factor = args[0] if op == "linear_gelu" else args[1]
        return factor.numel() // factor.shape[-1]
    return _channels(args[_WEIGHT_OF[op]]) if op in _WEIGHT_OF else 0


def _channels(weight: Tensor) -> int:
    """Return the channels out of a convolution, at most two for each channel in: sums
    of few terms take as long as those of fewer channels."""
    return min(weight.shape[0], 2 * weight.shape[1])


@contextmanager
def as_on_a_gpu() -> "collections.abc.Generator[None]":
    """Make operations on meta tensors choose implementations as on a GPU inside the
    block."""
    with ExitStack() as stack:
        for place, name, value in (
            (dispatch, "prefers_kernels", lambda _device: True),
            (dispatch, "device_refusal", lambda _device: None),
            (fp8_linear_op, "scaled_mm_refusal", lambda *_: None),
            (memory_conv_library, "library_refusal", lambda *_: None),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(torch.inference_mode())
        yield


def _meta(build: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        return to_channels_last(build().to(dtype).eval().requires_grad_(False))


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _prompt(config: DitConfig) -> Tensor:
    return _empty(1, TYPICAL_TOKENS, config.text_dim)


def _traced(run: Callable[[], object], block_pairs: int = 0) -> Counter[Launch]:
    with _Tracer(block_pairs) as tracer:
        run()
    return tracer.launches


def _for_layers(run: Callable[[int], Counter[Launch]], layers: int) -> dict[Launch, int]:
    """Trace one layer and two layers: every further layer launches the same as the
    second."""
    one, two = run(1), run(2)
    return {each: one[each] + (layers - 1) * (two[each] - one[each]) for each in one | two}


def _sr_dit(scale: int, *, fp8: bool = False) -> StageTrace:
    config = ULTRAFLASH.sr_dit
    assert config is not None, "the published model has one"
    height, width = scale * _HEIGHT, scale * _WIDTH
    latents = _empty(1, 16, config.group_latents, height, width)

    def run(layers: int) -> Counter[Launch]:
        stage: SrDit = _meta(lambda: SrDit(dataclasses.replace(config, num_layers=layers)), torch.bfloat16)
        stage = stage.to_fp8() if fp8 else stage.fold_gates()
        stage.paired_caches = True
        state = stage.init_state(batch=1, height=height, width=width, context=_prompt(config))
        for _ in range(2):
            state, _ = stage.step(state, SrDitInputs(latents, latents))
        budget = stage.key_budget(config.group_latents, height, width)
        pairs = config.num_heads * config.group_latents // config.block[0] * budget
        return _traced(lambda: stage.step(state, SrDitInputs(latents, latents)), pairs)

    return StageTrace("SR transformer", 4 * config.group_latents, _for_layers(run, config.num_layers))


def _generator(*, fp8: bool = False, managed: bool = False) -> StageTrace:
    """Trace a chunk; ``managed`` ones take one step less, see
    ``--cache-management``."""
    config = ULTRAFLASH.long_generator
    assert config is not None, "the published model has one"
    config = dataclasses.replace(config, independent_first_frame=False)
    config = CacheManagement(steps=ONE_FEWER).apply_generator(config) if managed else config
    chunk = config.chunk_latents
    noise = _empty(1, 16, chunk, _HEIGHT, _WIDTH)
    inputs = GeneratorInputs(noise, _empty(1, config.draws_per_chunk, 16, chunk, _HEIGHT, _WIDTH))

    def run(layers: int) -> Counter[Launch]:
        network: Generator = _meta(lambda: Generator(dataclasses.replace(config, num_layers=layers)), torch.bfloat16)
        stage = Sampler(network.to_fp8() if fp8 else network)
        state = stage.init_state(batch=1, height=_HEIGHT, width=_WIDTH, context=_prompt(config))
        for _ in range(config.window // chunk + 1):
            state, _ = stage.step(state, inputs)
        return _traced(lambda: stage.step(state, inputs))

    return StageTrace("generator", 4 * chunk, _for_layers(run, config.num_layers))


def _decoder(scale: int) -> StageTrace:
    _, config = ULTRAFLASH.at_scale(scale).latent_stages
    height, width = scale * _HEIGHT, scale * _WIDTH
    latents = _empty(1, 16, ULTRAFLASH.group_latents, height, width, dtype=torch.float16)
    together = config.piece(latents.shape[2], height, width)
    stage: Decoder = _meta(lambda: Decoder(config, together=together), torch.float16)
    state = stage.init_state(batch=1, height=height, width=width)
    state, _ = stage.step(state, latents)
    return StageTrace("decoder", 24, _traced(lambda: stage.step(state, latents)))


def _upsampler(scale: int) -> StageTrace:
    config, _ = ULTRAFLASH.at_scale(scale).latent_stages
    stage: LatentUpsampler = _meta(lambda: LatentUpsampler(config), torch.bfloat16)
    low = _empty(1, 16, ULTRAFLASH.group_latents, _HEIGHT, _WIDTH)
    _, memory = stage.upsample(low, None)
    return StageTrace("upsampler", 24, _traced(lambda: stage.upsample(low, memory)))


def _encoder() -> StageTrace:
    config = ULTRAFLASH.encoder
    assert isinstance(config, EncoderConfig), "the published model has one"
    stage: Encoder = _meta(lambda: Encoder(config), torch.float16)
    height, width = ULTRAFLASH.base_size
    frames = _empty(1, 3, 24, height, width, dtype=torch.float16)
    state, _ = stage.step(stage.init_state(batch=1, height=height, width=width), frames)
    return StageTrace("encoder", 24, _traced(lambda: stage.step(state, frames)))


TRACES: dict[str, Callable[[], StageTrace]] = {
    "generator": _generator,
    "generator fp8": lambda: _generator(fp8=True),
    "generator fp8 steps": lambda: _generator(fp8=True, managed=True),
    "encoder": _encoder,
    "upsampler 1k": lambda: _upsampler(2),
    "upsampler 2k": lambda: _upsampler(3),
    "SR transformer 1k": lambda: _sr_dit(2),
    "SR transformer 2k": lambda: _sr_dit(3),
    "SR transformer 1k fp8": lambda: _sr_dit(2, fp8=True),
    "SR transformer 2k fp8": lambda: _sr_dit(3, fp8=True),
    "decoder 1k": lambda: _decoder(2),
    "decoder 2k": lambda: _decoder(3),
}
"""Traceable groups: the published model at its sizes."""


def trace(name: str) -> StageTrace:
    """Trace a group by its name in ``TRACES``; takes about a second, without a GPU or
    much memory."""
    with as_on_a_gpu():
        return dataclasses.replace(TRACES[name](), name=name)
