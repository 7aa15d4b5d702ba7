"""The ring of keys and values: its contents when full, and the order in which it
accepts chunks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ultraflash_cli.engine.cache import WindowRing


@settings(max_examples=40)
@given(
    capacity=st.integers(3, 8),
    sink=st.integers(0, 3),
    writes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6),
)
def test_a_ring_holds_the_first_tokens_and_the_latest(capacity: int, sink: int, writes: list[tuple[int, int]]) -> None:
    capacity += sink
    device, dtype = torch.device("cpu"), torch.float32
    fixed = WindowRing.empty((1, 1, capacity, 1), dtype=dtype, device=device)
    small = WindowRing.empty((1, 1, capacity, 1), dtype=dtype, device=device, fp8=True)
    grown = WindowRing.empty((1, 1, 0, 1), dtype=dtype, device=device)
    stream: list[float] = []
    for at, (count, repeats) in enumerate(writes):
        first = len(stream)
        for repeat in range(repeats):
            new = [100.0 * at + 10 * repeat + i for i in range(count)]
            stream[first:] = new
            k = torch.tensor(new).view(1, 1, count, 1)
            fixed = fixed.write(k, -k, start=first, capacity=capacity, sink=sink, in_place=True)
            small = small.write(k, -k, start=first, capacity=capacity, sink=sink, in_place=True)
            grown = grown.write(k, -k, start=first, capacity=capacity, sink=sink, in_place=False)
            left = max(0, len(stream) - capacity)
            expected = stream if not left else stream[:sink] + stream[sink + left :]
            for ring in (fixed, grown):
                used = ring.used
                assert used.k.flatten().tolist() == expected
                assert torch.equal(used.v, -used.k)
                assert (ring.fill, ring.total) == (len(expected), len(stream))
            keys, values = small.used.rows
            # A token of one channel is exact: its scale holds it.
            torch.testing.assert_close(keys.wide(dtype), fixed.used.k)
            torch.testing.assert_close(values.wide(dtype).mT, fixed.used.v)
            assert (small.fill, small.total) == (fixed.fill, fixed.total)


def test_a_ring_takes_no_chunk_out_of_turn() -> None:
    ring = WindowRing.empty((1, 1, 9, 1), dtype=torch.float32, device=torch.device("cpu"))
    three = torch.zeros(1, 1, 3, 1)
    with pytest.raises(AssertionError, match="follows the last one or repeats it"):
        ring.write(three, three, start=3, capacity=9, sink=0, in_place=True)


def test_a_ring_in_8_bits_has_whole_pieces_of_tokens_and_places_for_them() -> None:
    """Attention reads values of 16 tokens at once."""
    device = torch.device("cpu")
    ring = WindowRing.empty((1, 2, 9, 4), dtype=torch.bfloat16, device=device, fp8=True)
    assert ring.fp8 and ring.k.shape == (1, 2, 16, 4) and ring.v.shape == (1, 2, 4, 16)
    assert ring.k.dtype == ring.v.dtype == torch.float8_e4m3fn
    ring, _ = ring.reserve(3, start=0, capacity=9, sink=0)
    after, slots = ring.reserve(2, start=3, capacity=9, sink=0)
    keys, values = slots.rows
    for place in (*keys, *values):
        place.fill_(7.0)
    used = after.used
    assert used.k[:, :, 3:].float().eq(7).all() and used.v[..., 3:].float().eq(7).all()
    assert used.rows[0].scales.flatten(1).tolist() == [[0.0, 0.0, 0.0, 7.0, 7.0] * 2]
    assert after.v.data_ptr() == ring.v.data_ptr(), "graphs replay addresses"
    three = torch.zeros(1, 2, 3, 4)
    with pytest.raises(AssertionError, match="a ring in 8 bits is overwritten"):
        ring.write(three, three, start=3, capacity=9, sink=0, in_place=False)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "8 bits"])
def test_what_stays_moves_without_a_copy_of_it(fp8: bool) -> None:
    ring = WindowRing.empty((1, 2, 96, 16), dtype=torch.bfloat16, device=torch.device("cpu"), fp8=fp8)
    for start in range(0, 96, 16):
        ring, _ = ring.reserve(16, start=start, capacity=96, sink=16)
    made: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                made.append(out.untyped_storage().data_ptr())
            return out

    with Watch():
        ring, _ = ring.reserve(16, start=96, capacity=96, sink=16)
    buffers = {x.untyped_storage().data_ptr() for x in (ring.k, ring.v, ring.k_scales, ring.v_scales) if x is not None}
    assert made and set(made) <= buffers, "every tensor is a part of the ring's buffers"
