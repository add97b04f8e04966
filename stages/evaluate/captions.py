"""Scores of text: METEOR, CIDEr, BLEU-4 and ROUGE-L of captions, likeness and equality of phrases.

Every scorer takes one hypothesis and one or more references for each item, as plain text.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence

from nltk.translate.bleu_score import corpus_bleu
from nltk.translate.meteor_score import meteor_score

LONGEST_NGRAM = 4
ROUGE_BETA = 1.2  # as in COCO's caption scripts
SIGMA = 6.0  # of CIDEr-D's penalty for another length, in words
ARTICLES = frozenset({"a", "an", "the"})

# one token a match: a contraction's tail, a word before "n't", a word with inner dots, hyphens or commas
TOKEN = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|\w+?(?=n't\b)|\w+(?:[.,-]\w+)*")

Ngrams = Counter[tuple[str, ...]]
Weights = dict[tuple[str, ...], float]


def tokenize(text: str) -> list[str]:
    """Cuts text into lower-case words in the manner of the Penn Treebank; punctuation is dropped.

    "The dog's red-ish ball isn't 3.5 m." -> the dog 's red-ish ball is n't 3.5 m
    """
    return TOKEN.findall(text.lower().replace("\u2019", "'"))


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Averages NLTK's METEOR over the items, with exact and stemmed matches only: no WordNet synonyms.

    Its parameters are those of the original paper (alpha 0.9, beta 3, gamma 0.5), not those of METEOR 1.5.
    """
    scores = each_meteor(hypotheses, references)
    return sum(scores) / len(scores) if scores else 0.0


def each_meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns the METEOR of each item, as `meteor` averages them."""
    return [
        meteor_score([tokenize(text) for text in texts], tokenize(hypothesis), wordnet=NoSynonyms())
        if tokenize(hypothesis) and any(tokenize(text) for text in texts)
        else 0.0
        for hypothesis, texts in zip(hypotheses, references, strict=True)
    ]


class NoSynonyms:
    """Stands where METEOR looks for WordNet, and knows no synonym of any word."""

    def synsets(self, _word: str) -> list[object]:
        """Returns no synonym sets."""
        return []


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Averages CIDEr-D over the items: tf-idf n-gram cosines with clipping and a length penalty, times 10.

    As in Vedantam et al. 2015: n = 1..4 weighted equally, document frequencies over the references of these very
    items, sigma 6. Term frequencies are counts, as in the authors' code. With a single item every idf is log 1 = 0,
    so the score is 0; it means something from a few dozen items on.
    """
    if not hypotheses:
        return 0.0
    items = [[tokenize(text) for text in texts] for texts in references]
    frequencies = [_document_frequencies(items, n) for n in range(1, LONGEST_NGRAM + 1)]
    scores = [
        _cider_of_item(tokenize(hypothesis), texts, frequencies, len(items))
        for hypothesis, texts in zip(hypotheses, items, strict=True)
    ]
    return sum(scores) / len(scores)


