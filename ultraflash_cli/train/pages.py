"""Rendered pages of text and shapes, for the sharp edges and letters that clips and
photos lack."""

from collections.abc import Iterator, Sequence
from colorsys import hls_to_rgb
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ultraflash_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

__all__ = ["PagesConfig", "page_words", "render_pages"]

LATIN_FONTS = (
    "LiberationSans-BoldItalic.ttf",
    "LiberationSerif-Italic.ttf",
    "LiberationMono-Bold.ttf",
    "LiberationSansNarrow-BoldItalic.ttf",
    "LiberationSerif-Regular.ttf",
    "LiberationSerif-BoldItalic.ttf",
    "LiberationSansNarrow-Regular.ttf",
    "LiberationSansNarrow-Italic.ttf",
    "LiberationSansNarrow-Bold.ttf",
    "LiberationMono-BoldItalic.ttf",
    "LiberationSans-Italic.ttf",
    "LiberationSans-Bold.ttf",
    "LiberationMono-Regular.ttf",
    "LiberationSerif-Bold.ttf",
    "LiberationMono-Italic.ttf",
    "LiberationSans-Regular.ttf",
    "FreeSerifItalic.ttf",
    "FreeSansOblique.ttf",
    "FreeSerifBoldItalic.ttf",
    "FreeSerifBold.ttf",
    "FreeMonoBoldOblique.ttf",
    "FreeSans.ttf",
    "FreeMono.ttf",
    "FreeMonoOblique.ttf",
    "FreeSerif.ttf",
    "FreeSansBoldOblique.ttf",
    "FreeMonoBold.ttf",
    "FreeSansBold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansCondensed-Bold.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerifCondensed-Italic.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSans-ExtraLight.ttf",
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansCondensed.ttf",
    "DejaVuSansCondensed-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerifCondensed.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerifCondensed-Bold.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "DejaVuSerifCondensed-BoldItalic.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansCondensed-Oblique.ttf",
)
"""Files of the Debian packages fonts-liberation, fonts-freefont-ttf, fonts-dejavu-core and fonts-dejavu-extra,
in the order on which the seeded choices depend."""

CJK_FONTS = (
    "NotoSerifCJK-Regular.ttc",
    "NotoSansCJK-Bold.ttc",
    "NotoSansCJK-Regular.ttc",
    "NotoSerifCJK-Bold.ttc",
)
"""Files of the Debian package fonts-noto-cjk."""

CHARACTERS = (
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天"
    "而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些"
    "与高意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相"
    "次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市眼体别处总才场师书比住员九笑性通目华报立"
    "马命张活难神数件安表原车白应路期叫死常提感金何更反合放做系计或司利受光王果亲界及今京务制解各任至清物台象记边共"
    "风战干接它许八特觉望直服毛林题建南度统色字请交爱让认算论百吃义科怎元社术结六功指思非流每青管夫连远资队跟带花快"
    "条院变联言权往展该领传近留红治决周保达办运武半候七必城父强步完革深区即求品士转量空甚众技轻程告江语英基派满式李"
    "息写呢识极令黄德收脸钱党倒未持取设始版双历越史商千片容研像找友孩站广改议形委早房音火际则首单据导影失拿网香似斯"
    "专石若兵弟谁校读志飞观争究包组造落视济喜离虽坏兴切紧"
)
"""The most frequent Chinese characters."""

CYRILLIC = (
    "Съешь ещё этих мягких французских булок да выпей чаю "
    "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства"
)
"""A pangram and a slogan."""

TEXT_SIZES_PX = (13, 14, 15, 16, 18, 20, 22, 26, 32, 44, 60)
TEXT_ODDS = (0.1, 0.12, 0.13, 0.15, 0.12, 0.1, 0.08, 0.08, 0.06, 0.04, 0.02)

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class PagesConfig:
    """Number, size and fonts of the pages; one page in three shows shapes, the others
    text."""

    count: int = 36
    """Number of pages."""
    width_px: int = 1600
    """Width of a page of text; a page of shapes is drawn at this size and shrunk to three quarters."""
    height_px: int = 1000
    """Height of a page of text."""
    latin_fonts: tuple[str, ...] = LATIN_FONTS
    """Font files for words, and for Cyrillic."""
    cjk_fonts: tuple[str, ...] = CJK_FONTS
    """Font files for Chinese; none leaves it to the others."""
    seed: int = 5
    """Seed of all random choices."""


def page_words(texts: Sequence[Path]) -> list[str]:
    """Return the words of plain text files, from the first file only purely alphabetic
    ones. Raises InputError."""
    words: list[str] = []
    for i, path in enumerate(texts):
        try:
            found = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not readable text ({error})") from error
        words += [word for word in found if i or word.isalpha()]
    if not words:
        raise UsageError("pages need words; give a text file with --text")
    return words


