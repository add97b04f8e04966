"""SOURCES: every raw data set a recipe can convert, by the name it has in a recipe."""

from collections.abc import Mapping

from stages.convert.parts import Entry, Part

_HA = "grandf/GranDf_HA_images"
_GRANDF = "grandf/annotations"
_COCO_2014 = "images/mscoco/images/train2014"
_VISUAL_GENOME = ("visual_genome/VG_100K", "visual_genome/VG_100K_2")
_FLICKR = "grandf/flikcr_30k/train"  # the spelling of the original


def _pix2cap(split: str) -> Part:
    return Part(
        split=split,
        subset=f"pix2cap_coco_{split}",
        reader="stages.convert.pix2cap:read",
        annotations=(f"pix2cap_coco/pix2cap_coco_{split}.json",),
        images=(f"coco/{split}2017",),
        masks=(f"coco/panoptic_{split}2017",),
        text="caption",
    )


def _grand_f(split: str, subset: str, layout: str, images: str, *, default: bool = True) -> Part:
    return Part(
        split=split,
        subset=subset,
        reader=f"stages.convert.grand_f:read_{layout}",
        annotations=(f"{_GRANDF}/train/{subset}.json",),  # the authors keep their val files beside the train files
        images=(images,),
        default=default,
    )


def _gcg_coco(split: str) -> Part:
    return Part(
        split=split,
        subset=f"{split}_gcg_coco",
        reader="stages.convert.grand_f:read_pair",
        annotations=tuple(f"{_GRANDF}/val_test/{split}_gcg_coco_{kind}_gt.json" for kind in ("caption", "mask")),
        images=(f"{_HA}/val_test",),
    )


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
        ),
    ),
    "grand_f": Entry(
        licence="GranD-f: see its data card; images belong to SA-1B, COCO and Flickr30k and keep their terms",
        parts=(
            _grand_f("train", "GranDf_HA_GCG_train", "groundings", f"{_HA}/train"),
            _grand_f("train", "OpenPsgGCG_train", "groundings", "coco/train2017"),
            _grand_f("train", "RefCOCOg_GCG_train", "refs", _COCO_2014),
            _grand_f("train", "flickr_mergedGT_GCG_train", "flickr", _FLICKR),
            _grand_f("val", "OpenPsgGCG_val", "groundings", "coco/val2017", default=False),
            _grand_f("val", "RefCOCOg_GCG_val", "refs", _COCO_2014, default=False),
            _grand_f("val", "flickr_mergedGT_GCG_val", "flickr", _FLICKR, default=False),
            _gcg_coco("val"),  # the benchmark: what a split means when no subset is named
            _gcg_coco("test"),
        ),
    ),
    "pix2cap_coco": Entry(
        licence="Pix2Cap-COCO: Apache-2.0; COCO's masks: CC BY 4.0; images belong to their owners (Flickr)",
        parts=(_pix2cap("train"), _pix2cap("val")),
    ),
}
