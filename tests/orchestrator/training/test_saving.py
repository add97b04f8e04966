"""Saving while training goes on: what is saved, what it waits for, and what happens where it cannot."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.journal import Journal, read_events
from orchestrator.training import elastic
from orchestrator.training.config import BestRule, SaveConfig
from orchestrator.training.elastic import WEIGHTS
from orchestrator.training.holdings import OPTIMIZER, Held
from orchestrator.training.retention import CHECKPOINTS, newest
from orchestrator.training.saving import Draft, Saved, Saver
from orchestrator.training.weights import load_weights
from orchestrator.training.writing import Share
from orchestrator.world import World
from tests.toys import BreaksAtTask, ToyTask, curve, toy_fit, toy_train

ALONE = World.alone()
FINGERPRINT = "f" * 12
LEARNS = ("blocks", "head")


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(directory) if event["event"] == kind]


def steps_in(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (directory / CHECKPOINTS).glob("step_*"))


def test_what_is_saved_beside_the_training_is_what_was_there_at_its_step(tmp_path: Path) -> None:
    for name, in_background in {"beside": True, "standing": False}.items():
        save = SaveConfig(every_steps=1, keep_last=99, in_background=in_background)
        toy_fit(ALONE, tmp_path / name, toy_train(6, save=save), trainable=LEARNS)

    for step in range(1, 7):
        beside, standing = (
            load_weights(tmp_path / name / CHECKPOINTS / f"step_{step:08d}") for name in ("beside", "standing")
        )
        assert list(beside) == list(standing)
        assert all(torch.equal(beside[name], standing[name]) for name in standing)
    assert curve(tmp_path / "beside") == curve(tmp_path / "standing")


def test_the_journal_says_what_a_save_cost(tmp_path: Path) -> None:
    toy_fit(ALONE, tmp_path, toy_train(6, save=SaveConfig(every_steps=2, keep_last=99)))

    saved = events(tmp_path, "saved")

    assert [event["step"] for event in saved] == steps_in(tmp_path) == [2, 4, 6]
    assert all(event["stall_s"] > 0 and event["save_s"] > 0 and event["size_bytes"] > 10_000 for event in saved)


class Notes(Journal):
    """A journal that is closed after each line."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def append(self, event: str, **fields: Any) -> None:
        journal = Journal(self._directory)
        journal.append(event, **fields)
        journal.close()


class Disk:
    """A place to save to that is as slow, or as broken, as a test likes."""

    def __init__(self, directory: Path, *, publish: Callable[[], None], free_bytes: int = 10**9) -> None:
        directory.mkdir()
        self.directory = directory
        self.ended: list[int] = []
        self._publish = publish
        self.weight = torch.zeros(1000)
        self.saver = Saver(
            directory, publish=self._named, ended=self._note, in_background=True, world=ALONE, journal=Notes(directory),
            free_bytes=lambda: free_bytes,
        )  # fmt: skip

    def save(self, step: int) -> None:
        self.saver.make_way(step)
        self.saver.begin(step, self.held, {}, frozen=True)

    def held(self) -> Held:
        return {WEIGHTS: [elastic.whole("weight", self.weight)]}

    def _named(self, draft: Draft, shares: Sequence[Share]) -> None:
        assert [file.file for share in shares for file in share.files[WEIGHTS]] == ["__0_0.distcp"]
        self._publish()
        draft.path.rename(self.directory / f"step_{draft.step:08d}")

    def _note(self, saved: Saved) -> None:
        self.ended.append(saved.step)


def test_on_a_slow_disk_the_next_save_waits_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk(tmp_path / "disk", publish=lambda: time.sleep(0.2))

    for step in (1, 2, 3):
        disk.save(step)
        assert disk.ended == list(range(1, step))  # never two at a time
    disk.saver.finish()

    assert disk.ended == [1, 2, 3]
    assert caplog.text.count("training waited") == 1
    slow = events(disk.directory, "slow_saves")
    assert [(event["step"], event["before"]) for event in slow] == [(2, 1)]
    assert slow[0]["waited_s"] > 0


