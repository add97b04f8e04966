"""What is said about a sample, in the way of its source's kind; pure text and run lengths, no torch.

Shapes, and how much of one image is asked about at most, follow GLaMM's release (arXiv 2311.03356, groundingLMM); the
wordings are our own.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.glamm.prompts import (
    BBOX,
    CAPTION_QUESTIONS,
    GCG_QUESTIONS,
    PHRASE_END,
    PHRASE_START,
    POINTED_REGION_QUESTIONS,
    REGION_GROUP_QUESTIONS,
    REGION_QUESTIONS,
    REGIONS,
    SEG,
    SEGMENTATION_ANSWERS,
    SEGMENTATION_QUESTIONS,
    TARGET,
    Conversation,
    Span,
    choose,
    clean,
    make_conversation,
    weave,
)
from stages.samples import Region, Rle, Sample, Turn

_BRANCH = re.compile(r"\w-\w")  # "wall-brick": a branch of COCO-Stuff's tree of classes, not a word; GLaMM skips them


@record
class Rules:
    """How a sample is spoken of."""

    end: str  # the mark that ends an answer
    max_regions: int = 10  # of one image, asked about by their boxes
    max_targets: int = 3  # classes or expressions of one image, to be segmented
    wordings: int | None = None  # of each bank of questions or answers, the first ones; None = all


@record
class Kind:
    """A way to learn from a sample."""

    speak: Callable[[Sample, random.Random, Rules], Conversation]
    needs: str  # of a sample
    boxes: bool = False  # its questions may hold <bbox>
    masks: bool = False  # its answers may hold [SEG]
    targets: bool = False  # and then at most `max_targets` of them


def converse(kind: str, sample: Sample, *, seed: int, rules: Rules) -> Conversation:
    """Speaks about a sample, a function of the seed; InputError where it holds nothing that its kind asks for."""
    conversation = KINDS[kind].speak(sample, random.Random(seed), rules)  # noqa: S311 - wording, not secrets
    if not conversation.answers:
        raise InputError(f"sample {sample.key!r} holds nothing for the task {kind}: it needs {KINDS[kind].needs}")
    return conversation


def _caption(sample: Sample, chance: random.Random, rules: Rules) -> Conversation:
    """Asks for a caption, one of those that the sample has, or repeats the turns that it brings."""
    if sample.turns:
        turns = [Turn(question=clean(turn.question), answer=clean(turn.answer)) for turn in sample.turns]
        return make_conversation(turns, end=rules.end)
    captions = [text for text in (sample.caption, *(more.text for more in sample.more_captions)) if text]
    if not captions:
        return make_conversation((), end=rules.end)
    question = choose(CAPTION_QUESTIONS[: rules.wordings], chance)
    return make_conversation([Turn(question=question, answer=clean(choose(captions, chance)))], end=rules.end)


def _region(sample: Sample, chance: random.Random, rules: Rules) -> Conversation:
    """Asks what is in each of some regions, one turn a region."""
    chosen = described(sample.regions, chance, rules.max_regions)
    turns = [Turn(question=choose(REGION_QUESTIONS[: rules.wordings], chance), answer=text) for _, text in chosen]
    return make_conversation(turns, end=rules.end, boxes_xyxy_px=[region.box_xyxy_px for region, _ in chosen])


def _region_group(sample: Sample, chance: random.Random, rules: Rules) -> Conversation:
    """Asks for the caption whose phrases mean some regions, all of them given at once."""
    meant = [region for region in sample.regions if region.spans and not region.crowd][: rules.max_regions]
    if not meant:
        return make_conversation((), end=rules.end)
    named = ", ".join(f"region{number} {BBOX}" for number in range(1, len(meant) + 1))
    question = choose(REGION_GROUP_QUESTIONS[: rules.wordings], chance).replace(REGIONS, named)
    turn = Turn(question=question, answer=clean(sample.caption))
    return make_conversation([turn], end=rules.end, boxes_xyxy_px=[region.box_xyxy_px for region in meant])


def _gcg(sample: Sample, chance: random.Random, rules: Rules) -> Conversation:
    """Asks for a caption whose phrases carry masks: every one that is grounded, however many there are."""
    captions = _grounded(sample)
    if not captions:
        return make_conversation((), end=rules.end)
    caption, phrases = captions[0] if len(captions) == 1 else choose(captions, chance)
    answer, used = weave(caption, phrases)
    turn = Turn(question=choose(GCG_QUESTIONS[: rules.wordings], chance), answer=answer)
    return make_conversation([turn], end=rules.end, masks=used)


def _pointed_region(sample: Sample, chance: random.Random, rules: Rules) -> Conversation:
    """Asks what each of some segments is, box given, and for its pixels."""
    chosen = described([region for region in sample.regions if region.mask is not None], chance, rules.max_regions)
    turns = [
        Turn(
            question=choose(POINTED_REGION_QUESTIONS[: rules.wordings], chance),
            answer=f"{PHRASE_START} {text} {PHRASE_END} {SEG}",
        )
        for _, text in chosen
    ]
    boxes = [region.box_xyxy_px for region, _ in chosen]
    masks = [(region.mask,) for region, _ in chosen if region.mask is not None]
    return make_conversation(turns, end=rules.end, boxes_xyxy_px=boxes, masks=masks)


def _referring(sample: Sample, chance: random.Random, rules: Rules) -> Conversation:
    """Asks for what some expressions mean, one turn an expression; two of them may mean one region."""
    targets = [
        (text, (region.mask,))
        for region in sample.regions
        if region.mask is not None and not region.crowd
        for text in _expressions(region)
    ]
    return _segmentation(targets, chance, rules)


def _semantic(sample: Sample, chance: random.Random, rules: Rules) -> Conversation:
    """Asks for all of some classes, one turn a class: everything of one name is joined, crowds too."""
    classes: dict[tuple[str, ...], list[Rle]] = {}
    for region in sample.regions:
        if region.mask is not None and not _BRANCH.search(region.phrase):
            classes.setdefault((region.phrase, *region.more_phrases), []).append(region.mask)
    targets = [
        (name, tuple(masks))
        for names, masks in classes.items()
        if (name := clean(names[0] if len(names) == 1 else choose(names, chance)))
    ]
    return _segmentation(targets, chance, rules)


def _segmentation(targets: Sequence[tuple[str, tuple[Rle, ...]]], chance: random.Random, rules: Rules) -> Conversation:
    """Asks for some targets in turn: what each is called, and the masks that make it up."""
    chosen = chance.sample(targets, min(rules.max_targets, len(targets)))
    turns = [
        Turn(
            question=choose(SEGMENTATION_QUESTIONS[: rules.wordings], chance).replace(TARGET, text),
            answer=choose(SEGMENTATION_ANSWERS[: rules.wordings], chance),
        )
        for text, _ in chosen
    ]
    return make_conversation(turns, end=rules.end, masks=[masks for _, masks in chosen])


KINDS: Mapping[str, Kind] = {
    "caption": Kind(speak=_caption, needs="turns or a caption"),
    "region": Kind(speak=_region, needs="a described region", boxes=True),
    "region_group": Kind(speak=_region_group, needs="regions that the caption speaks of", boxes=True),
    "gcg": Kind(speak=_gcg, needs="a caption", masks=True),
    "region_mask": Kind(speak=_pointed_region, needs="a described region with a mask", boxes=True, masks=True),
    "referring": Kind(speak=_referring, needs="an expression that means a mask", masks=True, targets=True),
    "semantic": Kind(speak=_semantic, needs="a class with a mask", masks=True, targets=True),
}


def described(regions: Sequence[Region], chance: random.Random, most: int | None) -> list[tuple[Region, str]]:
    """Draws up to `most` regions that something is said about, each with what that is; None = all."""
    said = [(region, text) for region in regions if not region.crowd and (text := _said(region, chance))]
    return said if most is None else chance.sample(said, min(most, len(said)))


def _said(region: Region, chance: random.Random) -> str:
    texts = _expressions(region)
    return choose(texts, chance) if len(texts) > 1 else "".join(texts)


def _expressions(region: Region) -> list[str]:
    """Lists what is said about a region: its caption, or else each phrase that means it."""
    texts = (region.caption,) if region.caption else (region.phrase, *region.more_phrases)
    return [text for text in map(clean, texts) if text]


def _grounded(sample: Sample) -> list[tuple[str, dict[Span, tuple[Rle, ...]]]]:
    """Lists the captions with phrases that mean masks, those of one phrase together; else the plain caption.

    A region that the first caption mentions more than once counts once, where it is mentioned first, as in evaluation.
    A phrase of which one region has no mask stays words: half of a mask would teach the wrong thing.
    """
    first: dict[Span, list[int]] = {}
    for place, region in enumerate(sample.regions):
        if region.spans:
            first.setdefault(min(region.spans), []).append(place)
    captions: list[tuple[str, Mapping[Span, Sequence[int]]]] = [(sample.caption, first)]
    captions += [(more.text, {one.span: one.regions for one in more.groundings}) for more in sample.more_captions]
    found = []
    for text, phrases in captions:
        masks = {span: [sample.regions[place].mask for place in places] for span, places in phrases.items()}
        whole = {span: tuple(part for part in parts if part) for span, parts in masks.items() if all(parts)}
        found.append((text, whole))
    return [one for one in found if one[1]] or [one for one in found[:1] if one[0]]
