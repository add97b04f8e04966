"""Low-rank adapters on a language model: what a recipe says of them, and how they get into the model. No torch."""

from collections.abc import Container
from typing import TYPE_CHECKING

from orchestrator.records import record

if TYPE_CHECKING:
    from torch import nn


@record
class LoraConfig:
    """Low-rank adapters on the language model's linear layers with these names."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")


def inject_lora(language_model: "nn.Module", config: LoraConfig) -> None:
    """Adds low-rank adapters in place, so that weight names gain no prefix."""
    from peft import LoraConfig as PeftLora
    from peft import inject_adapter_in_model

    settings = PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
    )
    inject_adapter_in_model(settings, language_model)


def stored_name(name: str, stored: Container[str]) -> str:
    """Says under which name a weight is stored: a model without adapters has no base layers."""
    return name if name in stored else name.replace(".base_layer.", ".")
