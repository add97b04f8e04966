"""Journal and progress: they survive kills and full disks."""

import errno
import json
import logging
from pathlib import Path

import pytest

from orchestrator.journal import BLOCK_BYTES, JOURNAL, Journal, read_backwards, read_events
from orchestrator.progress import PROGRESS, Progress, read_progress


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics(3, {"loss": 0.5})
    journal.append("file", path="report.html", name="report")
    journal.close()

    first, second = read_events(tmp_path)
    assert (first["event"], first["step"], first["values"]) == ("metrics", 3, {"loss": 0.5})
    assert second["path"] == "report.html"


@pytest.mark.parametrize("padding", [0, 100, BLOCK_BYTES - 60, BLOCK_BYTES, 3 * BLOCK_BYTES])
def test_backwards_it_holds_the_same_events_wherever_a_block_ends(tmp_path: Path, padding: int) -> None:
    journal = Journal(tmp_path)
    for step in range(5):
        journal.append("metrics", step=step, text="ö" * (padding if step == 2 else 3))
    journal.close()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"event": "half')

    assert list(read_backwards(tmp_path)) == list(read_events(tmp_path))[::-1]
    assert len(list(read_backwards(tmp_path))) == 5
    assert list(read_backwards(tmp_path / "elsewhere")) == []


def test_half_a_line_of_a_killed_process_spoils_only_itself(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b'{"event": "metrics", "step": 1, "values": {}}\n{"event": "metr')
    journal = Journal(tmp_path)
    journal.metrics(2, {})
    journal.close()

    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]


def test_nowhere_is_a_fine_place_for_a_journal_and_for_progress() -> None:
    journal = Journal(None)
    journal.metrics(1, {"loss": 1.0})
    journal.close()
    Progress(None).advance(1, 2, "step")


def test_a_full_disk_is_logged_and_does_not_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / JOURNAL).symlink_to("/dev/full")
    journal = Journal(tmp_path)
    with caplog.at_level(logging.WARNING):
        journal.metrics(1, {"loss": 1.0})
    journal.close()

    assert "could not be written" in caplog.text
    assert str(errno.ENOSPC) in caplog.text


def test_progress_says_how_far_and_how_fast(tmp_path: Path) -> None:
    progress = Progress(tmp_path, every_s=0.0)
    progress.advance(10, 40, "step", loss=2.0)
    progress.advance(20, 40, "step", loss=1.0)

    shown = read_progress(tmp_path)
    assert shown is not None
    assert (shown["done"], shown["total"], shown["unit"], shown["values"]) == (20, 40, "step", {"loss": 1.0})
    assert shown["rate_per_s"] > 0
    assert shown["eta_s"] == pytest.approx(20 / shown["rate_per_s"])


def test_progress_is_written_seldom_but_always_at_the_end(tmp_path: Path) -> None:
    progress = Progress(tmp_path, every_s=1000.0)
    for done in (1, 2, 3):
        progress.advance(done, 4, "image")
    before = json.loads((tmp_path / PROGRESS).read_text(encoding="utf-8"))["done"]
    progress.advance(4, 4, "image")

    shown = read_progress(tmp_path)
    assert shown is not None
    assert (before, shown["done"]) == (1, 4)


def test_no_progress_is_none(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
