"""One part of the measurements on a GPU: `run_gpu.sh` calls it part by part, each under
ten minutes.

Needs torch and numpy, neither PyAV nor typer nor any weights (the parts called wall do, and say so); from the root of
the repository:

    PYTHONPATH=.:kernels python -m benchmarks.part upscale_1k --out upscale_1k.json
    PYTHONPATH=.:kernels python -m benchmarks.part --list
    PYTHONPATH=.:kernels python -m benchmarks.part --table FOLDER    # the targets, from the results in a folder
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultraflash_cli.bench.cases import BenchCase
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.host import peak_rss_bytes, usable_cores

if TYPE_CHECKING:
    import torch

__all__ = ["PARTS", "TARGETS", "Part", "Setting", "Target", "first_group", "main", "table"]

OPERATIONS = sorted(
    path.parent.name for path in Path(__file__).parents[1].glob("kernels/ultraflash_kernels/*/bench.py")
)
ENGINE_TESTS = tuple(f"tests/engine/test_{name}.py" for name in ("graphs", "gpu_streams", "two_devices"))
MANAGED = "steps,kv"
"""Cache rules that do not depend on picture content: with random weights, decisions of
the gate would be meaningless."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Device and size of a measurement."""

    device: "torch.device"
    tiny: bool
    """Whether to use the trial model, which tests the script; its numbers are
    meaningless."""

    def case(self, **changes: Any) -> BenchCase:
        """Return a case at the size of the model."""
        model, (width_px, height_px) = ("tiny-random", (48, 32)) if self.tiny else ("ultraflash", (832, 480))
        usual = BenchCase(
            model=model,
            width_px=width_px,
            height_px=height_px,
            frames=24 if self.tiny else 240,
            device=str(self.device),
            threads=usable_cores(),
            untrained=True,
        )
        return replace(usual, **changes)


