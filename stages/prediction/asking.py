"""What each task asks about a sample, and the sample that the answers make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from PIL import Image

from stages.family import GroundedCaption, Model
from stages.samples import Region, Sample
from stages.vision import Mask, box_of_mask, rle_from_mask

SOURCE = "model"  # of a region: no person has drawn it

Asker = Callable[[Model, Sequence[Sample], Sequence[Image.Image], int], list[Sample]]


def bare(sample: Sample, **said: object) -> Sample:
    """Returns the image alone, with what is said of it now."""
    plain = Sample(key=sample.key, image=sample.image, width_px=sample.width_px, height_px=sample.height_px)
    return replace(plain, **said)  # type: ignore[arg-type]  # fields of Sample


def captioned(model: Model, samples: Sequence[Sample], images: Sequence[Image.Image], limit: int) -> list[Sample]:
    """Asks for a caption whose phrases carry masks; a phrase whose mask is empty stays words."""
    said = model.ground(images, max_new_tokens=limit)
    return [
        bare(sample, caption=one.caption, regions=_grounded(one)) for sample, one in zip(samples, said, strict=True)
    ]


def described(model: Model, samples: Sequence[Sample], images: Sequence[Image.Image], limit: int) -> list[Sample]:
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


def referred(model: Model, samples: Sequence[Sample], images: Sequence[Image.Image], limit: int) -> list[Sample]:
    """Asks for the pixels of each region's expression: a region for each mask, none where nothing is pointed at."""
    made = []
    for sample, image in zip(samples, images, strict=True):
        regions: list[Region] = []
        for text in dict.fromkeys(region.caption or region.phrase for region in sample.regions):
            if text.strip():
                masks = model.refer(image, text, max_new_tokens=limit).masks_HW
                regions += [region for mask_HW in masks if (region := _region(mask_HW, text)) is not None]
        made.append(bare(sample, regions=tuple(regions)))
    return made


ASKERS: Mapping[str, Asker] = {"caption": captioned, "regions": described, "refer": referred}


def _grounded(said: GroundedCaption) -> tuple[Region, ...]:
    found = ((_region(part.mask_HW, part.phrase), part.span) for part in said.phrases)
    return tuple(replace(region, spans=(span,)) for region, span in found if region is not None)


def _region(mask_HW: Mask, phrase: str) -> Region | None:
    box = box_of_mask(mask_HW)
    if box is None:
        return None
    return Region(box_xyxy_px=box, mask=rle_from_mask(mask_HW), phrase=phrase, source=SOURCE)
