"""Pickles of other programs: tensors come out, nothing runs, and what asks for more is refused by name."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.pickles import load_plain
from orchestrator.training.foreign.zero import STAND_INS, _Forgotten

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


class Trap:
    """Touches a file when it is unpickled by a reader that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("archive", [True, False], ids=["as of torch 1.6", "before"])
@pytest.mark.parametrize("wrapping", [None, "model", "state_dict"])
def test_weights_of_one_file_are_read_whatever_they_are_wrapped_in(
    tmp_path: Path, wrapping: str | None, *, archive: bool
) -> None:
    plain = TENSORS if wrapping is None else {wrapping: TENSORS, "epoch": 3}
    torch.save(plain, tmp_path / "model.pth", _use_new_zipfile_serialization=archive)

    source = open_source(tmp_path / "model.pth")

    assert {name: (entry.shape, entry.dtype) for name, entry in source.entries.items()} == {
        "a": ((2, 3), torch.float32),
        "b": ((2,), torch.bfloat16),
    }
    assert all(torch.equal(source.read(name), tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("archive", [True, False], ids=["as of torch 1.6", "before"])
@pytest.mark.parametrize("stand_ins", [(), STAND_INS], ids=["weights", "checkpoint of DeepSpeed"])
def test_a_malicious_file_executes_nothing_and_is_refused_by_what_it_asks_for(
    tmp_path: Path, stand_ins: Any, *, archive: bool
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "model.bin"
    torch.save({**TENSORS, "trap": Trap(trace)}, path, _use_new_zipfile_serialization=archive)

    with pytest.raises(InputError, match=r"model\.bin is not opened: it asks for (posix|nt).system"):
        load_plain(path, stand_ins)

    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the trap works


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_executes_nothing(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Trap(trace), protocol=protocol))

    with pytest.raises(InputError, match="is not opened"):
        open_source(tmp_path / "model.pt")

    assert not trace.exists()


def test_the_stand_ins_let_in_nothing_beside_them(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=1.0)}, tmp_path / "state.pt")

    with pytest.raises(InputError, match=r"argparse\.Namespace"):
        load_plain(tmp_path / "state.pt", STAND_INS)


def test_objects_of_deepspeed_are_let_in_without_its_code(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    scalers = [LossScaler(1.0), DynamicLossScaler(256.0, 1000, 1.0, 1, consecutive_hysteresis=False)]
    state = {"scalers": scalers, "where": fragment_address(3, 4), "stage": ZeroStageEnum.weights, **TENSORS}
    torch.save(state, tmp_path / "state.pt")

    found = load_plain(tmp_path / "state.pt", STAND_INS)

    assert type(found["stage"]) is int
    assert {type(one).__module__ for one in (*found["scalers"], found["where"])} == {_Forgotten.__module__}
    assert torch.equal(found["a"], TENSORS["a"])
    with pytest.raises(InputError, match=r"it asks for deepspeed\."):
        load_plain(tmp_path / "state.pt")


def test_a_stand_in_holds_for_one_file_only(tmp_path: Path) -> None:
    torch.save({"a": argparse.Namespace(lr=1.0)}, tmp_path / "state.pt")

    load_plain(tmp_path / "state.pt", [(argparse.Namespace, "argparse.Namespace")])

    with pytest.raises(InputError, match="argparse"):
        load_plain(tmp_path / "state.pt")


def test_a_torn_file_is_damaged(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "model.bin")
    whole = (tmp_path / "model.bin").read_bytes()

    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "model.bin").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"model\.bin"):
            open_source(tmp_path / "model.bin")


def test_a_file_without_weights_names_what_it_has(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "model.bin")

    with pytest.raises(InputError, match=r"holds no weights .*epoch, loss"):
        open_source(tmp_path / "model.bin")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedArtifact, match=r"gone\.pt is not there"):
        load_plain(tmp_path / "gone.pt")
