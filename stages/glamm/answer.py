"""GlammModel: a trained GLaMM in one process, ready to answer.

Legend: U images, B rows (one question each), M masks of an image, T written tokens, D language width, H W pixels.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.family import GroundedCaption, GroundedPhrase, Referred, Unpaired
from stages.glamm.collate import Collator
from stages.glamm.decoder import decode_masks
from stages.glamm.generate import Questions, Written, embed, write
from stages.glamm.model import Glamm
from stages.glamm.prompts import (
    BBOX,
    GCG_QUESTIONS,
    REGION_QUESTIONS,
    SEGMENTATION_ANSWERS,
    SEGMENTATION_QUESTIONS,
    TARGET,
    Conversation,
    clean,
    make_conversation,
    make_prompt,
    tidy,
)
from stages.glamm.tokenizer import Piece, Vocabulary
from stages.mask_sizes import masks_at_image_size
from stages.samples import Turn
from stages.vision import Mask

ROWS_AT_ONCE = 32  # questions that share the memory of one cache
MASKS_AT_ONCE = 32  # prompts that share the memory of the mask decoder
MOST_MASKS = 100  # of an answer, beside those of its phrases: as many as COCO's AP looks at
MAX_ANSWER_TOKENS = 256  # of an answer to a free prompt


@record
class Row:
    """One question: an image, and the boxes that its wording speaks of."""

    image: Image.Image
    boxes_xyxy_px: tuple[Sequence[float], ...] = ()


@record
class Stretch:
    """Where a phrase stands in a caption, and which [SEG] points at it."""

    span: tuple[int, int]
    seg: int


class GlammModel:
    """Answers with text, and with a mask for each phrase that is followed by [SEG]."""

    def __init__(self, model: Glamm, vocabulary: Vocabulary) -> None:
        """Takes a model whose weights are in place, on the device where it is to work."""
        self.network, self.vocabulary = model.eval().requires_grad_(requires_grad=False), vocabulary
        self.collator = Collator(model.blueprint, vocabulary)
        first = next(model.parameters())
        self._device, self._dtype = first.device, first.dtype

    def ground(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[GroundedCaption]:
        """Writes a grounded caption for each image."""
        rows = [Row(image=image) for image in images]
        written = self.write(GCG_QUESTIONS[0], rows, max_new_tokens=max_new_tokens)
        return [self._grounded(image, said) for image, said in zip(images, written, strict=True)]

    def describe_regions(
        self, images: Sequence[Image.Image], boxes_xyxy_px: Sequence[Sequence[Sequence[float]]], *, max_new_tokens: int
    ) -> list[list[str]]:
        """Writes a caption for each box of each image, every box a question of its own."""
        rows = [
            Row(image=image, boxes_xyxy_px=(box,))
            for image, boxes in zip(images, boxes_xyxy_px, strict=True)
            for box in boxes
        ]
        written = iter(self.write(REGION_QUESTIONS[0], rows, max_new_tokens=max_new_tokens))
        return [[self.vocabulary.decode(next(written).ids) for _ in boxes] for boxes in boxes_xyxy_px]

    def refer(self, image: Image.Image, expression: str, *, max_new_tokens: int) -> Referred:
        """Points at what an expression means: one mask for each [SEG] that is written, whatever stands around it."""
        if not (meant := clean(expression)):
            raise InputError(f"the expression {expression!r} holds no words to look for")
        question = SEGMENTATION_QUESTIONS[0].replace(TARGET, meant)
        (written,) = self.write(question, [Row(image=image)], max_new_tokens=max_new_tokens)
        segs = range(min(MOST_MASKS, written.ids.count(self.vocabulary.seg_id)))
        return Referred(text=self.vocabulary.decode(written.ids), masks_HW=tuple(self._masks(image, written, segs)))

    @torch.inference_mode()
    def refer_told(self, image: Image.Image, expressions: Sequence[str]) -> list[Mask | None]:
        """Points at what each expression means, all in one dialogue whose answers it is told."""
        turns = [
            Turn(question=SEGMENTATION_QUESTIONS[0].replace(TARGET, clean(text)), answer=SEGMENTATION_ANSWERS[0])
            for text in expressions
        ]
        asked = self._questions(make_conversation(turns, end=self.vocabulary.end), [Row(image=image)])
        embeds_BLD = embed(self.network, asked)
        hidden_LD = self.network.language_model.model(inputs_embeds=embeds_BLD, use_cache=False).last_hidden_state[0]
        low_MHW = self._decode(image, hidden_LD[list(asked.tokens.before_segs)])
        found = [self._at_image_size(low_HW, image) for low_HW in low_MHW]
        return [*found, *[None] * (len(expressions) - len(found))]

    def answer(
        self, image: Image.Image, prompt: str, boxes_xyxy_px: Sequence[Sequence[float]], *, before: Sequence[Turn] = ()
    ) -> GroundedCaption:
        """Answers a free prompt after what was said before; boxes are given in the order of `<bbox>` in all questions.

        Answers of before are read without their tags, as captions are returned.
        """
        question = clean(prompt, keep=BBOX)
        said = [Turn(question=clean(turn.question, keep=BBOX), answer=clean(turn.answer)) for turn in before]
        wanted = sum(text.count(BBOX) for text in (question, *(turn.question for turn in said)))
        if wanted != len(boxes_xyxy_px):
            where = "prompts have" if said else "prompt has"
            raise InputError(f"the {where} {wanted} {BBOX}, but {len(boxes_xyxy_px)} boxes are given")
        row = Row(image=image, boxes_xyxy_px=tuple(boxes_xyxy_px))
        (written,) = self.write(question, [row], max_new_tokens=MAX_ANSWER_TOKENS, before=said)
        return self._grounded(image, written)

    def write(
        self, question: str, rows: Sequence[Row], *, max_new_tokens: int, before: Sequence[Turn] = ()
    ) -> list[Written]:
        """Puts one question to all rows, as many at once as memory should bear."""
        written: list[Written] = []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            asked = self.questions(question, rows[first : first + ROWS_AT_ONCE], before)
            end_id = self.vocabulary.end_id
            written += write(self.network, asked, end_id=end_id, max_new_tokens=max_new_tokens)
        return written

    def questions(self, question: str, rows: Sequence[Row], before: Sequence[Turn] = ()) -> Questions:
        """Makes of words, images and boxes what the model reads."""
        text = make_prompt(question, before=before, end=self.vocabulary.end)
        return self._questions(Conversation(text=text, answers=()), rows)

    def _questions(self, conversation: Conversation, rows: Sequence[Row]) -> Questions:
        tokens = self.collator.tokens(conversation)
        images = {id(row.image): row.image for row in rows}  # rows about one image share its encoding
        place = {key: number for number, key in enumerate(images)}
        return Questions(
            tokens=tokens,
            clip_pixels_UCHW=torch.stack([self.collator.clip_pixels(one) for one in images.values()]).to(self._device),
            image_B=torch.tensor([place[id(row.image)] for row in rows], device=self._device),
            boxes_R4=torch.cat([self.collator.boxes(row.boxes_xyxy_px, row.image) for row in rows]).to(self._device),
        )

    @torch.inference_mode()
    def point(self, image: Image.Image, written: Written, segs: Sequence[int]) -> Tensor:
        """Decodes the masks of these [SEG], counted from 0: logits M x H x W at the decoder's resolution."""
        places = [place for place, token in enumerate(written.ids) if token == self.vocabulary.seg_id]
        return self._decode(image, written.hidden_TD[[places[seg] for seg in segs]])

    def _decode(self, image: Image.Image, hidden_MD: Tensor) -> Tensor:
        if not len(hidden_MD):
            return hidden_MD.new_zeros(0, 1, 1)
        prompts_MC = self.network.prompt_projection(hidden_MD)
        pixels_CHW, _ = self.collator.sam_pixels(image)
        seen = self.network.sam.vision_encoder(pixels_CHW[None].to(self._device, self._dtype)).last_hidden_state
        parts = prompts_MC[None].split(MASKS_AT_ONCE, dim=1)
        return torch.cat([decode_masks(self.network.sam, seen, part)[0] for part in parts])

    def _masks(self, image: Image.Image, written: Written, segs: Sequence[int]) -> list[Mask]:
        # one by one: logits of many masks of a large picture would not fit in memory together
        return [self._at_image_size(low_HW, image) for low_HW in self.point(image, written, segs)]

    def _grounded(self, image: Image.Image, written: Written) -> GroundedCaption:
        caption, stretches = read_pieces(self.vocabulary.pieces(written.ids))
        count, tagged = written.ids.count(self.vocabulary.seg_id), self.vocabulary.tagged(written.ids)
        segs = sorted({*range(min(MOST_MASKS, count)), *(one.seg for one in stretches)})
        masks = dict(zip(segs, self._masks(image, written, segs), strict=True))
        phrases = tuple(
            GroundedPhrase(phrase=caption[slice(*one.span)], span=one.span, mask_HW=masks[one.seg]) for one in stretches
        )
        paired = len(stretches) == count == len(tagged)
        unpaired = None if paired else Unpaired(phrases=tuple(tagged), masks_HW=tuple(masks.values()))
        return GroundedCaption(caption=caption, phrases=phrases, unpaired=unpaired)

    def _at_image_size(self, low_HW: Tensor, image: Image.Image) -> Mask:
        inside = self.collator.sam_inside(image)
        size = (image.height, image.width)
        wide = masks_at_image_size(low_HW[None], canvas=self.network.canvas, inside=inside, image=size)[0]
        return np.asarray((wide > 0).cpu().numpy(), dtype=np.bool_)


def read_pieces(pieces: Iterable[Piece]) -> tuple[str, list[Stretch]]:
    """Joins what was written to a caption without tags, and says where its pointed phrases stand, in code points."""
    caption = ""
    stretches = []
    for piece in pieces:
        text = tidy(piece.text)
        start = len(caption)
        caption = tidy(f"{caption} {text}")
        start += len(caption) - start - len(text)  # past the space, if there is one
        if piece.seg is not None:
            stretches.append(Stretch(span=(start, len(caption)), seg=piece.seg))
    return caption, stretches
