"""PixelLLMModel: a trained PixelLLM in one process, ready to answer. Words and their places come in one pass.

Legend as in `batches.py`; P two points of a token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.family import DescribedBox, LocatedCaption, LocatedWord, Referred
from stages.mask_sizes import masks_at_image_size
from stages.pixelllm.batches import PixelBatch
from stages.pixelllm.collate import Collator, Example, Limits
from stages.pixelllm.detector import Proposed
from stages.pixelllm.model import PixelLLM
from stages.pixelllm.tasks import caption_row, refer_row, region_row
from stages.vision import Box, Mask
from stages.wordpieces import WordPieces

ROWS_AT_ONCE = 64  # texts that are written together
IMAGES_AT_ONCE = 16
MASKS_AT_ONCE = 32  # expressions whose masks are drawn together
MAX_TOLD_TOKENS = 512  # of a caption that the model is told


@record
class Written:
    """What one row wrote, up to its end mark and without it, and where each token is."""

    ids: tuple[int, ...]
    points_LP2: Tensor  # xy in units of the image
    score: float  # the sum of the logarithms of the tokens' chances, the end mark's too


class PixelLLMModel:
    """Answers with words, places of words, and boxes."""

    def __init__(self, model: PixelLLM, pieces: WordPieces) -> None:
        """Takes a model whose weights are in place, on the device where it is to work."""
        self.network, self.pieces = model.eval().requires_grad_(requires_grad=False), pieces
        self.collator = Collator(model.blueprint, pieces, Limits(text=MAX_TOLD_TOKENS, context=MAX_TOLD_TOKENS))
        self._device = next(model.parameters()).device

    def locate_words(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[LocatedCaption]:
        """Writes a caption for each image, and where each word of it is."""
        examples = [Example(image=image, rows=(caption_row(detailed=True),)) for image in images]
        written = self.write(examples, max_new_tokens=max_new_tokens)
        return [self._located(image, said.ids, said.points_LP2) for image, (said,) in zip(images, written, strict=True)]

    def locate_told(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[LocatedCaption]:
        """Says where each word of a caption is that it is told."""
        found = []
        for image, caption in zip(images, captions, strict=True):
            ids = self.pieces.encode(caption)[:MAX_TOLD_TOKENS]
            (points_LP2,) = self._told(Example(image=image, rows=(caption_row(caption, detailed=True),)))
            found.append(self._located(image, ids, points_LP2[1 : len(ids) + 1]))
        return found

    def refer_boxes(self, images: Sequence[Image.Image], expressions: Sequence[Sequence[str]]) -> list[list[Box]]:
        """Finds one box for each expression: the place of its last token, which comes before the end mark."""
        return [self._referred(image, texts) for image, texts in zip(images, expressions, strict=True)]

    def describe_regions(
        self, images: Sequence[Image.Image], boxes_xyxy_px: Sequence[Sequence[Sequence[float]]], *, max_new_tokens: int
    ) -> list[list[str]]:
        """Writes a caption for each box of each image."""
        examples = [
            Example(image=image, rows=tuple(region_row((b[0], b[1], b[2], b[3])) for b in boxes))
            for image, boxes in zip(images, boxes_xyxy_px, strict=True)
        ]
        written = self.write(examples, max_new_tokens=max_new_tokens)
        return [[self.pieces.decode(said.ids) for said in some] for some in written]

    def describe_densely(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[list[DescribedBox]]:
        """Proposes boxes in each image, the surest first, and describes each."""
        found = [self._proposed(image) for image in images]
        texts = self.describe_regions(images, [boxes for boxes, _ in found], max_new_tokens=max_new_tokens)
        return [
            [
                DescribedBox(box_xyxy_px=box, score=score, caption=text)
                for box, score, text in zip(boxes, scores, said, strict=True)
            ]
            for (boxes, scores), said in zip(found, texts, strict=True)
        ]

    def write(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[list[Written]]:
        """Writes the most likely words for every row of every example, as many at once as memory should bear."""
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
        found: list[list[Written]] = [[] for _ in examples]
        for first in range(0, len(examples), IMAGES_AT_ONCE):
            some = [(number, one) for number, one in enumerate(examples) if first <= number < first + IMAGES_AT_ONCE]
            some = [(number, one) for number, one in some if one.rows]
            if some:
                for number, said in self._written(some, max_new_tokens):
                    found[number].append(said)
        return found

    @torch.inference_mode()
    def _written(self, some: Sequence[tuple[int, Example]], max_new_tokens: int) -> list[tuple[int, Written]]:
        batch = self.collator.batch([one for _, one in some]).to(self._device)
        map_BCHW = self.network.see(batch.semantic_pixels_BCHW, batch.localization_pixels_BCHW).map_BCHW
        said = [
            one
            for rows in torch.split(torch.arange(len(batch.image_N), device=self._device), ROWS_AT_ONCE)
            for one in self._rows_written(batch, map_BCHW, rows, max_new_tokens)
        ]
        return [(some[at][0], one) for at, one in zip(batch.image_N.tolist(), said, strict=True)]

    def _rows_written(self, batch: PixelBatch, map_BCHW: Tensor, rows: Tensor, max_new_tokens: int) -> list[Written]:
        network, end_id = self.network, self.pieces.end_id
        visual_NKD = network.look(map_BCHW, batch.prompts_N4[rows], batch.image_N[rows])
        states = network.language.read(visual_NKD, batch.context_NM[rows], batch.is_context_NM[rows])
        token_N = torch.full_like(rows, self.pieces.start_id)
        ended_N = torch.zeros_like(rows, dtype=torch.bool)
        ids: list[Tensor] = []
        points: list[Tensor] = []
        scores: list[Tensor] = []
        cache = None
        # once more than there are tokens: the place of the last one is known when it has been heard
        for step in range(max_new_tokens + 1):
            hidden_N1D, cache = network.language.hear(*states, token_N[:, None], before=cache, keep=True)
            points.append(network.location(hidden_N1D)[:, 0])
            if step == max_new_tokens:
                break
            best_N, token_N = network.language.say(hidden_N1D[:, 0]).float().log_softmax(-1).max(-1)
            ids.append(token_N)
            scores.append(best_N.masked_fill(ended_N, 0))
            ended_N = ended_N | (token_N == end_id)
            if bool(ended_N.all()):
                break
        together = torch.stack(ids, dim=1).tolist()
        lengths = [row.index(end_id) if end_id in row else len(row) for row in together]
        points_NLP2, score_N = torch.stack(points, dim=1), torch.stack(scores).sum(0).tolist()
        return [
            Written(ids=tuple(row[:length]), points_LP2=places[1 : length + 1], score=score)
            for row, length, places, score in zip(together, lengths, points_NLP2, score_N, strict=True)
        ]

    @torch.inference_mode()
    def _told(self, example: Example) -> Tensor:
        """Says where the tokens of each row's text are: N x L x P x 2, the start token first."""
        points: Tensor = self.network(self.collator.batch([example]).to(self._device))["points_NL22"]
        return points

    def _referring(self, image: Image.Image, texts: Sequence[str]) -> PixelBatch:
        """Asks where expressions are, one or more; InputError for one without words."""
        batch = self.collator.batch([Example(image=image, rows=tuple(refer_row(text) for text in texts))])
        if empty := [text for text, last in zip(texts, batch.last_N.tolist(), strict=True) if not last]:
            raise InputError(f"the expression {empty[0]!r} holds no words to look for")
        return batch.to(self._device)

    @torch.inference_mode()
    def _referred(self, image: Image.Image, texts: Sequence[str]) -> list[Box]:
        if not texts:
            return []
        batch = self._referring(image, texts)
        points_NLP2 = self.network(batch)["points_NL22"]
        return [_box(points_P2, image) for points_P2 in points_NLP2[torch.arange(len(texts)), batch.last_N]]

    @torch.inference_mode()
    def _proposed(self, image: Image.Image) -> tuple[list[Box], list[float]]:
        detector = self.network.detector
        if detector is None:
            raise InputError("this PixelLLM proposes no boxes: its config.model.detector is null")
        semantic_CHW, localization_CHW, inside = self.collator.pixels(image)
        sight = self.network.see(semantic_CHW[None].to(self._device), localization_CHW[None].to(self._device))
        inside_12 = torch.tensor([inside], dtype=torch.float32, device=self._device)
        ((boxes_P4, scores_P),) = detector.boxes(Proposed(**detector(sight.map_BCHW)), inside_12)
        across, down = image.width / inside[0], image.height / inside[1]
        boxes = [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in boxes_P4.tolist()]
        return boxes, scores_P.tolist()

    def _located(self, image: Image.Image, ids: Sequence[int], points_LP2: Tensor) -> LocatedCaption:
        caption, words = self.pieces.words(ids)
        located = []
        for span, places in words:
            if places:
                x0, y0, x1, y1 = _box(points_LP2[list(places)].flatten(0, 1), image)
                located.append(LocatedWord(span=span, points_xy_px=((x0, y0), (x1, y1))))
        return LocatedCaption(caption=caption, words=tuple(located))


