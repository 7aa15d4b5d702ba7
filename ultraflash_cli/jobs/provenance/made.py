"""The tag of an output, which records how it was made: enough to repeat it, without
paths."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration
from ultraflash_cli.jobs.planning.target import is_pictures
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob

if TYPE_CHECKING:
    from ultraflash_cli.models.built import Built
    from ultraflash_cli.models.frames import FrameGenerator, FrameUpscaler

__all__ = ["Made", "made_by_generating", "made_by_upscaling", "with_guarded_share"]

Value = str | bool | list[str]

_PRECISIONS = ("fp32", "bf16", "fp8")
_FLAG = re.compile(r"--[a-z][a-z-]*")
_SPELLED = {
    "audio": ("--audio", "--no-audio"),
    "color": ("--no-match-colors",),
    "cuts": ("--no-cuts",),
    "enc_options": ("--enc-opt",),
    "subs": ("--no-subs",),
    "init_clip": ("--init-clip",),
    "precision": ("--precision",),
    **{name: (f"--{name}",) for name in ("device", "fps", "guard", "model", "prompt", "res", "seed", "threads")},
}
"""Options that are written individually below, by job field; the others are named after
their field."""
_UNTOLD = frozenset(
    {
        *("folder", "name", "output", "overwrite", "pipe", "resume", "show", "skip_existing", "source", "stdout"),
        *("stdout_name", "store", "tag", "temp"),
    }
)
"""Fields about paths and the run itself, which do not affect the result."""
_INIT_CLIP = "INIT_CLIP"
_MOST_WEIGHTS = 100


@dataclass(frozen=True, kw_only=True)
class Made:
    """The recorded facts about the run that made a file."""

    version: str
    command: str
    """`upscale` or `generate`."""
    model: str
    weights: Mapping[str, str] = field(default_factory=dict[str, str])
    """The sha256 of every weight file by its name."""
    seed: int
    device: str
    precision: str
    prompt: str | None = None
    """Prompt of a generated clip."""
    options: Mapping[str, Value] = field(default_factory=dict[str, Value])
    """Options that differ from the default, and choices that might differ on another
    machine."""
    streamed: bool = False
    """Whether it was streamed, in separately encoded parts."""
    single: bool = False
    """Whether it is one picture with a name of its own, not one of numbered ones."""
    guarded_share: float | None = None
    """Share of pixels that departed too far from the source and were blended back
    (``--guard``); None without a guard, and for a stream, whose tag is written
    first."""

    def as_text(self) -> str:
        """Return the tag."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "Made":
        """Read a tag. Raises ValueError for anything else."""
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError("no object")

        read = cast("dict[str, Any]", said)
        words = [read.get(name) for name in ("version", "command", "model", "device", "precision")]
        if not all(isinstance(word, str) for word in words) or read["command"] not in ("upscale", "generate"):
            raise ValueError("a field is missing")

        prompt, seed, weights = read.get("prompt"), read.get("seed"), read.get("weights", {})
        if (
            not isinstance(prompt, str | None)
            or type(seed) is not int
            or (read["command"] == "generate") != bool(prompt)
        ):
            raise ValueError("prompt or seed is invalid")
        if not _is_table(weights) or not all(isinstance(value, str) for value in weights.values()):
            raise ValueError("weights are invalid")

        options = read.get("options", {})
        if not _is_table(options) or not all(_FLAG.fullmatch(flag) and _is_value(options[flag]) for flag in options):
            raise ValueError("options are invalid")

        return cls(
            version=read["version"],
            command=read["command"],
            model=read["model"],
            weights=weights,
            seed=seed,
            device=read["device"],
            precision=read["precision"],
            prompt=prompt,
            options=options,
            streamed=read.get("streamed") is True,
            single=read.get("single") is True,
            guarded_share=_share(read.get("guarded_share")),
        )

    @property
    def unknown(self) -> list[str]:
        """Options that this version does not know."""
        return sorted(set(self.options) - _known())

    def arguments(self, output: str) -> list[str]:
        """Return the arguments of the command that repeats it, for an output of this
        name; INPUT stands for the input."""
        words = ["ultraflash", self.command, self.prompt if self.prompt is not None else "INPUT"]
        if words[2].startswith("-"):
            words.insert(2, "--")  # must be the last option before the arguments
        given: list[str] = ["-o", "-" if self.streamed else output]
        for flag, value in self.options.items():
            if flag not in _known():
                continue
            for each in value if isinstance(value, list) else [value]:
                given += (
                    [flag] if each is True else [f"{flag}={each}"] if str(each).startswith("-") else [flag, str(each)]
                )
        return [*words[:2], *given, *words[2:]] if "--" in words else [*words, *given]


