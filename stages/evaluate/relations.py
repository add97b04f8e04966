"""Spatial words of expressions, and what they make of the boxes of an image: ReCLIP's relations and superlatives.

The rules and their words are those of ReCLIP (arXiv 2204.05991) as released; "between" is left out, as there unless it
is asked for. The release finds heads and relations in spaCy's dependency parse; here words alone decide, which needs no
other package: what follows "left of", "behind" and the like is another thing, and what stands before it the head.

Shapes: N boxes of an image.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from orchestrator.records import record
from stages.vision import Box

Chances = NDArray[np.float64]  # N, or N x N of pairs: how well a first box and a second stand in a relation
Rule = Callable[[Box, Box], float]


def _left_of(one: Box, other: Box) -> float:
    return float(one[0] + one[2] < other[0] + other[2])


def _above(one: Box, other: Box) -> float:
    return float(one[1] + one[3] < other[1] + other[3])


def _bigger(one: Box, other: Box) -> float:
    return float(_area(one) > _area(other))


def _within(one: Box, other: Box) -> float:
    shared = (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    return _area(shared) / _area(one)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _turned(rule: Rule) -> Rule:
    return lambda one, other: rule(other, one)


_RIGHT_OF, _BELOW, _SMALLER = _turned(_left_of), _turned(_above), _turned(_bigger)
# words of a relation that has something after it, and how it is said: with "of" or "than", or as they are
_WITH_OF: Mapping[str, Rule] = {
    **dict.fromkeys(("left", "west"), _left_of),
    **dict.fromkeys(("right", "east"), _RIGHT_OF),
    **dict.fromkeys(("north", "top", "back"), _above),
    **dict.fromkeys(("south", "front"), _BELOW),
}
_WITH_THAN: Mapping[str, Rule] = {
    **dict.fromkeys(("bigger", "larger", "closer"), _bigger),
    **dict.fromkeys(("smaller", "tinier", "further"), _SMALLER),
}
_ALONE: Mapping[str, Rule] = {
    **dict.fromkeys(("above", "behind"), _above),
    **dict.fromkeys(("below", "under"), _BELOW),
    **dict.fromkeys(("inside", "within"), _within),
}
# words that single out one of several
_SUPERLATIVES: Mapping[str, Rule] = {
    **dict.fromkeys(("left", "west", "leftmost", "western"), _left_of),
    **dict.fromkeys(("right", "rightmost", "east", "eastern"), _RIGHT_OF),
    **dict.fromkeys(("above", "north", "top"), _above),
    **dict.fromkeys(("below", "south", "underneath", "front"), _BELOW),
    **dict.fromkeys(("bigger", "biggest", "larger", "largest", "closer", "closest"), _bigger),
    **dict.fromkeys(("smaller", "smallest", "tinier", "tiniest", "further", "furthest"), _SMALLER),
}
_NOTHING = {"part", "image", "side", "picture", "half", "region", "section"}
_FILLING = {"to", "the", "on", "in", "at", "of", "is", "that", "which", "far", "a", "an", "from"}


@record
class Entity:
    """A thing that an expression speaks of."""

    text: str
    relations: tuple[tuple[Rule, "Entity"], ...] = ()
    superlatives: tuple[Rule, ...] = ()

    def texts(self) -> list[str]:
        """Lists the text of this thing and of those that it is related to."""
        return [self.text, *(text for _, other in self.relations for text in other.texts())]


def entity_of(expression: str) -> Entity | None:
    """Reads an expression; None where no word of it is spatial, or nothing is left beside such words."""
    words = re.findall(r"[\w'-]+", expression.lower())
    entity = _entity(words)
    spoken = entity is not None and (entity.relations or entity.superlatives)
    return entity if spoken else None


def chances_of(entity: Entity, alone: Callable[[str], Chances], boxes: Sequence[Box]) -> Chances:
    """Returns how likely each box is the entity; `alone` tells it for a text without its relations: N, sums to 1.

    A relation weighs a box by the chances of all boxes that stand in it; a superlative by those of all that it
    surpasses. One that no box fulfils is left out, where the release would divide nothing by nothing.
    """
    chances_N = alone(entity.text)
    for rule, other in entity.relations:
        chances_N = _weighed(chances_N, _pairs(rule, boxes) @ chances_of(other, alone, boxes))
    for rule in entity.superlatives:
        chances_N = _weighed(chances_N, _pairs(rule, boxes) @ chances_N)
    return chances_N


def _entity(words: Sequence[str]) -> Entity | None:
    """Takes the head up to the first relation, and the rest as what it is related to."""
    for place, word in enumerate(words):
        found = _relation(words, place, word)
        if found is not None and (other := _entity(words[found[1] :])) is not None:
            head = _head(words[:place])
            related = ((found[0], other),)
            return head and Entity(text=head.text, relations=related, superlatives=head.superlatives)
    return _head(words)


def _relation(words: Sequence[str], place: int, word: str) -> tuple[Rule, int] | None:
    """Returns the rule of a relation and where what follows it begins; None where nothing real follows."""
    after = place + 1
    if word in _WITH_OF:
        while after < len(words) and words[after] in _NOTHING:  # "left side of"
            after += 1
    linked = words[after] if after < len(words) else ""
    if word in _ALONE:
        rule = _ALONE[word]
    elif word in _WITH_OF and linked in {"of", "from"}:
        rule = _WITH_OF[word]
    elif word in _WITH_THAN and linked in {"than", "to", "from"}:
        rule = _WITH_THAN[word]
    else:
        return None
    rest = [place for place in range(after, len(words)) if words[place] not in _FILLING | {"than"}]
    return (rule, rest[0]) if rest and words[rest[0]] not in _NOTHING else None


def _head(words: Sequence[str]) -> Entity | None:
    """Reads a thing without relations: its words, less a place at their end, and what singles it out."""
    superlatives = tuple(dict.fromkeys(_SUPERLATIVES[word] for word in words if word in _SUPERLATIVES))
    end = len(words)
    while end and (words[end - 1] in _FILLING | _NOTHING or words[end - 1] in _SUPERLATIVES):
        end -= 1
    linked = all(word in _FILLING for word in words[end:])  # "the man to the", before a relation
    placed = any(word in _SUPERLATIVES for word in words[end:])  # "the man on the left side"
    text = " ".join(words[:end] if linked or placed else words)
    return Entity(text=text, superlatives=superlatives) if text else None


def _pairs(rule: Rule, boxes: Sequence[Box]) -> Chances:
    pairs = [rule(one, other) for one, other in product(boxes, repeat=2)]
    return np.array(pairs, dtype=np.float64).reshape(len(boxes), len(boxes))


def _weighed(chances_N: Chances, weights_N: Chances) -> Chances:
    weighed_N = chances_N * weights_N
    total = float(weighed_N.sum())
    return weighed_N / total if total > 0 else chances_N
