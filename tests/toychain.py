"""Small real stages for tests of launching: they count, add up, fail in many ways, ignore requests. No torch.

A catalog of its own, for `ORCH_CATALOG=tests.toychain`.
"""

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from orchestrator.artifacts import Report, write_json
from orchestrator.errors import Diverged, InputError, Preempted
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext

STAGES = {
    "count": "tests.toychain:Count",
    "add": "tests.toychain:Add",
    "fail": "tests.toychain:Fail",
    "nap": "tests.toychain:Nap",
    "greet": "tests.toychain:Greet",
}
FAMILIES: Mapping[str, str] = {}

Facts = Mapping[str, Mapping[str, Any]]


@record
class Written:
    """One file, called `value.json`."""

    value: Report


@record
class Read:
    """What another stage wrote."""

    value: Report


class Count(Stage):
    """Counts, saves every few steps, and goes on from there."""

    @record
    class Config:
        steps: int = 5
        save_every: int = 2
        pause_s: float = 0.0

    Outputs: ClassVar[type] = Written

    def steps(self) -> int | None:
        return int(self.config.steps)

    def run(self, context: StageContext) -> Facts:
        (context.directory / "pid").write_text(str(os.getpid()), encoding="ascii")
        done = _last_saved(context.directory)
        for step in range(done + 1, self.config.steps + 1):
            if context.stop():
                _save(context.directory, step - 1, context.fingerprint)
                raise Preempted(f"saved step {step - 1}")
            time.sleep(self.config.pause_s)
            context.journal.metrics(step, {"loss": 1.0 / step})
            context.progress.advance(step, self.config.steps, "step", loss=1.0 / step)
            if step % self.config.save_every == 0:
                _save(context.directory, step, context.fingerprint)
        write_json(self.outputs.value.path / "value.json", self.config.steps)
        return {"value": {"counted": self.config.steps}}


class Add(Stage):
    """Adds to the value it reads."""

    @record
    class Config:
        amount: int = 1

    Inputs: ClassVar[type] = Read
    Outputs: ClassVar[type] = Written

    def run(self, context: StageContext) -> Facts:
        context.progress.advance(0, 1, "sum")
        value = json.loads((self.inputs.value.path / "value.json").read_text(encoding="utf-8"))
        write_json(self.outputs.value.path / "value.json", value + self.config.amount)
        return {"value": {}}


class Fail(Stage):
    """Fails in the way it is told to."""

    @record
    class Config:
        how: Literal["error", "input", "disk", "diverged", "kill", "exit", "forget", "memory", "rank"] = "error"

    Outputs: ClassVar[type] = Written

    def run(self, context: StageContext) -> Facts:
        how = self.config.how
        (self.outputs.value.path / "half.json").write_text("{", encoding="ascii")
        errors: dict[str, Exception] = {
            "error": ValueError("the toy is broken"),
            "input": InputError("how: must be another way"),
            "disk": OSError(errno.ENOSPC, "No space left on device"),
            "diverged": Diverged("the loss is nan at step 3"),
            "memory": MemoryError("too much"),
        }
        if how in errors:
            raise errors[how]
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            os._exit(9)
        if how == "rank" and context.world.rank == 1:
            raise ValueError("rank 1 has had enough")
        if how == "rank":
            context.world.barrier()  # in vain
        return {}


class Nap(Stage):
    """Sleeps and never asks whether it should stop."""

    @record
    class Config:
        seconds: float = 60.0

    Outputs: ClassVar[type] = Written

    def run(self, context: StageContext) -> Facts:
        (context.directory / "pid").write_text(str(os.getpid()), encoding="ascii")
        context.progress.advance(0, 1, "nap")
        time.sleep(self.config.seconds)
        write_json(self.outputs.value.path / "value.json", 0)
        return {"value": {}}


class Greet(Stage):
    """Every rank says where it is; the first writes down what it heard."""

    Outputs: ClassVar[type] = Written

    def run(self, context: StageContext) -> Facts:
        heard = context.world.gather(f"{context.world.rank} of {context.world.size}")
        if context.world.is_main:
            write_json(self.outputs.value.path / "value.json", heard)
        return {"value": {"heard": heard}}


def _save(directory: Path, step: int, fingerprint: str) -> None:
    draft = directory / "checkpoints" / f".step_{step:08d}.{os.environ.get('RANK', '0')}.draft"
    draft.mkdir(parents=True, exist_ok=True)
    (draft / "count").write_text(str(step), encoding="ascii")
    Report(draft).commit(fingerprint)
    target = draft.with_name(f"step_{step:08d}")
    with contextlib.suppress(OSError):  # another rank was faster
        draft.rename(target)


def _last_saved(directory: Path) -> int:
    return max((int(path.name[5:]) for path in (directory / "checkpoints").glob("step_*")), default=0)
