"""How publishers name the weights that a PixCLIP begins with; the right-hand names are those of `PixClip`.

LLM2CLIP's folders (microsoft/LLM2CLIP-Openai-L-14-336 and its like) hold a CLIP in the layout of Hugging Face with a
projection of its own, and `text_adapter.adaptor`: four blocks, a norm, a linear layer. Its EVA02s (one is called
LLM2CLIP-EVA02-B-16.pt) are files in EVA-CLIP's layout, translated by `stages/eva_weights.py`, with `text.text_adaptor`.
The names inside a block are those of LLM2CLIP's code for EVA02; no file was seen. One that names them otherwise is
refused with what is lacking.
"""

from dataclasses import replace

from orchestrator.training.foreign.mapping import Layout, rules_of

_TOWER = (r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)", r"vision_model.\1")
_ADAPTER = r"(?:text_adapter\.adaptor|text\.text_adaptor)\."
_IDS = (r"(?:vision_model\.)?embeddings\.position_ids", None)

CLIP = Layout(
    title="CLIP's image tower",
    sign=r"(?:vision_model\.)?pre_layrnorm\.weight",
    rules=rules_of(_IDS, _TOWER, (r"(?:text_model|text_projection|visual_projection|logit_scale).*", None)),
)
TOWERS = {"clip": CLIP, "eva02": replace(CLIP, title="EVA02's image tower")}  # named alike, once translated
LLM2CLIP = Layout(
    title="LLM2CLIP",
    sign=_ADAPTER + r".+",
    rules=rules_of(
        _IDS,
        _TOWER,
        (r"visual_projection\.(weight|bias)", r"visual_projection.\1"),
        (_ADAPTER + r"(\d+)\.fn\.0\.(weight|bias)", r"text_adapter.layers.\1.widen.\2"),
        (_ADAPTER + r"(\d+)\.fn\.3\.(weight|bias)", r"text_adapter.layers.\1.narrow.\2"),
        (_ADAPTER + r"(\d+)\.ln\.(weight|bias)", r"text_adapter.layers.\1.norm.\2"),
        (_ADAPTER + r"(\d+)\.(weight|bias)", r"text_adapter.layers.\1.\2"),
        (r"(?:text_model|text_projection|logit_scale).*", None),  # the scale begins where the config says
    ),
)
