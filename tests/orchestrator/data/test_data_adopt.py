"""Tars of others become a set of shards, without being touched."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import time
from pathlib import Path

import fsspec
import pytest

from orchestrator.artifacts import Shards
from orchestrator.checks import check_external
from orchestrator.data.adopt import adopt, find_tars
from orchestrator.data.index import build_index
from orchestrator.data.reader import ShardSet
from orchestrator.data.remote import Remote
from orchestrator.errors import DamagedArtifact, InputError, SurroundingsError
from tests.orchestrator.data.conftest import MakeShards, silent


def foreign(folder: Path, tars: int = 3) -> Path:
    """Tars as somebody else writes them: folders and dots in names, files that belong to no sample."""
    folder.mkdir(parents=True)
    for number in range(tars):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for name in ("README", *(f"s{number}/{i}.{kind}" for i in range(4) for kind in ("jpg", "seg.png", "JSON"))):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(name), 1234.5  # type: ignore[assignment]  # writers do: a pax header each
                tar.addfile(info, io.BytesIO(name.encode()))
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def test_adopted_tars_are_read_by_number_with_the_keys_of_webdataset(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")
    before = content(tars)

    shards = adopt(str(tars), tmp_path / "out", processes=1, remote=Remote(), advance=silent)

    with ShardSet(shards.path) as reader:
        found = [reader.read(number) for number in range(len(reader))]
    assert [f"s{tar}/{i}" for tar in range(3) for i in range(4)] == [key for key, _ in found]
    assert all(
        members == {kind.lower(): f"{key}.{kind}".encode() for kind in ("jpg", "seg.png", "JSON")}
        for key, members in found
    )
    assert before == content(tars)
    assert sorted(path.name for path in tars.iterdir()) == sorted(before)


def test_tars_are_adopted_in_place_and_may_move_together_with_their_indexes(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")

    adopt(str(tars), None, processes=1, remote=Remote(), advance=silent)
    tars.rename(tmp_path / "moved")

    assert ShardSet(tmp_path / "moved").read(11)[0] == "s2/3"
    assert {path.suffix for path in (tmp_path / "moved").iterdir()} == {".tar", ".idx", ".json"}


def test_an_adopted_set_can_be_named_by_a_recipe(tmp_path: Path) -> None:
    shards = adopt(str(foreign(tmp_path / "tars")), tmp_path / "out", processes=1, remote=Remote(), advance=silent)

    assert check_external(Shards(shards.path), "stages.align.inputs.shards.web") == []
    next((tmp_path / "out").glob("*.idx")).unlink()
    assert "missing" in check_external(Shards(shards.path), "stages.align.inputs.shards.web")[0].message


def test_equal_tars_have_equal_digests_wherever_they_lie(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        tars = foreign(tmp_path / name / "tars")
        if name == "b":
            time.sleep(0.01)
        shards = adopt(str(tars), tmp_path / name / "out", processes=1, remote=Remote(), advance=silent)
        digests.append(shards.digest())

    other = tmp_path / "b/tars/part-1.tar"
    other.write_bytes(other.read_bytes().replace(b"s1/2.jpg", b"s1/9.jpg"))  # also in the header, which is then broken
    changed = adopt(str(tmp_path / "b/tars"), tmp_path / "c", processes=1, remote=Remote(), advance=silent)

    assert digests[0] == digests[1]
    assert changed.digest() != digests[0]


def test_several_processes_make_the_same_set_and_tell_how_far_they_are(tmp_path: Path) -> None:
    tars, told = foreign(tmp_path / "tars", 5), []

    one = adopt(str(tars), tmp_path / "one", processes=1, remote=Remote(), advance=silent)
    two = adopt(
        str(tars),
        tmp_path / "two",
        processes=2,
        remote=Remote(),
        advance=lambda done, total: told.append((done, total)),
    )

    assert one.manifest() == two.manifest()
    assert [(number, 5) for number in range(1, 6)] == told


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")
    first = adopt(str(tars), tmp_path / "out", processes=1, remote=Remote(), advance=silent)
    expected = first.manifest()
    kept, gone = sorted((tmp_path / "out").glob("*.idx"))[:2]
    inode = kept.stat().st_ino
    gone.unlink()
    (tmp_path / "out/manifest.json").unlink()

    again = adopt(str(tars), tmp_path / "out", processes=1, remote=Remote(), advance=silent)

    assert expected == again.manifest()
    assert inode == kept.stat().st_ino


def test_a_tar_that_changed_since_is_indexed_anew(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")
    adopt(str(tars), tmp_path / "out", processes=1, remote=Remote(), advance=silent)
    time.sleep(0.01)
    shutil.copy(tars / "part-1.tar", tars / "part-0.tar")

    adopt(str(tars), tmp_path / "out", processes=1, remote=Remote(), advance=silent)

    assert ShardSet(tmp_path / "out").read(0)[0] == "s1/0"


def test_a_tar_in_the_place_of_another_is_indexed_anew_however_old_it_says_it_is(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")
    adopt(str(tars), tmp_path / "out", processes=1, remote=Remote(), advance=silent)
    shutil.copy2(tars / "part-1.tar", tars / "part-0.tar")  # as large, and older than the index

    adopt(str(tars), tmp_path / "out", processes=1, remote=Remote(), advance=silent)

    assert ShardSet(tmp_path / "out").read(0)[0] == "s1/0"


def test_a_tar_without_samples_is_indexed_again_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").touch()

    for _ in range(2):
        shards = adopt(str(tmp_path), None, processes=1, remote=Remote(), advance=silent)

    assert shards.facts()["samples"] == 0


def test_an_index_is_not_taken_for_that_of_a_tar_of_the_same_name_in_another_folder(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")
    for number in range(2):
        (tmp_path / f"d{number}").mkdir()
        (tars / f"part-{number}.tar").rename(tmp_path / f"d{number}" / "part.tar")
    adopt(f"{tmp_path}/d{{0,1}}", tmp_path / "out", processes=1, remote=Remote(), advance=silent)

    adopt(f"{tmp_path}/d1", tmp_path / "out", processes=1, remote=Remote(), advance=silent)

    assert ShardSet(tmp_path / "out").read(0)[0] == "s1/0"


def test_what_was_interrupted_goes_on_where_a_store_says_how_old_its_tars_are(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(foreign(tmp_path / "tars")) + "/", "/adopted", recursive=True)
    try:
        adopt("memory://adopted", tmp_path / "out", processes=1, remote=Remote(), advance=silent)
        before = {path: path.stat().st_ino for path in (tmp_path / "out").glob("*.idx")}
        adopt("memory://adopted", tmp_path / "out", processes=1, remote=Remote(), advance=silent)
    finally:
        store.rm("/adopted", recursive=True)

    assert len(before) == 3
    assert before == {path: path.stat().st_ino for path in before}


def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path) -> None:
    tar = foreign(tmp_path / "tars") / "part-0.tar"
    packed = tar.with_name("part-0.tar.gz")
    packed.write_bytes(gzip.compress(tar.read_bytes()))

    for where in (packed, packed.parent):
        with pytest.raises(InputError, match=r"part-0\.tar\.gz is compressed: .*gunzip"):
            adopt(str(where), tmp_path / "out", processes=1, remote=Remote(), advance=silent)
    packed.replace(tar)  # without saying so
    with pytest.raises(InputError, match=r"part-0\.tar is compressed with gzip"):
        build_index(tar)


def test_a_tar_that_was_compressed_later_loses_its_samples_only(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")
    adopt(str(tars), tmp_path / "out", processes=1, remote=Remote(), advance=silent)
    tar = tars / "part-0.tar"
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    shards = ShardSet(tmp_path / "out")

    with pytest.raises(DamagedArtifact, match="compressed with gzip"):
        shards.read(0)
    assert shards.read(4)[0] == "s1/0"


@pytest.mark.parametrize(
    ("where", "why"),
    [("{}/nothing", "does not exist"), ("{}", "there is no tar"), ("{}/tars/part-{{0,0}}.tar", "names a tar twice")],
)
def test_what_holds_no_tars_is_refused(tmp_path: Path, where: str, why: str) -> None:
    foreign(tmp_path / "tars")

    with pytest.raises(InputError, match=why):
        find_tars(where.format(tmp_path))


def test_tars_are_named_by_rows_and_patterns(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")

    expected = [str(tars / f"part-{number}.tar") for number in range(3)]
    assert expected == find_tars(f"{tars}/part-{{0..2}}.tar") == find_tars(f"{tars}/part-*.tar") == find_tars(str(tars))


def test_tars_of_several_folders_need_a_folder_for_their_indexes(tmp_path: Path) -> None:
    foreign(tmp_path / "a", 1)
    foreign(tmp_path / "b", 1)
    where = f"{tmp_path}/{{a,b}}/part-0.tar"

    with pytest.raises(InputError, match="name a folder for their indexes"):
        adopt(where, None, processes=1, remote=Remote(), advance=silent)
    shards = adopt(where, tmp_path / "out", processes=1, remote=Remote(), advance=silent)

    assert len(ShardSet(shards.path)) == 8


def test_a_set_of_ours_is_not_adopted(make_shards: MakeShards) -> None:
    directory = make_shards("a", 5)
    before = (directory / "manifest.json").read_bytes()

    with pytest.raises(InputError, match="an artifact of ours already"):
        adopt(str(directory), None, processes=1, remote=Remote(), advance=silent)
    assert before == (directory / "manifest.json").read_bytes()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tars = foreign(tmp_path / "tars")
    (tmp_path / "file").touch()

    with pytest.raises(SurroundingsError, match=r"cannot write indexes into .*file/out"):
        adopt(str(tars), tmp_path / "file/out", processes=1, remote=Remote(), advance=silent)


def test_a_manifest_of_adopted_tars_cannot_lead_its_indexes_out_of_its_folder(tmp_path: Path) -> None:
    adopt(str(foreign(tmp_path / "tars")), tmp_path / "out", processes=1, remote=Remote(), advance=silent)
    path = tmp_path / "out/manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in (("indexes", "../x.idx"), ("tars", "../../etc/x.tar")):
        facts = {**manifest["facts"], key: [value, *manifest["facts"][key][1:]]}
        path.write_text(json.dumps({**manifest, "facts": facts}))

        with pytest.raises(DamagedArtifact, match="outside of it"):
            ShardSet(tmp_path / "out")


def test_an_index_takes_as_long_as_its_tar_is_read(tmp_path: Path) -> None:
    """A loose watch over the speed; benchmarks/streaming measures it."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(5000):
            for kind in ("jpg", "json"):
                info = tarfile.TarInfo(f"{number:06d}.{kind}")
                info.size = 1000
                tar.addfile(info, io.BytesIO(bytes(1000)))
    started = time.process_time()

    assert len(build_index(tmp_path / "a.tar")) == 5000
    assert time.process_time() - started < 5