def made_by_upscaling(prepared: Prepared, built: "Built[FrameUpscaler]") -> str | None:
    """Return the tag of an upscaled clip; None with --no-tag."""
    from ultraflash_cli.video.sequence import is_pattern

    job = prepared.job
    if not job.tag:
        return None

    options: dict[str, Value | None] = {
        "--res": prepared.res,
        "--guard": f"{job.guard:g}" if job.guard is not None else "off",
        "--no-match-colors": job.color == "off",
        "--no-cuts": job.cuts == "off",
        "--prompt": job.prompt,
        "--fps": _rate(job.fps),
        "--audio": job.audio if job.audio in ("aac", "flac", "opus") else None,
        "--no-audio": job.audio == "none",
        "--no-subs": job.subs == "none",
    }
    single = is_pictures(prepared.output) and not is_pattern(prepared.output)
    return _text("upscale", job, built, model=prepared.model, threads=prepared.threads, options=options, single=single)


def with_guarded_share(tag: str | None, share: float | None) -> str | None:
    """Return a tag that also states which share of the pixels was blended back."""
    if tag is None or share is None:
        return tag
    return json.dumps(json.loads(tag) | {"guarded_share": round(share, 6)}, separators=(",", ":"))


def made_by_generating(prepared: PreparedGeneration, built: "Built[FrameGenerator]") -> str | None:
    """Return the tag of a generated clip; None with --no-tag."""
    job = prepared.job
    if not job.tag:
        return None
    options: dict[str, Value | None] = {
        "--res": job.res,
        "--fps": _rate(job.fps),
        "--init-clip": _INIT_CLIP if job.init_clip is not None else None,
    }
    made = _text("generate", job, built, model=prepared.model, threads=prepared.threads, options=options)
    return json.dumps(json.loads(made) | {"prompt": prepared.prompt}, separators=(",", ":"))


def _text(
    command: str,
    job: Any,
    built: Any,
    *,
    model: str,
    threads: int,
    options: Mapping[str, Value | None],
    single: bool = False,
) -> str:
    """Return the tag of a job of either kind, with the options common to both."""
    precision = built.precision if built.precision in _PRECISIONS else job.precision
    shared: dict[str, Value | None] = {
        "--enc-opt": [f"{key}={_without_paths(value)}" for key, value in job.enc_options],
        "--model": model,
        "--seed": str(job.seed),
        "--device": built.device.partition(":")[0],
        "--precision": precision,
        "--threads": str(threads),
    }

    return Made(
        version=version("ultraflash"),
        command=command,
        model=model,
        weights=built.weights,
        seed=job.seed,
        device=built.device,
        precision=built.precision,
        options={flag: value for flag, value in {**options, **shared, **dict(_others(job))}.items() if value},
        streamed=job.stdout is not None,
        single=single,
    ).as_text()


@cache
def _known() -> frozenset[str]:
    """Return the options that a tag may put into a command, so that an untrusted file
    cannot make it write elsewhere."""
    spelled = {flag for flags in _SPELLED.values() for flag in flags}
    names = {each.name for job in (UpscaleJob, GenerateJob) for each in fields(job)} - {*_SPELLED, *_UNTOLD}
    return frozenset(spelled | {f"--{no}{name.replace('_', '-')}" for name in names for no in ("", "no-")})


def _others(job: Any) -> Iterator[tuple[str, Value]]:
    """Yield the options of a job that are named after its fields, unless they have the
    default value."""
    for each in fields(job):
        value = getattr(job, each.name)
        if each.name in _SPELLED or each.name in _UNTOLD or value == each.default:
            continue
        name = each.name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{'' if value else 'no-'}{name}", True
        else:
            yield f"--{name}", _without_paths(f"{value:g}" if isinstance(value, float) else str(value))


def _rate(fps: Fraction | None) -> str | None:
    return None if fps is None else str(fps)


def _without_paths(value: str) -> str:
    """Remove values that name files, which are private."""
    return "PATH" if "/" in value or "\\" in value else value


def _is_table(value: object) -> bool:
    if not isinstance(value, dict) or len(cast("dict[object, object]", value)) > _MOST_WEIGHTS:
        return False
    return all(isinstance(name, str) for name in cast("dict[object, object]", value))


def _share(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1 else None


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, str) for each in cast("Sequence[object]", value))
    return isinstance(value, str) or value is True
