"""Conversions on several processes and ranks, killed, stopped and resumed: always the same bytes."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.artifacts import Shards
from orchestrator.data.reader import ShardSet
from orchestrator.errors import OrchError, Preempted, SurroundingsError
from orchestrator.progress import read_progress
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.stages.conversion import REPOSITORY, Converted, context_in, convert, stage_for
from tests.stages.own_data import convert_lines, digests, many_lines, write_lines
from tests.waiting import until

RECORDS, PER_TAR = 58, 5
TARS = 12


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 58 lines, of which eight are broken."""
    folder = tmp_path_factory.mktemp("data") / "mine"
    write_lines(folder, many_lines(RECORDS))
    return folder


@pytest.fixture(scope="module")
def expected(mine: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """What one process makes of it, undisturbed."""
    return run(tmp_path_factory.mktemp("expected"), mine, processes=1)


def run(directory: Path, mine: Path, *, per_tar: int = PER_TAR, processes: int = 2) -> Converted:
    return convert(directory, mine, source="jsonl", file="data.jsonl", samples_per_shard=per_tar, processes=processes)


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("processes", [2, 3, 20])
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    expected: Converted, mine: Path, tmp_path: Path, processes: int
) -> None:
    made = run(tmp_path, mine, processes=processes)

    assert digests(made.directory) == digests(expected.directory)
    assert made.facts == expected.facts


def on_rank(world: World, directory: Path, mine: Path) -> dict[str, object]:
    stage = stage_for(
        directory, mine, source="jsonl", file="data.jsonl", samples_per_shard=PER_TAR, processes=world.rank + 1
    )
    return dict(stage.run(context_in(directory, world=world))["shards"])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_ranks(
    expected: Converted, mine: Path, tmp_path: Path, size: int
) -> None:
    facts, *others = run_ranks(size, on_rank, tmp_path / "run", mine, directory=tmp_path)

    assert digests(tmp_path / "run/shards") == digests(expected.directory)
    assert facts == expected.facts
    assert others == [{}] * (size - 1)


def test_a_tar_holds_the_records_of_its_place_and_only_what_is_whole_of_them(expected: Converted) -> None:
    lines = [sample.key.split("-")[1] for sample in expected.samples()]
    kept = [f"{number + 1:08d}" for number in range(RECORDS) if number % 7 != 3]

    assert lines == kept
    assert expected.facts["records"] == RECORDS
    assert expected.facts["samples_per_tar"] == [4, 5, 4, 4, 4, 5, 4, 4, 5, 4, 4, 3]
    assert expected.facts["skipped"] == {"total": 8, "reasons": {"image is missing": 8}}
    assert expected.facts["counts"]["images"] == 3  # different ones


def test_a_tar_of_which_nothing_is_left_is_missing_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    lines = [{"image": "gone.jpg" if 2 <= number < 4 else "a.jpg"} for number in range(6)]

    made = convert_lines(tmp_path, lines, samples_per_shard=2)
    Shards(made.directory).commit("f" * 64, made.facts)

    assert sorted(path.name for path in made.directory.glob("*.tar")) == ["shard-000000.tar", "shard-000002.tar"]
    assert [ShardSet(made.directory).read(number)[0] for number in range(4)] == [
        "data-00000001-a", "data-00000002-a", "data-00000005-a", "data-00000006-a"
    ]  # fmt: skip


def test_the_digests_that_are_handed_over_are_those_of_the_files(expected: Converted) -> None:
    files = digests(expected.directory)

    assert {name: digest for name, digest in files.items() if name != "skipped.jsonl"} == expected.facts["sha256"]


def test_a_limit_counts_records_in_the_order_of_the_file(mine: Path, tmp_path: Path) -> None:
    made = convert(tmp_path, mine, source="jsonl", file="data.jsonl", samples_per_shard=PER_TAR, limit=12)

    assert [int(sample.key.split("-")[1]) for sample in made.samples()] == [1, 2, 3, 5, 6, 7, 8, 9, 10, 12]
    assert made.facts["records"] == 12


