"""Pictures and conversations to a GlammBatch; the same code for training and for answering."""

import logging
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.glamm.batches import IGNORED, GlammBatch, Seen
from stages.glamm.config import Blueprint
from stages.glamm.features import ImageFeatures
from stages.glamm.prompts import Conversation
from stages.glamm.tokenizer import Vocabulary
from stages.prompter import square_pixels
from stages.vision import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalised

log = logging.getLogger(__name__)

MOST_OBLONG = 8  # of pictures that are centre-cropped as they are: photographs are less


@record
class Example:
    """One image with its conversation, and one mask for each [SEG]."""

    image: Image.Image
    conversation: Conversation
    masks: tuple[NDArray[np.bool_], ...] = ()
    features: ImageFeatures | None = None  # None: of the pixels
    seed: int = 0  # of the points at which masks are compared, below 2**63


@record
class Tokens:
    """A conversation as ids, image tokens in their places."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    image: tuple[int, int]  # [start, end) of the image tokens
    boxes: tuple[int, ...]  # places of <bbox>
    before_segs: tuple[int, ...]  # places of the tokens before [SEG]


class Collator:
    """Builds batches for one model and one vocabulary."""

    def __init__(self, blueprint: Blueprint, vocabulary: Vocabulary, *, mask_side_px: int | None = None) -> None:
        """Reads the sizes that images must have; `mask_side_px` as in `task.Weights`."""
        self.blueprint, self.vocabulary = blueprint, vocabulary
        self.clip_size: int = blueprint.vision["image_size"]
        self.sam_size = blueprint.canvas_px
        self._mask_side = mask_side_px
        self._told = False

    def batch(self, examples: Sequence[Example], *, packs: Sequence[int] | None = None) -> GlammBatch:
        """Pads the sequences to the longest; boxes and masks whose token was cut off are left out, which is told once.

        `packs` says how many of the examples share each sequence; None: every one has its own.
        """
        tokens = [self.tokens(example.conversation) for example in examples]
        self._tell_of_cuts(examples, tokens)
        rows = list(_packed(tokens, packs or [1] * len(tokens)))
        boxes = [self._boxes(example, cut) for example, cut in zip(examples, tokens, strict=True)]
        masks = [self._masks(example, cut) for example, cut in zip(examples, tokens, strict=True)]
        pointed = [number for number, some in enumerate(masks) if len(some)]
        segs = _segs(rows, masks, pointed)
        labels_BL = _padded([row.labels for row in rows], IGNORED)
        clip_pixels_BCHW, sam_pixels_PCHW, seen = self._seen(examples, pointed or [0])  # every batch points
        return GlammBatch(
            clip_pixels_BCHW=clip_pixels_BCHW,
            sam_pixels_PCHW=sam_pixels_PCHW,
            seen=seen,
            sam_sizes_B2=torch.tensor([self.sam_inside(example.image) for example in examples]),
            ids_BL=_padded([row.ids for row in rows], self.vocabulary.end_id),
            labels_BL=labels_BL,
            attention_BL=_padded([(1,) * len(row.ids) for row in rows], 0).bool(),
            predicting_T=_predicting(labels_BL),
            position_BL=_positions(rows) if len(rows) < len(tokens) else None,
            is_image_BL=_marked(rows, [[place for image in row.images for place in image] for row in rows]),
            is_box_BL=_marked(rows, [row.boxes for row in rows]),
            boxes_R4=torch.cat(boxes),
            box_image_R=torch.tensor([i for i, some in enumerate(boxes) for _ in some], dtype=torch.long),
            seg_sequence_N=segs[0],
            seg_place_N=segs[1],
            seg_image_N=segs[2],
            seg_seed_N=_seeds(examples, masks),
            masks=masks,
        )

    def tokens(self, conversation: Conversation) -> Tokens:
        """Encodes text, opens room for the image, and labels what the assistant says."""
        words = self.vocabulary
        text_ids, offsets = words.encode(conversation.text)
        at = text_ids.index(words.image_id) + 1
        count = self.blueprint.num_image_tokens
        said = [
            token if any(start <= low < end for start, end in conversation.answers) else IGNORED
            for token, (low, _) in zip(text_ids, offsets, strict=True)
        ]
        limit = self.blueprint.max_tokens
        if at + count > limit:
            raise InputError(f"max_tokens: {limit} leave no room for the {count} tokens of an image")
        # the image tokens carry the id of <im_end>: never read, for image features take their place
        ids = (text_ids[:at] + [words.image_id] * count + text_ids[at:])[:limit]
        labels = (said[:at] + [IGNORED] * count + said[at:])[:limit]
        after = range(at + count, len(ids))
        return Tokens(
            ids=tuple(ids),
            labels=tuple(labels),
            image=(at, at + count),
            boxes=tuple(place for place in after if ids[place] == words.box_id),
            before_segs=tuple(place - 1 for place in after if ids[place] == words.seg_id),
        )

    def clip_pixels(self, image: Image.Image) -> Tensor:
        """Resizes to the global encoder's square: squashed whole, padded, or short side first and centre cropped."""
        side = self.clip_size
        if self.blueprint.centre_crop:
            image = _middle(image)
            scale = side / min(image.size)
            width, height = (max(side, round(length * scale)) for length in image.size)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
        elif self.blueprint.padded:
            return square_pixels(image, side)
        else:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return torch.from_numpy(normalised(image, CLIP_MEAN, CLIP_STD))

    def boxes(self, boxes_xyxy_px: Sequence[Sequence[float]], image: Image.Image) -> Tensor:
        """Measures boxes in units of their image, or of the square that it is padded to, and cuts what is outside."""
        width, height = (max(image.size),) * 2 if self.blueprint.padded else image.size
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes_R4 = torch.tensor([tuple(box) for box in boxes_xyxy_px], dtype=torch.float32).reshape(-1, 4)
        return (boxes_R4 / scale).clamp(0, 1)

    def sam_pixels(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """Resizes the longest side to SAM's square and pads right and below; also returns height and width inside."""
        height, width = self.sam_inside(image)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        square = torch.zeros(3, self.sam_size, self.sam_size)
        square[:, :height, :width] = torch.from_numpy(normalised(resized, IMAGENET_MEAN, IMAGENET_STD))
        return square, (height, width)

    def sam_inside(self, image: Image.Image) -> tuple[int, int]:
        """Returns height and width of the image inside SAM's square."""
        return fit_inside(image.size, self.sam_size)

    def _seen(self, examples: Sequence[Example], pointed: Sequence[int]) -> tuple[Tensor, Tensor, Seen | None]:
        """Returns the pixels for both encoders, or what they made of them, and then no pixels."""
        features = [example.features for example in examples]
        kept = [found for found in features if found is not None]
        if not kept:
            clip = [self.clip_pixels(example.image) for example in examples]
            sam = [self.sam_pixels(examples[number].image)[0] for number in pointed]
            return torch.stack(clip), torch.stack(sam), None
        assert len(kept) == len(examples)  # noqa: S101 - a task reads them of all samples or of none
        seen = Seen(
            patches_KBNC=torch.stack([found.patches_KNC for found in kept], dim=1),
            images_PCHW=torch.stack([kept[number].image_CHW for number in pointed]),
        )
        return torch.empty(len(examples), 3, 0, 0), torch.empty(len(pointed), 3, 0, 0), seen

    def _tell_of_cuts(self, examples: Sequence[Example], tokens: Sequence[Tokens]) -> None:
        boxes = sum(
            len(one.conversation.boxes_xyxy_px) - len(cut.boxes) for one, cut in zip(examples, tokens, strict=True)
        )
        masks = sum(len(one.masks) - len(cut.before_segs) for one, cut in zip(examples, tokens, strict=True))
        if not self._told and (boxes > 0 or masks > 0):
            self._told = True
            log.warning(
                "conversations are cut after max_tokens, %d: %d boxes and %d masks whose tokens lay behind are left "
                "out of a batch, and whatever is cut off later without another word",
                *(self.blueprint.max_tokens, max(boxes, 0), max(masks, 0)),
            )

    def _boxes(self, example: Example, tokens: Tokens) -> Tensor:
        return self.boxes(example.conversation.boxes_xyxy_px[: len(tokens.boxes)], example.image)

    def _masks(self, example: Example, tokens: Tokens) -> Tensor:
        width, height = example.image.size
        kept = example.masks[: len(tokens.before_segs)]
        if not kept:
            return torch.zeros(0, height, width, dtype=torch.bool)
        if self._mask_side is None:
            return torch.from_numpy(np.stack(kept))
        size = fit_inside(example.image.size, self._mask_side)
        return torch.cat([_shrunk(torch.from_numpy(mask), size) for mask in kept])  # one by one: they may be large


def fit_inside(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Returns height and width of an image of this width and height whose longest side is brought to `side_px`."""
    scale = side_px / max(size)
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _middle(image: Image.Image) -> Image.Image:
    """Cuts off what a centre crop leaves out anyway: a line of one pixel's height would grow to gigabytes before it."""
    width, height = (min(length, MOST_OBLONG * min(image.size)) for length in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *([fill] * (longest - len(row)))] for row in rows], dtype=torch.long)


