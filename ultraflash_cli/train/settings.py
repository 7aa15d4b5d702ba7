"""Settings changed by name: ``--set key=value`` and profiles in TOML files."""

import tomllib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ultraflash_cli.engine.profiles import PROFILES, TRAINED, Profile
from ultraflash_cli.errors import ConfigError, UsageError

__all__ = ["changed", "find_profile", "parse_settings"]

SettingsT = TypeVar("SettingsT")


def parse_settings(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Parse the values of ``key=value`` pairs as TOML; anything that is not TOML is a
    string, and ``none`` is None."""
    return {name: _value(text) for name, text in pairs}


def changed(settings: SettingsT, changes: Mapping[str, Any]) -> SettingsT:
    """Return frozen settings with fields changed by their dotted names, such as
    ``loop.rate`` or ``profile.sr_dit.num_layers``.

    Raises UsageError for an unknown name or a value of the wrong type, ConfigError if
    the settings reject the value.
    """
    for name, value in changes.items():
        settings = _changed(settings, name, name.split("."), value)
    return settings


def find_profile(name: str) -> Profile:
    """Return a model's profile by name or from a TOML file, in which ``base`` names a
    model and everything else overrides its fields, in tables. Raises UsageError for an
    unknown name or an unusable file.
    """
    known = PROFILES | TRAINED
    if name in known:
        return known[name]
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"unknown profile {name!r}; choose from {', '.join(known)}, or give a TOML file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not readable as TOML ({error})") from error
    base = content.pop("base", None)
    if base not in known:
        raise UsageError(f"{path}: base must be one of {', '.join(known)}, got {base!r}")
    profile = replace(known[base], name=content.pop("name", path.stem))
    try:
        return changed(profile, _flat(content))
    except (UsageError, ConfigError) as error:
        raise UsageError(f"{path}: {error}") from error


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _changed(settings: Any, whole: str, path: list[str], value: Any) -> Any:
    first, *rest = path
    if not is_dataclass(settings) or isinstance(settings, type):
        raise UsageError(f"setting {whole}: {first} is inside {settings!r}, which has no fields")
    names = [each.name for each in fields(settings)]
    if first not in names:
        raise UsageError(f"setting {whole}: no field {first!r}; choose from {', '.join(names)}")
    if rest:
        value = _changed(getattr(settings, first), whole, rest, value)
    else:
        hint = get_type_hints(type(settings))[first]
        try:
            value = _fitted(value, hint)
        except (TypeError, ValueError) as error:
            told = getattr(hint, "__name__", str(hint))
            raise UsageError(f"setting {whole}: expected {told}, got {value!r}") from error
    return replace(settings, **{first: value})


def _fitted(value: Any, hint: Any) -> Any:
    """Convert a value to a type; raises TypeError or ValueError if that is
    impossible."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for one in arguments:
            try:
                return _fitted(value, one)
            except (TypeError, ValueError):
                continue
        raise TypeError
    if origin is Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        items = list(cast("list[Any]", value))
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_fitted(item, arguments[0]) for item in items)
        return tuple(_fitted(item, one) for item, one in zip(items, arguments, strict=True))

    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        table, kinds = cast("dict[str, Any]", value), get_type_hints(hint)
        if not table.keys() <= {each.name for each in fields(hint)}:
            raise ValueError
        return hint(**{name: _fitted(item, kinds[name]) for name, item in table.items()})
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is None or hint is type(None):
        if value is not None:
            raise TypeError
        return None
    if not isinstance(hint, type):
        raise TypeError
    if (
        is_dataclass(hint)
        or not isinstance(value, hint)
        or (hint is int and value in (True, False) and isinstance(value, bool))
    ):
        raise TypeError

    return value
