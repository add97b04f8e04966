"""Texts as the model reads them: tokens of its own tokenizer, or embeddings that lie beside a sample.

Legend: T texts of a sample, L tokens, E numbers of an embedded text.
"""

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from stages.pixclip.batches import Texts
from stages.wordpieces import WordPieces

MEMBER = "texts.safetensors"  # the extension of a sample's embedded texts in its tar
_ROWS = "embeddings_TE"


def tokens_of(pieces: WordPieces, texts: Sequence[str], most: int) -> Texts:
    """Encodes texts, cuts them at `most` tokens and pads them on the right."""
    rows = [pieces.encode(text)[:most] or [pieces.end_id] for text in texts]
    longest = max((len(row) for row in rows), default=1)
    ids_BL = torch.tensor([row + [pieces.pad_id] * (longest - len(row)) for row in rows], dtype=torch.long)
    lengths_B1 = torch.tensor([[len(row)] for row in rows])
    return Texts(ids_BL=ids_BL, attention_BL=torch.arange(longest) < lengths_B1)


def to_member(embeddings_TE: Tensor) -> bytes:
    """Writes the embeddings of a sample's texts, in the order of `pairs.texts_of`."""
    return save({_ROWS: embeddings_TE.contiguous()})


def kept_embedding(drawn: Drawn, texts: Sequence[str], text: str) -> Tensor:
    """Reads the embedding of one of a sample's texts: E."""
    content = drawn.members.get(MEMBER)
    if content is None:
        raise InputError(
            f"sample {drawn.key!r} of {drawn.source} has no {MEMBER}: let pixclip_text_embeddings keep it, or give "
            "config.model.text"
        )
    try:
        rows_TE = load(content)[_ROWS]
    except (SafetensorError, KeyError) as error:
        raise InputError(f"sample {drawn.key!r} of {drawn.source}: its {MEMBER} cannot be read ({error})") from None
    if len(rows_TE) != len(texts):
        raise InputError(
            f"sample {drawn.key!r} of {drawn.source}: {len(rows_TE)} texts are embedded, it has {len(texts)}"
        )
    return rows_TE[texts.index(text)].float()
