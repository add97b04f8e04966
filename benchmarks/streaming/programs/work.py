"""What is done with samples: the same code for every library."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Pair = tuple[bytes, bytes]  # the content of a sample: image and JSON


class Done(NamedTuple):
    """A batch that was worked on."""

    samples: int
    bytes: int  # delivered, or decoded: equal for every library that delivers everything
    images: Any = None  # a torch tensor of samples x height x width x 3
    texts: Any = None


def raw(pairs: Sequence[Pair]) -> Done:
    """Takes the bytes as they are."""
    return Done(len(pairs), sum(len(image) + len(text) for image, text in pairs))


def decode(pairs: Sequence[Pair]) -> Done:
    """Decodes images with Pillow, texts with json, and makes one tensor, as a trainer wants it."""
    import torch
    from PIL import Image

    images = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image, _ in pairs]
    texts = [json.loads(text) for _, text in pairs]
    stacked = torch.from_numpy(np.stack(images))
    return Done(len(pairs), stacked.nbytes, stacked, texts)


WORKS: Mapping[str, Callable[[Sequence[Pair]], Done]] = {"raw": raw, "decode": decode}
