"""Options of the engine and the optimizer on real ranks: each does what it says, and survives other ranks."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from orchestrator.training import elastic
from orchestrator.training.config import (
    AverageConfig,
    LossScale,
    Offload,
    OptimConfig,
    SaveConfig,
    TrainConfig,
    ZeroPlusPlus,
)
from orchestrator.training.deepspeed import DeepSpeedEngine
from orchestrator.training.engine import Engine, make_engine
from orchestrator.training.symmetry import LOOK_EVERY_S, QUIET_S
from orchestrator.training.weights import load_weights
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.toys import LETTERS, ToyModel, ToyTask, curve, toy_engine, toy_fit, toy_train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STEPS, PAUSE, DECAY = 6, 3, 0.8
ZERO3 = toy_engine("deepspeed")
EVERY_STEP = SaveConfig(every_steps=1, keep_last=9)
AVERAGE: dict[str, Any] = {"average": AverageConfig(decay=DECAY), "save": EVERY_STEP}
MUON = OptimConfig(lr=3e-2, name="muon", warmup_steps=2, weight_decay=0.1, clip_norm=None)
FP16 = {"precision": "fp16", "loss_scale": LossScale(initial_power=20, window=2, hysteresis=1)}
ENGINES = {
    "zero0": toy_engine("deepspeed", zero_stage=0),
    "zero1_offload": toy_engine("deepspeed", zero_stage=1, offload=Offload(optimizer="cpu")),
    "zero2_offload": toy_engine("deepspeed", zero_stage=2, offload=Offload(optimizer="cpu")),
    "zero3_offload": toy_engine("deepspeed", offload=Offload(optimizer="cpu", parameters="cpu")),
    "leaves": toy_engine("deepspeed", leaf_modules=("ToyBlock",)),
    "hpz": toy_engine("deepspeed", zeropp=ZeroPlusPlus(node_ranks=2)),
    "compiled": toy_engine("deepspeed", zero_stage=2, compile="eager"),
}


class Experts(nn.Module):
    """Two layers, of which a batch uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, hidden_BLD: Tensor, which: int) -> Tensor:
        chosen: Tensor = (self.first, self.second)[which](hidden_BLD)
        return hidden_BLD + chosen


