"""How publishers name the weights that a GLaMM is made of: names and layouts as data.

The right-hand names are those of `Glamm`. Keys of GLaMM are those of its code (groundingLMM); its published files hold
no CLIP. What a rule sends to None is known and not needed. WEIGHTS.md has all this as a table.
"""

from torch import Tensor

from orchestrator.training.foreign.mapping import Layout, Rule, below, rules_of

LLAMA_RULES = rules_of(
    (r".*rotary_emb\.inv_freq", None),  # older files store what every model computes
    (r"(model\.(?:embed_tokens|layers|norm)\..+|lm_head\..+)", r"language_model.\1"),
)

CLIP_RULES = rules_of(
    (r"(?:vision_model\.)?embeddings\.position_ids", None),
    (r"(?:text_model|text_projection|visual_projection|logit_scale).*", None),  # the half that reads text
    (r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)", r"vision_tower.\1"),
)

# an export of a CLOC has the names of a CLIP's, and a Prompter, whose way of asking for phrases nobody needs here
CLOC_RULES = (
    *rules_of(
        (r"prompter\.text_prompt\..+", None),
        (r"(prompter\..+)", r"region_encoder.\1"),
        (r"(?:pool|box_head)\..+|region_logit_scale", None),
    ),
    *CLIP_RULES,
)

# positions have two names in transformers, and a file may hold either or both
_SAM_POSITIONS = "sam.shared_image_embedding.positional_embedding"

SAM_RULES = (
    *rules_of((r"(?:sam\.)?prompt_encoder\.shared_embedding\.positional_embedding", _SAM_POSITIONS)),
    *rules_of((r"(?:sam\.)?((?:shared_image_embedding|vision_encoder|prompt_encoder|mask_decoder)\..+)", r"sam.\1")),
)

_NECK = {0: "conv1", 1: "layer_norm1", 2: "conv2", 3: "layer_norm2"}
_DOWN = {0: "conv1", 1: "layer_norm1", 3: "conv2", 4: "layer_norm2", 6: "conv3"}
_UP = {0: "upscale_conv1", 1: "upscale_layer_norm", 3: "upscale_conv2"}
_FEED_FORWARD = {0: "proj_in", 1: "layers.0", 2: "proj_out"}

