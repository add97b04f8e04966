"""How long samples are, measured once."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from orchestrator.data import lengths as module
from orchestrator.data.lengths import LengthOf, Lengths, join_parts, measure_part
from orchestrator.data.reader import ShardSet
from orchestrator.errors import DamagedArtifact, DamagedSample, InputError, SurroundingsError
from tests.orchestrator.data.conftest import MakeShards


class Counted:
    """Samples whose length is their number plus one; counts what is read of them."""

    def __init__(self, size: int, lost: tuple[int, ...] = ()) -> None:
        self.size, self.lost, self.reads = size, lost, 0

    def __len__(self) -> int:
        return self.size

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        self.reads += 1
        if number in self.lost:
            raise DamagedSample("a.tar", f"k{number}", "its checksum does not hold")
        return f"k{number}", {"n": str(number).encode()}


def plus_one(_: str, members: Mapping[str, bytes]) -> int:
    return int(members["n"]) + 1


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 10)


def measured(
    directory: Path, samples: Counted, *, ranks: int = 1, length_of: LengthOf = plus_one, origin: str = "test"
) -> Lengths:
    for rank in range(ranks):
        measure_part(directory, samples, length_of, origin, rank=rank, size=ranks)
    return join_parts(directory, len(samples), origin)


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_any_number_of_ranks_measures_every_sample_once(tmp_path: Path, ranks: int) -> None:
    samples = Counted(57)

    lengths = measured(tmp_path, samples, ranks=ranks)

    assert lengths.values.tolist() == list(range(1, 58))
    assert lengths.digest == Lengths.of(np.arange(1, 58)).digest
    assert samples.reads == 57
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lengths.json", "lengths.npy"]


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    measured(tmp_path, Counted(25))
    samples = Counted(25)

    assert measured(tmp_path, samples).values.tolist() == list(range(1, 26))
    assert samples.reads == 0


def test_another_origin_is_measured_anew(tmp_path: Path) -> None:
    measured(tmp_path, Counted(25))

    lengths = measured(tmp_path, Counted(25), length_of=lambda _, __: 7, origin="by another tokenizer")

    assert set(lengths.values.tolist()) == {7}


def test_a_killed_measuring_goes_on_where_it_was(tmp_path: Path) -> None:
    def stops(key: str, members: Mapping[str, bytes]) -> int:
        if key == "k33":
            raise KeyboardInterrupt
        return plus_one(key, members)

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, Counted(57), length_of=stops)
    samples = Counted(57)

    assert measured(tmp_path, samples).values.tolist() == list(range(1, 58))
    assert samples.reads == 27  # three chunks of ten were whole
    assert not list(tmp_path.glob("*.draft"))


def test_what_cannot_be_measured_has_length_zero_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def picky(key: str, members: Mapping[str, bytes]) -> int:
        if key == "k3":
            raise InputError("k3: json: not an object")
        return plus_one(key, members)

    lengths = measured(tmp_path, Counted(12, lost=(5,)), length_of=picky)

    assert lengths.values.tolist() == [1, 2, 3, 0, 5, 0, 7, 8, 9, 10, 11, 12]
    assert "k3: json: not an object" in caplog.text
    assert "k5" in caplog.text


def test_what_another_node_has_written_may_show_late(tmp_path: Path) -> None:
    measure_part(tmp_path, Counted(57), plus_one, "test", rank=0, size=1)
    late = max(tmp_path.glob("lengths-*.npy"))
    hidden = late.rename(tmp_path / "hidden")
    later = threading.Timer(0.3, hidden.rename, [late])
    later.start()

    assert join_parts(tmp_path, 57, "test").values.tolist() == list(range(1, 58))
    later.join()


def test_what_cannot_be_seen_at_all_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 1)
    measure_part(tmp_path, Counted(57), plus_one, "test", rank=0, size=2)

    with pytest.raises(SurroundingsError, match=r"000001\.npy was written by another process, but cannot be seen"):
        join_parts(tmp_path, 57, "test")
    assert not (tmp_path / "lengths.npy").exists()


def test_a_length_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sample 0 has length -1; allowed: 0"):
        measured(tmp_path, Counted(3), length_of=lambda _, __: -1)


def test_a_file_that_is_not_the_one_described_is_refused(tmp_path: Path) -> None:
    measured(tmp_path, Counted(25))
    np.save(tmp_path / "lengths.npy", np.zeros(24, np.uint32))

    with pytest.raises(DamagedArtifact, match="is not the file that"):
        Lengths.load(tmp_path, "test")


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    measured(tmp_path, Counted(25))
    (tmp_path / "lengths.npy").write_bytes(b"nothing")

    with pytest.raises(DamagedArtifact, match="cannot be read"):
        Lengths.load(tmp_path, "test")


def test_shards_are_measured_by_number(make_shards: MakeShards, tmp_path: Path) -> None:
    shards = ShardSet(make_shards("a", 25))

    measure_part(tmp_path / "m", shards, lambda _, members: len(members["jpg"]), "bytes", rank=0, size=1)

    assert join_parts(tmp_path / "m", 25, "bytes").values.tolist() == [100 + 37 * i for i in range(25)]


def test_no_samples_are_no_lengths(tmp_path: Path) -> None:
    assert len(measured(tmp_path, Counted(0)).values) == 0
