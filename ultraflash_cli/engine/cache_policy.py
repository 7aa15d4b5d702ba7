"""Dynamic cache management: fewer steps, skipped context passes and a shrinking SR
cache in long streams."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine.schedule import kv_lengths
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.errors import ConfigError, UsageError

__all__ = ["ONE_FEWER", "CacheManagement", "RefreshGate", "Scorer", "SharpnessDrift"]

ONE_FEWER = 0
"""Value for one denoising step fewer than the model's own number; the published model
has four."""
DEFAULT_REFRESH = 0.62
"""The published threshold, for scores of CLIP-IQA+."""
SCORED_SIDE_PX = 224
"""Side of the square picture to score."""
FLAT = 1e-3
"""Detail and contrast below which a picture counts as flat."""
TINT_SCALE = 0.5
"""Mean colour change, in [0, 1], at which a score falls to 1/e."""

Scorer = Callable[[Tensor, Tensor], float]
"""A function from a frame and an early frame of the same stream, both ``[3, 224, 224]``
in [0, 1], to the frame's quality; higher is better. It must be deterministic, so that a
resumed run makes the same decision."""


def _count(text: str) -> int:
    """Return a count of 1 or more. Raises ValueError for other text."""
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


@dataclass(frozen=True, kw_only=True)
class CacheManagement:
    """The three rules (reference/cascade.md 9.1); without arguments all are off."""

    steps: int | None = None
    """Denoising steps of every chunk but the first; None for all, ``ONE_FEWER`` for all
    but one."""
    refresh: float | None = None
    """Score above which a chunk's context pass is skipped; None for never."""
    kv: bool = False
    """Whether the SR transformer's KV cache shrinks after the first groups."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise ConfigError(
                f"--cache-management: steps must be at least 1 or {ONE_FEWER}, got "
                f"{self.steps}"
            )
        if self.refresh is not None and not 0 <= self.refresh <= 1:
            raise ConfigError(
                f"--cache-management: refresh must be between 0 and 1, got {self.refresh}"
            )

    @classmethod
    def parse(cls, text: str) -> "CacheManagement":
        """Read ``off`` or a list of ``steps``, ``steps=N``, ``refresh``, ``refresh=T``
        and ``kv``.

        Raises UsageError for anything else.
        """
        if text.strip() == "off":
            return cls()
        rules: dict[str, int | float | bool] = {}
        for part in text.split(","):
            rule, given, value = (piece.strip() for piece in part.partition("="))
            if rule in rules:
                raise UsageError(f"--cache-management: {rule} is given twice in {text!r}")

            try:
                if rule == "steps":
                    rules[rule] = _count(value) if given else ONE_FEWER
                elif rule == "refresh":
                    rules[rule] = float(value) if given else DEFAULT_REFRESH
                elif rule == "kv" and not given:
                    rules[rule] = True
                else:
                    raise ValueError(rule)
            except ValueError:
                raise UsageError(
                    f"--cache-management: cannot read {part.strip()!r} in {text!r}; it is "
                    "off, or some of "
                    f"steps, steps=N, refresh, refresh=T and kv with commas between them"
                ) from None
        return cls(**rules)  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        """Return the text that ``parse`` reads."""
        rules = (
            []
            if self.steps is None
            else ["steps" if self.steps == ONE_FEWER else f"steps={self.steps}"]
        )
        rules += [] if self.refresh is None else [f"refresh={self.refresh:g}"]
        return ",".join(rules + (["kv"] if self.kv else [])) or "off"

    def apply_generator(self, config: GeneratorConfig) -> GeneratorConfig:
        """Return the generator's config under the first rule. Raises UsageError for
        more steps than the model has."""
        if self.steps is None:
            return config
        if self.steps > len(config.steps):
            raise UsageError(
                f"--cache-management: steps={self.steps} is more than the "
                f"{len(config.steps)} denoising steps that this "
                f"model has; choose 1 to {len(config.steps)}"
            )
        return replace(
            config,
            later_steps=max(1, len(config.steps) - 1)
            if self.steps == ONE_FEWER
            else self.steps,
        )

    def apply_sr(self, config: SrDitConfig, groups: int) -> SrDitConfig:
        """Return the SR transformer's config under the third rule, for a stream of
        ``groups`` groups."""
        return (
            replace(config, kv_schedule=kv_lengths(groups, kv=config.kv_len))
            if self.kv and config.kv_len
            else config
        )


class RefreshGate:
    """Skips a chunk's context pass if its last latent, decoded alone, scores above a
    threshold.

    A ``generator.Gate``; in a batch, all clips have to pass. It decodes with a fresh
    state and scores the last of the latent's four frames, clamped and resized to 224 x
    224.
    """

    def __init__(
        self, decoder: Decoder, scorer: Scorer, threshold: float = DEFAULT_REFRESH
    ) -> None:
        self.decoder = decoder
        self.scorer = scorer
        self.threshold = threshold
        self._known: tuple[Tensor, Tensor] | None = None
        """The last anchor and its frames; it is the same for a whole stream."""

    @torch.no_grad()
    def __call__(self, latents_bcthw: Tensor, anchor_bcthw: Tensor) -> bool:
        """Judge a chunk by its last latent, compared with ``anchor [B, C, 1, H, W]``,
        an early one of the stream."""
        if self._known is None or not torch.equal(self._known[0], anchor_bcthw):
            self._known = anchor_bcthw.clone(), self._frames(anchor_bcthw)
        frames, anchors = self._frames(latents_bcthw[:, :, -1:]), self._known[1]
        return all(
            self.scorer(frame, anchor) > self.threshold
            for frame, anchor in zip(frames, anchors, strict=True)
        )

    def _frames(self, latent_bcthw: Tensor) -> Tensor:
        """Return ``[B, 3, 224, 224]`` float32."""
        batch, _, _, height, width = latent_bcthw.shape
        fresh = self.decoder.init_state(batch=batch, height=height, width=width)
        _, frames_bcthw = self.decoder.step(fresh, latent_bcthw)
        last = frames_bcthw[:, :, -1].float().clamp(0, 1)
        return F.interpolate(
            last,
            size=(SCORED_SIDE_PX, SCORED_SIDE_PX),
            mode="bilinear",
            align_corners=False,
        )


class SharpnessDrift:
    """A scorer without a network: the similarity of a frame's sharpness, contrast and
    colour to those of the early frame. It is 1 for equal statistics, and approaches 0
    as the frame blurs, fades, or becomes noisy or tinted. It ignores content, and its
    scale differs from that of a learned score.
    """

    def __call__(self, frame: Tensor, anchor: Tensor) -> float:
        """Score a frame ``[3, H, W]`` in [0, 1] against an early one of its stream."""
        (detail, contrast, colour), (detail_0, contrast_0, colour_0) = (
            _statistics(frame),
            _statistics(anchor),
        )
        tint = sum(abs(a - b) for a, b in zip(colour, colour_0, strict=True)) / 3
        return (
            _likeness(detail, detail_0)
            * _likeness(contrast, contrast_0)
            * math.exp(-tint / TINT_SCALE)
        )


def _likeness(a: float, b: float) -> float:
    """Return the ratio of the smaller to the larger value."""
    return (min(a, b) + FLAT) / (max(a, b) + FLAT)


def _statistics(frame: Tensor) -> tuple[float, float, list[float]]:
    """Return mean detail (difference from the four neighbours), contrast and mean
    colour of a picture."""
    luma = frame.float().mean(dim=0)
    centre = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    detail = (centre - around / 4).abs().mean()
    return detail.item(), luma.std().item(), frame.float().mean(dim=(1, 2)).tolist()
