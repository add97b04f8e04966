"""TensorBoard and Weights & Biases hear what the journals say, each number once, and nobody waits for them."""

import json
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.checks import check_trackers
from orchestrator.errors import RecipeError
from orchestrator.journal import read_events
from orchestrator.recipe import load_recipe
from orchestrator.state import read_launch
from orchestrator.tracking.beside import tracker_of
from orchestrator.tracking.forwarder import forward
from orchestrator.tracking.story import Story, stage_stories
from tests.command_line import Orch
from tests.tracked_run import TrackedRun
from tests.waiting import until

PATIENCE_S = 90.0
Numbers = dict[str, list[tuple[int, float]]]  # metric -> (step, value), as often as it is there
pytestmark = [pytest.mark.needs("tensorboard"), pytest.mark.needs("wandb")]


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Has wandb find neither a login nor settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")


def journalled(stage: Path) -> Numbers:
    """Returns what the journal of a stage says first of every step."""
    found: dict[str, dict[int, float]] = {}
    for event in read_events(stage):
        values = event["values"] if event["event"] == "metrics" else {}
        if event["event"] == "loss":
            values = {"loss_every_step": event["value"]}
        for name, value in values.items():
            found.setdefault(name, {}).setdefault(event["step"], value)
    return {name: sorted(points.items()) for name, points in found.items()}


