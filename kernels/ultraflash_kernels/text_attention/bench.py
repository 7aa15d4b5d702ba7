"""Time cross-attention to a prompt at the published sizes."""

from functools import partial

import torch
from torch import Tensor

from ultraflash_kernels.measure import Case, implementations, main
from ultraflash_kernels.text_attention import text_attention, text_attention_fp8

__all__ = ["cases"]


def cases(device: torch.device) -> list[Case]:
    """A group at 2K and a chunk of the generator, with 128 and 512 keys and to 8 bits,
    on a GPU; a thousand tokens elsewhere."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    sizes = ((84240, 128), (84240, 512), (4680, 128)) if gpu else ((1024, 128),)
    found = [_case(tokens, keys, dtype, device) for tokens, keys in sizes]
    return [*found, _case(*sizes[0], dtype, device, fp8=True)]


def _case(
    tokens: int, keys: int, dtype: torch.dtype, device: torch.device, *, fp8: bool = False
) -> Case:
    def made(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    q, weight = made(1, tokens, 1536), made(1536)
    k, v = made(1, 12, keys, 128), made(1, 12, keys, 128)
    weights = torch.zeros(keys, device=device)
    weights[-1] = 6.0
    attend = text_attention_fp8 if fp8 else text_attention
    return Case(
        name=f"{attend.__name__} {tokens} tokens to {keys} keys",
        dtype=dtype,
        calls={
            impl: partial(attend, q, weight, k, v, weights, impl=impl)
            for impl in implementations(device)
        },
        moved_bytes=q.nbytes + (q.numel() if fp8 else q.nbytes) + k.nbytes + v.nbytes,
        flops=4 * tokens * keys * 1536,
    )


if __name__ == "__main__":
    main(__file__, cases)
