"""The toy's task for tiny language models of transformers with adapters of PEFT: what tensor parallelism cuts."""

from typing import Any

from torch import Tensor, nn

from orchestrator.training.parallel.losses import word_losses
from orchestrator.training.task import Losses
from tests.toys import LETTERS, ToyTask

WORDS = LETTERS + 1  # an odd number: the last share is padded
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "pad_token_id": 0,
}  # fmt: skip
ADAPTED = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")  # by columns and by rows


class LanguageTask(ToyTask):
    """Teaches a tiny language model; `kind` and `changes` are those of its configuration in transformers."""

    def __init__(
        self, kind: str = "Llama", *, adapted: tuple[str, ...] = ADAPTED, lora_dropout: float = 0.0, **changes: Any
    ) -> None:
        self._kind, self._changes = kind, changes
        self._adapted, self._lora_dropout = adapted, lora_dropout

    def build_model(self) -> nn.Module:
        import transformers
        from peft import LoraConfig, inject_adapter_in_model

        settings = getattr(transformers, f"{self._kind}Config")(**{**SIZES, **self._changes})
        model: nn.Module = getattr(transformers, f"{self._kind}ForCausalLM")(settings)
        if self._adapted:
            lora = LoraConfig(
                r=4, lora_alpha=8, target_modules=list(self._adapted), lora_dropout=self._lora_dropout,
                init_lora_weights="gaussian",
            )  # fmt: skip
            inject_adapter_in_model(lora, model)
        return model

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        logits_BLV = model(input_ids=batch[:, :-1]).logits
        loss = word_losses(logits_BLV.flatten(0, 1), batch[:, 1:].flatten(), vocabulary=WORDS).mean()
        return Losses(total=loss, terms={"next": loss.detach()})


class CutLogitsTask(LanguageTask):
    """The same, with a loss that takes shares of the logits."""

    cut_logits = True
