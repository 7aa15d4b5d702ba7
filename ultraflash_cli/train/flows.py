"""Flow matching over clips: noise levels, noised latents, and a transformer's flow
computed group by group."""

import torch
from torch import Tensor

from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.sr_dit import SrDit

__all__ = [
    "chunk_flow",
    "clean_of",
    "distribution_terms",
    "draw_levels",
    "group_flow",
    "noised",
    "normal",
    "one_step",
    "uniform",
]


def uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Return ``[count]`` uniform samples between ``low`` and ``high``, on the CPU."""
    return low + (high - low) * torch.rand(count, generator=rng)


def normal(like: Tensor, rng: torch.Generator) -> Tensor:
    """Return float32 standard normal noise in the shape and on the device of a
    tensor."""
    return torch.randn(like.shape, generator=rng).to(like.device)


def draw_levels(count: int, shift: float, rng: torch.Generator, *, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return ``[count]`` noise levels: uniform between ``low`` and ``high``, then
    shifted towards noise."""
    level = uniform(count, low, high, rng)
    return shift * level / (1 + (shift - 1) * level)


def _over(latents_bcthw: Tensor, level: Tensor) -> Tensor:
    """Return levels ``[B]`` or ``[B, T]`` as ``[B, 1, 1 or T, 1, 1]``, which broadcasts
    over latents."""
    level = level.to(latents_bcthw.device)
    return level.view(len(level), 1, -1, 1, 1)


def noised(clean_bcthw: Tensor, noise_bcthw: Tensor, level_b: Tensor) -> Tensor:
    """Return ``(1 - t) z + t eps`` with one level t per clip, or ``[B, T]``, one per
    latent frame."""
    t = _over(clean_bcthw, level_b)
    return (1 - t) * clean_bcthw + t * noise_bcthw


def clean_of(noisy_bcthw: Tensor, flow_bcthw: Tensor, level_b: Tensor) -> Tensor:
    """Return the clean latents implied by a flow at a noise level."""
    return noisy_bcthw - _over(noisy_bcthw, level_b) * flow_bcthw


def group_flow(
    network: SrDit,
    noisy_bcthw: Tensor,
    cond_bcthw: Tensor,
    level_b: Tensor,
    context: Tensor | None,
    *,
    recompute: bool = False,
    ungraded: int = 0,
) -> Tensor:
    """Return a transformer's flow over whole clips, computed group by group with its
    caches as at inference; differentiable.

    ``level_b`` are the noise levels of the clips. For a network that predicts
    residuals, it is the flow towards condition plus residual. See
    ``SrDit.forward_group`` for ``recompute``. The first ``ungraded`` groups are
    computed without gradients: later groups attend to them, but no gradient flows into
    them.
    """
    config = network.config
    batch, timestep = noisy_bcthw.shape[0], 1000 * level_b.to(noisy_bcthw.device)
    keys = network.embed_context(context, batch=batch)
    flows: list[Tensor] = []
    caches = None
    for group, start in enumerate(range(0, noisy_bcthw.shape[2], config.group_latents)):
        span = slice(start, start + config.group_latents)
        noisy, cond = noisy_bcthw[:, :, span], cond_bcthw[:, :, span]
        with torch.set_grad_enabled(torch.is_grad_enabled() and group >= ungraded):
            result = network.forward_group(
                noisy,
                cond,
                caches=caches,
                context=keys,
                first_frame=start,
                group=group,
                timestep=timestep,
                recompute=recompute,
            )

        # Only a following group needs the caches, so the last one does not keep them.
        more = start + config.group_latents < noisy_bcthw.shape[2]
        caches = result.caches if more else None
        out = result.output_bcthw
        if config.prediction == "residual":
            out = (noisy - cond - out) / _over(noisy, level_b).clamp_min(1e-3)
        flows.append(out)
    return torch.cat(flows, dim=2)


def one_step(
    network: SrDit, cond_bcthw: Tensor, context: Tensor | None, rng: torch.Generator, *, recompute: bool = False
) -> Tensor:
    """Return clean latents after one step from pure noise, ``eps - v(eps, y, c, 1)``."""
    noise, level = normal(cond_bcthw, rng), torch.ones(len(cond_bcthw))
    return clean_of(noise, group_flow(network, noise, cond_bcthw, level, context, recompute=recompute), level)


def chunk_flow(
    network: Generator,
    noisy_bcthw: Tensor,
    level_bt: Tensor,
    context: Tensor | None,
    *,
    clean_bcthw: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Return a generator's flow over whole clips, computed chunk by chunk, each
    attending to the earlier ones; differentiable.

    ``level_bt`` is the noise level of every latent frame, equal within a chunk. A chunk
    attends to the noisy earlier ones; with ``clean_bcthw`` to these clean ones instead,
    in an extra context pass as at inference.
    """
    config = network.config
    keys = network.embed_context(context, batch=noisy_bcthw.shape[0])
    rings, flows, first = None, list[Tensor](), 0
    while first < noisy_bcthw.shape[2]:
        span = slice(first, first + config.chunk_after(first))
        timestep = 1000 * level_bt[:, span].to(noisy_bcthw.device)
        result = network.forward_chunk(
            noisy_bcthw[:, :, span],
            timestep,
            rings=rings,
            context=keys,
            first_frame=first,
            recompute=recompute,
        )
        flows.append(result.flow_bcthw)

        rings = result.rings
        if clean_bcthw is not None and span.stop < noisy_bcthw.shape[2]:
            rings = network.forward_chunk(
                clean_bcthw[:, :, span], config.context_timestep, rings=rings, context=keys, first_frame=first
            ).rings
        first = span.stop
    return torch.cat(flows, dim=2)


def distribution_terms(
    clean_bcthw: Tensor,
    real: Tensor,
    fake: Tensor,
    unworded: Tensor | None,
    *,
    matching: float,
    guidance: float,
) -> dict[str, Tensor]:
    """Return terms whose gradients with respect to ``clean`` are the two parts of
    distribution matching, each with its weight.

    ``real``, ``fake`` and ``unworded`` (unconditional, by the real score) are the clean
    latents that the scores predict. Both parts are normalised by the distance between
    the result and the real score's prediction. The values of the terms only measure how
    far the scores are apart; the student learns from their gradients.
    """
    size = (clean_bcthw.detach() - real).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-4)
    parts = {"matching": matching * (fake - real) / size}
    if guidance and unworded is not None:
        parts["guidance"] = guidance * (unworded - real) / size
    return {name: 0.5 * (clean_bcthw - (clean_bcthw - part).detach()).square().mean() for name, part in parts.items()}
