"""Ideal and expected times of full-size groups at given rates, and their
bottlenecks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from ultraflash_cli.bench.trace import TRACES, Launch, StageTrace, trace
from ultraflash_cli.errors import UsageError

__all__ = [
    "CASCADES",
    "H200",
    "HOPPER_KERNELS",
    "Cascade",
    "Rates",
    "StageRoof",
    "cascades",
    "parse_rates",
    "roof_of",
    "roofline",
]

_MANY_ROWS = 20_000
"""Minimum number of rows for a matmul that fills a GPU evenly."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of a GPU: arithmetic in TFLOP/s, traffic in TB/s."""

    product: float
    """A large square matmul in bfloat16: the upper bound without 8 bits."""
    linear: float
    """Linear layers of many rows."""
    short_linear: float
    """Linear layers of a chunk of the generator, in few waves."""
    fp8_linear: float
    short_fp8_linear: float
    attention: float
    """Dense attention of the library."""
    fp8_attention: float
    """Dense attention in 8 bits."""
    sparse_attention: float
    """The block-sparse kernel."""
    fp8_sparse_attention: float
    wide_convolution: float
    """256 channels and more, see ``Launch.rows``."""
    convolution: float
    """128 channels and more."""
    narrow_convolution: float
    """Fewer channels."""
    traffic: float
    """Rate of passes without arithmetic, in TB/s."""
    launch_us: float
    """Minimum time of a launch in a CUDA graph."""


H200 = Rates(
    product=788,
    linear=695,
    short_linear=610,
    fp8_linear=1050,
    short_fp8_linear=850,
    attention=510,
    fp8_attention=500,
    sparse_attention=420,
    fp8_sparse_attention=500,
    wide_convolution=560,
    convolution=430,
    narrow_convolution=270,
    traffic=3.6,
    launch_us=2.5,
)
"""One H200: the matmul rate was measured, the others are published measurements on Hopper."""

HOPPER_KERNELS = {
    "attention": 560,
    "sparse_attention": 540,
    "fp8_attention": 600,
    "fp8_sparse_attention": 600,
}
"""Rates of attention in TFLOP/s by the kernels for Hopper, which have never run on a
GPU: what others report of such kernels in bfloat16, and an estimate from the number of
instructions in 8 bits."""


def parse_rates(text: str | None) -> Rates:
    """Read ``product=788,traffic=3.6``; omitted rates are those of an H200. Raises
    UsageError for anything else."""
    known = {field.name for field in fields(Rates)}
    changes: dict[str, float] = {}
    for part in (text or "").split(","):
        name, _, value = (each.strip() for each in part.partition("="))
        if not part.strip():
            continue
        if name not in known:
            raise UsageError(f"unknown rate {name!r}; choose from {', '.join(sorted(known))}")
        try:
            changes[name] = float(value)
        except ValueError:
            raise UsageError(f"the rate {name} must be a number, got {value!r}") from None
        if not changes[name] > 0:
            raise UsageError(f"the rate {name} must be above 0, got {value}")
    return replace(H200, **changes)


@dataclass(frozen=True, kw_only=True)
class StageRoof:
    """The predicted time of one stage's group."""

    name: str
    frames: int
    launches: int
    tflop: float
    gigabytes: float
    """Gigabytes moved by all launches."""
    pass_gigabytes: float
    """Gigabytes moved by launches without arithmetic."""
    ideal_ms: float
    """Time of its arithmetic alone, at the rate of a large matmul."""
    expected_ms: float
    parts_ms: Mapping[str, float]
    """The expected time by kind: matmuls, attention, convolutions, passes."""
    hopper_ms: float
    """The expected time with attention at the rates of ``HOPPER_KERNELS``."""

    @property
    def bound_by(self) -> str:
        """The kind that takes most of the time."""
        return max(self.parts_ms, key=lambda kind: self.parts_ms[kind])

    def as_json(self) -> dict[str, object]:
        """Return plain values."""
        return {**asdict(self), "bound_by": self.bound_by}

    def line(self) -> str:
        """Return the row of a table."""
        parts = ", ".join(f"{kind} {time:.1f}" for kind, time in self.parts_ms.items() if time >= 0.05)
        return (
            f"{self.name:<22} {self.frames:3} frames {self.launches:5} launches {self.gigabytes:6.1f} GB "
            f"({self.pass_gigabytes:5.1f} in passes) {self.tflop:6.2f} TFLOP  ideal {self.ideal_ms:6.1f} ms, "
            f"expected {self.expected_ms:6.1f} ms, bound by {self.bound_by} ({parts})"
        )


