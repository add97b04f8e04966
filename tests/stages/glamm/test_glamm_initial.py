"""Fresh weights: a function of seed and name, kept where something was loaded, adapters that change nothing."""

import torch

from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from tests.stages.glamm_models import tiny_blueprint, vocabulary

WORDS = vocabulary()


def drawn(seed: int, *, lora: bool = False, keep: frozenset[str] = frozenset()) -> Glamm:
    model = Glamm(tiny_blueprint(WORDS, lora=lora))
    draw_weights(model, seed, keep=keep)
    return model


def test_the_same_seed_draws_the_same_weights_and_another_others() -> None:
    first, again, other = drawn(1), drawn(1), drawn(2)

    for (name, one), two in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(first.projector[0].weight, other.projector[0].weight)


def test_adapters_do_not_shift_what_other_parts_draw_and_begin_without_effect() -> None:
    plain, adapted = dict(drawn(1).named_parameters()), dict(drawn(1, lora=True).named_parameters())

    for name, weight in plain.items():
        if "q_proj" not in name and "v_proj" not in name:
            assert torch.equal(weight, adapted[name]), name
    ends = [weight for name, weight in adapted.items() if "lora_B" in name]
    assert ends
    assert not any(bool(weight.any()) for weight in ends)


def test_what_was_loaded_is_kept() -> None:
    model = Glamm(tiny_blueprint(WORDS))
    before = model.projector[0].weight.clone()

    draw_weights(model, 1, keep={"projector.0.weight"})

    assert torch.equal(model.projector[0].weight, before)
    assert not model.projector[0].bias.any()


def test_norms_begin_at_one_and_biases_at_zero() -> None:
    model = drawn(1)

    assert torch.equal(model.language_model.model.norm.weight, torch.ones(32))
    assert not model.vision_tower.post_layernorm.bias.any()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_weight_with_two_names_is_kept_under_either() -> None:
    model = Glamm(tiny_blueprint(WORDS))
    positions = model.sam.shared_image_embedding.positional_embedding
    assert positions is model.sam.prompt_encoder.shared_embedding.positional_embedding
    before = positions.detach().clone()

    draw_weights(model, 1, keep={name for name, _ in model.named_parameters()})

    assert torch.equal(positions, before)
