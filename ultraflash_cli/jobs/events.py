"""Events of a running job, as values; listeners decide how to show them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

__all__ = [
    "SCHEMA",
    "Chunk",
    "Done",
    "Event",
    "Failed",
    "GenerationPlanned",
    "Listener",
    "Planned",
    "PullPlanned",
    "Retrying",
    "Serving",
    "Started",
    "Transfer",
    "Warned",
    "as_json",
]

SCHEMA = 1
"""Version of the events; increases when a field is changed or removed."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; `name` is the `event` of `--progress json`."""

    name: ClassVar[str]
    input: str
    """The input as it was given."""


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """A job is planned; nothing heavy has been loaded yet."""

    name: ClassVar[str] = "plan"
    output: str
    source_width: int
    source_height: int
    width: int
    """Target width in pixels as coded, before rotation."""
    height: int
    scale: int
    """Scale factor of the model: 2 or 3; 1 for a generated clip at the base size."""
    model: str
    codec: str
    encoder: str
    """FFmpeg's name of the encoder."""
    pix_fmt: str
    frames_total: int | None
    """Estimate from the container; None if it has none."""
    kept: tuple[str, ...]
    """Streams that are copied."""
    dropped: tuple[str, ...]
    """Streams that are left out, each with its reason."""


@dataclass(frozen=True, kw_only=True)
class GenerationPlanned(Planned):
    """A clip to generate is planned; the prompt is the input, and the generator's base
    size the source size."""

    low_output: str | None
    """Output of the clip at the generator's base size."""
    seed: int
    seconds: float
    """Duration of the clip in seconds."""
    long: bool
    """Whether the long variant of the generator is used."""
    groups: tuple[int, ...]
    """Numbers of frames that are generated together."""
    cache_management: str
    notice: str
    """Notice about this model's clips; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The model is loaded and the work begins."""

    name: ClassVar[str] = "start"
    output: str
    model: str
    device: str
    precision: str
    threads: int
    frames_total: int | None
    frames_resumed: int
    """Frames finished by an interrupted run."""
    note: str | None
    """Reason why the work resumes or starts over; None for a plain start."""
    label: str | None = None
    """Name of the job in progress lines; None for the name of the input."""
    predicted_s: float | None = None
    """Predicted time for the remaining frames; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Chunk(Event):
    """A group of frames has passed through the model."""

    name: ClassVar[str] = "chunk"
    frames_done: int
    frames_safe: int
    """Number of frames that survive a power cut."""
    frames_total: int | None
    """As in `Planned`; None once more frames than that are done."""
    fps: float
    """Frames per second in this run, including reading and writing."""
    eta_s: float | None
    limit: str
    """The bottleneck: reading, model or writing."""
    first_frame_s: float | None = None
    """Seconds from the start, including loading, until the model returned the first
    frames."""


@dataclass(frozen=True, kw_only=True)
class Retrying(Event):
    """Memory ran out; the job continues with a smaller plan, or starts over if that
    changes pixels."""

    name: ClassVar[str] = "retry"
    message: str
    planned_bytes: int
    """Size of the plan that did not fit."""


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """A warning; the job continues."""

    name: ClassVar[str] = "warn"
    message: str


@dataclass(frozen=True, kw_only=True)
class Serving(Event):
    """A browser may show the job; the link works once."""

    name: ClassVar[str] = "serve"
    url: str


@dataclass(frozen=True, kw_only=True)
class Done(Event):
    """The output is in place."""

    name: ClassVar[str] = "done"
    output: str
    frames: int
    seconds: float
    fps: float
    guarded_share: float | None = None
    """Share of pixels that departed from the source and were blended back; None without
    a guard."""


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The job ended without an output."""

    name: ClassVar[str] = "error"
    message: str
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class PullPlanned(Event):
    """Files that a pull of weights will download."""

    name: ClassVar[str] = "plan"
    files: tuple[str, ...]
    """Files as `owner/repository/path`."""
    licences: tuple[str, ...]
    bytes_total: int


@dataclass(frozen=True, kw_only=True)
class Transfer(Event):
    """Part of a file was transferred."""

    name: ClassVar[str] = "transfer"
    bytes_done: int
    """Bytes received so far, including an interrupted transfer."""
    bytes_total: int
    bytes_per_s: float


Listener = Callable[[Event], None]
"""Receives every event; may be called from any thread, one call at a time."""


def as_json(event: Event) -> dict[str, object]:
    """Return the event as a JSON object with `schema` and `event` in front."""
    return {"schema": SCHEMA, "event": event.name, **asdict(event)}
