"""Tiny PixelLLMs with a real checkpoint each, and samples whose truth is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.artifacts import Checkpoint
from orchestrator.data.stream import Drawn
from stages.adapters import LoraConfig
from stages.pixelllm.collate import Limits
from stages.pixelllm.config import (
    Blueprint,
    DetectorConfig,
    ExtractorConfig,
    LanguageConfig,
    LocalizationConfig,
    LocationConfig,
    MaskAdapterConfig,
    MaskConfig,
    PixelLLMConfig,
    SemanticConfig,
    draw_blueprint,
)
from stages.pixelllm.initial import draw_weights
from stages.pixelllm.model import PixelLLM
from stages.pixelllm.task import PixelLLMTask, Start, Weights
from stages.pixelllm.tasks import LONG_REQUESTS, OBJECT_OF, SHORT_REQUESTS, WHERE_IS, Rules
from stages.samples import Sample, TimedPoint, Utterance
from stages.towers import TowerKind
from stages.wordpieces import WordPieces, learn_pieces
from tests.stages.scenes import SIDE_PX, scene
from tests.stages.trained_models import write_trained

WORDS = ("A red bar stands left of a blue bar.", "the green bar, the grey bar", WHERE_IS, OBJECT_OF)
KINDS = {
    "captions": "caption", "traces": "trace", "expressions": "refer", "segments": "segment", "regions": "region",
    "boxes": "dense",
}  # fmt: skip
MASKS = MaskConfig(
    layers=1, heads=2, mlp_size=12, score_size=8, adapter=MaskAdapterConfig(layers=1, heads=2, mlp_size=12)
)


def pieces() -> WordPieces:
    """Learns a small tokenizer."""
    return learn_pieces([*WORDS, *LONG_REQUESTS, *SHORT_REQUESTS] * 20, 400)


def tiny_config(
    *,
    kind: str = "t5",
    tower: TowerKind = "clip",
    lora: bool = False,
    detector: bool = True,
    masks: bool = False,
    channels: int = 8,
) -> PixelLLMConfig:
    """Asks for the smallest model."""
    return PixelLLMConfig(
        language=LanguageConfig(
            kind="t5" if kind == "t5" else "bert", hidden_size=16, layers=1, heads=2, mlp_size=24, dropout=0.0
        ),
        semantic=SemanticConfig(kind=tower, patch_size=8, hidden_size=16, layers=1, heads=2, mlp_size=24),
        localization=LocalizationConfig(
            patch_size=16,
            hidden_size=8,
            layers=1,
            heads=2,
            mlp_size=12,
            window_size=0,
            global_layers=(0,),
            channels=channels,
        ),
        extractor=ExtractorConfig(width=16, layers=1, heads=2, mlp_size=24, tokens=3, token_size=12),
        location=LocationConfig(hidden_size=16, layers=4),
        detector=DetectorConfig(channels=8, layers=1, score=0.0, most=5) if detector else None,
        masks=MASKS if masks else None,
        lora=LoraConfig(rank=2, alpha=4, dropout=0.0, targets=("q", "v")) if lora else None,
        canvas_px=32,
    )


def tiny_blueprint(words: WordPieces, **parts: Any) -> Blueprint:
    """Draws the smallest model; parts as `tiny_config` has them."""
    return draw_blueprint(tiny_config(**parts), words.size)


def tiny_task(
    words: WordPieces, rules: Rules | None = None, *, kinds: Mapping[str, str] = KINDS, **parts: Any
) -> PixelLLMTask:
    """Makes the task that teaches the smallest model everything, or some kinds; parts as `tiny_config` has them."""
    return PixelLLMTask(
        tiny_blueprint(words, **parts),
        words,
        kinds,
        start=Start(),
        weights=Weights(),
        rules=rules or Rules(),
        limits=Limits(),
    )


def talkative(model: PixelLLM, seed: int = 1) -> PixelLLM:
    """Draws weights with which words and places depend on all that there is to see."""
    draw_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # adapters that change nothing would prove nothing
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if name.endswith("gate_1"):  # nor does a closed gate
                parameter.fill_(0.7)
            if name.startswith("location.last"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def narrated(number: int) -> Sample:
    """Tells a scene word by word, the mouse on the bar that is spoken of, or under the picture's middle."""
    told = scene(number)
    points, utterances = [], []
    for at, word in enumerate(told.caption.split()):
        region = told.regions[0 if at < 3 else 1]  # "A red bar stands left of a blue bar."
        x0, y0, x1, y1 = (edge / SIDE_PX for edge in region.box_xyxy_px)
        path = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)] if at < 3 or at > 5 else [(0.4, 0.5), (0.6, 0.5)]
        points += [TimedPoint(word=word, x_unit=x, y_unit=y, time_s=at + 0.2 * n) for n, (x, y) in enumerate(path)]
        utterances.append(Utterance(text=word, start_s=at, end_s=points[-1].time_s))
    fields = {name: getattr(told, name) for name in ("image", "width_px", "height_px", "caption", "regions")}
    return Sample(key=f"told{number}", points=tuple(points), utterances=tuple(utterances), **fields)


def drawn(source: str, sample: Sample, seed: int = 0) -> Drawn:
    """Draws a sample for a step."""
    return Drawn(source=source, key=sample.key, members=sample.to_members(), seed=seed, place=0)


def tiny_checkpoint(directory: Path, **parts: Any) -> Checkpoint:
    """Writes what a training stage leaves behind; parts as `tiny_config` has them."""
    words = pieces()
    task = tiny_task(words, **parts)
    model = task.build_model()
    assert isinstance(model, PixelLLM)
    talkative(model)
    return write_trained(directory, model, task.describe(), task.extras())
