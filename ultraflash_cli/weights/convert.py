"""Convert published checkpoints to plain safetensors: unwrap them, strip prefixes, and
check every name and shape."""

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ultraflash_cli.errors import WeightsError
from ultraflash_cli.weights.detect import Shape, detect
from ultraflash_cli.weights.load import require_finite

__all__ = [
    "RULES",
    "Wrapper",
    "WrapperRules",
    "convert",
    "merge_lora",
    "normalise",
    "plain_tensors",
    "read_checkpoint",
    "recognise",
]

_SHARDING = "_fsdp_wrapped_module."
_LEADING = ("_orig_mod.", "_checkpoint_wrapped_module.", "module.")


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """One possible wrapping of a state dict."""

    keys: tuple[str, ...] = ()
    """Nested dicts to descend."""
    prefix: str = ""
    """Prefix of every name; a name without it is unchanged."""


@dataclass(frozen=True, kw_only=True)
class WrapperRules:
    """Rules that map a published file's names and shapes to the network's."""

    wrappers: tuple[Wrapper, ...] = (Wrapper(),)
    """Wrappers to look for, in order of preference."""
    strip: tuple[str, ...] = ()
    """Strings removed from names wherever they occur."""
    strip_leading: tuple[str, ...] = ()
    """Strings removed repeatedly from the start of names."""
    replace: tuple[tuple[str, str], ...] = ()
    """Replacements of name segments."""
    last_rows: tuple[str, ...] = ()
    """Tensors that may have a multiple of the expected rows; only the last rows are
    used."""


def _packed(*keys: str, prefix: str = "") -> Wrapper:
    return Wrapper(keys=keys, prefix=prefix)


_UPSAMPLER = WrapperRules(wrappers=(_packed(), _packed("model")), strip=(_SHARDING,), strip_leading=_LEADING)
_CODER = WrapperRules(last_rows=tuple(f"decoder.{index}.conv.weight" for index in (7, 13, 19)))

RULES: dict[str, WrapperRules] = {
    "generator": WrapperRules(
        wrappers=(
            _packed("generator_ema", prefix="model."),
            _packed("generator", prefix="model."),
            _packed("model", prefix="model."),
            _packed(),
        ),
        strip=(_SHARDING,),
        strip_leading=_LEADING,
    ),
    "lora": WrapperRules(
        wrappers=(_packed("generator_lora", prefix="base_model.model."), _packed(prefix="base_model.model.")),
        strip=(_SHARDING,),
        replace=((".lora_A.default.", ".lora_A."), (".lora_B.default.", ".lora_B.")),
    ),
    "sr_dit": WrapperRules(
        wrappers=(_packed(), _packed("model"), _packed("generator")),
        strip=(_SHARDING,),
        strip_leading=(*_LEADING, "model."),
    ),
    "upsampler_x2": _UPSAMPLER,
    "upsampler_x3": _UPSAMPLER,
    "upsampler_v3_x2": WrapperRules(wrappers=(_packed(), _packed("model"))),
    "tiny_decoder": _CODER,
    "tiny_decoder_lr": _CODER,
    "ultra_decoder": _CODER,
    "ultra_decoder_released": WrapperRules(
        wrappers=(_packed(), _packed("model")),
        strip=(_SHARDING,),
        strip_leading=_LEADING,
        replace=(("net.", "decoder."), (".block.", ".up.")),
    ),
    "text_encoder": WrapperRules(),
    "wan_vae": WrapperRules(),
}
"""Rules of each architecture that is published as a checkpoint."""


