"""How close one clip is to another: PSNR, SSIM, VMAF and the steadiness of its motion."""
