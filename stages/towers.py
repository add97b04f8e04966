"""The image towers that a recipe may choose between: CLIP's, or EVA-02's. Imports no torch.

A CLIP comes as a folder that tells its sizes. EVA-02's files hold tensors alone, so the recipe tells them. Released:

                        patch  width  layers  heads  MLP   side   inner_norm  rotary_grid
    EVA02-CLIP B/16       16     768    12      12   2048  224    true        16
    EVA02-CLIP L/14       14    1024    24      16   2730  224    true        16
    EVA02-CLIP L/14-336   14    1024    24      16   2730  336    true        16
    EVA-02 L/14, pre-trained on masked images alone: as L/14, inner_norm: false

PixelLLM runs the last one with `rotary_grid: null`: positions of its 27 x 27 patches count patches, as released.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.records import record
from stages.sizes import ViTSizes, vit_settings

TowerKind = Literal["clip", "eva02"]
PAIRS = 4  # channels of a head that rotary positions take together: a pair for rows, a pair for columns


@record
class EvaConfig:
    """What EVA-02's towers differ in beside their sizes."""

    inner_norm: bool = True  # of what attention gives, before it is projected
    rotary_grid: int | None = 16  # positions are scaled to a square of so many patches a side; null: they are not
    # in training, also of a tower that does not learn: how often the last layer is skipped; earlier ones less
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.rotary_grid is not None and self.rotary_grid < 1:
            raise ValueError(f"rotary_grid must be above 0, or null, not {self.rotary_grid}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), not {self.drop_path}")


class TowerConfig(ViTSizes, Protocol):
    """A tower as a recipe asks for it."""

    @property
    def kind(self) -> TowerKind:
        """Returns whose tower it is."""

    @property
    def path(self) -> Path | None:
        """Returns where its weights lie: of CLIP a folder, of EVA-02 a file."""

    @property
    def eva(self) -> EvaConfig | None:
        """Returns what only EVA-02 has; null: as EVA02-CLIP."""


def eva_settings(config: TowerConfig, *, image_size: int, normed: bool) -> dict[str, Any]:
    """Returns an EVA-02's settings as a blueprint holds them; `normed`: its states have been through the last norm."""
    settings = vit_settings(config, image_size=image_size)
    return {**settings, **asdict(config.eva or EvaConfig()), "normed": normed}


def tower_faults(config: TowerConfig) -> dict[str, str]:
    """Finds what is wrong with an EVA-02, or with a CLIP that should be none: key below it -> message."""
    if config.kind == "clip":
        return {} if config.eva is None else {"eva": f"is of kind eva02 alone, and kind is {config.kind}; say null"}
    found = {}
    if config.path is not None and not config.path.exists():
        found["path"] = f"{config.path} is not there: give a file with the weights of an EVA-02"
    if config.hidden_size % (PAIRS * config.heads):
        told = f"{PAIRS} x heads ({PAIRS * config.heads}) must divide hidden_size, which is {config.hidden_size}"
        found["heads"] = f"{told}: rotary positions turn pairs of channels, by rows and by columns"
    return found
