"""What the recipes share at the published size: which models need encoded data, the loop's
settings, and the part of a clip that is trained on."""

from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import LATENT_PX
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.train.loop import LoopConfig
from ultraflash_cli.train.scene_pairs import SceneWindow

__all__ = ["comes_encoded", "large_loop", "window_of"]


def comes_encoded(profile: Profile) -> bool:
    """Return whether a model's text encoder is too large to run in training, so that clips
    and captions are encoded before."""
    words = profile.text_encoder
    return words is not None and not isinstance(words, PromptEncoderConfig)


def large_loop(steps: int, seed: int, *, rate: float) -> LoopConfig:
    """Return the loop's settings for transformers of a billion weights, with one clip per GPU."""
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
    """Return a window of whole pictures at a model's enlarged size."""
    rows, columns = (profile.scale * side // LATENT_PX for side in profile.base_size)
    return SceneWindow(latents=latents, rows=rows, columns=columns, step=2, group=profile.group_latents)
