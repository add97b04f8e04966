"""Sets of shards with damaged tars and indexes: no wrong sample, next to none lost, every loss named."""

import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.artifacts import Shards
from orchestrator.data.adopt import adopt
from orchestrator.data.index import build_index
from orchestrator.data.reader import ShardSet
from orchestrator.data.remote import Remote
from orchestrator.data.writer import ShardWriter
from orchestrator.errors import DamagedSample

SAMPLES, PER_TAR = 600, 200
Expected = dict[int, tuple[str, dict[str, bytes]]]


def write_set(directory: Path) -> Expected:
    noise, expected = random.Random(0), {}
    with ShardWriter(directory, samples_per_shard=PER_TAR) as writer:
        for number in range(SAMPLES):
            members = {"jpg": noise.randbytes(noise.randrange(200, 3000)), "json": json.dumps({"n": number}).encode()}
            expected[number] = (f"k{number:04d}", members)
            writer.write(f"k{number:04d}", members)
        facts = writer.close()
    Shards(directory).commit("fingerprint", facts=facts, sha256=writer.sha256)
    return expected


def middle(tar: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(tar) as opened:
        return opened.getmember(name)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip_payload(tar: Path) -> None:
    at = middle(tar, "k0300.jpg").offset_data + 100
    overwrite(tar, at, bytes([tar.read_bytes()[at] ^ 4]))


def flip_header(tar: Path) -> None:
    overwrite(tar, middle(tar, "k0300.jpg").offset + 3, b"#")


def cut(tar: Path) -> None:
    os.truncate(tar, middle(tar, "k0398.json").offset + 10)


def cut_out(tar: Path, name: str) -> None:
    """Takes one file out, as if it had never been added."""
    found, content = middle(tar, name), tar.read_bytes()
    end = found.offset_data + -(-found.size // 512) * 512
    tar.write_bytes(content[: found.offset] + content[end:])


def copy_in(tar: Path, name: str, at: str) -> None:
    """Puts a copy of one file in front of another."""
    found, content = middle(tar, name), tar.read_bytes()
    end, here = found.offset_data + -(-found.size // 512) * 512, middle(tar, at).offset
    tar.write_bytes(content[:here] + content[found.offset : end] + content[here:])


def replace(tar: Path) -> None:
    """Another tar under the same name, with equal keys and, but for the first ten, other content."""
    with ShardSet(tar.parent) as shards, ShardWriter(tar.parent / "other") as writer:
        for number in range(PER_TAR, 2 * PER_TAR):
            key, members = shards.read(number)
            writer.write(key, members if number < PER_TAR + 10 else members | {"jpg": members["jpg"] + b"!"})
    (tar.parent / "other/shard-000000.tar").replace(tar)


def index_of_another(tar: Path) -> None:
    tar.with_suffix(".idx").write_bytes((tar.parent / "shard-000002.idx").read_bytes())


def replace_at_equal_size(tar: Path) -> None:
    """Another tar of as many bytes: the same samples in another order, one of them with other content."""
    size = tar.stat().st_size
    with ShardSet(tar.parent) as shards, ShardWriter(tar.parent / "other") as writer:
        for number in reversed(range(PER_TAR, 2 * PER_TAR)):
            key, members = shards.read(number)
            writer.write(key, members if number != 300 else members | {"json": b'{"n": 3O0}'})
    (tar.parent / "other/shard-000000.tar").replace(tar)
    assert size == tar.stat().st_size


FAULTS: dict[str, tuple[Callable[[Path], object], int]] = {
    # what is done to the second of three tars, and how many of its 200 samples may be lost
    "truncated tar": (cut, 2),
    "header flip": (flip_header, 0),  # the index knows where the content is
    "payload flip": (flip_payload, 1),
    "missing member": (lambda tar: cut_out(tar, "k0300.json"), 1),
    "duplicate key": (lambda tar: copy_in(tar, "k0300.jpg", "k0350.jpg"), 1),
    "interleaved members": (lambda tar: copy_in(tar, "k0301.jpg", "k0300.json"), 2),
    "tar replaced": (replace, 190),
    "tar replaced at equal size": (replace_at_equal_size, 1),
    "zero-byte tar": (lambda tar: tar.write_bytes(b""), 200),
    "vanished tar": (lambda tar: tar.unlink(), 200),
    "tar is a folder": (lambda tar: (tar.unlink(), tar.mkdir()), 200),
    "vanished index": (lambda tar: tar.with_suffix(".idx").unlink(), 0),
    "damaged index": (lambda tar: overwrite(tar.with_suffix(".idx"), 5000, b"#"), 0),
    "zero-byte index": (lambda tar: tar.with_suffix(".idx").write_bytes(b""), 0),
    "index of another tar": (index_of_another, 0),
    "vanished index, truncated tar": (lambda tar: (cut(tar), tar.with_suffix(".idx").unlink()), 2),
    "vanished index, header flip": (lambda tar: (flip_header(tar), tar.with_suffix(".idx").unlink()), 1),
    "index of another tar, header flip": (lambda tar: (flip_header(tar), index_of_another(tar)), 1),
}


def read_all(path: Path, numbers: list[int]) -> tuple[Expected, dict[int, DamagedSample]]:
    found, lost = {}, {}
    with ShardSet(path) as shards:
        assert len(shards) == SAMPLES
        for number in numbers:
            try:
                found[number] = shards.read(number)
            except DamagedSample as error:
                lost[number] = error
    return found, lost


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("in_order", [True, False])
def test_a_damaged_tar_gives_whole_samples_and_names_the_lost(tmp_path: Path, fault: str, *, in_order: bool) -> None:
    expected = write_set(tmp_path / "set")
    damage, allowed = FAULTS[fault]
    damage(tmp_path / "set" / "shard-000001.tar")
    numbers = list(range(SAMPLES))
    if not in_order:
        random.Random(1).shuffle(numbers)

    found, lost = read_all(tmp_path / "set", numbers)

    whole = dict(expected.values())
    assert all(whole[key] == members for key, members in found.values())
    assert len({key for key, _ in found.values()}) == len(found)
    assert len(lost) <= allowed
    assert set(range(PER_TAR, 2 * PER_TAR)) >= set(lost)
    missing = set(whole) - {key for key, _ in found.values()}
    for number, error in lost.items():
        assert error.tar.endswith("shard-000001.tar")
        assert error.reason
        named = {expected[number][0]} if "index" not in fault else {"", *missing}
        assert error.key in named


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "index" not in fault])
def test_with_its_index_a_number_stays_the_sample_that_it_was(tmp_path: Path, fault: str) -> None:
    expected = write_set(tmp_path / "set")
    FAULTS[fault][0](tmp_path / "set" / "shard-000001.tar")

    found, _ = read_all(tmp_path / "set", list(range(SAMPLES)))

    assert found == {number: expected[number] for number in found}


FOREIGN = {
    # damage that is there before anybody makes an index, and how many samples may be lost for it
    "truncated tar": 2,
    "header flip": 1,
    "missing member": 1,
    "duplicate key": 2,
    "interleaved members": 2,
    "zero-byte tar": 200,
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_tar_of_others_that_is_damaged_before_it_is_adopted(tmp_path: Path, fault: str) -> None:
    expected = write_set(tmp_path / "set")
    FAULTS[fault][0](tmp_path / "set" / "shard-000001.tar")
    whole = dict(expected.values())

    shards = adopt(
        str(tmp_path / "set"), tmp_path / "out", processes=1, remote=Remote(), advance=lambda _done, _total: None
    )

    with ShardSet(shards.path) as reader:
        found = [reader.read(number) for number in range(len(reader))]
    facts = shards.facts()
    named = {loss["key"] for loss in facts["damage"]} - {""}
    assert all(whole[key] == members for key, members in found)
    assert SAMPLES - len(found) <= FOREIGN[fault]
    assert fault in ("zero-byte tar", "truncated tar") or set(whole) - {key for key, _ in found} == named
    assert len(facts["damage"]) == facts["losses"] > 0
    assert all(loss["reason"] and loss["tar"].endswith("shard-000001.tar") for loss in facts["damage"])


def test_a_tar_that_is_cut_while_it_is_read_loses_what_is_gone(tmp_path: Path) -> None:
    expected = write_set(tmp_path / "set")
    with ShardSet(tmp_path / "set") as shards:
        assert shards.read(200) == expected[200]
        cut(tmp_path / "set" / "shard-000001.tar")

        assert shards.read(390) == expected[390]
        with pytest.raises(DamagedSample, match="too short") as caught:
            shards.read(399)
    assert caught.value.key == "k0399"


def test_optional_members_are_no_damage_in_tars_that_we_wrote(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        for number in range(20):
            writer.write(f"{number}", {"jpg": b"x", **({"txt": b"y"} if number != 7 else {})})

    assert writer.close()["samples"] == 20
    assert [loss.key for loss in build_index(tmp_path / "shard-000000.tar").damage] == ["7"]


@pytest.mark.parametrize("lacking", [0, 1, 2, 50, 100])
def test_a_member_that_many_samples_lack_is_optional(tmp_path: Path, lacking: int) -> None:
    with ShardWriter(tmp_path) as writer:
        for number in range(200):
            writer.write(f"{number}", {"jpg": b"x", **({"txt": b"y"} if number >= lacking else {})})

    index = build_index(tmp_path / "shard-000000.tar")

    assert len(index) == (200 if lacking > 2 else 200 - lacking)
