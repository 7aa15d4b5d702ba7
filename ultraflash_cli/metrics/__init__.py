"""Similarity metrics between two clips: PSNR, SSIM, VMAF and temporal steadiness."""
