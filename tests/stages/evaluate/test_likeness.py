"""Phrases compared by an encoder, against the formula of the released evaluation, and by words, which is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from orchestrator.artifacts import Checkpoint, Report, Shards
from orchestrator.errors import InputError
from stages.evaluate.captions import phrase_similarity
from stages.evaluate.likeness import open_likeness
from stages.evaluate.stage import Evaluate

PHRASES = ("a red circle", "circle", "the blue square near a dog", "dog dog")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a tiny BERT with random weights, as one writes bert-base-uncased."""
    folder = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    folder.mkdir()
    words = sorted({word for phrase in PHRASES for word in phrase.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_encoders_cosines_are_those_of_the_released_formula(encoder: Path) -> None:
    likeness = open_likeness(encoder)
    model = BertModel.from_pretrained(encoder).eval()
    tokenizer = BertTokenizerFast.from_pretrained(encoder)

    def alone(text: str) -> np.ndarray:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()

    alike = likeness.prepare(PHRASES)

    assert "tiny-bert" in likeness.told
    seen = set()
    for first in PHRASES:
        for second in PHRASES:
            one, two = alone(first), alone(second)
            cosine = float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
            assert alike(first, second) == pytest.approx(cosine, abs=1e-5)
            seen.add(round(cosine, 3))
    assert len(seen) > 3


def test_without_an_encoder_words_are_compared_and_the_report_is_told() -> None:
    likeness = open_likeness(None)

    assert likeness.name == "words"
    assert "lexical stand-in" in likeness.told
    assert likeness.prepare(PHRASES)("a red circle", "circle") == phrase_similarity("a red circle", "circle")


def test_pickled_weights_are_refused_by_the_name_of_the_key(encoder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (pickled / name).write_bytes((encoder / name).read_bytes())
    torch.save(BertModel.from_pretrained(encoder).state_dict(), pickled / "pytorch_model.bin")

    with pytest.raises(InputError, match=r"config.phrase_encoder: .*pickled cannot be loaded as a text encoder"):
        open_likeness(pickled)


def test_a_folder_without_an_encoder_is_a_fault_of_the_plan(tmp_path: Path) -> None:
    config = Evaluate.Config(benchmarks=["gcg"], phrase_encoder=tmp_path / "none")
    inputs = Evaluate.Inputs(model=Checkpoint(tmp_path), shards={"a": Shards(tmp_path)})

    faults = Evaluate(config, inputs, Evaluate.Outputs(report=Report(tmp_path))).faults()

    assert "has no config.json" in faults["config.phrase_encoder"]


def test_another_encoder_in_the_same_folder_is_seen(encoder: Path, tmp_path: Path) -> None:
    stage = Evaluate(
        Evaluate.Config(benchmarks=["gcg"], phrase_encoder=encoder),
        Evaluate.Inputs(model=Checkpoint(tmp_path), shards={"a": Shards(tmp_path)}),
        Evaluate.Outputs(report=Report(tmp_path)),
    )

    assert str(encoder / "model.safetensors") in stage.outside()
