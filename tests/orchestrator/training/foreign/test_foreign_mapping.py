"""Rules place stored tensors in a model; whatever would be lost silently is named or refused."""

import pytest
import torch
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import Layout, Rule, below, fill_from, match, recognise, rules_of
from orchestrator.training.foreign.source import Held

RULES = (
    *rules_of((r"ignored\..+", None), (r"old\.(\d)\.(.+)", r"layers.\1.\2")),
    Rule(stored="turned", name="words.weight", change=lambda tensor: tensor.flip(0)),
)


def wanted() -> dict[str, Tensor]:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)]), "words": nn.Embedding(5, 2)})
    return dict(model.named_parameters())


def test_what_was_loaded_resized_left_fresh_and_unused_is_reported() -> None:
    model = wanted()
    before = model["layers.1.weight"].clone()
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    stored = {"old.0.weight": torch.ones(3, 2), "turned": rows, "ignored.x": torch.ones(1), "strange": torch.ones(1)}

    report = fill_from(model, Held("file", stored), RULES, growing={"words.weight": 2})

    assert report.loaded == ("layers.0.weight", "words.weight")
    assert report.resized == ("words.weight",)
    assert report.missing == ("layers.0.bias", "layers.1.bias", "layers.1.weight")
    assert report.unexpected == ("ignored.x", "strange")
    assert str(report).startswith("2 tensors loaded, 1 resized (words.weight), 3 missing")
    assert torch.equal(model["layers.0.weight"], torch.ones(3, 2))
    assert torch.equal(model["words.weight"], torch.tensor([[3.0, 6.0], [1.0, 2.0], *[[2.0, 4.0]] * 3]))
    assert torch.equal(model["layers.1.weight"], before)


def test_another_shape_is_refused_before_anything_is_written() -> None:
    model = wanted()
    before = {name: tensor.clone() for name, tensor in model.items()}
    stored = {"old.0.bias": torch.full((3,), 9.0), "old.0.weight": torch.ones(2, 3), "turned": torch.ones(7, 2)}

    with pytest.raises(InputError, match=r"old\.0\.weight has the shape \(2, 3\), the model needs \(3, 2\) .*turned"):
        fill_from(model, Held("file", stored), RULES, growing={"words.weight": 8})

    assert all(torch.equal(model[name], tensor) for name, tensor in before.items())


def test_rows_that_others_have_added_are_left_and_what_would_happen_is_told_before_anything_is_read() -> None:
    model = {name: tensor.to("meta") for name, tensor in wanted().items()}
    stored = {"turned": torch.tensor([[9.0, 9.0], [9.0, 9.0], [3.0, 6.0], [1.0, 2.0]])}

    planned = match(model, Held("file", {"turned": stored["turned"].to("meta")}), RULES, growing={"words.weight": 2})
    filled = fill_from(real := wanted(), Held("file", stored), RULES, growing={"words.weight": 2})

    assert planned == filled
    assert torch.equal(real["words.weight"], torch.tensor([[1.0, 2.0], [3.0, 6.0], *[[2.0, 4.0]] * 3]))


def test_rows_grow_only_where_they_are_tokens() -> None:
    with pytest.raises(InputError, match=r"turned has the shape \(2, 2\)"):
        fill_from(wanted(), Held("file", {"turned": torch.ones(2, 2)}), RULES)


def test_weights_under_adapters_are_found_and_adapters_without_a_place_are_refused() -> None:
    model = {"layers.0.base_layer.weight": torch.zeros(3, 2), "layers.0.lora_A.default.weight": torch.zeros(1, 2)}
    stored = {"old.0.weight": torch.ones(3, 2), "old.0.lora_A.default.weight": torch.ones(1, 2)}

    fill_from(model, Held("file", stored), RULES)

    assert all(bool(tensor.eq(1).all()) for tensor in model.values())
    with pytest.raises(InputError, match=r"file has adapters that the model lacks \(old\.0\.lora_A"):
        fill_from({"layers.0.weight": torch.zeros(3, 2)}, Held("file", stored), RULES)


def test_rules_below_a_prefix_keep_their_targets() -> None:
    model = wanted()

    report = fill_from(model, Held("file", {"a.b.old.1.bias": torch.ones(2)}), below("a.b.", RULES))

    assert report.loaded == ("layers.1.bias",)


def test_a_layout_is_known_by_its_sign() -> None:
    layouts = [Layout(title="new", sign=r"n\..+", rules=()), Layout(title="old", sign=r"old\..+", rules=RULES)]

    assert recognise(Held("file", {"x": torch.ones(1), "old.1": torch.ones(1)}), layouts).title == "old"
    with pytest.raises(InputError, match="file is none of: new, old; it has x"):
        recognise(Held("file", {"x": torch.ones(1)}), layouts)
