"""Which parts of a language model are cut over tensor-parallel ranks, declared per architecture. Imports no torch."""

from collections.abc import Mapping
from math import gcd
from typing import Any, Literal

from orchestrator.records import record

KEY = "train.engine.tensor_parallel"

Part = Literal["columns", "rows", "embedding", "head"]


@record
class Plan:
    """How an architecture of transformers is cut; names are those of its modules, `*` stands for a number.

    A linear layer in `columns` gives each rank a share of its outputs, which a layer in `rows` takes as its inputs and
    adds up to whole ones: between the two, ranks compute on different features and say nothing to each other.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    embedding: str
    head: str
    divided: tuple[str, ...]  # numbers of its configuration that must be multiples of the degree
    # with sequence parallelism ranks have shares of the tokens from the first layer to the last norm, less the halves
    first: str
    last: str
    halves: tuple[str, ...]

    def part(self, name: str) -> Part | None:
        """Says how the module of this name is cut; None = every rank has all of it."""
        shape = _numberless(name)
        if shape in self.columns:
            return "columns"
        if shape in self.rows:
            return "rows"
        return "embedding" if shape == self.embedding else "head" if shape == self.head else None

    def is_half(self, name: str) -> bool:
        """Tells whether the module of this name is half a layer, which needs all tokens."""
        return _numberless(name) in self.halves

    def sees_shares(self, name: str) -> bool:
        """Tells whether the parameter of this name sees shares of the tokens, or stands before shares of features."""
        return name.startswith((self.first.rpartition(".")[0] + ".", self.last + "."))


def _numberless(name: str) -> str:
    return ".".join("*" if word.isdecimal() else word for word in name.split("."))


_LLAMA = Plan(
    columns=(
        *(f"model.layers.*.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")),
        *(f"model.layers.*.mlp.{name}" for name in ("gate_proj", "up_proj")),
    ),
    rows=("model.layers.*.self_attn.o_proj", "model.layers.*.mlp.down_proj"),
    embedding="model.embed_tokens",
    head="lm_head",
    divided=("num_attention_heads", "num_key_value_heads", "intermediate_size"),
    first="model.layers.0",
    last="model.norm",
    halves=("model.layers.*.self_attn", "model.layers.*.mlp"),
)

# class of transformers -> its plan
PLANS: Mapping[str, Plan] = {"LlamaForCausalLM": _LLAMA, "MistralForCausalLM": _LLAMA, "Qwen2ForCausalLM": _LLAMA}


def why_not(architecture: str, settings: Mapping[str, Any], degree: int) -> str:
    """Says why a language model with these settings cannot be cut over `degree` ranks; nothing where it can.

    The vocabulary need not divide: its last share is padded.
    """
    if architecture not in PLANS:
        return f"{architecture} cannot be cut over ranks; known: {', '.join(PLANS)}"
    if settings.get("tie_word_embeddings"):
        return "tie_word_embeddings is true, but embedding and head are cut apart; allowed: 1"
    sizes = {name: settings[name] for name in PLANS[architecture].divided if settings.get(name)}  # else not known yet
    wrong = [f"{name} = {size}" for name, size in sizes.items() if size % degree]
    if not wrong:
        return ""
    most = gcd(*sizes.values())
    allowed = ", ".join(str(number) for number in range(1, most + 1) if most % number == 0)
    return f"{' and '.join(wrong)} cannot be shared evenly by {degree} ranks; allowed: {allowed}"


def share_of(settings: Mapping[str, Any], degree: int) -> dict[str, Any]:
    """Returns the settings of a language model as large as what one of `degree` ranks holds of this one.

    Its features between the layers are whole, as they are on every rank.
    """
    heads = settings["num_attention_heads"]
    whole = {"head_dim": settings["hidden_size"] // heads, "num_key_value_heads": heads, **settings}
    cut = {name: whole[name] // degree for name in _LLAMA.divided}
    return {**whole, **cut, "vocab_size": -(-whole["vocab_size"] // degree)}
