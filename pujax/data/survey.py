"""A look at a sample of a source: what kinds of images there are, which do not decode, and a sheet of them to see."""

import collections
import io
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pujax.data.reading import spread
from pujax.data.sources import ImageSource
from pujax.data.sources.encoded import EncodedSource


@dataclass(frozen=True)
class Survey:
    """What a sample of a source showed."""

    images: np.ndarray  # uint8 [n, H, W, C], those that decode
    labels: np.ndarray | None  # int32 [n]
    sampled: int
    reasons: dict[str, str]  # key -> why it does not decode
    kinds: dict[str, int]  # "JPEG RGB" -> how many; empty where images are no files
    sides: tuple[int, int] | None  # smallest and largest short side of the files, in pixels
    images_per_second: float


def survey(source: ImageSource, count: int) -> Survey:
    """Read `count` images, spread evenly over a source."""
    rows = spread(len(source), count)
    source.read(rows[:1])  # starts what decodes
    started = time.monotonic()
    images, reasons = source.read(rows)
    seconds = time.monotonic() - started
    sound = reasons == ""
    kinds, sides = _headers(source, rows) if isinstance(source, EncodedSource) else ({}, [])
    return Survey(
        images=images[sound],
        labels=None if source.labels is None else source.labels[rows[sound]],
        sampled=len(rows),
        reasons=dict(zip(source.keys(rows[~sound]), reasons[~sound].tolist())),
        kinds=kinds,
        sides=(min(sides), max(sides)) if sides else None,
        images_per_second=len(rows) / max(seconds, 1e-9),
    )


def _headers(source: EncodedSource, rows: np.ndarray) -> tuple[dict[str, int], list[int]]:
    """Return (number of files by format and colour mode, their short sides); what has no header is left out."""
    kinds: collections.Counter[str] = collections.Counter()
    sides = []
    for content in source.encoded(rows):
        try:
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
                kinds[f"{image.format} {image.mode}"] += 1
                sides.append(min(image.size))
        except Exception:  # it is counted as one that does not decode
            continue
    return dict(kinds.most_common()), sides


def contact_sheet(parts: dict[str, np.ndarray], *, columns: int = 16, side: int = 64) -> bytes:
    """Return a JPEG of images in rows, under the name of their part.

    Args:
        parts: name -> uint8 [n, H, W, C].
        columns: images in a row.
        side: of an image on the sheet, in pixels.
    """
    heading = 20
    rows = {name: -(-len(images) // columns) for name, images in parts.items()}
    sheet = Image.new("RGB", (columns * side, sum(heading + count * side for count in rows.values())), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for name, images in parts.items():
        draw.text((4, top + 4), name, fill="black")
        for i, pixels in enumerate(images):
            picture = Image.fromarray(pixels.squeeze()).convert("RGB").resize((side, side))
            sheet.paste(picture, (i % columns * side, top + heading + i // columns * side))
        top += heading + rows[name] * side
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=85)
    return out.getvalue()
