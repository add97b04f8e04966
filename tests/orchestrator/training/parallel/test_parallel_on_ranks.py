"""Tensor parallelism on real ranks: two shares for two readers learn what four readers of the whole model learn."""

from collections.abc import Sequence
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.data.stream import Drawn
from orchestrator.errors import DamagedSample, InputError
from orchestrator.training import elastic
from orchestrator.training.config import AverageConfig, OptimConfig, SaveConfig, TrainConfig
from orchestrator.training.engine import make_engine
from orchestrator.training.holdings import OPTIMIZER
from orchestrator.training.parallel.plans import share_of
from orchestrator.training.weights import load_weights
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.toylanguage import SIZES, CutLogitsTask, LanguageTask
from tests.toys import ToyTask, curve, toy_engine, toy_fit, toy_train

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.timeout(600)]  # many trainings in one fixture

STEPS, PAUSE = 5, 3
# adapters, shares and whole ones learn; the projections are frozen
LEARNS = ("*lora_*", "*norm*", "model.embed_tokens", "lm_head")
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"name": "torch"},
    **{f"zero{n}": {"name": "deepspeed", "zero_stage": n} for n in (1, 2, 3)},
    # eleven tokens do not divide by two: the last share is padded
    "torch_by_tokens": {"name": "torch", "sequence_parallel": True},
    "zero3_by_tokens": {
        "name": "deepspeed",
        "zero_stage": 3,
        "sequence_parallel": True,
        "activation_checkpointing": True,
    },
}
HALVES: dict[str, dict[str, Any]] = {
    f"zero{n}_bf16": {"name": "deepspeed", "zero_stage": n, "precision": "bf16"} for n in (1, 3)
}
# run whose checkpoint in the middle is taken -> where training goes on: engine, degree and ranks
MOVES = {
    "whole": ("zero3", 2, 4),
    "zero3": ("zero3", 1, 4),
    "zero1": ("zero2", 4, 4),
    "zero2": ("zero2", 2, 4),
    "torch_by_tokens": ("zero3", 2, 2),
    "zero3_by_tokens": ("torch", 1, 1),
}
PLAIN = OptimConfig(lr=5e-3)
CLOSE = 2e-5  # rounding of fp32 over so many steps


def _train(engine: str, degree: int, **changes: Any) -> TrainConfig:
    optim = OptimConfig(lr=5e-3, clip_norm=0.5, weight_decay=0.1, lr_scales={"*lora_B*": 2.0})
    settings = toy_engine(**(ENGINES | HALVES)[engine], tensor_parallel=degree)
    fields = {"engine": settings, "optim": optim, "micro_batch": 3, "average": AverageConfig(decay=0.5)}
    return toy_train(STEPS, save=SaveConfig(every_steps=PAUSE), **{**fields, **changes})


def _fit(world: World, directory: Path, train: TrainConfig, **more: Any) -> dict[str, float]:
    fitted = toy_fit(world, directory, train, **{"task": LanguageTask(), "trainable": LEARNS, **more})
    assert fitted.outcome == "done", fitted.outcome
    return fitted.engine.scalars()


def _four_ranks(world: World, directory: Path) -> dict[str, dict[str, float]]:
    found = {"whole": _fit(world, directory / "whole", _train("torch", 1))}
    for name in ENGINES:
        task = CutLogitsTask() if name in {"torch", "zero1"} else LanguageTask()
        found[name] = _fit(world, directory / name, _train(name, 2), task=task)
    for name in HALVES:
        found[name] = _fit(world, directory / name, _train(name, 2))
    dropping = LanguageTask(adapted=("q_proj", "v_proj"), lora_dropout=0.5)
    _fit(world, directory / "dropout", _train("zero1", 2), task=dropping)
    return found


def _go_on(world: World, directory: Path) -> None:
    for name, (engine, degree, ranks) in MOVES.items():
        if ranks == world.size:
            _fit(world, directory / f"{name}_moved", _train(engine, degree), first_weights=99)


