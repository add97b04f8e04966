"""How alike two phrases are: by a sentence encoder where one is given, else by the words they share.

Legend: B phrases, L tokens, D width of the encoder.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.evaluate.captions import phrase_similarity

BATCH = 256
LONGEST_TOKENS = 512  # as the released evaluation cuts

Similarity = Callable[[str, str], float]
Vectors = NDArray[np.float32]


@record
class Likeness:
    """One way to compare phrases."""

    name: str
    told: str  # what a reader of the scores must know
    prepare: Callable[[Collection[str]], Similarity]  # takes all phrases that will be compared


def open_likeness(encoder: Path | None) -> Likeness:
    """Loads the encoder of a folder; without a folder phrases are compared by their words."""
    return BY_WORDS if encoder is None else _by_encoder(encoder)


BY_WORDS = Likeness(
    name="words",
    told=(
        "Phrase similarity is a lexical stand-in, F1 of the sets of words without articles, not BERT's cosine: "
        "config.phrase_encoder names a folder with a real encoder."
    ),
    prepare=lambda _: phrase_similarity,
)


def _by_encoder(folder: Path) -> Likeness:
    """Loads an encoder of Hugging Face's layout from its folder alone: no network, no pickles, no code of its own."""
    if not (folder / "config.json").is_file():  # it may have gone since the plan looked
        raise InputError(f"config.phrase_encoder: {folder} has no config.json")
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except Exception as error:
        raise InputError(f"config.phrase_encoder: {folder} cannot be loaded as a text encoder ({error})") from error

    def encode(phrases: Sequence[str]) -> Vectors:
        import torch

        tokens = tokenizer(list(phrases), return_tensors="pt", padding=True, truncation=True, max_length=LONGEST_TOKENS)
        with torch.inference_mode():
            states_BLD = model(**tokens).last_hidden_state.float()
        mask_BL1 = tokens["attention_mask"][..., None].float()
        means_BD = (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1)
        vectors: Vectors = torch.nn.functional.normalize(means_BD, dim=-1).numpy()
        return vectors

    def prepare(phrases: Collection[str]) -> Similarity:
        known: dict[str, Vectors] = {}
        ordered = sorted(set(phrases), key=lambda phrase: (len(phrase), phrase))  # little padding
        for start in range(0, len(ordered), BATCH):
            some = ordered[start : start + BATCH]
            known.update(zip(some, encode(some), strict=True))
        return lambda first, second: float(known[first] @ known[second])

    kind = f"{model.config.model_type}, {model.config.hidden_size} wide"
    return Likeness(
        name=folder.name,
        told=f"Phrase similarity is the cosine of mean last hidden states of the encoder {folder.name} ({kind}).",
        prepare=prepare,
    )
