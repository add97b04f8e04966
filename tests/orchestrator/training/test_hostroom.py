"""Room for a copy: taken once, and not where the memory of the machine or of the job is too small for it."""

from pathlib import Path

import pytest
import torch

from orchestrator.training.elastic import Piece, whole
from orchestrator.training.hostroom import HostRoom, free_memory_bytes, lacking_memory, room_bytes
from orchestrator.world import World

TYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)


def pieces() -> list[Piece]:
    made = [whole(str(kind), torch.arange(7).to(kind)) for kind in TYPES]
    return [*made, whole("none", torch.empty(0)), whole("one", torch.ones(()))]


def test_a_copy_keeps_what_was_there_when_the_original_changes() -> None:
    held = pieces()
    expected = [piece.local.clone() for piece in held]

    copies = HostRoom(held, "cpu").copy(held, None)
    for piece in held:
        piece.local.zero_()

    assert all(torch.equal(copy.local, before) for copy, before in zip(copies, expected, strict=True))
    assert [(copy.name, copy.shape, copy.local.dtype) for copy in copies] == [
        (piece.name, piece.shape, piece.local.dtype) for piece in held
    ]


def test_room_is_used_again() -> None:
    held = pieces()
    room = HostRoom(held, "cpu")

    first, second = (room.copy(held, None) for _ in range(2))

    assert [copy.local.data_ptr() for copy in first] == [copy.local.data_ptr() for copy in second]
    assert room.fits(held)
    assert not room.fits([*held, *held])


def machine(root: Path, group: dict[str, int | str], *, version: int) -> Path:
    folder = root / "sys/fs/cgroup" / ("memory" if version == 1 else "") / "job/step"
    folder.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", encoding="ascii")
    line = "4:memory:/job/step\n" if version == 1 else "0::/job/step\n"
    (root / "proc/self/cgroup").write_text(line, encoding="ascii")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    for name, value in zip(names, (group["limit"], group["used"]), strict=True):
        (folder.parent / name).write_text(f"{value}\n", encoding="ascii")
    (folder.parent / "memory.stat").write_text(f"anon 1\ninactive_file {group['files']}\n", encoding="ascii")
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_a_job_has_what_its_group_leaves_with_files_that_can_be_forgotten(tmp_path: Path, version: int) -> None:
    root = machine(tmp_path, {"limit": 5_000_000, "used": 3_000_000, "files": 500_000}, version=version)

    assert free_memory_bytes(root) == 2_500_000


def test_a_group_without_a_limit_leaves_what_the_machine_has(tmp_path: Path) -> None:
    assert free_memory_bytes(machine(tmp_path, {"limit": "max", "used": 3, "files": 0}, version=2)) == 8000 * 1024


def test_what_does_not_fit_is_named() -> None:
    assert lacking_memory(room_bytes(pieces()), 10**6, World.alone()) == ""
    assert "a copy takes 1000000.00 GB" in lacking_memory(10**15, 10**6, World.alone())
