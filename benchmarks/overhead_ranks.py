"""The ranks of benchmarks.overhead: `python -m benchmarks.overhead_ranks turns|bare FOLDER [ROUNDS STEPS]`.

It is also the catalog of the stage that `orchestrator.worker` runs there. Planning imports no torch from here.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from orchestrator.artifacts import Checkpoint
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.training.config import TrainConfig
    from orchestrator.world import World

STAGES = {"words": "benchmarks.overhead_ranks:Words"}
FAMILIES: Mapping[str, str] = {}
LOG_EVERY = 10


class Words(Stage):
    """Trains the model of benchmarks.checkpoint on batches that lie in memory."""

    @record
    class Config:
        """For how long."""

        steps: int = 1

    @record
    class Outputs:
        """What it learned."""

        model: Checkpoint

    joins: ClassVar[bool] = True

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Trains. Collective: every rank must call."""
        by_fit, promoted = _prepared_fit(context, self.config.steps)
        by_fit()
        return {"model": promoted(self.outputs.model)}


class Stream:
    """The same batches again and again, from memory."""

    def __init__(self, train: "TrainConfig") -> None:
        """Makes none yet."""
        self._global_batch = train.global_batch

    def batches(self, collate: object, *, start_step: int, steps: int) -> Iterator[Any]:
        """Yields one batch a step."""
        del collate, start_step
        yield from batches(steps)

    def take_losses(self) -> Sequence[Any]:
        """Has lost nothing."""
        return ()

    def drawn_before(self, step: int) -> int:
        """Counts what was drawn."""
        return step * self._global_batch

    def names_of(self, step: int) -> Sequence[str]:
        """Names the batch: its samples have no names."""
        return [f"batch {step}"]


def batches(steps: int) -> "Iterator[Tensor]":
    """Yields the batches that both sides train on."""
    import torch

    torch.manual_seed(0)
    made = [torch.randint(0, _shape().words, (ROWS, LENGTH)) for _ in range(4)]
    for step in range(steps):
        yield made[step % len(made)]


ROWS, LENGTH = 4, 64


def _shape() -> Any:
    from benchmarks.checkpoint_ranks import Shape

    return Shape(width=256, depth=6, words=4096)


def _config(steps: int) -> "TrainConfig":
    from orchestrator.training.config import EngineConfig, OptimConfig, SaveConfig, TrainConfig

    return TrainConfig(
        steps=steps, global_batch=2 * ROWS, optim=OptimConfig(lr=1e-4), log_every=LOG_EVERY,
        engine=EngineConfig(precision="fp32", persistence_threshold=0), save=SaveConfig(every_steps=10**6),
    )  # fmt: skip


def _task() -> Any:
    from benchmarks.checkpoint_ranks import ReaderTask

    return ReaderTask(_shape())


def _prepared_fit(context: StageContext, steps: int) -> tuple[Callable[[], int], Callable[[Checkpoint], Any]]:
    """Makes everything that `fit` needs; returns it, and what makes its last checkpoint an artifact."""
    from orchestrator.training.checkpoints import Checkpoints
    from orchestrator.training.engine import make_engine
    from orchestrator.training.loop import fit
    from orchestrator.training.retention import CHECKPOINTS

    train, task = _config(steps), _task()
    checkpoints = Checkpoints(
        context.directory / CHECKPOINTS, fingerprint=context.fingerprint, train=train, seed=context.seed,
        world=context.world, journal=context.journal,
    )  # fmt: skip
    engine = make_engine(task, train, trainable=("*",), world=context.world, seed=1)

    def by_fit() -> int:
        return fit(task, engine, Stream(train), train=train, checkpoints=checkpoints, context=context)

    return by_fit, lambda output: checkpoints.promote(output, steps, {"family": "words"})


