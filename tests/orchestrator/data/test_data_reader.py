"""Samples by number, and never a wrong one."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.data.index import TarIndex
from orchestrator.data.places import LocalFile
from orchestrator.data.reader import ShardSet
from orchestrator.errors import DamagedArtifact, DamagedSample, InputError
from tests.orchestrator.data.conftest import MakeShards


class FileWithBadSector(LocalFile):
    """A file of which one byte cannot be read."""

    def __init__(self, path: str, bad: int) -> None:
        super().__init__(path)
        self._bad = bad

    def read(self, offset: int, size: int) -> bytes:
        if offset <= self._bad < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(offset, size)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def index_of_tar(directory: Path, tar: int) -> TarIndex:
    return TarIndex.load(directory / f"shard-{tar:06d}.idx")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_every_sample_is_found_by_its_number(make_shards: MakeShards) -> None:
    shards = ShardSet(make_shards("a", 25))

    assert len(shards) == 25
    assert [f"a-{i}" for i in range(25)] == [shards.read(i)[0] for i in range(25)]
    assert shards.locate(24) == (2, 4)


@pytest.mark.parametrize("number", [-1, 25])
def test_a_number_outside_the_set_is_no_sample(make_shards: MakeShards, number: int) -> None:
    with pytest.raises(IndexError, match=f"sample {number} of 25"):
        ShardSet(make_shards("a", 25)).read(number)


def test_opening_a_set_reads_no_tar_and_no_index(make_shards: MakeShards) -> None:
    directory = make_shards("a", 25)
    for path in directory.glob("shard-*"):
        path.unlink()

    assert len(ShardSet(directory)) == 25


def test_no_more_tars_are_open_than_allowed(make_shards: MakeShards) -> None:
    shards = ShardSet(make_shards("a", 25, samples_per_shard=1), open_tars=3)
    before = open_files()

    for i in range(25):
        shards.read(i)

    assert open_files() - before <= 3
    shards.close()
    assert before == open_files()


def test_a_set_without_counts_in_its_manifest_is_counted_by_its_indexes(make_shards: MakeShards) -> None:
    directory = make_shards("a", 25)
    (directory / "shard-000001.idx").unlink()
    (directory / "manifest.json").unlink()
    Shards(directory).commit("fingerprint", facts={})

    shards = ShardSet(directory)

    assert [f"a-{i}" for i in range(25)] == [shards.read(i)[0] for i in range(25)]


def test_a_flipped_byte_is_named_with_tar_key_and_member(make_shards: MakeShards) -> None:
    directory = make_shards("a", 25)
    member = next(m for m in index_of_tar(directory, 0).members(3) if m.extension == "jpg")
    overwrite(directory / "shard-000000.tar", member.offset + 50, b"!")

    with pytest.raises(DamagedArtifact, match=r"shard-000000\.tar: sample 'a-3': member 'jpg': .*checksum"):
        ShardSet(directory).read(3)
    assert ShardSet(directory).read(2)[0] == "a-2"
    assert ShardSet(directory).read(4)[0] == "a-4"


def test_a_damaged_header_costs_no_sample_that_is_in_the_index(make_shards: MakeShards) -> None:
    directory = make_shards("a", 25)
    shards = ShardSet(directory)
    expected = shards.read(3)

    overwrite(directory / "shard-000000.tar", index_of_tar(directory, 0).members(3)[0].offset - 512, bytes(512))

    assert expected == ShardSet(directory).read(3)


def test_a_cut_tar_gives_all_that_is_left_and_names_the_rest(make_shards: MakeShards) -> None:
    directory = make_shards("a", 10)
    member = index_of_tar(directory, 0).members(7)[1]
    os.truncate(directory / "shard-000000.tar", member.offset + 1)
    shards = ShardSet(directory)

    assert [f"a-{i}" for i in range(7)] == [shards.read(i)[0] for i in range(7)]
    for number in (7, 8, 9):
        with pytest.raises(DamagedArtifact, match=rf"'a-{number}': .*too short"):
            shards.read(number)


def test_a_bad_sector_costs_its_own_sample_and_none_that_is_read_together_with_it(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_shards("a", 10)
    bad = index_of_tar(directory, 0).members(6)[0].offset + 5
    monkeypatch.setattr("orchestrator.data.reader.open_place", lambda tar, _: FileWithBadSector(tar, bad))
    shards, kept = ShardSet(directory), []

    for number in range(10):
        try:
            kept.append(shards.read(number)[0])
        except DamagedSample as error:
            assert (error.key, number) == ("a-6", 6)  # noqa: PT017
            assert "cannot be read: Input/output error" in error.reason  # noqa: PT017

    assert [f"a-{i}" for i in range(10) if i != 6] == kept


def test_a_missing_tar_is_named_with_the_keys_that_are_lost(make_shards: MakeShards) -> None:
    directory = make_shards("a", 25)
    (directory / "shard-000001.tar").unlink()
    shards = ShardSet(directory)

    with pytest.raises(DamagedSample, match="missing") as caught:
        shards.read(12)

    assert (str(directory / "shard-000001.tar"), "a-12") == (caught.value.tar, caught.value.key)
    assert shards.read(9)[0] == "a-9"
    assert shards.read(20)[0] == "a-20"


def test_a_tar_that_was_replaced_together_with_its_index_gives_no_sample(make_shards: MakeShards) -> None:
    directory = make_shards("a", 25)
    for suffix in ("tar", "idx"):
        (directory / f"shard-000002.{suffix}").replace(directory / f"shard-000001.{suffix}")

    with pytest.raises(DamagedSample, match=r"shard-000001\.tar: a sample is lost: sample 2: the tar was replaced"):
        ShardSet(directory).read(12)


@pytest.mark.parametrize("samples", [20, 15])
def test_an_index_of_another_tar_is_recognised_and_made_again(make_shards: MakeShards, samples: int) -> None:
    directory = make_shards("a", samples)
    (directory / "shard-000001.idx").replace(directory / "shard-000000.idx")
    shards = ShardSet(directory)

    assert [f"a-{i}" for i in range(10)] == [shards.read(i)[0] for i in range(10)]


def test_a_manifest_cannot_lead_out_of_its_folder(make_shards: MakeShards) -> None:
    directory = make_shards("a", 5)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][1]["path"] = "../secret.tar"
    (directory / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(DamagedArtifact, match=r"outside of it: \.\./secret\.tar"):
        ShardSet(directory)


def test_an_unfinished_set_is_refused(make_shards: MakeShards) -> None:
    directory = make_shards("a", 5)
    (directory / "manifest.json").unlink()

    with pytest.raises(DamagedArtifact, match="no complete shards"):
        ShardSet(directory)


def test_another_kind_of_artifact_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path).commit("fingerprint")

    with pytest.raises(InputError, match="holds checkpoint, not shards"):
        ShardSet(tmp_path)


def test_a_set_goes_to_another_process_without_its_open_files(make_shards: MakeShards) -> None:
    shards = ShardSet(make_shards("a", 5))
    expected = shards.read(4)

    assert expected == pickle.loads(pickle.dumps(shards)).read(4)  # noqa: S301  # our own, made in this line
