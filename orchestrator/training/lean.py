"""DeepSpeed as ranks need it: without MLflow, which only its autotuner would use.

Loading it costs a rank 1,400 files and more time than the rest of DeepSpeed; a whole cluster reads them at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Lets imports within the block not find a module, unless it is loaded already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # how Python is told that there is none
    try:
        yield
    finally:
        del sys.modules[module]


with _without("mlflow"):
    import deepspeed

__all__ = ["deepspeed"]
