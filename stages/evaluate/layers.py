"""A picture in layers: the image as it is, and apart what was said of it, for pages that show and hide masks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from orchestrator.artifacts import write_json
from stages.evaluate.answers import Answer

LONGEST_PX = 640  # of the image in the page; masks keep the size of the original
SMALL_PX = 160  # below, every pixel counts and JPEG would smear it
QUALITY = 88  # of JPEG; PNG has none


def write_layers(path: Path, image: Image.Image, said: Sequence[tuple[str, Answer]]) -> str:
    """Writes `path` (JSON) and the image beside it; returns the name of `path`, relative to the folder above.

    {"image", "width_px", "height_px", "panels": [{"title", "caption", "phrases": as in predictions.jsonl}]}; places in
    phrases are pixels of the original.
    """
    small = max(image.size) <= SMALL_PX
    plain = path.with_name(f"{path.stem}_plain.{'png' if small else 'jpg'}")
    shown = image.convert("RGB")
    shown.thumbnail((LONGEST_PX, LONGEST_PX))
    shown.save(plain, quality=QUALITY)
    folder = path.parent.name
    panels = [{"title": title, **_shown(answer).to_plain()} for title, answer in said]
    picture = {"image": f"{folder}/{plain.name}", "width_px": image.width, "height_px": image.height}
    write_json(path, {**picture, "panels": panels})
    return f"{folder}/{path.name}"


def _shown(answer: Answer) -> Answer:
    """Leaves out what a page has no use for: masks without a phrase, and embeddings."""
    return replace(answer, unpaired=None, said=tuple(replace(said, seen_as=None, read_as=None) for said in answer.said))
