"""Which stored tensor fills which weight of a model: rules as data, checked in full before anything is written."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.training.foreign.source import TensorSource, few
from orchestrator.training.optim import whole_shape
from orchestrator.training.weights import LoadReport, fill

log = logging.getLogger(__name__)

NOTHING: Mapping[str, int] = MappingProxyType({})


@record
class Rule:
    """Stored names of one form, and where their tensors belong."""

    stored: str  # a regular expression over the whole name
    name: str | None  # in the model, with \1 and the like; null: known, and nothing that this model has
    change: Callable[[Tensor], Tensor] | None = None  # what makes the stored tensor the model's; keeps its shape


@record
class Layout:
    """How one publisher names weights."""

    title: str
    sign: str  # a regular expression: a stored name that only this layout has
    rules: tuple[Rule, ...]  # the first that fits a name counts


@record
class Placed:
    """A weight of the model and the stored tensor that it takes."""

    name: str
    stored: str
    change: Callable[[Tensor], Tensor] | None


def rules_of(*pairs: tuple[str, str | None]) -> tuple[Rule, ...]:
    """Makes rules of (stored, name)."""
    return tuple(Rule(stored=stored, name=name) for stored, name in pairs)


def below(prefix: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Makes rules for the same names below a prefix of the stored ones."""
    return tuple(
        Rule(stored=re.escape(prefix) + f"(?:{rule.stored})", name=rule.name, change=rule.change) for rule in rules
    )


def recognise(source: TensorSource, layouts: Sequence[Layout]) -> Layout:
    """Finds the layout of a source by its sign; a source that shows none is refused."""
    for layout in layouts:
        if any(re.fullmatch(layout.sign, name) for name in source.entries):
            return layout
    known = ", ".join(layout.title for layout in layouts)
    raise InputError(f"{source.label} is none of: {known}; it has {few(sorted(source.entries), 5)}")


def fill_from(
    wanted: Mapping[str, Tensor], source: TensorSource, rules: Sequence[Rule], *, growing: Mapping[str, int] = NOTHING
) -> LoadReport:
    """Fills weights of a model, also one that ZeRO-3 partitions: each rank reads each tensor and keeps what it holds.

    `growing` names weights whose rows are tokens, and how many of these any publisher of the tokenizer has: where the
    numbers of rows differ, so many are taken, and the rest begin at the mean of them. Any other tensor of another shape
    is refused, and so are adapters where the model has none: either would be lost silently.
    """
    placed, report = _matched(wanted, source, rules, growing)
    for place in placed:
        stored = source.read(place.stored)
        tensor = place.change(stored) if place.change is not None else stored
        goal = wanted[place.name]
        if place.name in report.resized:
            tensor = with_mean_rows(tensor[: growing[place.name]], whole_shape(goal)[0])
        fill(goal, tensor)
    log.info("weights of %s: %s", source.label, report)
    return report


def match(
    wanted: Mapping[str, Tensor], source: TensorSource, rules: Sequence[Rule], *, growing: Mapping[str, int] = NOTHING
) -> LoadReport:
    """Says what `fill_from` would do, and refuses what it would refuse; reads no tensor, so either may be on `meta`."""
    return _matched(wanted, source, rules, growing)[1]


def with_mean_rows(rows: Tensor, count: int) -> Tensor:
    """Adds rows for new tokens: the mean of the old ones, which no token is far from."""
    return torch.cat([rows, rows.float().mean(0, keepdim=True).to(rows.dtype).expand(count - rows.shape[0], -1)])


def _matched(
    wanted: Mapping[str, Tensor], source: TensorSource, rules: Sequence[Rule], growing: Mapping[str, int]
) -> tuple[list[Placed], LoadReport]:
    placed, unused = _place(wanted, source, rules)
    resized = _check(wanted, source, placed, growing)
    loaded = {place.name for place in placed}
    return placed, LoadReport(
        loaded=tuple(sorted(loaded)),
        resized=resized,
        missing=tuple(sorted(set(wanted) - loaded)),
        unexpected=tuple(unused),
    )


def _place(wanted: Mapping[str, Tensor], source: TensorSource, rules: Sequence[Rule]) -> tuple[list[Placed], list[str]]:
    # under LoRA a linear layer keeps its weight one level deeper
    plain = {name.replace(".base_layer.", "."): name for name in wanted}
    compiled = [(re.compile(rule.stored), rule) for rule in rules]
    placed: dict[str, Placed] = {}
    unused = []
    for stored in source.entries:
        found = next(((match, rule) for form, rule in compiled if (match := form.fullmatch(stored))), None)
        name = found[0].expand(found[1].name) if found is not None and found[1].name is not None else None
        goal = None if name is None else plain.get(name.replace(".base_layer.", "."))
        if found is None or goal is None:
            unused.append(stored)
        else:
            placed[goal] = Placed(name=goal, stored=stored, change=found[1].change)
    if adapters := [name for name in unused if ".lora_" in name]:
        raise InputError(
            f"{source.label} has adapters that the model lacks ({few(adapters)}): give the model adapters of the same "
            "rank, or merge them first"
        )
    return list(placed.values()), unused


def _check(
    wanted: Mapping[str, Tensor], source: TensorSource, placed: Sequence[Placed], growing: Mapping[str, int]
) -> tuple[str, ...]:
    """Compares all shapes; returns the weights that have other numbers of rows than are stored."""
    resized, wrong = [], []
    for place in placed:
        given, needed = source.entries[place.stored].shape, tuple(whole_shape(wanted[place.name]))
        if given == needed:
            continue
        if place.name in growing and given[1:] == needed[1:] and given[0] >= growing[place.name]:
            resized.append(place.name)
        else:
            wrong.append(f"{place.stored} has the shape {given}, the model needs {needed} for {place.name}")
    if wrong:
        raise InputError(f"{source.label}: {'; '.join(wrong[:5])}" + (" and more" if len(wrong) > 5 else ""))
    return tuple(resized)
