"""Walking through tars of every shape, in stretches of every size, whole and damaged."""

import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from orchestrator.data.grouping import group
from orchestrator.data.headers import BLOCK, parse
from orchestrator.data.scan import Files, Gap, scan

PLAIN = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = st.sampled_from(
    ["a.jpg", "b/c.json", "x" * 97 + ".t", "y" * 150 + ".txt", "ü.jpg", "d/" * 60 + "e.f", "README"]
)
MEMBERS = st.lists(st.tuples(NAMES, st.sampled_from([0, 1, 511, 512, 513, 1500, 9000])), max_size=12)
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])


class Memory:
    """A place in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]

    def fill(self, offset: int, into: memoryview) -> int:
        found = self.content[offset : offset + len(into)]
        into[: len(found)] = found
        return len(found)

    def forget(self, offset: int, size: int) -> bool:  # noqa: ARG002  # nothing is copied
        return False

    def close(self) -> None:
        """Has nothing open."""


def tar_of(members: list[tuple[str, int]], format_: int, *, mtime: float = 0) -> bytes:
    file, noise = io.BytesIO(), random.Random(len(members))
    with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
        for name, size in members:
            info = tarfile.TarInfo(name if format_ != tarfile.USTAR_FORMAT or "/" in name else name[-99:])
            info.size, info.mtime = size, mtime  # type: ignore[assignment]  # tarfile takes a float: a pax header each
            tar.addfile(info, io.BytesIO(noise.randbytes(size)))
    return file.getvalue()


def columns(content: bytes, stretch: int) -> tuple[list[tuple[bytes, int, int, int]], list[Gap]]:
    files: list[tuple[bytes, int, int, int]] = []
    gaps = []
    for found in scan(Memory(content), stretch):
        if isinstance(found, Files):
            files += zip(*found, strict=True)
        else:
            gaps.append(found)
    return files, gaps


@PLAIN
@given(
    members=MEMBERS, format_=FORMATS, stretch=st.sampled_from([1024, 4096, 1 << 20]), mtime=st.sampled_from([0, 1.5])
)
def test_the_same_is_found_as_by_the_standard_library(
    members: list[tuple[str, int]], format_: int, stretch: int, mtime: float
) -> None:
    content = tar_of(members, format_, mtime=mtime)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(info.name.encode(), info.offset_data, info.size) for info in tar]

    files, gaps = columns(content, stretch)

    assert expected == [file[:3] for file in files]
    assert [xxh3_64_intdigest(content[at : at + size]) for _, at, size in expected] == [file[3] for file in files]
    assert gaps == []


@PLAIN
@given(data=st.data(), format_=FORMATS, stretch=st.sampled_from([2048, 1 << 20]))
def test_damage_anywhere_never_makes_a_wrong_sample_and_is_told(
    data: st.DataObject, format_: int, stretch: int
) -> None:
    names = [(f"{key:03d}.{kind}", 700 + key) for key in range(20) for kind in ("jpg", "json")]
    content = bytearray(tar_of(names, format_))
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as tar:
        heads = {info.name: info.offset for info in tar}
    blocks = st.sampled_from(sorted(heads.values()))
    for head in data.draw(st.lists(blocks, min_size=1, max_size=3, unique=True)):
        at = head + data.draw(st.integers(0, 511))
        content[at] ^= data.draw(st.integers(1, 255))
    keep = data.draw(st.sampled_from([len(content), data.draw(st.integers(1, len(content)))]))

    samples = group(scan(Memory(bytes(content[:keep])), stretch), alike=True)

    rows = samples.members.tolist()
    for number, key in enumerate(samples.keys):
        begin, end = int(samples.firsts[number]), int(samples.firsts[number + 1])
        members = {samples.extensions[kind]: (offset, size) for offset, size, _, kind in rows[begin:end]}
        name = key.decode()
        assert members == {kind: (heads[f"{name}.{kind}"] + BLOCK, 700 + int(name)) for kind in ("jpg", "json")}
    whole = sum(heads[f"{key:03d}.json"] + BLOCK + 1024 <= keep for key in range(20))
    assert len(samples.keys) >= whole - 2 * 3
    assert len(samples.keys) == 20 or samples.damage


@pytest.mark.parametrize(
    "field",
    [
        b"-0000000777\0",  # goes backwards
        b"99999999999\0",
        b"\x80" + b"\xff" * 11,  # in base 256: more than there is
        b"77777777777\0",
    ],
)
def test_a_size_that_cannot_be_leads_nowhere(field: bytes) -> None:
    content = bytearray(tar_of([("a.jpg", 700), ("b.jpg", 700), ("c.jpg", 700)], tarfile.USTAR_FORMAT))
    at = 512 + 1024
    content[at + 124 : at + 136] = field
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])  # a checksum that holds

    files, gaps = columns(bytes(content), 4096)

    assert files[0][0] == b"a.jpg"
    assert b"b.jpg" not in [file[0] for file in files]
    assert gaps


def test_checksums_in_unusual_forms_hold() -> None:
    content = bytearray(tar_of([("a.jpg", 700), ("b.jpg", 5)], tarfile.USTAR_FORMAT))
    total = int(content[148:154], 8)
    for form in (b"%6o\0 " % total, b" %o \0" % total, b"%07o\0" % total, b"%07o " % total):
        content[148:156] = form.ljust(8, b"\0")[:8]

        assert parse(bytes(content[:512])) is not None
        assert [file[0] for file in columns(bytes(content), 4096)[0]] == [b"a.jpg", b"b.jpg"]


def test_a_tar_that_shrinks_while_it_is_read_is_cut() -> None:
    content = tar_of([(f"{i}.jpg", 3000) for i in range(50)], tarfile.USTAR_FORMAT)

    class Shrinking(Memory):
        def size(self) -> int:
            return len(content)

    files = list(scan(Shrinking(content[:60_000]), 8192))

    assert sum(len(item.names) for item in files if isinstance(item, Files)) == 60_000 // 3584
    assert isinstance(files[-1], Gap)


def test_a_member_larger_than_a_stretch_is_hashed_as_a_whole(tmp_path: Path) -> None:
    content = tar_of([("a.bin", 100_000), ("b.bin", 10)], tarfile.USTAR_FORMAT)

    files, gaps = columns(content, 4096)

    assert xxh3_64_intdigest(content[512:100_512]) == files[0][3]
    assert [file[0] for file in files] == [b"a.bin", b"b.bin"]
    assert gaps == []
