"""Fresh weights, as a function of (seed, name): the same on any number of ranks, whole or partitioned by ZeRO-3."""

import hashlib
import math
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn

from orchestrator.training.holdings import saved_buffers
from orchestrator.training.optim import whole_shape
from orchestrator.training.weights import fill

# the module's path, the module, its weight's last name and shape -> the spread of the values; None: as by default
Spread = Callable[[str, nn.Module, str, torch.Size], float | None]


def draw_fresh(
    model: nn.Module, seed: int, *, spread: Spread = lambda *_: None, keep: Collection[str] = (), buffers: bool = False
) -> None:
    """Fills every weight that is not to be kept; each rank writes what it holds of it.

    Where `spread` says nothing, matrices get 1 / sqrt(fan in), embeddings 0.02, biases 0 and other vectors 1.
    `buffers`: the saved ones too, as normal numbers (SAM's random frequencies are one).
    """
    for path, module, leaf, parameter in _weights(model):
        name = f"{path}.{leaf}" if path else leaf
        if name not in keep:
            std = spread(path, module, leaf, whole_shape(parameter))
            std = usual_std(module, leaf, whole_shape(parameter)) if std is None else std
            fill(parameter, drawn(name, whole_shape(parameter), std, seed))
    for name, buffer in saved_buffers(model) if buffers else ():
        if name not in keep:
            fill(buffer, drawn(name, buffer.shape, 1.0, seed))


def usual_std(module: nn.Module, leaf: str, shape: torch.Size) -> float | None:
    """Returns the spread of a weight's values; None: those that norms and biases begin with."""
    if isinstance(module, nn.Embedding):
        return 0.02
    if leaf.endswith("bias") or len(shape) < 2:
        return None
    return 1 / math.sqrt(fan_in(module, shape))


def fan_in(module: nn.Module, shape: torch.Size) -> int:
    """Counts the inputs of each output of a layer."""
    if isinstance(module, nn.ConvTranspose2d):  # with stride = kernel each output pixel sees one input pixel
        return shape[0]
    return math.prod(shape[1:])


def drawn(name: str, shape: torch.Size, std: float | None, seed: int) -> Tensor:
    """Returns normal numbers that follow from seed and name alone; None: zeros for a bias, ones for any other."""
    if std is None:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return torch.randn(shape, generator=generator_of(name, seed)) * std


def generator_of(name: str, seed: int) -> torch.Generator:
    """Returns a generator whose state follows from seed and name alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) % 2**63)


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Yields each weight once, with its module: what is tied has several names, and only the first counts."""
    names = {name for name, _ in model.named_parameters()}
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if (f"{path}.{leaf}" if path else leaf) in names:
                yield path, module, leaf, parameter
