"""What each task asks about a sample, and the sample that the answers make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from stages.family import (
    DescribesDensely,
    DescribesRegions,
    GroundedCaption,
    Grounds,
    Model,
    Refers,
    RefersByBox,
    SegmentsPanoptic,
    unable,
)
from stages.samples import Region, Sample
from stages.vision import Mask, box_of_mask, rle_from_mask

SOURCE = "model"  # of a region: no person has drawn it

Asker = Callable[[Any, Sequence[Sample], Sequence[Image.Image], int], list[Sample]]


def bare(sample: Sample, **said: object) -> Sample:
    """Returns the image alone, with what is said of it now."""
    plain = Sample(key=sample.key, image=sample.image, width_px=sample.width_px, height_px=sample.height_px)
    return replace(plain, **said)  # type: ignore[arg-type]  # fields of Sample


def captioned(model: Grounds, samples: Sequence[Sample], images: Sequence[Image.Image], limit: int) -> list[Sample]:
    """Asks for a caption whose phrases carry masks; a phrase whose mask is empty stays words."""
    said = model.ground(images, max_new_tokens=limit)
    return [
        bare(sample, caption=one.caption, regions=_grounded(one)) for sample, one in zip(samples, said, strict=True)
    ]


def described(
    model: DescribesRegions, samples: Sequence[Sample], images: Sequence[Image.Image], limit: int
) -> list[Sample]:
    """Asks for a caption of each region, by its box; boxes, masks and phrases stay as they are."""
    boxes = [[region.box_xyxy_px for region in sample.regions] for sample in samples]
    texts = model.describe_regions(images, boxes, max_new_tokens=limit)
    return [
        bare(
            sample,
            regions=tuple(
                replace(region, caption=text, spans=(), source=SOURCE)
                for region, text in zip(sample.regions, said, strict=True)
            ),
        )
        for sample, said in zip(samples, texts, strict=True)
    ]


def referred(model: Refers, samples: Sequence[Sample], images: Sequence[Image.Image], limit: int) -> list[Sample]:
    """Asks for the pixels of each region's expression: a region for each mask, none where nothing is pointed at."""
    made = []
    for sample, image in zip(samples, images, strict=True):
        regions: list[Region] = []
        for text in _expressions(sample):
            masks = model.refer(image, text, max_new_tokens=limit).masks_HW
            regions += [region for mask_HW in masks if (region := _region(mask_HW, text)) is not None]
        made.append(bare(sample, regions=tuple(regions)))
    return made


def boxed(model: RefersByBox, samples: Sequence[Sample], images: Sequence[Image.Image], _limit: int) -> list[Sample]:
    """Asks for the box of each region's expression."""
    texts = [_expressions(sample) for sample in samples]
    return [
        bare(
            sample,
            regions=tuple(
                Region(box_xyxy_px=box, mask=None, phrase=text, source=SOURCE)
                for text, box in zip(said, boxes, strict=True)
            ),
        )
        for sample, said, boxes in zip(samples, texts, model.refer_boxes(images, texts), strict=True)
    ]


def found(
    model: DescribesDensely, samples: Sequence[Sample], images: Sequence[Image.Image], limit: int
) -> list[Sample]:
    """Asks for boxes of everything, each with a caption and how sure the model is of it."""
    return [
        bare(
            sample,
            regions=tuple(
                Region(
                    box_xyxy_px=one.box_xyxy_px, mask=None, phrase="", caption=one.caption, score=one.score,
                    source=SOURCE,
                )
                for one in boxes
            ),
        )
        for sample, boxes in zip(samples, model.describe_densely(images, max_new_tokens=limit), strict=True)
    ]  # fmt: skip


def segmented(
    model: SegmentsPanoptic, samples: Sequence[Sample], images: Sequence[Image.Image], limit: int
) -> list[Sample]:
    """Asks for panoptic segments: a region each, its category the phrase."""
    made = []
    for sample, segments in zip(samples, model.segment(images, max_new_tokens=limit), strict=True):
        regions = (
            replace(region, caption=one.caption, score=one.score)
            for one in segments
            if (region := _region(one.mask_HW, one.category)) is not None
        )
        made.append(bare(sample, regions=tuple(regions)))
    return made


# task -> what a model must be able to do for it, and what asks
ASKERS: Mapping[str, tuple[type[Any], Asker]] = {
    "caption": (Grounds, captioned),
    "regions": (DescribesRegions, described),
    "refer": (Refers, referred),
    "refer_boxes": (RefersByBox, boxed),
    "dense": (DescribesDensely, found),
    "panoptic": (SegmentsPanoptic, segmented),
}


def asker_of(task: str, model: Model) -> Asker:
    """Returns what asks a model for this task; refuses a model that cannot do it."""
    ability, ask = ASKERS[task]
    if not isinstance(model, ability):
        raise unable(model, ability)
    return ask


def _expressions(sample: Sample) -> list[str]:
    texts = (region.caption or region.phrase for region in sample.regions)
    return list(dict.fromkeys(text for text in texts if text.strip()))


def _grounded(said: GroundedCaption) -> tuple[Region, ...]:
    found = ((_region(part.mask_HW, part.phrase), part.span) for part in said.phrases)
    return tuple(replace(region, spans=(span,)) for region, span in found if region is not None)


def _region(mask_HW: Mask, phrase: str) -> Region | None:
    box = box_of_mask(mask_HW)
    if box is None:
        return None
    return Region(box_xyxy_px=box, mask=rle_from_mask(mask_HW), phrase=phrase, source=SOURCE)
