"""GLaMM: a language model that sees an image, reads boxes and points at pixels.

from stages.glamm import load

glamm = load("runs/quickstart/export/model")
said = glamm.caption("photo.jpg")             # said.caption; said.phrases: phrase, span, mask_HW
cup = glamm.refer("photo.jpg", "the left cup")  # cup.text; cup.masks_HW
glamm.describe_region("photo.jpg", (10, 10, 60, 60))
glamm.chat("photo.jpg", [{"role": "user", "content": "What is there?"}]).caption
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.glamm.assistant import Assistant


def load(
    path: str | Path, *, vision: str | Path | None = None, device: str | None = None, dtype: str = "float32"
) -> "Assistant":
    """Opens a GLaMM to ask: an export, a checkpoint of a run, or a folder of published weights.

    Published GLaMMs hold no CLIP: `vision` names its folder. `device` is a GPU where there is one; `dtype` is float32,
    float16 or bfloat16, the last of which halves memory and is what GLaMM was trained in. Nothing is downloaded, and no
    code that came with weights is run.
    """
    from stages.glamm.opening import open_assistant

    return open_assistant(Path(path), vision=None if vision is None else Path(vision), device=device, dtype=dtype)
