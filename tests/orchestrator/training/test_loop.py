"""The training loop in one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.stopping import measured_save_s
from orchestrator.training.config import OptimConfig, SaveConfig
from orchestrator.training.engine import make_engine
from orchestrator.training.loop import seed_step
from orchestrator.training.task import Losses
from orchestrator.world import World
from tests.toys import LETTERS, BreaksAtTask, ToyTask, curve, toy_engine, toy_fit, toy_train

ALONE = World.alone()


class SteepTask(ToyTask):
    """Gives a finite loss whose gradients are not."""

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        losses = super().loss(model, batch)
        return Losses(total=losses.total + (0 * losses.total).sqrt(), terms=losses.terms)


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == kind]


def test_the_loss_falls(tmp_path: Path) -> None:
    assert toy_fit(ALONE, tmp_path, toy_train(60)).outcome == "done"

    losses = list(curve(tmp_path).values())

    assert len(losses) == 60
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit_with_dropout(tmp_path: Path) -> None:
    toy_fit(ALONE, tmp_path / "whole", toy_train(9))
    paused = toy_fit(ALONE, tmp_path / "paused", toy_train(9), stop_after=4)
    resumed = toy_fit(ALONE, tmp_path / "paused", toy_train(9), first_weights=77)

    assert (paused.outcome, resumed.outcome) == (
        "Preempted: stopped after step 4 of 9; everything is saved",
        "done",
    )
    assert curve(tmp_path / "paused") == curve(tmp_path / "whole")


def test_a_save_that_would_not_fit_the_time_left_is_not_begun_and_the_journal_says_so(tmp_path: Path) -> None:
    train = toy_train(6, save=SaveConfig(every_steps=2))
    hurried = toy_fit(ALONE, tmp_path, train, left_s=-1.0)

    assert hurried.outcome == "Preempted: stopped after step 6 of 6; there was no time to save it"
    assert [event["step"] for event in events(tmp_path, "unsaved")] == [2, 4, 6]
    assert not (tmp_path / "checkpoints").exists()
    assert toy_fit(ALONE, tmp_path, train, left_s=1000.0).outcome == "done"
    assert measured_save_s(tmp_path) > 0


def test_the_journal_says_where_a_training_begins_and_how_long_it_stood_still_for_saves(tmp_path: Path) -> None:
    train = toy_train(6, save=SaveConfig(every_steps=2))
    toy_fit(ALONE, tmp_path, train, stop_after=4)
    toy_fit(ALONE, tmp_path, train)
    lines = map(json.loads, (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    told = [(line["event"], line["step"]) for line in lines if line["event"] in {"begun", "stood_still"}]

    assert told == [
        ("begun", 0), ("stood_still", 2), ("stood_still", 4), ("begun", 4), ("stood_still", 6),
    ]  # fmt: skip
    assert all(event["seconds"] > 0 for event in events(tmp_path, "stood_still"))


def test_a_run_killed_between_checkpoints_repeats_the_lost_steps_bit_for_bit(tmp_path: Path) -> None:
    train = toy_train(9)
    toy_fit(ALONE, tmp_path / "whole", train)
    paused = toy_fit(ALONE, tmp_path / "killed", train, stop_after=3)
    toy_fit(ALONE, tmp_path / "killed", train, stop_after=3)  # goes on to step 6
    (
        tmp_path / "killed" / "checkpoints" / "step_00000006" / "manifest.json"
    ).unlink()  # as if killed before it was whole

    toy_fit(ALONE, tmp_path / "killed", train)

    assert paused.outcome.startswith("Preempted")
    assert [event["step"] for event in events(tmp_path / "killed", "loss")] == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9]
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    task = ToyTask(dropout=0.0)
    toy_fit(ALONE, tmp_path / "whole", toy_train(4), task=task)
    toy_fit(ALONE, tmp_path / "parts", toy_train(4, micro_batch=3), task=task)

    assert curve(tmp_path / "parts") == pytest.approx(curve(tmp_path / "whole"), abs=1e-5)


def test_every_step_leaves_its_loss_and_every_few_steps_their_means(tmp_path: Path) -> None:
    toy_fit(ALONE, tmp_path, toy_train(5, log_every=2))

    losses = curve(tmp_path)
    told = {event["step"]: event["values"] for event in events(tmp_path, "metrics")}

    assert list(losses) == [1, 2, 3, 4, 5]
    assert list(told) == [2, 4, 5]
    assert told[4]["loss"] == told[4]["loss/next"] == pytest.approx((losses[3] + losses[4]) / 2)
    assert {"lr", "grad_norm", "samples_per_s", "data_wait_share"} <= set(told[4])
    assert 0 <= told[4]["data_wait_share"] <= 1


def test_progress_says_how_far_training_is(tmp_path: Path) -> None:
    toy_fit(ALONE, tmp_path, toy_train(3))

    progress = json.loads((tmp_path / "progress.json").read_text(encoding="utf-8"))

    assert (progress["done"], progress["total"], progress["unit"]) == (3, 3, "step")
    assert progress["values"]["loss"] == curve(tmp_path)[3]


def test_a_loss_that_is_not_finite_ends_training_before_it_reaches_the_weights(tmp_path: Path) -> None:
    fitted = toy_fit(ALONE, tmp_path, toy_train(9), task=BreaksAtTask(4))

    assert fitted.outcome.startswith("Diverged: the loss of step 4 is not finite on rank 0; no weight was updated")
    assert all(bool(torch.isfinite(p).all()) for p in fitted.engine.module.parameters())
    assert list(curve(tmp_path)) == [1, 2, 3]


def test_gradients_that_are_not_finite_end_training(tmp_path: Path) -> None:
    assert toy_fit(ALONE, tmp_path, toy_train(9), task=SteepTask()).outcome.startswith(
        "Diverged: the gradients of step 1"
    )


def test_a_stop_at_the_last_step_is_no_interruption(tmp_path: Path) -> None:
    assert toy_fit(ALONE, tmp_path, toy_train(3), stop_after=3).outcome == "done"


def test_frozen_parameters_keep_their_values(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = ToyTask().build_model().state_dict()

    after = toy_fit(ALONE, tmp_path, toy_train(3), trainable=("head",)).engine.module.state_dict()

    moved = {name for name in before if name != "seen" and not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_rate_scale_of_zero_holds_a_part_still(tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-2, lr_scales={"head": 0.0})
    torch.manual_seed(5)
    before = ToyTask().build_model().state_dict()

    after = toy_fit(ALONE, tmp_path, toy_train(2, optim=optim)).engine.module.state_dict()

    assert torch.equal(before["head.weight"], after["head.weight"])
    assert not torch.equal(before["norm.weight"], after["norm.weight"])


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    def first_step(clip_norm: float | None) -> tuple[float, Tensor]:
        # an eps far above the gradients makes AdamW's step proportional to them
        optim = OptimConfig(lr=1.0, eps=1e3, clip_norm=clip_norm, schedule="constant")
        fitted = toy_fit(ALONE, tmp_path / str(clip_norm), toy_train(1, optim=optim), first_weights=3)
        torch.manual_seed(3)
        fresh = dict(ToyTask().build_model().named_parameters())
        moved = [(p - fresh[name]).detach().flatten() for name, p in fitted.engine.module.named_parameters()]
        return fitted.engine.scalars()["grad_norm"], torch.cat(moved)

    (norm, free), (same_norm, clipped) = first_step(None), first_step(0.01)

    assert norm == pytest.approx(same_norm) and norm > 0.1  # noqa: PT018 - the premise, then the point
    assert float(clipped.norm() / free.norm()) == pytest.approx(0.01 / norm, rel=0.02)


def test_the_randomness_of_a_step_depends_on_seed_step_and_rank_alone() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        seed_step(seed, step, rank)
        return float(torch.rand(()))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)}) == 4


class TinyLanguageTask(ToyTask):
    """Teaches a tiny LLaMA of transformers."""

    def build_model(self) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=LETTERS, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                pad_token_id=0,
            )
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        return super().loss(lambda letters_BL: model(input_ids=letters_BL).logits, batch)  # type: ignore[arg-type]  # it is called like one


def test_attention_is_computed_as_asked_and_gives_the_same(tmp_path: Path) -> None:
    chosen = {}
    for way in ("eager", "sdpa"):
        fitted = toy_fit(ALONE, tmp_path / way, toy_train(3, engine=toy_engine(attention=way)), task=TinyLanguageTask())
        chosen[way] = fitted.engine.model.config._attn_implementation  # type: ignore[union-attr]

    assert chosen == {"eager": "eager", "sdpa": "sdpa"}
    assert curve(tmp_path / "eager") == pytest.approx(curve(tmp_path / "sdpa"), abs=1e-5)


def test_a_model_that_cannot_choose_its_attention_is_told() -> None:
    with pytest.raises(InputError, match=r"train\.engine\.attention: no part of this model can choose"):
        make_engine(ToyTask(), toy_train(1, engine=toy_engine(attention="sdpa")), trainable=("*",), world=ALONE, seed=1)


def test_a_compiled_model_learns_the_same(tmp_path: Path) -> None:
    import torch._dynamo.utils as dynamo

    compiled = toy_train(3, engine=toy_engine(compile="aot_eager"))
    toy_fit(ALONE, tmp_path / "plain", toy_train(3), task=ToyTask(dropout=0.0))
    before = dynamo.counters["frames"]["ok"]
    toy_fit(ALONE, tmp_path / "compiled", compiled, task=ToyTask(dropout=0.0))

    assert dynamo.counters["frames"]["ok"] > before
    assert curve(tmp_path / "compiled") == pytest.approx(curve(tmp_path / "plain"), abs=1e-5)
