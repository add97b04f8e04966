"""Options of the engine and the optimizer: which cannot be had, and what DeepSpeed is told of the others."""

from importlib.util import find_spec
from typing import Any

import pytest

from orchestrator.errors import InputError
from orchestrator.training.config import (
    AverageConfig,
    DivergenceConfig,
    EngineConfig,
    LayerDecay,
    LossScale,
    Offload,
    OptimConfig,
    SaveConfig,
    TrainConfig,
    ZeroPlusPlus,
)
from orchestrator.training.memory.zero import setting_of
from orchestrator.training.options import option_faults, require
from orchestrator.training.zero import deepspeed_json

FP32: dict[str, Any] = {"precision": "fp32"}


def train(engine: EngineConfig | None = None, optim: OptimConfig | None = None, **more: Any) -> TrainConfig:
    fields: dict[str, Any] = {"steps": 100, "global_batch": 64, "save": SaveConfig(every_steps=10), **more}
    return TrainConfig(**fields, engine=engine or EngineConfig(), optim=optim or OptimConfig(lr=1e-3))


MUON = OptimConfig(lr=1.0, name="muon", clip_norm=None)
ON_NVME, ON_CPU = Offload(optimizer="nvme", folder="/nvme"), Offload(optimizer="cpu")
PARAMETERS = Offload(parameters="cpu")
SELDOM = SaveConfig(every_steps=100)
WEIGHTS, GRADIENTS = ZeroPlusPlus(quantized_weights=True), ZeroPlusPlus(quantized_gradients=True)
FLASH = "flash_attention_2"
REFUSED_ON_GPUS = [
    (train(EngineConfig(name="torch")), "engine.precision", "whole replicas in fp32"),
    (train(EngineConfig(zero_stage=0)), "engine.precision", "bf16 with zero_stage 0"),
    (train(EngineConfig(**FP32, zero_stage=0, offload=ON_CPU)), "engine.offload.optimizer", "zero_stage 1 to 3"),
    (train(EngineConfig(name="torch", **FP32, offload=PARAMETERS)), "engine.offload.parameters", "the torch engine"),
    (train(EngineConfig(zero_stage=2, offload=PARAMETERS)), "engine.offload.parameters", "zero_stage 3"),
    (train(EngineConfig(offload=ON_NVME)), "engine.offload.optimizer", "allowed: none, cpu"),
    (train(EngineConfig(zero_stage=2, zeropp=ZeroPlusPlus(node_ranks=8))), "engine.zeropp", "ZeRO-3"),
    (train(EngineConfig(zero_stage=1, leaf_modules=("mlp",))), "engine.leaf_modules", "zero_stage 1"),
    (train(EngineConfig(attention=FLASH, **FP32)), "engine.attention", "not in fp32"),
    (train(optim=OptimConfig(lr=1.0, name="adamw_8bit")), "optim.name", "bitsandbytes"),
    (train(EngineConfig(zero_stage=2), MUON), "optim.name", "an order of its own"),
    (train(optim=OptimConfig(lr=1.0, name="muon")), "optim.clip_norm", "the turned update"),
    (train(EngineConfig(offload=ON_CPU), MUON), "engine.offload.optimizer", "with muon"),
    (train(optim=MUON, divergence=DivergenceConfig(on_spike="skip")), "divergence.on_spike", "momentum moves"),
    (train(divergence=DivergenceConfig(on_spike="roll_back"), save=SELDOM), "divergence.on_spike", "no checkpoint"),
    (train(EngineConfig(zero_stage=2, tensor_parallel=2, compile="eager")), "engine.compile", "with tensor_parallel"),
    (train(EngineConfig(compile="eager")), "engine.compile", "allowed: null, or deepspeed with zero_stage 0 to 2"),
]
REFUSED_ON_CPUS = [
    (train(EngineConfig(precision="fp16")), "engine.precision", "resources.gpus_per_node: 0"),
    (train(EngineConfig(zeropp=WEIGHTS)), "engine.zeropp.quantized_weights", "CUDA"),
    (train(EngineConfig(zeropp=GRADIENTS)), "engine.zeropp.quantized_gradients", "CUDA"),
    (train(EngineConfig(attention=FLASH)), "engine.attention", "allowed: sdpa"),
]


@pytest.mark.parametrize(
    ("given", "key", "says", "on_gpus"),
    [*((*case, True) for case in REFUSED_ON_GPUS), *((*case, False) for case in REFUSED_ON_CPUS)],
)
def test_what_cannot_be_had_is_refused_with_its_key_and_the_reason(
    given: TrainConfig,
    key: str,
    says: str,
    on_gpus: bool,  # noqa: FBT001
) -> None:
    found = option_faults(given, on_gpus=on_gpus)

    assert list(found) == [key]
    assert says in found[key]
    assert "allowed: " in found[key]
    with pytest.raises(InputError, match=rf"train\.{key}: "):
        require(given, on_gpus=on_gpus)


