"""What is refused before anything runs: models that cannot be cut, and ranks that form no groups."""

from typing import Any

import pytest

from orchestrator.errors import InputError
from orchestrator.training.config import EngineConfig
from orchestrator.training.parallel.plans import PLANS, share_of, why_not
from tests.toys import toy_engine, toy_train

LLAMA: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 32, "vocab_size": 17}


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_a_vocabulary_of_any_size_can_be_cut(degree: int) -> None:
    assert why_not("LlamaForCausalLM", LLAMA, degree) == ""


def test_what_does_not_divide_is_named_with_what_would() -> None:
    said = why_not("LlamaForCausalLM", LLAMA, 3)

    assert said == (
        "num_key_value_heads = 4 and intermediate_size = 32 cannot be shared evenly by 3 ranks; allowed: 1, 2, 4"
    )


def test_an_architecture_without_a_plan_is_refused_with_those_that_have_one() -> None:
    said = why_not("GPT2LMHeadModel", {}, 2)

    assert said == f"GPT2LMHeadModel cannot be cut over ranks; known: {', '.join(PLANS)}"


def test_a_head_that_is_the_embedding_is_refused() -> None:
    assert "tie_word_embeddings" in why_not("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}, 2)


def test_a_plan_knows_the_layers_of_every_depth_and_no_others() -> None:
    plan = PLANS["LlamaForCausalLM"]

    assert plan.part("model.layers.31.self_attn.q_proj") == "columns"
    assert plan.part("model.layers.0.mlp.down_proj") == "rows"
    assert plan.part("model.embed_tokens") == "embedding"
    assert plan.part("lm_head") == "head"
    assert plan.part("model.layers.0.input_layernorm") is None


def test_neighbouring_ranks_draw_the_same_samples() -> None:
    train = toy_train(global_batch=12, micro_batch=2, engine=toy_engine(tensor_parallel=2))

    assert [train.reader(rank) for rank in range(4)] == [0, 0, 1, 1]
    assert (train.readers_on(4), train.micro_batch_on(4), train.accumulation_on(4)) == (2, 2, 3)


def test_ranks_that_form_no_groups_are_refused() -> None:
    train = toy_train(engine=toy_engine(tensor_parallel=4))

    with pytest.raises(InputError, match="6 ranks do not form groups of 4; allowed: 1, 2, 3, 6"):
        train.readers_on(6)


def test_a_batch_that_does_not_divide_over_groups_is_refused() -> None:
    train = toy_train(global_batch=12, engine=toy_engine(tensor_parallel=2))

    with pytest.raises(InputError, match="12 samples do not divide evenly over 5 tensor-parallel groups"):
        train.micro_batch_on(10)


def test_a_degree_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor_parallel must be above 0"):
        EngineConfig(tensor_parallel=0)


def test_tokens_are_shared_only_where_matrices_are() -> None:
    with pytest.raises(ValueError, match="allowed with tensor_parallel 1: false"):
        EngineConfig(sequence_parallel=True)


def test_the_share_of_a_rank_has_its_heads_and_words_and_all_features_between_the_layers() -> None:
    share = share_of({**LLAMA, "hidden_size": 96, "num_hidden_layers": 5}, 2)

    assert share == {
        "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 16, "vocab_size": 9, "head_dim": 8,
        "hidden_size": 96, "num_hidden_layers": 5,
    }  # fmt: skip
