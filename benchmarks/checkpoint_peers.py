"""How others save and load in benchmarks.checkpoint: DeepSpeed, as it is and decoupled, and torch's DCP on its own."""

import os
import shutil
from argparse import Namespace
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import async_save

from benchmarks.checkpoint_ranks import LEARNS, Contender, Peak, Shape, train_config
from orchestrator.training.deepspeed import DeepSpeedEngine, _quiet
from orchestrator.training.optim import freeze, make_optimizer, parameter_groups
from orchestrator.training.zero import deepspeed_json
from orchestrator.world import World


class Stock(Contender):
    """DeepSpeed's own `save_checkpoint`: a `torch.save` of each rank, not synced to the disk."""

    def save(self) -> None:
        """Saves, and removes the one before. Collective: every rank must call."""
        stock_engine(self.engine).save_checkpoint(str(self.folder), tag=f"at_{self.at}")
        if self.world.is_main:
            for old in self.folder.glob("at_*"):
                if old.name != f"at_{self.at}":
                    shutil.rmtree(old)

    def written(self) -> float:
        """Returns how many bytes the last save wrote."""
        return float(sum(path.stat().st_size for path in self.folder.glob("at_*/*")))


class Dcp(Contender):
    """torch.distributed.checkpoint's `async_save` of the same partitions, called as its manual shows."""

    stager: DefaultStager | None = None

    def __init__(self, world: World, folder: Path, shape: Shape, *, seed: int = 1) -> None:
        """Has a process group of its own, as its collectives run in a thread."""
        super().__init__(world, folder, shape, seed=seed)
        self._group = torch.distributed.new_group(backend="gloo")
        self._future: Future[Any] | None = None

    def save(self) -> None:
        """Begins to save. Collective: every rank must call."""
        if self.world.is_main:
            for old in self.folder.glob("at_*"):
                shutil.rmtree(old)
        state = {  # a name of its own for each rank's piece: of equal names DCP writes one
            f"{self.world.rank}.{folder}.{piece.name}": piece.local
            for folder, pieces in self.engine.held().items()
            for piece in pieces
        }
        place = self.folder / f"at_{self.at}"
        found = async_save(state, checkpoint_id=place, process_group=self._group, async_stager=self.stager)
        self._future = found if isinstance(found, Future) else found.upload_completion

    def signs(self) -> dict[str, float]:
        """Says whether this rank still writes."""
        return {"busy": float(self._future is not None and not self._future.done())}

    def written(self) -> float:
        """Returns how many bytes the last save wrote."""
        return float(sum(path.stat().st_size for path in self.folder.glob("at_*/*")))


class DcpKept(Dcp):
    """The same with a stager that is kept, and with it the memory that it copies into."""

    def __init__(self, world: World, folder: Path, shape: Shape, *, seed: int = 1) -> None:
        """Makes it once."""
        super().__init__(world, folder, shape, seed=seed)
        self.stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
            )
        )


class Decoupled(Stock):
    """DeepSpeed's writer in a process of its own; its fast kind needs libaio, its plain one does without."""

    kind = "python"

    def build(self, seed: int) -> Any:
        """Makes an engine that writes so. Collective: every rank must call."""
        os.environ.update(CROSS_SIZE="1", CROSS_RANK="0", LOCAL_SIZE=str(self.world.size))  # which it asks for
        made = bare_engine(
            self.task, self.world, seed, {"checkpoint": {"writer": {"type": self.kind, "decoupled": True}}}
        )
        commit = made.stock._commit_decoupled_checkpoint  # noqa: SLF001 - where its step waits for the writer

        def waiting() -> None:
            with self.standing():
                commit()

        made.stock._commit_decoupled_checkpoint = waiting  # noqa: SLF001 - the same
        return made

    def close(self) -> None:
        """Ends its writer, which would outlive this process."""
        self.engine.stock.checkpoint_engine.ckpt_process.kill()


class DecoupledFast(Decoupled):
    """The fast kind."""

    kind = "fast"


class Universal(Contender):
    """Loads what `ds_to_universal` has made."""

    def build(self, seed: int) -> Any:
        """Makes an engine that expects it. Collective: every rank must call."""
        return bare_engine(self.task, self.world, seed, {"checkpoint": {"load_universal": True}})

    def load(self) -> dict[str, Any]:
        """Loads it, and compares with what the ranks held that saved."""
        with Peak() as peak:
            stock_engine(self.engine).load_checkpoint(str(self.folder), tag="universal")
        return {**peak.report(), **self.restored()}


class Convert:
    """Makes a universal checkpoint in a process that does nothing else."""

    def __init__(self, folder: Path) -> None:
        """Finds what was saved."""
        self._folder = folder

    def close(self) -> None:
        """Has started nothing."""

    def convert(self) -> dict[str, float]:
        """Converts in this one process, which is the way that takes the least memory."""
        from deepspeed.checkpoint.ds_to_universal import main

        source = next(self._folder.glob("at_*"))
        target = self._folder / "universal"
        shutil.rmtree(target, ignore_errors=True)
        with Peak() as peak:
            main(
                Namespace(
                    input_folder=str(source), output_folder=str(target), num_extract_workers=1,
                    num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=False,
                )
            )  # fmt: skip
        return peak.report()


class _Bare:
    """A DeepSpeed engine made by hand, with the few methods that a contender calls."""

    def __init__(self, stock: Any, model: torch.nn.Module) -> None:
        self.stock, self.module, self.model = stock, stock, model

    def backward(self, loss: torch.Tensor) -> None:
        self.stock.backward(loss)

    def step(self) -> None:
        self.stock.step()


def bare_engine(task: Any, world: World, seed: int, more: dict[str, Any]) -> _Bare:
    """Makes a DeepSpeed engine of the same configuration and more. Collective: every rank must call."""
    _quiet(world)
    torch.manual_seed(seed)
    train = train_config()
    model = task.build_model()
    freeze(model, LEARNS)
    optimizer = make_optimizer(parameter_groups(model, train.optim), train.optim)
    json = deepspeed_json(train, world_size=world.size, on_gpus=world.device != "cpu")
    stock, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=json | more)
    return _Bare(stock, model)


def stock_engine(engine: Any) -> Any:
    """Returns DeepSpeed's own engine inside ours or inside a bare one."""
    return engine._engine if isinstance(engine, DeepSpeedEngine) else engine.stock  # noqa: SLF001 - stock saves it


PEERS = {
    "stock": Stock, "dcp": Dcp, "dcp_kept": DcpKept, "decoupled": Decoupled, "decoupled_fast": DecoupledFast,
    "universal": Universal, "convert": Convert,
}  # fmt: skip