def test_inductor_needs_what_it_compiles_with(monkeypatch: pytest.MonkeyPatch) -> None:
    given = train(EngineConfig(zero_stage=2, compile="inductor"))

    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no compiler no-such-compiler" in option_faults(given, on_gpus=False)["engine.compile"]
    monkeypatch.setenv("CXX", "sh")  # any program
    assert option_faults(given, on_gpus=False) == {}
    assert ("engine.compile" in option_faults(given, on_gpus=True)) is (find_spec("triton") is None)


@pytest.mark.parametrize("on_gpus", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        train(),
        train(EngineConfig(name="torch", **FP32), OptimConfig(lr=1.0, name="muon")),
        train(EngineConfig(**FP32, zero_stage=0), OptimConfig(lr=1.0, name="muon")),
        train(
            optim=OptimConfig(lr=1.0, name="muon", clip_norm=None), divergence=DivergenceConfig(on_spike="roll_back")
        ),
        train(EngineConfig(offload=Offload(optimizer="cpu", parameters="cpu"))),
        train(EngineConfig(zero_stage=1, offload=Offload(optimizer="cpu"), compile="aot_eager", attention="sdpa")),
        train(EngineConfig(leaf_modules=("*.experts",)), average=AverageConfig()),
        train(divergence=DivergenceConfig(on_nonfinite="roll_back", on_spike="skip")),
    ],
)
def test_what_can_be_had_is_not_refused(given: TrainConfig, on_gpus: bool) -> None:  # noqa: FBT001
    assert option_faults(given, on_gpus=on_gpus) == {}


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        (EngineConfig, {"mics_shard_size": 8}, "mics_shard_size must be null, not 8: DeepSpeed has dropped MiCS"),
        (EngineConfig, {"zero_stage": -1}, "zero_stage"),
        (Offload, {"optimizer": "nvme"}, "folder"),
        (ZeroPlusPlus, {"node_ranks": 0}, "node_ranks"),
        (LossScale, {"initial_power": 40}, "initial_power"),
        (LossScale, {"window": 0}, "window"),
        (AverageConfig, {"decay": 1.0}, "decay"),
        (DivergenceConfig, {"window": 3}, "window"),
        (DivergenceConfig, {"most": 0}, "most"),
        (DivergenceConfig, {"spike_factor": 0.0}, "spike_factor"),
        (LayerDecay, {"factor": 0.0, "stack": "blocks"}, "factor"),
        (LayerDecay, {"factor": 0.5, "stack": ""}, "stack"),
        (OptimConfig, {"lr": 1.0, "momentum": 1.0}, "momentum"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_its_name(kind: Any, given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        kind(**given)


USUAL = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "fp16": {"enabled": False},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
    },
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": 10**9,
}


def test_deepspeed_is_told_what_it_has_to_know_and_no_more() -> None:
    assert deepspeed_json(train(), world_size=8, on_gpus=True) == USUAL


def told(engine: EngineConfig, *, on_gpus: bool = True) -> dict[str, Any]:
    json = deepspeed_json(train(engine), world_size=8, on_gpus=on_gpus)
    return {key: value for key, value in json.items() if value != USUAL[key]}


def test_deepspeed_is_told_of_fp16_and_its_loss_scale() -> None:
    engine = EngineConfig(precision="fp16", loss_scale=LossScale(initial_power=12, window=50, hysteresis=1, least=2))

    assert told(engine) == {
        "bf16": {"enabled": False},
        "fp16": {
            "enabled": True, "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 50, "hysteresis": 1,
            "min_loss_scale": 2,
        },
    }  # fmt: skip


def test_deepspeed_is_told_of_what_is_off_loaded() -> None:
    zero = told(EngineConfig(offload=Offload(optimizer="cpu", parameters="cpu", pin_memory=False)))["zero_optimization"]

    assert zero == USUAL["zero_optimization"] | {  # type: ignore[operator]  # it is a mapping
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
        "offload_param": {"device": "cpu", "pin_memory": False},
    }


def test_deepspeed_is_told_of_zeropp() -> None:
    zeropp = ZeroPlusPlus(node_ranks=8, quantized_weights=True, quantized_gradients=True)

    assert told(EngineConfig(zeropp=zeropp))["zero_optimization"] == USUAL["zero_optimization"] | {  # type: ignore[operator]  # it is a mapping
        "zero_hpz_partition_size": 8,
        "zero_quantized_weights": True,
        "zero_quantized_gradients": True,
    }


def test_without_partitions_deepspeed_is_told_next_to_nothing_and_we_clip() -> None:
    assert told(EngineConfig(zero_stage=0, precision="fp32")) == {
        "bf16": {"enabled": False},
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 0},
    }


def test_deepspeed_is_told_that_muon_needs_whole_gradients() -> None:
    json = deepspeed_json(train(optim=MUON), world_size=8, on_gpus=True)

    assert json["communication_data_type"] == "fp32"
    assert json["zero_optimization"]["reduce_scatter"] is False


def test_memory_is_not_told_where_nobody_reckons_it() -> None:
    with pytest.raises(InputError, match=r"train\.engine\.zeropp: what quantizing saves or costs is not reckoned yet"):
        setting_of(train(EngineConfig(zeropp=WEIGHTS)), 8, on_gpu=True)
