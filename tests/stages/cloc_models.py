"""Tiny CLOCs with a real checkpoint each."""

from pathlib import Path

from orchestrator.artifacts import Checkpoint
from orchestrator.data.stream import Drawn
from stages.cloc.config import FAMILY, Blueprint, ClocConfig, ImageConfig, TextConfig, draw_blueprint
from stages.cloc.initial import draw_weights
from stages.cloc.model import Cloc
from stages.cloc.task import ClocTask, Start, Weights
from stages.samples import Sample
from stages.wordpieces import WordPieces, learn_pieces
from tests.stages.scenes import scene
from tests.stages.trained_models import write_model

WORDS = ("A red bar stands left of a blue bar.", "The green disc is above a grey bar, near the é.")
TINY = ClocConfig(
    image=ImageConfig(image_size=16, patch_size=4, hidden_size=16, layers=2, heads=2, mlp_size=24),
    text=TextConfig(hidden_size=12, layers=1, heads=2, mlp_size=16, max_tokens=16),
    embedding_size=8,
)


def word_pieces() -> WordPieces:
    """Learns a small tokenizer."""
    return learn_pieces(WORDS * 20, 320)


def tiny_blueprint(pieces: WordPieces, config: ClocConfig = TINY) -> Blueprint:
    """Draws the smallest model."""
    return draw_blueprint(config, pieces.size)


def tiny_model(*, seed: int = 1) -> Cloc:
    """Builds one with fresh weights."""
    model = Cloc(tiny_blueprint(word_pieces()))
    draw_weights(model, seed)
    return model


def tiny_task(*, chunk: int | None = None, places: int = 2, weights: Weights | None = None) -> ClocTask:
    """Makes a task that begins with fresh weights."""
    pieces = word_pieces()
    return ClocTask(
        tiny_blueprint(pieces), pieces, start=Start(), weights=weights or Weights(), max_regions=places, chunk=chunk
    )


def drawn(sample: Sample, *, seed: int = 0, place: int = 0) -> Drawn:
    """Draws a sample as a stream does."""
    return Drawn(source="scenes", key=sample.key, members=sample.to_members(), seed=seed, place=place)


def scenes(count: int, *, first: int = 0) -> list[Drawn]:
    """Draws scenes of two bars."""
    return [drawn(scene(number), seed=number, place=number) for number in range(first, first + count)]


def tiny_checkpoint(directory: Path, *, seed: int = 1) -> Checkpoint:
    """Writes what a training stage leaves behind."""
    return write_model(directory, FAMILY, tiny_model(seed=seed), word_pieces().files())
