"""Encoders with their options, opened for the settings of a clip."""

import re

import av
import av.logging
from av.error import FFmpegError

from ultraflash_cli.errors import UsageError
from ultraflash_cli.host import keep_scheduling
from ultraflash_cli.video.codecs import CODECS
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.nvenc import check_nvenc, nvenc_options

__all__ = ["check_encoder", "encoder_options", "open_encoder", "prepare_encoder"]

_CHOICES = {
    "libx264": {
        "preset": (
            "ultrafast",
            "superfast",
            "veryfast",
            "faster",
            "fast",
            "medium",
            "slow",
            "slower",
            "veryslow",
            "placebo",
        ),
        "tune": ("film", "animation", "grain", "stillimage", "psnr", "ssim", "fastdecode", "zerolatency"),
        "profile": ("baseline", "main", "high", "high10", "high422", "high444"),
    }
}
"""Valid values of options for which the library itself would print errors to stderr."""
_UNKNOWN_SETTING = ("Error parsing option", "Unknown option", "Invalid value for")

_LISTS = {"h264": "x264-params", "hevc": "x265-params", "av1": "svtav1-params"}
"""The option that passes settings to the encoder library, by codec."""


def check_encoder(spec: EncodeSpec, *, encodes_here: bool = True) -> None:
    """Open the encoder once and close it. An encoder of the GPU is only opened if this
    machine is the one that encodes. Raises ``UsageError`` if it rejects or ignores a
    setting, ``DeviceError`` if there is no such GPU.
    """
    if spec.hardware is not None:
        if not encodes_here:
            return
        check_nvenc(spec.hardware)

    known = _CHOICES.get(spec.encoder, {})
    for key, value in spec.options:
        for word in re.split(r"[,+]", value) if key in known else ():
            if word not in known[key]:
                raise UsageError(f"--enc-opt {key}={value}: {spec.encoder} accepts {', '.join(known[key])}")

    context = av.CodecContext.create(spec.encoder, "w")
    assert isinstance(context, av.VideoCodecContext), "a video encoder"
    context.options = encoder_options(spec)
    context.width, context.height = spec.coded_size_px
    context.time_base = spec.track_time_base
    context.framerate = spec.rate
    prepare_encoder(context, spec)
    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)

    # The same complaint as the last one, perhaps about another clip, counts too.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as said:
            open_encoder(context, spec)
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)

    for _, _, text in said:
        # Encoders only warn about unknown settings and continue without them.
        if any(words in text for words in _UNKNOWN_SETTING):
            raise UsageError(f"--enc-opt: {spec.encoder}: {text.strip().rstrip('.')}")


def prepare_encoder(context: av.VideoCodecContext, spec: EncodeSpec) -> None:
    """Set everything except options; call before ``open_encoder``."""
    context.pix_fmt = spec.fed_pix_fmt
    context.thread_count = spec.threads
    context.thread_type = "AUTO"  # PyAV's default would make x264 cut frames into slices
    context.sample_aspect_ratio = spec.coded_aspect
    context.colorspace = spec.color.matrix
    context.color_primaries = spec.color.primaries
    context.color_trc = spec.color.transfer
    context.color_range = spec.color.range


def open_encoder(context: av.VideoCodecContext, spec: EncodeSpec) -> None:
    """Open the encoder; raises ``UsageError`` if it rejects the size or an option."""
    try:
        with keep_scheduling():
            context.open()
    except (OSError, FFmpegError, ValueError) as error:
        reason = f" ({_last_words(error)})" if spec.hardware is not None else ""
        raise UsageError(
            f"the encoder {spec.encoder} rejects {spec.width_px}x{spec.height_px} {spec.pix_fmt} with "
            f"{dict(spec.options) or 'its default options'}{reason}; check --codec, --pix-fmt and --enc-opt"
        ) from error
    unknown = set(context.options) & {key for key, _ in spec.options}
    if unknown:
        raise UsageError(f"--enc-opt {', '.join(sorted(unknown))}: unknown option of {spec.encoder}")


def encoder_options(spec: EncodeSpec) -> dict[str, str]:
    """Return all options by FFmpeg's names: from the codec, the clip and the user."""
    if spec.hardware is not None:
        return nvenc_options(spec.hardware, quality=spec.crf, preset=spec.preset) | dict(spec.options)

    options = dict(CODECS[spec.codec].options)
    if spec.crf is not None:
        options["crf"] = str(spec.crf)
    if spec.preset:
        options["cpu-used" if spec.codec == "vp9" else "preset"] = spec.preset
    if spec.codec == "vp9" and spec.alpha:
        options["auto-alt-ref"] = "0"  # otherwise the two pictures of a packet belong to different frames
    if spec.codec == "prores":
        options["profile"] = "4" if "444" in spec.pix_fmt else "3"
    own = _LISTS.get(spec.codec)
    if own is not None:
        options[own] = ":".join((*_list_settings(spec), *(value for key, value in spec.options if key == own)))
    return options | {key: value for key, value in spec.options if key != own}


def _last_words(error: Exception) -> str:
    """Return what FFmpeg printed about an error, or else its description."""
    log = getattr(error, "log", None)
    return (log[2].strip().rstrip(".") if log else "") or getattr(error, "strerror", None) or str(error)


def _list_settings(spec: EncodeSpec) -> tuple[str, ...]:
    screen, light = spec.mastering_display, spec.content_light
    levels = f"{light.max_cll},{light.max_fall}" if light else ""
    if spec.codec == "h264":
        # Otherwise x264's AVX-512 code for the macroblock tree reads uninitialised
        # memory: packets differ between runs for the same frames.
        settings = ["cpu-independent=1"]
        settings += [f"mastering-display={screen.x265}"] if screen else []
        settings += [f"cll={levels}"] if light else []
    elif spec.codec == "hevc":
        settings = ["log-level=none"]
        settings += [f"master-display={screen.x265}"] if screen else []
        settings += [f"max-cll={levels}"] if light else []
    else:
        settings = [f"lp={min(spec.threads, 6)}"]
        settings += [f"mastering-display={screen.svtav1}"] if screen else []
        settings += [f"content-light={levels}"] if light else []
    return tuple(settings)
