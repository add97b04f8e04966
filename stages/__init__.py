"""What is computed. STAGES and FAMILIES are every name a recipe can use, and where it lives."""

from collections.abc import Mapping

STAGES: Mapping[str, str] = {
    "make_shapes": "stages.shapes.stage:MakeShapes",
    "convert_shards": "stages.convert.stage:ConvertShards",
    "learn_tokenizer": "stages.tokenizer.stage:LearnTokenizer",
    "glamm_tokenizer": "stages.glamm.stages:GlammTokenizer",
    "glamm_features": "stages.glamm.caching:GlammFeatures",
    "glamm_word_pretraining": "stages.glamm.stages:WordPretraining",
    "glamm_feature_alignment": "stages.glamm.stages:FeatureAlignment",
    "glamm_region_pretraining": "stages.glamm.stages:RegionPretraining",
    "glamm_grand_pretraining": "stages.glamm.stages:GrandPretraining",
    "glamm_tuning": "stages.glamm.stages:GlammTuning",
    "glamm_gcg_tuning": "stages.glamm.stages:GcgTuning",
    "glamm_pix2cap_sft": "stages.glamm.stages:Pix2CapSft",
    "pixelllm_caption_pretraining": "stages.pixelllm.stages:CaptionPretraining",
    "pixelllm_trace_tuning": "stages.pixelllm.stages:TraceTuning",
    "pixelllm_referring": "stages.pixelllm.stages:ReferringTuning",
    "pixelllm_referring_masks": "stages.pixelllm.stages:ReferringMasks",
    "pixelllm_dense_captioning": "stages.pixelllm.stages:DenseCaptioning",
    "pixelllm_joint": "stages.pixelllm.stages:JointTuning",
    "cloc_contrastive": "stages.cloc.stages:ClocContrastive",
    "pixclip_text_embeddings": "stages.pixclip.caching:PixClipTextEmbeddings",
    "pixclip_contrastive": "stages.pixclip.stages:PixClipContrastive",
    "pix2cap_training": "stages.pix2cap.stages:Pix2CapTraining",
    "evaluate": "stages.evaluate.stage:Evaluate",
    "grade_answers": "stages.evaluate.vip_stage:GradeAnswers",
    "predict": "stages.prediction.stage:Predict",
    "export": "stages.export.stage:ExportModel",
    "rehearsal_data": "stages.rehearsal.data:RehearsalData",
    "rehearsal_training": "stages.rehearsal.training:RehearsalTraining",
    "rehearsal_check": "stages.rehearsal.check:RehearsalCheck",
}

FAMILIES: Mapping[str, str] = {
    "glamm": "stages.glamm.family:GlammFamily",
    "pixelllm": "stages.pixelllm.family:PixelLLMFamily",
    "cloc": "stages.cloc.family:ClocFamily",
    "pixclip": "stages.pixclip.family:PixClipFamily",
    "pix2cap": "stages.pix2cap.family:Pix2CapFamily",
}

# what a model of a family can be asked, by the protocols of stages/family.py, so that planning knows it without torch
ABILITIES: Mapping[str, tuple[str, ...]] = {
    "glamm": ("Grounds", "DescribesRegions", "Refers", "Answers"),
    "pixelllm": ("LocatesWords", "RefersByBox", "Refers", "DescribesRegions", "DescribesDensely"),
    "cloc": ("Embeds", "RefersByBox"),
    "pixclip": ("Embeds", "EmbedsWhole", "EmbedsMasked"),
    "pix2cap": ("SegmentsPanoptic",),
}

# what only some models of a family can be asked: ability -> (what their plain form then has, the config key behind it)
PARTS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "pixelllm": {"Refers": ("mask_decoder", "masks"), "DescribesDensely": ("detector", "detector")},
}

FORMS = ("merged", "adapter")  # of an export; the second one is a low-rank adapter alone, in PEFT's layout
