"""Asks an exported model about one image and draws what it says: the work behind `orch predict`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.artifacts import Export
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.records import record
from stages.family import ADAPTER, Model, load_family
from stages.mask_files import read_mask
from stages.pictures import Panel, draw_panels
from stages.replies import BOX_TOKEN, Reply, conversed, described, found, ranked, referred, unasked
from stages.vision import Box, Mask, check_box, read_image

KINDS = ("turns", "regions", "referred", "words", "found", "segments", "ranked")  # of replies


@record
class Asked:
    """What is asked about an image: nothing, boxes, expressions, prompts with their boxes, texts, or everything.

    Texts are compared with the image, or with each box and what each mask shows of it.
    """

    prompts: tuple[str, ...] = ()  # several: a conversation, each answered before the next one is put
    boxes: tuple[Box, ...] = ()
    refer: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()  # what the image, or each box and mask, may show
    dense: bool = False
    masks: tuple[Path, ...] = ()  # files, as stages/mask_files.py reads them

    def __post_init__(self) -> None:
        """Refuses what does not go together."""
        if self.refer and (self.prompts or self.boxes):
            raise InputError("--refer goes alone: leave out --prompt and --box")
        if self.dense and (self.prompts or self.boxes or self.refer or self.texts):
            raise InputError("--dense goes alone: leave out --prompt, --box, --refer and --text")
        if self.texts and (self.prompts or self.refer):
            raise InputError("--text goes alone or with --box and --mask: leave out --prompt and --refer")
        if self.masks and not self.texts:
            raise InputError("--mask needs --text: say what it may show")
        if any(not text.strip() for text in self.refer):
            raise InputError("--refer is empty: say what to point at")
        if any(not text.strip() for text in self.texts):
            raise InputError("--text is empty: say what the image may show")
        if any(not prompt.strip() for prompt in self.prompts):
            raise InputError("--prompt is empty; leave it out for a grounded caption")
        wanted = sum(prompt.count(BOX_TOKEN) for prompt in self.prompts)
        if self.prompts and wanted != len(self.boxes):
            raise InputError(
                f"--prompt has {wanted} {BOX_TOKEN}, but {len(self.boxes)} --box are given; each needs the other"
            )


def predict(export: Path, image: Path, asked: Asked | None = None, output: Path | None = None) -> dict[str, Any]:
    """Answers about an image, and draws the answer to `output` if that is given.

    Asked nothing it says what its family is made to say; asked boxes, a caption for each; expressions, where each is;
    prompts, an answer to each, in which boxes stand for the `<bbox>`s in order; texts, how well each fits. Returns
    {"image", "width_px", "height_px", "prompt", "caption", "phrases": [{"phrase", "span", "mask", "share_of_image"}],
    "output"} and a list of each of KINDS (what they hold: `stages/replies.py`); prompt, caption and phrases are those
    of the last turn.
    """
    asked = asked or Asked()
    picture = read_image(image)
    for box in asked.boxes:
        _check_box(box, picture)
    _read_masks(asked, picture)  # a wrong one is refused before a model is loaded
    if output is not None:
        _check_output(output)
    replies = ask(load_export(export), picture, asked)
    if output is not None:
        _draw(picture, [reply.panel for reply in replies], output)
    return {
        "image": str(image),
        "width_px": picture.width,
        "height_px": picture.height,
        **told(replies),
        "output": None if output is None else str(output),
    }


def told(replies: Sequence[Reply]) -> dict[str, Any]:
    """Puts replies together: a list of each of KINDS, and what was said last."""
    found = {kind: [one for reply in replies if reply.kind == kind for one in reply.plain] for kind in KINDS}
    last = found["turns"][-1] if found["turns"] else {"prompt": None, "caption": "", "phrases": []}
    return {**last, **found}


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
    for said in answer["referred"]:
        shares = ", ".join(f"{one['share_of_image']:.1%} of the image" for one in said.get("masks", ()))
        yield f"{said['expression']}: {shares or said.get('box_xyxy_px') or 'pointed at nothing'}"
    for said in answer["words"]:
        yield said["caption"]
        yield from (f"  {word['word']}: {word['points_xy_px']}" for word in said["words"])
    yield from (f"{one['box_xyxy_px']}: {one['caption']}" for one in answer["regions"])
    yield from (f"{one['score']:.2f} {one['box_xyxy_px']}: {one['caption']}" for one in answer["found"])
    yield from (f"{one['category']}, {one['share_of_image']:.1%}: {one['caption']}" for one in answer["segments"])
    for place in answer["ranked"]:
        masked = (
            f"the mask in {place['box_xyxy_px']}, {place['share_of_image']:.1%} of the image" if "mask" in place else ""
        )
        yield f"{masked or place['box_xyxy_px'] or 'the image'}:"
        yield from (f"  {one['cosine']:.3f}  {one['text']}" for one in place["texts"])
    if answer["output"]:
        yield answer["output"]


def ask(model: Model, picture: Image.Image, asked: Asked) -> list[Reply]:
    """Asks a model about a picture."""
    if asked.prompts:
        return conversed(model, picture, asked.prompts, asked.boxes)
    if asked.refer:
        return referred(model, picture, asked.refer)
    if asked.texts:
        return ranked(model, picture, asked.texts, asked.boxes, _read_masks(asked, picture))
    if asked.boxes:
        return described(model, picture, asked.boxes)
    return found(model, picture) if asked.dense else unasked(model, picture)


def _check_box(box: Box, picture: Image.Image) -> None:
    try:
        check_box(box, width_px=picture.width, height_px=picture.height)
    except InputError as error:
        raise InputError(f"--box {error}") from None


def _read_masks(asked: Asked, picture: Image.Image) -> list[Mask]:
    try:
        return [read_mask(path, width_px=picture.width, height_px=picture.height) for path in asked.masks]
    except InputError as error:
        raise InputError(f"--mask {error}") from None


def _check_output(output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise InputError(f"--output {output}: the picture is a PNG, so the name must end in .png")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")


def load_export(path: Path) -> Model:
    """Loads an export whose files are whole; InputError says what else lies there."""
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


def _draw(picture: Image.Image, panels: Sequence[Panel], output: Path) -> None:
    sheet = draw_panels(picture, panels)
    draft = output.with_name(f".{output.name}.draft.png")
    try:
        sheet.save(draft)
        draft.replace(output)
    except OSError as error:
        raise SurroundingsError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