def test_converting_imports_neither_torch_nor_webdataset_which_take_longer_than_a_small_conversion() -> None:
    program = (
        "import sys, stages.convert.share, stages.convert.report; print({'torch', 'webdataset'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


def test_progress_ends_with_every_record(expected: Converted) -> None:
    shown = read_progress(expected.directory.parent)

    assert shown is not None
    assert (shown["done"], shown["total"], shown["unit"]) == (RECORDS, RECORDS, "record")
    assert shown["values"] == {"skipped": 8}


# ------------------------------------------------------------------------------------------------ killed and stopped

KILLED = """
import sys
from pathlib import Path
from tests.stages.conversion import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), source="jsonl", file="data.jsonl", samples_per_shard=20, processes=2)
"""


def start(directory: Path, mine: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", KILLED, str(directory), str(mine)], cwd=REPOSITORY)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_conversion_keeps_its_finished_tars_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    write_lines(mine, many_lines(1200))
    undisturbed = run(tmp_path / "undisturbed", mine, per_tar=20)
    receipts, shards = tmp_path / "run/chunks", tmp_path / "run/shards"
    process = start(tmp_path / "run", mine)
    until(lambda: len(list(receipts.glob("*.json"))) >= 5 and bool(children_of(process.pid)))
    children = children_of(process.pid)

    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))

    finished = {f"shard-{path.stem}{end}" for path in receipts.glob("*.json") for end in (".tar", ".idx")}
    before = {name: state for name, state in states(shards).items() if name in finished}
    assert 10 <= len(before) < 120
    again = run(tmp_path / "run", mine, per_tar=20)
    after = states(shards)
    assert {name: after[name] for name in before} == before
    assert digests(shards) == digests(undisturbed.directory)
    assert again.facts == undisturbed.facts


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a conversion ask whether it should stop so often that the fastest machine has not finished before."""
    monkeypatch.setattr("stages.convert.share._MEET_EVERY_S", 0.005)


@pytest.mark.usefixtures("often")
def test_asked_to_stop_it_keeps_what_is_finished_and_goes_on(tmp_path: Path) -> None:
    write_lines(tmp_path / "mine", many_lines(300))
    undisturbed = run(tmp_path / "undisturbed", tmp_path / "mine", per_tar=10)
    stage = stage_for(tmp_path, tmp_path / "mine", source="jsonl", file="data.jsonl", samples_per_shard=10, processes=1)
    finished = tmp_path / "chunks"

    with pytest.raises(Preempted, match="finished tars are kept"):
        stage.run(context_in(tmp_path, stop=lambda: len(list(finished.glob("*.json"))) >= 3))

    kept = states(finished)
    made = run(tmp_path, tmp_path / "mine", per_tar=10)
    assert 3 <= len(kept) < 30
    assert {name: state for name, state in states(finished).items() if name in kept} == kept
    assert digests(made.directory) == digests(undisturbed.directory)


def stopped_on_rank(world: World, directory: Path, mine: Path) -> str:
    stage = stage_for(directory, mine, source="jsonl", file="data.jsonl", samples_per_shard=PER_TAR, processes=1)
    try:
        stage.run(context_in(directory, world=world, stop=lambda: world.rank == 1))
    except Preempted as error:
        return str(error)
    return "went on"


def test_a_rank_that_is_asked_to_stop_stops_them_all(mine: Path, tmp_path: Path) -> None:
    answers = run_ranks(2, stopped_on_rank, tmp_path / "run", mine, directory=tmp_path)

    assert ["asked to stop" in answer for answer in answers] == [True, True]


# -------------------------------------------------------------------------------------------------------- what is kept


def test_finished_tars_of_the_same_plan_are_not_touched(mine: Path, tmp_path: Path) -> None:
    first = run(tmp_path, mine)
    before = states(first.directory)
    (first.directory / "shard-000004.tar").unlink()
    (first.directory / "shard-000007.tar").write_bytes(b"cut")
    (tmp_path / "chunks" / "000009.json").write_text("{")

    made = run(tmp_path, mine)

    after = states(made.directory)
    changed = {name for name in before if before[name] != after[name]}
    assert {name for name in changed if name.endswith(".tar")} == {f"shard-00000{number}.tar" for number in (4, 7, 9)}
    assert Shards(made.directory).path.joinpath("shard-000001.tar").stat().st_ino == before["shard-000001.tar"][0]
    assert made.facts == first.facts


@pytest.mark.parametrize("change", ["fingerprint", "file", "config"])
def test_tars_of_another_plan_are_not_taken_for_ours(tmp_path: Path, change: str) -> None:
    write_lines(tmp_path / "mine", many_lines(RECORDS))
    run(tmp_path, tmp_path / "mine")
    before = states(tmp_path / "shards")
    if change == "file":
        os.utime(tmp_path / "mine/data.jsonl", ns=(1, 1))
    per_tar = 6 if change == "config" else PER_TAR
    stage = stage_for(
        tmp_path, tmp_path / "mine", source="jsonl", file="data.jsonl", samples_per_shard=per_tar, processes=2
    )

    stage.run(context_in(tmp_path, fingerprint="0" * 64 if change == "fingerprint" else "f" * 64))

    after = states(tmp_path / "shards")
    assert [name for name in before if after.get(name) == before[name]] == []


def test_drafts_and_strangers_in_the_folder_are_removed(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in (".shard-000000.tar.12.draft", "shard-000099.tar", "shard-000099.idx", "other.tar"):
        (tmp_path / "shards" / name).write_bytes(b"left by somebody")

    made = run(tmp_path, mine)

    names = {f"shard-{number:06d}{end}" for number in range(TARS) for end in (".tar", ".idx")}
    assert {path.name for path in made.directory.iterdir()} == names | {"skipped.jsonl"}


def test_nothing_is_kept_of_a_conversion_that_kept_nothing(tmp_path: Path) -> None:
    with pytest.raises(OrchError, match=r"nothing of jsonl could be kept: image is missing \(1 times\)"):
        convert_lines(tmp_path, [{"image": "late.jpg"}])
    (tmp_path / "mine/a.jpg").rename(tmp_path / "mine/late.jpg")

    made = convert(tmp_path, tmp_path / "mine", source="jsonl", file="data.jsonl")

    assert made.facts["samples"] == 1


# --------------------------------------------------------------------------------------------------- when it goes wrong


@pytest.mark.usefixtures("often")
def test_a_process_that_is_killed_ends_the_conversion_with_the_names_of_its_records(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    write_lines(mine, many_lines(4000))
    stage = stage_for(tmp_path, mine, source="jsonl", file="data.jsonl", samples_per_shard=2000, processes=1)

    def kill_the_child() -> bool:
        for child in children_of(os.getpid()):
            if Path(f"/proc/{child}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes():  # forked
                os.kill(child, signal.SIGKILL)
        return False

    with pytest.raises(SurroundingsError, match=r"chunk 0 \(data.jsonl:1 to data.jsonl:2000\).*SIGKILL"):
        stage.run(context_in(tmp_path, stop=kill_the_child))

    assert list((tmp_path / "chunks").iterdir()) == []


REFUSED = """
import resource, sys
from pathlib import Path
from orchestrator.errors import SurroundingsError
from tests.stages.conversion import convert
if sys.argv[3] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    convert(Path(sys.argv[1]), Path(sys.argv[2]), source="jsonl", file="data.jsonl", samples_per_shard=5)
except SurroundingsError as error:
    print(error)
