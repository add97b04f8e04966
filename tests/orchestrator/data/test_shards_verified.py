"""What reading everything finds: each fault by tar, key and reason, and nothing where nothing is wrong."""

import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Shards
from orchestrator.data.collection import open_collection
from orchestrator.data.index import index_path
from orchestrator.data.summary import summarize
from orchestrator.data.verify import Fault, Verdict, verify
from orchestrator.errors import InputError

MakeShards = Callable[..., Path]


def verdict_on(path: Path, *, processes: int = 1) -> Verdict:
    return verify(open_collection(path), None, processes=processes, advance=lambda *_: None)


def summary_of(path: Path) -> dict[str, Any]:
    return summarize(open_collection(path), lambda *_: None)


def flip(tar: Path, name: str, *, at: int) -> None:
    """Changes a byte of a file inside a tar; negative places are in its header."""
    with tarfile.open(tar) as file:
        place = file.getmember(name).offset_data + at
    with tar.open("r+b") as raw:
        raw.seek(place)
        old = raw.read(1)
        raw.seek(place)
        raw.write(bytes([old[0] ^ 0xFF]))


def refuse_seven(key: str, _: Mapping[str, bytes]) -> None:
    if key.endswith("-7"):
        raise InputError(f"sample {key!r}: seven is not liked")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_whole_set_has_no_faults(make_shards: MakeShards, processes: int) -> None:
    verdict = verdict_on(make_shards("a", 25), processes=processes)

    assert verdict.faults == ()
    assert (verdict.tars, verdict.samples) == (3, 25)


def test_a_changed_content_is_named_by_tar_and_key(make_shards: MakeShards) -> None:
    path = make_shards("a", 25)
    flip(path / "shard-000001.tar", "a-13.jpg", at=5)

    verdict = verdict_on(path)

    assert verdict.samples == 24
    assert {(fault.tar, fault.key) for fault in verdict.faults} == {
        ("shard-000001.tar", ""),  # its sha256
        ("shard-000001.tar", "a-13"),
    }
    assert any("sha256" in fault.reason for fault in verdict.faults)
    assert any("checksum" in fault.reason for fault in verdict.faults)


def test_a_cut_tar_loses_what_was_cut_and_nothing_else(make_shards: MakeShards) -> None:
    path = make_shards("a", 25)
    tar = path / "shard-000002.tar"
    with tarfile.open(tar) as file:
        end = file.getmember("a-23.json").offset
    os.truncate(tar, end)

    verdict = verdict_on(path)

    assert verdict.samples == 23
    assert {fault.key for fault in verdict.faults if fault.tar == tar.name} >= {"a-23", "a-24"}


def test_missing_files_and_damaged_indexes_are_faults(make_shards: MakeShards) -> None:
    path = make_shards("a", 35)
    (path / "shard-000000.tar").unlink()
    (path / "shard-000001.idx").write_bytes(b"no index at all")
    (path / "shard-000002.idx").unlink()

    verdict = verdict_on(path)

    assert verdict.samples == 25
    reasons = " | ".join(fault.reason for fault in verdict.faults)
    assert "shard-000000.tar is missing" in reasons
    assert "shard-000001.idx" in reasons
    assert "shard-000002.idx is missing" in reasons


def test_a_key_that_two_tars_have_is_a_fault(make_shards: MakeShards, tmp_path: Path) -> None:
    folder = tmp_path / "together"
    folder.mkdir()
    for number, name in enumerate(("a", "b")):
        source = make_shards("same", 3 + number).rename(tmp_path / name)
        (source / "shard-000000.tar").rename(folder / f"{name}.tar")

    verdict = verdict_on(folder)

    assert {fault.key for fault in verdict.faults} == {"same-0", "same-1", "same-2"}
    assert verdict.faults[0].tar == "a.tar"
    assert "a.tar, b.tar" in verdict.faults[0].reason


def test_what_an_index_does_not_know_is_a_fault(make_shards: MakeShards) -> None:
    path = make_shards("a", 10)
    more = make_shards("b", 10)
    tar = path / "shard-000000.tar"
    (more / "shard-000000.tar").replace(tar)

    verdict = verdict_on(path)

    assert verdict.samples == 0
    assert any(fault.key == "b-3" and "not in its index" in fault.reason for fault in verdict.faults)


