"""Which encoder and decoder of a model run: those requested, else those that are installed."""

from dataclasses import replace

from ultraflash_cli.engine.profiles import RELEASED_ULTRA_DECODER, Profile
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig
from ultraflash_cli.errors import UsageError
from ultraflash_cli.models.build import Shelf

__all__ = ["settle_coders", "substitutions", "with_full_encoder", "with_ultra_decoder"]

_ULTRA = "ultra_decoder"
_RELEASED = "ultra_decoder_released"


def settle_coders(profile: Profile, shelf: Shelf, *, encoder: str, decoder: str) -> Profile:
    """Return the profile with the coders requested; ``auto`` takes the small ones where they are installed.

    Where they are not, the ultra decoder and the full autoencoder's encoder serve if those are. Raises UsageError for
    a coder that the model does not have.
    """
    small = profile.decoder is None or shelf.has(profile, "decoder")
    if decoder == "ultra" or (decoder == "auto" and not small and _has_ultra(profile, shelf)):
        profile = with_ultra_decoder(profile, released=shelf.architecture(profile, _ULTRA) == _RELEASED)
    if encoder == "wan-vae":
        return with_full_encoder(profile)
    lacks_encoder = isinstance(profile.encoder, EncoderConfig) and not shelf.has(profile, "encoder")
    if encoder == "auto" and lacks_encoder and profile.wan_vae is not None and shelf.has(profile, "wan_vae"):
        return with_full_encoder(profile)
    return profile


def substitutions(profile: Profile, shelf: Shelf, *, scale: int, encoder: str, decoder: str) -> list[str]:
    """Return a sentence for each part of a settled profile that serves in another's place."""
    said: list[str] = []
    if profile.random_seed is not None:
        return said
    if encoder == "auto" and isinstance(profile.encoder, WanVaeConfig):
        said.append("the small encoder is not installed; using the full autoencoder's, which is slower")
    if decoder == "auto" and profile.decoder and profile.weight_of("decoder") == _weight_of_ultra(profile):
        said.append("the small decoder is not installed; using the ultra decoder")
    if profile.sr_dit is not None:
        asked = profile.at_scale(scale).weight_of("sr_dit")
        served = shelf.served_by(asked)
        if served != asked:
            said.append(f"{asked} is not installed; using {served} at x{scale}")
    return said


def with_full_encoder(profile: Profile) -> Profile:
    """Return the profile with the full autoencoder's encoder in the small one's place (reference/cascade.md 7)."""
    if profile.wan_vae is None:
        raise UsageError(f"{profile.name} has only one encoder; remove --encoder")
    return replace(profile, encoder=profile.wan_vae, pad_front=profile.drop_front, copy_front=False)


def with_ultra_decoder(profile: Profile, *, released: bool = False) -> Profile:
    """Return the profile with the larger decoder in the tiny one's place (reference/cascade.md 6.3).

    The published class comes with an encoder of its own; the ``released`` file holds a decoder only, next to which the
    tiny one's encoder stays.
    """
    if _weight_of_ultra(profile) is None:
        raise UsageError(f"{profile.name} has only one decoder; remove --decoder")
    replaced = ("decoder",) if released else ("encoder", "decoder")
    ultra = _weight_of_ultra(profile) or ""
    weights = tuple((part, ultra if part in replaced else name) for part, name in profile.weights)
    if released:
        decoder = replace(RELEASED_ULTRA_DECODER, latent_channels=profile.base_decoder.latent_channels)
        return replace(profile, decoder=decoder, weights=weights)
    encoder = profile.encoder
    if isinstance(encoder, EncoderConfig):
        encoder = replace(encoder, memory_init="replicate")
    decoder = replace(profile.base_decoder, upsampling="pixel_shuffle", memory_init="replicate")
    return replace(profile, encoder=encoder, decoder=decoder, weights=weights)


def _has_ultra(profile: Profile, shelf: Shelf) -> bool:
    return _weight_of_ultra(profile) is not None and shelf.has(profile, _ULTRA)


def _weight_of_ultra(profile: Profile) -> str | None:
    return dict(profile.weights).get(_ULTRA)
