"""Checkpoints are whole or not there, and the newest whole one is where training goes on."""

import json
import os
import pickle
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Checkpoint
from orchestrator.errors import DamagedArtifact
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.config import SaveConfig, TrainConfig
from orchestrator.training.engine import TorchEngine, make_engine
from orchestrator.training.holdings import Held
from orchestrator.training.loop import fit
from orchestrator.training.retention import CHECKPOINTS, newest
from orchestrator.training.weights import load_into, load_weights
from orchestrator.world import World
from tests.ranks import RankFailed, run_ranks
from tests.toys import Fitted, ToyModel, ToyStream, ToyTask, curve, toy_context, toy_fit, toy_train

ALONE = World.alone()
FINGERPRINT = "f" * 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    directory = tmp_path_factory.mktemp("finished")
    return directory, toy_fit(ALONE, directory, toy_train(6, save=SaveConfig(every_steps=2, keep_last=2)))


@pytest.fixture
def copied(finished: tuple[Path, Fitted], tmp_path: Path) -> Path:
    from shutil import copytree

    copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints"


def test_checkpoints_are_named_by_step_and_only_the_last_are_kept(copied: Path) -> None:
    assert sorted(path.name for path in copied.iterdir()) == ["step_00000004", "step_00000006"]


def test_a_checkpoint_says_what_it_takes_to_go_on(copied: Path) -> None:
    state = json.loads((copied / "step_00000006" / "state.json").read_text(encoding="utf-8"))

    assert (state["step"], state["samples"], state["seed"], state["world_size"]) == (6, 72, 5, 1)
    assert (state["fingerprint"], state["engine"]) == (FINGERPRINT, "torch")
    assert state["schedule"] == {"name": "cosine", "lr": 3e-3, "steps": 6}


