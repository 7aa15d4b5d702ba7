"""Sections of the first run on a GPU; with ``dry`` each is tested on a CPU at tiny
sizes."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import clips
from benchmarks.gpu.here import Here, Impl, off
from benchmarks.part import PARTS, Setting

__all__ = ["run"]


def facts(here: Here) -> dict[str, Any]:
    """Measure rates of the device, and record the choices of its libraries."""
    side = 64 if here.dry else 8192
    found: dict[str, Any] = {"torch": str(torch.__version__)}
    if not here.dry:
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "cudnn": torch.backends.cudnn.version()}
        found["shared_memory"] = properties.shared_memory_per_block_optin
        found["tf32"] = torch.backends.cudnn.allow_tf32
    for kind in ("randn", "ones"):
        a, b = (getattr(torch, kind)(side, side, device=here.device).to(here.dtype) for _ in range(2))
        found[f"product of {kind}, TFLOP/s"] = 2 * side**3 / here.median_ms(lambda a=a, b=b: a @ b) / 1e9
    x = torch.randint(0, 256, (1 << (16 if here.dry else 30),), dtype=torch.uint8, device=here.device)
    y = torch.empty_like(x)
    found["copy, TB/s"] = 2 * x.numel() / here.median_ms(lambda: y.copy_(x)) / 1e9
    for rows, out, width in ((4680, 1536, 1536), (4680, 8960, 1536), (37440, 8960, 1536), (37440, 1536, 8960)):
        m, n, k = (rows // 100, out // 64, width // 64) if here.dry else (rows, out, width)
        a, w, bias = (torch.randn(s, device=here.device).to(here.dtype) for s in ((m, k), (n, k), (n,)))
        name = f"linear {rows}x{width} -> {out}"
        found[f"{name}, TFLOP/s"] = (
            2 * m * n * k / here.median_ms(lambda a=a, w=w, bias=bias: F.linear(a, w, bias)) / 1e9
        )
        if n <= k:
            total = torch.randn(m, n, device=here.device).to(here.dtype)
            found[f"{name} into a sum, TFLOP/s"] = (
                2 * m * n * k / here.median_ms(lambda a=a, w=w, total=total: total.addmm_(a, w.t())) / 1e9
            )
        if n > k and not here.dry:
            from ultraflash_kernels.linear_gelu import linear_gelu

            apart = lambda a=a, w=w, bias=bias: linear_gelu(a, w, bias, impl="reference")  # noqa: E731
            inside = lambda a=a, w=w, bias=bias: linear_gelu(a, w, bias, impl="epilogue")  # noqa: E731
            for way, call in (("behind", apart), ("inside", inside)):
                here.tried(found, f"{name}, GELU {way}, ms", lambda call=call: here.median_ms(call))
    for keys in (512, 4680, 18720):
        n, m = (8, 16) if here.dry else (4680, keys)
        q, k, v = (torch.randn(1, 12, each, 128, device=here.device).to(here.dtype) for each in (n, m, m))
        call = lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)  # noqa: E731
        found[f"attention to {keys}, TFLOP/s"] = 4 * 12 * n * m * 128 / here.median_ms(call) / 1e9
        if not here.dry:
            found[f"attention to {keys} is"] = int(torch._fused_sdp_choice(q, k, v))  # pyright: ignore
    return found


def correct(here: Here) -> dict[str, Any]:
    """Compare every kernel at published sizes and in real layouts with its definition:
    relative errors."""
    from benchmarks.gpu import chunk, folded, text
    from ultraflash_cli.engine.layers.rope import rotation_tables
    from ultraflash_kernels.adaln_modulate import adaln_modulate, gated_residual, residual_norm
    from ultraflash_kernels.block_lists import BlockRule
    from ultraflash_kernels.block_sparse_attention import block_list_attention, block_list_attention_fp8
    from ultraflash_kernels.block_topk import block_means, choose_blocks
    from ultraflash_kernels.fp8_linear import quantise_rows
    from ultraflash_kernels.rms_norm_rope import rms_norm_rope_means, rms_norm_rope_means_fp8

    torch.backends.cudnn.allow_tf32 = False
    size, block, heads, head = ((2, 4, 4), (2, 2, 2), 2, 16) if here.dry else ((6, 60, 104), (2, 8, 8), 12, 128)
    tokens, width = size[0] * size[1] * size[2], heads * head
    found: dict[str, Any] = {}

    def both(call: Callable[[Impl], Any]) -> tuple[Any, Any]:
        return call(here.fast), call("reference")

    x, y, z = (torch.randn(1, tokens, width, device=here.device).to(here.dtype) for _ in range(3))
    vectors = torch.randn(3, 1, width, device=here.device)
    weight = torch.randn(2, width, device=here.device).to(here.dtype)
    here.tried(found, "adaln", lambda: off(*both(lambda i: adaln_modulate(x, vectors[0], vectors[1], impl=i))))
    here.tried(found, "gate", lambda: off(*both(lambda i: gated_residual(x, y, vectors[2], impl=i))))
    for affine in (False, True):
        given = (weight[0], weight[1]) if affine else (vectors[0], vectors[1])

        def summed(impl: Impl, given: tuple[Tensor, Tensor] = given, affine: bool = affine) -> Any:
            return residual_norm(x, y, vectors[2], *given, affine=affine, impl=impl)[1]

        def moved(impl: Impl, given: tuple[Tensor, Tensor] = given, affine: bool = affine) -> Tensor:
            return adaln_modulate(x, *given, offset=vectors[2, 0], affine=affine, impl=impl)

        here.tried(found, f"sum and norm, affine {affine}", lambda summed=summed: off(*both(summed)))
        here.tried(found, f"norm with an offset, affine {affine}", lambda moved=moved: off(*both(moved)))
    square = torch.randn(width, width, device=here.device).to(here.dtype) / width**0.5

    def added() -> float:
        expected = x[0].double() + y[0].double() @ square.double().t()
        return off(x[0].clone().addmm_(y[0], square.t()), expected)

    here.tried(found, "sum inside a product", added)
    here.tried(found, "folded gates", lambda: folded.off(here))
    found |= text.compared(here, tokens=tokens, heads=heads, head=head)
    found |= chunk.compared(here, heads=heads, head=head)
    tables = rotation_tables(head, first_frame=7, frames=size[0], rows=size[1], cols=size[2], device=here.device)

    def turned(impl: Impl) -> Any:
        return rms_norm_rope_means(x, y, z, weight[0], weight[1], tables, size=size, block=block, impl=impl)

    here.tried(found, "norm and rotation, means", lambda: [off(a, b) for a, b in zip(*both(turned), strict=True)])
    q, k, v, q_mean, k_mean = turned("reference")
    ring = (torch.randn_like(k), torch.randn_like(v))
    means = torch.cat([block_means(ring[0], impl="reference"), k_mean], dim=2)
    here.tried(found, "means", lambda: off(*both(lambda i: block_means(ring[0], impl=i))))
    rows, cols = (2, 2) if here.dry else (8, 13)
    rule = BlockRule(
        rows=rows, cols=cols, temporal=size[0] // 2, remembered=size[0] // 2, window=9, budget=4 if here.dry else 2704
    )

    def chosen() -> dict[str, int]:
        one, other = (choose_blocks(q_mean, means, rule, impl=i).to_mask() for i in (here.fast, "reference"))
        return {"pairs": int(one.sum()), "differing": int((one ^ other).sum())}

    here.tried(found, "choice", chosen)
    lists = choose_blocks(q_mean, means, rule, impl=here.fast)
    fill = ring[0].shape[2]
    small_q, small_k, small_ring_k = (quantise_rows(each) for each in (q, k, ring[0]))
    small_v, small_ring_v = (quantise_rows(each).turned() for each in (v, ring[1]))
    for shapes in ({}, {"size": size, "block": block}):

        def attended(impl: Impl, shapes: Mapping[str, Any] = shapes) -> Tensor:
            return block_list_attention(q, k, v, lists, ring=ring, fill=fill, impl=impl, **shapes)

        def attended_fp8(impl: Impl, shapes: Mapping[str, Any] = shapes) -> Tensor:
            small = (small_q, small_k, small_v, lists)
            old, dtype = (small_ring_k, small_ring_v), here.dtype
            return block_list_attention_fp8(*small, ring=old, fill=fill, dtype=dtype, impl=impl, **shapes)

        for name, call in (("False", attended), ("True", attended_fp8)):
            name = f"attention, fp8 {name}, {'no padding' if shapes else 'padding'}"
            here.tried(found, name, lambda call=call: off(*both(call)))

    def turned_fp8(impl: Impl) -> list[Tensor]:
        given = (x, y, z, weight[0], weight[1], tables)
        *rows, q_mean, k_mean = rms_norm_rope_means_fp8(*given, size=size, block=block, impl=impl)
        return [each.wide(torch.float32) for each in rows] + [q_mean, k_mean]

    name = "norm and rotation to 8 bits, means"
    here.tried(found, name, lambda: [off(a, b) for a, b in zip(*both(turned_fp8), strict=True)])

    def quantised(impl: Impl) -> Tensor:
        return quantise_rows(x, impl=impl).values.float()

    here.tried(found, "quantised rows", lambda: off(*both(quantised)))
    return found


def hopper(here: Here) -> dict[str, Any]:
    """Compare the attention kernel for Hopper with others, and time its dense form."""
    from benchmarks.gpu.hopper import measured

    return measured(here)


def attention(here: Here) -> dict[str, Any]:
    """Time the block-sparse kernel in several tilings, the one for Hopper, and
    FlexAttention with the same lists: TFLOP/s."""
    if here.dry:
        return {"skipped": "cuts are for a GPU"}
    from ultraflash_kernels.block_sparse_attention import block_list_attention, block_list_attention_fp8, kernel
    from ultraflash_kernels.block_sparse_attention.bench import RULES, flexible_mask
    from ultraflash_kernels.block_topk import choose_blocks
    from ultraflash_kernels.fp8_linear import quantise_rows

    found: dict[str, Any] = {}
    last: dict[str, Callable[[], float]] = {}
    cuts = {"128x128, 3 stages": (128, 128, 8, 3), "128x128, 5 stages": (128, 128, 8, 5)}
    cuts |= {"128x64, 5 stages": (128, 64, 8, 5), "128x64, 7 stages": (128, 64, 8, 7)}
    for size, rule in RULES.items():
        q, k, v = torch.randn(3, 1, 12, rule.queries, 128, 128, device=here.device).bfloat16()
        fill = rule.keys - rule.queries
        old_k, old_v = torch.randn(2, 1, 12, fill, 128, 128, device=here.device).bfloat16()
        q_mean, k_mean = (2 * torch.randn(1, 12, n, 128, device=here.device) for n in (rule.queries, rule.keys))
        lists = choose_blocks(q_mean, k_mean, rule)
        flops = 4 * int(lists.starts[-1]) * 128**3
        counts = lists.starts.diff().float()
        found[f"{size}, blocks a row"] = [float(counts.min()), float(counts.mean()), float(counts.max())]
        group = (q, k, v, lists, (old_k, old_v), fill, flops)

        def rate(impl: Any = "triton", group: Any = group) -> float:
            *given, ring, fill, flops = group
            call = lambda: block_list_attention(*given, ring=ring, fill=fill, impl=impl)  # noqa: E731
            return flops / here.median_ms(call) / 1e9

        def rate_fp8(impl: Any = "triton", given: Any = (q, k, v, old_k, old_v), group: Any = group) -> float:
            _, _, _, lists, _, fill, flops = group
            rows = [quantise_rows(each) for each in given]
            small, old = (rows[0], rows[1], rows[2].turned(), lists), (rows[3], rows[4].turned())
            call = lambda: block_list_attention_fp8(*small, ring=old, fill=fill, impl=impl)  # noqa: E731
            return flops / here.median_ms(call) / 1e9

        for name, cut in cuts.items():
            with mock.patch.object(kernel, "tiles", lambda *_, cut=cut: kernel.Tiles(*cut)):
                here.tried(found, f"{size}, {name}", rate)
        here.tried(found, f"{size}, fp8", rate_fp8)
        if size == "1K":  # compiling takes long
            from torch.nn.attention.flex_attention import flex_attention

            compiled = torch.compile(flex_attention, dynamic=False)
            flat = [x.flatten(2, 3) for x in (q, torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2))]
            mask = flexible_mask(lists.to_mask(), 128)
            call = lambda: compiled(flat[0], flat[1], flat[2], block_mask=mask)  # noqa: B023, E731
            here.tried(found, f"{size}, FlexAttention", lambda call=call, n=flops: n / here.median_ms(call) / 1e9)
        last[f"{size}, kernel for Hopper"] = lambda rate=rate: rate("hopper")
        last[f"{size}, kernel for Hopper, fp8"] = lambda rate=rate_fp8: rate("hopper")

    # It has never run: an illegal access would fail all that follows in this process.
    for name, call in last.items():
        here.tried(found, name, call)
    return found


def convolutions(here: Here) -> dict[str, Any]:
    """Run convolutions of the memory decoders in every implementation: errors and ms,
    the source of KERNEL_WINS."""
    from ultraflash_kernels.memory_conv import (
        activated_conv,
        memory_conv,
        residual_conv,
        upsampled_conv,
        upsampled_head,
    )

    found: dict[str, Any] = {}
    dtype = torch.float32 if here.dry else torch.float16
    sizes = ((16, 5, 6),) if here.dry else ((256, 120, 208), (128, 240, 416), (64, 480, 832))
    for channels, height, width in sizes:
        shapes = ((2, channels, height, width), (channels, 2 * channels, 3, 3))
        x, both = (torch.randn(shape, device=here.device) for shape in shapes)
        both = both / (18 * channels) ** 0.5
        x, both = (each.to(dtype).contiguous(memory_format=torch.channels_last) for each in (x, both))
        weight = both[:, :channels].contiguous(memory_format=torch.channels_last)
        bias = torch.randn(channels, device=here.device).to(dtype)
        calls: dict[str, Callable[[Any], Tensor]] = {
            "memory": lambda i, x=x, w=both, b=bias: memory_conv(x[None], x[:1], w, b, impl=i),
            "residual": lambda i, x=x, w=weight, b=bias: residual_conv(x, x, w, b, impl=i),
            "activated": lambda i, x=x, w=weight, b=bias: activated_conv(x, w, b, impl=i),
            "upsampled": lambda i, x=x, w=weight: upsampled_conv(x, w, None, negative_slope=0.0, impl=i),
            "upsampled to RGB": lambda i, x=x, w=weight, b=bias: upsampled_head(x, w, None, w[:3], b[:3], impl=i),
        }
        for name, call in calls.items():
            for impl in ("reference",) if here.dry else ("library", "triton", "reference"):
                row = f"{name}, {channels} channels, {impl}"
                # What the result's memory held before must not matter.
                here.tried(found, f"{row}, NaN", lambda c=call, i=impl: _spread_of_nan(c, i))
                here.tried(found, f"{row}, off", lambda c=call, i=impl: off(c(i), c("reference")))
                here.tried(found, f"{row}, ms", lambda c=call, i=impl: here.median_ms(lambda: c(i)))
    return found


def _spread_of_nan(call: Callable[[Any], Tensor], impl: Any) -> int:
    """Return how many NaN a call returns whose results take memory that held NaN."""
    freed = [torch.full_like(call(impl), torch.nan) for _ in range(3)]
    freed.clear()
    return int(call(impl).isnan().sum())


def _profiled(here: Here, call: Callable[[], object]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    if here.dry:
        return {"ms": here.median_ms(call)}
    for _ in range(2):
        call()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        call()
        torch.cuda.synchronize()
    averages = seen.key_averages()
    rows = [(row.key[:90], row.count, row.self_device_time_total / 1e3) for row in averages]
    rows = sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2])
    return {"ms": sum(row[2] for row in rows), "launches": sum(row[1] for row in rows), "top": rows[:45]}


def profile_refine(here: Here) -> dict[str, Any]:
    """Profile a group after the generator."""
    found: dict[str, Any] = {}
    for scale in (2,) if here.dry else (2, 3):
        made = here.untrained(scale=scale)
        refiner = made.upscaler().cascade.refiner
        height, width = (side // 8 for side in made.profile.base_size)
        low = torch.randn(1, 16, made.profile.group_latents, height, width, device=here.device)
        holder = {"state": refiner.init_state(height=height, width=width, context=made.context)}

        def group(refiner: Any = refiner, holder: dict[str, Any] = holder, low: Tensor = low) -> None:
            holder["state"], _ = refiner.run_group(holder["state"], low)

        here.tried(found, f"x{scale}", lambda group=group: _profiled(here, group))
    return found


def profile_rest(here: Here) -> dict[str, Any]:
    """Profile a generated group and an upscaled one."""
    from ultraflash_cli.bench.streams import UpscaledStream

    made = here.untrained(kind="generate", scale=1, long=True, frames=24)
    video = made.video()
    height, width = (side // 8 for side in made.profile.base_size)
    holder = {"state": video.init_state(height=height, width=width, context=made.context)}

    def step() -> None:
        holder["state"], _ = video.step(holder["state"])

    found: dict[str, Any] = {}
    here.tried(found, "generator and low decoder", lambda: _profiled(here, step))
    stream = UpscaledStream(here.untrained(scale=2).upscaler())
    here.tried(found, "upscale x2", lambda: _profiled(here, stream.next_group))
    return found


def run(name: str, *, dry: bool) -> dict[str, Any]:
    """Run a section and return what it found."""
    here = Here(dry=dry)
    torch.manual_seed(0)
    with torch.inference_mode():
        if name.startswith("fps_"):
            from benchmarks.gpu.hopper import used_everywhere

            part = PARTS[name.removeprefix("fps_").removesuffix("_hopper")]
            if dry and name.endswith("stretch"):
                return {"skipped": "8 bits need a GPU"}
            with used_everywhere() if name.endswith("_hopper") else nullcontext():
                return part.run(Setting(device=here.device, tiny=dry))
        section = getattr(clips, name) if name in clips.__all__ else globals()[name]
        return section(here)
