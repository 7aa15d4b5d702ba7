"""Stand-ins for the Triton kernels where a Hopper GPU is pretended."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import reference
from ultraflash_kernels.token_order import drop_padding

__all__ = ["CAN_RUN", "Calls", "by_reference"]

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
