"""Adapters of PEFT: merged as PEFT merges them, kept where the model has some, refused where they do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.training.foreign.adapters import keep_adapter, merge_adapter, read_adapter
from orchestrator.training.foreign.source import Held


class Small(nn.Module):
    """Has every kind of layer that an adapter may be on."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.q_proj = nn.Linear(6, 4)
        self.v_proj = nn.Linear(4, 6)
        self.conv = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(6, 5, bias=False)


def _adapted(folder: Path, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Saves an adapter with PEFT; returns the weights before, and after PEFT has merged it."""
    torch.manual_seed(1)
    base = Small()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    options = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], **settings}
    model = get_peft_model(base, LoraConfig(**options))
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
    model.save_pretrained(str(folder))
    merged = model.merge_and_unload().state_dict()
    return before, {name: tensor.clone() for name, tensor in merged.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 7}},
        {"modules_to_save": ["head"]},
        {"target_modules": ["words", "conv", "q_proj"]},
        {"bias": "lora_only"},
        {"bias": "all"},
    ],
    ids=["plain", "rslora", "patterns", "modules to save", "embedding and convolution", "own biases", "all biases"],
)
def test_a_merged_adapter_gives_the_weights_that_peft_gives(tmp_path: Path, settings: dict[str, Any]) -> None:
    before, theirs = _adapted(tmp_path, **settings)

    merged = merge_adapter(Held("base", before), read_adapter(tmp_path))

    assert set(merged.entries) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close({name: merged.read(name)}, {name: tensor})
    assert any(not torch.equal(theirs[name], before[name]) for name in before)


def test_a_merged_weight_is_as_exact_as_its_more_exact_part(tmp_path: Path) -> None:
    before, _ = _adapted(tmp_path)
    halves = {name: tensor.bfloat16() for name, tensor in before.items()}

    merged = merge_adapter(Held("base", halves), read_adapter(tmp_path))

    assert merged.entries["q_proj.weight"].dtype == merged.read("q_proj.weight").dtype == torch.float32
    assert merged.read("head.weight").dtype == torch.bfloat16


def test_a_merged_weight_of_many_blocks_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, _ = _adapted(tmp_path)
    at_once = merge_adapter(Held("base", before), read_adapter(tmp_path)).read("v_proj.weight")
    monkeypatch.setattr("orchestrator.training.foreign.adapters.BLOCK_ELEMENTS", 9)  # two rows

    assert torch.equal(merge_adapter(Held("base", before), read_adapter(tmp_path)).read("v_proj.weight"), at_once)


def test_a_kept_adapter_has_the_names_of_a_model_with_adapters(tmp_path: Path) -> None:
    before, _ = _adapted(tmp_path, modules_to_save=["head"])
    stored = load_file(tmp_path / "adapter_model.safetensors")

    kept = keep_adapter(Held("base", before), read_adapter(tmp_path))

    assert torch.equal(kept.read("q_proj.weight"), before["q_proj.weight"])
    for part in "AB":
        assert torch.equal(
            kept.read(f"q_proj.lora_{part}.default.weight"), stored[f"base_model.model.q_proj.lora_{part}.weight"]
        )
    assert torch.equal(kept.read("head.weight"), stored["base_model.model.head.weight"])
    assert set(kept.entries) == set(before) | {f"{q}_proj.lora_{part}.default.weight" for q in "qv" for part in "AB"}


def test_longer_embeddings_and_heads_may_take_the_place_of_shorter_ones(tmp_path: Path) -> None:
    before, _ = _adapted(tmp_path, modules_to_save=["words", "head"])
    before["words.weight"], before["head.weight"] = before["words.weight"][:8], before["head.weight"][:4]

    merged = merge_adapter(Held("base", before), read_adapter(tmp_path))

    assert merged.read("words.weight").shape == merged.entries["words.weight"].shape == (11, 6)


def _settings(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")

    return edit


Q = "base_model.model.q_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_settings(r=4), r"says rank 4, but .*lora_A.weight is \(3, 6\)"),
        (_settings(r=0), "r 0 and lora_alpha 5 must be numbers"),
        (_settings(peft_type="IA3"), "peft_type 'IA3' cannot be merged; allowed: 'LORA'"),
        (_settings(use_dora=True), "use_dora makes an adapter more"),
        (_tensors(lambda t: t.pop(f"{Q}.lora_B.weight")), r"only one half of the adapter of q_proj\.weight"),
        (_tensors(lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(3, 9)})), r"q_proj.weight is \(4, 6\) in base"),
        (_tensors(lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(4)})), "lora_magnitude_vector is no"),
        (_tensors(lambda t: t.update({"base_model.model.gone.weight": torch.ones(4)})), "replace gone.weight, which"),
        (_tensors(lambda t: t.update({"base_model.model.head.weight": torch.ones(5, 9)})), r"is \(5, 9\), head.weight"),
        (
            _tensors(lambda t: t.update({f"x.lora_{n}.weight": torch.ones(3, 3) for n in "AB"})),
            r"adapts x\.weight, which base does not have",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), r"adapter_config\.json cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "but none of adapter_model"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    before, _ = _adapted(tmp_path)
    damage(tmp_path)

    with pytest.raises(InputError, match=message):
        merge_adapter(Held("base", before), read_adapter(tmp_path))
