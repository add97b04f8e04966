"""Small scenes with known truth, drawn for the tests of evaluation, export and prediction."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.artifacts import Shards
from orchestrator.data.writer import ShardWriter
from stages.samples import Region, Sample
from stages.vision import rle_from_mask

SIDE_PX = 40
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210), "grey": (120, 120, 120)}


def scene(number: int) -> Sample:
    """Makes a scene of two bars: one at the left, one at the right; `number` chooses their colours."""
    names = list(COLOURS)
    first, second = names[number % 4], names[(number // 4 + number + 1) % 4]
    pixels_HWC = np.full((SIDE_PX, SIDE_PX, 3), 235, dtype=np.uint8)
    pixels_HWC[0, 0] = number  # no two scenes have the same pixels
    caption = f"A {first} bar stands left of a {second} bar."
    regions = []
    for name, left_px, article in ((first, 4, "A"), (second, 24, "a")):
        mask_HW = np.zeros((SIDE_PX, SIDE_PX), dtype=np.bool_)
        mask_HW[5:35, left_px : left_px + 10] = True
        pixels_HWC[mask_HW] = COLOURS[name]
        phrase = f"{article} {name} bar"
        start = caption.rindex(phrase)
        regions.append(
            Region(
                box_xyxy_px=(left_px, 5, left_px + 10, 35),
                mask=rle_from_mask(mask_HW),
                phrase=phrase,
                caption=f"the {name} bar",
                spans=((start, start + len(phrase)),),
            )
        )
    return Sample(
        key=f"scene{number:04d}", image=png(pixels_HWC), width_px=SIDE_PX, height_px=SIDE_PX, caption=caption,
        regions=tuple(regions),
    )  # fmt: skip


def png(pixels_HWC: np.ndarray) -> bytes:
    """Encodes pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format="PNG")
    return buffer.getvalue()


def write_shards(directory: Path, samples: Sequence[Sample], *, samples_per_shard: int = 3) -> Shards:
    """Writes a complete set of shards."""
    with ShardWriter(directory, samples_per_shard=samples_per_shard) as writer:
        for sample in samples:
            writer.write(sample.key, sample.to_members())
        facts = writer.close()
    shards = Shards(directory)
    shards.commit("a" * 64, facts=facts, sha256=writer.sha256)
    return shards
