"""A model family that knows the truth and errs on purpose: real files, real masks, no learning.

Its checkpoint is `truth.json`: sha256 of an image's pixels -> the sample's JSON, and how it errs.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.artifacts import Checkpoint
from stages.family import GroundedCaption, GroundedPhrase, Referred
from stages.samples import Region, Sample, Turn
from stages.vision import Mask, decode_image, mask_from_rle

TRUTH = "truth.json"


class OracleFamily:
    """Brings up oracles from folders that hold their truth."""

    def load(self, checkpoint: Path) -> "Oracle":
        return Oracle(**json.loads((checkpoint / TRUTH).read_text()))

    def untrained(self, checkpoint: Path, *, seed: int) -> "Oracle":
        del checkpoint
        return Oracle(truth={}, shift_px=seed, forget=0)

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = "merged") -> dict[str, Any]:
        assert form == "merged"
        shutil.copy(checkpoint / TRUTH, directory / TRUTH)
        (directory / "README.md").write_text(card, encoding="utf-8")
        return {"parameters": 0}

    def load_export(self, directory: Path) -> "Oracle":
        return self.load(directory)


class Oracle:
    """Says what is true, with masks moved right by `shift_px`, and without the last `forget` phrases."""

    def __init__(self, truth: Mapping[str, Any], shift_px: int, forget: int) -> None:
        self._truth = truth
        self._shift_px = shift_px
        self._forget = forget

    def ground(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[GroundedCaption]:
        del max_new_tokens
        return [self._ground(image) for image in images]

    def describe_regions(
        self, images: Sequence[Image.Image], boxes_xyxy_px: Sequence[Sequence[Sequence[float]]], *, max_new_tokens: int
    ) -> list[list[str]]:
        del max_new_tokens
        return [
            [self._describe(image, tuple(box)) for box in boxes]
            for image, boxes in zip(images, boxes_xyxy_px, strict=True)
        ]

    def refer(self, image: Image.Image, expression: str, *, max_new_tokens: int) -> Referred:
        del max_new_tokens
        sample = self._sample(image)
        regions = () if sample is None else sample.regions
        masks = [region.mask for region in regions if region.mask and expression.lower() in _called(region)]
        return Referred(
            text=f"It is {len(masks)} times there.",
            masks_HW=tuple(np.roll(mask_from_rle(mask), self._shift_px, axis=1) for mask in masks),
        )

    def refer_told(self, image: Image.Image, expressions: Sequence[str]) -> list[Mask | None]:
        pointed = [self.refer(image, text, max_new_tokens=1).masks_HW for text in expressions]
        return [masks_HW[0] if masks_HW else None for masks_HW in pointed]

    def answer(
        self, image: Image.Image, prompt: str, boxes_xyxy_px: Sequence[Sequence[float]], *, before: Sequence[Turn] = ()
    ) -> GroundedCaption:
        said = "".join(f"{turn.question} {turn.answer} " for turn in before)
        seen = "; ".join(self._describe(image, tuple(box)) for box in boxes_xyxy_px)
        return GroundedCaption(caption=f"{said}{prompt} {seen}".strip(), phrases=())

    def _sample(self, image: Image.Image) -> Sample | None:
        plain = self._truth.get(pixel_hash(image))
        if plain is None:
            return None
        return Sample.from_members("known", {"png": b"\x89PNG", "json": json.dumps(plain).encode()})

    def _ground(self, image: Image.Image) -> GroundedCaption:
        sample = self._sample(image)
        if sample is None:
            return GroundedCaption(caption="nothing that it knows", phrases=())
        said = [
            GroundedPhrase(
                phrase=sample.caption[slice(*region.spans[0])],
                span=region.spans[0],
                mask_HW=np.roll(mask_from_rle(region.mask), self._shift_px, axis=1),
            )
            for region in sample.regions
            if region.mask is not None and region.spans
        ]
        return GroundedCaption(caption=sample.caption, phrases=tuple(said[: len(said) - self._forget]))

    def _describe(self, image: Image.Image, box: tuple[float, ...]) -> str:
        sample = self._sample(image)
        regions = () if sample is None else sample.regions
        return next((region.caption or region.phrase for region in regions if region.box_xyxy_px == box), "something")


def _called(region: Region) -> set[str]:
    return {text.lower() for text in (region.phrase, *region.more_phrases, region.caption)}


def pixel_hash(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def write_oracle(directory: Path, samples: Iterable[Sample], *, shift_px: int = 0, forget: int = 0) -> Checkpoint:
    """Writes a complete checkpoint of an oracle that knows these samples."""
    directory.mkdir(parents=True)
    truth = {pixel_hash(decode_image(sample.image)): json.loads(sample.to_members()["json"]) for sample in samples}
    (directory / TRUTH).write_text(json.dumps({"truth": truth, "shift_px": shift_px, "forget": forget}))
    checkpoint = Checkpoint(directory)
    checkpoint.commit("f" * 64, facts={"family": "oracle", "model": {}, "step": 7})
    return checkpoint
