"""The processes of one job, and which of them this is."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar, cast

from orchestrator.records import record

T = TypeVar("T")


@record
class World:
    """Rank arithmetic and the few collectives an orchestrator needs, always over CPU tensors."""

    rank: int
    size: int
    local_rank: int
    device: str  # "cpu" or "cuda:N"
    joined: bool  # False: no process group, collectives answer for this process alone

    @classmethod
    def from_environment(cls, *, timeout_s: float = 1800.0) -> "World":
        """Joins the process group that RANK, WORLD_SIZE, LOCAL_RANK and ORCH_RENDEZVOUS describe.

        ORCH_RENDEZVOUS is a torch init method (`file:///...` or `env://`). Collective: every rank must call.
        """
        import torch
        import torch.distributed as dist

        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(local_rank)
        else:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed goes looking for other devices
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # or it loads a compiler for seconds
            os.environ.setdefault("LOCAL_SIZE", str(size))  # or DeepSpeed starts numactl to count them, at every step
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            init_method=os.environ.get("ORCH_RENDEZVOUS", "env://"),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
        device = f"cuda:{local_rank}" if on_gpu else "cpu"
        world = cls(rank=rank, size=size, local_rank=local_rank, device=device, joined=True)
        world.barrier()  # or one that leaves at once fails another that is still connecting, which is then blamed
        return world

    @classmethod
    def alone(cls, *, rank: int = 0, size: int = 1) -> "World":
        """Makes a world without processes, for single-process work, tests and rank arithmetic."""
        return cls(rank=rank, size=size, local_rank=rank, device="cpu", joined=False)

    @property
    def is_main(self) -> bool:
        """Tells whether this is global rank 0, the one that writes what is written once."""
        return self.rank == 0

    def any(self, *, flag: bool) -> bool:
        """Tells whether the flag is up on any rank. Collective: every rank must call."""
        return self.highest(float(flag)) > 0

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Averages each value over the ranks, which must agree on the names. Collective: every rank must call."""
        names = sorted(values)
        if not self.joined or not names:
            return {name: float(values[name]) for name in names}
        import torch
        import torch.distributed as dist

        sums = torch.tensor([values[name] for name in names], dtype=torch.float64)
        dist.all_reduce(sums)
        return {name: float(total) / self.size for name, total in zip(names, sums, strict=True)}

    def highest(self, value: float) -> float:
        """Returns the highest of the ranks' values. Collective: every rank must call."""
        return self.highest_of({"value": value})["value"]

    def highest_of(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the highest of each value over the ranks, which must agree on the names and their order.

        Collective: every rank must call.
        """
        if not self.joined or not values:
            return dict(values)
        import torch
        import torch.distributed as dist

        highest = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return dict(zip(values, highest.tolist(), strict=True))

    def gather(self, value: T) -> list[T]:
        """Returns every rank's value, in rank order, on every rank. Collective: every rank must call."""
        if not self.joined:
            return [value]
        import torch.distributed as dist

        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast("list[T]", values)

    def broadcast(self, value: T) -> T:
        """Returns rank 0's value on every rank. Collective: every rank must call."""
        if not self.joined:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Waits until every rank is here. Collective: every rank must call."""
        self.any(flag=False)


def allow_compiler() -> None:
    """Lets torch.compile work in this process also where joining has kept it off, which is on CPUs."""
    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    from torch._dynamo import config

    config.disable = False
