"""What a rank measures of itself while it trains, and what that makes for all ranks together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orchestrator.hardware import Hardware
from orchestrator.journal import read_events
from orchestrator.launcher import _record
from orchestrator.local import LocalLauncher
from orchestrator.plan import Catalog, make_plan
from orchestrator.recipe import load_recipe
from orchestrator.stage import StageContext
from orchestrator.state import write_launch
from orchestrator.training.meters import Meters, Reading, host_memory_gb, metrics_of
from orchestrator.training.operations import Operations
from orchestrator.worker import _peak_tflops
from orchestrator.world import World
from tests import toychain
from tests.toys import ToyTask, toy_context, toy_engine, toy_fit, toy_sample, toy_train

ALONE = World.alone()
MANUAL = Path(__file__).parents[3] / "orchestrator" / "README.md"
B, WIDE, NARROW = 6, 32, 8
FORWARD = 2 * B * WIDE * NARROW * 2  # two layers, a multiplication and an addition each


class CountedTask(ToyTask):
    """Knows its tokens."""

    def tokens_of(self, batch: Tensor) -> int:
        return batch[:, :-1].numel()


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDE, NARROW), nn.ReLU(), nn.Linear(NARROW, WIDE))


def counted(model: nn.Sequential, *, again: bool = False) -> int:
    operations, inputs_BW = Operations(), torch.randn(B, WIDE)
    with operations:
        outputs_BW: Tensor = checkpoint(model, inputs_BW, use_reentrant=False) if again else model(inputs_BW)
        outputs_BW.sum().backward()
    assert not operations.unknown
    return operations.counted


def reading(**changes: Any) -> Reading:
    return Reading(**{"tokens": 0, "operations": None, "busy_s": 10.0, "host_memory_gb": 2.0, **changes})


def with_peak(directory: Path, peak: float | None = None) -> StageContext:
    context = replace(toy_context(directory, ALONE), peak_tflops=peak)
    context.journal.close()
    return context


def test_operations_are_those_of_the_matrix_products_forward_and_backward() -> None:
    # backward each layer needs its weights' gradient, all but the first their input's too
    assert counted(layers()) == FORWARD + FORWARD + FORWARD // 2


def test_frozen_weights_need_no_gradient_so_their_operations_are_not_counted() -> None:
    model = layers()
    model[2].requires_grad_(requires_grad=False)

    assert counted(model) == FORWARD + FORWARD // 2 + FORWARD // 2


def test_what_activation_checkpointing_computes_again_is_no_work_of_the_model() -> None:
    assert counted(layers(), again=True) == counted(layers())


def test_an_operation_that_no_formula_fits_leaves_utilisation_unknown_and_training_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> int:
        raise AssertionError("shapes that it does not know")

    monkeypatch.setitem(torch.utils.flop_counter.flop_registry, torch.ops.aten.mm, fails)
    monkeypatch.setattr("orchestrator.training.operations.FORMULAS", torch.utils.flop_counter.flop_registry)
    operations = Operations()

    with operations:
        product = torch.ones(2, 3) @ torch.ones(3, 2)

    assert operations.unknown
    assert product.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_counted_micro_batches_stand_for_all_by_their_tokens(tmp_path: Path) -> None:
    meters = Meters(with_peak(tmp_path, peak=1.0), toy_train())
    weights_WW = torch.ones(WIDE, WIDE)

    for tokens in (4, 4, 20, 4):  # the third is not counted: its work follows from its tokens
        with meters.computing(tokens):
            torch.ones(tokens, WIDE) @ weights_WW
    read = meters.read()

    assert read.tokens == 32
    assert read.operations == 32 * 2 * WIDE * WIDE


def test_nothing_is_counted_where_no_peak_is_known_and_no_gpu_works_or_the_code_is_compiled(tmp_path: Path) -> None:
    compiled = toy_train(engine=toy_engine(compile="eager"))
    unasked = [Meters(with_peak(tmp_path), toy_train()), Meters(with_peak(tmp_path, peak=1.0), compiled)]

    for meters in unasked:
        with meters.computing(8):
            torch.ones(8, 8) @ torch.ones(8, 8)

    assert [meters.read().operations for meters in unasked] == [None, None]


def test_ranks_are_added_up_averaged_or_the_largest_counts_as_each_metric_says() -> None:
    ranks = [reading(tokens=1000, operations=2e15), reading(tokens=600, operations=1e15, host_memory_gb=5.0)]

    found = metrics_of(ranks, seconds=10.0, tensor_parallel=1, peak_tflops=300.0)

    assert found == {
        "tokens_per_s": 160.0, "tflops_per_rank": 150.0, "mfu": 0.5, "cpu_cores": 1.0, "host_memory_gb": 5.0,
    }  # fmt: skip


def test_tokens_that_a_tensor_parallel_group_reads_together_count_once() -> None:
    found = metrics_of([reading(tokens=100)] * 4, seconds=1.0, tensor_parallel=2, peak_tflops=None)

    assert found["tokens_per_s"] == 200.0


def test_no_number_is_invented_for_what_nobody_knows() -> None:
    some = metrics_of([reading(operations=1e12), reading()], seconds=1.0, tensor_parallel=1, peak_tflops=300.0)
    no_peak = metrics_of([reading(operations=1e12)], seconds=1.0, tensor_parallel=1, peak_tflops=None)

    assert set(some) == {"cpu_cores", "host_memory_gb"}
    assert set(no_peak) == {"cpu_cores", "host_memory_gb", "tflops_per_rank"}


def test_host_memory_is_the_most_that_was_ever_resident() -> None:
    before = host_memory_gb()
    held = bytearray(64 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    during = host_memory_gb()
    del held
    after = host_memory_gb()

    assert before is not None
    assert during is not None
    assert after is not None
    slack_gb = 0.02  # the kernel adds up what each thread has touched a little later
    assert during > max(0.05, before - slack_gb)
    assert after > during - slack_gb


def test_the_journal_has_them_at_each_log_line(tmp_path: Path) -> None:
    a_sample = CountedTask().tokens_of(CountedTask().collate([toy_sample(1, 1)]))

    toy_fit(ALONE, tmp_path, toy_train(4, log_every=2), task=CountedTask())

    told = [event["values"] for event in read_events(tmp_path) if event["event"] == "metrics"]
    assert len(told) == 2
    for values in told:
        assert values["tokens_per_s"] / values["samples_per_s"] == pytest.approx(a_sample)
        assert values["cpu_cores"] > 0
        assert values["host_memory_gb"] > 0.05
        assert not {"mfu", "tflops_per_rank", "gpu_memory_gb", "gpu_utilisation"} & set(values)


def test_the_manual_says_what_every_metric_of_a_training_is(tmp_path: Path) -> None:
    gpu = reading(tokens=1, operations=1.0, gpu_memory_gb=1.0, gpu_memory_reserved_gb=1.0, gpu_utilisation=0.5)
    toy_fit(ALONE, tmp_path, toy_train(1))
    journaled = {name for event in read_events(tmp_path) if event["event"] == "metrics" for name in event["values"]}

    names = journaled | metrics_of([gpu], seconds=1.0, tensor_parallel=1, peak_tflops=1.0).keys()

    assert len(names) > 15
    assert {
        name for name in names if f"`{name.replace('/next', '/TERM')}`" not in MANUAL.read_text(encoding="utf-8")
    } == set()


def test_a_training_step_is_measured_against_the_peak_that_the_place_names(tmp_path: Path) -> None:
    meters, task = Meters(with_peak(tmp_path, peak=1e-3), toy_train()), CountedTask()
    model, batch = task.build_model(), task.collate([toy_sample(1, place) for place in range(4)])

    with meters.computing(task.tokens_of(batch)):
        torch.autograd.backward(task.loss(model, batch).total)
    found = metrics_of([meters.read()], seconds=2.0, tensor_parallel=1, peak_tflops=1e-3)

    assert found["tflops_per_rank"] > 0
    assert found["mfu"] == pytest.approx(found["tflops_per_rank"] / 1e-3)


class BigPlace(LocalLauncher):
    """A place that says how fast its GPUs can be."""

    def hardware(self) -> Hardware:
        return Hardware(tflops_per_gpu=312.0)


def test_the_peak_is_that_of_the_place_of_the_launch(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: toy\ntracking: {uri: null}\nstages: {first: {stage: count}}\n", encoding="utf-8")
    plan = make_plan(load_recipe(recipe), Catalog(stages=toychain.STAGES, families={}), tmp_path)
    before = _peak_tflops(tmp_path)

    write_launch(tmp_path, _record(plan, BigPlace()))

    assert (before, _peak_tflops(tmp_path)) == (None, 312.0)
