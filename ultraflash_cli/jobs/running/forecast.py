"""Predict the run time and output size of a job on this machine, and state the basis of
the prediction."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.jobs.planning.target import encoded_bytes
from ultraflash_cli.jobs.planning.upscale import Prepared, estimate_frames

if TYPE_CHECKING:
    from ultraflash_cli.jobs.planning.generate import PreparedGeneration
    from ultraflash_cli.jobs.running.loader import Models
    from ultraflash_cli.jobs.running.report import Report
    from ultraflash_cli.models.forecast import GenerationRates

__all__ = [
    "Forecast",
    "Forecaster",
    "describe_forecast",
    "duration_words",
    "forecast_from_part",
    "size_words",
]

_UNCOUNTED = "the model's work depends on the clip; use --preview 3s --html for a prediction"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The predicted cost of a whole job."""

    seconds: float | None
    """Time from the first frame to the last; None if unknown."""
    output_bytes: int | None
    flops: float | None
    """Arithmetic of the model; a multiply-add is 2."""
    basis: str
    """Basis of these numbers."""

    def as_json(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return asdict(self)


class Forecaster:
    """Predicts the jobs of a command; the speed of a model is measured once."""

    def __init__(self, models: "Models") -> None:
        self._models = models
        self._rates: dict[object, float] = {}
        self._generation_rates: dict[object, GenerationRates] = {}

    def forecast(self, prepared: "Prepared | PreparedGeneration") -> Forecast:
        """Predict the cost of an upscale or a generation. Raises the same errors as
        `Models.plan_memory`."""
        return self._upscaling(prepared) if isinstance(prepared, Prepared) else self._generation(prepared)

    def _upscaling(self, prepared: "Prepared") -> Forecast:
        from ultraflash_cli.models.forecast import flops_per_frame
        from ultraflash_cli.video.sampling import copied_bytes, sampled_bytes

        frames = estimate_frames(prepared.info, prepared.window)
        device, profile, _ = self._models.plan_upscaler(prepared)
        per_frame = flops_per_frame(profile.at_scale(prepared.plan.scale), *prepared.plan.padded)
        sample = sampled_bytes(prepared.info, prepared.spec) if frames else None
        size = None
        if sample is not None and frames:
            copied = copied_bytes(prepared.info, (each.index for each in prepared.streams.copied))
            size = sample.total(frames) + round(copied * _share(prepared))
        basis = f"size: {sample.frames} frames enlarged by lanczos and encoded" if sample is not None else ""
        if per_frame is None or not frames:
            reason = _UNCOUNTED if frames else "the length of the input is unknown"
            return Forecast(seconds=None, output_bytes=size, flops=None, basis=_joined(reason, basis))
        job = prepared.job
        key = ("upscale", prepared.model, prepared.plan.scale, job.precision, prepared.threads, device)
        if key not in self._rates:
            took_s = self._models.upscaler(prepared).frame_seconds
            if not took_s:
                reason = "the speed of this model cannot be measured in advance, so its run time is unknown"
                return Forecast(seconds=None, output_bytes=size, flops=frames * per_frame, basis=_joined(reason, basis))
            self._rates[key] = per_frame / took_s
        rate = self._rates[key]
        time = f"time: {per_frame / 1e9:.3g} GFLOP per frame (counted) at {rate / 1e9:.3g} GFLOP/s (measured here)"
        return Forecast(
            seconds=round(frames * per_frame / rate, 2),
            output_bytes=size,
            flops=frames * per_frame,
            basis=_joined(time, basis),
        )

    def _generation(self, prepared: "PreparedGeneration") -> Forecast:
        from ultraflash_cli.engine.schedule import GENERATED_FPS
        from ultraflash_cli.models.forecast import generation_rates, generation_work
        from ultraflash_cli.models.frames import GeneratedFrames

        spec = prepared.spec
        frames = max(1, round(prepared.frames * spec.rate / GENERATED_FPS))
        size = encoded_bytes(spec.codec, width_px=spec.width_px, height_px=spec.height_px, frames=frames)
        guess = "size: an estimate from codec and pixels"
        devices, profile, _ = self._models.plan_generator(prepared)
        work = generation_work(
            profile, prepared.generator, prepared.plan, prepared.scale, low_frames=prepared.low_spec is not None
        )
        if work is None:
            reason = "the model's work depends on the clip, so its run time cannot be predicted"
            return Forecast(seconds=None, output_bytes=size, flops=None, basis=_joined(reason, guess))
        job = prepared.job
        key = ("generate", prepared.model, prepared.scale, prepared.long, job.precision, prepared.threads, devices)
        if key not in self._generation_rates:
            generator = self._models.generator(prepared).model
            assert isinstance(generator, GeneratedFrames), "the engine's own"
            self._generation_rates[key] = generation_rates(*generator.cascade)
        seconds = self._generation_rates[key].seconds(work)
        rate = work.total / seconds / 1e9
        time = f"time: {work.total / 1e12:.3g} TFLOP (counted) at {rate:.3g} GFLOP/s (measured here)"
        return Forecast(seconds=round(seconds, 2), output_bytes=size, flops=work.total, basis=_joined(time, guess))


def forecast_from_part(prepared: "Prepared", report: "Report", output: Path) -> Forecast:
    """Predict a whole clip from a part that was processed."""
    from ultraflash_cli.video.sampling import copied_bytes, packet_bytes

    frames, done = estimate_frames(prepared.info, None), report.frames_in - report.frames_resumed
    seconds = size = None
    sides = report.seconds_by_stage or {}
    # On a CPU the three stages share the cores; with a GPU the slowest one decides.
    together = sum if report.device == "cpu" else max
    busy_s = together(sides.get(side, 0.0) for side in ("reading", "model", "writing"))
    if frames and done > 0 and busy_s:
        seconds = round(frames * busy_s / done, 2)
    found = packet_bytes(output)
    if frames and found is not None:
        size = found.total(round(frames * report.frames_out / max(1, report.frames_in)))
        size += copied_bytes(prepared.info, (each.index for each in prepared.streams.copied))
    basis = f"the {report.frames_in} frames of this preview, made on {report.device}"
    return Forecast(seconds=seconds, output_bytes=size, flops=None, basis=basis)


def describe_forecast(forecast: Forecast) -> list[str]:
    """Describe a forecast in two lines."""
    parts = [] if forecast.seconds is None else [f"about {duration_words(forecast.seconds)}"]
    parts += [] if forecast.output_bytes is None else [f"about {size_words(forecast.output_bytes)}"]
    return [f"predicted: {', '.join(parts) or 'not known'}", f"  {forecast.basis}"]


def duration_words(seconds: float) -> str:
    """Return a duration in words."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"


def size_words(count: int) -> str:
    """Return a size in words."""
    for unit, least, digits in (("GB", 1e9, 2), ("MB", 1e5, 1)):
        if count >= least:
            return f"{count / (1e9 if unit == 'GB' else 1e6):.{digits}f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _share(prepared: "Prepared") -> float:
    """Return the share of the clip that is processed."""
    window, length = prepared.window, prepared.info.duration_s
    if window is None or not length:
        return 1.0
    return min(1.0, float(window[1] - window[0]) / length)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
