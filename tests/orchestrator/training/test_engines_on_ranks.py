"""The engines on real ranks: what DeepSpeed and torch agree on, and what survives a change of engine or of ranks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.training import writing
from orchestrator.training.config import OptimConfig, SaveConfig, TrainConfig
from orchestrator.training.elastic import WEIGHTS, tensors
from orchestrator.training.engine import make_engine
from orchestrator.training.weights import load_into, load_weights
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.toys import LETTERS, ToyStream, ToyTask, curve, toy_engine, toy_fit, toy_train

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

STEPS, PAUSE = 6, 3
ZERO3 = toy_engine("deepspeed")
HALVES = {f"bf16_zero{n}": toy_engine("deepspeed", precision="bf16", zero_stage=n) for n in (1, 2, 3)}
LEARNS = ("blocks", "head")  # the rest is frozen: embedding, norm, scale, odd
STILL = 0.0  # dropout


class LanguageModelTask(ToyTask):
    """Teaches LoRA adapters of a tiny LLaMA, built and initialised by transformers and peft."""

    def build_model(self) -> nn.Module:
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=LETTERS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            pad_token_id=0,
        )  # fmt: skip
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
        model: nn.Module = get_peft_model(LlamaForCausalLM(config), lora)
        return model

    def loss(self, model: nn.Module, batch: Tensor) -> Any:
        return super().loss(lambda letters_BL: model(input_ids=letters_BL).logits, batch)  # type: ignore[arg-type]


class HandedOnTask(ToyTask):
    """Starts from the weights of a checkpoint, as a later stage does."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(dropout=STILL)
        self.checkpoint = checkpoint
        self.report = ""

    def load_weights(self, model: nn.Module) -> None:
        self.report = str(load_into(model, self.checkpoint, rename=lambda name: name.replace("odd", "nowhere")))


def _two_ranks(world: World, directory: Path) -> dict[str, Any]:
    still: Callable[..., Any] = lambda name, engine, **more: toy_fit(  # noqa: E731
        world, directory / name, toy_train(STEPS, engine=engine, micro_batch=3), task=ToyTask(dropout=STILL), **more
    )
    found: dict[str, Any] = {}
    for name, engine in {
        "zero3": ZERO3,
        "zero2": toy_engine("deepspeed", zero_stage=2),
        "zero1": toy_engine("deepspeed", zero_stage=1),
        "torch": toy_engine(),
    }.items():
        found[name] = still(name, engine).engine.scalars()
    stop_after = PAUSE if world.rank == 1 else None  # one rank alone hears the signal
    found["paused"] = still("paused", ZERO3, trainable=LEARNS, stop_after=stop_after).outcome
    still("frozen", ZERO3, trainable=LEARNS)
    for name, stop in {"dropout": None, "dropout_paused": PAUSE}.items():
        toy_fit(world, directory / name, toy_train(STEPS, engine=ZERO3), trainable=LEARNS, stop_after=stop)
    for name, engine in HALVES.items():
        fitted = toy_fit(world, directory / name, toy_train(STEPS, engine=engine))
        found[name] = dict(fitted.engine.module.named_buffers())["module.thirds_L"].tolist()
        toy_fit(world, directory / f"{name}_paused", toy_train(STEPS, engine=engine), stop_after=PAUSE)
    found["again"] = _goes_back(world, directory)
    return found


def _goes_back(world: World, directory: Path) -> float:
    """Loads an earlier checkpoint into an engine that has trained on since; returns the loss it then starts from."""
    task, save = ToyTask(dropout=STILL), SaveConfig(every_steps=PAUSE)
    train = toy_train(STEPS, engine=ZERO3, micro_batch=3, save=save)
    fitted = toy_fit(world, directory / "again", train, task=task)
    fitted.engine.load(fitted.checkpoints.path(PAUSE), step=PAUSE)
    stream = ToyStream(train, world)
    losses = [
        task.loss(fitted.engine.module, batch).total.item()
        for batch in stream.batches(task.collate, start_step=PAUSE, steps=1)
    ]
    return world.mean({"loss": sum(losses) / len(losses)})["loss"]


