"""Makes a data set of scenes whose truth is known, in the raw layouts of the real data sets."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Raw
from orchestrator.errors import Preempted
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext

if TYPE_CHECKING:
    from stages.shapes.layouts import Layout

_FOLDERS = (
    "llava", "visual_genome", "grandf", "coco", "pix2cap_coco", "grand", "refcoco", "images", "semantic", "flickr30k",
    "localized_narratives",
)  # fmt: skip
_FURTHER = ("grand", "refcoco", "ade20k", "narratives")  # what `also` may name
_HELD_OUT = 4  # the stream of scenes that is held out of all others
_MOST_OBJECTS = 4  # more would not stand apart from left to right


class MakeShapes(Stage):
    """Draws scenes of shapes and writes them as LLaVA, Visual Genome, GranD-f and Pix2Cap-COCO publish theirs.

    also: further data sets, whose layouts are written too, from scenes of their own.
    """

    @record
    class Config:
        """How many scenes of what size; the recipe's seed decides which."""

        train_scenes: int = 3000  # for each of the four data sets; no scene is in two of them
        val_scenes: int = 100  # held out; the same scenes in every val split
        image_px: int = 128
        max_objects: int = 3
        also: list[str] = field(
            default_factory=list
        )  # grand, refcoco, ade20k, narratives: in their layouts too, scenes of their own

    @record
    class Outputs:
        """A folder with the data sets side by side."""

        raw: Raw

    def faults(self) -> Mapping[str, str]:
        """Names numbers that make no scenes."""
        config = self.config
        allowed = {
            "train_scenes": (1, 1_000_000),
            "val_scenes": (1, 90_000),  # more would need longer names
            "image_px": (48, 1024),
            "max_objects": (1, _MOST_OBJECTS),
        }
        given = {name: (getattr(config, name), *limits) for name, limits in allowed.items()}
        found = {
            f"config.{name}": f"must be {low} to {high}, not {value}"
            for name, (value, low, high) in given.items()
            if not low <= value <= high
        }
        if unknown := [name for name in config.also if name not in _FURTHER]:
            found["config.also"] = f"unknown: {', '.join(unknown)}; allowed: {', '.join(_FURTHER)}"
        return found

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Writes the scenes on the first rank; the others have nothing to do. Collective: every rank must call."""
        if not context.world.is_main:
            return {"raw": {}}
        root = self.outputs.raw.path
        for name in _FOLDERS:  # an attempt that was killed may have left other scenes
            shutil.rmtree(root / name, ignore_errors=True)
        config = self.config
        training = (_HELD_OUT + len(config.also)) * config.train_scenes
        total = training + config.val_scenes
        for done, _ in enumerate(self._written(root, context.seed), start=1):
            context.progress.advance(done, total, "scene")
            if context.stop():
                raise Preempted(
                    f"asked to stop after {done} of {total} scenes; making them starts again from the first"
                )
        facts = {
            "source": "shapes",
            "licence": "made by orch: free of rights",
            "scenes": {"train": training, "val": config.val_scenes},
            "image_px": config.image_px,
        }
        return {"raw": facts}

    def _written(self, root: Path, seed: int) -> Iterator[None]:
        """Writes one scene at a time: data sets one after the other, what is held out of all of them, further ones."""
        from stages.shapes.further import FURTHER
        from stages.shapes.layouts import (
            GrandF,
            GrandFVal,
            LlavaAlignment,
            Pix2Cap,
            VisualGenome,
            VisualGenomeTest,
        )

        coco_val = Pix2Cap(root, split="val", first_id=900_001)
        sets: list[list[Layout]] = [
            [LlavaAlignment(root)],
            [VisualGenome(root)],
            [GrandF(root)],
            [Pix2Cap(root, split="train", first_id=1)],
            [GrandFVal(root), VisualGenomeTest(root), coco_val],
        ]
        for stream, layouts in enumerate(sets):
            count = self.config.val_scenes if stream == _HELD_OUT else self.config.train_scenes
            yield from self._fill(layouts, seed, stream, count)
        for stream, name in enumerate(FURTHER, start=len(sets)):
            if name in self.config.also:
                yield from self._fill([FURTHER[name](root)], seed, stream, self.config.train_scenes)

    def _fill(self, layouts: "list[Layout]", seed: int, stream: int, count: int) -> Iterator[None]:
        import numpy as np

        from stages.shapes.layouts import jpeg_of
        from stages.shapes.scenes import draw_scene

        config = self.config
        for number in range(count):
            rng = np.random.default_rng([seed % 2**32, stream, number])
            scene = draw_scene(rng, image_px=config.image_px, max_objects=config.max_objects)
            jpeg = jpeg_of(scene)
            for layout in layouts:
                layout.add(number, scene, jpeg)
            yield
        for layout in layouts:
            layout.finish()
