"""Names and shapes of published weights, written down from the code that published them, not from our rules."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from orchestrator.training.foreign.source import Held
from stages.glamm.model import Glamm

Shapes = dict[str, tuple[int, ...]]

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
# segment-anything's names -> those of transformers; both without .weight and .bias
SAM_NAMES = {
    "image_encoder.patch_embed.proj": "vision_encoder.patch_embed.projection",
    **{
        f"image_encoder.blocks.{n}.{theirs}": f"vision_encoder.layers.{n}.{ours}"
        for n in (0, 1)
        for theirs, ours in {
            "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "attn.qkv", "attn.proj": "attn.proj",
            "mlp.lin1": "mlp.lin1", "mlp.lin2": "mlp.lin2",
        }.items()
    },
    "image_encoder.neck.0": "vision_encoder.neck.conv1",
    "image_encoder.neck.1": "vision_encoder.neck.layer_norm1",
    "image_encoder.neck.2": "vision_encoder.neck.conv2",
    "image_encoder.neck.3": "vision_encoder.neck.layer_norm2",
    **{f"prompt_encoder.point_embeddings.{n}": f"prompt_encoder.point_embed.{n}" for n in range(4)},
    "prompt_encoder.not_a_point_embed": "prompt_encoder.not_a_point_embed",
    "prompt_encoder.no_mask_embed": "prompt_encoder.no_mask_embed",
    "prompt_encoder.mask_downscaling.0": "prompt_encoder.mask_embed.conv1",
    "prompt_encoder.mask_downscaling.1": "prompt_encoder.mask_embed.layer_norm1",
    "prompt_encoder.mask_downscaling.3": "prompt_encoder.mask_embed.conv2",
    "prompt_encoder.mask_downscaling.4": "prompt_encoder.mask_embed.layer_norm2",
    "prompt_encoder.mask_downscaling.6": "prompt_encoder.mask_embed.conv3",
    **{
        f"mask_decoder.transformer.layers.{n}.{theirs}": f"mask_decoder.transformer.layers.{n}.{ours}"
        for n in (0, 1)
        for theirs, ours in {
            **{f"{part}.{proj}": f"{part}.{proj}" for proj in ATTENTION
               for part in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")},
            **{f"norm{k}": f"layer_norm{k}" for k in (1, 2, 3, 4)},
            "mlp.lin1": "mlp.lin1", "mlp.lin2": "mlp.lin2",
        }.items()
    },
    **{f"mask_decoder.transformer.final_attn_token_to_image.{proj}":
       f"mask_decoder.transformer.final_attn_token_to_image.{proj}" for proj in ATTENTION},
    "mask_decoder.transformer.norm_final_attn": "mask_decoder.transformer.layer_norm_final_attn",
    "mask_decoder.iou_token": "mask_decoder.iou_token",
    "mask_decoder.mask_tokens": "mask_decoder.mask_tokens",
    "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
    "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
    "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
    **{
        f"mask_decoder.{head}.layers.{n}": f"mask_decoder.{head}.{ours}"
        for head in (*(f"output_hypernetworks_mlps.{k}" for k in range(4)), "iou_prediction_head")
        for n, ours in enumerate(("proj_in", "layers.0", "proj_out"))
    },
}  # fmt: skip
SAM_ALONE = {
    "image_encoder.pos_embed": "vision_encoder.pos_embed",
    **{f"image_encoder.blocks.{n}.attn.rel_pos_{side}": f"vision_encoder.layers.{n}.attn.rel_pos_{side}"
       for n in (0, 1) for side in "hw"},
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "shared_image_embedding.positional_embedding",
}  # fmt: skip


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def original_sam(sam: nn.Module) -> dict[str, Tensor]:
    """Names SAM's weights as segment-anything does."""
    ours = weights_of(sam)
    found = {theirs: ours.pop(name) for theirs, name in SAM_ALONE.items()}
    for theirs, name in SAM_NAMES.items():
        found |= {
            f"{theirs}.{leaf}": ours.pop(f"{name}.{leaf}") for leaf in ("weight", "bias") if f"{name}.{leaf}" in ours
        }
    assert not ours
    return found