@pytest.mark.parametrize("harm", ["no manifest", "half a manifest", "a short file", "a missing file"])
def test_a_torn_checkpoint_is_passed_over_with_a_word(
    copied: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = copied / "step_00000006"
    data = last / "optimizer" / "__0_0.distcp"
    {
        "no manifest": (last / "manifest.json").unlink,
        "half a manifest": lambda: (last / "manifest.json").write_text('{"files": {', encoding="utf-8"),
        "a short file": lambda: os.truncate(data, data.stat().st_size - 1),
        "a missing file": data.unlink,
    }[harm]()

    found = newest(copied, FINGERPRINT)

    assert found == (4, copied / "step_00000004")
    assert f"passing over checkpoint {last}" in caplog.text


def test_training_goes_on_from_the_one_before_a_torn_checkpoint(copied: Path) -> None:
    expected = curve(copied.parent)
    (copied / "step_00000006" / "manifest.json").unlink()

    fitted = toy_fit(ALONE, copied.parent, toy_train(6), first_weights=50)

    assert fitted.outcome == "done"
    assert curve(copied.parent) == expected
    assert newest(copied, FINGERPRINT) == (6, copied / "step_00000006")


def test_a_checkpoint_whose_bytes_have_changed_is_passed_over_and_put_aside(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = curve(copied.parent)
    data = copied / "step_00000006" / "weights" / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)

    fitted = toy_fit(ALONE, copied.parent, toy_train(6), first_weights=50)

    assert fitted.outcome == "done"
    assert curve(copied.parent) == expected
    assert f"passing over checkpoint {copied / 'step_00000006'}: weights/__0_0.distcp no longer holds" in caplog.text
    assert (copied / ".step_00000006.corrupt" / "manifest.json").is_file()


def test_the_checkpoint_of_another_plan_is_not_resumed(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest(copied, "0" * 12) is None
    assert "made by another plan" in caplog.text


def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere", FINGERPRINT) is None


def test_the_last_checkpoint_becomes_the_artifact_without_a_second_copy(
    copied: Path, finished: tuple[Path, Fitted]
) -> None:
    output = Checkpoint(copied.parent / "model")
    (output.path / "weights").mkdir(parents=True)
    (output.path / "weights" / "left_over").touch()  # of an attempt that died
    checkpoints = finished[1].checkpoints

    facts = checkpoints.promote(output, 6, ToyTask().describe())
    output.commit(FINGERPRINT, facts)

    data = output.path / "weights" / "__0_0.distcp"
    assert data.stat().st_nlink >= 2
    assert output.ready(FINGERPRINT)
    assert output.damage(deep=True) == []
    assert (facts["family"], facts["step"], facts["tensors"]["odd"]["shape"]) == ("toy", 6, [7])
    assert not (output.path / "weights" / "left_over").exists()
    assert set(load_weights(output.path)) == set(facts["tensors"])


def test_a_model_is_filled_by_name_and_told_what_did_not_fit(copied: Path) -> None:
    deeper = ToyModel(depth=3)

    report = load_into(deeper, copied / "step_00000006")

    weights = load_weights(copied / "step_00000006")
    assert all((weights[name] == p).all() for name, p in deeper.named_parameters() if name in report.loaded)
    assert {name.split(".")[1] for name in report.missing} == {"2"}
    assert report.unexpected == ()
    assert str(report).startswith(
        "36 tensors loaded, 14 missing (blocks.2.first_norm.weight, blocks.2.first_norm.bias, "
    )


def test_a_tensor_of_another_shape_is_refused_by_name(copied: Path) -> None:
    with pytest.raises(DamagedArtifact, match=r"embedding\.weight is stored as \(16, 24\), needed as \(16, 32\)"):
        load_into(ToyModel(width=32), copied / "step_00000006")


class Poison:
    """Runs a command when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_checkpoint_can_run_code(copied: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (copied / "step_00000006" / "weights" / ".metadata").write_bytes(pickle.dumps(Poison(mark)))

    with pytest.raises(DamagedArtifact, match=r"posix\.system has no place in the metadata of a checkpoint"):
        load_weights(copied / "step_00000006")
    assert not mark.exists()


def test_a_checkpoint_cannot_point_outside_its_folder(copied: Path) -> None:
    metadata = copied / "step_00000006" / "weights" / ".metadata"
    plain = b"__0_0.distcp"
    escaped = b"/etc/passwd."  # as long, so that the pickle stays well formed
    metadata.write_bytes(metadata.read_bytes().replace(plain, escaped))

    with pytest.raises(DamagedArtifact, match="names files outside its folder"):
        load_weights(copied / "step_00000006")


def test_a_checkpoint_with_a_damaged_file_is_refused(copied: Path) -> None:
    data = copied / "step_00000006" / "weights" / "__0_0.distcp"
    content = data.read_bytes()
    data.write_bytes(bytes(len(content)))

    with pytest.raises(DamagedArtifact, match="weights cannot be read"):
        load_weights(copied / "step_00000006")


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedArtifact, match=f"{tmp_path}/weights holds no tensors"):
        load_weights(tmp_path)


class DyingEngine(TorchEngine):
    """Dies on its second rank when its share of the second checkpoint is written, as by `kill -9`."""

    def __init__(self, directory: Path, world: World, train: TrainConfig) -> None:
        super().__init__(ToyTask(), train, trainable=("*",), world=world)
        self.written = directory / CHECKPOINTS / ".step_00000004.draft" / "optimizer" / "__1_0.distcp"

    def held(self) -> Held:
        if self._world.rank == 1:
            threading.Thread(target=self._die_when_written, daemon=True).start()
        return super().held()

    def _die_when_written(self) -> None:
        while not self.written.exists():
            time.sleep(0.001)
        os._exit(9)


def _dies_while_saving(world: World, directory: Path) -> None:
    train, context = toy_train(6, save=SaveConfig(every_steps=2)), toy_context(directory, world)
    checkpoints = Checkpoints(directory / CHECKPOINTS, fingerprint=FINGERPRINT, train=train, seed=5, world=world)
    engine = DyingEngine(directory, world, train)
    fit(ToyTask(), engine, ToyStream(train, world), train=train, checkpoints=checkpoints, context=context)


def test_a_kill_while_saving_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    with pytest.raises(RankFailed):
        run_ranks(2, _dies_while_saving, tmp_path / "run", directory=tmp_path)

    checkpoints = tmp_path / "run" / "checkpoints"

    assert sorted(path.name for path in checkpoints.iterdir()) == [".step_00000004.draft", "step_00000002"]
    assert toy_fit(ALONE, tmp_path / "run", toy_train(4), first_weights=9).outcome == "done"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000002", "step_00000004"]


def _runs_out_of_space(world: World, directory: Path) -> str:
    train = toy_train(2)
    assert toy_fit(world, directory, train).outcome == "done"
    engine = make_engine(ToyTask(), train, trainable=("*",), world=world, seed=1)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # one rank alone cannot write on
    checkpoints = toy_fit(world, directory, train).checkpoints
    try:
        checkpoints.save(engine, 3)
        checkpoints.saver.finish()
    except Exception as error:  # noqa: BLE001 - the test wants to see exactly which
        return f"{type(error).__name__}: {error}"
    return "saved"


def test_a_full_disk_is_named_on_all_ranks_and_costs_only_the_draft(tmp_path: Path) -> None:
    messages = run_ranks(2, _runs_out_of_space, tmp_path / "run", directory=tmp_path)

    checkpoints = tmp_path / "run" / "checkpoints"

    for message in messages:
        assert message.startswith(f"SurroundingsError: cannot write in {checkpoints}: ")
        assert "File too large" in message
        assert message.endswith(" GB free there)")
    assert newest(checkpoints, FINGERPRINT) == (2, checkpoints / "step_00000002")
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000002"]
