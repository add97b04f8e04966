"""The small language of the scenes: what is said about a picture, and which characters mean which thing."""

from collections.abc import Iterable, Sequence

from orchestrator.records import record
from stages.shapes.scenes import Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four")


@record
class Said:
    """A sentence, and the [start, end) characters of each of its phrases."""

    text: str
    spans: tuple[tuple[int, int], ...]


def thing_phrase(thing: Thing) -> str:
    """Says everything about how a thing looks: "a small striped blue bar"."""
    texture = () if thing.texture == "plain" else (thing.texture,)
    return " ".join(("a", thing.size, *texture, thing.colour, thing.shape))


def short_phrase(thing: Thing) -> str:
    """Says colour and shape: "an orange circle"."""
    return f"{_article(thing.colour)} {thing.colour} {thing.shape}"


def ground_phrase(scene: Scene) -> str:
    """Says what everything lies on: "a sandy ground"."""
    return f"a {scene.ground} ground"


def short_caption(scene: Scene) -> str:
    """Names the things from left to right: "A red circle and a blue bar."."""
    return _sentence(_listed([short_phrase(thing) for thing in scene.things]))


def grounded_caption(scene: Scene) -> Said:
    """Names things and ground; the phrases are the things from left to right, then the ground."""
    phrases = [*map(short_phrase, scene.things), ground_phrase(scene)]
    text = _sentence(f"{_listed(phrases[:-1])} on {phrases[-1]}")
    spans, at = [], 0
    for phrase in phrases:
        start = text.lower().index(phrase, at)
        at = start + len(phrase)
        spans.append((start, at))
    return Said(text=text, spans=tuple(spans))


def segment_description(scene: Scene, number: int) -> str:
    """Describes things[number] and its place; -1 is the ground."""
    if number < 0:
        count = len(scene.things)
        return _sentence(f"{ground_phrase(scene)} behind {NUMBERS[count]} {'shape' if count == 1 else 'shapes'}")
    thing = scene.things[number]
    if len(scene.things) == 1:
        return _sentence(f"{thing_phrase(thing)} alone on {ground_phrase(scene)}")
    if number + 1 < len(scene.things):
        return _sentence(f"{thing_phrase(thing)} on the left of {short_phrase(scene.things[number + 1])}")
    return _sentence(f"{thing_phrase(thing)} on the right of {short_phrase(scene.things[number - 1])}")


def dialogue(scene: Scene) -> list[tuple[str, str]]:
    """Asks how many, what colour, and where; every answer follows from the picture alone."""
    turns = [("How many shapes are there?", f"{NUMBERS[len(scene.things)].capitalize()}.")]
    shapes = [thing.shape for thing in scene.things]
    for number, thing in enumerate(scene.things):
        if shapes.count(thing.shape) == 1:
            turns.append((f"What colour is the {thing.shape}?", f"{thing.colour.capitalize()}."))
        if len(shapes) > 1:
            turns.append((f"Where is the {thing.colour} {thing.shape}?", _place(scene.things, number)))
    return turns


def _place(things: Sequence[Thing], number: int) -> str:
    side, other = ("left", things[number + 1]) if number + 1 < len(things) else ("right", things[number - 1])
    return f"On the {side} of the {other.colour} {other.shape}."


def _listed(phrases: Iterable[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