def test_training_goes_on_while_a_slow_disk_writes(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", publish=lambda: time.sleep(1.0))
    began = time.perf_counter()

    disk.save(1)
    disk.saver.before_update()
    disk.weight += 1
    steps = 0
    while disk.saver.follow(disk.saver.signs()) is None and not disk.ended:
        steps += 1
        time.sleep(0.01)

    assert steps > 10
    assert time.perf_counter() - began > 1.0
    assert events(disk.directory, "saved")[0]["stall_s"] < 1.0


def test_where_memory_is_too_small_for_a_copy_training_stands_still_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(tmp_path / "disk", publish=lambda: None, free_bytes=4000)

    for step in (1, 2):
        disk.save(step)
        assert disk.ended[-1] == step

    assert caplog.text.count("training will stand still for each save") == 1
    assert "a copy takes 0.00 GB" in events(disk.directory, "saves_in_foreground")[0]["reason"]


def test_a_problem_nobody_foresaw_is_heard_of_too(tmp_path: Path) -> None:
    def breaks() -> None:
        raise ZeroDivisionError("by accident")

    disk = Disk(tmp_path / "disk", publish=breaks)

    disk.save(1)

    with pytest.raises(Exception, match="ZeroDivisionError: by accident"):
        disk.saver.finish()
    assert list(disk.directory.iterdir()) == []


def test_a_save_under_way_is_finished_when_training_diverges(tmp_path: Path) -> None:
    fitted = toy_fit(ALONE, tmp_path, toy_train(9, save=SaveConfig(every_steps=4)), task=BreaksAtTask(5))

    assert fitted.outcome.startswith("Diverged: the loss of step 5")
    assert newest(tmp_path / CHECKPOINTS, FINGERPRINT) == (4, tmp_path / CHECKPOINTS / "step_00000004")


def test_the_best_checkpoint_by_a_metric_stays(tmp_path: Path) -> None:
    best = BestRule(metric="loss", mode="max")
    toy_fit(ALONE, tmp_path, toy_train(8, save=SaveConfig(every_steps=2, keep_last=1, keep_best=best)))

    losses = curve(tmp_path)
    means = {step: (losses[step - 1] + losses[step]) / 2 for step in (2, 4, 6, 8)}
    state = json.loads((tmp_path / CHECKPOINTS / "step_00000008" / "state.json").read_text(encoding="utf-8"))

    assert steps_in(tmp_path) == sorted({max(means, key=means.__getitem__), 8})
    assert state["metrics"]["loss"] == pytest.approx(means[8])


def test_a_best_by_what_nobody_measures_is_refused_after_the_first_step(tmp_path: Path) -> None:
    best = BestRule(metric="accuracy")
    fitted = toy_fit(ALONE, tmp_path, toy_train(8, save=SaveConfig(keep_best=best)))

    assert fitted.outcome == (
        "InputError: train.save.keep_best.metric: 'accuracy' is not measured; allowed: loss, loss/next, lr, grad_norm"
    )
    assert list(curve(tmp_path)) == [1]


def test_an_automatic_pace_saves_by_itself(tmp_path: Path) -> None:
    save = SaveConfig(every_steps="auto", node_mtbf_hours=0.0001, keep_last=999)

    toy_fit(ALONE, tmp_path, toy_train(60, save=save))

    steps = steps_in(tmp_path)  # those between depend on what a save costs here
    assert (steps[0], steps[-1]) == (10, 60)


def inodes(checkpoint: Path) -> dict[int, int]:
    return {path.stat().st_ino: path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()}


def test_with_a_frozen_base_a_save_writes_what_learns_and_hardly_more(tmp_path: Path) -> None:
    task = ToyTask(width=256)
    save = SaveConfig(every_steps=2, keep_last=9)
    fitted = toy_fit(ALONE, tmp_path, toy_train(4, save=save), task=task, trainable=("blocks.0",))

    first, second = (inodes(tmp_path / CHECKPOINTS / f"step_{step:08d}") for step in (2, 4))
    learning = sum(p.numel() for p in fitted.engine.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in fitted.engine.model.parameters() if not p.requires_grad)
    written = sum(size for inode, size in second.items() if inode not in first)

    assert 12 * learning < written <= 1.05 * 12 * learning
    assert frozen > 0.9 * learning
    assert sum(second.values()) > 12 * learning + 4 * frozen  # each is whole all the same
    assert events(tmp_path, "saved")[1]["size_bytes"] <= 1.05 * 12 * learning


def test_a_resumed_stage_does_not_write_its_frozen_weights_again(tmp_path: Path) -> None:
    train = toy_train(6, save=SaveConfig(every_steps=2, keep_last=9))
    toy_fit(ALONE, tmp_path, train, trainable=LEARNS, stop_after=2)
    toy_fit(ALONE, tmp_path, train, trainable=LEARNS, first_weights=77)

    first, last = (tmp_path / CHECKPOINTS / f"step_{step:08d}" for step in (2, 6))

    assert (first / WEIGHTS / "__0_1.distcp").samefile(last / WEIGHTS / "__0_1.distcp")
    before, after = load_weights(first), load_weights(last)
    assert list(before) == list(after)
    assert torch.equal(before["embedding.weight"], after["embedding.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_frozen_weights_are_copied_where_files_cannot_be_linked(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil
    import tempfile

    from orchestrator.training.frozen import Frozen
    from orchestrator.training.writing import write_file

    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        home, draft = Path(elsewhere), tmp_path / "draft"
        (home / WEIGHTS).mkdir()
        (draft / WEIGHTS).mkdir(parents=True)
        written = write_file(home / WEIGHTS, "__0_1.distcp", [elastic.whole("base", torch.ones(9))])
        frozen = Frozen(ALONE)
        frozen.complete(home, [written])
        frozen.published(home)
        frozen.known = True

        files = frozen.complete(draft, [])

        assert files == [written]
        assert (draft / WEIGHTS / "__0_1.distcp").read_bytes() == (home / WEIGHTS / "__0_1.distcp").read_bytes()
        assert "frozen weights are copied into each checkpoint" in caplog.text
        shutil.rmtree(draft)


def test_a_checkpoint_is_one_that_torch_itself_reads(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import FileSystemReader, load

    fitted = toy_fit(ALONE, tmp_path, toy_train(2), trainable=LEARNS)
    checkpoint = fitted.checkpoints.path(2)
    expected = load_weights(checkpoint)

    flat: dict[str, Any] = {name: torch.zeros(tensor.numel(), dtype=tensor.dtype) for name, tensor in expected.items()}
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        load(flat, storage_reader=FileSystemReader(checkpoint / WEIGHTS), no_dist=True)

    assert all(torch.equal(flat[name], tensor.flatten()) for name, tensor in expected.items())
    assert (checkpoint / OPTIMIZER / ".metadata").is_file()