def _two_ranks_again(world: World, directory: Path) -> dict[str, Any]:
    train = toy_train(STEPS, engine=ZERO3)
    toy_fit(world, directory / "dropout_paused", train, trainable=LEARNS, first_weights=99)
    for name, engine in HALVES.items():
        toy_fit(world, directory / f"{name}_paused", toy_train(STEPS, engine=engine), first_weights=99)
    zero1 = toy_train(STEPS, engine=toy_engine("deepspeed", zero_stage=1), micro_batch=3)
    toy_fit(world, directory / "paused_zero1", zero1, task=ToyTask(dropout=STILL), trainable=LEARNS, first_weights=99)
    handed_on = HandedOnTask(directory / "zero3" / "checkpoints" / f"step_{STEPS:08d}")
    unclipped = toy_train(1, engine=ZERO3, optim=OptimConfig(lr=1e-3, clip_norm=None))
    fitted = toy_fit(world, directory / "handed_on", unclipped, task=handed_on, first_weights=99)
    assert fitted.engine.scalars()["grad_norm"] > 0
    for name in ("deepspeed", "torch"):
        engine = toy_engine(name, activation_checkpointing=name == "deepspeed")
        optim = OptimConfig(lr=5e-2, lr_scales={"*lora_B*": 2.0})
        train = toy_train(STEPS, engine=engine, optim=optim)
        toy_fit(world, directory / f"lora_{name}", train, task=LanguageModelTask(), trainable=("*lora*",))
    return {"handed_on": handed_on.report}


def _elsewhere(world: World, directory: Path, name: str, train: TrainConfig) -> None:
    toy_fit(world, directory / name, train, task=ToyTask(dropout=STILL), trainable=LEARNS, first_weights=99)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """Every training these tests look at: on two ranks, then resumed by others on one, two and three ranks."""
    from shutil import copytree

    directory = tmp_path_factory.mktemp("engines")
    first = run_ranks(2, _two_ranks, directory, directory=directory)
    for copy in ("zero1", "on_one", "on_three", "torch_alone"):
        copytree(directory / "paused", directory / f"paused_{copy}")
    second = run_ranks(2, _two_ranks_again, directory, directory=directory)
    zero3, torch_engine = toy_train(STEPS, engine=ZERO3), toy_train(STEPS)
    run_ranks(1, _elsewhere, directory, "paused_on_one", zero3, directory=directory)
    run_ranks(3, _elsewhere, directory, "paused_on_three", zero3, directory=directory)
    _elsewhere(World.alone(), directory, "paused_torch_alone", torch_engine)
    return directory, first, second


Runs = tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]


@pytest.mark.parametrize("engine", ["zero3", "zero2", "zero1"])
def test_deepspeed_and_torch_agree_step_by_step(runs: Runs, engine: str) -> None:
    directory, first, _ = runs

    ours, theirs = curve(directory / engine), curve(directory / "torch")

    assert list(ours) == list(range(1, STEPS + 1))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert first[0][engine] == pytest.approx(first[0]["torch"], rel=1e-4)


@pytest.mark.parametrize("name", ["zero3", "torch", *HALVES, "dropout", "frozen", "lora_deepspeed"])
def test_the_loss_falls(runs: Runs, name: str) -> None:
    losses = list(curve(runs[0] / name).values())

    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("name", ["dropout", *HALVES])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(runs: Runs, name: str) -> None:
    directory = runs[0]

    assert curve(directory / f"{name}_paused") == curve(directory / name)


@pytest.mark.parametrize("where", ["zero1", "on_one", "on_three", "torch_alone"])
def test_a_checkpoint_goes_on_in_another_engine_and_on_another_number_of_ranks(runs: Runs, where: str) -> None:
    directory = runs[0]

    resumed = curve(directory / f"paused_{where}")

    assert list(resumed) == list(range(1, STEPS + 1))
    assert resumed == pytest.approx(curve(directory / "frozen"), abs=1e-5)


def test_frozen_weights_come_back_from_the_checkpoint(runs: Runs) -> None:
    directory = runs[0]
    last = f"checkpoints/step_{STEPS:08d}"

    resumed, uninterrupted = (
        load_weights(directory / "paused_on_three" / last),
        load_weights(directory / "frozen" / last),
    )
    frozen = [name for name in uninterrupted if not name.startswith((*LEARNS, "seen"))]

    assert {"embedding.weight", "norm.bias", "scale", "odd"} <= set(frozen)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in frozen)