class ExpertModel(nn.Module):
    """Sends a batch to one expert, and dawdles on its way back, once on one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.experts, self.head = nn.Embedding(LETTERS, 24), Experts(), nn.Linear(24, LETTERS)
        self.dawdles = torch.distributed.get_rank() == 1

    def forward(self, letters_BL: Tensor) -> Tensor:
        hidden_BLD = self.experts(self.embedding(letters_BL), int(letters_BL[0, 0]) % 2)
        if self.dawdles:
            self.dawdles = False
            time.sleep(QUIET_S + 2 * LOOK_EVERY_S)  # long enough for ranks to compare what they have run
        logits: Tensor = self.head(hidden_BLD)
        return logits


class ExpertTask(ToyTask):
    """Teaches the model with experts."""

    leaf_modules = ("Experts",)

    def build_model(self) -> nn.Module:
        return ExpertModel()


def _train(**changes: Any) -> TrainConfig:
    return toy_train(STEPS, **{"engine": ZERO3, "micro_batch": 2, **changes})


def _fit(world: World, directory: Path, train: TrainConfig, **more: Any) -> Any:
    return toy_fit(world, directory, train, task=ToyTask(dropout=0.0), **more).engine


def _two_ranks(world: World, directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, engine in {"torch": toy_engine(), "zero3": ZERO3, **ENGINES}.items():
        found[name] = _fit(world, directory / name, _train(engine=engine)).scalars()
    for name in ("zero0", "zero2_offload", "zero3_offload"):
        _fit(world, directory / f"{name}_paused", _train(engine=ENGINES[name]), stop_after=PAUSE)
    engine = make_engine(ToyTask(), _train(engine=ENGINES["leaves"]), trainable=("*",), world=world, seed=1)
    found["leaf"] = [name for name, part in engine.model.named_modules() if getattr(part, "_z3_leaf", False)]
    for name in ("zero1_bf16", "zero2", "zero3"):
        precision = "bf16" if "bf16" in name else "fp32"
        engine_config = toy_engine("deepspeed", zero_stage=int(name[4]), precision=precision)
        _fit(world, directory / f"average_{name}", _train(engine=engine_config, **AVERAGE))
    averaged = _fit(world, directory / "average_paused", _train(**AVERAGE), stop_after=PAUSE)
    averaged.save_average(directory / "exported")
    _fit(world, directory / "muon_zero0", _train(engine=ENGINES["zero0"], optim=MUON))
    _fit(world, directory / "muon", _train(optim=MUON, save=EVERY_STEP))
    _fit(world, directory / "muon_paused", _train(optim=MUON), stop_after=PAUSE)
    for name, engine in {
        "experts": toy_engine("deepspeed", persistence_threshold=0),
        "experts_torch": toy_engine(),
    }.items():
        train = toy_train(2, engine=engine)
        found[name] = toy_fit(world, directory / name, train, task=ExpertTask()).outcome
    for stage in (2, 3):
        fp16 = _train(engine=toy_engine("deepspeed", zero_stage=stage, **FP16), log_every=1)
        _fit_fp16(world, directory / f"fp16_zero{stage}", fp16)
    found["scaler"] = _scaler(_fit_fp16(world, directory / "fp16_paused", fp16, stop_after=PAUSE))
    copied = directory / "fp16_paused_elsewhere"
    if world.is_main:
        copytree(directory / "fp16_paused", copied)
    _fit_fp16(world, directory / "fp16_paused", fp16)
    return found


def _fit_fp16(world: World, directory: Path, train: TrainConfig, **more: Any) -> Any:
    """Trains in fp16, which CPUs can in so far as somebody says they can."""
    get_accelerator().is_fp16_supported = lambda: True
    return toy_fit(world, directory, train, task=ToyTask(dropout=0.0), make=_unchecked, **more).engine


def _scaler(engine: Any) -> list[float]:
    scaler = engine._engine.optimizer.loss_scaler
    return [scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis]


def _unchecked(task: Any, train: TrainConfig, *, trainable: Sequence[str], world: World, seed: int) -> Engine:
    torch.manual_seed(seed)
    return DeepSpeedEngine(task, train, trainable=trainable, world=world)


def _elsewhere(world: World, directory: Path) -> list[float]:
    for name, more in {
        "zero0": {"engine": ENGINES["zero0"]},
        "zero2_offload": {"engine": ENGINES["zero2_offload"]},
        "zero3_offload": {"engine": ENGINES["zero3_offload"]},
        "average": AVERAGE,
        "muon": {"optim": MUON},
    }.items():
        _fit(world, directory / f"{name}_paused", _train(**more), first_weights=99)
    get_accelerator().is_fp16_supported = lambda: True
    train = _train(engine=toy_engine("deepspeed", **FP16))
    engine = _unchecked(ToyTask(), train, trainable=("*",), world=world, seed=99)
    engine.load(directory / "fp16_paused_elsewhere" / "checkpoints" / f"step_{PAUSE:08d}", step=PAUSE)
    return _scaler(engine)


Runs = tuple[Path, list[dict[str, Any]], list[list[float]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every training these tests look at: on two ranks, and half of them resumed on three."""
    directory = tmp_path_factory.mktemp("options")
    found = run_ranks(2, _two_ranks, directory, directory=directory, timeout_s=300)
    copytree(directory, directory / "three", ignore=lambda _, names: [n for n in names if n in {"three", "exported"}])
    scalers = run_ranks(3, _elsewhere, directory / "three", directory=directory, timeout_s=300)
    return directory, found, scalers


@pytest.mark.parametrize("engine", ENGINES)
def test_an_option_that_is_to_change_nothing_changes_nothing(runs: Runs, engine: str) -> None:
    directory, (first, second), _ = runs

    assert curve(directory / engine) == pytest.approx(curve(directory / "zero3"), abs=1e-5)
    assert first[engine] == second[engine] == pytest.approx(first["zero3"], rel=1e-4)


@pytest.mark.parametrize("name", ["zero0", "zero2_offload", "zero3_offload", "muon"])
def test_a_checkpoint_goes_on_on_another_number_of_ranks(runs: Runs, name: str) -> None:
    resumed = curve(runs[0] / "three" / f"{name}_paused")

    assert list(resumed) == list(range(1, STEPS + 1))
    assert resumed == pytest.approx(curve(runs[0] / name), abs=5e-3 if name == "muon" else 1e-5)  # it rounds to bf16


def test_modules_to_be_gathered_as_one_are_marked(runs: Runs) -> None:
    assert runs[1][0]["leaf"] == ["blocks.0", "blocks.1"]


def test_ranks_may_run_different_parts_of_a_leaf(runs: Runs) -> None:
    directory, (first, second), _ = runs

    assert first["experts"] == second["experts"] == "done"
    assert curve(directory / "experts") == pytest.approx(curve(directory / "experts_torch"), abs=1e-5)


