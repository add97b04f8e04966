"""Room in host memory for one copy of what a rank saves, so that training goes on while that is written."""

import logging
import mmap
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.training.elastic import Piece
from orchestrator.world import World

log = logging.getLogger(__name__)

_ALIGN_BYTES = 64
_SPARE_SHARE = 0.1  # of the memory that is free, which the copies of a node leave
_V1, _V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


class HostRoom:
    """Memory that is taken once and used for every save; where a GPU copies into it, it is pinned."""

    def __init__(self, pieces: Sequence[Piece], device: str) -> None:
        """Takes what these pieces need. Raises OSError where there is no memory."""
        self._device = torch.device(device)
        memory = mmap.mmap(-1, max(1, room_bytes(pieces)))
        with suppress(OSError):  # of a kernel without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory
        if self._device.type == "cuda":
            self._pin()
            self._side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def fits(self, pieces: Sequence[Piece]) -> bool:
        """Tells whether these pieces have room."""
        return room_bytes(pieces) <= self._bytes.numel()

    def moment(self) -> "torch.cuda.Event | None":
        """Marks where the work of the calling thread on its GPU stands; None without one."""
        return torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None

    def copy(self, pieces: Sequence[Piece], moment: "torch.cuda.Event | None") -> list[Piece]:
        """Returns the pieces with their numbers copied here, as they are once the GPU has come to that moment.

        One call into torch that holds no interpreter lock, however many pieces there are.
        """
        places = self._places(pieces)
        numbers = [piece.local.detach() for piece in pieces]
        with torch.no_grad():
            if moment is None:
                _copy(places, numbers)
            else:  # beside what the GPU computes
                with torch.cuda.device(self._device), torch.cuda.stream(self._side):
                    stream = torch.cuda.current_stream()
                    stream.wait_event(moment)
                    _copy(places, numbers)
                    stream.synchronize()
        return [replace(piece, local=place) for piece, place in zip(pieces, places, strict=True)]

    def _places(self, pieces: Sequence[Piece]) -> list[Tensor]:
        places, at = list[Tensor](), 0
        for piece in pieces:
            places.append(self._bytes[at : at + piece.local.nbytes].view(piece.local.dtype))
            at += _padded(piece.local.nbytes)
        return places

    def _pin(self) -> None:
        code = torch.cuda.cudart().cudaHostRegister(self._bytes.data_ptr(), self._bytes.numel(), 0)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if int(code):
            log.warning("host memory cannot be pinned (CUDA error %d): copies take longer", int(code))


def _copy(places: list[Tensor], numbers: list[Tensor]) -> None:
    if places:
        torch._foreach_copy_(places, numbers, non_blocking=True)


def room_bytes(pieces: Sequence[Piece]) -> int:
    """Returns how much room a copy of these pieces takes."""
    return sum(_padded(piece.local.nbytes) for piece in pieces)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES


def lacking_memory(need_bytes: int, free_bytes: int, world: World) -> str:
    """Says where the copies of all ranks of a node do not fit into what is free; empty where they do on every node.

    Collective: every rank must call.
    """
    told = world.gather((socket.gethostname(), need_bytes, free_bytes))
    for node in dict.fromkeys(name for name, _, _ in told):
        need = sum(size for name, size, _ in told if name == node)
        free = min(size for name, _, size in told if name == node)
        if need > (1 - _SPARE_SHARE) * free:
            return f"{node} has {free / 1e9:.2f} GB of free memory, a copy takes {need / 1e9:.2f} GB"
    return ""


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Returns how much memory this process may still take: of the machine, and of its control group."""
    return min([_machine_bytes(root), *_group_bytes(root)])


def _machine_bytes(root: Path) -> int:
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    sizes = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return int(sizes["MemAvailable"][0]) * 1024


def _group_bytes(root: Path) -> Iterator[int]:
    """Yields what each control group above this process leaves, of versions 1 and 2, where it has a limit."""
    for line in (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        place, names = ("memory", _V1) if controllers else ("", _V2)
        top = root / "sys/fs/cgroup" / place
        for folder in (top / path.lstrip("/"), *(top / path.lstrip("/")).parents):
            with suppress(OSError, ValueError):  # no such group seen from a container; a limit of "max"
                limit, used = (int((folder / name).read_text(encoding="ascii")) for name in names)
                yield limit - used + _reclaimable_bytes(folder)
            if folder == top:
                break


def _reclaimable_bytes(folder: Path) -> int:
    """Reads how much of what a control group uses is files that the kernel can forget."""
    lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    sizes = dict(line.split() for line in lines)
    return int(sizes.get("total_inactive_file", sizes.get("inactive_file", 0)))
