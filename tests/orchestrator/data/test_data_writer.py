"""Samples in, tars out."""

import gc
import tarfile
import warnings
from pathlib import Path

import pytest
import webdataset

from orchestrator.artifacts import Shards, file_sha256
from orchestrator.data.reader import ShardSet
from orchestrator.data.writer import ShardWriter
from orchestrator.errors import InputError, SurroundingsError
from tests.orchestrator.data.conftest import MakeShards


def read_by_webdataset(tars: list[Path]) -> list[tuple[str, dict[str, bytes]]]:
    """Reads tars as a stranger does, and lets no file that webdataset forgets to close disturb another test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False))
        gc.collect()
    return [
        (sample["__key__"], {name: content for name, content in sample.items() if not name.startswith("__")})
        for sample in samples
    ]


def test_webdataset_reads_our_tars_with_equal_keys_and_members(make_shards: MakeShards) -> None:
    ours = ShardSet(make_shards("a", 25))

    theirs = read_by_webdataset(sorted(ours.path.glob("*.tar")))

    assert [ours.read(i) for i in range(25)] == theirs


def test_equal_samples_make_equal_bytes(make_shards: MakeShards, tmp_path: Path) -> None:
    first = make_shards("a", 25)
    before = {path.name: path.read_bytes() for path in first.glob("shard-*")}
    first.rename(tmp_path / "moved")

    second = make_shards("a", 25)

    assert before == {path.name: path.read_bytes() for path in second.glob("shard-*")}
    assert sorted(before)[:2] == ["shard-000000.idx", "shard-000000.tar"]


def test_headers_hold_neither_clock_nor_user(make_shards: MakeShards) -> None:
    with tarfile.open(make_shards("a", 1) / "shard-000000.tar") as tar:
        assert {(0, 0, 0, "", "", 0o444)} == {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}


def test_the_order_in_which_members_are_given_does_not_matter(tmp_path: Path) -> None:
    for name, members in (("a", {"jpg": b"1", "json": b"2"}), ("b", {"json": b"2", "jpg": b"1"})):
        with ShardWriter(tmp_path / name) as writer:
            writer.write("k", members)

    assert file_sha256(tmp_path / "a/shard-000000.tar") == file_sha256(tmp_path / "b/shard-000000.tar")


def test_the_facts_count_and_the_digests_hold(make_shards: MakeShards) -> None:
    directory = make_shards("a", 25)

    facts = Shards(directory).facts()

    assert Shards(directory).damage(deep=True) == []
    assert facts["samples"] == 25
    assert facts["shards"] == 3
    assert facts["samples_per_tar"] == [10, 10, 5]
    assert sum(path.stat().st_size for path in directory.glob("*.tar")) == facts["bytes"]


def test_a_tar_is_full_when_its_bytes_are(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, max_bytes=1000) as writer:
        for i, size in enumerate((400, 400, 400, 5000, 1)):
            writer.write(str(i), {"bin": bytes(size)})

    assert writer.close()["samples_per_tar"] == [2, 1, 1, 1]


def test_no_samples_are_no_tars(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        facts = writer.close()

    assert facts == {"samples": 0, "shards": 0, "bytes": 0, "samples_per_tar": []}


def test_a_failed_conversion_leaves_whole_tars_only(tmp_path: Path) -> None:
    def convert() -> None:
        with ShardWriter(tmp_path, samples_per_shard=2) as writer:
            for i in range(3):
                writer.write(str(i), {"bin": b"x" if i < 2 else bytes(20_000)})
            writer.write("no sample", {})

    with pytest.raises(InputError):
        convert()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-000000.idx", "shard-000000.tar"]


def test_a_second_writer_starts_clean_and_leaves_strangers_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / ".shard-000007.tar.123.draft").write_text("left by a killed writer")
    for samples in (5, 1):
        with ShardWriter(tmp_path, samples_per_shard=2) as writer:
            for i in range(samples):
                writer.write(str(i), {"bin": b"x"})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "shard-000000.idx", "shard-000000.tar"]


@pytest.mark.parametrize("key", ["", "a/b", "../a", "a.b", "a\\b", "__a", "a\n", "a\x00", "\udcff", "x" * 256])
def test_a_key_that_cannot_name_a_sample_is_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(InputError, match="allowed"):
        writer.write(key, {"bin": b"x"})


@pytest.mark.parametrize("extension", ["", "JPG", "_a", ".jpg", "a/b", "a b", "é"])
def test_an_extension_that_webdataset_would_change_is_refused(tmp_path: Path, extension: str) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(InputError, match=r"member .* allowed"):
        writer.write("key", {extension: b"x"})


def test_a_key_may_appear_once_in_a_tar(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, samples_per_shard=3) as writer:
        writer.write("a", {"bin": b"x"})
        writer.write("b", {"bin": b"x"})

        with pytest.raises(InputError, match="'a' is there already"):
            writer.write("a", {"bin": b"x"})


def test_a_sample_without_members_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(InputError, match="'a' has no members"):
        writer.write("a", {})


def test_keys_of_all_languages_survive(tmp_path: Path) -> None:
    names = ["grüße", "写真 1", "🙂" * 40]
    with ShardWriter(tmp_path) as writer:
        for name in names:
            writer.write(name, {"txt": name.encode()})

    theirs = [key for key, _ in read_by_webdataset([tmp_path / "shard-000000.tar"])]

    assert names == theirs


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SurroundingsError, match="file/shards"):
        ShardWriter(tmp_path / "file/shards")
