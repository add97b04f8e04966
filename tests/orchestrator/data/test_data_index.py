"""Where samples lie in a tar, and what is damaged in it."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.data.index import TarIndex, build_index, index_path
from orchestrator.data.reader import ShardReader
from orchestrator.errors import DamagedArtifact

WHOLE = [f"{i:04d}.{extension}" for i in range(10) for extension in ("jpg", "json")]


def write_tar(path: Path, names: Sequence[str], *, format_: int = tarfile.PAX_FORMAT) -> Path:
    """Writes a tar by hand, as others do; each file holds its own name a hundred times."""
    with tarfile.open(path, "w", format=format_) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            content = (name * 100).encode()
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def header_of(tar: Path, name: str) -> int:
    with tarfile.open(tar) as opened:
        return opened.getmember(name).offset


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x55
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def delivered(tar: Path) -> dict[str, list[str]]:
    """Reads all that can be read, and checks that every member belongs to its key."""
    reader = ShardReader(tar)
    found = {}
    for number in range(len(reader.index)):
        key, members = reader.read(number)
        for extension, content in members.items():
            assert (f"{key}.{extension}" * 100).encode() == content
        found[key] = sorted(members)
    reader.close()
    return found


def keys(*numbers: int) -> dict[str, list[str]]:
    return {f"{i:04d}": ["jpg", "json"] for i in numbers}


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_of_others_is_read_in_every_format(tmp_path: Path, format_: int) -> None:
    names = [f"{'folder/' * 12}picture {i}.{extension}" for i in range(3) for extension in ("jpg", "seg.png")]
    tar = write_tar(tmp_path / "a.tar", names, format_=format_)

    found = delivered(tar)

    assert {f"{'folder/' * 12}picture {i}": ["jpg", "seg.png"] for i in range(3)} == found


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_whole(tmp_path: Path, format_: int) -> None:
    name = "ü" * 150
    tar = write_tar(tmp_path / "a.tar", [f"{name}.jpg", f"{name}.json"], format_=format_)

    assert {name: ["jpg", "json"]} == delivered(tar)


def test_folders_links_and_metadata_are_passed_over_as_webdataset_does(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("x", tarfile.DIRTYPE), ("x/a.jpg", tarfile.REGTYPE), ("x/b.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info, io.BytesIO(b""))
        for name in ("__meta__/a.json", "README"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))

    index = build_index(tmp_path / "a.tar")

    assert [index.key(i) for i in range(len(index))] == ["x/a"]
    assert index.damage == ()


def test_an_index_is_read_back_as_it_was_built(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", WHOLE)
    built = build_index(tar)

    built.save(index_path(tar))
    loaded = TarIndex.load(index_path(tar))

    assert [(built.key(i), built.members(i)) for i in range(10)] == [
        (loaded.key(i), loaded.members(i)) for i in range(10)
    ]
    assert tar.stat().st_size == loaded.tar_bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.idx", "a.tar"]


def test_a_tar_cut_inside_a_member_loses_that_sample_by_name_and_no_other(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", WHOLE)
    cut(tar, header_of(tar, "0005.json") + 600)

    found, damage = delivered(tar), build_index(tar).damage

    assert keys(0, 1, 2, 3, 4) == found
    assert "cut inside '0005.json'" in damage[0].reason
    assert [loss.key for loss in damage] == ["", "0005"]


def test_a_tar_cut_between_members_loses_the_half_sample(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", WHOLE)
    cut(tar, header_of(tar, "0005.json"))

    assert keys(0, 1, 2, 3, 4) == delivered(tar)
    assert [loss.key for loss in build_index(tar).damage] == ["", "0005"]


def test_a_tar_without_its_end_keeps_every_whole_sample_and_says_so(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", WHOLE)
    cut(tar, header_of(tar, "0006.jpg"))

    assert keys(0, 1, 2, 3, 4, 5) == delivered(tar)
    assert "end-of-archive" in build_index(tar).damage[0].reason


@pytest.mark.parametrize("member", ["0005.jpg", "0005.json"])
@pytest.mark.parametrize("byte", [0, 124, 150, 156])  # name, size, checksum, type
def test_a_damaged_header_loses_its_sample_and_no_other(tmp_path: Path, member: str, byte: int) -> None:
    tar = write_tar(tmp_path / "a.tar", WHOLE)
    flip(tar, header_of(tar, member) + byte)

    assert keys(0, 1, 2, 3, 4, 6, 7, 8, 9) == delivered(tar)
    assert [loss.key for loss in build_index(tar).damage] == ["", "0005"]


def test_samples_of_unequal_members_next_to_damage_are_not_trusted(tmp_path: Path) -> None:
    names = ["a.jpg", "a.json", "b.jpg", "c.jpg", "c.json", "d.jpg"]
    tar = write_tar(tmp_path / "a.tar", names)
    flip(tar, header_of(tar, "c.jpg"))

    assert delivered(tar) == {"a": ["jpg", "json"], "d": ["jpg"]}


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "b.jpg", "a.json", "b.json", "c.jpg", "c.json"],  # interleaved
        ["a.jpg", "c.jpg", "c.json", "a.jpg", "a.json"],  # repeated later
        ["a.jpg", "a.jpg", "a.json", "c.jpg", "c.json"],  # the same member twice
    ],
)
def test_samples_whose_members_may_be_mixed_up_are_lost_by_name(tmp_path: Path, names: list[str]) -> None:
    tar = write_tar(tmp_path / "a.tar", names)

    lost = {name.split(".")[0] for name in names} - {"c"}

    assert delivered(tar) == {"c": ["jpg", "json"]}
    assert lost == {loss.key for loss in build_index(tar).damage}


def test_zeroes_in_the_middle_of_a_tar_are_not_taken_for_its_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", WHOLE)
    content = bytearray(tar.read_bytes())
    content[header_of(tar, "0003.json") : header_of(tar, "0005.jpg")] = bytes(
        header_of(tar, "0005.jpg") - header_of(tar, "0003.json")
    )
    tar.write_bytes(content)

    assert keys(0, 1, 2, 5, 6, 7, 8, 9) == delivered(tar)


@pytest.mark.parametrize("content", [b"", b"not a tar", bytes(range(256)) * 20])
def test_what_is_no_tar_holds_no_samples_and_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)

    index = build_index(tmp_path / "a.tar")

    assert len(index) == 0
    assert len(index.damage) > 0


@pytest.mark.parametrize("offset", [0, 8, 12, 40, 64, 300, -1])
def test_a_damaged_index_is_refused_by_name(tmp_path: Path, offset: int) -> None:
    tar = write_tar(tmp_path / "a.tar", WHOLE)
    build_index(tar).save(index_path(tar))
    flip(index_path(tar), offset)

    with pytest.raises(DamagedArtifact, match=r"a\.idx"):
        TarIndex.load(index_path(tar))


@pytest.mark.parametrize("size", [0, 10, 64, 200])
def test_a_short_index_is_refused_by_name(tmp_path: Path, size: int) -> None:
    tar = write_tar(tmp_path / "a.tar", WHOLE)
    build_index(tar).save(index_path(tar))
    cut(index_path(tar), size)

    with pytest.raises(DamagedArtifact, match=r"a\.idx"):
        TarIndex.load(index_path(tar))
