"""What full-size recipes read, without content: planning looks at names and sizes only."""

import json
from dataclasses import asdict
from pathlib import Path

from stages.convert.sources import SOURCES
from stages.glamm.config import Blueprint, draw_blueprint
from tests.published_sizes import FULL

T5_TOKENIZER = {"model": {"vocab": [[f"piece{number}", 0.0] for number in range(32_100)]}, "added_tokens": []}
WEIGHTS = ("GLaMM-GranD-Pretrained", "GPT4RoI-7B")
FILES = ("eva02_L_pt_m38m_p14.pt", "LLM2CLIP-EVA02-B-16.pt")
# folders of which planning asks what they are and how large
KINDS = {
    "mask2former-swin-large-coco-panoptic": {
        "model_type": "mask2former", "num_queries": 200, "feature_size": 256, "mask_feature_size": 256,
        "hidden_dim": 256, "encoder_layers": 6, "encoder_feedforward_dim": 1024, "decoder_layers": 10,
        "dim_feedforward": 2048, "num_attention_heads": 8,
        "backbone_config": {
            "model_type": "swin", "image_size": 384, "embed_dim": 192, "depths": [2, 2, 18, 2],
            "num_heads": [6, 12, 24, 48], "window_size": 12, "drop_path_rate": 0.3,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
    },
    "git-base": {"model_type": "git", "vocab_size": 30_522},
}  # fmt: skip

FLAN_T5_XL = {
    "model_type": "t5", "vocab_size": 32_128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24,
    "num_decoder_layers": 24, "num_heads": 32, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


def lay_out(root: Path) -> tuple[str, ...]:
    """Makes every file and folder of every data set, empty, and models that are a config each; returns overrides."""
    data, models = root / "data", root / "models"
    for part in (part for entry in SOURCES.values() for part in entry.parts):
        for name in part.annotations:
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).touch()
        for name in part.images + part.masks + part.listed:
            (data / name).mkdir(parents=True, exist_ok=True)
    for name, settings in _settings(draw_blueprint(FULL, 32_000)).items():
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (models / "flan-t5-xl").mkdir()
    (models / "flan-t5-xl" / "config.json").write_text(json.dumps(FLAN_T5_XL), encoding="utf-8")
    for name, said in KINDS.items():
        (models / name).mkdir(parents=True, exist_ok=True)
        (models / name / "config.json").write_text(json.dumps(said), encoding="utf-8")
    (models / "t5-base").mkdir()
    (models / "t5-base" / "tokenizer.json").write_text(json.dumps(T5_TOKENIZER), encoding="utf-8")
    for name in WEIGHTS:
        (models / name).mkdir()
    for name in FILES:
        (models / name).touch()
    return f"vars.data={data}", f"vars.models={models}", f"runs={root / 'runs'}"


def _settings(blueprint: Blueprint) -> dict[str, object]:
    plain = asdict(blueprint)
    return {
        "vicuna-7b-v1.5": plain["language"],
        "clip-vit-large-patch14-336": {"vision_config": plain["vision"]},
        "sam-vit-huge": plain["grounding"],
        "LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned": {"hidden_size": 4096, "num_hidden_layers": 32},
    }