def _kind(launch: Launch, rates: Rates) -> tuple[str, float]:
    """Return the kind of a launch, and the rate of its arithmetic in TFLOP/s."""
    if not launch.flops:
        return "passes", rates.product
    if launch.op.startswith("dense_attention_fp8"):
        return "attention", rates.fp8_attention
    if launch.op in ("scaled_dot_product_attention", "dense_attention") or launch.op.startswith("text_attention"):
        return "attention", rates.attention
    if launch.op.startswith("block_list_attention"):
        return "attention", rates.fp8_sparse_attention if "fp8" in launch.op else rates.sparse_attention
    if launch.op in ("convolution", "fused_conv", "earlier_conv", "memory_conv"):
        wide = rates.wide_convolution if launch.rows >= 256 else rates.convolution
        return "convolutions", wide if launch.rows >= 128 else rates.narrow_convolution
    many = launch.rows >= _MANY_ROWS
    if launch.op == "_scaled_mm":
        return "products", rates.fp8_linear if many else rates.short_fp8_linear
    return "products", rates.linear if many else rates.short_linear


def _parts_ms(traced: StageTrace, rates: Rates) -> dict[str, float]:
    """Return the time by kind, for each launch the larger of arithmetic and traffic."""
    parts = {"products": 0.0, "attention": 0.0, "convolutions": 0.0, "passes": 0.0}
    for launch, count in traced.launches.items():
        kind, tflops = _kind(launch, rates)
        seconds = max(launch.flops / tflops / 1e12, launch.bytes / rates.traffic / 1e12, rates.launch_us * 1e-6)
        parts[kind] += 1000 * count * seconds
    return parts


def roof_of(traced: StageTrace, rates: Rates) -> StageRoof:
    """Return the time of a traced group at these rates, and with attention at those of
    ``HOPPER_KERNELS`` where they are higher."""
    hopper = {name: max(rate, getattr(rates, name)) for name, rate in HOPPER_KERNELS.items()}
    parts = _parts_ms(traced, rates)
    return StageRoof(
        name=traced.name,
        frames=traced.frames,
        launches=traced.count,
        tflop=traced.flops / 1e12,
        gigabytes=traced.bytes / 1e9,
        pass_gigabytes=traced.pass_bytes / 1e9,
        ideal_ms=traced.flops / rates.product / 1e9,
        expected_ms=sum(parts.values()),
        parts_ms=parts,
        hopper_ms=sum(_parts_ms(traced, replace(rates, **hopper)).values()),
    )


def roofline(rates: Rates) -> list[StageRoof]:
    """Trace the stages on meta tensors and return the predicted time of each."""
    return [roof_of(trace(name), rates) for name in TRACES]


_LATER = ("upsampler {}", "SR transformer {}", "decoder {}")
_LATER_FP8 = ("upsampler {}", "SR transformer {} fp8", "decoder {}")

CASCADES: dict[str, tuple[str, ...]] = {
    name.format(size): tuple(stage.format(size) for stage in stages)
    for name, stages in (
        ("generate {}", ("generator", *_LATER)),
        ("upscale {}", ("encoder", *_LATER)),
        ("generate {} fp8", ("generator fp8", *_LATER_FP8)),
        ("generate {} fp8 steps", ("generator fp8 steps", *_LATER_FP8)),
        ("upscale {} fp8", ("encoder", *_LATER_FP8)),
    )
    for size in ("1k", "2k")
}
"""The stages of each command; ``steps`` is the rule of ``--cache-management``."""


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Frames per second of all stages of a command in sequence."""

    name: str
    ideal_fps: float
    expected_fps: float
    two_gpus_fps: float
    """Frames per second with the generator on a separate GPU; for an upscale the same
    as on one."""
    hopper_fps: float
    """Frames per second with attention at the rates of ``HOPPER_KERNELS``."""
    hopper_two_gpus_fps: float

    def line(self) -> str:
        """Return the row of a table."""
        two = self.two_gpus_fps > self.expected_fps
        return (
            f"{self.name:<22} ideal {self.ideal_fps:3.0f} FPS, expected {self.expected_fps:3.0f}"
            f"{f', {self.two_gpus_fps:.0f} on two GPUs' if two else ''}; "
            f"with the kernels for Hopper {self.hopper_fps:.0f}"
            f"{f', {self.hopper_two_gpus_fps:.0f} on two GPUs' if two else ''}"
        )


def _fps(rows: Sequence[StageRoof], field: str) -> tuple[float, float]:
    """Return the frames per second of stages in sequence, and with the generator on a
    separate GPU."""
    times = {row.name: getattr(row, field) / row.frames for row in rows}
    total = sum(times.values())
    alone = sum(time for name, time in times.items() if name.startswith("generator"))
    return 1000 / total, 1000 / max(alone, total - alone)


def cascades(stages: Sequence[StageRoof]) -> list[Cascade]:
    """Return the frame rates of the stages combined."""
    by_name = {stage.name: stage for stage in stages}
    found: list[Cascade] = []
    for name, parts in CASCADES.items():
        if not set(parts) <= by_name.keys():
            continue
        rows = [by_name[part] for part in parts]
        expected, two_gpus = _fps(rows, "expected_ms")
        hopper, hopper_two_gpus = _fps(rows, "hopper_ms")
        found.append(
            Cascade(
                name=name,
                ideal_fps=_fps(rows, "ideal_ms")[0],
                expected_fps=expected,
                two_gpus_fps=two_gpus,
                hopper_fps=hopper,
                hopper_two_gpus_fps=hopper_two_gpus,
            )
        )
    return found
