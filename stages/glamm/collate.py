"""Pictures and conversations to a GlammBatch; the same code for training and for answering."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from orchestrator.records import record
from stages.glamm.batches import IGNORED, GlammBatch
from stages.glamm.config import Blueprint
from stages.glamm.prompts import Conversation
from stages.glamm.tokenizer import Vocabulary

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN, SAM_STD = (123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255)


@record
class Example:
    """One image with its conversation, and one mask for each [SEG]."""

    image: Image.Image
    conversation: Conversation
    masks: tuple[NDArray[np.bool_], ...] = ()


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

    def __init__(self, blueprint: Blueprint, vocabulary: Vocabulary) -> None:
        """Reads the sizes that images must have."""
        self.blueprint, self.vocabulary = blueprint, vocabulary
        self.clip_size: int = blueprint.vision["image_size"]
        self.sam_size = blueprint.canvas_px

    def batch(self, examples: Sequence[Example]) -> GlammBatch:
        """Pads the conversations to the longest; boxes and masks whose token was cut off are left out."""
        tokens = [self.tokens(example.conversation) for example in examples]
        sam = [self.sam_pixels(example.image) for example in examples]
        boxes = [self._boxes(example, cut) for example, cut in zip(examples, tokens, strict=True)]
        masks = [self._masks(example, cut) for example, cut in zip(examples, tokens, strict=True)]
        place, has = _padded_places(tokens)
        return GlammBatch(
            clip_pixels_BCHW=torch.stack([self.clip_pixels(example.image) for example in examples]),
            sam_pixels_BCHW=torch.stack([pixels for pixels, _ in sam]),
            sam_sizes_B2=torch.tensor([size for _, size in sam]),
            ids_BL=_padded([cut.ids for cut in tokens], self.vocabulary.end_id),
            labels_BL=_padded([cut.labels for cut in tokens], IGNORED),
            attention_BL=_padded([(1,) * len(cut.ids) for cut in tokens], 0).bool(),
            is_image_BL=_marked(tokens, [range(*cut.image) for cut in tokens]),
            is_box_BL=_marked(tokens, [cut.boxes for cut in tokens]),
            boxes_R4=torch.cat(boxes),
            box_image_R=torch.tensor([i for i, some in enumerate(boxes) for _ in some], dtype=torch.long),
            seg_place_BM=place,
            has_mask_BM=has,
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
        """Resizes to the global encoder's square: squashed whole, or short side first and centre cropped."""
        side = self.clip_size
        if self.blueprint.centre_crop:
            scale = side / min(image.size)
            width, height = (max(side, round(length * scale)) for length in image.size)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
        else:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return _normalised(image, CLIP_MEAN, CLIP_STD)

    def sam_pixels(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """Resizes the longest side to SAM's square and pads right and below; also returns height and width inside."""
        height, width = self.sam_inside(image)
        pixels = _normalised(image.resize((width, height), Image.Resampling.BILINEAR), SAM_MEAN, SAM_STD)
        square = torch.zeros(3, self.sam_size, self.sam_size)
        square[:, :height, :width] = pixels
        return square, (height, width)

    def sam_inside(self, image: Image.Image) -> tuple[int, int]:
        """Returns height and width of the image inside SAM's square."""
        scale = self.sam_size / max(image.size)
        return max(1, round(image.height * scale)), max(1, round(image.width * scale))

    def _boxes(self, example: Example, tokens: Tokens) -> Tensor:
        return unit_boxes(example.conversation.boxes_xyxy_px[: len(tokens.boxes)], example.image)

    def _masks(self, example: Example, tokens: Tokens) -> Tensor:
        width, height = example.image.size
        kept = example.masks[: len(tokens.before_segs)]
        if not kept:
            return torch.zeros(0, height, width, dtype=torch.bool)
        return torch.from_numpy(np.stack(kept))


def unit_boxes(boxes_xyxy_px: Sequence[Sequence[float]], image: Image.Image) -> Tensor:
    """Measures boxes in units of their image, and cuts off what lies outside: R x 4."""
    width, height = image.size
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes_R4 = torch.tensor([tuple(box) for box in boxes_xyxy_px], dtype=torch.float32).reshape(-1, 4)
    return (boxes_R4 / scale).clamp(0, 1)


def _normalised(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    pixels: NDArray[Any] = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    pixels = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *([fill] * (longest - len(row)))] for row in rows], dtype=torch.long)


def _marked(tokens: Sequence[Tokens], places: Sequence[Sequence[int]]) -> Tensor:
    marks = torch.zeros(len(tokens), max(len(cut.ids) for cut in tokens), dtype=torch.bool)
    for row, marked in enumerate(places):
        marks[row, list(marked)] = True
    return marks


def _padded_places(tokens: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    most = max(1, *(len(cut.before_segs) for cut in tokens)) if tokens else 1
    places = torch.zeros(len(tokens), most, dtype=torch.long)
    has = torch.zeros(len(tokens), most, dtype=torch.bool)
    for row, cut in enumerate(tokens):
        count = len(cut.before_segs)
        places[row, :count] = torch.tensor(cut.before_segs, dtype=torch.long)
        has[row, :count] = True
    return places, has
