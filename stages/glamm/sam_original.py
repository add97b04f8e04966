"""Sizes of a SAM, read off the shapes in segment-anything's own files, which say them nowhere else."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import recognise
from orchestrator.training.foreign.opening import open_source
from stages.glamm.published import SAM_ORIGINAL

DECODER_HEADS = 8  # of every SAM; shapes do not tell


def read_sam_settings(path: Path) -> dict[str, Any]:
    """Returns what SamConfig needs for the weights in a file."""
    source = open_source(path)
    recognise(source, (SAM_ORIGINAL,))
    return sam_settings({name: entry.shape for name, entry in source.entries.items()}, source.label)


def sam_settings(shapes: Mapping[str, tuple[int, ...]], label: str) -> dict[str, Any]:
    """Returns the same for shapes by their names in segment-anything; `label` is what messages call their source."""
    try:
        return _settings(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{label} is no whole SAM: its sizes cannot be read ({type(error).__name__}: {error})"
        ) from None


def _settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    _, side, _, width = shapes["image_encoder.pos_embed"]
    patch = shapes["image_encoder.patch_embed.proj.weight"][-1]
    layers = 1 + max(int(found[1]) for name in shapes if (found := re.match(r"image_encoder\.blocks\.(\d+)\.", name)))
    # a block that looks at all of the image has a relative position for every distance in it, the others for a window
    spans = [shapes[f"image_encoder.blocks.{layer}.attn.rel_pos_h"] for layer in range(layers)]
    whole = [layer for layer, (span, _) in enumerate(spans) if span == 2 * side - 1]
    windows = [(span + 1) // 2 for layer, (span, _) in enumerate(spans) if layer not in whole]
    channels = shapes["image_encoder.neck.0.weight"][0]
    return {
        "vision_config": {
            "image_size": side * patch,
            "patch_size": patch,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // spans[0][1],
            "mlp_dim": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0],
            "window_size": windows[0] if windows else side,
            "global_attn_indexes": whole,
            "output_channels": channels,
            "num_pos_feats": channels // 2,
        },
        "prompt_encoder_config": {
            "hidden_size": channels,
            "image_size": side * patch,
            "patch_size": patch,
            "mask_input_channels": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        },
        "mask_decoder_config": {
            "hidden_size": channels,
            "mlp_dim": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
            "num_attention_heads": DECODER_HEADS,
            "num_multimask_outputs": shapes["mask_decoder.mask_tokens.weight"][0] - 1,
            "iou_head_hidden_dim": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
        },
    }
