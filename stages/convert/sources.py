"""SOURCES: every raw data set a recipe can convert, by the name it has in a recipe. README.md has it as a table."""

from collections.abc import Mapping

from stages.convert.layouts import (
    COCO_2014,
    FLICKR_OWNERS,
    HA,
    coco_parts,
    dci,
    docci,
    gcg_coco,
    grand_f,
    labels,
    narratives,
    object_parts,
    pix2cap,
    refcoco,
    sharegpt4v,
)
from stages.convert.parts import Entry, Part

_VISUAL_GENOME = ("visual_genome/VG_100K", "visual_genome/VG_100K_2")
_GRANDF_FLICKR = "grandf/flikcr_30k/train"  # the spelling of the original
_FLICKR = "flickr30k/flickr30k-images"
_VLPART = "semantic/vlpart"

SOURCES: Mapping[str, Entry] = {
    "llava": Entry(
        licence="LLaVA's texts: see the data card; images belong to their owners (LAION, CC, SBU, COCO)",
        parts=(
            Part(
                split="train",
                subset="blip_laion_cc_sbu_558k",
                reader="stages.convert.llava:read_alignment",
                annotations=("llava/blip_laion_cc_sbu_558k.json",),
                images=("llava/images",),
            ),
            Part(
                split="train",
                subset="llava_instruct_150k",
                reader="stages.convert.llava:read_instruct",
                annotations=("llava/llava_instruct_150k.json",),
                images=("coco/train2017",),
                more_images=("coco/val2017",),
                default=False,
            ),
        ),
    ),
    "visual_genome": Entry(
        licence="Visual Genome: CC BY 4.0; images belong to their owners (Flickr)",
        parts=(
            Part(
                split="train",
                subset="region_descriptions",
                reader="stages.convert.visual_genome:read_regions",
                annotations=("visual_genome/region_descriptions.json", "visual_genome/image_data.json"),
                images=_VISUAL_GENOME,
            ),
            Part(
                split="train",
                subset="train",
                reader="stages.convert.visual_genome:read_coco",
                annotations=("visual_genome/train.json",),
                images=_VISUAL_GENOME,
                default=False,
            ),
            Part(
                split="test",
                subset="test_caption",
                reader="stages.convert.visual_genome:read_coco",
                annotations=("visual_genome/test_caption.json",),
                images=_VISUAL_GENOME,
            ),
            Part(  # every region of an image together, for dense captioning
                split="test",
                subset="test",
                reader="stages.convert.visual_genome:read_coco",
                annotations=("visual_genome/test.json",),
                images=_VISUAL_GENOME,
                default=False,
            ),
        ),
    ),
    "grand_f": Entry(
        licence="GranD-f: see its data card; images belong to SA-1B, COCO and Flickr30k and keep their terms",
        parts=(
            grand_f("train", "GranDf_HA_GCG_train", "groundings", f"{HA}/train"),
            grand_f("train", "OpenPsgGCG_train", "groundings", "coco/train2017"),
            grand_f("train", "RefCOCOg_GCG_train", "refs", COCO_2014),
            grand_f("train", "flickr_mergedGT_GCG_train", "flickr", _GRANDF_FLICKR),
            grand_f("val", "OpenPsgGCG_val", "groundings", "coco/val2017", default=False),
            grand_f("val", "RefCOCOg_GCG_val", "refs", COCO_2014, default=False),
            grand_f("val", "flickr_mergedGT_GCG_val", "flickr", _GRANDF_FLICKR, default=False),
            gcg_coco("val"),  # the benchmark: what a split means when no subset is named
            gcg_coco("test"),
        ),
    ),
    "pix2cap_coco": Entry(
        licence="Pix2Cap-COCO: Apache-2.0; COCO's masks: CC BY 4.0; images belong to their owners (Flickr)",
        parts=(pix2cap("train"), pix2cap("val")),
    ),
    "jsonl": Entry(
        licence="one's own data: its owner knows",
        own=True,
        parts=(Part(split="train", subset="", reader="stages.convert.jsonl:read", annotations=(), images=()),),
    ),
    "coco": Entry(
        licence=f"COCO's annotations: CC BY 4.0; {FLICKR_OWNERS}",
        parts=coco_parts("train") + coco_parts("val"),
    ),
    "refcoco": refcoco("refcoco", "unc", ("train", "val", "testA", "testB")),
    "refcoco+": refcoco("refcoco+", "unc", ("train", "val", "testA", "testB")),
    "refcocog": refcoco("refcocog", "umd", ("train", "val", "test")),
    "localized_narratives": Entry(
        licence=f"Localized Narratives: CC BY 4.0; {FLICKR_OWNERS}",
        parts=(
            narratives("train", "coco_train", "coco/train2017", files=4, default=True),
            narratives("val", "coco_val", "coco/val2017", default=True),
            narratives("train", "flickr30k_train", _FLICKR),
            narratives("val", "flickr30k_val", _FLICKR),
            narratives("test", "flickr30k_test", _FLICKR, default=True),
            narratives("train", "ade20k_train", "semantic/ade20k/images/training"),
            narratives("val", "ade20k_validation", "semantic/ade20k/images/validation"),
        ),
    ),
    "grit": Entry(
        licence="GRIT: MS-PL; captions and images belong to their owners (COYO-700M)",
        parts=(
            Part(
                split="train",
                subset="grit-20m",
                reader="stages.convert.grit:read",
                annotations=(),
                listed=("grit/grit-20m",),
                images=("grit/images",),
                text="more_phrases",
            ),
        ),
    ),
    "grand": Entry(
        licence="GranD: Apache-2.0; images: SA-1B's own licence, for research",
        parts=(
            Part(
                split="train",
                subset="grand",
                reader="stages.convert.grand:read",
                annotations=(),
                listed=("grand/annotations",),
                images=("grand/images",),
                text="grounding",
            ),
        ),
    ),
    "flickr30k": Entry(
        licence=f"Flickr30k Entities: see its authors; {FLICKR_OWNERS}",
        parts=tuple(
            Part(
                split=split,
                subset=f"final_flickr_mergedGT_{split}",
                reader="stages.convert.grand_f:read_flickr",
                annotations=(f"flickr30k/mdetr_annotations/final_flickr_mergedGT_{split}.json",),
                images=(_FLICKR,),
            )
            for split in ("train", "val", "test")
        ),
    ),
    "ade20k": Entry(
        licence="ADE20K: its own terms, for research and teaching",
        parts=tuple(
            labels(
                split,
                "ade20k",
                "ade20k_classes.json",
                labels=f"ade20k/annotations/{folder}",
                images=f"semantic/ade20k/images/{folder}",
            )
            for split, folder in (("train", "training"), ("val", "validation"))
        ),
    ),
    "coco_stuff": Entry(
        licence=f"COCO-Stuff: CC BY 4.0; {FLICKR_OWNERS}",
        parts=tuple(
            labels(
                split,
                "coco_stuff",
                "cocostuff_classes.txt",
                labels=f"cocostuff/{split}2017",
                images=f"coco/{split}2017",
            )
            for split in ("train", "val")
        ),
    ),
    "mapillary": Entry(
        licence="Mapillary Vistas: CC BY-NC-SA 4.0",
        parts=tuple(
            labels(
                split,
                "mapillary",
                "mapillary/config_v2.0.json",
                labels=f"mapillary/{folder}/v2.0/labels",
                images=f"semantic/mapillary/{folder}/images",
            )
            for split, folder in (("train", "training"), ("val", "validation"))
        ),
    ),
    "paco_lvis": Entry(
        licence=f"PACO: MIT; {FLICKR_OWNERS}",
        parts=tuple(
            object_parts(
                split, f"paco_lvis_v1_{split}", f"{_VLPART}/paco/annotations/paco_lvis_v1_{split}.json", "coco"
            )
            for split in ("train", "val", "test")
        ),
    ),
    "pascal_part": Entry(
        licence="PASCAL-Part and VOC 2010: their own terms, for research",
        parts=(
            object_parts(
                "train",
                "pascal_part_train",
                f"{_VLPART}/pascal_part/train.json",
                f"{_VLPART}/pascal_part/VOCdevkit/VOC2010/JPEGImages",
            ),
        ),
    ),
    "vip_bench": Entry(
        licence="ViP-Bench: see its data card; images belong to their owners",
        parts=(
            Part(
                split="test",
                subset="vip_bench_bbox",
                reader="stages.convert.vip_bench:read",
                annotations=("vip_bench/vip-bench-meta-data.json", "vip_bench/bbox/questions.jsonl"),
                images=("vip_bench/source_image",),
                text="none",
            ),
        ),
    ),
    "longgrit": Entry(
        licence="LongGRIT is unreleased, and this layout ours; images belong to their owners",
        parts=(
            Part(
                split="train",
                subset="longgrit",
                reader="stages.convert.longgrit:read",
                annotations=("longgrit/longgrit.jsonl",),
                images=("longgrit",),
                text="caption",
            ),
        ),
    ),
    "urban1k": Entry(
        licence="Urban1k: CC BY-NC 4.0; images belong to their owners",
        parts=(
            Part(
                split="test",
                subset="urban1k",
                reader="stages.convert.long_texts:read_urban1k",
                annotations=(),
                listed=("Urban1k/caption", "Urban1k/image"),
                images=("Urban1k/image",),
            ),
        ),
    ),
    "docci": Entry(
        licence="DOCCI, texts and images: CC BY 4.0",
        parts=(
            *(docci(split, f"docci_{split}") for split in ("train", "test", "qual_dev", "qual_test")),
            docci("all", "docci_first_1000"),
        ),
    ),
    "sharegpt4v": Entry(
        licence="ShareGPT4V: CC BY-NC 4.0 and OpenAI's terms; images belong to their owners (SA-1B, LAION, COCO)",
        parts=(sharegpt4v("test", "sharegpt4v_1k"), sharegpt4v("train", "sharegpt4v_pt")),
    ),
    "dci": Entry(
        licence="Densely Captioned Images: CC BY-NC; images: SA-1B's own licence, for research",
        parts=tuple(
            dci(split, texts, default=texts == "extended")
            for split in ("all", "train", "val", "test")
            for texts in ("extended", "extra")
        ),
    ),
}
