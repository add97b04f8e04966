"""A small but complete training task: sentences of letters, and a transformer that learns which letter comes next."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.stream import Drawn, Loss
from orchestrator.errors import OrchError
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.records import record
from orchestrator.stage import StageContext
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.config import EngineConfig, OptimConfig, SaveConfig, TrainConfig
from orchestrator.training.engine import Engine, make_engine
from orchestrator.training.loop import fit
from orchestrator.training.retention import CHECKPOINTS
from orchestrator.training.task import Losses, TrainTask
from orchestrator.world import World

LETTERS = 16
LENGTH = 12


class ToyModel(nn.Module):
    """Embeds letters, mixes them with causal attention, predicts the next; has dropout, a buffer and odd sizes."""

    def __init__(self, *, width: int = 24, depth: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS, width)
        self.blocks = nn.ModuleList(ToyBlock(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, LETTERS)
        self.scale = nn.Parameter(torch.ones(1))  # fewer elements than ranks
        self.odd = nn.Parameter(torch.full((7,), 0.5))  # not a multiple of any number of ranks
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask_LL", torch.ones(LENGTH, LENGTH).triu(1).bool(), persistent=False)

        self.register_buffer("thirds_L", torch.arange(LENGTH) / 3, persistent=False)  # not exact in bf16

    def forward(self, letters_BL: Tensor) -> Tensor:
        self.seen += len(letters_BL)
        hidden_BLD = self.embedding(letters_BL)
        length = letters_BL.shape[1]
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, self.mask_LL[:length, :length])
        logits: Tensor = self.head(self.norm(hidden_BLD)) * self.scale * self.odd.sum() / 3.5
        return logits


class ToyBlock(nn.Module):
    """One layer of attention and one of feed-forward."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, mask_LL: Tensor) -> Tensor:
        normed = self.first_norm(hidden_BLD)
        scores_BLL = self.query(normed) @ self.key(normed).transpose(1, 2) / normed.shape[-1] ** 0.5
        weights_BLL = scores_BLL.masked_fill(mask_LL, float("-inf")).softmax(-1)
        hidden_BLD = hidden_BLD + self.dropout(weights_BLL @ self.value(normed))
        risen = nn.functional.gelu(self.rise(self.second_norm(hidden_BLD)))
        return hidden_BLD + self.dropout(self.fall(risen))


class ToyTask(TrainTask[Tensor]):
    """Teaches ToyModel the next letter of sequences that climb by a fixed step."""

    def __init__(self, *, width: int = 24, depth: int = 2, dropout: float = 0.1) -> None:
        self.make: Callable[[], nn.Module] = lambda: ToyModel(width=width, depth=depth, dropout=dropout)

    def build_model(self) -> nn.Module:
        return self.make()

    def collate(self, drawn: Sequence[Drawn]) -> Tensor:
        return torch.stack([torch.tensor(list(sample.members["letters"])) for sample in drawn])

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        logits_BLV = model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits_BLV.flatten(0, 1).float(), batch[:, 1:].flatten())
        return Losses(total=loss, terms={"next": loss.detach()})

    def describe(self) -> Mapping[str, Any]:
        return {"family": "toy", "model": {"letters": LETTERS}}


class BreaksAtTask(ToyTask):
    """Gives a loss that is not a number in the n-th batch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.left = batch

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        self.left -= 1
        losses = super().loss(model, batch)
        return losses if self.left else Losses(total=losses.total * float("nan"), terms=losses.terms)


class ToyStream:
    """Sequences that climb by one to three letters; which ones is a function of the step and the place in the batch."""

    def __init__(self, train: TrainConfig, world: World) -> None:
        self.micro_batch = train.micro_batch_on(world.size)
        self.accumulation = train.accumulation_on(world.size)
        self.readers, self.reader = train.readers_on(world.size), train.reader(world.rank)
        self.global_batch = train.global_batch

    def take_losses(self) -> list[Loss]:
        return []

    def drawn_before(self, step: int) -> int:
        return step * self.global_batch

    def names_of(self, step: int) -> list[str]:
        return [toy_sample(step - 1, place).key for micro in range(self.accumulation) for place in self._places(micro)]

    def _places(self, micro: int) -> range:
        first = (micro * self.readers + self.reader) * self.micro_batch
        return range(first, first + self.micro_batch)

    def batches(self, collate: Callable[[Sequence[Drawn]], Any], *, start_step: int, steps: int) -> Iterator[Any]:
        for step in range(start_step, start_step + steps):
            for micro in range(self.accumulation):
                yield collate([toy_sample(step, place) for place in self._places(micro)])


def toy_sample(step: int, place: int) -> Drawn:
    """Makes the sample at a place of a step's batch."""
    start, climb = (7 * step + 3 * place) % LETTERS, 1 + (step + place) % 3
    letters = bytes((start + climb * position) % LETTERS for position in range(LENGTH))
    return Drawn(source="letters", key=f"{step}-{place}", members={"letters": letters}, seed=step, place=place)


