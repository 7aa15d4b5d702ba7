"""Numerical operations of the cascade, one package each: plain PyTorch defines them,
fast kernels follow it.

``from ultraflash_kernels.block_topk import block_topk``: an operation is a function in
the package of its name.
"""
