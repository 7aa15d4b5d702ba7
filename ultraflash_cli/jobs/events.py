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
"""Version of the events; grows when a field is changed or removed."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; `name` is the `event` of `--progress json`."""

    name: ClassVar[str]
    input: str
    """The input as it was given."""


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """The plan, before anything heavy is loaded."""

    name: ClassVar[str] = "plan"
    output: str
    source_width: int
    source_height: int
    width: int
    """Target width in pixels as coded, before rotation."""
    height: int
    scale: int
    """What the model multiplies by: 2 or 3; 1 for a generated clip that stays at the base size."""
    model: str
    codec: str
    pix_fmt: str
    frames_total: int | None
    """An estimate from the container; None if it does not say."""
    kept: tuple[str, ...]
    """Streams that are copied."""
    dropped: tuple[str, ...]
    """Streams that are left out, each with its reason."""


@dataclass(frozen=True, kw_only=True)
class GenerationPlanned(Planned):
    """What will be generated; the prompt is the input and the generator's own size that of the source."""

    low_output: str | None
    """Output of the clip at the generator's own size."""
    seed: int
    seconds: float
    """How long the clip lasts."""
    long: bool
    """Whether the long variant of the generator makes it."""
    groups: tuple[int, ...]
    """Frames that are made together."""
    cache_management: str
    notice: str
    """Notice about this model's clips; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The model is ready and frames begin to move."""

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
    """Why the work resumes or starts over; None for a plain start."""
    label: str | None = None
    """What lines of progress call it; None for the input's own name."""
    predicted_s: float | None = None
    """Predicted time for the remaining frames; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Chunk(Event):
    """A group of frames went through the model."""

    name: ClassVar[str] = "chunk"
    frames_done: int
    frames_safe: int
    """Frames that survive a power cut."""
    frames_total: int | None
    fps: float
    """Frames per second in this run, reading and writing included."""
    eta_s: float | None
    limit: str
    """The bottleneck: reading, model or writing."""
    first_frame_s: float | None = None
    """Seconds from the beginning, loading the model included, until the first frames left the model."""


@dataclass(frozen=True, kw_only=True)
class Retrying(Event):
    """Memory ran out; the work continues with a smaller plan, or starts over if that changes pixels."""

    name: ClassVar[str] = "retry"
    message: str
    planned_bytes: int
    """Size of the plan that did not fit."""


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """A warning; the work continues."""

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
    """Share of the pixels that strayed from the source and were blended back; None without a guard."""


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The work ended without its output."""

    name: ClassVar[str] = "error"
    message: str
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class PullPlanned(Event):
    """Files that a pull of weights will download."""

    name: ClassVar[str] = "plan"
    files: tuple[str, ...]
    """As `owner/repository/path`."""
    licences: tuple[str, ...]
    bytes_total: int


@dataclass(frozen=True, kw_only=True)
class Transfer(Event):
    """Bytes of a file arrived."""

    name: ClassVar[str] = "transfer"
    bytes_done: int
    """Those of an interrupted transfer included."""
    bytes_total: int
    bytes_per_s: float


Listener = Callable[[Event], None]
"""Receives every event; may be called from any thread, one call at a time."""


def as_json(event: Event) -> dict[str, object]:
    """Return the event as a JSON object with `schema` and `event` in front."""
    return {"schema": SCHEMA, "event": event.name, **asdict(event)}
