"""A plain tokenizer: ids and words belong to each other, its files bring it back, and shards teach a small one."""

import json
from pathlib import Path

import pytest

from orchestrator.artifacts import Shards, Tokenizer
from orchestrator.errors import InputError
from stages.tokenizer.stage import LearnTokenizer
from stages.wordpieces import FILES, WordPieces, learn_pieces
from tests.stages.conversion import context_in
from tests.stages.scenes import scene, write_shards

TEXTS = ["A red bar, near the sea.", "the sea"] * 40


@pytest.mark.parametrize("attached", [False, True])
def test_any_text_comes_back_and_every_word_has_ids_of_its_own(attached: bool) -> None:  # noqa: FBT001
    pieces = learn_pieces(TEXTS, 320, attached=attached)
    text = "A red zebra, near é."

    found, words = pieces.words(pieces.encode(text))

    assert found == text
    assert [text[slice(*span)] for span, _ in words] == text.split()
    assert all(places for _, places in words)
    together = [place for _, places in words for place in places]
    assert together == sorted(set(together))  # none of them is two words'


def test_punctuation_stays_at_its_word_where_that_is_asked_for() -> None:
    apart, attached = (learn_pieces(TEXTS, 320, attached=one) for one in (False, True))

    assert len(attached.encode("the sea.")) == len(apart.encode("the sea.")) - 1 == 2


def test_its_files_bring_it_back_and_it_ends_as_t5_does() -> None:
    pieces = learn_pieces(TEXTS, 300)

    again = WordPieces.of_files(pieces.files())

    assert again.encode("near the sea") == pieces.encode("near the sea")
    assert (again.pad_id, again.start_id, again.end_id) == (0, 0, 1)


def test_berts_tokens_are_known_by_their_own_names() -> None:
    files = learn_pieces(TEXTS, 300).files()
    named = {"pad_token": "<pad>", "cls_token": "<unk>", "sep_token": {"content": "</s>"}}

    pieces = WordPieces.of_files({**files, FILES[1]: json.dumps(named).encode()})

    assert (pieces.pad_id, pieces.start_id, pieces.end_id) == (0, 2, 1)


def test_a_folder_without_a_fast_tokenizer_or_its_end_token_is_refused(tmp_path: Path) -> None:
    files = learn_pieces(TEXTS, 300).files()

    with pytest.raises(InputError, match=r"no tokenizer\.json and no tokenizer_config\.json"):
        WordPieces.read(tmp_path)
    with pytest.raises(InputError, match="lacks its eos_token '<end>'"):
        WordPieces.of_files({**files, FILES[1]: b'{"pad_token": "<pad>", "eos_token": "<end>"}'})


def test_shards_teach_their_words(tmp_path: Path) -> None:
    shards: Shards = write_shards(tmp_path / "shards", [scene(number) for number in range(8)])
    stage = LearnTokenizer(
        LearnTokenizer.Config(vocabulary_size=340, texts=["where is"]),
        LearnTokenizer.Inputs(shards={"some": shards}),
        LearnTokenizer.Outputs(tokenizer=Tokenizer(tmp_path / "tokenizer")),
    )

    facts = stage.run(context_in(tmp_path))["tokenizer"]

    pieces = WordPieces.read(tmp_path / "tokenizer")
    assert facts == {"tokens": pieces.size, "inputs": ["some"]}
    assert pieces.size <= 340
    assert len(pieces.encode("where is")) == 2
    assert len(pieces.encode("stands left of")) == 3
