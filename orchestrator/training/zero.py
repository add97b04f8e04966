"""Our engine config as DeepSpeed's JSON. No torch, no DeepSpeed: what it says can be seen anywhere."""

from typing import Any

from orchestrator.training.config import EngineConfig, TrainConfig


def deepspeed_json(train: TrainConfig, *, world_size: int, on_gpus: bool) -> dict[str, Any]:
    """Translates our config into DeepSpeed's, for so many ranks."""
    engine = train.engine
    # without partitions DeepSpeed tells no norm before it clips, so we clip
    clip_norm = (train.optim.clip_norm or 0.0) if engine.zero_stage else 0.0
    json: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch_on(world_size),
        "gradient_accumulation_steps": train.accumulation_on(world_size),
        "gradient_clipping": clip_norm,
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": _fp16(engine),
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": _zero(engine, on_gpus=on_gpus),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast on CPUs, and needs no compiler
        "steps_per_print": 10**9,  # we log ourselves
    }
    if (
        train.optim.name == "muon" and engine.zero_stage == 3
    ):  # it needs whole gradients, and keeps momentum as they come
        json["communication_data_type"] = "fp32"
        json["zero_optimization"]["reduce_scatter"] = False
    return json


def _fp16(engine: EngineConfig) -> dict[str, Any]:
    if engine.precision != "fp16":
        return {"enabled": False}
    scale = engine.loss_scale
    return {
        "enabled": True,
        "loss_scale": 0,  # it moves
        "initial_scale_power": scale.initial_power,
        "loss_scale_window": scale.window,
        "hysteresis": scale.hysteresis,
        "min_loss_scale": scale.least,
    }


def _zero(engine: EngineConfig, *, on_gpus: bool) -> dict[str, Any]:
    if engine.zero_stage == 0:
        return {"stage": 0}
    overlap = on_gpus if engine.overlap_communication is None else engine.overlap_communication
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "overlap_comm": overlap,
        "contiguous_gradients": True,
        "reduce_bucket_size": engine.bucket_elements,
        "allgather_bucket_size": engine.bucket_elements,
    }
    pin_memory = engine.offload.pin_memory
    if engine.offload.optimizer != "none":
        zero["offload_optimizer"] = {"device": engine.offload.optimizer, "pin_memory": pin_memory}
    if engine.zero_stage < 3:
        return zero
    usual, wanted = 100_000 if on_gpus else 0, engine.persistence_threshold
    zero |= {
        "stage3_prefetch_bucket_size": engine.bucket_elements,
        "stage3_param_persistence_threshold": usual if wanted is None else wanted,
    }
    if engine.offload.parameters != "none":
        zero["offload_param"] = {"device": engine.offload.parameters, "pin_memory": pin_memory}
    if engine.zeropp.on:
        zero |= {
            "zero_hpz_partition_size": engine.zeropp.node_ranks,
            "zero_quantized_weights": engine.zeropp.quantized_weights,
            "zero_quantized_gradients": engine.zeropp.quantized_gradients,
        }
    return zero
