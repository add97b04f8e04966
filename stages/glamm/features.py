"""What the frozen image encoders made of an image: kept beside it in its tar, read in the place of its pixels.

Legend: K hidden states that are read, N patches, C channels, H W cells.
"""

from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError

MEMBER = "features.safetensors"  # the extension of a sample's features in its tar
FACT = "features"  # of the manifest of shards that have them
PATCHES, IMAGE = "patches_KNC", "image_CHW"


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """The features of one image; as in `batches.Seen`."""

    patches_KNC: Tensor
    image_CHW: Tensor


def read_features(drawn: Drawn) -> ImageFeatures:
    """Reads the features of a sample."""
    content = drawn.members.get(MEMBER)
    if content is None:
        raise InputError(f"sample {drawn.key!r} of {drawn.source} has no {MEMBER}: config.features wants one of each")
    try:
        found = load(content)
        return ImageFeatures(patches_KNC=found[PATCHES], image_CHW=found[IMAGE])
    except (SafetensorError, KeyError) as error:
        raise InputError(f"sample {drawn.key!r} of {drawn.source}: its {MEMBER} cannot be read ({error})") from None
