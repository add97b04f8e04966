"""Which options of engine, optimizer and policy go together, and which a device or an installed package rules out.

No torch: planning asks before anything runs, knowing of the device only whether a stage has GPUs.
"""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec

from orchestrator.errors import InputError
from orchestrator.training.config import TrainConfig

Fault = tuple[str, str]  # key below `train`, what is wrong and what is allowed


def option_faults(train: TrainConfig, *, on_gpus: bool) -> dict[str, str]:
    """Finds every option that cannot be had: key below `train` -> what was given, why not, and what is allowed."""
    rules = [_precision, _spreading, _parallel, _attention, _optimizer, _policy, *([] if on_gpus else [_without_gpus])]
    rules.append(_compiler_of_gpus if on_gpus else _compiler_of_cpus)
    found: dict[str, str] = {}
    for rule in rules:
        for key, message in rule(train):
            found.setdefault(key, message)  # the first reason is enough
    return found


def require(train: TrainConfig, *, on_gpus: bool) -> None:
    """Refuses what cannot be had, for whoever makes an engine without a plan."""
    for key, message in option_faults(train, on_gpus=on_gpus).items():
        raise InputError(f"train.{key}: {message}")


def _precision(train: TrainConfig) -> Iterator[Fault]:
    engine = train.engine
    if engine.precision == "fp32":
        return
    if engine.name == "torch":
        yield "engine.precision", f"{engine.precision}: the torch engine keeps whole replicas in fp32; allowed: fp32"
    elif engine.zero_stage == 0:
        why = f"DeepSpeed would add up gradients in {engine.precision} there"
        message = f"{engine.precision} with zero_stage 0: {why}; allowed: fp32, or a zero_stage from 1 to 3"
        yield "engine.precision", message


def _spreading(train: TrainConfig) -> Iterator[Fault]:
    engine, given = train.engine, _engine_in_words(train)
    stage = engine.zero_stage if engine.name == "deepspeed" else 0
    for part, place, least in (
        ("optimizer", engine.offload.optimizer, 1),
        ("parameters", engine.offload.parameters, 3),
    ):
        key = f"engine.offload.{part}"
        if place == "nvme":
            why = "checkpoints read weights and moments where they lie in memory, and cannot reach them on a disk"
            yield key, f"nvme: {why}; allowed: none, cpu"
        if place != "none" and stage < least:
            allowed = _zero("1 to 3" if least == 1 else "3")
            yield key, f"{place} with {given}: what is off-loaded are partitions; allowed: none, or {allowed}"
    if engine.zeropp.on and stage < 3:
        yield "engine.zeropp", f"is a way to spread ZeRO-3, not {given}; allowed: none of it, or {_zero('3')}"
    if engine.compile is not None and stage == 3:
        why = "weights are gathered around every module, in the midst of what would be compiled"
        yield "engine.compile", f"{engine.compile} with {given}: {why}; allowed: null, or {_zero('0 to 2')}"
    if engine.leaf_modules and stage < 3:
        message = f"say what ZeRO-3 gathers as one, and nothing is gathered with {given}"
        yield "engine.leaf_modules", f"{message}; allowed: none, or {_zero('3')}"


def _parallel(train: TrainConfig) -> Iterator[Fault]:
    engine = train.engine
    if engine.tensor_parallel == 1:
        return
    if engine.name == "deepspeed" and engine.zero_stage == 0:
        why = "without partitions DeepSpeed knows of no shares, and clips them wrongly"
        yield "engine.zero_stage", f"0 with tensor_parallel: {why}; allowed: 1 to 3, or engine.name torch"
    if train.optim.name == "muon":
        yield "optim.name", "muon with tensor_parallel: it needs whole matrices, and ranks have shares; allowed: adamw"
    if engine.compile is not None:
        message = f"{engine.compile} with tensor_parallel: ranks talk to each other within every block"
        yield "engine.compile", f"{message}, which no compiled one does; allowed: null"
    if engine.zeropp.on:
        yield "engine.zeropp", "with tensor_parallel: both want to say which ranks belong together; allowed: none of it"


def _attention(train: TrainConfig) -> Iterator[Fault]:
    if train.engine.attention != "flash_attention_2":
        return
    if train.engine.precision == "fp32":
        yield "engine.attention", "flash_attention_2 computes in bf16 or fp16, not in fp32; allowed: sdpa, eager"
    if find_spec("flash_attn") is None:
        message = "flash_attention_2: the package flash_attn is not installed"
        yield "engine.attention", f"{message}; allowed: sdpa (which uses a flash kernel of torch's own), eager"


