"""Values with tensors that travel between processes in an anonymous file."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.data.parcel import pack, unpack


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def parcels_in_memory() -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:orch-parcel")


def sent(value: Any) -> Any:
    return unpack(pack(value), pinned=False, when_gone=lambda: None)


def copied(value: Any) -> Any:
    return unpack(pack(value), pinned=False)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3),
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(10)[::3],
        torch.arange(3).reshape(1, 3).unbind(1)[1],  # one element, and a stride
        torch.tensor(2.5),
        torch.empty(0, 4),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False, True]),
        torch.tensor([1 + 2j]).conj(),
        torch.arange(5, dtype=torch.uint8).expand(2, 5),
        torch.eye(3).to_sparse(),
    ],
    ids=[
        "plain",
        "transposed",
        "strided",
        "strided single",
        "scalar",
        "empty",
        "bfloat16",
        "bool",
        "conjugate",
        "expanded",
        "sparse",
    ],
)
def test_a_tensor_arrives_as_it_was(tensor: torch.Tensor) -> None:
    other, arrived = sent(("beside it", tensor))

    assert other == "beside it"
    assert (arrived.dtype, arrived.shape, arrived.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    assert torch.equal(arrived.to_dense(), tensor.to_dense())


def test_tensors_of_any_depth_arrive_in_one_block_of_memory() -> None:
    arrived = sent({"images": torch.ones(2, 5), "more": [(torch.arange(3), "name")]})

    first, (second, name) = arrived["images"], arrived["more"][0]
    assert torch.equal(first, torch.ones(2, 5))
    assert torch.equal(second, torch.arange(3))
    assert name == "name"
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_a_tensor_that_is_there_twice_stays_one() -> None:
    tensor = torch.zeros(4)

    first, second = sent([tensor, tensor])

    assert first is second


@pytest.mark.parametrize("size", [3, 5 * 10**6], ids=["small", "large"])
@pytest.mark.parametrize("send", [sent, copied])
def test_what_arrived_can_be_changed_and_changes_nothing_else(size: int, send: Callable[[Any], Any]) -> None:
    kept = [torch.zeros(size), torch.zeros(size)]
    arrived = send(kept)
    arrived[0] += 1

    assert torch.equal(arrived[0], torch.ones(size))
    assert torch.equal(arrived[1], torch.zeros(size))
    assert torch.equal(kept[0], torch.zeros(size))


@pytest.mark.parametrize("sizes", [(3, 10**6), (10**6, 3), (10**6, 10**6)], ids=["grows", "shrinks", "stays"])
def test_a_file_carries_one_parcel_after_the_other(sizes: tuple[int, int]) -> None:
    file = os.memfd_create("orch-parcel")
    for number, size in enumerate(sizes):
        assert pack([torch.full((size,), number), "beside it"], file) == file
        value, beside = unpack(os.dup(file), pinned=False, when_gone=lambda: None)
        assert torch.equal(value, torch.full((size,), number))
        assert beside == "beside it"
        assert os.fstat(file).st_size == pytest.approx(8 * size, abs=512)
        del value
    os.close(file)


def test_it_is_told_when_the_last_tensor_of_a_parcel_is_gone_and_not_before() -> None:
    told: list[str] = []
    first, second = unpack(
        pack([torch.zeros(10), torch.arange(10)]), pinned=False, when_gone=lambda: told.append("gone")
    )

    row = second.numpy()[2:]
    del first, second
    gc.collect()
    assert told == []
    assert row.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    del row
    assert told == ["gone"]


def test_nothing_keeps_a_parcel_with_a_sparse_tensor() -> None:
    before = parcels_in_memory()

    assert sent(torch.eye(3).to_sparse()).is_sparse
    assert parcels_in_memory() == before


def test_one_tensor_keeps_a_parcel_and_its_end_gives_the_memory_back() -> None:
    kept = sent([torch.zeros(10**7), torch.arange(10)])[1]
    gc.collect()

    assert torch.equal(kept, torch.arange(10))
    assert parcels_in_memory() == 1
    del kept
    assert parcels_in_memory() == 0


def test_a_parameter_keeps_that_it_learns() -> None:
    assert sent(torch.nn.Parameter(torch.ones(2))).requires_grad


def test_a_parcel_has_no_name_and_leaves_no_descriptor() -> None:
    before = open_files()

    parcel = pack(torch.zeros(1000))
    link = Path(f"/proc/self/fd/{parcel}").readlink()
    unpack(parcel, pinned=False)

    assert str(link) == "/memfd:orch-parcel (deleted)"
    assert before == open_files()


def test_what_cannot_travel_is_refused_and_leaves_no_descriptor() -> None:
    before = open_files()

    with pytest.raises(Exception, match="lambda"):
        pack([torch.zeros(3), lambda: None])
    assert before == open_files()


def test_a_copy_holds_neither_the_file_nor_a_descriptor() -> None:
    before = len(open_files()), parcels_in_memory()

    arrived = copied(torch.ones(10**5))
    assert torch.equal(arrived, torch.ones(10**5))
    assert before == (len(open_files()), parcels_in_memory())


@pytest.mark.needs("gpu")
def test_a_pinned_block_survives_until_the_gpu_has_copied_it() -> None:
    copies = []
    for number in range(50):
        tensor = unpack(pack([torch.full((100,), float(number)), torch.full((10**6,), float(number))]), pinned=True)[1]
        assert tensor.is_pinned()
        copies.append(tensor.to("cuda", non_blocking=True))

    assert [float(number) for number in range(50)] == [float(copy.min()) for copy in copies]
