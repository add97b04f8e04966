"""Keeps what a language model makes of the texts of shards, beside each sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator.artifacts import Shards
from orchestrator.errors import InputError
from orchestrator.stage import StageContext
from stages.keeping import keep_beside
from stages.pixclip.caching import PixClipTextEmbeddings
from stages.pixclip.config import TEXTS_FACT
from stages.pixclip.encoder import TextEncoder, described
from stages.pixclip.pairs import texts_of
from stages.pixclip.texts import MEMBER, to_member
from stages.samples import Sample

_PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def embed_texts(
    config: PixClipTextEmbeddings.Config, source: Shards, target: Shards, context: StageContext
) -> dict[str, Any]:
    """Writes the tars of `source` again, with embedded texts. Returns facts on the first rank.

    Collective: every rank must call.
    """
    precision = _PRECISIONS[config.precision]
    encoder = TextEncoder(config.encoder, precision=precision, device=context.world.device)
    about = described(config.encoder, encoder.size, config.precision)
    maker = _Embeddings(encoder, config.samples_at_once, precision)
    kept = keep_beside(maker, source, target, context, made_of=[about["digest"]])
    return {} if kept is None else {**kept.facts, TEXTS_FACT: {**about, "left_out": kept.left_out}}


class _Embeddings:
    """Embeds the texts of samples."""

    member = MEMBER

    def __init__(self, encoder: TextEncoder, at_once: int, precision: torch.dtype) -> None:
        self._encoder, self.at_once, self._precision = encoder, at_once, precision

    def take(self, key: str, members: Mapping[str, bytes]) -> tuple[str, ...]:
        """Reads the texts of a sample; one without any is left out."""
        texts = texts_of(Sample.from_members(key, members))
        if not texts:
            raise InputError(f"sample {key!r} has no text")
        return texts

    def make(self, taken: Sequence[tuple[str, ...]]) -> Sequence[bytes]:
        """Embeds all texts of these samples together."""
        rows_TE = self._encoder.embed([text for texts in taken for text in texts]).to(self._precision)
        return [to_member(part_TE) for part_TE in torch.split(rows_TE, [len(texts) for texts in taken])]
