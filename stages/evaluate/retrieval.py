"""Retrieval and recognition: what is seen and what is said, in one space, and how well each finds the other.

Shapes: Q queries, C candidates, D dimensions of an embedding, K queries of a block.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark, Tools, expect
from stages.expressions import described
from stages.family import Embeds
from stages.samples import Region, Sample
from stages.vision import mask_from_rle

BLOCK = 1024  # queries compared at once

Vectors = NDArray[np.float32]


def ranks_of(
    queries_QD: Vectors, wanted: Sequence[str], candidates_CD: Vectors, labels: Sequence[str]
) -> NDArray[np.int64]:
    """Ranks for each query its best right candidate, from 1: a candidate is right if its label is the one wanted.

    Wrong candidates that fit equally well stand before it, so that an embedding that tells nothing apart finds nothing.
    A query without any right candidate comes after all of them.
    """
    numbers = {label: number for number, label in enumerate(dict.fromkeys([*wanted, *labels]))}
    wanted_Q, labels_C = (np.array([numbers[one] for one in some], dtype=np.int64) for some in (wanted, labels))
    ranks = np.zeros(len(wanted_Q), dtype=np.int64)
    for start in range(0, len(wanted_Q), BLOCK):
        rows = slice(start, start + BLOCK)
        cosines_KC = queries_QD[rows] @ candidates_CD.T
        right_KC = wanted_Q[rows, None] == labels_C[None, :]
        best_K = np.where(right_KC, cosines_KC, -np.inf).max(axis=1, initial=-np.inf)
        ranks[rows] = 1 + ((cosines_KC >= best_K[:, None]) & ~right_KC).sum(axis=1)
    return ranks


def recall(ranks: NDArray[np.int64], most: int) -> float:
    """Returns the share of queries whose right answer is among the first `most`."""
    return float((ranks <= most).mean()) if len(ranks) else 0.0


def class_mean(ranks: NDArray[np.int64], classes: Sequence[str], most: int) -> float:
    """Returns the recall of each class alone, averaged over the classes: a rare one counts as much as a frequent."""
    own = np.array(classes)
    return float(np.mean([recall(ranks[own == name], most) for name in sorted(set(classes))])) if classes else 0.0


def distinct(texts: Sequence[str], vectors_CD: Vectors) -> tuple[list[str], Vectors]:
    """Keeps each text once, with its first vector."""
    places = {text: place for place, text in reversed(list(enumerate(texts)))}
    kept = sorted(places.values())
    return [texts[place] for place in kept], vectors_CD[kept]


def plain_words(text: str) -> str:
    """Returns a text as it is compared: two that differ in case or spaces alone are one."""
    return " ".join(text.lower().split())


def read_regions(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads regions with one short text each: a phrase, also one of the image's caption, or a caption of their own."""
    said = [
        Said(phrase=text, box_xyxy_px=region.box_xyxy_px, mask=region.mask)
        for region in sample.regions
        if not region.crowd and (text := _short(region))
    ]
    return Answer(caption="", said=tuple(said)) if said else None


