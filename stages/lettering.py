"""Sets words into lines of a given width, and lines into a given width."""

from collections.abc import Sequence

from PIL import ImageFont

from orchestrator.records import record

GAP_PX = 4  # between words, and around the text of a chip
TEXT_SIZE_PX = 16

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@record
class Word:
    """One word to be set, and the mark it belongs to."""

    text: str
    mark: int | None
    tight: bool = False  # no space before it: punctuation after a chip, and the words inside a chip
    opens_line: bool = False
    faint: bool = False


def set_lines(words: Sequence[Word], width_px: int, size_px: int = TEXT_SIZE_PX) -> list[list[tuple[int, int, Word]]]:
    """Breaks words into lines of (left, right, word)."""
    letters = font(size_px)
    lines: list[list[tuple[int, int, Word]]] = [[]]
    right_px = 0
    for word in words:
        left_px = right_px + _gap_px(word) if lines[-1] else 0
        extent_px = round(letters.getlength(word.text)) + (2 * GAP_PX if word.mark is not None else 0)
        if lines[-1] and (word.opens_line or left_px + extent_px > width_px):
            lines.append([])
            left_px = 0
        right_px = left_px + extent_px
        lines[-1].append((left_px, right_px, word))
    return lines


def _gap_px(word: Word) -> int:
    if not word.tight:
        return GAP_PX
    return 0 if word.mark is None else -GAP_PX  # inside a chip the paddings of two words overlap


def fitting(text: str, letters: Font, width_px: int) -> str:
    """Shortens a line in its middle until it fits."""
    shown, cut = text, 0
    while cut < len(text) and letters.getlength(shown) > width_px:
        cut += 1
        half = (len(text) - cut) // 2
        shown = f"{text[:half]}…{text[half + cut :]}"
    return shown


def font(size_px: int) -> Font:
    """Returns the letters of this size that Pillow brings along."""
    return ImageFont.load_default(size_px)
