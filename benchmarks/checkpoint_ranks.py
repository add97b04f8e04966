"""The ranks of benchmarks.checkpoint: one model under ZeRO-3, and how ours saves and loads it."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.training.config import EngineConfig, OptimConfig, SaveConfig, TrainConfig
from orchestrator.training.task import Losses, TrainTask
from orchestrator.world import World

RANKS = 2
LENGTH, ROWS = 32, 2  # letters of a row, rows of a rank
STEPS = 6  # of a visit, without a save
LEARNS = ("layers", "head")
EXPECTED = "expected.pt"


@dataclass(frozen=True)
class Shape:
    """How large the model is; only the first `words` x `width` are frozen."""

    width: int
    depth: int
    words: int


class Reader(nn.Module):
    """Predicts nothing of interest, at the cost of a language model of its size."""

    def __init__(self, shape: Shape) -> None:
        """Builds it with fresh weights."""
        super().__init__()
        self.embedding = nn.Embedding(shape.words, shape.width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(shape.width, 8, 4 * shape.width, dropout=0.0, batch_first=True)
            for _ in range(shape.depth)
        )
        self.head = nn.Linear(shape.width, 64)

    def forward(self, words_BL: Tensor) -> Tensor:
        """Returns 64 numbers for each word."""
        hidden_BLD = self.embedding(words_BL)
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD)
        found: Tensor = self.head(hidden_BLD)
        return found


class ReaderTask(TrainTask[Tensor]):
    """Trains a Reader."""

    def __init__(self, shape: Shape) -> None:
        """Knows how large."""
        self._shape = shape

    def build_model(self) -> nn.Module:
        """Builds it."""
        return Reader(self._shape)

    def collate(self, drawn: Sequence[Drawn]) -> Tensor:
        """Is not needed: rows are made here."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        """Pulls everything towards the words' own numbers."""
        found_BLV: Tensor = model(batch)
        loss = nn.functional.cross_entropy(found_BLV.flatten(0, 1), batch.flatten() % 64)
        return Losses(total=loss, terms={})


def train_config() -> TrainConfig:
    """Returns the same training for all."""
    return TrainConfig(
        steps=10_000, global_batch=RANKS * ROWS, optim=OptimConfig(lr=1e-4),
        engine=EngineConfig(precision="fp32", persistence_threshold=0), save=SaveConfig(keep_last=1),
    )  # fmt: skip


class Contender:
    """Trains, saves at a step's end, and measures for how long training stands still for it."""

    def __init__(self, world: World, folder: Path, shape: Shape, *, seed: int = 1) -> None:
        """Builds model and engine."""
        self.world, self.folder = world, folder
        self.task: TrainTask[Any] = ReaderTask(shape)
        self.engine = self.build(seed)
        self.at, self.stall_s = 0, 0.0
        torch.manual_seed(world.rank)
        self._words_BL = torch.randint(0, shape.words, (ROWS, LENGTH))

    def build(self, seed: int) -> Any:
        """Makes the engine. Collective: every rank must call."""
        from orchestrator.training.engine import make_engine

        return make_engine(self.task, train_config(), trainable=LEARNS, world=self.world, seed=seed)

    def visit(self) -> dict[str, float]:
        """Trains without and with a save, and says what it cost. Collective: every rank must call."""
        began = time.perf_counter()
        for _ in range(STEPS):
            self._step()
        step_s = (time.perf_counter() - began) / STEPS
        self.stall_s = 0.0
        began, steps = time.perf_counter(), 0
        with self.standing():
            self.save()
        busy = True
        while busy or steps < 2:
            busy = self._step()
            steps += 1
        took_s = time.perf_counter() - began
        return {"stall_s": self.stall_s, "added_s": took_s - steps * step_s, "step_s": step_s, "bytes": self.written()}

    def keep(self) -> None:
        """Saves once more, and beside it what a load must bring back. Collective: every rank must call."""
        self.save()
        self.finish()
        expected = self.weights()
        if self.world.is_main:
            torch.save(expected, self.folder / EXPECTED)
        self.world.barrier()

    def weights(self) -> dict[str, Tensor]:
        """Returns all weights as they are, whole. Collective: every rank must call."""
        import deepspeed

        named = dict(self.engine.model.named_parameters())
        with deepspeed.zero.GatheredParameters(list(named.values())):
            return {name: parameter.detach().clone() for name, parameter in named.items()}

    def save(self) -> None:
        """Begins to save. Collective: every rank must call."""
        raise NotImplementedError

    def finish(self) -> None:
        """Waits for a save that was begun. Collective: every rank must call."""

    def close(self) -> None:
        """Ends what it has started."""

    def restored(self) -> dict[str, float]:
        """Returns the shares of frozen and of learning tensors that are as they were when they were saved."""
        saved = torch.load(self.folder / EXPECTED, weights_only=True)
        equal: dict[str, list[bool]] = {"frozen": [], "learning": []}
        for name, tensor in self.weights().items():
            equal["learning" if name.startswith(LEARNS) else "frozen"].append(torch.equal(tensor, saved[name]))
        return {kind: sum(found) / len(found) for kind, found in equal.items()}

    def written(self) -> float:
        """Returns how many bytes the last save wrote."""
        raise NotImplementedError

    def signs(self) -> dict[str, float]:
        """Says "busy" and what else all ranks shall hear."""
        return {"busy": 0.0}

    def follow(self, signs: Mapping[str, float]) -> None:
        """Hears what came of all ranks' signs."""

    def before_update(self) -> None:
        """Is called before weights change."""

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Counts the time in which training stands still for a save."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stall_s += time.perf_counter() - began

    def _step(self) -> bool:
        """Trains one step; tells whether any rank still saves."""
        loss = self.task.loss(self.engine.module, self._words_BL).total
        self.engine.backward(loss)
        agreed = self.world.mean({"loss": float(loss), **self.signs()})
        with self.standing():
            self.follow(agreed)
            self.before_update()
        self.engine.step()
        self.at += 1
        return agreed["busy"] > 0


