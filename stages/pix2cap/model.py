"""Pix2Cap: Mask2Former finds segments, a caption decoder describes each from its query.

Legend: K predictions (of the queries themselves, then after each decoder layer), B images, Q queries, D width,
S captions of all images, L tokens, T predicted tokens, V vocabulary, h w a quarter of the image's side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerModel

from stages.pix2cap.batches import Pix2CapBatch
from stages.pix2cap.captioner import Captioner
from stages.pix2cap.config import Blueprint
from stages.pix2cap.matching import best_queries


@dataclass(slots=True)
class Seen:
    """What the segmenter makes of images, all predictions."""

    states_KBQD: Tensor  # normalised
    class_logits_KBQC: Tensor  # the last class is none at all
    mask_logits: tuple[Tensor, ...]  # K times B x Q x h x w
    image_BD: Tensor  # the largest of the coarsest features

    def objects(self, prediction_N: Tensor, image_N: Tensor, query_N: Tensor) -> Tensor:
        """Pairs queries' states with their images' vectors: N x 2 x D."""
        return torch.stack([self.states_KBQD[prediction_N, image_N, query_N], self.image_BD[image_N]], dim=1)


class Pix2Cap(nn.Module):
    """Reads images; predicts a class, a mask and a caption for each query."""

    def __init__(self, blueprint: Blueprint, *, caption_predictions: int = 1) -> None:
        """Builds every part with fresh weights; the last `caption_predictions` are captioned in training."""
        super().__init__()
        self.blueprint, self.caption_predictions = blueprint, caption_predictions
        config = Mask2FormerConfig(**blueprint.segmenter)
        self.segmenter = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, len(blueprint.categories) + 1)
        self.captioner = Captioner(
            blueprint.captioner,
            object_width=config.hidden_dim,
            object_size=blueprint.object_size,
            gradient_scale=blueprint.gradient_scale,
        )

    def forward(self, batch: Pix2CapBatch) -> tuple[Seen, Tensor, Tensor]:
        """Returns what is seen, and of the captions `logits_TV` and `targets_T`.

        Every batch runs every module: one without captions predicts the end of a caption of its first query, whose
        target is -100, so that ranks never differ in which weights they gather.
        """
        seen = self.see(batch.pixels_BCHW)
        first = max(0, len(seen.mask_logits) - self.caption_predictions)
        if len(batch.image_S):
            query_KS = best_queries(seen.mask_logits[first:], batch)
            prediction_KS = torch.arange(len(query_KS), device=query_KS.device)[:, None].expand_as(query_KS) + first
            image_KS = batch.image_S.expand_as(query_KS)
            objects_N2D = seen.objects(prediction_KS.flatten(), image_KS.flatten(), query_KS.flatten())
            ids_NL, wanted_NL = (one.repeat(len(query_KS), 1) for one in (batch.ids_SL, batch.wanted_SL))
            targets_T = ids_NL[:, 1:][wanted_NL[:, 1:]]
        else:
            none_N = torch.zeros(1, dtype=torch.long, device=batch.pixels_BCHW.device)
            objects_N2D = seen.objects(none_N, none_N, none_N)
            ids_NL = none_N.expand(1, 2)
            wanted_NL = ids_NL == 0
            targets_T = none_N - 100
        return seen, self.captioner(objects_N2D, ids_NL, wanted_NL), targets_T

    def see(self, pixels_BCHW: Tensor) -> Seen:
        """Finds segments: every prediction's states, classes and masks."""
        # the number type of the weights: an engine may have cast them
        out = self.segmenter(pixels_BCHW.to(self.class_predictor.weight.dtype), output_hidden_states=True)
        states_KBQD = torch.stack(out.transformer_decoder_intermediate_states).transpose(1, 2)
        return Seen(
            states_KBQD=states_KBQD,
            class_logits_KBQC=self.class_predictor(states_KBQD),
            mask_logits=tuple(out.masks_queries_logits),
            image_BD=out.pixel_decoder_hidden_states[0].amax(dim=(2, 3)),
        )
