"""The pictures of an evaluation: what is true of an image beside what was said of it, and grids of what was found."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.stage import StageContext
from stages.evaluate.answers import Answer, panel_of
from stages.evaluate.asking import Asked
from stages.evaluate.benchmarks import BENCHMARKS
from stages.evaluate.grid_pictures import Look, draw_grid
from stages.evaluate.grids import Search, View, searches
from stages.evaluate.items import HeldOut
from stages.evaluate.layers import write_layers
from stages.evaluate.stage import Evaluate
from stages.pictures import contact_sheet, draw_panels
from stages.vision import decode_image, mask_from_rle
from stages.windows import mask_of_box

if TYPE_CHECKING:
    from PIL import Image

SHEET_PICTURES = 6
GRID_ROWS = 4  # queries of a grid
_TITLES = {"trained": "Trained", "untrained": "Untrained (fresh weights)"}


def draw_all(
    config: Evaluate.Config, held_out: HeldOut, asked: Sequence[Asked], directory: Path, context: StageContext
) -> list[dict[str, str]]:
    """Draws grids and the first pictures of each benchmark and a contact sheet, and tells the journal.

    Returns {"path", "benchmark", "key", "text"} of each, with "layers" or "title" where it has one.
    """
    drawn: list[dict[str, str]] = []
    pictures: list[Image.Image] = []
    tell = _teller(directory, context)
    for name in config.benchmarks:
        of_this = [one for one in asked if one.benchmark == name]
        drawn += _draw_grids(name, of_this, config.pictures, held_out, tell)
        for number, one in enumerate(of_this[: config.pictures]):
            image, said = decode_image(held_out.read(one.place).image), _said(one)
            picture = draw_panels(image, [panel_of(title, answer) for title, answer in said])
            path = tell(picture, f"{name}_{number:03d}.png", f"{name}/{one.key}")
            pictures.append(picture)
            shown = {"path": f"pictures/{path.name}", "layers": write_layers(path.with_suffix(".json"), image, said)}
            drawn.append({**shown, "benchmark": name, "key": one.key, "text": _in_words(one)})
    if pictures:
        tell(contact_sheet(pictures[:SHEET_PICTURES]), "sheet.png", "sheet")
    return drawn


Teller = Callable[["Image.Image", str, str], Path]


def _teller(directory: Path, context: StageContext) -> Teller:
    def tell(picture: "Image.Image", file: str, name: str) -> Path:
        path = directory / file
        picture.save(path)
        context.journal.append("picture", path=str(path.relative_to(context.directory)), name=name)
        return path

    return tell


def _draw_grids(name: str, asked: Sequence[Asked], most: int, held_out: HeldOut, tell: Teller) -> list[dict[str, str]]:
    """Draws what the first texts found, and what was found for the first views; nothing but of retrieval."""
    sought = BENCHMARKS[name].sought
    if sought is None or not asked or not most:
        return []
    references = [one.reference for one in asked]
    found = {
        _TITLES[model]: searches([one.answers[model] for one in asked], references, sought, min(most, GRID_ROWS))
        for model in asked[0].answers
    }

    def look(view: View) -> Look:
        return _look(held_out, asked[view.item], view)

    drawn = []
    one = sought.removesuffix("s")
    for direction, (key, title) in enumerate(
        ((f"text_to_{one}", f"Texts look for {sought}"), (f"{one}_to_text", f"{sought.capitalize()} look for texts"))
    ):
        rows = [(model, both[direction]) for model, both in found.items()]
        heading = f"{title}: {name}, among all {len(asked)} images"
        path = tell(draw_grid(heading, rows, look), f"{name}_{key}.png", f"{name}/{key}")
        told = {"title": heading, "text": _ranks_in_words(heading, rows)}
        drawn.append({"path": f"pictures/{path.name}", "benchmark": name, "key": key, **told})
    return drawn


def _look(held_out: HeldOut, one: Asked, view: View) -> Look:
    image = decode_image(held_out.read(one.place).image)
    if view.region is None:
        return Look(image=image, mask_HW=None)
    said = one.reference.said[view.region]
    if said.mask is not None:
        return Look(image=image, mask_HW=mask_from_rle(said.mask))
    assert said.box_xyxy_px is not None  # noqa: S101 - regions are looked for by what they have
    return Look(image=image, mask_HW=mask_of_box(said.box_xyxy_px, width_px=image.width, height_px=image.height))


def _ranks_in_words(heading: str, rows: Sequence[tuple[str, Sequence[Search]]]) -> str:
    """Describes a grid to those who cannot see it."""
    ranks = (f"{model}: {', '.join(str(search.rank) for search in found)}" for model, found in rows)
    return f"{heading}. The rank of the right one, query by query. {'. '.join(ranks)}."


def _said(one: Asked) -> list[tuple[str, Answer]]:
    """Lists what is true and what each model said, with a title each."""
    return [("Ground truth", one.reference), *((_TITLES[model], answer) for model, answer in one.answers.items())]


def _in_words(one: Asked) -> str:
    """Describes a picture to those who cannot see it."""
    said = [f"Ground truth: {_text(one.reference)}", *(f"{name}: {_text(a)}" for name, a in one.answers.items())]
    return f"Held-out image {one.key}. " + " | ".join(said)


def _text(answer: Answer) -> str:
    return answer.caption or "; ".join(said.phrase for said in answer.said) or "(nothing)"