class Ours(Contender):
    """Saves and loads as `fit` does."""

    def __init__(self, world: World, folder: Path, shape: Shape, *, seed: int = 1) -> None:
        """Has checkpoints too."""
        super().__init__(world, folder, shape, seed=seed)
        from orchestrator.journal import Journal
        from orchestrator.training.checkpoints import Checkpoints
        from orchestrator.training.retention import CHECKPOINTS

        self.checkpoints = Checkpoints(
            folder / CHECKPOINTS, fingerprint="f" * 12, train=train_config(), seed=1, world=world,
            journal=Journal(folder if world.is_main else None),
        )  # fmt: skip

    def save(self) -> None:
        """Begins to save. Collective: every rank must call."""
        self.checkpoints.save(self.engine, self.at)

    def written(self) -> float:
        """Returns how many bytes the last save wrote."""
        from orchestrator.journal import read_events

        saved = [event["size_bytes"] for event in read_events(self.folder) if event["event"] == "saved"]
        return float(saved[-1])

    def signs(self) -> dict[str, float]:
        """Says whether a save is under way, and how far this rank is with it."""
        return {"busy": float(self.checkpoints.saver.busy), **self.checkpoints.saver.signs()}

    def follow(self, signs: Mapping[str, float]) -> None:
        """Lets the save go on."""
        self.checkpoints.saver.follow(signs)

    def before_update(self) -> None:
        """Waits for the copy."""
        self.checkpoints.saver.before_update()

    def load(self) -> dict[str, Any]:
        """Loads the newest checkpoint, its checksums verified, and compares."""
        self.engine.held()  # has the optimizer's state made, as DeepSpeed does when it begins
        with Peak() as peak:
            step = self.checkpoints.resume(self.engine)
        return {**peak.report(), **self.restored(), "step": float(step)}

    def finish(self) -> None:
        """Waits until the checkpoint has its name. Collective: every rank must call."""
        self.checkpoints.saver.finish()


class Peak:
    """Measures a `with` block: its seconds, and how much more memory this process held at its peak than before."""

    def __enter__(self) -> Self:
        """Begins."""
        self._before = self._highest = _resident_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends."""
        self._took_s = time.perf_counter() - self._began
        self._over.set()
        self._thread.join()

    def report(self) -> dict[str, float]:
        """Returns what it found."""
        return {"seconds": self._took_s, "peak_mb": (self._highest - self._before) / 1e6}

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self._highest = max(self._highest, _resident_bytes())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def rank_main(pipe: Connection, name: str, folder: Path, shape: Shape, rank: int, ranks: int) -> None:
    """Does what it is asked through the pipe until that is closed; its own output goes to a log."""
    with (folder / f"{name}_{rank}_of_{ranks}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    meeting = folder / f"meeting_{name}_{os.getppid()}_{ranks}_{os.environ.get('ORCH_TURN', '0')}"
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), ORCH_RENDEZVOUS=f"file://{meeting}")
    torch.set_num_threads(1)
    contender: Any = None
    while True:
        try:
            verb, *arguments = pipe.recv()
        except EOFError:
            if contender is not None:
                contender.close()
            break
        try:
            contender = contender or _made(name, folder, shape)
            answer = (True, getattr(contender, verb)(*arguments))
        except Exception as error:  # noqa: BLE001 - whoever asked must hear of it
            traceback.print_exc()
            answer = (False, f"{type(error).__name__}: {error}")
        pipe.send(answer)
    sys.stdout.flush()
    os._exit(0)


def _made(name: str, folder: Path, shape: Shape) -> Any:
    from benchmarks.checkpoint_peers import PEERS

    if name == "convert":
        return PEERS[name](folder)
    world = World.from_environment(timeout_s=300)
    make: Callable[..., Any] = Ours if name == "ours" else PEERS[name]
    return make(world, folder, shape, seed=1 if world.size == RANKS else 7)
