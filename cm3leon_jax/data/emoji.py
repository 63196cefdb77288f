"""Real images with real names: the Noto colour emoji font as records and as skin-tone edits.

The pictures come from the installed font's bitmaps, the names from Unicode's emoji list (CLDR short
names, as kept by the package `emoji`). Sequences that the font draws as several glyphs, or not at
all, are newer than the font and left out. Of those drawn alike the shortest name stays: Norway
keeps its flag, Bouvet Island goes.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from cm3leon_jax.data.records import Record

FONT_FILE = "NotoColorEmoji.ttf"
FONT_FOLDERS = (
    Path("/usr/share/fonts"),
    Path.home() / ".local/share/fonts",
    Path.home() / ".fonts",
)
LICENSE = "OFL-1.1"
SOURCE_URL = "https://github.com/googlefonts/noto-emoji"

STRIKE = 109  # the one size, in pixels per em, that the font has bitmaps for
GLYPH = (136, 128)  # width and height of every bitmap

TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
EDITS = len(TONES) ** 2  # of one emoji at most: from the default and each tone to each other one
EMOJI_STYLE = "\ufe0f"  # "draw as a picture": without meaning of its own
REGIONAL_A = ord("\U0001f1e6")  # two regional letters make a country's flag


class FontNotFound(FileNotFoundError):
    """The emoji font is not installed; the message names the package."""


def find_font(font: Path | str | None = None) -> Path:
    """The font file given, or the installed one. Raises FontNotFound."""
    if font is not None:
        if not Path(font).is_file():
            raise FontNotFound(f"--font {font}: no such file")
        return Path(font)
    for folder in FONT_FOLDERS:
        if found := sorted(folder.rglob(FONT_FILE)):
            return found[0]
    raise FontNotFound(
        f"{FONT_FILE} is not installed: install the Debian/Ubuntu package fonts-noto-color-emoji "
        "or name the file with --font"
    )


def count_names() -> int:
    """How many emoji have a name: the most that a font can give."""
    return len(_list_sequences())


def records(size: int = 32, font: Path | str | None = None) -> Iterator[Record]:
    """Every emoji of the font as (caption, image uint8 [size, size, 3]), short names first.

    "woman astronaut medium skin tone" has the id "emoji-1f469-1f3fd-200d-1f680".
    """
    for sequence, glyph in _draw_all(find_font(font)):
        yield Record(
            id=_name_id(sequence),
            segments=(name_emoji(sequence), _shrink(glyph, size)),
            license=LICENSE,
            source_url=SOURCE_URL,
            origin=FONT_FILE,
        )


def skin_tone_edits(size: int = 32, font: Path | str | None = None) -> Iterator[Record]:
    """Every change of one skin tone as (image before, image after) with the instruction.

    From the yellow default or a tone to another tone. All edits of an emoji are one group, or the
    answer to a held-out one would be seen with another start.
    """
    families: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for sequence, glyph in _draw_all(find_font(font)):
        tones = [char for char in sequence if char in TONES]
        if len(tones) <= 1:
            plain = "".join(c for c in sequence if c not in TONES and c != EMOJI_STYLE)
            families[plain]["".join(tones)] = _shrink(glyph, size)
    for plain, images in families.items():
        for before, after in itertools.product(("", *TONES), TONES):
            if before != after and before in images and after in images:
                start = f"{ord(before):x}" if before else "default"
                yield Record(
                    id=f"{_name_id(plain)}/{start}-to-{ord(after):x}",
                    segments=(images[before], images[after]),
                    instruction=f"change the skin tone to {TONES[after]}",
                    group=_name_id(plain),
                    license=LICENSE,
                    source_url=SOURCE_URL,
                    origin=FONT_FILE,
                )


def name_emoji(sequence: str) -> str:
    """The English name in plain words: "flag of norway", "thumbs up dark skin tone"."""
    from emoji import EMOJI_DATA

    name = EMOJI_DATA[sequence]["en"].strip(":").replace("_", " ").replace("\u2019", "'").lower()
    is_flag = len(sequence) == 2 and all(0 <= ord(char) - REGIONAL_A < 26 for char in sequence)
    return f"flag of {name}" if is_flag or sequence[-1] == "\U000e007f" else name


def _list_sequences() -> list[str]:
    """Every fully qualified sequence, in no order that matters."""
    from emoji import EMOJI_DATA, STATUS

    qualified = STATUS["fully_qualified"]
    return [sequence for sequence, fact in EMOJI_DATA.items() if fact["status"] == qualified]


def _name_id(sequence: str) -> str:
    return "emoji-" + "-".join(f"{ord(char):x}" for char in sequence)


def _draw_all(font: Path) -> Iterator[tuple[str, Image.Image]]:
    """Each fully qualified sequence that the font has, with its glyph on white at full size."""
    if not features.check("raqm"):
        raise ValueError("Pillow cannot lay out emoji: install the package libfribidi0 (raqm)")
    try:
        face = ImageFont.truetype(str(font), STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise ValueError(f"{font}: not an emoji font that Pillow can read ({error})") from error
    seen: set[bytes] = set()
    for sequence in sorted(
        _list_sequences(), key=lambda sequence: (len(name_emoji(sequence)), sequence)
    ):
        if face.getbbox(sequence) != (0, 0, *GLYPH):  # several glyphs, or none
            continue
        side = max(GLYPH)
        canvas = Image.new("RGB", (side, side), "white")
        corner = ((side - GLYPH[0]) // 2, (side - GLYPH[1]) // 2)
        ImageDraw.Draw(canvas).text(corner, sequence, font=face, embedded_color=True)
        digest = hashlib.sha256(canvas.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield sequence, canvas
    if not seen:
        raise ValueError(f"{font} has no colour bitmaps: give a CBDT build of Noto Color Emoji")


def _shrink(glyph: Image.Image, size: int) -> np.ndarray:
    return np.array(glyph.resize((size, size), Image.Resampling.LANCZOS))
