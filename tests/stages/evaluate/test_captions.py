"""Caption scores against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluate.captions import (
    cider,
    exact_share,
    found_share,
    meteor,
    phrase_similarity,
    phrases_equal,
    tokenize,
)


def test_tokens_follow_the_treebank_and_lose_punctuation() -> None:
    tokens = tokenize("The dog's red-ish ball, it isn't 3.5 m (wide).")

    assert tokens == ["the", "dog", "'s", "red-ish", "ball", "it", "is", "n't", "3.5", "m", "wide"]


def test_tokens_know_other_alphabets() -> None:
    assert tokenize("Ein Müller läuft.") == ["ein", "müller", "läuft"]


def test_meteor_of_an_equal_sentence_loses_only_the_chunk_penalty() -> None:
    # 4 matches in 1 chunk: F = 1, penalty = 0.5 * (1/4)^3
    assert meteor(["a red circle left"], [["A red circle, left."]]) == pytest.approx(1 - 0.5 * (1 / 4) ** 3)


def test_meteor_matches_stems_but_no_synonyms() -> None:
    stemmed = meteor(["dogs running"], [["dog run"]])

    # 2 matches in 1 chunk
    assert stemmed == pytest.approx(1 - 0.5 * (1 / 2) ** 3)
    assert meteor(["automobile"], [["car"]]) == 0.0


def test_meteor_of_half_a_sentence() -> None:
    # precision 1, recall 2/4: F = 10PR / (R + 9P) = 5 / 9.5; 2 matches in 1 chunk
    expected = (10 * 1 * 0.5 / (0.5 + 9)) * (1 - 0.5 * (1 / 2) ** 3)

    assert meteor(["red circle"], [["red circle near water"]]) == pytest.approx(expected)


def test_meteor_takes_the_best_reference_and_averages_over_items() -> None:
    assert meteor(["", "a b c"], [["x"], ["q", "a b c"]]) == pytest.approx((1 - 0.5 / 27) / 2)


def test_cider_of_equal_captions_is_ten() -> None:
    texts = ["a red circle on grass", "two blue squares over sand"]

    assert cider(texts, [[text] for text in texts]) == pytest.approx(10.0)


def test_cider_counts_what_orders_of_ngrams_share() -> None:
    # "p q" against "p r", beside an unrelated second item that is right. idf of p, q, r, pq, pr: p and r occur in one
    # reference (log 2), q and "p q" in none (log 2 - log max(1, 0)).
    # n=1: vectors (p, q) and (p, r), equal weights: cosine 1/2. n=2: nothing shared. n=3, 4: no n-grams.
    first = 10 * (0.5 + 0 + 0 + 0) / 4
    second = 10.0

    assert cider(["p q", "s t u v"], [["p r"], ["s t u v"]]) == pytest.approx((first + second) / 2)


def test_cider_ignores_words_that_every_reference_has() -> None:
    # "the" is in both references, idf 0; "the x" against "the y" shares nothing that counts
    assert cider(["the x", "the y"], [["the y"], ["the x"]]) == 0.0


def test_cider_clips_repeated_words_and_punishes_length() -> None:
    # item 1 says "p" three times for one: tf 3 against 1. Clipped dot = 1 * idf^2, norms 3 idf and idf: cosine 1/3.
    first = 10 * math.exp(-(2**2) / (2 * 36)) * (1 / 3) / 4
    # item 2, one word: only n = 1 exists
    second = 10 * 1 / 4

    assert cider(["p p p", "q"], [["p"], ["q"]]) == pytest.approx((first + second) / 2)


def test_cider_of_a_single_item_is_zero() -> None:
    assert cider(["a b"], [["a b"]]) == 0.0


def test_phrases_are_alike_by_the_words_they_share() -> None:
    assert phrase_similarity("a red circle", "the red circle") == 1.0
    assert phrase_similarity("a large red circle", "the red square") == pytest.approx(2 * 1 / (3 + 2))
    assert phrase_similarity("dog", "cat") == 0.0
    assert phrase_similarity("the", "") == 1.0


def test_equal_phrases_may_differ_in_articles_and_case_alone() -> None:
    assert phrases_equal("A red circle", "red circle.") == 1.0
    assert phrases_equal("circle red", "red circle") == 0.0


def test_exact_share_counts_images_and_found_share_counts_phrases() -> None:
    predicted = [["red circle", "blue square"], ["red circle"], ["dog", "dog"]]
    truth = [["the blue square", "a red circle"], ["red circle", "dog"], ["dog"]]

    assert exact_share(predicted, truth) == pytest.approx(1 / 3)
    assert found_share(predicted, truth) == pytest.approx((2 + 1 + 1) / (2 + 2 + 1))


@given(st.lists(st.text(alphabet="ab '.n t", max_size=30), min_size=1, max_size=5))
def test_scores_stay_in_their_range_for_any_text(texts: list[str]) -> None:
    references = [[text] for text in reversed(texts)]

    assert 0.0 <= meteor(texts, references) <= 1.0
    assert -1e-9 <= cider(texts, references) <= 10.0 + 1e-9
