"""The report of a measurement, as text and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ultraflash_cli.bench.kernels import KernelTime
    from ultraflash_cli.bench.limits import Limits

__all__ = ["BenchReport", "StageTime", "WallTime", "kernel_lines"]

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Time and work of one stage."""

    name: str
    seconds: float
    """Seconds, summed over the timed frames."""
    share: float
    """Share of the total time, 0..1; the shares of all stages sum to 1."""
    flops_per_second: float
    """Arithmetic of the stage per second of its time."""
    bytes_per_second: float
    """Bytes read and written by its individual operations, per second of its time."""


@dataclass(frozen=True, kw_only=True)
class WallTime:
    """Time of the whole command, from file to file, with reading, model and writing in
    parallel."""

    frames: int
    seconds: float
    """Time from loading the model to the finished file."""
    fps: float
    """Frames per second from the first group of pictures to the finished file, not
    counting that group."""
    first_frame_seconds: float | None
    """Seconds from the start, including loading, until the model returned the first
    pictures."""
    codec: str
    limit: str | None
    """The bottleneck that the other sides waited for."""


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Model time, from frames in memory to frames in memory, and the wall time of the command."""

    kind: str
    """``upscale`` or ``generate``."""
    model: str
    weights: str
    """``built in``, ``downloaded`` or ``random``."""
    device: str
    device_name: str
    threads: int
    waiting: str
    """Wait policy of the threads."""
    precision: str
    cache_management: str
    source: tuple[int, int]
    """Width and height in pixels; for a generated clip, the size before refinement."""
    output: tuple[int, int]
    frames: int
    """Number of frames timed."""
    seconds: float
    whole_clip: bool
    """Whether ``frames`` are a whole clip rather than groups from the middle of one."""
    load_seconds: float
    """Time to load the model with its weights."""
    first_frame_seconds: float
    """Cold start: time until the first group of pictures is on the host."""
    warm_first_frame_seconds: float | None
    """The same for another clip; None if no whole clip is timed."""
    stages: tuple[StageTime, ...]
    graphs: dict[str, dict[str, int]]
    """Steps by stage: recorded, replayed, run eagerly; empty without CUDA graphs."""
    not_recorded: tuple[str, ...]
    """Reasons why steps of a stage could not be recorded."""
    lanes: bool
    """Whether generator and refiner ran concurrently."""
    peak_rss_bytes: int
    """Peak of a dedicated process, including Python and torch."""
    peak_vram_bytes: int | None
    flops_per_output_pixel: float
    """Operations of convolutions, matmuls and attention; a multiply-add counts as 2."""
    bytes_per_output_pixel: float
    """Bytes read and written by the individual operations."""
    limits: "Limits"
    versions: dict[str, str]
    wall: WallTime | None = None
    """Time of the whole command; None if it was not run."""

    @property
    def fps(self) -> float:
        """Frames per second of model time."""
        return self.frames / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Arithmetic per second of model time; a multiply-add counts as 2."""
        return self.flops_per_output_pixel * self.output[0] * self.output[1] * self.fps

    def as_json(self) -> dict[str, object]:
        """Return plain values, ready for JSON."""
        derived = {
            "fps": self.fps,
            "flops_per_second": self.flops_per_second,
            "of_product": self.flops_per_second / self.limits.product_flops_per_second,
        }
        return {"schema": SCHEMA, **asdict(self), **derived}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        source, output = (f"{width}x{height}" for width, height in (self.source, self.output))
        where = f"{self.precision} on {self.device_name}, {self.threads} threads (wait policy {self.waiting})"
        done = f"{self.frames} frames in {self.seconds:.2f} s"
        memory = f"peak memory {self.peak_rss_bytes / 2**20:.0f} MiB" if self.peak_rss_bytes else "peak memory unknown"
        if self.peak_vram_bytes is not None:
            memory += f", on the device {self.peak_vram_bytes / 2**20:.0f} MiB"
        whole = "a whole clip, " if self.whole_clip else ""
        cold = f"first frames after {self.first_frame_seconds:.1f} s cold (loading {self.load_seconds:.1f} s)"
        if self.warm_first_frame_seconds is not None:
            cold += f", {self.warm_first_frame_seconds:.2f} s warm"
        return [
            f"{self.kind} {self.model}, {self.weights} weights, {source} to {output}, {where}",
            f"{self.fps:.2f} model frames per second ({whole}{done})",
            *(self._stage_line(stage) for stage in self.stages),
            *self._graph_lines(),
            f"{memory}; {cold}",
            self._limit_line(),
            *([] if self.wall is None else [_wall_line(self.wall)]),
        ]

    def _stage_line(self, stage: StageTime) -> str:
        line = f"  {stage.name:<18} {1000 * stage.seconds / self.frames:8.1f} ms per frame {100 * stage.share:5.1f} %"
        if not stage.bytes_per_second:
            return line
        product = stage.flops_per_second / self.limits.product_flops_per_second
        copy = stage.bytes_per_second / self.limits.copy_bytes_per_second
        rates = f"{stage.flops_per_second / 1e9:9.1f} GFLOP/s {product:4.0%} of a matmul"
        return f"{line} {rates}  {stage.bytes_per_second / 1e9:7.1f} GB/s {copy:4.0%} of a copy"

    def _graph_lines(self) -> list[str]:
        if not self.graphs:
            return []
        parts = [f"{name} {counts['replayed']}" for name, counts in self.graphs.items()]
        return [f"steps replayed as CUDA graphs: {', '.join(parts)}", *self.not_recorded]

    def _limit_line(self) -> str:
        limits = self.limits
        convolution = self.flops_per_second / limits.convolution_flops_per_second
        return (
            f"{self.flops_per_output_pixel / 1000:.1f} kFLOP per output pixel; {self.flops_per_second / 1e9:.0f} "
            f"GFLOP/s of {limits.product_flops_per_second / 1e9:.0f} in a large matmul and of "
            f"{limits.convolution_flops_per_second / 1e9:.0f} in a plain convolution ({convolution:.0%}); "
            f"a large copy moves {limits.copy_bytes_per_second / 1e9:.1f} GB/s"
        )


def _wall_line(wall: WallTime) -> str:
    first = "" if wall.first_frame_seconds is None else f", first frames after {wall.first_frame_seconds:.1f} s"
    limit = "" if wall.limit is None else f", {wall.limit} is the bottleneck"
    return (
        f"{wall.fps:.2f} frames per second from file to file ({wall.frames} frames in {wall.seconds:.2f} s, "
        f"{wall.codec}{first}{limit})"
    )


def kernel_lines(rows: "Sequence[KernelTime]", names: Mapping[str, str]) -> list[str]:
    """Return a line for each implementation; ``names`` are the alternatives to compare
    with."""
    lines: list[str] = []
    for row in rows:
        if row.flops_per_second:
            rate = f"{row.flops_per_second / 1e12:8.3f} TFLOP/s {row.of_product:4.0%} of a matmul"
        else:
            rate = f"{row.bytes_per_second / 1e9:8.1f} GB/s    {row.of_copy:4.0%} of a copy"
        times = ", ".join(f"{factor:.2f} x {names.get(rival, rival)}" for rival, factor in row.speedups.items())
        lines.append(
            f"{row.name:<52} {row.dtype:<9} {row.impl:<12} {1e3 * row.seconds:9.3f} ms {rate}  {times}".rstrip()
        )
    return lines