def _two_ranks(world: World, directory: Path) -> dict[str, Any]:
    _go_on(world, directory)
    dropping = LanguageTask(adapted=("q_proj", "v_proj"), lora_dropout=0.5)
    _fit(world, directory / "dropout_whole", _train("zero1", 1), task=dropping)
    for kind, engine in {"Mistral": "torch", "Qwen2": "torch_by_tokens"}.items():  # the second has biases
        task = CutLogitsTask(kind, adapted=())
        _fit(world, directory / kind, _train(engine, 2, optim=PLAIN), task=task, trainable=("*",))
    dropping = LanguageTask(adapted=("o_proj", "down_proj"), lora_dropout=0.5)
    _fit(world, directory / "dropout_rows", _train("torch", 2), task=dropping)
    cut = make_engine(LanguageTask(), _train("torch", 2), trainable=LEARNS, world=world, seed=1)
    held = sorted(parameter.numel() for parameter in cut.model.parameters())
    return {"refused": _refusals(world), "lost": _fit_on_rubble(world, directory / "rubble"), "held": held}


def _refusals(world: World) -> list[str]:
    said = []
    one_head = LanguageTask(num_attention_heads=2, num_key_value_heads=1)
    for task in (ToyTask(), one_head, LanguageTask("GPTNeoX", adapted=())):
        try:
            make_engine(task, _train("torch", 2, optim=PLAIN), trainable=("*",), world=world, seed=1)
        except InputError as error:
            said.append(str(error))
    return said


class RubbleTask(LanguageTask):
    """Finds a batch damaged, in the second step."""

    def collate(self, drawn: Sequence[Drawn]) -> Tensor:
        if drawn[0].seed == 1:
            raise DamagedSample("a.tar", drawn[0].key, "cut short")
        return super().collate(drawn)


def _fit_on_rubble(world: World, directory: Path) -> str:
    return toy_fit(world, directory, _train("torch", 2), task=RubbleTask(), trainable=LEARNS).outcome