class ByHand:
    """What one writes without orch: a DeepSpeed engine and a loop."""

    def __init__(self, world_size: int) -> None:
        """Builds the model, partitioned. Collective: every rank must call."""
        import deepspeed
        import torch

        config = {
            "train_batch_size": world_size * ROWS,
            "train_micro_batch_size_per_gpu": ROWS,
            "gradient_clipping": 1.0,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {
                "stage": 3, "overlap_comm": False, "contiguous_gradients": True, "reduce_bucket_size": 50_000_000,
                "stage3_prefetch_bucket_size": 50_000_000, "stage3_param_persistence_threshold": 0,
            },
        }  # fmt: skip
        self.task = _task()
        torch.manual_seed(1)
        with deepspeed.zero.Init(config_dict_or_path=config):
            model = self.task.build_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def train(self, steps: int) -> None:
        """Trains. Collective: every rank must call."""
        for step, batch in enumerate(batches(steps)):
            loss = self.task.loss(self.engine, batch).total
            self.engine.backward(loss)
            self.engine.step()
            if step % LOG_EVERY == 0:
                print(f"step {step}: loss {loss.item():.4f}", flush=True)


def bare(folder: Path) -> None:
    """Trains one step by hand, and notes when it was done. Collective: every rank must call."""
    import deepspeed
    import torch

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meeting = os.environ["ORCH_RENDEZVOUS"]
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles one, which ours does not use
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    ByHand(size).train(1)
    _report(folder, rank, {"first_step": time.time()})


def turns(folder: Path, rounds: int, steps: int) -> None:
    """Trains by hand and by `fit`, in turns. Collective: every rank must call."""
    from orchestrator.heartbeat import BEAT, Beat, Limits, Watch
    from orchestrator.world import World

    world = World.from_environment(timeout_s=300)
    watch = Watch(Limits())
    os.environ[BEAT] = watch.address
    beat = Beat.from_environment()
    by_fit, marks = _fits(world, folder, steps + 1, beat)
    by_hand = ByHand(world.size)
    _mark(by_hand.task, marks)
    times: dict[str, list[float]] = {"bare_s": [], "fit_s": []}
    for turn in range(rounds + 1):
        sides: dict[str, Callable[[], object]] = {"bare_s": lambda: by_hand.train(steps + 1), "fit_s": by_fit}
        for side in sorted(sides, reverse=bool(turn % 2)):
            world.barrier()
            marks.clear()
            sides[side]()
            if turn:  # the first round warms up
                times[side].append((marks[-1] - marks[0]) / steps)  # from the first loss to the last
    _report(folder, world.rank, times)
    world.barrier()


def _fits(world: "World", folder: Path, steps: int, beat: Any) -> tuple[Callable[[], object], list[float]]:
    """Returns what trains by `fit` anew each time it is called, and where its steps leave the times they begin at."""
    from orchestrator.journal import Journal
    from orchestrator.progress import Progress
    from orchestrator.training.checkpoints import Checkpoints
    from orchestrator.training.engine import make_engine
    from orchestrator.training.loop import fit
    from orchestrator.training.retention import CHECKPOINTS

    train, task, marks, calls = _config(steps), _task(), list[float](), iter(range(10**6))
    engine = make_engine(task, train, trainable=("*",), world=world, seed=1)
    _mark(task, marks)

    def once() -> None:
        directory = folder / f"fit_{next(calls)}"
        directory.mkdir(parents=True, exist_ok=True)
        home = directory if world.is_main else None
        journal = Journal(home)
        context = StageContext(
            directory=directory, name="words", fingerprint="f" * 12, seed=1, world=world, journal=journal,
            progress=Progress(home, beat=beat), stop=lambda: False,
        )  # fmt: skip
        checkpoints = Checkpoints(
            directory / CHECKPOINTS, fingerprint=context.fingerprint, train=train, seed=1, world=world, journal=journal
        )
        fit(task, engine, Stream(train), train=train, checkpoints=checkpoints, context=context)
        journal.close()

    return once, marks


def _mark(task: Any, marks: list[float]) -> None:
    """Has a task note when it is asked for a loss."""
    loss = task.loss

    def noting(model: Any, batch: Any) -> Any:
        marks.append(time.perf_counter())
        return loss(model, batch)

    task.loss = noting


def _report(folder: Path, rank: int, what: Mapping[str, Any]) -> None:
    (folder / f"rank_{rank}.json").write_text(json.dumps(what), encoding="utf-8")


def main() -> NoReturn:
    """Runs one rank."""
    mode, folder = sys.argv[1], Path(sys.argv[2])
    logging.basicConfig(level=logging.INFO)
    if mode == "bare":
        bare(folder)
    else:
        import torch

        torch.set_num_threads(1)
        turns(folder, int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's exit hooks wait for a process group that may be gone


if __name__ == "__main__":
    main()
