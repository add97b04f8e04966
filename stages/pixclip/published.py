"""How publishers name the weights that a PixCLIP begins with; the right-hand names are those of `PixClip`.

LLM2CLIP's folders (microsoft/LLM2CLIP-Openai-L-14-336 and its like) hold a CLIP in the layout of Hugging Face with a
projection of its own, and `text_adapter.adaptor`: four blocks, a norm, a linear layer. The names inside a block are not
verified; files that name them otherwise are refused with what is lacking.
"""

from orchestrator.training.foreign.mapping import Layout, rules_of

_TOWER = (r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)", r"vision_model.\1")
_IDS = (r"(?:vision_model\.)?embeddings\.position_ids", None)

CLIP = Layout(
    title="CLIP's image tower",
    sign=r"(?:vision_model\.)?pre_layrnorm\.weight",
    rules=rules_of(_IDS, _TOWER, (r"(?:text_model|text_projection|visual_projection|logit_scale).*", None)),
)
LLM2CLIP = Layout(
    title="LLM2CLIP",
    sign=r"text_adapter\.adaptor\..+",
    rules=rules_of(
        _IDS,
        _TOWER,
        (r"visual_projection\.weight", "visual_projection.weight"),
        (r"text_adapter\.adaptor\.(\d+)\.fn\.0\.(weight|bias)", r"text_adapter.layers.\1.widen.\2"),
        (r"text_adapter\.adaptor\.(\d+)\.fn\.3\.(weight|bias)", r"text_adapter.layers.\1.narrow.\2"),
        (r"text_adapter\.adaptor\.(\d+)\.ln\.(weight|bias)", r"text_adapter.layers.\1.norm.\2"),
        (r"text_adapter\.adaptor\.(\d+)\.(weight|bias)", r"text_adapter.layers.\1.\2"),
        (r"(?:text_model|text_projection|logit_scale).*", None),  # the scale begins where the config says
    ),
)
