"""Region captions: boxes in, a caption for each."""

from collections.abc import Sequence

from PIL import Image

from stages.evaluate import captions
from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark, Tools, expect
from stages.expressions import described
from stages.family import DescribesRegions
from stages.samples import Sample


def read_regions(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads the described regions: those with a caption, or with phrases that are no part of the image's caption."""
    said = [
        Said(phrase=texts[0], box_xyxy_px=region.box_xyxy_px, others=texts[1:])
        for region in sample.regions
        if not region.crowd and (texts := described(region))
    ]
    return Answer(caption="", said=tuple(said)) if said else None


def ask_regions(
    model: DescribesRegions, images: Sequence[Image.Image], references: Sequence[Answer], max_new_tokens: int
) -> list[Answer]:
    """Asks for a caption of every box of the references."""
    boxes = [[said.box_xyxy_px for said in reference.said if said.box_xyxy_px] for reference in references]
    told = model.describe_regions(images, boxes, max_new_tokens=max_new_tokens)
    expect(len(images), len(told), "lists of region captions for images")
    answers = []
    for texts, places in zip(told, boxes, strict=True):
        expect(len(places), len(texts), "region captions for boxes")
        said = (Said(phrase=text, box_xyxy_px=box) for text, box in zip(texts, places, strict=True))
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def score_regions(answers: Sequence[Answer], references: Sequence[Answer], tools: Tools) -> dict[str, float]:
    """Scores region captions: every text of a box an item of its own, and in the strict forms every box."""
    texts = [said.phrase for answer in answers for said in answer.said]
    truths = [(said.phrase, *said.others) for reference in references for said in reference.said]
    both = list(zip(texts, truths, strict=True))
    items = [(text, truth) for text, several in both for truth in several]
    by_text = tools.captions.score([text for text, _ in items], [[truth] for _, truth in items])
    by_box = by_text if len(items) == len(both) else tools.captions.score(texts, truths)
    equal = [any(captions.phrases_equal(text, truth) for truth in several) for text, several in both]
    return {
        "meteor": by_text.meteor,
        "cider": by_text.cider,
        "meteor_strict": by_box.meteor,
        "cider_strict": by_box.cider,
        "exact": sum(equal) / len(equal) if equal else 0.0,
    }


REGION_CAPTIONS = Benchmark(
    reference=read_regions,
    ability=DescribesRegions,
    ask=ask_regions,
    score=score_regions,
    protocol=(
        "Region captions: one greedy caption for each box. As in the released GLaMM evaluation every expression that "
        "the data has for a box is an item with one reference; in the strict forms every box is one item, and all its "
        "expressions are references."
    ),
    meanings={
        "meteor": "METEOR, an item an expression (0 to 1)",
        "cider": "CIDEr-D, an item an expression (0 to 10)",
        "meteor_strict": "METEOR, an item a box (0 to 1)",
        "cider_strict": "CIDEr-D, an item a box (0 to 10)",
        "exact": "captions equal to a reference word for word, articles left out",
    },
    compat=frozenset({"meteor", "cider"}),
    worded=frozenset({"meteor", "cider", "meteor_strict", "cider_strict"}),
)