# segment-anything's own files
SAM_ORIGINAL_RULES = (
    *rules_of(
        (r"pixel_(?:mean|std)", None),
        (r"image_encoder\.pos_embed", "sam.vision_encoder.pos_embed"),
        (r"image_encoder\.patch_embed\.proj\.(.+)", r"sam.vision_encoder.patch_embed.projection.\1"),
        (r"image_encoder\.blocks\.(\d+)\.norm([12])\.(.+)", r"sam.vision_encoder.layers.\1.layer_norm\2.\3"),
        (r"image_encoder\.blocks\.(\d+)\.((?:attn|mlp)\..+)", r"sam.vision_encoder.layers.\1.\2"),
        *(
            (rf"image_encoder\.neck\.{place}\.(.+)", rf"sam.vision_encoder.neck.{name}.\1")
            for place, name in _NECK.items()
        ),
        (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", _SAM_POSITIONS),
        (r"prompt_encoder\.point_embeddings\.(.+)", r"sam.prompt_encoder.point_embed.\1"),
        *(
            (rf"prompt_encoder\.mask_downscaling\.{place}\.(.+)", rf"sam.prompt_encoder.mask_embed.{name}.\1")
            for place, name in _DOWN.items()
        ),
        (r"(prompt_encoder\.(?:not_a_point_embed|no_mask_embed)\..+)", r"sam.\1"),
        (
            r"mask_decoder\.transformer\.layers\.(\d+)\.norm([1-4])\.(.+)",
            r"sam.mask_decoder.transformer.layers.\1.layer_norm\2.\3",
        ),
        (r"mask_decoder\.transformer\.norm_final_attn\.(.+)", r"sam.mask_decoder.transformer.layer_norm_final_attn.\1"),
        (r"(mask_decoder\.(?:transformer|iou_token|mask_tokens)\..+)", r"sam.\1"),
        *(
            (rf"mask_decoder\.output_upscaling\.{place}\.(.+)", rf"sam.mask_decoder.{name}.\1")
            for place, name in _UP.items()
        ),
        *(
            (
                rf"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.{place}\.(.+)",
                rf"sam.mask_decoder.\1.{name}.\2",
            )
            for place, name in _FEED_FORWARD.items()
        ),
    ),
)  # fmt: skip


def neighbours_swapped(weight_OIHW: Tensor) -> Tensor:
    """Swaps the last two quarters of a convolution's inputs: GLaMM takes the coarser neighbour's channels first."""
    own, rest = weight_OIHW.shape[1] // 2, weight_OIHW.shape[1] // 4
    return weight_OIHW[:, [*range(own), *range(own + rest, own + 2 * rest), *range(own, own + rest)]]


# the region module of GPT4RoI, which GLaMM took over
REGION_RULES = (
    *rules_of((r"mlvl_fuse\.input_conv\.(.+)", r"region_encoder.inputs.\1")),
    Rule(
        stored=r"mlvl_fuse\.fuse_convs\.(\d+)\.conv\.weight",
        name=r"region_encoder.exchanges.\1.0.weight",
        change=neighbours_swapped,
    ),
    *rules_of(
        (r"mlvl_fuse\.fuse_convs\.(\d+)\.gn\.(.+)", r"region_encoder.exchanges.\1.1.\2"),
        (r"roi_align\.pconvs\.(.+)", r"region_encoder.outputs.\1"),
        (r"roi_align\.pos_embedd\.(.+)", r"region_encoder.position.\1"),
        (r"roi_align\.flatten_linear\.(.+)", r"region_encoder.flatten.\1"),
        (r"roi_align\.updims\.(.+)", r"region_encoder.project.\1"),
    ),
)

# convolutions that a norm follows have no bias there; here they have one, which begins at zero and changes nothing
ABSENT = (r"region_encoder\.exchanges\.\d+\.0\.bias",)

# LLaVA's names; a projector of one layer, as LLaVA 1.0 has it, fits no GLaMM and stays unused
LLAVA_RULES = (
    *rules_of((r"model\.mm_projector\.([02]\..+)", r"projector.\1")),
    *below("model.vision_tower.vision_tower.", CLIP_RULES),
    *LLAMA_RULES,
)

GLAMM_RULES = (
    *below("model.grounding_encoder.", SAM_ORIGINAL_RULES),
    *below("model.region_encoder.", REGION_RULES),
    *rules_of(
        (r"model\.text_hidden_fcs\.0\.0\.(.+)", r"prompt_projection.hidden.\1"),
        (r"model\.text_hidden_fcs\.0\.2\.(.+)", r"prompt_projection.out.\1"),
    ),
    *LLAVA_RULES,
)

LLAMA = Layout(title="LLaMA or Vicuna (transformers)", sign=r"model\.(?:embed_tokens|layers)\..+", rules=LLAMA_RULES)
LLAVA = Layout(title="LLaVA", sign=r"model\.mm_projector\..+", rules=LLAVA_RULES)
GPT4ROI = Layout(
    title="GPT4RoI",
    sign=r"model\.spi_module\..+",
    rules=(*below("model.spi_module.", REGION_RULES), *LLAVA_RULES),
)
# with the prefix that PEFT's wrapper gives, where its users save the wrapper
GLAMM = Layout(
    title="GLaMM",
    sign=r"(?:base_model\.model\.)?model\.text_hidden_fcs\..+",
    rules=(*GLAMM_RULES, *below("base_model.model.", GLAMM_RULES)),
)
CLOC = Layout(title="CLOC (orch)", sign=r"prompter\.box_prompt\..+", rules=CLOC_RULES)
CLIP = Layout(title="CLIP (transformers)", sign=r"(?:vision_model\.)?embeddings\..+", rules=CLIP_RULES)
SAM = Layout(title="SAM (transformers)", sign=r"(?:sam\.)?vision_encoder\..+", rules=SAM_RULES)
SAM_ORIGINAL = Layout(title="SAM (segment-anything)", sign=r"image_encoder\..+", rules=SAM_ORIGINAL_RULES)

EMBEDDINGS = r"(?:base_model\.model\.)?model\.embed_tokens\.weight"  # of a GLaMM: one row a token

# what a folder may hold, the more special first
LANGUAGE = (GLAMM, GPT4ROI, LLAVA, LLAMA)
VISION = (CLOC, CLIP)
GROUNDING = (SAM, SAM_ORIGINAL)
WHOLE = (GLAMM, GPT4ROI, LLAVA, LLAMA)
