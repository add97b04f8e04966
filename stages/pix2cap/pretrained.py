"""Fills parts of a Pix2Cap from folders of transformers: a Mask2Former for segments, a GIT for captions."""

import logging
from collections.abc import Sequence

from torch import nn

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import Rule, fill_from, match, rules_of
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import TensorSource, few
from orchestrator.training.holdings import saved_buffers
from stages.folders import read_settings
from stages.pix2cap.config import Category, Pix2CapConfig

log = logging.getLogger(__name__)

SEGMENTER = rules_of(
    (r"model\.(.+)", r"segmenter.\1"),
    (r"class_predictor\.(.+)", r"class_predictor.\1"),
    (r"criterion\..+", None),
)
CAPTIONER = rules_of(
    (r"git\.(embeddings|encoder)\.(.+)", r"captioner.\1.\2"),
    (r"output\.bias", r"captioner.output.bias"),
    (r"output\.weight", None),  # tied to the words
    (r"git\..+", None),  # its image encoder, and what reads it
)
# of what a folder fills, these parts are new: GIT reads other vectors
NEW = ("captioner.object_projection", "captioner.visual_projection")


def fill_from_folders(model: nn.Module, config: Pix2CapConfig, categories: Sequence[Category]) -> frozenset[str]:
    """Fills what the folders have, and returns its names; a folder that lacks a part of its part is refused.

    Each rank reads the files and keeps what it holds. Names, shapes and classes are compared before anything is read.
    """
    wanted = {**dict(model.named_parameters()), **dict(saved_buffers(model))}
    sources: list[tuple[TensorSource, tuple[Rule, ...], tuple[str, ...]]] = []
    if (folder := config.segmenter.path) is not None:
        _expect_categories(config, categories)
        sources.append((open_source(folder), SEGMENTER, ("segmenter.", "class_predictor.")))
    if (folder := config.captioner.path) is not None:
        sources.append((open_source(folder), CAPTIONER, ("captioner.",)))
    for source, rules, parts in sources:
        missing = [name for name in match(wanted, source, rules).missing if name.startswith(parts)]
        if lacking := [name for name in missing if not name.startswith(NEW)]:
            raise InputError(f"{source.label} lacks {len(lacking)} weights of what it fills: {few(lacking)}")
    loaded: set[str] = set()
    for source, rules, _ in sources:
        report = fill_from(wanted, source, rules)
        loaded |= set(report.loaded)
    return frozenset(loaded)


def _expect_categories(config: Pix2CapConfig, categories: Sequence[Category]) -> None:
    """Refuses a segmenter that was trained for other classes than the data has, or in another order."""
    assert config.segmenter.path is not None  # noqa: S101 - whoever calls has asked
    named = read_settings(config.segmenter.path).get("id2label", {})
    theirs = [str(named[key]) for key in sorted(named, key=int)]
    ours = [category.name for category in categories]
    if theirs != ours:
        differing = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), None)
        told = f"; the first that differs is {differing[0]!r}, here {differing[1]!r}" if differing else ""
        raise InputError(
            f"config.model.segmenter.path: its {len(theirs)} classes are not the {len(ours)} of the data{told}"
        )
