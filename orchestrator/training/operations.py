"""Counts the floating point operations that a model itself needs, while it computes."""

import logging
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.training.memory.tape import FORMULAS

log = logging.getLogger(__name__)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Adds up the operations inside `with` blocks: matrix products, convolutions and attention, by torch's formulas.

    What activation checkpointing computes a second time is left out, as MFU is defined (Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B): of a backward pass, only that is recomputed which could itself be differentiated.
    """

    def __init__(self) -> None:
        """Has counted nothing."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.counted = 0
        self.unknown = False  # something could not be counted: then nothing is concluded from the rest

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operation, and counts it."""
        del types
        named = kwargs or {}
        made = func(*args, **named)
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None or _recomputing() or self.unknown:
            return made
        try:
            self.counted += formula(*args, **named, out_val=made)
        except Exception as error:  # noqa: BLE001 - whatever a formula does not know, training goes on
            log.info("operations are not counted: %s has no formula that fits: %s", func, error)
            self.unknown = True
        return made


def _recomputing() -> bool:
    """Tells whether a backward pass computes something forward again."""
    in_backward: bool = torch._C._current_graph_task_id() != -1  # noqa: SLF001 - torch's own checkpointing asks so
    return in_backward and torch.is_grad_enabled()
