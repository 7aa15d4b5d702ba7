"""The schemas of JSON results in docs/schemas, made from the dataclasses that are printed.

`python -m tests.cli.schemas` writes them.

cluster.json, compare.json and explain.json are written by hand; they state more than
types can.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ultraflash_cli.bench.kernels import KernelTime
from ultraflash_cli.bench.limits import Limits
from ultraflash_cli.bench.report import BenchReport
from ultraflash_cli.engine.footprint.plan import MemorySettings, MemoryStep
from ultraflash_cli.jobs import events
from ultraflash_cli.jobs.doctor import Finding
from ultraflash_cli.jobs.resume.leftovers import Leftover
from ultraflash_cli.jobs.running.forecast import Forecast
from ultraflash_cli.jobs.running.generate import GenerateReport
from ultraflash_cli.jobs.running.still import StillReport
from ultraflash_cli.jobs.running.upscale import UpscaleReport
from ultraflash_cli.video.color import ColorInfo

__all__ = ["FOLDER", "schemas", "written"]

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"

Schema = dict[str, Any]

_PLAIN: dict[object, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
    Path: {"type": "string"},
    object: {},
    Any: {},
}
_KNOWN = {"Limits": Limits}
"""Names that their modules import only for type checking."""


def schemas() -> dict[str, Schema]:
    """Return every generated schema by file name."""
    memory: Schema = {
        "description": "The memory plan; absent where none fits.",
        "type": ["object", "null"],
        "required": ["total_bytes", "budget_bytes", "host_bytes", "state_bytes", "peak", "parts", "phases"],
        "properties": {
            "device": {"type": "string"},
            "total_bytes": {"description": "At the peak, on the device.", "type": "integer"},
            "budget_bytes": {"type": ["integer", "null"]},
            "host_bytes": {"type": "integer"},
            "state_bytes": {"description": "Of what a resumed run needs.", "type": "integer"},
            "peak": {"description": "Which phase takes the most.", "type": "string"},
            "parts": {"type": "array", "items": _closed({"name": {"type": "string"}, "bytes": {"type": "integer"}})},
            "phases": {"type": "object", "additionalProperties": {"type": "integer"}},
            "settings": _object(MemorySettings),
            "steps": {"description": "What the plan gives up to fit.", "type": "array", "items": _object(MemoryStep)},
        },
        "additionalProperties": False,
    }
    alone: Schema = {**memory, "type": "object", "description": "The plan of the second device, where there are two."}
    memory["properties"] = {**memory["properties"], "second": alone}
    forecast = _object(Forecast) | {"description": "What the job is going to cost."}
    warnings = {"description": "Those of the run that are known beforehand.", "type": "array", "items": _PLAIN[str]}
    extra = {"memory": memory, "forecast": forecast, "warnings": warnings}
    failure = _closed(
        {
            "input": {"type": "string"},
            "output": {"type": "null"},
            "error": {"type": "string"},
            "exit_code": {"type": "integer"},
        }
    )
    refusal = _closed({"error": {"type": "string"}, "exit_code": {"type": "integer"}})
    page = {"html": {"description": "The page, if one was requested.", "type": "string"}}
    happened = [event for event in _subclasses(events.Event) if event is not events.Planned]
    return {
        "upscale.json": _one_of(
            "ultraflash upscale --json",
            "One object a line and input: a report, a plan (--dry-run), a failure, the images of --preview frame, or a "
            "refusal if no input is reached.",
            report=_object(UpscaleReport, optional=page),
            plan=_object(events.Planned, optional=extra),
            failure=failure,
            refusal=refusal,
            frame=_object(StillReport),
        ),
        "generate.json": _one_of(
            "ultraflash generate --json",
            "One object a line and clip: a report, a plan (--dry-run), a failure, or a refusal if no clip is reached.",
            report=_object(GenerateReport),
            plan=_object(events.GenerationPlanned, optional=extra),
            failure=failure,
            refusal=refusal,
        ),
        "events.json": _one_of(
            "--progress json",
            "One event a line on stderr.",
            **{
                event.__name__: _object(
                    event,
                    more={
                        "schema": {"description": "Grows when a field changes its meaning or goes.", "const": 1},
                        "event": {"const": event.name},
                    },
                )
                for event in (events.Planned, *happened)
            },
        ),
        "probe.json": _one_of(
            "ultraflash probe --json",
            "One object on one line: a description, or a failure.",
            description=_probe(memory, forecast),
            failure=_closed(
                {"file": {"type": "string"}, "error": {"type": "string"}, "exit_code": {"type": "integer"}}
            ),
        ),
        "error.json": _titled(
            "--json of a command that fails",
            "One object on one line, by every command that fails before it has printed what failed.",
            refusal,
        ),
        "doctor.json": _titled(
            "ultraflash doctor --json",
            "One object on one line.",
            _closed(
                {
                    "ok": {"description": "Whether nothing failed.", "type": "boolean"},
                    "findings": {"type": "array", "items": _object(Finding)},
                }
            ),
        ),
        "bench.json": _titled(
            "ultraflash bench --json",
            "One object on one line; `--estimate` has its own form.",
            _closed(
                {
                    "schema": {"const": 2},
                    "cases": {
                        "type": "array",
                        "items": _object(
                            BenchReport,
                            more={
                                "schema": {"const": 2},
                                "fps": {"type": "number"},
                                "flops_per_second": {"type": "number"},
                                "of_product": {"description": "Share of a large matmul's rate.", "type": "number"},
                            },
                        ),
                    },
                    "kernels": {"type": "array", "items": _object(KernelTime)},
                }
            ),
        ),
        "clean.json": _titled(
            "ultraflash clean --json",
            "One object a line and folder.",
            _object(Leftover, more={"removed": {"type": "boolean"}}),
        ),
    }


def _probe(memory: Schema, forecast: Schema) -> Schema:
    text, number = {"type": "string"}, {"type": "integer"}
    measured = {
        "crop": {"type": ["object", "null"]},
        "head_switching_lines": number,
        "chroma_shift": {"type": ["array", "null"], "items": {"type": "number"}},
        "grain": {"type": ["object", "null"]},
    }
    found = _closed(
        {
            "scan": text,
            "first_field": {"type": ["string", "null"]},
            "soft_telecine": {"type": "boolean"},
            "frames": text,
        }
    )
    found["properties"] |= measured
    found["description"] = "What was measured on the frames; borders, colours and grain with --measure."
    plan = _object(events.Planned)
    return _closed(
        {
            "file": text,
            "container": text,
            "codec": text,
            "width": number,
            "height": number,
            "rotation_deg": number,
            "sample_aspect_ratio": text,
            "pix_fmt": text,
            "bit_depth": number,
            "interlaced": {"type": "boolean"},
            "found": found,
            "average_rate": {"description": "Null for a photo, as is its duration.", "type": ["string", "null"]},
            "time_base": text,
            "duration_s": {"type": ["number", "null"]},
            "frames_estimate": {"type": ["integer", "null"]},
            "color": _object(ColorInfo),
            "streams": {"type": "array", "items": text},
            "plan": plan | {"description": "What `upscale` would do."},
            "memory": memory,
            "forecast": {"anyOf": [forecast, {"type": "null"}]},
            "warnings": {"type": "array", "items": text},
        }
    )


def _titled(title: str, description: str, schema: Schema) -> Schema:
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "description": description}
    return head | schema


def _one_of(title: str, description: str, /, **kinds: Schema) -> Schema:
    choices = [{"$ref": f"#/$defs/{name}"} for name in kinds]
    return _titled(title, description, {"anyOf": choices, "$defs": kinds})


def _closed(properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _object(
    kind: type, *, more: Mapping[str, Schema] | None = None, optional: Mapping[str, Schema] | None = None
) -> Schema:
    """Return the schema of a dataclass as `asdict` converts it, with the docstrings of
    its fields."""
    hints, words = get_type_hints(kind, localns=_KNOWN), _words(kind)
    found = dict(more or {})
    for each in fields(cast(Any, kind)):
        told: Schema = {"description": words[each.name]} if each.name in words else {}
        found[each.name] = told | _type(hints[each.name])
    schema = _closed(found)
    schema["properties"] |= dict(optional or {})
    return schema


def _type(hint: Any) -> Schema:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        kinds = [_type(each) for each in inner]
        if all(kind.keys() == {"type"} for kind in kinds):
            return {"type": [kind["type"] for kind in kinds]}
        return {"anyOf": kinds}
    if origin is tuple and inner[-1] is not Ellipsis:
        return {"type": "array", "prefixItems": [_type(each) for each in inner], "items": False}
    if origin in (tuple, list):
        return {"type": "array", "items": _type(inner[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _type(inner[1])}
    if is_dataclass(hint):
        return _object(cast(type, hint))
    raise TypeError(f"{hint} has no schema")


def _words(kind: type) -> dict[str, str]:
    """Return the docstrings of the fields of a dataclass and its bases, each as one
    line."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        name = None
        for line in body.body:
            value = line.value if isinstance(line, ast.Expr) else None
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                name = line.target.id
                continue
            if name and isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[name] = " ".join(value.value.split())
            name = None
    return found


def _subclasses(kind: type) -> list[type[events.Event]]:
    return [each for child in kind.__subclasses__() for each in (child, *_subclasses(child))]


def written(schema: Schema) -> str:
    """Return a schema in the form of its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, schema in schemas().items():
        (FOLDER / name).write_text(written(schema), encoding="utf-8")
