"""The ring of keys and values: its contents when full, and the order in which it
accepts chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    grown = WindowRing.empty((1, 1, 0, 1), dtype=dtype, device=device)
    stream: list[float] = []
    for at, (count, repeats) in enumerate(writes):
        first = len(stream)
        for repeat in range(repeats):
            new = [100.0 * at + 10 * repeat + i for i in range(count)]
            stream[first:] = new
            k = torch.tensor(new).view(1, 1, count, 1)
            fixed = fixed.write(k, -k, start=first, capacity=capacity, sink=sink, in_place=True)
            grown = grown.write(k, -k, start=first, capacity=capacity, sink=sink, in_place=False)
            left = max(0, len(stream) - capacity)
            expected = stream if not left else stream[:sink] + stream[sink + left :]
            for ring in (fixed, grown):
                keys, values = ring.used
                assert keys.flatten().tolist() == expected
                assert torch.equal(values, -keys)
                assert (ring.fill, ring.total) == (len(expected), len(stream))


def test_a_ring_takes_no_chunk_out_of_turn() -> None:
    ring = WindowRing.empty((1, 1, 9, 1), dtype=torch.float32, device=torch.device("cpu"))
    three = torch.zeros(1, 1, 3, 1)
    with pytest.raises(AssertionError, match="follows the last one or repeats it"):
        ring.write(three, three, start=3, capacity=9, sink=0, in_place=True)
