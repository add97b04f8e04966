"""Retrieval, to be looked at: what a text finds first, and what is found first for an image or a region.

Shapes: C candidates, D dimensions of an embedding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.records import record
from stages.evaluate.answers import Answer
from stages.evaluate.benchmark import Sought
from stages.evaluate.retrieval import Vectors, plain_words, pooled, ranks_of

TOP = 5  # candidates that a picture shows of each search


@record
class View:
    """Something that is seen: an image, as its place among those asked about, or a region of it."""

    item: int
    region: int | None  # its place in the reference; None: the whole image


@record
class Hit:
    """A candidate that a query found."""

    shown: View | str
    cosine: float
    right: bool


@record
class Search:
    """A query, and the candidates nearest to it."""

    query: View | str
    hits: tuple[Hit, ...]  # the nearest first; of equally near ones the wrong first, as they are scored
    rank: int  # of the nearest right one, from 1
    among: int  # so many candidates


class _Pool(NamedTuple):
    """Everything that can be asked for or found: side by side what is shown, its label, and its embedding."""

    shown: Sequence[View | str]
    labels: Sequence[str]
    vectors_CD: Vectors


def searches(
    answers: Sequence[Answer], references: Sequence[Answer], sought: Sought, most: int
) -> tuple[list[Search], list[Search]]:
    """Searches with the first text (each once), and with the first view, of each of the first `most` images.

    Returns the searches of texts for views, and of views for texts. A candidate is right if it is scored as right: of
    regions where its text is the query's, of images where it belongs to the same.
    """
    _, seen_CD, read_CD = pooled(answers, references)
    places = [(item, number) for item, reference in enumerate(references) for number in range(len(reference.said))]
    firsts = [place for place, (_, number) in enumerate(places) if number == 0]  # an image's first of each kind
    phrases = [references[item].said[number].phrase for item, number in places]
    if sought == "regions":
        labels = [plain_words(phrase) for phrase in phrases]
        views = _Pool([View(item=item, region=number) for item, number in places], labels, seen_CD)
        texts = _Pool(phrases, labels, read_CD)
        asked = sorted({labels[place]: place for place in reversed(firsts)}.values())  # each text once
        return _all(texts, asked[:most], views), _all(views, firsts[:most], _once(texts))
    owners = [str(item) for item, _ in places]
    items = range(len(references))
    views = _Pool([View(item=item, region=None) for item in items], [str(item) for item in items], seen_CD[firsts])
    texts = _Pool(phrases, owners, read_CD)
    return _all(texts, firsts[:most], views), _all(views, items[:most], texts)


def _once(pool: _Pool) -> _Pool:
    """Keeps what has a label once, as it is scored: the first."""
    kept = sorted({pool.labels[place]: place for place in reversed(range(len(pool.labels)))}.values())
    return _Pool([pool.shown[one] for one in kept], [pool.labels[one] for one in kept], pool.vectors_CD[kept])


def _all(queries: _Pool, numbers: Sequence[int], candidates: _Pool) -> list[Search]:
    return [_search(queries, number, candidates) for number in numbers]


def _search(queries: _Pool, number: int, candidates: _Pool) -> Search:
    query_1D, label = queries.vectors_CD[number : number + 1], queries.labels[number]
    cosines_C = (query_1D @ candidates.vectors_CD.T)[0]
    right_C = np.array([one == label for one in candidates.labels])
    nearest = np.lexsort((np.arange(len(cosines_C)), right_C, -cosines_C))[:TOP].tolist()
    return Search(
        query=queries.shown[number],
        hits=tuple(
            Hit(shown=candidates.shown[one], cosine=float(cosines_C[one]), right=bool(right_C[one])) for one in nearest
        ),
        rank=int(ranks_of(query_1D, [label], candidates.vectors_CD, candidates.labels)[0]),
        among=len(candidates.labels),
    )