Runs = tuple[Path, list[dict[str, dict[str, float]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every training these tests look at: cut and whole on four ranks, resumed by four others, by two and by one."""
    directory = tmp_path_factory.mktemp("cut")
    found = run_ranks(4, _four_ranks, directory, directory=directory, timeout_s=400)
    for name in MOVES:
        middle = f"checkpoints/step_{PAUSE:08d}"
        copytree(directory / name / middle, directory / f"{name}_moved" / middle)
    run_ranks(4, _go_on, directory, directory=directory, timeout_s=400)
    two = run_ranks(2, _two_ranks, directory, directory=directory, timeout_s=400)
    _go_on(World.alone(), directory)
    return directory, found, two


@pytest.mark.parametrize("engine", ENGINES)
def test_two_shares_for_two_readers_learn_what_four_readers_learn(runs: Runs, engine: str) -> None:
    directory, found, _ = runs

    ours, theirs = curve(directory / engine), curve(directory / "whole")

    assert list(ours) == list(range(1, STEPS + 1))
    assert ours == pytest.approx(theirs, abs=CLOSE)
    assert all(rank[engine] == pytest.approx(rank["whole"], rel=1e-4) for rank in found)
    assert found[0]["whole"]["grad_norm"] > 0.5  # or nothing was clipped


@pytest.mark.parametrize("engine", HALVES)
def test_shares_in_bf16_learn_the_same_to_its_rounding(runs: Runs, engine: str) -> None:
    directory, found, _ = runs

    assert curve(directory / engine) == pytest.approx(curve(directory / "whole"), abs=2e-3)
    assert found[0][engine]["grad_norm"] == pytest.approx(found[0]["whole"]["grad_norm"], rel=0.01)


def _last(directory: Path) -> Path:
    return directory / "checkpoints" / f"step_{STEPS:08d}"


def _weights(directory: Path) -> dict[str, Tensor]:
    return load_weights(_last(directory))


def _moments(directory: Path) -> dict[str, Tensor]:
    """Reads what is kept beside the weights: moments and averages."""
    folder = _last(directory) / OPTIMIZER
    found = {name: torch.empty(entry["shape"]) for name, entry in elastic.tensors(folder).items()}
    elastic.read(folder, [elastic.whole(name, tensor) for name, tensor in found.items()])
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_of_shares_reads_as_the_whole_model(runs: Runs, engine: str) -> None:
    ours, theirs = _weights(runs[0] / engine), _weights(runs[0] / "whole")

    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert all(torch.allclose(ours[name], theirs[name], atol=CLOSE) for name in theirs)
    frozen = [name for name in theirs if "base_layer" in name or "k_proj" in name]
    assert frozen
    assert all(torch.equal(ours[name], theirs[name]) for name in frozen)


@pytest.mark.parametrize("name", MOVES)
def test_training_goes_on_at_another_degree_as_if_nothing_had_happened(runs: Runs, name: str) -> None:
    moved = runs[0] / f"{name}_moved"

    ours, theirs = curve(moved), curve(runs[0] / "whole")

    assert list(ours) == list(range(PAUSE + 1, STEPS + 1))
    assert ours == pytest.approx({step: theirs[step] for step in ours}, abs=CLOSE)
    for read in (_weights, _moments):
        resumed, never_paused = read(moved), read(runs[0] / "whole")
        assert set(resumed) == set(never_paused)
        assert all(torch.allclose(resumed[key], never_paused[key], atol=CLOSE) for key in never_paused)


def test_training_goes_on_bit_for_bit_where_nothing_else_changes(runs: Runs) -> None:
    ours, theirs = curve(runs[0] / "zero2_moved"), curve(runs[0] / "zero2")

    assert ours == {step: theirs[step] for step in ours}


def test_shares_of_features_are_dropped_too(runs: Runs) -> None:
    curves = [curve(runs[0] / name) for name in ("dropout_rows", "whole")]

    assert all(0.5 < losses[STEPS] < losses[1] for losses in curves)
    assert abs(curves[0][STEPS] - curves[1][STEPS]) > 100 * CLOSE


def test_dropout_is_the_same_on_every_rank_of_a_group(runs: Runs) -> None:
    directory = runs[0]

    assert curve(directory / "dropout") == pytest.approx(curve(directory / "dropout_whole"), abs=CLOSE)
    assert abs(curve(directory / "dropout")[STEPS] - curve(directory / "whole")[STEPS]) > 100 * CLOSE


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2"])
def test_every_architecture_with_a_plan_learns_as_it_does_alone(runs: Runs, kind: str, tmp_path: Path) -> None:
    task = LanguageTask(kind, adapted=())
    _fit(World.alone(), tmp_path, _train("torch", 1, optim=PLAIN), task=task, trainable=("*",))

    assert curve(runs[0] / kind) == pytest.approx(curve(tmp_path), abs=CLOSE)
    ours, theirs = _weights(runs[0] / kind), _weights(tmp_path)
    assert all(torch.allclose(ours[name], theirs[name], atol=CLOSE) for name in theirs)


def test_a_rank_holds_what_the_planner_of_memory_takes_for_its_share(runs: Runs) -> None:
    foreseen = LanguageTask(**share_of(SIZES, 2)).build_model()

    sizes = sorted(parameter.numel() for parameter in foreseen.parameters())
    assert [rank["held"] for rank in runs[2]] == [sizes] * 2


def test_models_that_cannot_be_cut_are_refused_on_every_rank(runs: Runs) -> None:
    first, second = (rank["refused"] for rank in runs[2])

    assert first == second
    assert "nothing to cut in ToyModel (no model of transformers); known: LlamaForCausalLM" in first[0]
    assert "num_key_value_heads = 1 cannot be shared evenly by 2 ranks; allowed: 1" in first[1]
    assert "nothing to cut in GPTNeoXForCausalLM (GPTNeoXForCausalLM, GPTNeoXModel); known" in first[2]


def test_what_the_reader_of_a_group_cannot_read_ends_all_of_it(runs: Runs) -> None:
    assert [rank["lost"] for rank in runs[2]] == ["DamagedSample: a.tar: sample '1-0': cut short"] * 2
