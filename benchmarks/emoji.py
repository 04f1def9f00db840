"""Colour emoji as a folder of small pictures.

`python benchmarks/emoji.py [--source FONT] [--out DIR] [--side 32]`

Reads the bitmaps of a CBDT font with fontTools (`pip install fonttools`); Debian's package fonts-noto-color-emoji has
3 926 of 136x128 pixels. Each is laid on a white square, its size is reduced by Lanczos' filter, and it is written as a PNG under
its glyph's name.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import _report

from tinyddpm._io.files import replacing

SOURCE = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def prepare(out: Path, side: int = 32, source: Path | None = None) -> int:
    """Write the pictures that are missing and return the number of all."""
    from fontTools.ttLib import TTFont
    from PIL import Image

    source = SOURCE if source is None else source
    if not source.exists():
        raise FileNotFoundError(f"source: {source} is not there; the package fonts-noto-color-emoji has it")
    (bitmaps,) = TTFont(source)["CBDT"].strikeData
    out.mkdir(parents=True, exist_ok=True)
    for name, bitmap in bitmaps.items():
        file = out / f"{name}.png"
        if not file.exists():
            glyph = Image.open(io.BytesIO(bitmap.imageData)).convert("RGBA")
            width = max(glyph.size)
            square = Image.new("RGBA", (width, width), "white")
            square.alpha_composite(glyph, ((width - glyph.width) // 2, (width - glyph.height) // 2))
            with replacing(file) as stream:
                square.convert("RGB").resize((side, side), Image.Resampling.LANCZOS).save(stream, "PNG")
    return len(bitmaps)


def main(argv: Sequence[str]) -> None:
    """Write the folder and name it."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--source", type=Path, metavar="FONT", help=f"the font (default {SOURCE})")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("data/emoji"), help="(default data/emoji)")
    parser.add_argument("--side", type=int, metavar="N", default=32, help="pixels to a side (default 32)")
    args = parser.parse_args(argv)
    print(f"{args.out}: {prepare(args.out, args.side, args.source)} pictures of {args.side}x{args.side}")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
