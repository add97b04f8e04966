"""Asks an exported model about one image and draws what it says: the work behind `orch predict`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.artifacts import Export
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.records import record
from stages.family import ADAPTER, GroundedCaption, Model, Referred, load_family
from stages.pictures import Mark, Panel, draw_panels
from stages.samples import Turn
from stages.vision import Box, Mask, check_box, read_image, rle_from_mask

MAX_NEW_TOKENS = 256
BOX_TOKEN = "<bbox>"  # noqa: S105 - a word of the vocabulary


@record
class Asked:
    """What is asked about an image: nothing, boxes, expressions, or prompts with their boxes."""

    prompts: tuple[str, ...] = ()  # several: a conversation, each answered before the next one is put
    boxes: tuple[Box, ...] = ()
    refer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what does not go together."""
        if self.refer and (self.prompts or self.boxes):
            raise InputError("--refer goes alone: leave out --prompt and --box")
        if any(not text.strip() for text in self.refer):
            raise InputError("--refer is empty: say what to point at")
        if any(not prompt.strip() for prompt in self.prompts):
            raise InputError("--prompt is empty; leave it out for a grounded caption")
        wanted = sum(prompt.count(BOX_TOKEN) for prompt in self.prompts)
        if self.prompts and wanted != len(self.boxes):
            raise InputError(
                f"--prompt has {wanted} {BOX_TOKEN}, but {len(self.boxes)} --box are given; each needs the other"
            )


@record
class Answered:
    """What a model said."""

    turns: tuple[tuple[str | None, GroundedCaption], ...] = ()  # prompt -> answer; None: a grounded caption
    regions: tuple[tuple[Box, str], ...] = ()
    referred: tuple[tuple[str, Referred], ...] = ()


def predict(export: Path, image: Path, asked: Asked | None = None, output: Path | None = None) -> dict[str, Any]:
    """Answers about an image, and draws the answer to `output` if that is given.

    Asked nothing it writes a grounded caption; asked boxes, a caption for each; expressions, the pixels of each;
    prompts, an answer to each, in which boxes stand for the `<bbox>`s in order. Returns {"image", "width_px",
    "height_px", "prompt", "caption", "phrases": [{"phrase", "span", "mask", "share_of_image"}], "turns": [{"prompt",
    "caption", "phrases"}], "regions": [{"box_xyxy_px", "caption"}], "referred": [{"expression", "text", "masks":
    [{"mask", "share_of_image"}]}], "output"}; prompt, caption and phrases are those of the last turn.
    """
    asked = asked or Asked()
    picture = read_image(image)
    for box in asked.boxes:
        _check_box(box, picture)
    if output is not None:
        _check_output(output)
    answered = _ask(_load(export), picture, asked)
    if output is not None:
        _draw(picture, answered, output)
    turns = [_plain_turn(prompt, said) for prompt, said in answered.turns]
    return {
        "image": str(image),
        "width_px": picture.width,
        "height_px": picture.height,
        **(turns[-1] if turns else {"prompt": None, "caption": "", "phrases": []}),
        "turns": turns,
        "regions": [{"box_xyxy_px": list(box), "caption": text} for box, text in answered.regions],
        "referred": [
            {"expression": text, "text": said.text, "masks": [_plain_mask(mask_HW) for mask_HW in said.masks_HW]}
            for text, said in answered.referred
        ],
        "output": None if output is None else str(output),
    }


def parse_box(text: str) -> Box:
    """Reads a box from `x0,y0,x1,y1`, in pixels of the image."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--box {text}: four numbers x0,y0,x1,y1 in pixels are needed") from None
    return x0, y0, x1, y1


def answer_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Says in lines what `predict` returned."""
    for turn in answer["turns"]:
        if len(answer["turns"]) > 1:
            yield f"> {turn['prompt']}"
        yield turn["caption"]
        yield from (f"  {part['phrase']}: {part['share_of_image']:.1%} of the image" for part in turn["phrases"])
    for region in answer["regions"]:
        yield f"{region['box_xyxy_px']}: {region['caption']}"
    for said in answer["referred"]:
        shares = ", ".join(f"{one['share_of_image']:.1%} of the image" for one in said["masks"])
        yield f"{said['expression']}: {shares or 'pointed at nothing'}"
    if answer["output"]:
        yield answer["output"]


def _ask(model: Model, picture: Image.Image, asked: Asked) -> Answered:
    if asked.prompts:
        return Answered(turns=_converse(model, picture, asked))
    if asked.refer:
        said = [(text, model.refer(picture, text, max_new_tokens=MAX_NEW_TOKENS)) for text in asked.refer]
        return Answered(referred=tuple(said))
    if asked.boxes:
        (texts,) = model.describe_regions([picture], [asked.boxes], max_new_tokens=MAX_NEW_TOKENS)
        return Answered(regions=tuple(zip(asked.boxes, texts, strict=True)))
    (grounded,) = model.ground([picture], max_new_tokens=MAX_NEW_TOKENS)
    return Answered(turns=((None, grounded),))


def _converse(model: Model, picture: Image.Image, asked: Asked) -> tuple[tuple[str, GroundedCaption], ...]:
    said: list[tuple[str, GroundedCaption]] = []
    for prompt in asked.prompts:
        before = [Turn(question=question, answer=answer.caption) for question, answer in said]
        boxes = sum(text.count(BOX_TOKEN) for text in (prompt, *(turn.question for turn in before)))
        said.append((prompt, model.answer(picture, prompt, asked.boxes[:boxes], before=before)))
    return tuple(said)


def _check_box(box: Box, picture: Image.Image) -> None:
    try:
        check_box(box, width_px=picture.width, height_px=picture.height)
    except InputError as error:
        raise InputError(f"--box {error}") from None


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
    if export.facts().get("form") == ADAPTER:
        raise InputError(f"{path} is an adapter alone, which PEFT loads; needed is an export of the form merged")
    return load_family(str(export.facts().get("family"))).load_export(path)


def _draw(picture: Image.Image, answered: Answered, output: Path) -> None:
    panels = [
        Panel(
            title=prompt or " ",
            caption=said.caption,
            marks=tuple(Mark(phrase=part.phrase, span=part.span, mask_HW=part.mask_HW) for part in said.phrases),
        )
        for prompt, said in answered.turns
    ]
    panels += [
        Panel(title=text, caption=said.text, marks=tuple(Mark(phrase=text, mask_HW=one) for one in said.masks_HW))
        for text, said in answered.referred
    ]
    if answered.regions:
        marks = tuple(Mark(phrase=text, box_xyxy_px=box) for box, text in answered.regions)
        panels.append(Panel(title=" ", caption="", marks=marks))
    sheet = draw_panels(picture, panels)
    draft = output.with_name(f".{output.name}.draft.png")
    try:
        sheet.save(draft)
        draft.replace(output)
    except OSError as error:
        raise SurroundingsError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)


def _plain_turn(prompt: str | None, said: GroundedCaption) -> dict[str, Any]:
    phrases = [{"phrase": part.phrase, "span": list(part.span), **_plain_mask(part.mask_HW)} for part in said.phrases]
    return {"prompt": prompt, "caption": said.caption, "phrases": phrases}


def _plain_mask(mask_HW: Mask) -> dict[str, Any]:
    rle = rle_from_mask(mask_HW)
    return {
        "mask": {"size": [rle.height_px, rle.width_px], "counts": rle.counts},
        "share_of_image": float(mask_HW.mean()),
    }
