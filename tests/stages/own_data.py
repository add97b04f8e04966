"""Makes data sets of one's own: a few pictures, many lines about them."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.stages.conversion import Converted, convert

PICTURES = ("a.jpg", "b.png", "c.jpg")
WIDTH_PX, HEIGHT_PX = 64, 48


def draw_pictures(folder: Path) -> None:
    """Draws three pictures of 64 x 48 px into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(PICTURES):
        image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), (90 * number, 120, 200))
        ImageDraw.Draw(image).ellipse((10, 10, 30, 30), fill=(255, 255, 0))
        image.save(folder / name)


def write_lines(folder: Path, lines: Sequence[Mapping[str, Any] | str | bytes], name: str = "data.jsonl") -> None:
    """Writes lines, those that are not text yet as JSON, beside the pictures."""
    draw_pictures(folder)
    buffer = io.BytesIO()
    for line in lines:
        text = line if isinstance(line, str | bytes) else json.dumps(line)
        buffer.write((text.encode() if isinstance(text, str) else text) + b"\n")
    (folder / name).write_bytes(buffer.getvalue())


def many_lines(count: int) -> list[dict[str, Any]]:
    """Returns lines of which every seventh names a picture that is not there, and every fifth has a box to repair."""
    return [
        {
            "image": "missing.jpg" if number % 7 == 3 else PICTURES[number % 3],
            "caption": f"picture {number} with a sun",
            "regions": [{"box_xyxy_px": [10, 10, 31 if number % 5 else 80, 31], "find": "a sun"}],
        }
        for number in range(count)
    ]


def convert_lines(directory: Path, lines: Sequence[Mapping[str, Any] | str | bytes], **config: Any) -> Converted:
    """Converts lines and returns what came of them."""
    write_lines(directory / "mine", lines)
    return convert(directory, directory / "mine", source="jsonl", file="data.jsonl", **config)


def digests(folder: Path) -> dict[str, str]:
    """Returns the sha256 of every file of a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
