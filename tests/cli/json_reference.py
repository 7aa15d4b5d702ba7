"""docs/reference/json.md: the fields of results and events as tables, made from docs/schemas.

`python -m tests.cli.reference` writes it together with docs/cli.md.
"""

from pathlib import Path
from typing import Any

from tests.cli.schemas import schemas

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"

_INTRODUCTION = """\
# JSON for scripts

This page is generated from the schemas it links to, and these from the program; tests
compare them and validate real runs.

`--json` prints one object per file on stdout, each on a separate line. `--progress json`
prints one event per line on stderr, and nothing else is printed there. With `-o -`
stdout carries the video, and `--json` goes to stderr.

A failure is an object, too, with `error` and `exit_code`: that of a file names it as
`input`, and every command with `--json`, even a mistyped one, prints one
([error.json](../schemas/error.json)) where nothing else says why it failed.

```
ultraflash upscale holiday.mp4 --res 2x --json | python3 -m json.tool
ultraflash upscale films/ -o large/ --recursive --keep-going --progress json 2> events.jsonl
```

New fields may be added at any time; a script should ignore those it does not know. A
changed meaning, or a field that is removed, raises the number in `schema`.

Other schemas: [compare.json](../schemas/compare.json),
[explain.json](../schemas/explain.json), [probe.json](../schemas/probe.json),
[doctor.json](../schemas/doctor.json), [bench.json](../schemas/bench.json),
[clean.json](../schemas/clean.json) and [cluster.json](../schemas/cluster.json) (`plan`,
`worker`, `--executor`). Exit codes are listed in
[the command line](../cli.md).
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [_INTRODUCTION]
    made = schemas()
    for title, name in (
        ("--progress json", "events.json"),
        ("upscale --json", "upscale.json"),
        ("generate --json", "generate.json"),
    ):
        schema = made[name]
        parts.append(f"## `{title}`\n\n{schema.get('description', '')} Schema: [{name}](../schemas/{name})\n")
        for number, shape in enumerate(schema["anyOf"] if "anyOf" in schema else schema["oneOf"]):
            inner = _resolved(shape, schema)
            parts.append(f"### {_title(shape, inner, number)}\n\n{_table(inner, schema)}")
    return "\n".join(parts)


def _resolved(shape: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in shape:
        return shape
    return schema["$defs"][shape["$ref"].rsplit("/", 1)[-1]]


def _title(shape: dict[str, Any], inner: dict[str, Any], number: int) -> str:
    event = inner["properties"].get("event", {}).get("const")
    name = shape["$ref"].rsplit("/", 1)[-1] if "$ref" in shape else inner.get("title", str(number))
    if event == "plan":
        return f"`plan` ({name})"
    return f"`{event or name}`"


def _table(shape: dict[str, Any], schema: dict[str, Any]) -> str:
    rows = "".join(
        f"| `{name}` | {_words(field, schema)} | {_about(field)} |\n" for name, field in shape["properties"].items()
    )
    return f"| field | type | meaning |\n|---|---|---|\n{rows}"


def _about(field: dict[str, Any]) -> str:
    return field.get("description", "").replace("None", "null").replace("|", "\\|")


def _words(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    field = _resolved(field, schema) | {key: value for key, value in field.items() if key != "$ref"}
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_words(each, schema) for each in field[key]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kinds = field.get("type", "any")
    if kinds == "array":
        return f"list of {_words(field.get('items', {}), schema)}"
    return " or ".join(kinds) if isinstance(kinds, list) else kinds