def _stored_average(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    averages = {name: torch.empty(parameter.shape) for name, parameter in model.named_parameters()}
    elastic.read(checkpoint / "optimizer", [elastic.whole(f"{name}.average", a) for name, a in averages.items()])
    return averages


def _average_by_hand(directory: Path, model: nn.Module) -> dict[str, Tensor]:
    """Averages the weights of all steps, beginning with those of the model."""
    averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(1, STEPS + 1):
        weights = load_weights(directory / "checkpoints" / f"step_{step:08d}")
        averages = {name: DECAY * average + (1 - DECAY) * weights[name] for name, average in averages.items()}
    return averages


@pytest.mark.parametrize(
    "where", ["average_zero1_bf16", "average_zero2", "average_zero3", "three/average_paused", "alone"]
)
def test_the_average_is_the_one_computed_by_hand(runs: Runs, where: str) -> None:
    directory = runs[0] / where
    if where == "alone":
        _fit(World.alone(), directory, _train(engine=toy_engine(), **AVERAGE))
    torch.manual_seed(5)
    model = ToyModel(dropout=0.0)
    if "bf16" in where:
        model = model.bfloat16().float()  # fp32 masters begin where the bf16 weights do
    expected = _average_by_hand(directory if "paused" not in where else runs[0] / "average_zero3", model)

    found = _stored_average(directory / "checkpoints" / f"step_{STEPS:08d}", model)

    # a key's bias has no gradient but rounding, which Adam inflates
    names = [name for name in expected if "key.bias" not in name]
    assert all(torch.allclose(found[name], expected[name], atol=2e-5) for name in names)
    last = load_weights(directory / "checkpoints" / f"step_{STEPS:08d}")
    assert all(not torch.allclose(found[name], last[name].float(), atol=1e-4) for name in ("head.weight", "odd"))


def test_the_average_can_be_written_in_the_place_of_the_weights(runs: Runs) -> None:
    checkpoint = runs[0] / "average_paused" / "checkpoints" / f"step_{PAUSE:08d}"
    stored = _stored_average(checkpoint, ToyModel())
    exported = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in load_weights(checkpoint).items()
    }

    elastic.read(runs[0] / "exported", [elastic.whole(name, tensor) for name, tensor in exported.items()])

    assert "seen" in exported
    assert all(torch.equal(exported[name], average) for name, average in stored.items())


def _evenness(matrix: Tensor) -> float:
    """Returns 1 for a matrix that turns only, and less where some directions are stretched more than others."""
    stretches = torch.linalg.svdvals(matrix)
    return float(stretches.sum() ** 2 / (len(stretches) * stretches.square().sum()))


def test_muon_learns_and_turns_matrices_by_steps_of_one_size(runs: Runs) -> None:
    losses = list(curve(runs[0] / "muon").values())
    before, after = (load_weights(runs[0] / "muon" / "checkpoints" / f"step_{step:08d}") for step in (STEPS - 1, STEPS))
    moved = {name: after[name] - before[name] for name in after if name.endswith("weight") and after[name].ndim == 2}

    assert losses[-1] < losses[0] - 0.05
    evenness = {name: _evenness(step) for name, step in moved.items()}
    assert all(even > 0.9 for name, even in evenness.items() if "rise" in name or "fall" in name)
    assert max(evenness["embedding.weight"], evenness["head.weight"]) < 0.9  # AdamW's


def test_muon_moves_matrices_cut_or_whole_alike(runs: Runs, tmp_path: Path) -> None:
    _fit(World.alone(), tmp_path, _train(engine=toy_engine(), optim=MUON))

    for cut in ("muon", "muon_zero0"):
        assert curve(runs[0] / cut) == pytest.approx(curve(tmp_path), abs=5e-3)  # both round to bf16 on their way


def _loss_scales(directory: Path) -> list[float]:
    events = map(json.loads, (directory / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    told = {event["step"]: event["values"]["loss_scale"] for event in events if event["event"] == "metrics"}
    return [told[step] for step in sorted(told)]


@pytest.mark.parametrize("stage", [2, 3])
def test_fp16_learns_and_its_loss_scale_moves(runs: Runs, stage: int) -> None:
    losses, scales = curve(runs[0] / f"fp16_zero{stage}"), _loss_scales(runs[0] / f"fp16_zero{stage}")

    assert losses[STEPS] < losses[1] - 0.01
    assert scales[0] < 2.0**20  # the first step overflows
    assert len(set(scales)) > 1


def test_a_loss_scale_is_the_same_on_another_number_of_ranks(runs: Runs) -> None:
    _, (first, second), on_three = runs

    assert [second["scaler"], *on_three] == [first["scaler"]] * 4
    assert first["scaler"][0] != 2.0**20


def test_a_resumed_fp16_run_repeats_the_uninterrupted_one_bit_for_bit(runs: Runs) -> None:
    resumed, whole = runs[0] / "fp16_paused", runs[0] / "fp16_zero3"

    assert _loss_scales(resumed) == _loss_scales(whole)
    assert curve(resumed) == curve(whole)