@pytest.mark.parametrize("name", HALVES)
def test_tables_computed_at_birth_stay_exact_in_bf16(runs: Runs, name: str) -> None:
    assert [found[name] for found in runs[1]] == [ToyTask().build_model().thirds_L.tolist()] * 2  # type: ignore[union-attr, operator]  # torch types buffers loosely


def test_an_engine_goes_back_to_an_earlier_checkpoint(runs: Runs) -> None:
    assert runs[1][0]["again"] == pytest.approx(curve(runs[0] / "zero3")[PAUSE + 1], abs=1e-6)


def test_files_hold_what_was_saved_and_no_more(runs: Runs) -> None:
    weights = runs[0] / "zero3" / "checkpoints" / f"step_{STEPS:08d}" / "weights"

    content = 4 * sum(parameter.numel() for parameter in ToyTask().build_model().parameters())
    written = sum(path.stat().st_size for path in weights.glob("*.distcp"))

    assert content < written < content + 2_000 * 2 * len(tensors(weights))  # a zip header for each piece, no padding


def test_all_ranks_stop_at_the_same_step_when_one_is_asked(runs: Runs) -> None:
    assert [found["paused"] for found in runs[1]] == [
        f"Preempted: stopped after step {PAUSE} of {STEPS}; everything is saved"
    ] * 2


def test_weights_saved_by_zero3_load_in_one_process(runs: Runs) -> None:
    checkpoint = runs[0] / "zero3" / "checkpoints" / f"step_{STEPS:08d}"

    weights, expected = load_weights(checkpoint), load_weights(runs[0] / "torch" / "checkpoints" / checkpoint.name)

    assert set(weights) == set(expected)
    names = [name for name in expected if "key.bias" not in name]  # has no gradient but rounding, which Adam inflates
    assert all(torch.allclose(weights[name].float(), expected[name].float(), atol=1e-3) for name in names)
    assert tensors(checkpoint / "weights")["odd"] == {"shape": [7], "dtype": "float32"}


def test_a_later_stage_starts_from_the_weights_and_hears_what_is_missing(runs: Runs) -> None:
    directory, _, second = runs

    handed_on = curve(directory / "handed_on")[1]

    assert handed_on < curve(directory / "zero3")[STEPS] + 0.2 < curve(directory / "zero3")[1]
    assert [found["handed_on"] for found in second] == [
        "35 tensors loaded, 1 missing (odd), 1 unexpected (odd)",
        "35 tensors loaded, 1 missing (odd), 1 unexpected (odd)",
    ]


def test_lora_under_zero3_learns_as_without_and_leaves_the_base_alone(runs: Runs) -> None:
    directory, last = runs[0], f"checkpoints/step_{STEPS:08d}"

    ours, theirs = (load_weights(directory / f"lora_{name}" / last) for name in ("deepspeed", "torch"))

    assert curve(directory / "lora_deepspeed") == pytest.approx(curve(directory / "lora_torch"), abs=1e-5)
    assert set(ours) == set(theirs)
    assert any("lora_B" in name and tensor.abs().sum() > 0 for name, tensor in ours.items())
    base = [name for name in ours if "lora" not in name]
    assert all(torch.equal(ours[name], theirs[name]) for name in base)
    assert 0.01 < ours[next(name for name in base if "embed_tokens" in name)].std() < 0.04  # transformers' own start


class AttentionTask(ToyTask):
    """Builds what torch fills with functions that it has imported by name: attention, whose biases start at zero."""

    def build_model(self) -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16)


def _first_weights(world: World, directory: Path) -> dict[str, list[float]]:
    engine = toy_engine("deepspeed" if world.joined else "torch", persistence_threshold=0)
    made = make_engine(AttentionTask(), toy_train(1, engine=engine), trainable=["*"], world=world, seed=3)
    writing.write(directory / WEIGHTS, made.held()[WEIGHTS], world)
    world.barrier()
    return {name: tensor.flatten().tolist() for name, tensor in load_weights(directory).items()}


def test_weights_that_torch_fills_by_itself_are_the_same_cut_or_whole(tmp_path: Path) -> None:
    expected = _first_weights(World.alone(), tmp_path / "whole")

    found, _ = run_ranks(2, _first_weights, tmp_path / "cut", directory=tmp_path)

    assert expected == found
