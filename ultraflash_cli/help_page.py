"""The layout of `--help`: options under headings, examples, no Python types."""

import os
from pathlib import Path
from shlex import quote
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ultraflash_cli.errors import UsageError

__all__ = ["EXAMPLES", "HeadedCommand", "HeadedGroup"]

_HEADINGS = {
    "Output": "output destination res downscale save_lr renumber overwrite skip_existing resume temp no_tag html serve "
    "dry_run json",
    "Picture": "strength detail guard grain match_colors cuts deinterlace crop chroma_shift side_by_side",
    "Selection": "prompts init_clip seconds count start end preview recursive images strict keep_going",
    "Encoding": "codec crf pix_fmt enc_options fps audio no_audio subs",
    "Model": "model prompt encoder decoder seed cache_management",
    "Performance": "device precision max_memory threads cuda_graphs",
    "Cluster": "executor address workers work_dir unit_frames",
}
"""The names of parameters by heading, in the order of the page."""
_OTHERS = "Options"
_WHOLE = 1000
_FEW = 12
"""Maximum number of options of a command without headings."""
_EXIT_CODES = (
    "0 done, 1 unexpected error, 2 usage, 3 input, 4 device, 5 memory, 6 failed output check, 7 disk or output, "
    "8 weights, 9 some files of a batch failed, 129, 130 and 143 interrupted (the same command resumes)."
)
_GLOBAL = "-q, -v, --log-file FILE, --progress MODE and --no-color also work here; see `ultraflash --help`."

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "upscale": (
        ("ultraflash upscale holiday.mp4", "holiday_1k.mp4, 960 pixels on the short side"),
        ("ultraflash upscale holiday.mp4 --preview 3s@25% --side-by-side", "try a short excerpt first"),
        ("ultraflash upscale films/ -o large/ --recursive -n --keep-going", "a whole archive; rerun it for new files"),
        ('ultraflash upscale "shots/%05d.png" -o "large/%05d.png" --res 2x', "numbered images"),
    ),
    "generate": (
        ('ultraflash generate "a red balloon over snowy mountains" -o balloon.mp4', "one clip"),
        ("ultraflash generate --prompts scenes.txt --count 4 -o clips/ --res 480p", "four clips per line"),
    ),
    "compare": (
        ("ultraflash compare original.mp4 result.mp4", "scores against the original at full size"),
        ("ultraflash compare holiday.mp4 holiday_1k.mp4 --html look.html", "scores against the source, and a page"),
    ),
    "plan": (
        ("ultraflash plan films/ -o large/ --work-dir /shared/job", "divide the films into units"),
        ("ultraflash worker /shared/job", "on every machine, as often as there are GPUs"),
        ("ultraflash join /shared/job", "put the outputs in place"),
    ),
    "worker": (('ultraflash worker /shared/job --index "$SLURM_ARRAY_TASK_ID" --of 16', "as one of 16 array tasks"),),
    "probe": (("ultraflash probe holiday.mp4 --res 2k", "the plan for --res 2k"),),
    "bench": (("ultraflash bench upscale --res 1k --json", "numbers for a script"),),
    "clean": (("ultraflash clean --recursive films/", "list; add -y to remove"),),
    "onnx": (("ultraflash export onnx -o lite_x3.onnx --scale 3", "for frames of any even size"),),
    "pull": (("ultraflash weights pull ultraflash", "the published model"),),
}
"""Examples shown below the options, by command: the line to type, and a comment."""


class HeadedCommand(TyperCommand):
    """A command with its options under headings."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return _without_braces(super().collect_usage_pieces(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options and examples."""
        _write_options(self, ctx, formatter)
        examples = EXAMPLES.get(self.name or "", ())
        if examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n      {made}\n" for line, made in examples))


class HeadedGroup(TyperGroup):
    """A group of commands with the same layout."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was named first. Raises UsageError for the name of a
        file instead, with the command that was probably meant."""
        if ctx.parent is None and self.get_command(ctx, args[0]) is None and _names_media(args[0]):
            raise UsageError(f"No such command '{args[0]}'; did you mean `ultraflash upscale {quote(args[0])}`?")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options and commands."""
        _write_options(self, ctx, formatter)
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            # Wrapped on a narrow terminal, never truncated.
            formatter.write_dl(
                [
                    (name, each.get_short_help_str(_WHOLE))
                    for name, each in commands
                    if each is not None and not each.hidden
                ]
            )
        if ctx.parent is None:
            with formatter.section("Exit codes"):
                formatter.write_text(_EXIT_CODES)


def _names_media(name: str) -> bool:
    from ultraflash_cli.jobs.planning.clips import VIDEO_SUFFIXES
    from ultraflash_cli.video.sequence import PICTURE_SUFFIXES

    return Path(name).suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES or os.path.isfile(name)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    arguments: list[tuple[str, str]] = []
    options: list[tuple[str, tuple[str, str]]] = []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        name, text = record
        if parameter.param_type_name == "argument":
            arguments.append((name.partition(" <")[0], text))
        else:
            options.append((parameter.name, (name.replace("<", "").replace(">", ""), text)))

    if arguments:
        with formatter.section("Arguments"):
            formatter.write_dl(arguments)
    many = len(options) > _FEW
    shown = [each for each in options if each[0] != "help"] if many else options
    for heading, rows in _under_headings(shown):
        with formatter.section(heading):
            formatter.write_dl(rows)

    if many:
        with formatter.section("Global"):
            formatter.write_dl([row for name, row in options if name == "help"])
            formatter.write_text(_GLOBAL)


def _under_headings(options: list[tuple[str, tuple[str, str]]]) -> list[tuple[str, list[tuple[str, str]]]]:
    if len(options) <= _FEW:
        return [(_OTHERS, [row for _, row in options])] if options else []
    place = {
        name: (number, rank)
        for number, names in enumerate(_HEADINGS.values())
        for rank, name in enumerate(names.split())
    }
    headed: dict[int, list[tuple[int, tuple[str, str]]]] = {}
    for name, row in options:
        number, rank = place.get(name, (len(_HEADINGS), 0))
        headed.setdefault(number, []).append((rank, row))
    titles = [*_HEADINGS, _OTHERS]
    return [
        (titles[number], [row for _, row in sorted(headed[number], key=lambda each: each[0])])
        for number in sorted(headed)
    ]


def _without_braces(pieces: list[str]) -> list[str]:
    return [piece.replace("{", "").replace("}", "") for piece in pieces]