@dataclass(frozen=True)
class Part:
    """A separate measurement."""

    what: str
    """One-line description."""
    run: Callable[[Setting], dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """A row of the table of the project's targets."""

    name: str
    published: str
    target: str
    part: str
    """Part whose result decides whether the target is met."""
    stretch: str
    stretch_part: str


TARGETS = (
    Target("generate 1K, 81 frames", "30 (B200)", "32", "generate_1k", "45", "generate_1k_stretch"),
    Target("generate 1K, 12-frame window", "30 (B200)", "32", "generate_1k_long", "45", "generate_1k_long_stretch"),
    Target("generate 2K, 81 frames", "18 (B200)", "23", "generate_2k", "32", "generate_2k_stretch"),
    Target("generate 2K, 12-frame window", "18 (B200)", "23", "generate_2k_long", "32", "generate_2k_long_stretch"),
    Target("upscale to 1K (model)", "none", "95", "upscale_1k", "120", "upscale_1k_stretch"),
    Target("upscale to 2K (model)", "none", "44", "upscale_2k", "55", "upscale_2k_stretch"),
    Target(
        "block-sparse attention, of a product",
        "none",
        "45 %",
        "kernel_block_sparse_attention",
        "55 %",
        "kernel_block_sparse_attention",
    ),
)


def _case(**changes: Any) -> Callable[[Setting], dict[str, Any]]:
    def run(setting: Setting) -> dict[str, Any]:
        from ultraflash_cli.bench.models import prepare
        from ultraflash_cli.bench.timing import measure

        case = setting.case(**changes)
        if setting.tiny and case.kind == "generate" and not case.long:
            case = replace(case, seconds=0.5)
        report = measure(case, prepare)
        return replace(report, peak_rss_bytes=peak_rss_bytes()).as_json()

    return run


def _on_two_gpus(scale: int) -> Callable[[Setting], dict[str, Any]]:
    def run(setting: Setting) -> dict[str, Any]:
        import torch

        count = torch.cuda.device_count()
        if count < 2:
            return {"skipped": f"needs two GPUs, found {count}"}
        return _case(kind="generate", scale=scale, device="cuda:0,cuda:1")(setting)

    return run


def _kernel(name: str) -> Callable[[Setting], dict[str, Any]]:
    def run(setting: Setting) -> dict[str, Any]:
        from ultraflash_cli.bench.kernels import measure_operation
        from ultraflash_cli.bench.limits import measure_limits

        limits = measure_limits(setting.device, "bf16" if setting.device.type == "cuda" else "fp32")
        rows = measure_operation(name, setting.device, limits)
        return {"limits": asdict(limits), "kernels": [asdict(row) for row in rows]}

    return run


def _memory(res: str, budget_gb: float | None = None) -> Callable[[Setting], dict[str, Any]]:
    def run(setting: Setting) -> dict[str, Any]:
        from benchmarks import full_size

        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "memory.json"
            profile = "tiny-random" if setting.tiny else "ultraflash"
            asked = ["--profile", profile, "--res", res, "--device", str(setting.device), "--out", str(out)]
            asked += ["--groups", "2" if setting.tiny else "3"]
            asked += ["--budget", str(0.5 if setting.tiny else budget_gb)] if budget_gb else []
            full_size.main(asked)
            return json.loads(out.read_text())

    return run


def _first_frame(setting: Setting) -> dict[str, Any]:
    """Start a process that upscales one group: with an empty folder of compiled
    kernels, then with the kernels that the first run compiled."""
    program = (
        "import time; begun_s = time.time()\n"
        "import json\n"
        "from benchmarks.part import first_group\n"
        "print(json.dumps(first_group({device!r}, {tiny}, begun_s)))"
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for state in ("cold", "kernels_kept"):
            text = program.format(device=str(setting.device), tiny=setting.tiny)
            environment = {**os.environ, "TRITON_CACHE_DIR": folder}
            begun_s = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", text], env=environment, stdout=subprocess.PIPE, check=True)
            found[state] = {
                "process_seconds": time.perf_counter() - begun_s,
                **json.loads(done.stdout.decode().splitlines()[-1]),
            }
    return found


def first_group(device: str, tiny: bool, begun_s: float) -> dict[str, float]:
    """Build the upscaler to 1K and return its first pictures; ``begun_s`` is the
    clock's time at the start of Python."""
    import torch

    from ultraflash_cli.bench.models import prepare

    case = Setting(device=torch.device(device), tiny=tiny).case()
    imported_s = time.time() - begun_s
    ready = prepare(case)
    loaded_s = time.time() - begun_s
    stream = ready.start()
    count = stream.next_group()
    stream.finish()
    first_s = time.time() - begun_s
    return {"imports": imported_s, "loaded": loaded_s, "first_frame_seconds": first_s, "frames": count}


def _wall(kind: str, scale: int) -> Callable[[Setting], dict[str, Any]]:
    def run(setting: Setting) -> dict[str, Any]:
        missing = [name for name in ("av", "typer", "rich") if importlib.util.find_spec(name) is None]
        if missing:
            return {"skipped": f"not installed here: {', '.join(missing)}"}
        from ultraflash_cli.commands.wall import measure_wall

        changes: dict[str, Any] = {"kind": kind, "scale": scale}
        if setting.tiny and kind == "generate":
            changes["seconds"] = 0.5
        return asdict(measure_wall(setting.case(**changes)))

    return run


def _tests(setting: Setting) -> dict[str, Any]:
    """Run the kernels' tests, which compile them on a GPU, and those of graphs and
    streams."""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        return {"skipped": "pytest and hypothesis are not installed here"}
    chosen = ["kernels/ultraflash_kernels/test_block_lists.py"] if setting.tiny else ["kernels", *ENGINE_TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ}  # deterministic algorithms raise without it
    done = subprocess.run(
        [*command, *chosen], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False
    )
    print(done.stdout.decode()[-4000:], flush=True)
    if done.returncode:
        raise ConfigError(f"the kernels fail their tests (pytest gives {done.returncode})")
    return {"tests": done.stdout.decode().splitlines()[-1]}


_EIGHT: dict[str, Any] = {"precision": "fp8", "cache_management": MANAGED}
_PLAIN: dict[str, Any] = {"graphs": False, "lanes": False}
_SIZES = {"1k": 2, "2k": 3}

PARTS: dict[str, Part] = {
    "tests": Part("the tests of kernels, graphs and streams, on this device", _tests),
    **{f"kernel_{name}": Part(f"the operation {name} in every implementation", _kernel(name)) for name in OPERATIONS},
    **{f"upscale_{res}": Part(f"upscale to {res}, bf16", _case(scale=scale)) for res, scale in _SIZES.items()},
    **{
        f"upscale_{res}_plain": Part(f"upscale to {res} without CUDA graphs", _case(scale=scale, **_PLAIN))
        for res, scale in _SIZES.items()
    },
    **{
        f"upscale_{res}_stretch": Part(f"upscale to {res}, fp8 and cache management", _case(scale=scale, **_EIGHT))
        for res, scale in _SIZES.items()
    },
    "generate_480p": Part("generate 81 frames (5 s) at 480p", _case(kind="generate", scale=1)),
    **{
        f"generate_{res}": Part(f"generate 81 frames (5 s) at {res}, bf16", _case(kind="generate", scale=scale))
        for res, scale in _SIZES.items()
    },
    **{
        f"generate_{res}_plain": Part(
            f"generate 81 frames at {res} without CUDA graphs and side streams",
            _case(kind="generate", scale=scale, **_PLAIN),
        )
        for res, scale in _SIZES.items()
    },
    **{
        f"generate_{res}_two_gpus": Part(f"generate 81 frames at {res} on two GPUs", _on_two_gpus(scale))
        for res, scale in _SIZES.items()
    },
    **{
        f"generate_{res}_stretch": Part(
            f"generate 81 frames at {res}, fp8 and cache management", _case(kind="generate", scale=scale, **_EIGHT)
        )
        for res, scale in _SIZES.items()
    },
    **{
        f"generate_{res}_long": Part(
            f"generate at {res} in a 12-frame window, steady", _case(kind="generate", scale=scale, long=True, frames=96)
        )
        for res, scale in _SIZES.items()
    },
    **{
        f"generate_{res}_long_stretch": Part(
            f"generate at {res} in a 12-frame window, fp8 and cache management",
            _case(kind="generate", scale=scale, long=True, frames=96, **_EIGHT),
        )
        for res, scale in _SIZES.items()
    },
    "first_frame": Part("first pictures of upscale to 1K from a cold start", _first_frame),
    **{f"memory_{res}": Part(f"memory at {res} beside its plan", _memory(res)) for res in _SIZES},
    **{f"memory_{res}_24gb": Part(f"memory at {res} held to 24 GB", _memory(res, 24.0)) for res in _SIZES},
    **{
        f"wall_{kind}_{res}": Part(f"{kind} to {res} from file to file (needs PyAV and typer)", _wall(kind, scale))
        for kind in ("upscale", "generate")
        for res, scale in _SIZES.items()
    },
}
"""All measurements, in order."""


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of targets; ``results`` are the contents of the parts' files by part."""
    lines = [
        "| | published | target, bf16 | measured | by part | stretch, fp8 + cache management | measured | by part |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in TARGETS:
        fp8 = row.part == row.stretch_part
        cells = (
            row.name,
            row.published,
            row.target,
            _measured(results.get(row.part), dtype="bfloat16"),
            f"`{row.part}`",
            row.stretch,
            _measured(results.get(row.stretch_part), dtype="float8_e4m3fn" if fp8 else ""),
            f"`{row.stretch_part}`",
        )
        lines.append(f"| {' | '.join(cells)} |")
    cold = results.get("first_frame", {}).get("result", {}).get("cold")
    first = f"{cold['first_frame_seconds']:.1f} s" if cold else "unmeasured"
    return [*lines, f"| first frame of upscale, cold | none | under 10 s | {first} | `first_frame` | | | |"]


def _measured(content: Mapping[str, Any] | None, *, dtype: str) -> str:
    result = (content or {}).get("result", {})
    if "fps" in result:
        return f"{result['fps']:.1f}"
    shares = [
        row["of_product"]
        for row in result.get("kernels", ())
        if row["impl"].startswith("triton") and row["flops_per_second"] and row["dtype"] == dtype
    ]
    return f"{100 * min(shares):.0f} %" if shares else "unmeasured"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a part and write its JSON, or list the parts, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=sorted(PARTS), metavar="PART", help="what to measure, see --list")
    parser.add_argument("--list", action="store_true", help="name every part and what it measures")
    parser.add_argument("--name", action="store_true", help="print the device's name as a word for file names")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the targets with the results in FOLDER")
    parser.add_argument("--device", default="auto", help="where to run: a GPU if there is one")
    parser.add_argument("--tiny", action="store_true", help="the trial model, to prove the script")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    asked = parser.parse_args(arguments)
    if asked.list:
        for name, part in PARTS.items():
            print(f"{name:<32} {part.what}")
    elif asked.table is not None:
        found = {path.stem: json.loads(path.read_text()) for path in sorted(asked.table.glob("*.json"))}
        print("\n".join(table(found)))
    elif asked.name:
        name = _named(_device(asked.device))
        print("-".join("".join(c if c.isalnum() else " " for c in name.lower()).split()))
    elif asked.part is None or asked.out is None:
        parser.error("a part and --out are needed, or --list, or --table")
    else:
        _write(asked.part, Setting(device=_device(asked.device), tiny=asked.tiny), asked.out)


def _write(name: str, setting: Setting, out: Path) -> None:
    """Measure a part and write its result, whole or not at all."""
    from ultraflash_cli.bench.timing import device_name, versions

    content = {
        "schema": 1,
        "part": name,
        "what": PARTS[name].what,
        "tiny": setting.tiny,
        "date": date.today().isoformat(),
        "device": str(setting.device),
        "device_name": device_name(setting.device),
        "versions": versions(),
        "result": PARTS[name].run(setting),
    }
    scratch = out.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    scratch.replace(out)


def _device(name: str) -> "torch.device":
    import torch

    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _named(device: "torch.device") -> str:
    from ultraflash_cli.bench.timing import device_name

    return device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