"""


def refused(directory: Path, mine: Path, *, most_bytes: int = 0, mount: str = "") -> "subprocess.CompletedProcess[str]":
    """Converts where the disk takes no more than so many bytes a file, or in a file system mounted that way."""
    command = [sys.executable, "-c", REFUSED, str(directory), str(mine), str(most_bytes)]
    if mount:
        shell = f'mount -t tmpfs -o {mount} tmpfs "$1" && shift && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", shell, "sh", str(directory), *command]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_disk_that_takes_no_more_is_named_with_the_file(mine: Path, tmp_path: Path) -> None:
    done = refused(tmp_path / "run", mine, most_bytes=8000)

    shards = tmp_path / "run/shards"
    assert f"cannot write {shards}" in done.stdout, done.stderr
    assert os.strerror(errno.EFBIG) in done.stdout
    assert list(shards.glob("shard-*")) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.needs("root")
@pytest.mark.parametrize(("mount", "reason"), [("size=32k", errno.ENOSPC), ("ro", errno.EROFS)])
def test_a_full_or_read_only_disk_is_told_as_such(mine: Path, tmp_path: Path, mount: str, reason: int) -> None:
    (tmp_path / "run").mkdir()

    done = refused(tmp_path / "run", mine, mount=mount)
    if "mount:" in done.stderr or "unshare" in done.stderr:
        pytest.skip("needs the right to mount")

    assert os.strerror(reason) in done.stdout, done.stderr
    assert str(tmp_path / "run") in done.stdout  # a shard, or what is noted beside the shards


def test_what_is_left_out_is_said_in_the_log(mine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        made = run(tmp_path, mine)

    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "58 records became 50 samples in 12 tars" in text
    assert f"left out 8: image is missing 8; each is named in {made.directory / 'skipped.jsonl'}" in text
    assert "repaired: box cut to the image 10" in text
    notes = [json.loads(line) for line in (made.directory / "skipped.jsonl").read_text().splitlines()]
    assert [note["record"] for note in notes] == [f"data.jsonl:{number}" for number in range(4, 59, 7)]
