"""Writes a caption for each object, from its query's state and one vector of the whole image.

The decoder is GIT's (arXiv 2205.14100), which GRiT and Pix2Cap took over: BERT layers that read [object vectors;
words], where words see all object vectors and the words before them.

Legend: N objects, D width of the segmenter, W width of the words, L tokens, T predicted tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GitConfig
from transformers.models.git.modeling_git import GitEmbeddings, GitEncoder

VECTORS = 2  # of an object: its query's state, and the whole image's
AT_ONCE = 64  # objects that share the memory of one cache


class Captioner(nn.Module):
    """A small BERT-like decoder whose output layer is its word embedding."""

    def __init__(
        self, settings: Mapping[str, Any], *, object_width: int, object_size: int, gradient_scale: float
    ) -> None:
        """Builds it with fresh weights; `settings` are those of a GitConfig."""
        super().__init__()
        config = GitConfig(**{**settings, "attn_implementation": "eager"})
        self.gradient_scale = gradient_scale
        self.object_projection = nn.Linear(object_width, object_size)
        self.visual_projection = nn.Sequential(
            nn.Linear(object_size, config.hidden_size), nn.LayerNorm(config.hidden_size)
        )
        self.embeddings = GitEmbeddings(config)  # type: ignore[no-untyped-call]  # transformers'
        self.encoder = GitEncoder(config)  # type: ignore[no-untyped-call]
        self.output = nn.Linear(config.hidden_size, config.vocab_size)
        self.output.weight = self.embeddings.word_embeddings.weight

    def forward(self, objects_N2D: Tensor, ids_NL: Tensor, wanted_NL: Tensor) -> Tensor:
        """Predicts the wanted tokens, each from the ones before it: logits T x V, object after object."""
        words_NLW = self.embeddings(input_ids=ids_NL[:, :-1])
        hidden = torch.cat([self.look(objects_N2D).to(words_NLW.dtype), words_NLW], dim=1)
        mask = _causal_mask(hidden.shape[1], hidden)
        states_NLW = self.encoder(hidden, attention_mask=mask).last_hidden_state[:, VECTORS:]
        logits_TV: Tensor = self.output(states_NLW[wanted_NL[:, 1:]])
        return logits_TV

    def look(self, objects_N2D: Tensor) -> Tensor:
        """Makes the two vectors of each object what the decoder reads: N x 2 x W."""
        cut_N2O = self.object_projection(objects_N2D)
        held = cut_N2O.detach()
        seen_N2W: Tensor = self.visual_projection(held + self.gradient_scale * (cut_N2O - held))
        return seen_N2W

    @torch.inference_mode()
    def write(self, objects_N2D: Tensor, *, begin: int, end: int, max_tokens: int) -> list[list[int]]:
        """Writes greedily: the ids of each caption, without its beginning and end."""
        return [
            ids
            for some_N2D in torch.split(objects_N2D, AT_ONCE)
            for ids in self._written(some_N2D, begin=begin, end=end, max_tokens=max_tokens)
        ]

    def _written(self, objects_N2D: Tensor, *, begin: int, end: int, max_tokens: int) -> list[list[int]]:
        cache = DynamicCache()
        ids_N = torch.full((len(objects_N2D),), begin, device=objects_N2D.device)
        words = self.embeddings(input_ids=ids_N[:, None])
        hidden = torch.cat([self.look(objects_N2D).to(words.dtype), words], dim=1)
        mask: Tensor | None = _causal_mask(hidden.shape[1], hidden)
        said, over_N = [], torch.zeros_like(ids_N, dtype=torch.bool)
        for place in range(1, max_tokens):
            states = self.encoder(hidden, attention_mask=mask, past_key_values=cache).last_hidden_state
            ids_N = torch.where(over_N, end, self.output(states[:, -1]).argmax(-1))
            over_N |= ids_N == end
            if over_N.all():
                break
            said.append(ids_N)
            hidden, mask = self.embeddings(input_ids=ids_N[:, None], past_key_values_length=place), None
        rows = torch.stack(said, dim=1).tolist() if said else [[] for _ in range(len(objects_N2D))]
        return [row[: row.index(end)] if end in row else row for row in rows]


def _causal_mask(length: int, like: Tensor) -> Tensor:
    """Masks what comes later, but object vectors see each other: 1 x 1 x length x length, added to the scores."""
    hidden = torch.ones(length, length, dtype=torch.bool, device=like.device).triu(1)
    hidden[:VECTORS, :VECTORS] = False
    mask = torch.zeros(1, 1, length, length, dtype=like.dtype, device=like.device)
    return mask.masked_fill(hidden, torch.finfo(like.dtype).min)
