"""Assistant: a GLaMM to ask from one's own program; what `stages.glamm.load` returns."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from orchestrator.errors import InputError
from stages.family import GroundedCaption, Referred
from stages.glamm.answer import GlammModel
from stages.samples import Turn
from stages.vision import Box, as_picture, check_box, read_image

Picture = Image.Image | str | Path
Message = Mapping[str, str]
ROLES = ("user", "assistant")


class Assistant:
    """Answers about pictures; each is a PIL image, or the path of a JPEG or PNG. Boxes are x0, y0, x1, y1 in pixels.

    Answers are greedy, so that equal questions have equal answers.
    """

    def __init__(self, model: GlammModel) -> None:
        """Takes a model that is ready to answer."""
        self.model = model

    def caption(self, image: Picture, *, max_new_tokens: int = 256) -> GroundedCaption:
        """Writes a caption whose phrases carry masks."""
        (grounded,) = self.model.ground([_opened(image)], max_new_tokens=max_new_tokens)
        return grounded

    def refer(self, image: Picture, text: str, *, max_new_tokens: int = 256) -> Referred:
        """Points at what a text means: a mask for each time the model points, none where it points at nothing."""
        return self.model.refer(_opened(image), text, max_new_tokens=max_new_tokens)

    def describe_region(self, image: Picture, box: Sequence[float], *, max_new_tokens: int = 256) -> str:
        """Says what is in a box."""
        return self.describe_regions(image, [box], max_new_tokens=max_new_tokens)[0]

    def describe_regions(
        self, image: Picture, boxes: Sequence[Sequence[float]], *, max_new_tokens: int = 256
    ) -> list[str]:
        """Says what is in each of several boxes, each for itself."""
        picture = _opened(image)
        (texts,) = self.model.describe_regions([picture], [_inside(boxes, picture)], max_new_tokens=max_new_tokens)
        return texts

    def chat(
        self, image: Picture, messages: str | Sequence[Message], *, boxes: Sequence[Sequence[float]] = ()
    ) -> GroundedCaption:
        """Answers the last of some messages, {"role": "user" or "assistant", "content": text} in turn.

        `<bbox>` in a message of the user stands for the next of `boxes`. A single text is a first message.
        """
        picture = _opened(image)
        *before, last = _turns([{"role": "user", "content": messages}] if isinstance(messages, str) else messages)
        return self.model.answer(picture, last.question, _inside(boxes, picture), before=before)


def _opened(image: Picture) -> Image.Image:
    return as_picture(image) if isinstance(image, Image.Image) else read_image(Path(image))


def _inside(boxes: Sequence[Sequence[float]], picture: Image.Image) -> list[Box]:
    return [check_box(box, width_px=picture.width, height_px=picture.height) for box in boxes]


def _turns(messages: Sequence[Message]) -> list[Turn]:
    """Pairs questions with answers; the last question has none yet."""
    for number, message in enumerate(messages):
        wanted = ROLES[number % 2]
        if message.get("role") != wanted or not isinstance(message.get("content"), str):
            raise InputError(
                f"messages[{number}]: role {message.get('role')!r} given, {wanted!r} with a text as content is needed; "
                "they go in turn and begin with 'user'"
            )
    texts = [message["content"] for message in messages]
    if len(texts) % 2 == 0:
        raise InputError("messages must end with one of the user, who then is answered")
    if not texts[-1].strip():
        raise InputError(f"messages[{len(texts) - 1}]: its content is empty")
    return [
        Turn(question=question, answer=answer) for question, answer in zip(texts[::2], [*texts[1::2], ""], strict=True)
    ]