def test_what_cannot_be_decoded_is_a_fault(make_shards: MakeShards) -> None:
    collection = open_collection(make_shards("a", 25))

    verdict = verify(collection, refuse_seven, processes=1, advance=lambda *_: None)

    assert [(fault.key, fault.reason) for fault in verdict.faults] == [
        ("a-7", "seven is not liked"),
    ]
    assert verdict.decoded


def test_a_folder_of_foreign_tars_is_verified_as_it_is(make_shards: MakeShards) -> None:
    path = make_shards("a", 25)
    (path / "manifest.json").unlink()
    for tar in path.glob("*.tar"):
        index_path(tar).unlink()
    flip(path / "shard-000001.tar", "a-13.jpg", at=-300)

    verdict = verdict_on(path)

    assert verdict.samples == 24
    assert {fault.tar for fault in verdict.faults} == {"shard-000001.tar"}
    assert any("damaged" in fault.reason for fault in verdict.faults)


def test_foreign_tars_that_were_emptied_after_they_were_indexed_lose_every_sample_by_name(
    make_shards: MakeShards,
) -> None:
    path = make_shards("a", 10)
    (path / "manifest.json").unlink()
    (path / "shard-000000.tar").write_bytes(b"")

    verdict = verdict_on(path)

    assert verdict.samples == 0
    assert any("empty" in fault.reason for fault in verdict.faults)


def test_progress_counts_tars(make_shards: MakeShards) -> None:
    told: list[tuple[int, int]] = []

    verify(open_collection(make_shards("a", 25)), None, processes=1, advance=lambda *now: told.append(now))

    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_summary_counts_without_reading_samples(make_shards: MakeShards) -> None:
    path = make_shards("a", 25)
    flip(path / "shard-000001.tar", "a-13.jpg", at=5)  # which only reading would find

    shown = summary_of(path)

    assert (shown["kind"], shown["samples"], shown["shards"]) == ("shards", 25, 3)
    assert shown["members"]["json"]["samples"] == 25
    assert shown["members"]["jpg"]["bytes"] == sum(100 + 37 * i for i in range(25))
    assert shown["largest"]["tar"] == "shard-000001.tar"
    assert shown["smallest"] == {
        "tar": "shard-000002.tar", "samples": 5, "bytes": (path / "shard-000002.tar").stat().st_size,
    }  # fmt: skip
    assert (shown["damage"], shown["faults"], shown["without_index"]) == ([], [], [])
    json.dumps(shown)


def test_a_summary_tells_what_indexes_and_manifest_know_of_damage(make_shards: MakeShards) -> None:
    path = make_shards("a", 25)
    os.truncate(path / "shard-000001.tar", 3000)
    (path / "shard-000001.idx").unlink()

    shown = summary_of(path)

    assert shown["without_index"] == ["shard-000001.tar"]
    assert any(one["tar"] == "shard-000001.tar" and "cut" in one["reason"] for one in shown["damage"])
    assert any("shard-000001.tar has 3000 bytes" in fault for fault in shown["faults"])


def test_a_missing_tar_does_not_keep_a_summary_from_its_end(make_shards: MakeShards) -> None:
    path = make_shards("a", 25)
    (path / "shard-000001.tar").unlink()
    (path / "shard-000001.idx").unlink()

    shown = summary_of(path)

    assert shown["samples"] == 25
    assert [one["tar"] for one in shown["damage"]] == ["shard-000001.tar"]


def test_one_tar_is_a_collection(make_shards: MakeShards) -> None:
    collection = open_collection(make_shards("a", 25) / "shard-000001.tar")

    assert [entry.name for entry in collection.entries] == ["shard-000001.tar"]
    assert collection.entries[0].count() == 10


def test_what_holds_no_tars_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    (tmp_path / "model").mkdir()
    Shards(tmp_path / "model").commit("f")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text(encoding="utf-8"))
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest | {"kind": "checkpoint"}), encoding="utf-8")

    for path, words in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "photo.jpg", "is no tar"),
        (tmp_path, "it holds model, photo.jpg"),
        (tmp_path / "model", "holds checkpoint, not shards"),
    ):
        with pytest.raises(InputError, match=words):
            open_collection(path)


def test_a_fault_is_plain_data() -> None:
    assert Fault("t", "k", "r")._asdict() == {"tar": "t", "key": "k", "reason": "r"}