def render_pages(config: PagesConfig, *, fonts: Path, words: list[str]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the pages [H, W, 3]; the same config, fonts, words and Pillow version
    produce the same pixels. ``fonts`` is a folder with the font files, at any depth.
    Raises InputError if one is missing.
    """
    from PIL import Image, ImageDraw

    latin = [_find(fonts, name) for name in config.latin_fonts]
    cjk = [_find(fonts, name) for name in config.cjk_fonts]
    rng = np.random.default_rng(config.seed)
    size = (config.width_px, config.height_px)
    for number in range(config.count):
        dark = rng.random() < 0.4
        background = _colour(rng, rng.uniform(0.02, 0.2) if dark else rng.uniform(0.85, 1))
        image = Image.new("RGB", size, background)
        draw = ImageDraw.Draw(image)
        if number % 3 == 2:
            _draw_shapes(draw, rng, size, latin, words)
            # Drawn without antialiasing, which the downscaling provides.
            image = image.resize((size[0] * 3 // 4, size[1] * 3 // 4), Image.Resampling.LANCZOS)
        else:
            _draw_text(draw, rng, size, latin, cjk, words, dark=dark)
        yield np.asarray(image)


def _find(folder: Path, name: str) -> str:
    found = sorted(folder.rglob(name))
    if not found:
        raise InputError(
            f"{folder}: no {name}; pages need the Debian packages fonts-dejavu, fonts-liberation, "
            "fonts-freefont-ttf and fonts-noto-cjk"
        )
    return str(found[0])


def _colour(rng: np.random.Generator, lightness: float) -> Colour:
    red, green, blue = hls_to_rgb(rng.random(), lightness, rng.random())
    return int(255 * red), int(255 * green), int(255 * blue)


def _draw_shapes(
    draw: "ImageDraw", rng: np.random.Generator, size: tuple[int, int], latin: list[str], words: list[str]
) -> None:
    from PIL import ImageFont

    for _ in range(int(rng.integers(60, 160))):
        colour = _colour(rng, rng.random())
        x, y = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        width, height = (int(side) for side in rng.integers(4, 300, 2))
        shape = rng.integers(0, 6)
        if shape == 0:
            draw.rectangle([x, y, x + width, y + height], fill=colour)
        elif shape == 1:
            draw.ellipse([x, y, x + width, y + height], outline=colour, width=int(rng.integers(1, 6)))
        elif shape == 2:
            end = (x + width * 2 - 300, y + height * 2 - 300)
            draw.line([x, y, *end], fill=colour, width=int(rng.integers(1, 5)))
        elif shape == 3:
            corners = [(x + int(rng.integers(-150, 150)), y + int(rng.integers(-150, 150))) for _ in range(4)]
            draw.polygon(corners, fill=colour)
        elif shape == 4:
            pitch = int(rng.integers(3, 14))
            for left in range(x, x + width, pitch):
                rng.random()  # unused, but keeps the random sequence of the pages behind the built-in weights
                draw.line([left, y, left, y + height], fill=colour, width=max(1, pitch // 2))
        else:
            font = ImageFont.truetype(latin[rng.integers(len(latin))], int(rng.integers(14, 90)))
            draw.text((x, y), " ".join(rng.choice(words, 3)), fill=colour, font=font)


def _draw_text(
    draw: "ImageDraw",
    rng: np.random.Generator,
    size: tuple[int, int],
    latin: list[str],
    cjk: list[str],
    words: list[str],
    *,
    dark: bool,
) -> None:
    from PIL import ImageFont

    y = 8
    while y < size[1] - 10:
        height = int(rng.choice(TEXT_SIZES_PX, p=TEXT_ODDS))
        script = rng.random()
        fonts = cjk if script < 0.2 and cjk else latin
        font = ImageFont.truetype(fonts[rng.integers(len(fonts))], height)
        if rng.random() < 0.4:
            colour = _colour(rng, rng.uniform(0.65, 1) if dark else rng.uniform(0, 0.4))
        else:
            colour = (230, 230, 230) if dark else (25, 25, 25)
        for _ in range(int(rng.integers(1, 6))):
            if script < 0.2:
                line = "".join(rng.choice(list(CHARACTERS), 140))
            elif script < 0.32:
                line = " ".join(rng.choice(CYRILLIC.split(), 40))
            else:
                chosen = rng.choice(words, 60)
                line = " ".join(str(rng.integers(0, 99999)) if rng.random() < 0.1 else word for word in chosen)
            draw.text((int(rng.integers(0, 30)), y), line, fill=colour, font=font)
            y += int(height * 1.4)
            if rng.random() < 0.08:
                draw.line([0, y, size[0], y], fill=colour, width=1)
