"""What speaks: a T5, or a small decoder with BERT's vocabulary. Both read tokens of the image and words, and write.

Legend: N rows, K visual tokens, M context tokens, S = K + M, L tokens of a text, D language width, V vocabulary.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import BertGenerationConfig, BertGenerationDecoder, Cache, T5Config, T5ForConditionalGeneration

from stages.adapters import LoraConfig, inject_lora


class Speaker(Protocol):
    """A language model in three steps, so that the states that choose the words can be asked for places too."""

    def read(self, visual_NKD: Tensor, context_NM: Tensor, is_context_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Reads the image and the context: states N x S x D, and which of them are no padding, N x S."""

    def hear(
        self, states_NSD: Tensor, is_state_NS: Tensor, ids_NL: Tensor, *, before: Cache | None = None, keep: bool
    ) -> tuple[Tensor, Cache | None]:
        """Reads tokens of the text, after those of `before`: a state of D for each; with `keep` what it has read."""

    def say(self, hidden_D: Tensor) -> Tensor:
        """Returns the logits of the token after each state: (..., D) to (..., V)."""


class _Decoding(nn.Module):
    """A model of transformers whose decoder looks at states, with an output layer behind it."""

    model: Any

    def decoder(self) -> nn.Module:
        """Returns the part of the model that looks at the states."""
        raise NotImplementedError

    def hear(
        self, states_NSD: Tensor, is_state_NS: Tensor, ids_NL: Tensor, *, before: Cache | None = None, keep: bool
    ) -> tuple[Tensor, Cache | None]:
        """Runs the decoder."""
        out = self.decoder()(
            input_ids=ids_NL,
            encoder_hidden_states=states_NSD,
            encoder_attention_mask=is_state_NS,
            past_key_values=before,
            use_cache=keep,
        )
        return out.last_hidden_state, out.past_key_values

    def say(self, hidden_D: Tensor) -> Tensor:
        """Applies the output layer."""
        logits: Tensor = self.model.lm_head(hidden_D)
        return logits


class T5Speaker(_Decoding):
    """Flan-T5: the encoder reads image and context, the decoder writes; its output layer is its own, not tied."""

    def __init__(self, settings: dict[str, Any], lora: LoraConfig | None) -> None:
        """Builds it with fresh weights, and adapters if asked."""
        super().__init__()
        config = T5Config(**settings)
        self.model = T5ForConditionalGeneration(config)
        # transformers ties every T5 while it builds one; T5 1.1 and Flan-T5 have an output layer of their own
        self.model.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.model.set_input_embeddings(self.model.shared)
        if lora is not None:
            inject_lora(self.model, lora)

    def decoder(self) -> nn.Module:
        """Returns T5's."""
        part: nn.Module = self.model.decoder
        return part

    def read(self, visual_NKD: Tensor, context_NM: Tensor, is_context_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes the image's tokens, then the words."""
        together_NSD = torch.cat([visual_NKD, self.model.shared(context_NM).to(visual_NKD.dtype)], dim=1)
        is_state_NS = torch.cat([is_context_NM.new_ones(visual_NKD.shape[:2]), is_context_NM], dim=1)
        states: Tensor = self.model.encoder(inputs_embeds=together_NSD, attention_mask=is_state_NS).last_hidden_state
        return states, is_state_NS


class BertSpeaker(_Decoding):
    """A causal decoder with BERT's vocabulary that looks at the image's tokens and at the embedded context.

    PixelLLM's smaller model is described as GIT-style only: here image and context are looked at by cross attention.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """Builds it with fresh weights."""
        super().__init__()
        config = BertGenerationConfig(**settings, is_decoder=True, add_cross_attention=True, tie_word_embeddings=False)
        self.model = BertGenerationDecoder(config)

    def decoder(self) -> nn.Module:
        """Returns all but the output layer."""
        part: nn.Module = self.model.bert
        return part

    def read(self, visual_NKD: Tensor, context_NM: Tensor, is_context_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the words' embeddings behind the image's tokens."""
        context_NMD = self.model.bert.embeddings(input_ids=context_NM)
        is_state_NS = torch.cat([is_context_NM.new_ones(visual_NKD.shape[:2]), is_context_NM], dim=1)
        return torch.cat([visual_NKD, context_NMD.to(visual_NKD.dtype)], dim=1), is_state_NS