def _compiler_of_gpus(train: TrainConfig) -> Iterator[Fault]:
    if train.engine.compile == "inductor" and find_spec("triton") is None:
        message = "inductor: it writes kernels for GPUs in Triton, and the package triton is not installed"
        yield "engine.compile", f"{message}; allowed: null, aot_eager or eager, which compile nothing"


def _compiler_of_cpus(train: TrainConfig) -> Iterator[Fault]:
    compiler = os.environ.get("CXX", "g++")
    if train.engine.compile == "inductor" and shutil.which(compiler) is None:
        message = f"inductor: it writes C++ for CPUs, and there is no compiler {compiler} (CXX names another)"
        yield "engine.compile", f"{message}; allowed: null, aot_eager or eager, which compile nothing"


def _optimizer(train: TrainConfig) -> Iterator[Fault]:
    optim, engine = train.optim, train.engine
    if optim.name == "adamw_8bit":
        why = (
            "bitsandbytes is not installed"
            if find_spec("bitsandbytes") is None
            else "bitsandbytes keeps 8-bit blocks, which checkpoints cannot cut over another number of ranks"
        )
        yield "optim.name", f"adamw_8bit: {why}; allowed: adamw, muon"
    if optim.name == "muon" and engine.name == "deepspeed" and engine.zero_stage > 0:
        yield from _cut_muon(train)


def _cut_muon(train: TrainConfig) -> Iterator[Fault]:
    engine, divergence = train.engine, train.divergence
    if engine.zero_stage < 3:
        why = "its momentum lies there in an order of its own, which checkpoints cannot cut over other ranks"
        yield "optim.name", f"muon with zero_stage {engine.zero_stage}: {why}; allowed: adamw, or zero_stage 0 or 3"
    if engine.precision == "fp16":
        yield "engine.precision", "fp16 with muon: its updates know no loss scale; allowed: bf16, fp32"
    if engine.offload.optimizer != "none":
        yield "engine.offload.optimizer", f"{engine.offload.optimizer} with muon: nobody has tried it; allowed: none"
    if train.optim.clip_norm is not None:
        message = f"{train.optim.clip_norm} with muon under ZeRO-3: DeepSpeed would clip the turned update"
        yield "optim.clip_norm", f"{message}, whose size is what Muon is about; allowed: null"
    for key, what in (("on_nonfinite", divergence.on_nonfinite), ("on_spike", divergence.on_spike)):
        if what == "skip":
            message = "skip with muon under ZeRO-3: its momentum moves before the norm of the gradients is known"
            yield f"divergence.{key}", f"{message}; allowed: stop, roll_back"


def _policy(train: TrainConfig) -> Iterator[Fault]:
    divergence = train.divergence
    rolls_back = "roll_back" in {divergence.on_nonfinite, divergence.on_spike}
    every = train.save.every_steps
    if rolls_back and every != "auto" and every >= train.steps:
        message = f"roll_back: there is no checkpoint to go back to before step {every}"
        key = "divergence.on_nonfinite" if divergence.on_nonfinite == "roll_back" else "divergence.on_spike"
        yield key, f"{message}, of {train.steps}; allowed: skip, stop, or a shorter save.every_steps"


def _without_gpus(train: TrainConfig) -> Iterator[Fault]:
    engine, none = train.engine, "the stage has no GPU (resources.gpus_per_node: 0)"
    if engine.precision == "fp16":
        yield "engine.precision", f"fp16: {none}, and CPUs compute in it slowly or not at all; allowed: bf16, fp32"
    if engine.attention == "flash_attention_2":
        yield "engine.attention", f"flash_attention_2: {none}; allowed: sdpa, eager"
    zeropp = engine.zeropp
    for key, wanted in (("weights", zeropp.quantized_weights), ("gradients", zeropp.quantized_gradients)):
        if wanted:
            message = f"{none}, and DeepSpeed packs for it with CUDA kernels; allowed: false"
            yield f"engine.zeropp.quantized_{key}", message


def _engine_in_words(train: TrainConfig) -> str:
    return "the torch engine" if train.engine.name == "torch" else f"zero_stage {train.engine.zero_stage}"


def _zero(stages: str) -> str:
    return f"deepspeed with zero_stage {stages}"
