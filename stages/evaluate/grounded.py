"""GCG, grounded conversation generation: a caption whose phrases carry masks."""

from collections.abc import Sequence

from PIL import Image

from stages.evaluate import captions, masks
from stages.evaluate.answers import Answer, Said, answer_of
from stages.evaluate.benchmark import Benchmark, Tools, expect, expect_size
from stages.family import Grounds
from stages.samples import Sample
from stages.vision import Mask, mask_from_rle, rle_from_mask, union

GRAND_F = "grand_f"  # whose regions are labels of the benchmark, whether the caption says them or not


def read_grounded(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads the grounded caption: every stretch of the caption that means regions, with their masks joined.

    A region that the caption mentions more than once counts once, where it is mentioned first.
    """
    by_span: dict[tuple[int, int], list[Mask]] = {}
    for region in sample.regions:
        if region.mask is not None and region.spans:
            by_span.setdefault(min(region.spans), []).append(mask_from_rle(region.mask))
    if not by_span:
        return None
    said = tuple(
        Said(phrase=sample.caption[start:end], span=(start, end), mask=rle_from_mask(union(found)))
        for (start, end), found in sorted(by_span.items())
    )
    return Answer(caption=sample.caption, said=said, unpaired=_labels(sample, len(said)))


def _labels(sample: Sample, num_phrases: int) -> masks.Grounding | None:
    """Lists the labels of a GranD-f sample, of which some stand nowhere in the caption; None if all do."""
    labels = [(one.phrase, one.mask) for one in sample.regions if one.source == GRAND_F and one.mask is not None]
    if len(labels) <= num_phrases:
        return None
    return masks.Grounding(phrases=tuple(text for text, _ in labels), masks=tuple(mask for _, mask in labels))


def ask_grounded(
    model: Grounds, images: Sequence[Image.Image], _references: Sequence[Answer], max_new_tokens: int
) -> list[Answer]:
    """Asks for a grounded caption of each image."""
    grounded = model.ground(images, max_new_tokens=max_new_tokens)
    expect(len(images), len(grounded), "grounded captions for images")
    for image, caption in zip(images, grounded, strict=True):
        for part in caption.phrases:
            expect_size(image, part.mask_HW, part.phrase)
        for mask_HW in caption.unpaired.masks_HW if caption.unpaired else ():
            expect_size(image, mask_HW, "[SEG]")
    return [answer_of(caption) for caption in grounded]


def score_grounded(answers: Sequence[Answer], references: Sequence[Answer], tools: Tools) -> dict[str, float]:
    """Scores captions, masks and phrases of GCG."""
    both = list(zip(answers, references, strict=True))
    written = [masks.Pair(predicted=mine.as_written(), truth=true.as_written()) for mine, true in both]
    pairs = [masks.Pair(predicted=mine.grounding(), truth=true.grounding()) for mine, true in both]
    said = [pair.predicted.phrases for pair in pairs]
    true = [pair.truth.phrases for pair in pairs]
    alike = tools.likeness.prepare({phrase for pair in (*written, *pairs) for phrase in pair.phrases()})
    worded = tools.captions.score(
        [answer.caption for answer in answers], [[reference.caption] for reference in references]
    )
    return {
        "miou": masks.mean_iou(written),
        "miou_strict": masks.mean_iou_strict(pairs),
        "ap50": masks.ap50(written),
        "mask_recall": masks.mask_recall(written, alike),
        "mask_recall_strict": masks.mask_recall_strict(pairs, alike),
        "mask_recall_exact": masks.mask_recall_strict(pairs, captions.phrases_equal),
        "phrase_exact": captions.exact_share(said, true),
        "phrases_found": captions.found_share(said, true),
        "phrases_right": captions.found_share(true, said),
        "meteor": worded.meteor,
        "cider": worded.cider,
    }


GCG = Benchmark(
    reference=read_grounded,
    ability=Grounds,
    ask=ask_grounded,
    score=score_grounded,
    protocol=(
        "Grounded conversation generation: one greedy caption an image; a reference phrase's regions are joined "
        "into one mask. mIoU, AP50 and mask recall follow the released GLaMM evaluation: matched greedily by IoU, "
        "mIoU over matched pairs only, recall's matching stops at its first miss, phrases and masks belong together by "
        "their numbers. The strict forms look at phrases that carry a mask, assign masks one to one (Hungarian method) "
        "and count every missed reference mask as 0."
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
        "meteor": "METEOR of the captions (0 to 1)",
        "cider": "CIDEr-D of the captions (0 to 10)",
    },
    compat=frozenset({"miou", "ap50", "mask_recall", "meteor", "cider"}),
    worded=frozenset({"meteor", "cider"}),
    likened=frozenset({"mask_recall", "mask_recall_strict"}),
)
