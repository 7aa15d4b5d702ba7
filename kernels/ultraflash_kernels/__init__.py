"""Numerical operations of the cascade, one package each, with a reference in plain
PyTorch and fast kernels that match it.

``from ultraflash_kernels.block_topk import block_topk``: an operation is a function in
the package of the same name.
"""