def events(stage: Path) -> Iterator[Any]:
    """Reads an event file with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    yield from LegacyEventFileLoader(str(stage / "tensorboard" / "events.out.tfevents.orch")).Load()


def in_tensorboard(stage: Path) -> Numbers:
    found: Numbers = {}
    for event in events(stage):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {name: sorted(points) for name, points in found.items()}


def in_wandb(stage: Path) -> Numbers:
    """Reads the one offline run of a stage as `wandb sync` does."""
    from wandb.proto.wandb_internal_pb2 import Record

    (run,) = stage.glob("wandb/offline-run-*/run-*.wandb")
    found = Numbers()
    for data in records(run.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if not name.startswith("_") and name != "step":
                found.setdefault(name, []).append((row["step"], value))
    return {name: sorted(points) for name, points in found.items()}


def records(log: bytes) -> Iterator[bytes]:
    """Yields the records of a log as LevelDB writes it, in blocks of 32 KiB, behind a header of seven bytes."""
    at, record = 7, b""
    while at < len(log):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        record, at = record + log[at + 7 : at + 7 + length], at + 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield record
            record = b""


def rounded(numbers: Numbers) -> Numbers:
    """Rounds to single precision."""
    return {name: [(step, float(np.float32(value))) for step, value in points] for name, points in numbers.items()}


def trained(directory: Path, also: tuple[str, ...]) -> TrackedRun:
    """Leaves a run that trains, is away from MLflow, and has made ten steps."""
    run = TrackedRun(directory, None, ["align"], also=also)
    run.begin("align")
    run.steps("align", 1, 10)
    return run


def story(run: TrackedRun) -> Story:
    launch = read_launch(run.directory)
    assert launch is not None
    return next(stage_stories(run.directory, launch))


def test_event_files_hold_every_number_of_the_journal_and_the_settings(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", ("tensorboard",))

    delivery = forward(run.directory, follow=False)

    stage = run.directory / "align"
    texts = {value.tag for event in events(stage) for value in event.summary.value if value.tensor.string_val}
    assert delivery.complete
    assert in_tensorboard(stage) == rounded(journalled(stage))
    assert texts == {"settings"}


@pytest.mark.parametrize("torn", [0, 1, 37, 1000])
def test_an_event_file_whose_writer_was_killed_is_the_one_of_a_writer_that_was_not(torn: int, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", ("tensorboard",))
    stage, tracker = run.directory / "align", tracker_of("tensorboard", run.directory, read_launch(run.directory))
    tracker.tell(story(run))
    file, noted = stage / "tensorboard" / "events.out.tfevents.orch", stage / "tensorboard" / "told.json"
    before = noted.read_bytes()
    run.steps("align", 11, 20)
    run.steps("align", 15, 25)  # an attempt that went on from a checkpoint
    tracker.tell(story(run))
    whole = file.read_bytes()

    noted.write_bytes(before)  # killed before it could note the rest
    file.write_bytes(whole[: len(whole) - torn])
    tracker.tell(story(run))

    assert file.read_bytes() == whole
    assert in_tensorboard(stage) == rounded(journalled(stage))


def test_an_event_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", ("tensorboard",))
    forward(run.directory, follow=False)
    (run.directory / "align" / "tensorboard" / "events.out.tfevents.orch").unlink()
    run.steps("align", 11, 12)

    forward(run.directory, follow=False)

    assert in_tensorboard(run.directory / "align") == rounded(journalled(run.directory / "align"))


@pytest.mark.slow
def test_wandb_offline_has_one_run_with_every_number_once_however_often_it_is_told(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", ("wandb",))
    stage = run.directory / "align"
    forward(run.directory, follow=False)
    first = in_wandb(stage)
    run.steps("align", 8, 20)
    run.finish("align")
    run.end()

    delivery = forward(run.directory, follow=False)
    told = sorted(stage.glob("wandb/offline-run-*"))
    forward(run.directory, follow=False)  # has nothing to do

    assert delivery.complete
    assert len(first["loss"]) == 10
    assert in_wandb(stage) == journalled(stage)
    assert told == sorted(stage.glob("wandb/offline-run-*"))


@pytest.mark.slow
def test_one_that_cannot_be_told_keeps_nobody_else_from_hearing(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", ("tensorboard", "wandb"))
    run.finish("align")
    run.end()
    (run.directory / "align" / "tensorboard").write_text("in the way", encoding="utf-8")

    broken = forward(run.directory, follow=False)
    (run.directory / "align" / "tensorboard").unlink()
    mended = forward(run.directory, follow=False)

    assert (broken.complete, mended.complete) == (False, True)
    assert "tensorboard was not told all (logs/tracking.log); wandb knows it, too" in broken.message
    assert "told everything of align yet" in (run.directory / "logs" / "tracking.log").read_text(encoding="utf-8")
    assert in_wandb(run.directory / "align") == journalled(run.directory / "align")
    assert in_tensorboard(run.directory / "align") == rounded(journalled(run.directory / "align"))


@pytest.mark.slow
def test_a_launch_tells_them_through_a_kill_of_whoever_does(tmp_path: Path) -> None:
    orch = Orch(tmp_path)
    stages = {"first": {"stage": "count", "config": {"steps": 120, "save_every": 5, "pause_s": 0.05}}}
    path = orch.recipe(stages, tracking={"uri": None, "also": ["tensorboard", "wandb"]})
    file = orch.run_folder / "first" / "tensorboard" / "events.out.tfevents.orch"
    orch("launch", path, "--detach")
    until(file.exists, PATIENCE_S, what="some of it is told")
    forwarder = int((orch.run_folder / "tracking.lock").read_text(encoding="utf-8").split()[1])
    os.kill(forwarder, signal.SIGKILL)
    orch.wait(orch.over, PATIENCE_S)

    said = orch("sync", "toy").stdout

    stage = orch.run_folder / "first"
    assert "tensorboard knows it, too; wandb knows it, too" in said
    assert len(journalled(stage)["loss"]) == 120
    assert in_tensorboard(stage) == rounded(journalled(stage))
    assert in_wandb(stage) == journalled(stage)
    assert "tensorboard --logdir runs/toy" in orch("status", "toy").stdout


@pytest.mark.parametrize(
    ("also", "why"),
    [
        (["tensorbord"], "did you mean 'tensorboard'"),
        (["wandb", "wandb"], "must name each once"),
        ("wandb", "not a list"),
    ],
)
def test_whom_nobody_knows_is_refused_with_the_key(also: Any, why: str, tmp_path: Path) -> None:
    recipe = Orch(tmp_path).recipe({"first": {"stage": "count"}}, tracking={"uri": None, "also": also})

    with pytest.raises(RecipeError, match=r"tracking\.also") as caught:
        load_recipe(recipe)

    assert why in str(caught.value)


def test_what_is_not_installed_is_refused_with_what_to_install() -> None:
    (fault,) = check_trackers(["tensorboard", "no_such_package"])

    assert (fault.key, fault.message) == (
        "tracking.also", "no_such_package is not installed here: pip install 'orch[no_such_package]'",
    )  # fmt: skip
