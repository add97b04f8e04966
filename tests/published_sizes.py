"""GLaMM's published sizes: Vicuna-7B, CLIP ViT-L/14-336, SAM ViT-H, GPT4RoI's region encoder. No torch."""

from stages.glamm.config import GlammConfig, GroundingConfig, LanguageConfig, RegionConfig, VisionConfig

FULL = GlammConfig(
    language=LanguageConfig(hidden_size=4096, layers=32, heads=32, mlp_size=11008, max_positions=4096),
    vision=VisionConfig(image_size=336, patch_size=14, hidden_size=1024, layers=24, heads=16, mlp_size=4096),
    grounding=GroundingConfig(
        image_size=1024, patch_size=16, hidden_size=1280, layers=32, heads=16, mlp_size=5120, window_size=14,
        global_layers=(7, 15, 23, 31), channels=256, decoder_mlp_size=2048, decoder_heads=8,
    ),
    region=RegionConfig(),
)  # fmt: skip
