"""The frozen networks used to encode a data set: a model's encoder, decoder, text
encoder and generator."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from ultraflash_cli.engine.cache import WindowRing
from ultraflash_cli.engine.profile import Profile
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.errors import UsageError
from ultraflash_cli.models.prompts import embed_prompts
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.train.flows import noised, normal

__all__ = ["Encoders"]


class Encoders:
    """A model's networks, loaded from the installed weights.

    With ``regenerates`` the generator is loaded as well. Raises UsageError for a model
    without the small encoder, WeightsError for missing weights.
    """

    def __init__(
        self,
        shelf: Shelf,
        profile: Profile,
        *,
        device: torch.device,
        dtype: torch.dtype,
        regenerates: bool = False,
        warn: Callable[[str], None],
    ) -> None:
        if not isinstance(profile.encoder, EncoderConfig):
            raise UsageError(f"{profile.name} has no small encoder to encode with")
        self.profile = profile
        self._shelf, self._device, self._dtype, self._warn = shelf, device, dtype, warn

        def take(part: str, config: object) -> torch.nn.Module:
            made = shelf.take(profile, part, config, device=device, dtype=dtype)  # pyright: ignore[reportArgumentType]
            return made.requires_grad_(False)

        self._encoder = cast("Encoder", take("encoder", profile.encoder))
        self._decoder = cast("Decoder", take("decoder", profile.base_decoder))
        self._generator: Generator | None = None
        if regenerates:
            if profile.generator is None:
                raise UsageError(f"{profile.name} has no generator; remove --regenerate")
            self._generator = cast("Generator", take("generator", profile.generator))
        self._texts: dict[str, Tensor] = {}

    codes = True
    """Whether noisy latents can be decoded, that is, whether there is a decoder."""

    @property
    def identity(self) -> str:
        """Name of the encoder, for the record."""
        return self.profile.name

    @torch.no_grad()
    def latents(self, frames_bcthw: Tensor) -> Tensor:
        """Return float32 latents of frames [1, 3, 4 T, H, W] in [0, 1], on the CPU; encoded
        latent by latent, so that long clips need no more memory."""
        state = self._encoder.init_state(
            batch=len(frames_bcthw), height=frames_bcthw.shape[3], width=frames_bcthw.shape[4]
        )
        done: list[Tensor] = []
        for four in frames_bcthw.split(4, dim=2):
            state, latent = self._encoder.step(state, four.to(self._device, self._dtype))
            done.append(latent.float().cpu())
        return torch.cat(done, dim=2)

    @torch.no_grad()
    def coder(self, frames_bcthw: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        """Return ``D(E(x) + s eps)`` of frames [1, 3, T, H, W] in [0, 1]."""
        count = frames_bcthw.shape[2]
        short = -count % 4
        last = frames_bcthw[:, :, -1:].expand(-1, -1, short, -1, -1)
        latents = self.latents(torch.cat([frames_bcthw, last], dim=2))
        noisy = latents + strength * normal(latents, rng)
        state = self._decoder.init_state(batch=len(noisy), height=noisy.shape[3], width=noisy.shape[4])
        _, frames = self._decoder.step(state, noisy.to(self._device, self._dtype))
        return frames.float().cpu()[:, :, :count].clamp(0, 1)

    @torch.no_grad()
    def text(self, caption: str) -> Tensor | None:
        """Return a caption's embedding [tokens, width] without padding; None for a
        model whose small text encoder is trained together with it."""
        if self.profile.text_encoder is None:
            return None
        if caption not in self._texts:
            (rows,) = embed_prompts(
                self._shelf,
                self.profile,
                [caption],
                device=self._device,
                precision="fp32" if self._dtype == torch.float32 else "auto",
                keep_encoder=True,
                warn=self._warn,
            )
            self._texts = {caption: rows[0].float().cpu()}  # samples of the same clip are consecutive
        return self._texts[caption]

    @torch.no_grad()
    def regenerated(self, low_bcthw: Tensor, text: Tensor | None, level: float, rng: torch.Generator) -> Tensor:
        """Return latents regenerated from a noise level, each chunk conditioned on the
        chunks generated before it: the cascade refines such latents."""
        generator = self._generator
        assert generator is not None and text is not None, "a generator was asked for"

        context = generator.embed_context(text[None].to(self._device, self._dtype), batch=1)
        rings: tuple[WindowRing, ...] | None = None
        config, done = generator.config, list[Tensor]()
        first, began, levels = 0, 0, torch.full((1,), level)
        while first < low_bcthw.shape[2]:
            count = config.chunk_after(first - began)
            if not config.slide and first - began + count > config.window:
                began, rings = first, None  # the window is full: a new stream begins
                count = config.chunk_after(0)

            piece = low_bcthw[:, :, first : first + count]
            noisy = noised(piece, normal(piece, rng), levels).to(self._device, self._dtype)
            at = first - began
            flow, rings = generator.forward_chunk(noisy, 1000 * level, rings=rings, context=context, first_frame=at)

            answer = noisy.float() - level * flow.float()
            rings = generator.forward_chunk(
                answer.to(self._dtype),
                config.context_timestep,
                rings=rings,
                context=context,
                first_frame=at,
            ).rings
            done.append(answer.cpu())
            first += piece.shape[2]
        return torch.cat(done, dim=2)
