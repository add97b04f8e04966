"""What an image encoder that boxes can prompt says of itself to those who build on it. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.folders import read_settings


@record
class PrompterConfig:
    """CLOC's Prompter: one transformer layer of the image encoder's width, with one head (section 3.2 of the paper).

    The paper gives neither its MLP nor how coordinates enter the sinusoids, so both are settings: `mlp_ratio` is what
    ViTs have, `temperature` what DETR has (0..1 of the square makes one turn of the fastest wave; below 1 the fastest
    wave makes 1 / temperature turns).
    """

    mlp_ratio: int = 4
    temperature: float = 10_000.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio must be 1 or more, not {self.mlp_ratio}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature:g}")


@record
class PrompterSizes:
    """A Prompter beside its image encoder, resolved to all that rebuilds it."""

    embedding_size: int  # of the space that images, texts and regions share
    config: PrompterConfig

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "PrompterSizes":
        """Rebuilds it from JSON; KeyError, TypeError or ValueError if it is something else."""
        return cls(embedding_size=plain["embedding_size"], config=PrompterConfig(**plain["config"]))


@record
class Promptable:
    """An image encoder with the Prompter that was trained with it."""

    vision: Mapping[str, Any]  # CLIPVisionConfig
    prompter: PrompterSizes


def promptable_in(blueprint: object) -> Promptable | None:
    """Finds the two in a model's blueprint, as JSON holds it; None where it has no Prompter."""
    if not isinstance(blueprint, Mapping):
        return None
    try:
        sizes = {"embedding_size": blueprint["embedding_size"], "config": blueprint["prompter"]}
        return Promptable(vision=dict(blueprint["vision"]), prompter=PrompterSizes.from_plain(sizes))
    except (KeyError, TypeError, ValueError):
        return None


def read_promptable(folder: Path) -> Promptable:
    """Reads the two off an export's config.json; InputError where it has no Prompter."""
    found = promptable_in(read_settings(folder).get("blueprint"))
    if found is None:
        raise InputError(f"{folder} has no Prompter: give an export of a CLOC")
    return found