def published_glamm(model: Glamm) -> dict[str, Tensor]:
    """Names the weights as the published GLaMM does, which has no CLIP and no bias before its group norms."""
    found = {f"model.grounding_encoder.{name}": tensor for name, tensor in original_sam(model.sam).items()}
    found |= weights_of(model.language_model)
    found |= {f"model.mm_projector.{name}": tensor for name, tensor in weights_of(model.projector).items()}
    hidden, out = (weights_of(layer) for layer in (model.prompt_projection.hidden, model.prompt_projection.out))
    found |= {f"model.text_hidden_fcs.0.0.{leaf}": tensor for leaf, tensor in hidden.items()}
    found |= {f"model.text_hidden_fcs.0.2.{leaf}": tensor for leaf, tensor in out.items()}
    names = {
        "inputs": "mlvl_fuse.input_conv",
        "outputs": "roi_align.pconvs",
        "position": "roi_align.pos_embedd",
        "flatten": "roi_align.flatten_linear",
        "project": "roi_align.updims",
    }
    for name, tensor in weights_of(model.region_encoder).items():
        part, _, rest = name.partition(".")
        if part in names:
            found[f"model.region_encoder.{names[part]}.{rest}"] = tensor
        elif name.split(".")[2] == "1":
            found[f"model.region_encoder.mlvl_fuse.fuse_convs.{rest[0]}.gn.{rest.split('.')[-1]}"] = tensor
        elif name.endswith("weight"):
            found[f"model.region_encoder.mlvl_fuse.fuse_convs.{rest[0]}.conv.weight"] = tensor
    return found


