"""The process of benchmarks.gpu_step, `python -m benchmarks.gpu_step_ranks FOLDER GPU|CPU`: by `fit` and by hand."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_step_stage import CPU, GPU, WORDS, Size, train_config
from orchestrator.data.stream import Drawn
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.stage import StageContext
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.engine import make_engine
from orchestrator.training.loop import fit
from orchestrator.training.parallel.losses import word_losses
from orchestrator.training.retention import CHECKPOINTS
from orchestrator.training.task import Losses, TrainTask
from orchestrator.world import World


class WordsTask(TrainTask[Tensor]):
    """Teaches a Llama with fresh weights the next word."""

    def __init__(self, size: Size) -> None:
        """Takes the sizes."""
        self._size = size

    def build_model(self) -> nn.Module:
        """Builds it as transformers does."""
        from transformers import LlamaConfig, LlamaForCausalLM

        size = self._size
        model: nn.Module = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size.words, hidden_size=size.hidden_size, intermediate_size=size.mlp_size,
                num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.heads,
                max_position_embeddings=size.length, use_cache=False,
            )
        )  # fmt: skip
        return model

    def collate(self, drawn: Sequence[Drawn]) -> Tensor:
        """Stacks samples: B x L."""
        rows = [np.frombuffer(one.members[WORDS], dtype="<i4") for one in drawn]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        """Computes the mean cross entropy."""
        ids_BL = batch.to(next(model.parameters()).device, non_blocking=True)
        logits_BLV = model(input_ids=ids_BL[:, :-1]).logits
        losses = word_losses(logits_BLV.flatten(0, 1), ids_BL[:, 1:].flatten(), vocabulary=self._size.words)
        return Losses(total=losses.mean(), terms={})

    def describe(self) -> Mapping[str, Any]:
        """Names no family: nobody will ask this model."""
        return {"family": "dense_words", "model": {}}


class Memory:
    """Batches that lie in memory, again and again, in the place of a stream."""

    def __init__(self, size: Size) -> None:
        """Draws four."""
        chance = torch.Generator().manual_seed(0)
        self.made = [torch.randint(0, size.words, (size.rows, size.length), generator=chance) for _ in range(4)]
        self._rows = size.rows

    def batches(self, collate: object, *, start_step: int, steps: int) -> Iterator[Any]:
        """Yields one batch a step."""
        del collate, start_step
        yield from (self.made[step % len(self.made)] for step in range(steps))

    def take_losses(self) -> Sequence[Any]:
        """Has lost nothing."""
        return ()

    def drawn_before(self, step: int) -> int:
        """Counts what was drawn."""
        return step * self._rows

    def names_of(self, step: int) -> Sequence[str]:
        """Names the batch."""
        return [f"batch {step}"]


class Clock:
    """Notes when steps begin; the device has done all before the first and the last one."""

    def __init__(self, task: TrainTask[Any], steps: int) -> None:
        """Listens to a task."""
        self.marks: list[float] = []
        loss = task.loss

        def noting(model: nn.Module, batch: Tensor) -> Losses:
            if len(self.marks) in {0, steps} and torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())
            return loss(model, batch)

        task.loss = noting  # type: ignore[method-assign]  # this is the listening

    def took_s(self) -> float:
        """Returns seconds a step, from the first to the last, and forgets them."""
        first, last, steps = self.marks[0], self.marks[-1], len(self.marks) - 1
        self.marks.clear()
        return (last - first) / steps


def by_hand(size: Size, memory: Memory) -> tuple[Callable[[], None], Clock]:
    """Makes what one writes without orch: a DeepSpeed engine and a loop."""
    import deepspeed

    task = WordsTask(size)
    clock = Clock(task, size.steps)
    config = {
        "train_batch_size": size.rows, "train_micro_batch_size_per_gpu": size.rows, "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True, "steps_per_print": 10**9, "bf16": {"enabled": size.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 1},
    }  # fmt: skip
    torch.manual_seed(1)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def once() -> None:
        for step, batch in enumerate(memory.batches(None, start_step=0, steps=size.steps + 1)):
            loss = task.loss(engine, batch).total
            engine.backward(loss)
            engine.step()
            if step % 10 == 0:
                print(f"step {step}: loss {loss.item():.4f}", flush=True)

    return once, clock


def by_fit(size: Size, memory: Memory, world: World, folder: Path) -> tuple[Callable[[], None], Clock]:
    """Makes what trains by `fit` anew each time it is called."""
    train, calls = train_config(size, size.steps + 1), iter(range(10**6))
    task: TrainTask[Any] = WordsTask(size)
    clock = Clock(task, size.steps)
    engine = make_engine(task, train, trainable=("*",), world=world, seed=1)

    def once() -> None:
        directory = folder / f"fit_{next(calls)}"
        directory.mkdir(parents=True)
        journal = Journal(directory)
        context = StageContext(
            directory=directory, name="words", fingerprint="f" * 12, seed=1, world=world, journal=journal,
            progress=Progress(directory), stop=lambda: False,
        )  # fmt: skip
        checkpoints = Checkpoints(
            directory / CHECKPOINTS, fingerprint=context.fingerprint, train=train, seed=1, world=world, journal=journal
        )
        fit(task, engine, memory, train=train, checkpoints=checkpoints, context=context)
        journal.close()

    return once, clock


def main() -> NoReturn:
    """Takes turns, and leaves the seconds a step of each side."""
    folder, size = Path(sys.argv[1]), {"GPU": GPU, "CPU": CPU}[sys.argv[2]]
    logging.basicConfig(level=logging.INFO)
    world, memory = World.from_environment(timeout_s=300), Memory(size)
    sides = {"fit_s": by_fit(size, memory, world, folder), "hand_s": by_hand(size, memory)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(size.rounds + 1):
        for side in sorted(sides, reverse=bool(turn % 2)):
            once, clock = sides[side]
            once()
            took_s = clock.took_s()
            if turn:  # the first round warms up
                times[side].append(took_s)
    (folder / "times.json").write_text(json.dumps(times), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's exit hooks wait for a process group that may be gone


if __name__ == "__main__":
    main()
