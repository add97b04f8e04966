"""What is said in training: phrases woven into answers, labels, special tokens."""

import json

import pytest

from orchestrator.errors import InputError
from stages.glamm.batches import IGNORED
from stages.glamm.collate import Collator, Example
from stages.glamm.config import SPECIAL_TOKENS
from stages.glamm.prompts import BBOX, SEG, clean, make_conversation, weave
from stages.glamm.tokenizer import Vocabulary
from stages.samples import Turn
from tests.stages.glamm_models import picture, tiny_blueprint, vocabulary

WORDS = vocabulary()


def test_phrases_are_wrapped_where_they_stand_and_their_meanings_follow_the_order_of_the_text() -> None:
    caption = "A red bar stands left of a blue bar."

    text, used = weave(caption, {(25, 35): "second", (0, 9): "first"})

    assert text == "<p> A red bar </p> [SEG] stands left of <p> a blue bar </p> [SEG]."
    assert used == ["first", "second"]


def test_of_overlapping_phrases_the_earlier_and_longer_one_stays() -> None:
    text, used = weave("A red bar.", {(2, 9): "inner", (0, 5): "short", (0, 9): "whole"})

    assert text == "<p> A red bar </p> [SEG]."
    assert used == ["whole"]


def test_there_is_one_meaning_for_each_seg_whatever_the_caption_says() -> None:
    text, used = weave("A [SEG] bar and <p> tricks [SEG].", {(0, 11): 1, (12, 15): 2})

    assert text.count(SEG) == len(used) == 2


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, "</s>"])
def test_text_of_others_cannot_hold_a_special_token(token: str) -> None:
    assert clean(f"a {token} b") == "a b"


def test_only_what_the_assistant_says_and_its_end_mark_is_learnt() -> None:
    turns = [Turn(question="What is it?", answer="A red bar."), Turn(question="And this?", answer="A blue bar.")]
    conversation = make_conversation(turns, end=WORDS.end)

    tokens = Collator(tiny_blueprint(WORDS), WORDS).tokens(conversation)

    learnt = [token for token in tokens.labels if token != IGNORED]
    said = [*WORDS.encode(" A red bar.")[0], WORDS.end_id, *WORDS.encode(" A blue bar.")[0], WORDS.end_id]
    assert learnt == said
    assert all(label in {IGNORED, token} for token, label in zip(tokens.ids, tokens.labels, strict=True))


def test_the_image_stands_between_its_marks_and_is_never_learnt() -> None:
    blueprint = tiny_blueprint(WORDS)
    tokens = Collator(blueprint, WORDS).tokens(make_conversation([Turn(question="?", answer="A bar.")], end=WORDS.end))

    start, end = tokens.image
    assert end - start == blueprint.num_image_tokens == 16
    assert (tokens.ids[start - 1], tokens.ids[end]) == (WORDS.image_id, WORDS.image_id + 1)
    assert set(tokens.labels[start:end]) == {IGNORED}


def test_a_mask_is_read_from_the_token_before_its_seg() -> None:
    turns = [Turn(question="?", answer="<p> A red bar </p> [SEG] and <p> a blue bar </p> [SEG].")]

    tokens = Collator(tiny_blueprint(WORDS), WORDS).tokens(make_conversation(turns, end=WORDS.end))

    assert [tokens.ids[place] for place in tokens.before_segs] == [WORDS.phrase_end_id] * 2
    assert [tokens.ids[place + 1] for place in tokens.before_segs] == [WORDS.seg_id] * 2


def test_what_is_cut_off_takes_its_box_along() -> None:
    blueprint = tiny_blueprint(WORDS)
    turns = [Turn(question=f"What is {BBOX}?", answer="A red bar. " * 5) for _ in range(9)]
    boxes = [(index, 0, index + 9, 9) for index in range(9)]
    image = picture(1)
    conversation = make_conversation(turns, end=WORDS.end, boxes_xyxy_px=boxes)

    batch = Collator(blueprint, WORDS).batch([Example(image=image, conversation=conversation)])

    assert batch.ids_BL.shape[1] == blueprint.max_tokens
    assert 0 < len(batch.boxes_R4) < 9
    assert len(batch.boxes_R4) == int(batch.is_box_BL.sum())
    assert [round(float(x) * image.width) for x in batch.boxes_R4[:, 0]] == list(range(len(batch.boxes_R4)))


def test_special_tokens_have_the_last_ids_in_their_order() -> None:
    ids = [WORDS.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]

    assert ids == list(range(WORDS.size - 7, WORDS.size))
    assert (WORDS.image_id, WORDS.box_id, WORDS.seg_id) == (ids[0], ids[2], ids[4])


def test_a_tokenizer_with_special_tokens_elsewhere_is_refused_with_both_lists() -> None:
    files = WORDS.files()
    inner = json.loads(files["tokenizer.json"])
    added = {token["content"]: token for token in inner["added_tokens"]}
    added["[SEG]"]["id"], added["<p>"]["id"] = added["<p>"]["id"], added["[SEG]"]["id"]
    inner["added_tokens"].sort(key=lambda token: int(token["id"]))

    with pytest.raises(InputError, match=r"\[SEG\].*must have the ids"):
        Vocabulary.of_files({**files, "tokenizer.json": json.dumps(inner).encode()})


def test_a_tokenizer_comes_back_from_its_files_as_it_was() -> None:
    again = Vocabulary.of_files(WORDS.files())

    text = "A red bar <p> stands </p> [SEG] at <bbox>, naïve 猫."
    assert again.encode(text) == WORDS.encode(text)
    assert (again.size, again.end_id) == (WORDS.size, WORDS.end_id)


def test_any_text_can_be_written_and_read_back() -> None:
    text = "Zwölf Boxkämpfer, 猫 & co"

    assert WORDS.decode(WORDS.encode(f" {text}")[0]) == text
