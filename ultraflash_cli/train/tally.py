"""Measure the peak bytes of live tensors and the floating-point operations of a block
of code, also on the meta device."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Tally"]


class Tally(TorchDispatchMode):
    """Counts the live storages allocated inside this block, and the operations of
    matmuls, convolutions and attention (a multiply-add is 2). Earlier allocations are
    not counted; gradients are, until they are freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self._note(value, args)
        return out

    def _note(self, tensor: Tensor, args: tuple[Any, ...]) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        if any(isinstance(arg, Tensor) and arg.untyped_storage() is storage for arg in tree_leaves(args)):
            return  # a view of an earlier allocation
        size = storage.nbytes()
        self._known[storage] = size
        self.now_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        weakref.finalize(storage, self._let_go, size)

    def _let_go(self, size: int) -> None:
        self.now_bytes -= size
