"""Defaults shared by recipes at the published size: models that need encoded data, loop
settings, and the training window."""

from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import LATENT_PX
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.train.loop import LoopConfig
from ultraflash_cli.train.scene_pairs import SceneWindow

__all__ = ["comes_encoded", "large_loop", "window_of"]


def comes_encoded(profile: Profile) -> bool:
    """Return whether a model's text encoder is too large to run during training, so
    that clips and captions are encoded beforehand."""
    words = profile.text_encoder
    return words is not None and not isinstance(words, PromptEncoderConfig)


def large_loop(steps: int, seed: int, *, rate: float) -> LoopConfig:
    """Return the loop settings for transformers with a billion weights, one clip per
    GPU."""
    return LoopConfig(
        steps=steps,
        seed=seed,
        rate=rate,
        last_rate=rate / 10,
        warmup=min(500, max(1, steps // 10)),
        clip=1.0,
        average=0.999,
        batch=1,
        precision="bf16",
        recompute=True,
        frozen="bf16",
        save_every=500,
        log_every=20,
    )


def window_of(profile: Profile, *, latents: int) -> SceneWindow:
    """Return a window that covers the full picture at a model's output size."""
    rows, columns = (profile.scale * side // LATENT_PX for side in profile.base_size)
    return SceneWindow(latents=latents, rows=rows, columns=columns, step=2, group=profile.group_latents)
