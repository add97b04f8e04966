"""The contract between converters, annotators and training: what one tar member pair holds."""

from orchestrator.records import record


@record
class Rle:
    """A COCO compressed run-length mask."""

    height_px: int
    width_px: int
    counts: str


@record
class Region:
    """One described piece of an image. Pixel units of the stored image, origin top left."""

    box_xyxy_px: tuple[float, float, float, float]
    mask: Rle | None  # same height and width as the image
    phrase: str  # a few words
    caption: str = ""  # a sentence or more; may be empty
    spans: tuple[tuple[int, int], ...] = ()  # [start, end) code points of Sample.caption that mean this region
    score: float = 1.0  # 1.0 = a person wrote it
    source: str = ""
    crowd: bool = False


@record
class TimedPoint:
    """Where a speaker pointed while saying a word."""

    word: str
    x_unit: float  # 0..1 of the width; may leave it a little
    y_unit: float
    time_s: float


@record
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@record
class Sample:
    """An image and everything said about it."""

    key: str
    image: bytes  # JPEG or PNG, as stored
    width_px: int
    height_px: int
    caption: str = ""
    regions: tuple[Region, ...] = ()
    points: tuple[TimedPoint, ...] = ()
    turns: tuple[Turn, ...] = ()

    def to_members(self) -> dict[str, bytes]:
        """Encodes the sample as WebDataset members: extension -> bytes ("jpg" or "png", and "json")."""
        raise NotImplementedError

    @classmethod
    def from_members(cls, key: str, members: dict[str, bytes]) -> "Sample":
        """Decodes what `to_members` wrote; unknown JSON keys are refused by name."""
        raise NotImplementedError
