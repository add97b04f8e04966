"""What training draws from a sample: a region of the image and a text about it, or the whole image and its caption."""

import random
from collections.abc import Iterator

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.samples import Region, Sample
from stages.vision import Box, Mask, mask_from_rle
from stages.windows import mask_of_box


@record
class Pair:
    """A text, and what of the image it is about."""

    text: str
    box_xyxy_px: Box
    mask_HW: Mask | None  # None: the whole image


def draw_pair(sample: Sample, seed: int, *, whole_share: float) -> Pair:
    """Draws one region with one of its texts; with a chance of `whole_share` the whole image with one of its captions.

    A sample that has only the one or the other gives that; one that has neither is refused.
    """
    chance = random.Random(f"pixclip {seed}")  # noqa: S311 - data, not secrets
    captions = list(captions_of(sample))
    regions = [region for region in sample.regions if not region.crowd and any(texts_of_region(region))]
    if captions and (not regions or chance.random() < whole_share):
        whole = (0.0, 0.0, float(sample.width_px), float(sample.height_px))
        return Pair(text=chance.choice(captions), box_xyxy_px=whole, mask_HW=None)
    if not regions:
        raise InputError(f"sample {sample.key!r} has no caption, and no region with a text")
    region = chance.choice(regions)
    return Pair(
        text=chance.choice(list(texts_of_region(region))),
        box_xyxy_px=region.box_xyxy_px,
        mask_HW=mask_of_region(region, sample),
    )


def texts_of(sample: Sample) -> tuple[str, ...]:
    """Returns every text that a pair of this sample may have, each once, in a fixed order."""
    of_regions = (text for region in sample.regions for text in texts_of_region(region))
    return tuple(dict.fromkeys((*of_regions, *captions_of(sample))))


def texts_of_region(region: Region) -> Iterator[str]:
    """Yields its caption, the long text; where it has none, its phrases."""
    texts = (region.caption,) if region.caption.strip() else (region.phrase, *region.more_phrases)
    yield from (text for text in texts if text.strip())


def captions_of(sample: Sample) -> Iterator[str]:
    """Yields the captions of the whole image."""
    yield from (text for text in (sample.caption, *(more.text for more in sample.more_captions)) if text.strip())


def mask_of_region(region: Region, sample: Sample) -> Mask:
    """Decodes the mask of a region; one without a mask is its box."""
    if region.mask is not None:
        return mask_from_rle(region.mask)
    return mask_of_box(region.box_xyxy_px, width_px=sample.width_px, height_px=sample.height_px)
