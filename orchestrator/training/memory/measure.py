"""Looks at a model and its micro-batches on the meta device: sizes, bytes alive, operations. Imports torch.

`python -m orchestrator.training.memory.measure` reads a list of requests from standard input and answers each with a
line of JSON: {"anatomy": ...}, {"refused": what cannot be} or {"error": why it did not work}. No weight and no gradient
ever exists.
"""

import dataclasses
import importlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from orchestrator.errors import OrchError
from orchestrator.records import record
from orchestrator.training.config import EngineConfig, LayerDecay, OptimConfig
from orchestrator.training.engine import prepare
from orchestrator.training.memory.anatomy import Anatomy, Line, envelope
from orchestrator.training.memory.sketch import Sitting
from orchestrator.training.memory.tape import Tape, fused_attention
from orchestrator.training.optim import freeze, parameter_groups

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ADAMW, MUON = 8, 4  # bytes an element: two fp32 moments, one momentum
FEW, MORE = 2, 3  # samples of the two micro-batches; a single one is laid out in other ways
ELSEWHERE, BACKWARD = "other", "backward"  # where something is made that no part makes: loss, batch; on the way back


@record
class Request:
    """What to look at, as plain data."""

    opener: str
    plain: Mapping[str, Any]
    learning: tuple[str, ...]
    precision: str  # bf16, fp16 or fp32
    recomputes: bool  # activation checkpointing
    eager: bool  # attention by whole tables
    on_gpu: bool
    optim: Mapping[str, Any]  # what puts parameters into groups: fields of OptimConfig


def measure(request: Request) -> Anatomy:
    """Builds the model and runs two micro-batches forward and backward, all without data."""
    module, _, function = request.opener.partition(":")
    sitting: Sitting = getattr(importlib.import_module(module), function)(request.plain)
    model = _model(sitting, request)
    names = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    few, uses = _run(sitting, model, FEW, request)
    more, _ = _run(sitting, model, MORE, request)
    groups = parameter_groups(model, _optim(request.optim))
    group_of = {id(p): place for place, group in enumerate(groups) for p in group["params"]}
    buffers: dict[str, int] = {}
    for name, buffer in model.named_buffers():
        part = _part_of(name, sitting.parts)
        buffers[part] = buffers.get(part, 0) + buffer.nbytes
    return Anatomy(
        numels=tuple(parameter.numel() for parameter in model.parameters()),
        parts=tuple(_part_of(name, sitting.parts) for name in names),
        groups=(numbers := tuple(group_of.get(id(parameter), -1) for parameter in model.parameters())),
        moments=tuple(0 if number < 0 else MUON if groups[number]["muon"] else ADAMW for number in numbers),
        buffers=buffers,
        uses=uses,
        released=_lines(few, more, gradients_stay=False),
        kept=_lines(few, more, gradients_stay=True),
        at_peak={part: _line(few.at_peak.get(part, 0), more.at_peak.get(part, 0)) for part in more.at_peak},
        flops=_line(few.flops, more.flops),
    )


def _model(sitting: Sitting, request: Request) -> nn.Module:
    with torch.device("meta"):
        model = sitting.build_model()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(DTYPES[request.precision])
    freeze(model, request.learning)
    attention: Literal["eager"] | None = "eager" if request.eager else None
    prepare(model, EngineConfig(activation_checkpointing=request.recomputes, attention=attention))
    return model.train()


def _optim(plain: Mapping[str, Any]) -> OptimConfig:
    decay = plain["layer_decay"]
    decay = None if decay is None else LayerDecay(**decay)
    return OptimConfig(**{**plain, "lr": 1.0, "muon_skips": tuple(plain["muon_skips"]), "layer_decay": decay})


def _run(
    sitting: Sitting, model: nn.Module, samples: int, request: Request
) -> tuple[Tape, tuple[tuple[int, ...], ...]]:
    """Returns what was alive from one operation to the next, and which parameters each module call needed."""
    batch = sitting.batch(samples)
    tape, order = Tape([*model.parameters(), *model.buffers()]), _Order(model)
    with ExitStack() as hooks:
        for parameter in model.parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(tape.let_go)  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
        for name, part in model.named_modules():
            if (own := _part_of(f"{name}.", sitting.parts)) != ELSEWHERE:  # whoever calls it, the part or the model
                _follow(part, own, tape, hooks)
        order.follow(hooks)
        tape.take(_tensors(batch))
        with fused_attention(on_gpu=request.on_gpu), tape:
            losses = sitting.loss(model, batch)
            order.turn()
            tape.part = BACKWARD
            losses.total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return tape, order.uses()


def _follow(part: nn.Module, name: str, tape: Tape, hooks: ExitStack) -> None:
    """Tells the tape which part of the model computes."""
    before: list[str] = []

    def enter(*_: object) -> None:
        before.append(tape.part)
        tape.part = name

    def leave(*_: object) -> None:
        tape.part = before.pop()

    hooks.callback(part.register_forward_pre_hook(enter).remove)
    hooks.callback(part.register_forward_hook(leave, always_call=True).remove)


class _Order:
    """Notes which parameters each module call needs, forward; backward it is the other way round."""

    def __init__(self, model: nn.Module) -> None:
        numbers = {id(parameter): number for number, parameter in enumerate(model.parameters())}
        self._needs = {
            module: tuple(numbers[id(p)] for p in module.parameters(recurse=False))
            for module in model.modules()
            if any(True for _ in module.parameters(recurse=False))
        }
        self._forward: list[tuple[tuple[int, ...], bool]] = []  # and whether something flows back through the call
        self._turned = False

    def follow(self, hooks: ExitStack) -> None:
        for module in self._needs:
            hooks.callback(module.register_forward_hook(self._called).remove)

    def turn(self) -> None:
        """Stops noting: what runs forward from now on is computed again for the sake of the backward pass."""
        self._turned = True

    def uses(self) -> tuple[tuple[int, ...], ...]:
        back = [needs for needs, flows in reversed(self._forward) if flows]
        return (*(needs for needs, _ in self._forward), *back)

    def _called(self, module: nn.Module, _inputs: object, outputs: Any) -> None:
        if not self._turned:
            self._forward.append((self._needs[module], any(tensor.requires_grad for tensor in _tensors(outputs))))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in a batch or in what a module returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def _lines(few: Tape, more: Tape, *, gradients_stay: bool) -> tuple[Line, ...]:
    """Draws a line through each moment of both runs; through their highest moments where they differ in steps."""

    def alive(tape: Tape) -> list[int]:
        return [live + gradients * gradients_stay for live, gradients in tape.moments]

    first, second = alive(few), alive(more)
    if len(first) != len(second):
        first, second = [max(first)], [max(second)]
    return envelope(_line(low, high) for low, high in zip(first, second, strict=True))


def _line(few: float, more: float) -> Line:
    per_sample = (more - few) / (MORE - FEW)
    return Line(fixed=few - per_sample * FEW, per_sample=per_sample)


def _part_of(name: str, parts: Sequence[str]) -> str:
    return next((part for part in parts if name.startswith(f"{part}.")), ELSEWHERE)


def main() -> int:
    """Answers requests, one after the other."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for plain in json.load(sys.stdin):
        answer: dict[str, Any]
        try:
            answer = {"anatomy": measure(Request(**{**plain, "learning": tuple(plain["learning"])})).to_plain()}
        except OrchError as error:
            answer = {"refused": str(error)}
        except Exception as error:  # noqa: BLE001 - an estimate that fails must not take a plan with it
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