def read_checkpoint(path: Path, *, name: str | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint, nested as it was saved, with memory-mapped
    tensors. Supports safetensors and files of ``torch.save``, distinguished by content.
    Pickles may contain only tensors and plain values. Raises WeightsError for any other
    file, which the message calls ``name``.
    """
    name = name or path.name
    try:
        if zipfile.is_zipfile(path):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        elif _has_safetensors_header(path):
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle's protocol; the file is either read or rejected
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"a pickle that would run {wanted[1]}" if wanted else "not a pickle of tensors only"
        raise WeightsError(
            f"{name}: not a readable weight file; expected tensors in safetensors or saved by torch, and nothing else "
            f"({found}; none of its code was run)"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise WeightsError(
            f"{name}: not a readable weight file; expected tensors in safetensors or saved by torch, "
            f"and nothing else ({_first_line(error)})"
        ) from error

    if not isinstance(content, Mapping):
        raise WeightsError(f"{name}: contains {type(content).__name__}, expected tensors by name")
    return {str(key): value for key, value in cast("Mapping[Any, Any]", content).items()}


def normalise(
    content: Mapping[str, Any],
    expected: Mapping[str, Shape],
    rules: WrapperRules,
    *,
    prefer: str | None = None,
    name: str = "weights",
) -> dict[str, Tensor]:
    """Return exactly the ``expected`` tensors of a checkpoint under their plain names.
    The first wrapper found is used, with ``prefer`` before the others. Raises
    WeightsError unless it contains every expected name with the right shape and nothing
    else.
    """
    tensors = next(_unwrapped(content, rules, prefer), None)
    if tensors is None:
        raise WeightsError(f"{name}: no tensors found, only {_listed(content)}")
    fitted = {key: _fit(key, value, expected, rules) for key, value in tensors.items()}
    missing = sorted(expected.keys() - fitted.keys())
    unexpected = sorted(fitted.keys() - expected.keys())
    if missing or unexpected:
        raise WeightsError(
            f"{name}: {len(missing)} of {len(expected)} tensors are missing ({_listed(missing)}), "
            f"{len(unexpected)} are unexpected ({_listed(unexpected)}); this is a different or an incomplete file"
        )
    for key, shape in expected.items():
        if tuple(fitted[key].shape) != tuple(shape):
            raise WeightsError(
                f"{name}: {key} has shape {tuple(fitted[key].shape)}, expected {tuple(shape)}; this is a different file"
            )
    return fitted


def plain_tensors(path: Path) -> dict[str, Tensor]:
    """Return the unwrapped tensors of a checkpoint of a known architecture under their
    plain names. Raises WeightsError for any other checkpoint."""
    content = read_checkpoint(path)
    architecture = recognise(content)
    if architecture is None:
        raise WeightsError(f"{path.name}: weights of no known network; expected one of {_listed(RULES)}")
    return next(_unwrapped(content, RULES[architecture], None))


def recognise(content: Mapping[str, Any]) -> str | None:
    """Return the architecture of a checkpoint by its names and shapes, regardless of
    wrapping; None if unknown."""
    for architecture, rules in RULES.items():
        for tensors in _unwrapped(content, rules, None):
            if detect({key: tuple(value.shape) for key, value in tensors.items()}) == architecture:
                return architecture
    return None


def convert(
    source: Path,
    target: Path,
    architecture: str,
    expected: Mapping[str, Shape],
    *,
    prefer: str | None = None,
    name: str | None = None,
) -> None:
    """Write the ``expected`` tensors of a checkpoint to ``target`` as safetensors, with
    unchanged dtypes. The tensors stay memory-mapped, so that files may be larger than
    memory. Errors call the source ``name``. Raises WeightsError for a file with other
    tensors or values that are not finite, OSError if the target cannot be written.
    """
    name = name or source.name
    content = read_checkpoint(source, name=name)
    found = recognise(content)
    if found is not None and found != architecture:
        raise WeightsError(f"{name}: these are weights of {found}, expected {architecture}")
    tensors = normalise(content, expected, RULES[architecture], prefer=prefer, name=name)
    for key, tensor in tensors.items():
        require_finite(tensor, key, name)
    try:
        save_file(_apart(tensors), target, {"architecture": architecture})
    except SafetensorError as error:
        # The library reports a full disk as one of its own errors.
        raise OSError(_errno(str(error)), str(error)) from error


def merge_lora(base: Mapping[str, Tensor], lora: Mapping[str, Tensor], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Return ``base`` with ``scale`` * B A added to every weight that has a LoRA pair.

    The sum is computed in float32 and returned in the original dtype. ``scale`` is alpha / rank, 256 / 256 in the
    published file (reference/cascade.md 9.3). Raises WeightsError for an incomplete pair, or one whose weight is
    missing or differs in shape.
    """
    merged = dict(base)
    stems = {key.rsplit(".lora_", 1)[0] for key in lora}
    for stem in sorted(stems):
        weight, down, up = (
            base.get(f"{stem}.weight"),
            lora.get(f"{stem}.lora_A.weight"),
            lora.get(f"{stem}.lora_B.weight"),
        )
        if weight is None or down is None or up is None:
            raise WeightsError(f"LoRA: {stem} has no weight, lora_A or lora_B; pull its file again")
        if (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise WeightsError(
                f"LoRA: {stem} is {tuple(weight.shape)}, its update {tuple(up.shape)} x {tuple(down.shape)}; "
                "it belongs to a different network"
            )
        update = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
        merged[f"{stem}.weight"] = (weight.float() + scale * update).to(weight.dtype)
    return merged


def _unwrapped(content: Mapping[str, Any], rules: WrapperRules, prefer: str | None) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors inside each wrapper found, under plain names, starting with the
    preferred one. If none of the rules' wrappers is found, every nested dict of tensors
    is tried, as training tools use different ones.
    """
    known = sorted(rules.wrappers, key=lambda each: bool(prefer) and (prefer,) != each.keys)
    found = [tensors for wrapper in known if (tensors := _inside(content, wrapper, rules)) is not None]
    if not found:
        others = (Wrapper(keys=keys) for keys in _nested(content))
        found = [tensors for wrapper in others if (tensors := _inside(content, wrapper, rules)) is not None]
    yield from found


def _inside(content: Mapping[str, Any], wrapper: Wrapper, rules: WrapperRules) -> dict[str, Tensor] | None:
    """Return the tensors inside a wrapper under plain names; None if it is missing or
    contains anything else."""
    inner: Any = content
    for key in wrapper.keys:
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not inner:
        return None
    values = cast("Mapping[Any, Any]", inner)
    if not all(isinstance(value, Tensor) for value in values.values()):
        return None
    plain = {_plain_name(str(key), wrapper, rules): cast("Tensor", value) for key, value in values.items()}
    return {key: value.detach() for key, value in plain.items()} if len(plain) == len(values) else None


def _nested(content: Mapping[str, Any], *, depth: int = 2) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all dicts inside ``content``, ``depth`` levels deep."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield (key,)
            if depth > 1:
                inner = {str(name): each for name, each in cast("Mapping[Any, Any]", value).items()}
                yield from ((key, *rest) for rest in _nested(inner, depth=depth - 1))


def _plain_name(name: str, wrapper: Wrapper, rules: WrapperRules) -> str:
    for text in rules.strip:
        name = name.replace(text, "")
    name = _without_leading(name, rules.strip_leading).removeprefix(wrapper.prefix)
    name = _without_leading(name, rules.strip_leading)
    for old, new in rules.replace:
        name = name.replace(old, new)
    return name


def _without_leading(name: str, segments: tuple[str, ...]) -> str:
    while (shorter := next((name.removeprefix(s) for s in segments if name.startswith(s)), None)) is not None:
        name = shorter
    return name


def _fit(key: str, tensor: Tensor, expected: Mapping[str, Shape], rules: WrapperRules) -> Tensor:
    """Return the last rows of a tensor that may have too many; other tensors are
    unchanged."""
    wanted, got = expected.get(key), tuple(tensor.shape)
    if key not in rules.last_rows or wanted is None or got == wanted or got[1:] != wanted[1:]:
        return tensor
    return tensor if got[0] % wanted[0] else tensor[-wanted[0] :]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3]) or "none"


def _has_safetensors_header(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, with copies of those that share memory or are not
    contiguous."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        memory = tensor.untyped_storage()
        alone = memory.nbytes() == tensor.nbytes and memory.data_ptr() not in seen and tensor.is_contiguous()
        seen.add(memory.data_ptr())
        result[key] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
    return result


def _errno(message: str) -> int | None:
    """Return the system's error number in a message such as ``I/O error: No space left (os error 28)``."""
    found = re.search(r"os error (\d+)", message)
    return int(found[1]) if found else None
