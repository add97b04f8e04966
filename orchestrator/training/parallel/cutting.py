"""Cuts the language models inside a finished model: layers that a plan names give way to this rank's share of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.training.elastic import Piece
from orchestrator.training.optim import whole_shape
from orchestrator.training.parallel.dropout import ShareDropout
from orchestrator.training.parallel.grid import Grid
from orchestrator.training.parallel.layers import Columns, Logits, Rows, Words
from orchestrator.training.parallel.plans import KEY, PLANS, Part, why_not
from orchestrator.training.parallel.sequence import Tokens
from orchestrator.training.weights import fill

Gathered = Callable[[Sequence[Tensor]], AbstractContextManager[object]]


def as_it_is(_: Sequence[Tensor]) -> AbstractContextManager[object]:
    """Gathers nothing: parameters are whole."""
    return nullcontext()


@record
class How:
    """What an engine wants of a cut."""

    gather_logits: bool  # else the head gives each rank its share of the words
    cut_tokens: bool  # sequence parallelism
    gathered: Gathered  # makes parameters whole for a while, where ZeRO-3 keeps them in pieces


@record
class Cut:
    """How a parameter is shared: by rows of equal number, the last padded, or by columns."""

    shape: tuple[int, ...]  # of the whole parameter
    by_columns: bool = False

    def share(self, whole: Tensor, grid: Grid) -> Tensor:
        """Takes this rank's share of a whole parameter, with zeros for padding."""
        if self.by_columns:
            return whole.chunk(grid.degree, dim=1)[grid.share]
        height = -(-self.shape[0] // grid.degree)
        rows = whole[height * grid.share : height * (grid.share + 1)]
        return torch.cat([rows, rows.new_zeros(height - len(rows), *self.shape[1:])])

    def place(self, piece: Piece, grid: Grid) -> Piece:
        """Says where in the whole parameter a piece of this rank's share lies, without padding."""
        numel, held = prod(self.shape), prod(piece.shape)
        start = min(held * grid.share + piece.start, numel)
        blocks = grid.degree if self.by_columns else 1
        placed = replace(
            piece, shape=self.shape, start=start, local=piece.local[: numel - start], replicated=False, blocks=blocks
        )
        return replace(placed, copy=grid.reader, copies=grid.readers) if piece.replicated else placed


def cut_model(model: nn.Module, grid: Grid, how: How) -> dict[str, Cut]:
    """Cuts every language model that has a plan; returns how, by the names of the parameters.

    The weights that the model has are carried over. Raises InputError where there is nothing to cut, or it cannot be.

    Collective: every rank must call.
    """
    found = {name: part for name, part in model.named_modules() if type(part).__name__ in PLANS}
    if not found:
        parts = {type(part) for part in model.modules() if type(part).__module__.startswith("transformers.")}
        kinds = sorted(part.__name__ for part in parts if part.__name__.endswith(("Model", "ForCausalLM")))
        raise InputError(
            f"{KEY}: nothing to cut in {type(model).__name__} ({', '.join(kinds) or 'no model of transformers'}); "
            f"known: {', '.join(PLANS)}"
        )
    return {
        f"{name}.{parameter}" if name else parameter: cut
        for name, language_model in found.items()
        for parameter, cut in _cut_language_model(language_model, grid, how).items()
    }


def _cut_language_model(model: nn.Module, grid: Grid, how: How) -> dict[str, Cut]:
    architecture, settings = type(model).__name__, _settings(model)
    if problem := why_not(architecture, settings, grid.degree):
        raise InputError(f"{KEY}: {problem}")
    plan, cuts = PLANS[architecture], dict[str, Cut]()
    tokens = Tokens(grid) if how.cut_tokens else None
    for name, old in list(model.named_modules()):
        layer, role = _role(name)
        part = plan.part(layer)
        new = None if part is None or role == "around" else _successor(old, part, role, grid, tokens)
        if new is None:
            continue
        for leaf, parameter in list(old.named_parameters(recurse=False)):
            cut = Cut(shape=tuple(whole_shape(parameter)), by_columns=isinstance(new, Rows))
            shared = not (leaf == "bias" and isinstance(new, Rows))  # added once, after the sum
            with how.gathered([parameter]):
                whole = parameter.detach()
                fill(new.get_parameter(leaf), cut.share(whole, grid) if shared else whole)
            if shared:
                cuts[f"{name}.{leaf}"] = cut
        model.set_submodule(name, new.train(old.training))
    words = Logits(settings["vocab_size"], grid, gather=how.gather_logits)
    model.get_submodule(plan.head).register_forward_hook(words)
    if tokens is not None:
        tokens.hook(model, plan, cuts)
    return cuts


def _role(name: str) -> tuple[str, str]:
    """Splits the name of a module into that of the layer and what it is to it, if PEFT has adapted the layer."""
    for role in ("base_layer", "lora_A", "lora_B", "lora_dropout"):
        layer, found, adapter = name.partition(f".{role}")
        if found:
            return layer, role if adapter or role == "base_layer" else "around"
    return name, "itself"


def _successor(old: nn.Module, part: Part, role: str, grid: Grid, tokens: Tokens | None) -> nn.Module | None:
    """Makes this rank's share of a layer or of an adapter's part; None where that stays whole."""
    if _stays_whole(old, part, role):
        return None
    if isinstance(old, nn.Dropout):
        return ShareDropout(old.p, grid.share)
    if isinstance(old, nn.Embedding) and part == "embedding" and role == "itself":
        return Words(old, grid, padded=_padded(old.num_embeddings, grid))
    if isinstance(old, nn.Linear) and part in {"columns", "head"}:
        sums_gradient = part == "head" or tokens is None  # else it is added up where the tokens were gathered
        return Columns(old, grid, padded=_padded(old.out_features, grid), sums_gradient=sums_gradient)
    if isinstance(old, nn.Linear) and part == "rows":
        return Rows(old, grid, tokens)
    raise InputError(
        f"{KEY}: a {type(old).__name__} stands in the {part} of the language model; known are torch's Linear and "
        "Embedding, and LoRA of PEFT on a Linear"
    )


def _stays_whole(old: nn.Module, part: Part, role: str) -> bool:
    children = dict(old.named_children())
    if role == "itself" and "base_layer" in children:  # PEFT's wrapper: its parts come by themselves
        if list(children["lora_magnitude_vector"].children()):
            raise InputError(f"{KEY}: DoRA compares whole rows of a matrix, which no rank has; allowed: plain LoRA")
        return True
    if role == "lora_dropout":
        return part != "rows" or not isinstance(old, nn.Dropout)
    return role == ("lora_B" if part == "rows" else "lora_A")


def _padded(words: int, grid: Grid) -> int:
    return -(-words // grid.degree) * grid.degree


def _settings(model: nn.Module) -> Mapping[str, Any]:
    config: Any = model.config
    settings: Mapping[str, Any] = config.to_dict()
    return settings
