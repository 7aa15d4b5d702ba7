"""Attention to a prompt on a GPU: its kernels against their references, and times."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ultraflash_kernels.fp8_linear import quantise_rows
from ultraflash_kernels.rms_norm import rms_norm
from ultraflash_kernels.text_attention import text_attention, text_attention_fp8

if TYPE_CHECKING:
    from benchmarks.gpu.here import Here, Impl

__all__ = ["compared"]


def compared(here: "Here", *, tokens: int, heads: int, head: int) -> dict[str, Any]:
    """Return relative errors of the norm of keys and of the attention kernel, for a
    group of ``tokens`` and a chunk of an eighth, and how many of its 8 bits differ from
    those of quantising afterwards; on a GPU also times, in ms, of the kernel and of the
    reference with all 512 keys of a padded prompt."""
    found: dict[str, Any] = {}
    here.tried(found, "rms_norm", lambda: _norm_off(here, tokens, heads * head))
    for some, lengths in ((tokens, (64, 128, 512)), (tokens // 8, (128,))):
        for keys in (8, 24) if here.dry else lengths:
            given = _inputs(here, some, keys, heads, head)
            name = f"text_attention, {some} tokens to {keys} keys"
            here.tried(found, name, lambda given=given: _off(here, given))
            here.tried(found, f"{name}, 8 bits that differ", lambda given=given: _differing(here, given))
            if not here.dry:
                call = lambda given=given: text_attention(*given, impl=here.fast)  # noqa: E731
                here.tried(found, f"{name}, ms", lambda call=call: here.median_ms(call))
                small = lambda given=given: text_attention_fp8(*given, impl=here.fast)  # noqa: E731
                here.tried(found, f"{name}, to 8 bits, ms", lambda small=small: here.median_ms(small))
        if not here.dry:
            given = (*_inputs(here, some, 512, heads, head)[:4], None)
            plain = lambda given=given: text_attention(*given, impl="reference")  # noqa: E731
            here.tried(found, f"{some} tokens, PyTorch, 512 keys, ms", lambda plain=plain: here.median_ms(plain))
    return found


def _inputs(here: "Here", tokens: int, keys: int, heads: int, head: int) -> tuple[Tensor, ...]:
    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device=here.device).to(here.dtype)

    counts = torch.zeros(keys, device=here.device)
    counts[keys // 2] = 5.9
    counts[keys // 2 + 1 :] = -float("inf")
    k, v = made(1, heads, keys, head), made(1, heads, keys, head)
    return made(1, tokens, heads * head), made(heads * head), k, v, counts


def _norm_off(here: "Here", tokens: int, width: int) -> float:
    x, weight = (torch.randn(shape, device=here.device).to(here.dtype) for shape in ((tokens, width), (width,)))
    impls: tuple[Impl, Impl] = (here.fast, "reference")
    got, expected = (rms_norm(x, weight, impl=impl).double() for impl in impls)
    return float((got - expected).norm() / expected.norm())


def _off(here: "Here", given: tuple[Tensor, ...]) -> float:
    impls: tuple[Impl, Impl] = (here.fast, "reference")
    got, expected = (text_attention(*given, impl=impl).double() for impl in impls)
    return float((got - expected).norm() / expected.norm())


def _differing(here: "Here", given: tuple[Tensor, ...]) -> int:
    small = text_attention_fp8(*given, impl=here.fast)
    after = quantise_rows(text_attention(*given, impl=here.fast), impl="reference")
    values = small.values.view(torch.uint8) != after.values.view(torch.uint8)
    return int(values.sum()) + int((small.scales != after.scales).sum())
