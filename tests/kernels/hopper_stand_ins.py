"""Stand-ins for the Triton kernels where a Hopper GPU is pretended."""

from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.kernels.gluon_emulator import emulated
from ultraflash_kernels import dispatch
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import hopper, reference
from ultraflash_kernels.token_order import drop_padding

__all__ = ["CAN_RUN", "Calls", "by_reference", "pretended"]

CAN_RUN = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
"""Whether there is a Hopper GPU."""


def by_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    fill: int,
    grid: Sequence[int] = (),
) -> Tensor:
    """What the Triton kernel computes."""
    out = reference.from_lists(q, k, v, lists, ring_k, ring_v, fill)
    if not grid:
        return out
    size, block = (grid[0], grid[1], grid[2]), (grid[3], grid[4], grid[5])
    tokens = out.permute(0, 2, 3, 1, 4).flatten(1, 2)
    return drop_padding(tokens, size, block).transpose(1, 2).unsqueeze(2)


class Calls(list[str]):
    """Names of the kernels that have run."""

    def of(self, name: str, launch: object) -> object:
        """Return a launcher that adds the name."""

        def launched(*given: object) -> object:
            self.append(name)
            return launch(*given)  # pyright: ignore[reportCallIssue]

        return launched


def pretended(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, launchers: Sequence[tuple[ModuleType, str, str, object]]
) -> Iterator[Calls]:
    """Pretend a Hopper GPU on which the kernel was measured to win in ``dtype``: it
    runs in the emulator. ``launchers`` are replaced: module, function, the name to
    record, what runs instead."""
    found = Calls()
    emulated(monkeypatch)
    for module, name, told, launch in launchers:
        monkeypatch.setattr(module, name, found.of(told, launch))
    monkeypatch.setattr(dispatch, "prefers_kernels", lambda device: True)
    monkeypatch.setattr(dispatch, "device_refusal", lambda device: None)
    monkeypatch.setattr(hopper, "device_refusal", lambda device: None)
    monkeypatch.setattr(hopper, "HOPPER_WINS", {("block lists", dtype), ("dense", dtype)})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(hopper, "CHECKED_SIZE", (3, 10, 12))
    monkeypatch.setattr(hopper, "CHECKED_TOKENS", 180)
    hopper.fault.cache_clear()
    yield found
    hopper.fault.cache_clear()