def bleu4(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns BLEU-4 of all items together, unsmoothed; 0 where some n-gram length has no match at all."""
    if not hypotheses:
        return 0.0
    cut = [[tokenize(text) for text in texts] for texts in references]
    said = [tokenize(hypothesis) for hypothesis in hypotheses]
    return float(corpus_bleu(cut, said)) if _shares_ngram(cut, said) else 0.0


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Averages ROUGE-L over the items: the F score (beta 1.2) of best precision and best recall of shared runs."""
    scores = [
        _rouge_of_item(tokenize(hypothesis), [tokenize(text) for text in texts])
        for hypothesis, texts in zip(hypotheses, references, strict=True)
    ]
    return sum(scores) / len(scores) if scores else 0.0


def phrase_words(phrase: str) -> tuple[str, ...]:
    """Normalises a phrase: its words, lower-case, without articles and punctuation."""
    return tuple(word for word in tokenize(phrase) if word not in ARTICLES)


def phrase_similarity(first: str, second: str) -> float:
    """Returns how alike two phrases are, 0 to 1: F1 of their sets of words, articles left out.

    A lexical stand-in for the BERT cosine of the released evaluation, which needs weights from a network.
    """
    mine, yours = set(phrase_words(first)), set(phrase_words(second))
    if not mine or not yours:
        return float(mine == yours)
    return 2 * len(mine & yours) / (len(mine) + len(yours))


def phrases_equal(first: str, second: str) -> float:
    """Returns 1.0 if two phrases have the same words in the same order, articles left out, else 0.0."""
    return float(phrase_words(first) == phrase_words(second))


def exact_share(predicted: Sequence[Collection[str]], truth: Sequence[Collection[str]]) -> float:
    """Returns the share of items whose phrases are exactly the reference's, in any order and equally often."""
    same = [_counted(mine) == _counted(yours) for mine, yours in zip(predicted, truth, strict=True)]
    return sum(same) / len(same) if same else 0.0


def found_share(predicted: Sequence[Collection[str]], truth: Sequence[Collection[str]]) -> float:
    """Returns the share of all reference phrases that were said in exactly these words."""
    found = sum((_counted(mine) & _counted(yours)).total() for mine, yours in zip(predicted, truth, strict=True))
    asked = sum(len(yours) for yours in truth)
    return found / asked if asked else 0.0


def _shares_ngram(references: Sequence[Sequence[list[str]]], hypotheses: Sequence[list[str]]) -> bool:
    """Tells whether any item shares a run of the longest length: else BLEU is 0, of which nltk warns at length."""
    return any(
        _ngrams(said, LONGEST_NGRAM) & _ngrams(text, LONGEST_NGRAM)
        for said, texts in zip(hypotheses, references, strict=True)
        for text in texts
    )


def _rouge_of_item(said: Sequence[str], texts: Sequence[Sequence[str]]) -> float:
    shared = [(_longest_common(said, text), len(text)) for text in texts if said and text]
    precision = max((count / len(said) for count, _ in shared), default=0.0)
    recall = max((count / length for count, length in shared), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Counts the words of the longest sequence that both contain in order, gaps allowed."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0  # the row above, one to the left
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = before + 1 if word == other else max(above, row[place - 1])
            before = above
    return row[-1]


def _counted(phrases: Collection[str]) -> Counter[tuple[str, ...]]:
    return Counter(phrase_words(phrase) for phrase in phrases)


def _document_frequencies(items: Sequence[Sequence[Sequence[str]]], n: int) -> Ngrams:
    frequencies: Ngrams = Counter()
    for texts in items:
        frequencies.update({ngram for words in texts for ngram in _ngrams(words, n)})
    return frequencies


def _cider_of_item(
    words: Sequence[str], texts: Sequence[Sequence[str]], frequencies: Sequence[Ngrams], num_items: int
) -> float:
    scores = []
    for reference in texts:
        penalty = math.exp(-((len(words) - len(reference)) ** 2) / (2 * SIGMA**2))
        cosines = [
            _clipped_cosine(
                _tf_idf(_ngrams(words, n), frequency, num_items), _tf_idf(_ngrams(reference, n), frequency, num_items)
            )
            for n, frequency in enumerate(frequencies, start=1)
        ]
        scores.append(10.0 * penalty * sum(cosines) / LONGEST_NGRAM)
    return sum(scores) / len(scores) if scores else 0.0


def _ngrams(words: Sequence[str], n: int) -> Ngrams:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _tf_idf(ngrams: Ngrams, frequencies: Ngrams, num_items: int) -> Weights:
    return {
        ngram: count * (math.log(num_items) - math.log(max(1, frequencies[ngram]))) for ngram, count in ngrams.items()
    }


def _clipped_cosine(hypothesis: Weights, reference: Weights) -> float:
    norm = math.hypot(*hypothesis.values()) * math.hypot(*reference.values())
    if norm == 0:
        return 0.0
    shared = hypothesis.keys() & reference.keys()
    return sum(min(hypothesis[ngram], reference[ngram]) * reference[ngram] for ngram in shared) / norm
