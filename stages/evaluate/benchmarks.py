"""BENCHMARKS: what a model is asked, how the truth is read from samples, and how the answers are scored."""

from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from orchestrator.errors import StageFailed
from orchestrator.records import record
from stages.evaluate import captions, masks
from stages.evaluate.answers import Answer, Said, answer_of
from stages.family import GroundedCaption, Model
from stages.samples import Region, Sample
from stages.vision import Mask, mask_from_rle, rle_from_mask, union


@record
class Benchmark:
    """One question to a model, put to every image that can answer it."""

    reference: Callable[[Sample], Answer | None]  # None: this sample holds nothing to ask about
    ask: Callable[[Model, Sequence[Image.Image], Sequence[Answer], int], list[Answer]]
    score: Callable[[Sequence[Answer], Sequence[Answer]], dict[str, float]]  # answers, references
    protocol: str  # what a reader of the scores must know
    meanings: Mapping[str, str]  # score -> what it is


def read_grounded(sample: Sample) -> Answer | None:
    """Reads the grounded caption: every stretch of the caption that means regions, with their masks joined.

    A region that the caption mentions more than once counts once, where it is mentioned first.
    """
    by_span: dict[tuple[int, int], list[Mask]] = {}
    for region in sample.regions:
        if region.mask is not None and region.spans:
            by_span.setdefault(min(region.spans), []).append(mask_from_rle(region.mask))
    if not by_span:
        return None
    said = (
        Said(phrase=sample.caption[start:end], span=(start, end), mask=rle_from_mask(union(found)))
        for (start, end), found in sorted(by_span.items())
    )
    return Answer(caption=sample.caption, said=tuple(said))


def ask_grounded(
    model: Model, images: Sequence[Image.Image], _references: Sequence[Answer], max_new_tokens: int
) -> list[Answer]:
    """Asks for a grounded caption of each image."""
    grounded = model.ground(images, max_new_tokens=max_new_tokens)
    _expect(len(images), len(grounded), "grounded captions for images")
    for image, caption in zip(images, grounded, strict=True):
        _expect_sizes(image, caption)
    return [answer_of(caption) for caption in grounded]


