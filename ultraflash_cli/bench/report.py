"""What a measurement found, for people and for machines."""

from dataclasses import asdict, dataclass

__all__ = ["BenchReport", "StageTime"]


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Where a part of the time went."""

    name: str
    seconds: float
    """Summed over the timed frames."""
    share: float
    """Of the whole time, 0..1; the shares of all stages sum to 1."""


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Model time alone: frames in memory to frames in memory, no reading and no encoding."""

    model: str
    device: str
    device_name: str
    threads: int
    precision: str
    source: tuple[int, int]
    """Width and height in pixels."""
    output: tuple[int, int]
    frames: int
    """How many were timed."""
    seconds: float
    load_seconds: float
    """From nothing to a model that has run its first group."""
    stages: tuple[StageTime, ...]
    peak_rss_bytes: int
    """Of a process that did nothing else, Python and torch included."""
    peak_vram_bytes: int | None
    flops_per_output_pixel: float
    """A multiply-add counts as 2; convolutions, matrix products and attention in the steady state."""
    limit_flops_per_second: float
    """What a plain 3x3 convolution of 64 channels reaches on this device in this precision."""
    versions: dict[str, str]

    @property
    def fps(self) -> float:
        """Frames a second of model time."""
        return self.frames / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Arithmetic done a second of model time."""
        return self.flops_per_output_pixel * self.output[0] * self.output[1] * self.fps

    def as_json(self) -> dict[str, object]:
        """Return plain values, ready for JSON."""
        derived = {"fps": self.fps, "flops_per_second": self.flops_per_second}
        return {"schema": 1, **asdict(self), **derived}

    def lines(self) -> list[str]:
        """Return what people want to read."""
        source, output = (f"{width}x{height}" for width, height in (self.source, self.output))
        reached = self.flops_per_second / self.limit_flops_per_second
        memory = f"peak memory {self.peak_rss_bytes / 2**20:.0f} MiB"
        if self.peak_vram_bytes is not None:
            memory += f", on the device {self.peak_vram_bytes / 2**20:.0f} MiB"
        return [
            f"{self.model}, {source} to {output}, {self.precision} on {self.device_name}, {self.threads} threads",
            f"{self.fps:.2f} frames a second of model time ({self.frames} frames in {self.seconds:.2f} s)",
            *(
                f"  {stage.name:<18} {1000 * stage.seconds / self.frames:8.1f} ms a frame {100 * stage.share:5.1f} %"
                for stage in self.stages
            ),
            f"{memory}; ready after {self.load_seconds:.1f} s",
            f"{self.flops_per_output_pixel / 1000:.1f} kFLOP an output pixel; {self.flops_per_second / 1e9:.0f} of "
            f"{self.limit_flops_per_second / 1e9:.0f} GFLOP/s, what a plain convolution reaches here ({reached:.0%})",
        ]
