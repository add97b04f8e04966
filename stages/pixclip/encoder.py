"""The frozen language model that embeds texts, run alone to keep what it makes of them, and known again by a digest."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaModel

from orchestrator.errors import InputError
from orchestrator.training.foreign.source import few
from stages.pixclip.batches import Texts
from stages.pixclip.config import EncoderConfig
from stages.pixclip.model import mean_state, read_both_ways

_TOKENIZER = "tokenizer.json"
_LOOKED_AT = 1 << 20  # bytes at either end of a file with weights, which has gigabytes


class TextEncoder:
    """Embeds texts: the mean of a language model's last hidden states over a text's tokens, begin token included."""

    def __init__(self, config: EncoderConfig, *, precision: torch.dtype, device: str) -> None:
        """Loads model and tokenizer of a folder; no code that lies in it is run, and no pickle is read."""
        self._config, self._device = config, device
        model, self._tokenizer = _opened(config.path, precision)
        model = read_both_ways(model) if config.bidirectional else model
        self._model: nn.Module = model
        self._model.requires_grad_(requires_grad=False)
        nn.Module.to(self._model, device)  # a model of transformers hides the types of its own
        self._tokenizer.enable_truncation(config.max_tokens)
        self._tokenizer.no_padding()
        self.size: int = model.config.hidden_size

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeds texts together: T x E in fp32, on the CPU."""
        encoded = self._tokenizer.encode_batch([self._config.template.replace("{text}", text) for text in texts])
        longest = max(len(one.ids) for one in encoded)
        ids_BL = torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in encoded])
        lengths_B1 = torch.tensor([[len(one.ids)] for one in encoded])
        together = Texts(ids_BL=ids_BL, attention_BL=torch.arange(longest) < lengths_B1)
        return mean_state(self._model, together.to(self._device)).cpu()


def digest_of(config: EncoderConfig) -> str:
    """Digests what embeddings follow from: settings, tokenizer, and of the weights names, sizes and both ends."""
    told = [config.max_tokens, config.template, config.bidirectional]
    digest = hashlib.sha256(json.dumps(told).encode())
    for path in sorted(config.path.glob("*")):
        if path.suffix not in {".json", ".safetensors"} or not path.is_file():
            continue
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        digest.update(_ends(path) if path.suffix == ".safetensors" else path.read_bytes())
    return digest.hexdigest()


def described(config: EncoderConfig, size: int, precision: str) -> dict[str, Any]:
    """Returns what the manifest of shards says of the model that embedded their texts."""
    return {
        "path": str(config.path),
        "digest": digest_of(config),
        "size": size,
        "max_tokens": config.max_tokens,
        "template": config.template,
        "bidirectional": config.bidirectional,
        "precision": precision,
    }


def _opened(folder: Path, precision: torch.dtype) -> tuple[LlamaModel, Tokenizer]:
    try:
        opened: Any = LlamaModel.from_pretrained(
            folder, dtype=precision, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    except Exception as error:  # the libraries raise whatever they like for files that they cannot read
        raise InputError(f"{folder} holds no language model that can be read as a LLaMA: {error}") from error
    model, report = opened
    if lacking := sorted(report["missing_keys"]):  # which transformers would draw by chance
        raise InputError(f"{folder} lacks {few(lacking)}: it is no whole LLaMA")
    return model, tokenizer


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(_LOOKED_AT)
        file.seek(max(0, path.stat().st_size - _LOOKED_AT))
        return first + file.read(_LOOKED_AT)
