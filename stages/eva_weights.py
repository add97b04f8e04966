"""Weights of EVA-02 as others publish them, under the names and shapes of our tower.

EVA02-CLIP (QuanSun/EVA-CLIP), EVA-02's pre-training (Yuxin-CV/EVA-02) and LLM2CLIP's EVA02 name a tower alike, the
first and the last below `visual.`; timm's split layout (of B and L; as open_clip's files have it below `visual.trunk.`)
differs in a few names. Tables of angles (`rope.`) and whatever else is no weight of a tower keep their names: who fills
a model from here reports them as unused.
"""

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import Entry, TensorSource
from stages.towers import TowerKind

_LAYER, _ENDS = r"blocks\.(\d+)\.", r"\.(weight|bias)"
_NAMES = tuple(
    (re.compile(r"(?:visual\.)?(?:trunk\.)?" + stored), ours)
    for stored, ours in (
        (r"cls_token", "embeddings.class_embedding"),
        (r"pos_embed", "embeddings.position_embedding.weight"),
        (r"patch_embed\.proj" + _ENDS, r"embeddings.patch_embedding.\1"),
        (_LAYER + r"norm([12])" + _ENDS, r"encoder.layers.\1.layer_norm\2.\3"),
        (_LAYER + r"attn\.([qkv]_proj)" + _ENDS, r"encoder.layers.\1.self_attn.\2.\3"),
        (_LAYER + r"attn\.([qv])_bias", r"encoder.layers.\1.self_attn.\2_proj.bias"),
        (_LAYER + r"attn\.(?:inner_attn_ln|norm)" + _ENDS, r"encoder.layers.\1.self_attn.inner_norm.\2"),
        (_LAYER + r"attn\.proj" + _ENDS, r"encoder.layers.\1.self_attn.out_proj.\2"),
        (_LAYER + r"mlp\.(?:w1|fc1_g)" + _ENDS, r"encoder.layers.\1.mlp.gate_proj.\2"),
        (_LAYER + r"mlp\.(?:w2|fc1_x)" + _ENDS, r"encoder.layers.\1.mlp.up_proj.\2"),
        (_LAYER + r"mlp\.(?:ffn_ln|norm)" + _ENDS, r"encoder.layers.\1.mlp.norm.\2"),
        (_LAYER + r"mlp\.(?:w3|fc2)" + _ENDS, r"encoder.layers.\1.mlp.down_proj.\2"),
        (r"norm" + _ENDS, r"post_layernorm.\1"),
        (r"head" + _ENDS, r"visual_projection.\1"),
    )
)


def open_tower(kind: TowerKind, path: Path) -> TensorSource:
    """Opens weights of a tower, named as ours; reads no tensor yet."""
    source = open_source(path)
    return ReleasedEva(source) if kind == "eva02" else source


class ReleasedEva:
    """A published EVA-02 as a source of tensors with our tower's names and shapes."""

    def __init__(self, source: TensorSource) -> None:
        """Translates names; class token and positions lose the dimension of a batch."""
        self.label, self._source = source.label, source
        self._stored = {_name_of(stored): stored for stored in source.entries}
        self.entries = {
            name: _unbatched(source.entries[stored]) if name.startswith("embeddings.") else source.entries[stored]
            for name, stored in self._stored.items()
        }

    def read(self, name: str) -> Tensor:
        """Reads one tensor."""
        return self._source.read(self._stored[name]).reshape(self.entries[name].shape)


def _name_of(stored: str) -> str:
    found = ((form.fullmatch(stored), ours) for form, ours in _NAMES)
    return next((match.expand(ours) for match, ours in found if match is not None), stored)


def _unbatched(entry: Entry) -> Entry:
    """Of a class token 1 x 1 x C makes C, of positions 1 x N x C makes N x C; patches stay."""
    return replace(entry, shape=tuple(entry.shape[entry.shape.count(1) :])) if len(entry.shape) == 3 else entry