def read_captions(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads every caption of a whole image; each is one of its right answers."""
    texts = (sample.caption, *(more.text for more in sample.more_captions))
    said = [Said(phrase=text.strip()) for text in texts if text.strip()]
    return Answer(caption="", said=tuple(said)) if said else None


def embed_regions(model: Embeds, images: Sequence[Image.Image], references: Sequence[Answer], _: int) -> list[Answer]:
    """Embeds every region and its text; shown is which of the image's own texts fits a region best."""
    boxes = [[said.box_xyxy_px for said in reference.said if said.box_xyxy_px] for reference in references]
    masks = [
        [None if said.mask is None else mask_from_rle(said.mask) for said in reference.said] for reference in references
    ]
    seen = model.embed_regions(images, boxes, masks)
    expect(len(images), len(seen), "lists of embedded regions for images")
    answers = []
    for reference, seen_RD in zip(references, seen, strict=True):
        expect(len(reference.said), len(seen_RD), "embeddings for regions")
        read_RD = model.embed_texts([said.phrase for said in reference.said])
        best_R = (seen_RD @ read_RD.T).argmax(axis=1)
        said = (
            Said(
                phrase=reference.said[best].phrase,
                box_xyxy_px=true.box_xyxy_px,
                seen_as=tuple(map(float, seen_D)),
                read_as=tuple(map(float, read_D)),
            )
            for true, best, seen_D, read_D in zip(reference.said, best_R, seen_RD, read_RD, strict=True)
        )
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def embed_captions(model: Embeds, images: Sequence[Image.Image], references: Sequence[Answer], _: int) -> list[Answer]:
    """Embeds every image and its captions; shown is how close they are."""
    seen_ND = model.embed_images(images, [None] * len(images))
    expect(len(images), len(seen_ND), "embeddings for images")
    answers = []
    for reference, seen_D in zip(references, seen_ND, strict=True):
        read_RD = model.embed_texts([said.phrase for said in reference.said])
        said = (
            Said(
                phrase=f"{float(seen_D @ read_D):.2f}: {true.phrase}",
                seen_as=tuple(map(float, seen_D)),
                read_as=tuple(map(float, read_D)),
            )
            for true, read_D in zip(reference.said, read_RD, strict=True)
        )
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def score_region_retrieval(answers: Sequence[Answer], references: Sequence[Answer], _tools: Tools) -> dict[str, float]:
    """Lets every region look for its text among the distinct ones, and every text for a region that it describes."""
    texts, seen_RD, read_RD = pooled(answers, references)
    candidates, candidates_CD = distinct(texts, read_RD)
    to_text = ranks_of(seen_RD, texts, candidates_CD, candidates)
    to_region = ranks_of(read_RD, texts, seen_RD, texts)
    return {
        "region_to_text10": recall(to_text, 10),
        "text_to_region10": recall(to_region, 10),
        "region_to_text1": recall(to_text, 1),
        "text_to_region1": recall(to_region, 1),
    }


def score_recognition(answers: Sequence[Answer], references: Sequence[Answer], _tools: Tools) -> dict[str, float]:
    """Gives every region the class whose name is nearest; the classes are all names in the data."""
    texts, seen_RD, read_RD = pooled(answers, references)
    classes, classes_CD = distinct(texts, read_RD)
    ranks = ranks_of(seen_RD, texts, classes_CD, classes)
    return {
        "class_accuracy": class_mean(ranks, texts, 1),
        "class_accuracy5": class_mean(ranks, texts, 5),
        "accuracy": recall(ranks, 1),
    }


def score_image_retrieval(answers: Sequence[Answer], references: Sequence[Answer], _tools: Tools) -> dict[str, float]:
    """Lets every image look for one of its captions, and every caption for its image."""
    owners = [str(number) for number, reference in enumerate(references) for _ in reference.said]
    _, seen_RD, read_RD = pooled(answers, references)
    images, images_CD = distinct(owners, seen_RD)
    to_text = ranks_of(images_CD, images, read_RD, owners)
    to_image = ranks_of(read_RD, owners, images_CD, images)
    return {
        "image_to_text1": recall(to_text, 1),
        "text_to_image1": recall(to_image, 1),
        "image_to_text5": recall(to_text, 5),
        "text_to_image5": recall(to_image, 5),
        "image_to_text10": recall(to_text, 10),
        "text_to_image10": recall(to_image, 10),
    }


def _short(region: Region) -> str:
    return region.phrase.strip() or next(iter(described(region)), "")


def pooled(answers: Sequence[Answer], references: Sequence[Answer]) -> tuple[list[str], Vectors, Vectors]:
    """Joins what all images have: the true texts, what was seen, what was read."""
    said = [one for answer in answers for one in answer.said]
    texts = [plain_words(one.phrase) for reference in references for one in reference.said]
    seen, read = ([vector for one in said if (vector := pick(one)) is not None] for pick in _PICKS)
    expect(len(texts), len(seen), "embeddings of what is seen")
    expect(len(texts), len(read), "embeddings of what is said")
    return texts, np.array(seen, dtype=np.float32), np.array(read, dtype=np.float32)


_PICKS: tuple[Callable[[Said], tuple[float, ...] | None], ...] = (lambda one: one.seen_as, lambda one: one.read_as)

TIES = "Of equally close candidates the wrong ones count first."
REGION_MEANINGS = {
    "region_to_text10": "regions whose text is among the ten nearest",
    "text_to_region10": "texts that have a region of theirs among the ten nearest",
    "region_to_text1": "regions whose text is the nearest",
    "text_to_region1": "texts whose nearest region is one of theirs",
}
REGION_RETRIEVAL = Benchmark(
    reference=read_regions,
    ability=Embeds,
    ask=embed_regions,
    score=score_region_retrieval,
    protocol=(
        "Region retrieval over all images asked about (CLOC's protocol takes 2,000 of GRIT): a region looks for its "
        "text among all distinct texts, a text for a region among all. Texts repeat across images; any region with the "
        f"same text is a right answer. {TIES}"
    ),
    meanings=REGION_MEANINGS,
    compat=frozenset(),
    sought="regions",
)
REGION_RECOGNITION = Benchmark(
    reference=read_regions,
    ability=Embeds,
    ask=embed_regions,
    score=score_recognition,
    protocol=(
        "Zero-shot recognition of given boxes or masks: the phrases of the data are the class names, bare, without a "
        "template (80 on COCO, 1,203 on LVIS); a region belongs to the class whose name is nearest."
    ),
    meanings={
        "class_accuracy": "regions named right, the mean over classes",
        "class_accuracy5": "regions whose class is among the five nearest, the mean over classes",
        "accuracy": "regions named right",
    },
    compat=frozenset(),
)
IMAGE_RETRIEVAL = Benchmark(
    reference=read_captions,
    ability=Embeds,
    ask=embed_captions,
    score=score_image_retrieval,
    protocol=(
        "Image-text retrieval over all images asked about: an image is right with any of its captions, a caption with "
        f"its own image alone, as on COCO. {TIES}"
    ),
    meanings={
        "image_to_text1": "images whose nearest caption is one of theirs",
        "text_to_image1": "captions whose nearest image is theirs",
        "image_to_text5": "images that have a caption of theirs among the five nearest",
        "text_to_image5": "captions whose image is among the five nearest",
        "image_to_text10": "images that have a caption of theirs among the ten nearest",
        "text_to_image10": "captions whose image is among the ten nearest",
    },
    compat=frozenset(),
    sought="images",
)
