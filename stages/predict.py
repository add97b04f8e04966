"""Asks an exported model about one image and draws what it says: the work behind `orch predict`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.artifacts import Export
from orchestrator.errors import InputError, SurroundingsError
from stages.family import GroundedCaption, Model, load_family
from stages.pictures import Mark, Panel, draw_panels
from stages.vision import decode_image, rle_from_mask

MAX_NEW_TOKENS = 256
BOX_TOKEN = "<bbox>"  # noqa: S105 - a word of the vocabulary

Box = tuple[float, float, float, float]


def predict(
    export: Path, image: Path, prompt: str | None = None, boxes: Sequence[Box] = (), output: Path | None = None
) -> dict[str, Any]:
    """Answers about an image, and draws the answer to `output` if that is given.

    Without prompt and boxes it writes a grounded caption, with boxes alone a caption for each, with a prompt an answer
    to it; boxes stand for the `<bbox>`s of the prompt, in order. Returns {"image", "width_px", "height_px", "prompt",
    "caption", "phrases": [{"phrase", "span", "mask"}], "regions": [{"box_xyxy_px", "caption"}], "output"}.
    """
    picture = _read_image(image)
    _check_boxes(boxes, picture)
    _check_prompt(prompt, boxes)
    if output is not None:
        _check_output(output)
    model = _load(export)
    grounded, regions = _ask(model, picture, prompt, boxes)
    if output is not None:
        _draw(picture, grounded, regions, output)
    return {
        "image": str(image),
        "width_px": picture.width,
        "height_px": picture.height,
        "prompt": prompt,
        "caption": grounded.caption,
        "phrases": [_plain_phrase(grounded, number) for number in range(len(grounded.phrases))],
        "regions": [{"box_xyxy_px": list(box), "caption": text} for box, text in regions],
        "output": None if output is None else str(output),
    }


def parse_box(text: str) -> Box:
    """Reads a box from `x0,y0,x1,y1`, in pixels of the image."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--box {text}: four numbers x0,y0,x1,y1 in pixels are needed") from None
    return x0, y0, x1, y1


def _ask(
    model: Model, picture: Image.Image, prompt: str | None, boxes: Sequence[Box]
) -> tuple[GroundedCaption, list[tuple[Box, str]]]:
    if prompt is not None:
        return model.answer(picture, prompt, boxes), []
    if boxes:
        (texts,) = model.describe_regions([picture], [boxes], max_new_tokens=MAX_NEW_TOKENS)
        return GroundedCaption(caption="", phrases=()), list(zip(boxes, texts, strict=True))
    (grounded,) = model.ground([picture], max_new_tokens=MAX_NEW_TOKENS)
    return grounded, []


def _read_image(path: Path) -> Image.Image:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the image cannot be read ({error.strerror})") from None
    try:
        return decode_image(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _check_boxes(boxes: Sequence[Box], picture: Image.Image) -> None:
    for x0, y0, x1, y1 in boxes:
        if not (0 <= x0 < x1 <= picture.width and 0 <= y0 < y1 <= picture.height):  # also false for nan
            raise InputError(
                f"--box {x0:g},{y0:g},{x1:g},{y1:g} is no box x0,y0,x1,y1 inside the image of {picture.width} x "
                f"{picture.height} pixels"
            )


def _check_prompt(prompt: str | None, boxes: Sequence[Box]) -> None:
    if prompt is None:
        return
    if not prompt.strip():
        raise InputError("--prompt is empty; leave it out for a grounded caption")
    wanted = prompt.count(BOX_TOKEN)
    if wanted != len(boxes):
        raise InputError(f"--prompt has {wanted} {BOX_TOKEN}, but {len(boxes)} --box are given; each needs the other")


def _check_output(output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise InputError(f"--output {output}: the picture is a PNG, so the name must end in .png")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")


def _load(path: Path) -> Model:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; needed is an export, e.g. runs/NAME/export/model")
    export = Export(path)
    try:
        manifest = export.manifest()
    except ValueError:
        raise InputError(f"{path}: its manifest.json cannot be read") from None
    if manifest is None or manifest.get("kind") != Export.kind:
        found = "no manifest.json" if manifest is None else f"a {manifest.get('kind')}"
        raise InputError(f"{path} is not an export: there is {found} in it; `orch status RUN` shows where exports are")
    if damage := export.damage():
        raise InputError(f"{path} is damaged: {'; '.join(damage[:5])}")
    return load_family(str(export.facts().get("family"))).load_export(path)


def _draw(picture: Image.Image, grounded: GroundedCaption, regions: Sequence[tuple[Box, str]], output: Path) -> None:
    marks = [Mark(phrase=part.phrase, span=part.span, mask_HW=part.mask_HW) for part in grounded.phrases]
    marks += [Mark(phrase=text, box_xyxy_px=box) for box, text in regions]
    sheet = draw_panels(picture, [Panel(title=" ", caption=grounded.caption, marks=tuple(marks))])
    draft = output.with_name(f".{output.name}.draft.png")
    try:
        sheet.save(draft)
        draft.replace(output)
    except OSError as error:
        raise SurroundingsError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)


def _plain_phrase(grounded: GroundedCaption, number: int) -> dict[str, Any]:
    part = grounded.phrases[number]
    mask = rle_from_mask(part.mask_HW)
    share = float(part.mask_HW.mean())
    return {
        "phrase": part.phrase,
        "span": list(part.span),
        "mask": {"size": [mask.height_px, mask.width_px], "counts": mask.counts},
        "share_of_image": share,
    }
