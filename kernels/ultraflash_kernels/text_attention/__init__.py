"""Cross-attention to the keys of a prompt, from unnormalised queries."""

from ultraflash_kernels.text_attention.op import text_attention, text_attention_fp8

__all__ = ["text_attention", "text_attention_fp8"]