def score_grounded(answers: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Scores captions, masks and phrases of GCG."""
    pairs = [
        masks.Pair(predicted=answer.grounding(), truth=reference.grounding())
        for answer, reference in zip(answers, references, strict=True)
    ]
    said = [pair.predicted.phrases for pair in pairs]
    true = [pair.truth.phrases for pair in pairs]
    texts, truths = [answer.caption for answer in answers], [[reference.caption] for reference in references]
    return {
        "miou": masks.mean_iou(pairs),
        "miou_strict": masks.mean_iou_strict(pairs),
        "ap50": masks.ap50(pairs),
        "mask_recall": masks.mask_recall(pairs, captions.phrase_similarity),
        "mask_recall_strict": masks.mask_recall_strict(pairs, captions.phrase_similarity),
        "mask_recall_exact": masks.mask_recall_strict(pairs, captions.phrases_equal),
        "phrase_exact": captions.exact_share(said, true),
        "phrases_found": captions.found_share(said, true),
        "phrases_right": captions.found_share(true, said),
        "meteor": captions.meteor(texts, truths),
        "cider": captions.cider(texts, truths),
    }


def read_regions(sample: Sample) -> Answer | None:
    """Reads the described regions: those with a caption, or with a phrase that is no part of the image's caption."""
    said = [
        Said(phrase=text, box_xyxy_px=region.box_xyxy_px)
        for region in sample.regions
        if not region.crowd and (text := _description(region))
    ]
    return Answer(caption="", said=tuple(said)) if said else None


def ask_regions(
    model: Model, images: Sequence[Image.Image], references: Sequence[Answer], max_new_tokens: int
) -> list[Answer]:
    """Asks for a caption of every box of the references."""
    boxes = [[said.box_xyxy_px for said in reference.said if said.box_xyxy_px] for reference in references]
    described = model.describe_regions(images, boxes, max_new_tokens=max_new_tokens)
    _expect(len(images), len(described), "lists of region captions for images")
    answers = []
    for texts, places in zip(described, boxes, strict=True):
        _expect(len(places), len(texts), "region captions for boxes")
        said = (Said(phrase=text, box_xyxy_px=box) for text, box in zip(texts, places, strict=True))
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def score_regions(answers: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Scores region captions, every box an item of its own."""
    texts = [said.phrase for answer in answers for said in answer.said]
    truths = [[said.phrase] for reference in references for said in reference.said]
    equal = [captions.phrases_equal(text, truth[0]) for text, truth in zip(texts, truths, strict=True)]
    return {
        "meteor": captions.meteor(texts, truths),
        "cider": captions.cider(texts, truths),
        "exact": sum(equal) / len(equal) if equal else 0.0,
    }


def _description(region: Region) -> str:
    return region.caption.strip() or ("" if region.spans else region.phrase.strip())


def _expect(wanted: int, given: int, what: str) -> None:
    if wanted != given:
        raise StageFailed(f"the model gave {given} {what}, asked were {wanted}")


def _expect_sizes(image: Image.Image, grounded: GroundedCaption) -> None:
    for part in grounded.phrases:
        if part.mask_HW.shape != (image.height, image.width):
            shape = " x ".join(str(side) for side in part.mask_HW.shape)
            raise StageFailed(
                f"the mask of {part.phrase!r} has {shape} pixels (height x width), "
                f"its image {image.height} x {image.width}"
            )


TEXT_PROTOCOL = (
    "METEOR is NLTK's with exact and stemmed matches, without WordNet synonyms; CIDEr is CIDEr-D with document "
    "frequencies over these references, on its scale of 0 to 10. Text is cut by a simple Penn-Treebank-like "
    "tokenizer. Numbers of papers come from pycocoevalcap and are close to these, not equal."
)
TEXT_MEANINGS = {
    "meteor": "METEOR, exact and stemmed matches (0 to 1)",
    "cider": "CIDEr-D (0 to 10)",
}

BENCHMARKS: Mapping[str, Benchmark] = {
    "gcg": Benchmark(
        reference=read_grounded,
        ask=ask_grounded,
        score=score_grounded,
        protocol=(
            "Grounded conversation generation: one greedy caption an image; a reference phrase's regions are joined "
            "into one mask. mIoU, AP50 and mask recall follow the released GLaMM evaluation: matched greedily by IoU, "
            "mIoU over matched pairs only, recall's matching stops at its first miss. The strict forms assign masks "
            "one to one (Hungarian method) and count every missed reference mask as 0. Phrase similarity is lexical "
            "(F1 of word sets, articles left out, at least 0.5), not BERT's cosine. " + TEXT_PROTOCOL
        ),
        meanings={
            "miou": "mean IoU of matched masks (GLaMM's mIoU)",
            "miou_strict": "mean IoU over all reference masks, missed ones 0",
            "ap50": "mask AP at IoU 0.5, classes and scores ignored",
            "mask_recall": "reference phrases found: IoU and phrase similarity at least 0.5 (GLaMM's recall)",
            "mask_recall_strict": "the same after a one-to-one assignment",
            "mask_recall_exact": "the same, and the phrase equal word for word",
            "phrase_exact": "images whose set of phrases equals the reference's",
            "phrases_found": "reference phrases said word for word",
            "phrases_right": "said phrases that are in the reference word for word",
            **TEXT_MEANINGS,
        },
    ),
    "region_captions": Benchmark(
        reference=read_regions,
        ask=ask_regions,
        score=score_regions,
        protocol=(
            "Region captions: one greedy caption for each box; every box is an item with one reference. "
            + TEXT_PROTOCOL
        ),
        meanings={**TEXT_MEANINGS, "exact": "captions equal to the reference word for word, articles left out"},
    ),
}