def _marked(rows: Sequence["_Row"], places: Sequence[Sequence[int]]) -> Tensor:
    marks = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.bool)
    for row, marked in enumerate(places):
        marks[row, list(marked)] = True
    return marks


@record
class _Row:
    """One sequence: the conversations that share it, one after the other."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    lengths: tuple[int, ...]  # of its conversations
    images: tuple[range, ...]  # places of their image tokens
    boxes: tuple[int, ...]
    before_segs: tuple[tuple[int, ...], ...]  # of each conversation


def _packed(tokens: Sequence[Tokens], packs: Sequence[int]) -> Iterator[_Row]:
    left = iter(tokens)
    for count in packs:
        own = list(islice(left, count))
        starts = [0, *accumulate(len(cut.ids) for cut in own)]
        moved = list(zip(own, starts, strict=False))  # the last start is the end of the row
        yield _Row(
            ids=tuple(token for cut in own for token in cut.ids),
            labels=tuple(label for cut in own for label in cut.labels),
            lengths=tuple(len(cut.ids) for cut in own),
            images=tuple(range(cut.image[0] + start, cut.image[1] + start) for cut, start in moved),
            boxes=tuple(place + start for cut, start in moved for place in cut.boxes),
            before_segs=tuple(tuple(place + start for place in cut.before_segs) for cut, start in moved),
        )


def _positions(rows: Sequence[_Row]) -> Tensor:
    """Counts the tokens of each conversation from 0; what pads a sequence counts as one more conversation."""
    longest = max(len(row.ids) for row in rows)
    counted = [[*row.lengths, longest - len(row.ids)] for row in rows]
    return torch.tensor([[place for length in lengths for place in range(length)] for lengths in counted])


def _segs(rows: Sequence[_Row], masks: Sequence[Tensor], pointed: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tells of each mask its sequence, the place of the token before its [SEG], and its image among the pointed."""
    among = {number: order for order, number in enumerate(pointed)}
    conversations = [(row, places) for row, held in enumerate(rows) for places in held.before_segs]
    found = [
        (row, place, among[number])
        for number, (row, places) in enumerate(conversations)
        for place in places[: len(masks[number])]
    ]
    sequence_N, place_N, image_N = (torch.tensor([one[at] for one in found], dtype=torch.long) for at in range(3))
    return sequence_N, place_N, image_N


def _predicting(labels_BL: Tensor) -> Tensor:
    row_T, place_T = (labels_BL[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return row_T * labels_BL.shape[1] + place_T


def _seeds(examples: Sequence[Example], masks: Sequence[Tensor]) -> Tensor:
    seeds = [one.seed ^ number for one, some in zip(examples, masks, strict=True) for number in range(len(some))]
    return torch.tensor(seeds, dtype=torch.long)


def _shrunk(mask_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Averages a mask over the pixels of another size: 1 x H x W, 0..1."""
    return functional.interpolate(mask_HW[None, None].float(), size=size, mode="area")[0]
