"""Writes scenes as Localized Narratives publishes theirs: a spoken caption, and where the mouse was meanwhile.

Saying a word of a phrase, the mouse goes once along the box of what the phrase means; between phrases it moves over.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.shapes.layouts import Layout, bbox_of, owners_of
from stages.shapes.scenes import Scene
from stages.shapes.words import grounded_caption

_WORD_S, _PAUSE_S = 0.4, 0.1  # how long a word takes, and what follows it
_VAL_EVERY = 8  # the last of so many is for validation
_CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))  # of a box, in the order in which the mouse passes them
_SPLITS = ("train", "val")


class Narratives(Layout):
    """Localized Narratives of Flickr30k: a line of JSON a picture, in one file a split."""

    def __init__(self, root: Path) -> None:
        """Starts without narratives."""
        super().__init__(root)
        self._lines: dict[str, list[str]] = {split: [] for split in _SPLITS}

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Adds a picture and what is said of it."""
        image_id = str(3_000_001 + number)
        self._save(f"flickr30k/flickr30k-images/{image_id}.jpg", jpeg)
        spoken = list(_spoken(scene))
        split = "val" if number % _VAL_EVERY == _VAL_EVERY - 1 else "train"
        self._lines[split].append(json.dumps({
            "dataset_id": f"Flick30k_{split}", "image_id": image_id, "annotator_id": 1,
            "caption": grounded_caption(scene).text,
            "timed_caption": [utterance for utterance, _ in spoken],
            "traces": [[point for _, points in spoken for point in points]],
            "voice_recording": f"flickr30k_{split}/{image_id}.ogg",
        }))  # fmt: skip

    def finish(self) -> None:
        """Writes a file for each split."""
        for split, lines in self._lines.items():
            name = f"localized_narratives/flickr30k_{split}_localized_narratives.jsonl"
            self._save(name, "".join(f"{line}\n" for line in lines).encode("utf-8"))


def _spoken(scene: Scene) -> Iterator[tuple[dict[str, Any], list[dict[str, float]]]]:
    """Yields each word with its times, and the trace of the mouse meanwhile."""
    said = grounded_caption(scene)
    boxes = [_unit_box(scene, owner) for owner in owners_of(scene)]
    for number, word in enumerate(re.finditer(r"\S+", said.text)):
        start_s = number * (_WORD_S + _PAUSE_S)
        meant = [at for at, (start, end) in enumerate(said.spans) if start < word.end() and word.start() < end]
        if meant:
            x, y, width, height = boxes[meant[0]]
            path = [(x + width * right, y + height * low) for right, low in _CORNERS]
        else:  # a word between two phrases
            after = next(at for at, (start, _) in enumerate(said.spans) if start >= word.end())
            path = [_middle(boxes[after - 1]), _middle(boxes[after])]
        step_s = _WORD_S / (len(path) - 1)
        points = [{"x": x, "y": y, "t": round(start_s + at * step_s, 4)} for at, (x, y) in enumerate(path)]
        yield {"utterance": word.group(), "start_time": round(start_s, 4), "end_time": points[-1]["t"]}, points


def _unit_box(scene: Scene, owner: int) -> tuple[float, float, float, float]:
    x, y, width, height = bbox_of(scene, owner)
    rows, columns = scene.owner_HW.shape
    return x / columns, y / rows, width / columns, height / rows


def _middle(box_xywh: tuple[float, float, float, float]) -> tuple[float, float]:
    x, y, width, height = box_xywh
    return x + width / 2, y + height / 2