def toy_engine(name: str = "torch", **changes: Any) -> EngineConfig:
    """Makes an engine config in which most of the toy's parameters are really cut."""
    return EngineConfig(**{"name": name, "precision": "fp32", "persistence_threshold": 100, **changes})


def toy_train(steps: int = 6, **changes: Any) -> TrainConfig:
    """Makes a training config for the toy; `changes` are fields of TrainConfig."""
    fields: dict[str, Any] = {
        "steps": steps,
        "global_batch": 12,
        "optim": OptimConfig(lr=3e-3, warmup_steps=2),
        "engine": toy_engine(),
        "save": SaveConfig(every_steps=1000),
        "workers": 0,
    }
    return TrainConfig(**{**fields, **changes})


def toy_context(
    directory: Path, world: World, *, stop_after: int | None = None, seed: int = 5, left_s: float = math.inf
) -> StageContext:
    """Makes the place a toy stage runs in; this rank is asked to stop when `stop_after` steps have begun.

    It believes that it has `left_s` seconds until it is killed.
    """
    asked = count(1)
    directory.mkdir(parents=True, exist_ok=True)
    return StageContext(
        directory=directory,
        name="toy",
        fingerprint="f" * 12,
        seed=seed,
        world=world,
        journal=Journal(directory if world.is_main else None),
        progress=Progress(directory if world.is_main else None),
        stop=lambda: stop_after is not None and next(asked) >= stop_after,
        time_left_s=lambda: left_s,
    )


@record
class Fitted:
    """What became of a toy's training."""

    outcome: str  # "done", or the name of the error and its message
    engine: Engine
    checkpoints: Checkpoints


def toy_fit(
    world: World,
    directory: Path,
    train: TrainConfig,
    *,
    task: TrainTask[Any] | None = None,
    trainable: Sequence[str] = ("*",),
    stop_after: int | None = None,
    first_weights: int = 5,
    left_s: float = math.inf,
    make: Callable[..., Engine] = make_engine,
) -> Fitted:
    """Trains the toy as a stage would; `first_weights` is the seed of the weights before any is loaded."""
    torch.set_num_threads(1)  # the toy is too small to share out, and tests run beside each other
    context = toy_context(directory, world, stop_after=stop_after, left_s=left_s)
    chosen = task or ToyTask()
    checkpoints = toy_checkpoints(world, directory, train, context.journal)
    engine = make(chosen, train, trainable=trainable, world=world, seed=first_weights)
    outcome = "done"
    try:
        fit(chosen, engine, ToyStream(train, world), train=train, checkpoints=checkpoints, context=context)
    except OrchError as error:
        outcome = f"{type(error).__name__}: {error}"
    finally:
        context.journal.close()
    return Fitted(outcome=outcome, engine=engine, checkpoints=checkpoints)


def toy_checkpoints(world: World, directory: Path, train: TrainConfig, journal: Journal | None = None) -> Checkpoints:
    """Makes the checkpoints of a toy stage in this folder."""
    return Checkpoints(directory / CHECKPOINTS, fingerprint="f" * 12, train=train, seed=5, world=world, journal=journal)


def curve(directory: Path) -> dict[int, float]:
    """Reads the loss of every step, the last one where a step was run twice."""
    events = map(json.loads, (directory / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    return {event["step"]: event["value"] for event in events if event["event"] == "loss"}
