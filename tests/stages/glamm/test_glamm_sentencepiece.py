"""LLaMA's older tokenizer files are read as they were written; the ids that weights were trained with are asserted."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from orchestrator.errors import InputError
from stages.glamm.config import SPECIAL_TOKENS
from stages.glamm.tokenizer import Vocabulary
from tests.stages.sentencepieces import LETTERS, encoded, pieces, tokenizer_model

BASE = len(pieces())
PUBLISHED = {token: BASE + place for place, token in enumerate(SPECIAL_TOKENS)}


def vocabulary(folder: Path, added: dict[str, int] | None = None) -> Vocabulary:
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return Vocabulary.read(folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return vocabulary(tmp_path_factory.mktemp("vicuna"), PUBLISHED)


@pytest.mark.parametrize("text", ["A red bar is in this.", "bared redder bar", "thin thing", "é 猫", "two  spaces "])
def test_text_is_cut_as_sentencepiece_cuts_it(words: Vocabulary, text: str) -> None:
    assert words.encode(text)[0] == [1, *encoded(text)]  # begun with <s>, as LLaMA was trained


@settings(max_examples=100, deadline=None)
@given(some.text(alphabet=LETTERS.replace("▁", " ") + "é", min_size=1, max_size=30).filter(lambda text: text[0] != " "))
def test_any_text_is_cut_alike_and_comes_back(words: Vocabulary, text: str) -> None:
    ids, _ = words.encode(text)

    assert ids == [1, *encoded(text)]
    assert words.tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()


def test_special_tokens_have_the_ids_that_glamm_was_trained_with(words: Vocabulary) -> None:
    """With Vicuna's 32,000 tokens these are 32000 to 32006, of which [SEG] is 32004."""
    assert (words.image_id, words.box_id, words.seg_id) == (BASE, BASE + 2, BASE + 4)
    assert (words.phrase_start_id, words.phrase_end_id, words.end_id) == (BASE + 5, BASE + 6, 2)
    assert words.size == BASE + 7
    ids, _ = words.encode("<p> A red bar </p> [SEG]</s>")
    assert ids[-3:] == [BASE + 6, BASE + 4, 2]  # nothing between: no lone space piece before a special token


def test_what_is_saved_needs_no_sentencepiece_and_is_the_same(words: Vocabulary) -> None:
    again = Vocabulary.of_files(words.files())

    text = "A red bar <p> is in </p> [SEG]."
    assert again.encode(text) == words.encode(text)
    assert (again.end, again.seg_id) == ("</s>", words.seg_id)


def test_ids_other_than_those_of_training_are_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"\[SEG\] had the id 32004, here it gets {BASE + 4}"):
        vocabulary(tmp_path, {**PUBLISHED, "[SEG]": 32004})


def test_the_ids_in_a_tokenizer_config_count_as_well(tmp_path: Path) -> None:
    decoder = {str(number + 1): {"content": token} for token, number in PUBLISHED.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))

    with pytest.raises(InputError, match=f"<im_start> had the id {BASE + 1}, here it gets {BASE}"):
        vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xff no protobuf", "tokenizer.model"),
        (b"", "is no byte-pair encoding"),
        (tokenizer_model(model_type=1), "is no byte-pair encoding"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)

    with pytest.raises(InputError, match=message):
        Vocabulary.read(tmp_path)


def test_a_folder_without_any_tokenizer_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json: give a folder .*tokenizer\.model"):
        Vocabulary.read(tmp_path)
