"""docs/llms.txt: a description of each page of the site, for programs that read
documentation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["LLMS", "ROOT", "llms", "nav_pages", "read_config", "source_of"]

ROOT = Path(__file__).parents[2]
LLMS = ROOT / "docs" / "llms.txt"
FROM_ROOT = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
NEWLINE = "\n"
ABOUT = {
    "index.md": "what it does, how to install it, examples, quality and speed, limits",
    "guides/install.md": "pip, pipx, uv; which build of torch; extras; completion and man pages",
    "guides/first-clip.md": "the first upscale: preview, size, look, stopping and resuming",
    "guides/archive.md": "folders of many clips: skipping, failures, records, unfinished work",
    "old-tapes.md": "VHS, DVD, television: fields, telecine, borders, colour shift, grain",
    "guides/anime.md": "drawings: detail, banding, telecined DVDs, subtitles",
    "guides/phone.md": "rotation, variable frame rate, HDR, location tags",
    "guides/generate.md": "clips from text prompts, batches, continuing a clip",
    "guides/choosing-a-model.md": "lite against the published model, and the settings of lite",
    "compare.md": "previews, predictions, scores, an HTML page with a slider",
    "watch.md": "watching a job in a player or a browser while it runs",
    "guides/devices.md": "CPU, CUDA, ROCm, mps, xpu: what runs where, and how it is checked",
    "guides/onnx.md": "lite as an ONNX model whose state goes in and comes out",
    "guides/slow.md": "finding the bottleneck; threads, precision, codecs, memory",
    "guides/kept.md": "what of the input is in the output, and what the program leaves on disk",
    "reproduce.md": "how a file was made, and the command that makes it again",
    "guides/pipes.md": "ffmpeg, mpv and VapourSynth in pipes; a filter for VapourSynth scripts",
    "guides/docker.md": "images for CPU and NVIDIA GPUs, weights, isolation",
    "cluster.md": "one job on many machines",
    "python.md": "upscale, generate, open_stream; frames, state, errors",
    "troubleshooting.md": "error messages and warnings, each with its cause and cure",
    "cli.md": "every command, option and exit code",
    "reference/json.md": "fields of --json and --progress json, with JSON schemas",
    "weights.md": "the list of weights, downloads, licences, training data",
    "quality.md": "measured quality against resamplers and other tools",
    "performance.md": "measured speed and memory, and how to measure them",
    "changelog.md": "what each version can do",
    "contributing.md": "reporting bugs, running the tests, rules for changes",
    "security.md": "reporting vulnerabilities, what is trusted",
    "architecture.md": "the cascade, the contract of its stages, the packages",
    "reference/cascade.md": "what the published models compute",
    "training.md": "material, recipes, export",
}
"""Description of each page."""
_HEAD = """\
# ultraflash

> A command-line program that upscales videos, keeping audio, subtitles and timing, and generates them from text
> prompts. It runs on CPUs and NVIDIA GPUs; its model `lite` is built in. Python functions: upscale, generate,
> open_stream.

`ultraflash upscale in.mp4` writes in_1k.mp4. stdout carries data only (`--json`), messages go to stderr, and each kind
of failure has its exit code. The same command resumes an interrupted run. Nothing is overwritten without `-y`.
"""


def read_config() -> dict[str, Any]:
    """Return the site's configuration."""
    import yaml

    return yaml.safe_load((ROOT / "packaging" / "mkdocs.yml").read_text(encoding="utf-8"))


def nav_pages(nav: list[dict[str, Any]], section: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield section, title and page of every entry."""
    for entry in nav:
        for title, value in entry.items():
            if isinstance(value, list):
                yield from nav_pages(value, title)
            else:
                yield section, title, value


def source_of(page: str) -> Path:
    """Return the file of the repository that a page of the site is made from."""
    return ROOT / FROM_ROOT[page] if page in FROM_ROOT else ROOT / "docs" / page


def llms() -> str:
    """Return the content of llms.txt."""
    lines = [_HEAD]
    heading = ""
    for section, title, page in nav_pages(read_config()["nav"]):
        if (section or title) != heading:
            heading = section or title
            lines.append(f"{'' if lines == [_HEAD] else NEWLINE}## {heading}\n")
        path = source_of(page).relative_to(ROOT).as_posix()
        link = path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}"
        lines.append(f"- [{title}]({link}): {ABOUT[page]}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    LLMS.write_text(llms(), encoding="utf-8")