class DrawingPixelLLM(PixelLLMModel):
    """Also draws the pixels that an expression means: a model with a mask branch."""

    def refer(self, image: Image.Image, expression: str, *, max_new_tokens: int) -> Referred:
        """Draws one mask for an expression, whose words are read: nothing is written."""
        del max_new_tokens
        (mask_HW,) = self.refer_told(image, [expression])
        return Referred(text="", masks_HW=() if mask_HW is None else (mask_HW,))

    def refer_told(self, image: Image.Image, expressions: Sequence[str]) -> list[Mask | None]:
        """Draws a mask for each expression, the one of three that the decoder holds for the best."""
        groups = (expressions[first : first + MASKS_AT_ONCE] for first in range(0, len(expressions), MASKS_AT_ONCE))
        return [mask_HW for texts in groups for mask_HW in self._masks(image, texts)]

    @torch.inference_mode()
    def _masks(self, image: Image.Image, texts: Sequence[str]) -> list[Mask]:
        batch = self._referring(image, texts)
        batch.drawn_S = torch.arange(len(texts), device=self._device)
        said = self.network(batch)
        low_Shw = said["masks_S3hw"][batch.drawn_S, said["scores_S3"].argmax(1)]
        # one by one: logits of many masks of a large picture would not fit in memory together
        return [self._at_image_size(low_hw, batch.inside_B2[0], image) for low_hw in low_Shw]

    def _at_image_size(self, low_hw: Tensor, inside_2: Tensor, image: Image.Image) -> Mask:
        width, height = (int(edge) for edge in inside_2.tolist())
        wide_1HW = masks_at_image_size(
            low_hw[None], canvas=self.collator.canvas, inside=(height, width), image=(image.height, image.width)
        )
        return np.asarray((wide_1HW[0] > 0).cpu().numpy(), dtype=np.bool_)


def _box(points_P2: Tensor, image: Image.Image) -> Box:
    """Spans a box over points in units of the image, cut to it, in pixels."""
    units = points_P2.float().clamp(0, 1)
    (x0, y0), (x1, y1) = units.amin(0).tolist(), units.amax(0).tolist()
    return (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