def nowhere(label: str, shapes: Mapping[str, tuple[int, ...]]) -> Held:
    """Makes a checkpoint of full size that takes no memory."""
    return Held(label, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


def llama_shapes(*, layers: int, width: int, mlp: int, tokens: int, values: int | None = None) -> Shapes:
    """Lists LLaMA's weights; `values` is the width of keys and values where it is not that of queries."""
    found: Shapes = {"model.embed_tokens.weight": (tokens, width)}
    for n in range(layers):
        layer = f"model.layers.{n}"
        for name, shape in {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (values or width, width),
            "self_attn.v_proj": (values or width, width), "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width), "mlp.down_proj": (width, mlp),
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }.items():  # fmt: skip
            found[f"{layer}.{name}.weight"] = shape
    return found | {"model.norm.weight": (width,), "lm_head.weight": (tokens, width)}


def clip_shapes(*, layers: int, width: int, mlp: int, side: int, patch: int = 14) -> Shapes:
    """Lists the weights of CLIP's image half as OpenAI's and LAION's folders at Hugging Face have them."""
    found: Shapes = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((side // patch) ** 2 + 1, width),
        "vision_model.embeddings.position_ids": (1, (side // patch) ** 2 + 1),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        found |= _layer(f"vision_model.{norm}", (width,))
    for n in range(layers):
        layer = f"vision_model.encoder.layers.{n}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _layer(f"{layer}.self_attn.{name}", (width, width))
        found |= _layer(f"{layer}.layer_norm1", (width,)) | _layer(f"{layer}.layer_norm2", (width,))
        found |= _layer(f"{layer}.mlp.fc1", (mlp, width)) | _layer(f"{layer}.mlp.fc2", (width, mlp))
    return found


def sam_shapes(*, layers: int, width: int, heads: int, whole: tuple[int, ...]) -> Shapes:
    """Lists the weights in segment-anything's own files: sam_vit_b, sam_vit_l, sam_vit_h."""
    encoder, prompts = "image_encoder", "prompt_encoder"
    found: Shapes = {f"{encoder}.pos_embed": (1, 64, 64, width)}
    found |= _layer(f"{encoder}.patch_embed.proj", (width, 3, 16, 16))
    for n in range(layers):
        block, span = f"{encoder}.blocks.{n}", 127 if n in whole else 27
        found |= {f"{block}.attn.rel_pos_{side}": (span, width // heads) for side in "hw"}
        found |= _layer(f"{block}.attn.qkv", (3 * width, width)) | _layer(f"{block}.attn.proj", (width, width))
        found |= _layer(f"{block}.norm1", (width,)) | _layer(f"{block}.norm2", (width,))
        found |= _layer(f"{block}.mlp.lin1", (4 * width, width)) | _layer(f"{block}.mlp.lin2", (width, 4 * width))
    found |= {f"{encoder}.neck.0.weight": (256, width, 1, 1), f"{encoder}.neck.2.weight": (256, 256, 3, 3)}
    found |= _layer(f"{encoder}.neck.1", (256,)) | _layer(f"{encoder}.neck.3", (256,))
    found[f"{prompts}.pe_layer.positional_encoding_gaussian_matrix"] = (2, 128)
    found |= {f"{prompts}.point_embeddings.{n}.weight": (1, 256) for n in range(4)}
    found |= {f"{prompts}.{name}.weight": (1, 256) for name in ("not_a_point_embed", "no_mask_embed")}
    down = {0: (4, 1, 2, 2), 1: (4,), 3: (16, 4, 2, 2), 4: (16,), 6: (256, 16, 1, 1)}
    for place, shape in down.items():
        found |= _layer(f"{prompts}.mask_downscaling.{place}", shape)
    return found | _sam_decoder()


def _sam_decoder() -> Shapes:
    transformer = "mask_decoder.transformer"
    attentions = {f"{transformer}.final_attn_token_to_image": 128}
    found: Shapes = {}
    for n in (0, 1):
        layer = f"{transformer}.layers.{n}"
        attentions |= {f"{layer}.self_attn": 256, f"{layer}.cross_attn_token_to_image": 128}
        attentions |= {f"{layer}.cross_attn_image_to_token": 128}
        for norm in (1, 2, 3, 4):
            found |= _layer(f"{layer}.norm{norm}", (256,))
        found |= _layer(f"{layer}.mlp.lin1", (2048, 256)) | _layer(f"{layer}.mlp.lin2", (256, 2048))
    for name, inner in attentions.items():
        for projection in ("q_proj", "k_proj", "v_proj"):
            found |= _layer(f"{name}.{projection}", (inner, 256))
        found |= _layer(f"{name}.out_proj", (256, inner))
    found |= _layer(f"{transformer}.norm_final_attn", (256,))
    found |= {"mask_decoder.iou_token.weight": (1, 256), "mask_decoder.mask_tokens.weight": (4, 256)}
    found |= {f"mask_decoder.output_upscaling.0.{leaf}": s for leaf, s in _turned(256, 64).items()}
    found |= _layer("mask_decoder.output_upscaling.1", (64,))
    found |= {f"mask_decoder.output_upscaling.3.{leaf}": s for leaf, s in _turned(64, 32).items()}
    for n in range(4):
        found |= _three(f"mask_decoder.output_hypernetworks_mlps.{n}", 32)
    return found | _three("mask_decoder.iou_prediction_head", 4)


def region_shapes(*, vision: int, language: int, width: int = 1024) -> Shapes:
    """Lists the weights of GPT4RoI's region module, which GLaMM took over: convolutions before norms have no bias."""
    found: Shapes = {}
    for level in range(4):
        found |= _layer(f"mlvl_fuse.input_conv.{level}", (width, vision + 2, 1, 1))
        found |= _layer(f"roi_align.pconvs.{level}", (width, width, 3, 3))
    for n in range(5):
        found[f"mlvl_fuse.fuse_convs.{n}.conv.weight"] = (width, width, 3, 3)
        found |= _layer(f"mlvl_fuse.fuse_convs.{n}.gn", (width,))
    found |= _layer("roi_align.pos_embedd.0", (256, 4)) | _layer("roi_align.pos_embedd.2", (256,))
    found |= _layer("roi_align.pos_embedd.3", (width, 256)) | _layer("roi_align.pos_embedd.5", (width,))
    found |= _layer("roi_align.updims", (language, width))
    return found | _layer("roi_align.flatten_linear", (width, width * 14 * 14))


def projector_shapes(*, vision: int, language: int) -> Shapes:
    """Lists the weights of LLaVA 1.5's projector."""
    return _layer("model.mm_projector.0", (language, vision)) | _layer("model.mm_projector.2", (language, language))


def glamm_7b_shapes() -> Shapes:
    """Lists a published GLaMM: Vicuna-7B with 32,007 tokens, SAM ViT-H, region encoder, both projections, no CLIP."""
    found = llama_shapes(layers=32, width=4096, mlp=11008, tokens=32007)
    found |= projector_shapes(vision=1024, language=4096)
    found |= {f"model.region_encoder.{n}": s for n, s in region_shapes(vision=1024, language=4096).items()}
    sam = sam_shapes(layers=32, width=1280, heads=16, whole=(7, 15, 23, 31))
    found |= {f"model.grounding_encoder.{name}": shape for name, shape in sam.items()}
    return found | _layer("model.text_hidden_fcs.0.0", (4096, 4096)) | _layer("model.text_hidden_fcs.0.2", (256, 4096))


def _layer(name: str, weight: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _turned(inputs: int, outputs: int) -> Shapes:
    """Shapes a transposed convolution, inputs first."""
    return {"weight": (inputs, outputs, 2, 2), "bias": (outputs,)}


def _three(name: str, outputs: int) -> Shapes:
    first, second = _layer(f"{name}.layers.0", (256, 256)), _layer(f"{name}.layers.1", (256, 256))
    return first | second | _layer(f"{name}.layers.2", (outputs, 256))
