"""What a mask shows, in words: retrieval by long texts, and recognition of masked objects."""

from collections.abc import Sequence
from functools import partial

from PIL import Image

from stages.evaluate.answers import Answer, Said, Vector
from stages.evaluate.benchmark import Benchmark, expect
from stages.evaluate.retrieval import (
    REGION_MEANINGS,
    TIES,
    Vectors,
    embed_regions,
    score_image_retrieval,
    score_recognition,
    score_region_retrieval,
)
from stages.expressions import described
from stages.family import Embeds, EmbedsWhole
from stages.samples import Sample
from stages.vision import Box, Mask, mask_from_rle
from stages.windows import WHITE, around, mask_of_box

CROP_SCALE = 1.5  # of the box's longer side
TEMPLATE = "a photo of a {}."


def read_long_texts(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads regions with the longest that is said about each: its caption, or else its first phrase."""
    said = [
        Said(phrase=texts[0], box_xyxy_px=region.box_xyxy_px, mask=region.mask)
        for region in sample.regions
        if not region.crowd and (texts := described(region))
    ]
    return Answer(caption="", said=tuple(said)) if said else None


def read_classes(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads every object with a mask; its phrase is the name of its class. Crowds count, as in the release."""
    said = [
        Said(phrase=region.phrase.strip(), box_xyxy_px=region.box_xyxy_px, mask=region.mask)
        for region in sample.regions
        if region.mask is not None and region.phrase.strip()
    ]
    return Answer(caption="", said=tuple(said)) if said else None


def read_first_caption(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads one long text of an image: its caption."""
    return Answer(caption="", said=(Said(phrase=sample.caption.strip()),)) if sample.caption.strip() else None


def embed_objects(
    model: Embeds, images: Sequence[Image.Image], references: Sequence[Answer], _limit: int, *, crops: bool
) -> list[Answer]:
    """Embeds every object through its mask, in a crop around it or in the whole image, and the name of its class.

    Shown is which class fits best of those in the images that are asked about together.
    """
    shown = [
        _cropped(image, said) if crops else (image, mask_of(said, image))
        for image, reference in zip(images, references, strict=True)
        for said in reference.said
    ]
    seen_RD = model.embed_images([image for image, _ in shown], [mask_HW for _, mask_HW in shown])
    names = list(dict.fromkeys(said.phrase for reference in references for said in reference.said))
    read_CD = model.embed_texts([TEMPLATE.format(name) for name in names])
    expect(len(shown), len(seen_RD), "embeddings for objects")
    best = (names[int(place)] for place in (seen_RD @ read_CD.T).argmax(axis=1))
    found = zip(best, seen_RD, strict=True)
    return [
        Answer(
            caption="",
            said=tuple(_named(said, *next(found), read_CD[names.index(said.phrase)]) for said in reference.said),
        )
        for reference in references
    ]


def embed_whole(
    model: EmbedsWhole, images: Sequence[Image.Image], references: Sequence[Answer], _limit: int, *, compat: bool
) -> list[Answer]:
    """Embeds every image and its text."""
    seen_ND = model.embed_whole_images(images) if compat else model.embed_images(images, [None] * len(images))
    texts = [said.phrase for reference in references for said in reference.said]
    read_ND = model.embed_texts(texts)
    expect(len(images), len(seen_ND), "embeddings for images")
    return [
        Answer(caption="", said=(Said(phrase=text, seen_as=_vector(seen_D), read_as=_vector(read_D)),))
        for text, seen_D, read_D in zip(texts, seen_ND, read_ND, strict=True)
    ]


def _cropped(image: Image.Image, said: Said) -> tuple[Image.Image, Mask]:
    box = _box_of(said)
    window = around(box, CROP_SCALE)
    return window.cut(image, fill=WHITE), window.cut_mask(mask_of(said, image))


def mask_of(said: Said, image: Image.Image) -> Mask:
    """Returns the mask of a region, or its filled box."""
    if said.mask is not None:
        return mask_from_rle(said.mask)
    return mask_of_box(_box_of(said), width_px=image.width, height_px=image.height)


def _box_of(said: Said) -> Box:
    assert said.box_xyxy_px is not None  # noqa: S101 - every reference of this file has one
    return said.box_xyxy_px


def _named(said: Said, name: str, seen_D: Vectors, read_D: Vectors) -> Said:
    return Said(phrase=name, box_xyxy_px=said.box_xyxy_px, seen_as=_vector(seen_D), read_as=_vector(read_D))


def _vector(embedded_D: Vectors) -> Vector:
    return tuple(map(float, embedded_D))


_CLASSES = {
    "class_accuracy": "objects named right, the mean over classes",
    "class_accuracy5": "objects whose class is among the five nearest, the mean over classes",
    "accuracy": "objects named right",
}
_WHOLE = {
    "image_to_text1": "images whose nearest text is theirs",
    "text_to_image1": "texts whose nearest image is theirs",
    "image_to_text5": "images that have their text among the five nearest",
    "text_to_image5": "texts whose image is among the five nearest",
    "image_to_text10": "images that have their text among the ten nearest",
    "text_to_image10": "texts whose image is among the ten nearest",
}
MASKED_RETRIEVAL = Benchmark(
    reference=read_long_texts,
    ability=Embeds,
    ask=embed_regions,
    score=score_region_retrieval,
    protocol=(
        "Every region through its mask looks for its long text among all distinct ones, every text for a region among "
        f"all: regions of one image differ by their masks alone. {TIES}"
    ),
    meanings=REGION_MEANINGS,
    compat=frozenset(),
    sought="regions",
)
MASKED_CROPS = Benchmark(
    reference=read_classes,
    ability=Embeds,
    ask=partial(embed_objects, crops=True),
    score=score_recognition,
    protocol=(
        "Masked recognition as PixCLIP's release has it for COCO: a square of 1.5 times the box's longer side around "
        "every object, white beyond the image, the mask cut alike; the names of the classes that the data has, in "
        f'"{TEMPLATE}". {TIES}'
    ),
    meanings=_CLASSES,
    compat=frozenset(),
)
MASKED_WHOLE = Benchmark(
    reference=read_classes,
    ability=Embeds,
    ask=partial(embed_objects, crops=False),
    score=score_recognition,
    protocol=(
        "Masked recognition as PixCLIP's release has it for LVIS: the whole image, padded to a square, through every "
        f'object\'s mask; the names of the classes that the data has, in "{TEMPLATE}". {TIES}'
    ),
    meanings=_CLASSES,
    compat=frozenset(),
)
LONG_TEXTS = Benchmark(
    reference=read_first_caption,
    ability=Embeds,
    ask=partial(embed_whole, compat=False),
    score=score_image_retrieval,
    protocol=(
        "Long-text retrieval (Urban1k, DOCCI, ShareGPT4V, DCI): one text an image, its caption; an image is right with "
        f"its own text alone. Whole images, masks normalised as everywhere. {TIES}"
    ),
    meanings=_WHOLE,
    compat=frozenset(),
    sought="images",
)
LONG_TEXTS_COMPAT = Benchmark(
    reference=read_first_caption,
    ability=EmbedsWhole,
    ask=partial(embed_whole, compat=True),
    score=score_image_retrieval,
    protocol=(
        "Long-text retrieval as PixCLIP's released scripts have it: images squashed to the tower's square, under masks "
        "of plain ones, which these scripts normalise everywhere else (1.0 in the place of 1.92). Of DOCCI they take "
        f"the first 1,000 records, of whatever split: the subset docci_first_1000. {TIES}"
    ),
    meanings=_WHOLE,
    compat=frozenset({"image_to_text1", "text_to_image1"}),
    sought="images",
)
