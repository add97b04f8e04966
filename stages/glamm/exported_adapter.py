"""The adapter alone, in the layout of PEFT: for those who have the language model that it was trained on."""

from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.errors import InputError
from orchestrator.training.foreign.adapters import SETTINGS, Renamed
from orchestrator.training.foreign.writing import write_file
from orchestrator.training.weights import StoredWeights
from stages.exporting import CARD
from stages.glamm.config import Blueprint
from stages.glamm.tokenizer import Vocabulary

WEIGHTS = "adapter_model.safetensors"
_OURS, _PEFT = "language_model.", "base_model.model."
# new tokens make them longer, so no base has them: PEFT keeps them whole beside the adapter
WHOLE = ("embed_tokens", "lm_head")


def write_adapter(
    checkpoint: Path, directory: Path, blueprint: Blueprint, vocabulary: Vocabulary, *, card: str
) -> dict[str, Any]:
    """Writes the folder, holding one tensor in memory at a time; returns facts."""
    if blueprint.lora is None:
        raise InputError(f"config.form: {checkpoint} has no adapters to export alone; allowed: merged")
    stored = StoredWeights(checkpoint)
    names = {_named(name): name for name in sorted(stored.entries) if _belongs(name)}
    facts = write_file(Renamed(stored, names), directory / WEIGHTS)
    for name, content in vocabulary.files().items():
        (directory / name).write_bytes(content)
    (directory / CARD).write_text(card, encoding="utf-8")
    whole = [part for part in WHOLE if any(name.endswith(f"{part}.weight") for name in names)]
    write_json(directory / SETTINGS, _settings(blueprint, whole))
    return {**facts, "form": "adapter"}


def _belongs(name: str) -> bool:
    return name.startswith(_OURS) and (".lora_" in name or name.removesuffix(".weight").endswith(WHOLE))


def _named(name: str) -> str:
    return _PEFT + name.removeprefix(_OURS).replace(".default.", ".")


def _settings(blueprint: Blueprint, whole: list[str]) -> dict[str, Any]:
    lora = blueprint.lora
    assert lora is not None  # noqa: S101 - asked before
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": blueprint.language.get("_name_or_path", ""),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "modules_to_save": whole,
        "bias": "none",
        "inference_mode": True,
    }
