"""SOURCES: every raw data set a recipe can convert, by the name it has in a recipe. README.md has it as a table."""

from collections.abc import Mapping

from stages.convert.parts import Entry, Part

_HA = "grandf/GranDf_HA_images"
_GRANDF = "grandf/annotations"
_COCO = "coco/annotations"
_COCO_2014 = "images/mscoco/images/train2014"
_VISUAL_GENOME = ("visual_genome/VG_100K", "visual_genome/VG_100K_2")
_GRANDF_FLICKR = "grandf/flikcr_30k/train"  # the spelling of the original
_FLICKR = "flickr30k/flickr30k-images"
_VLPART = "semantic/vlpart"
_FLICKR_OWNERS = "images belong to their owners (Flickr)"


def _coco(split: str, kind: str, reader: str, *, default: bool = False) -> Part:
    return Part(
        split=split,
        subset=f"{kind}_{split}2017",
        reader=reader,
        annotations=(f"{_COCO}/{kind}_{split}2017.json",),
        images=(f"coco/{split}2017",),
        masks=(f"coco/panoptic_{split}2017",) if kind == "panoptic" else (),
        text="none",
        default=default,
    )


def _coco_parts(split: str) -> tuple[Part, ...]:
    return (
        _coco(split, "captions", "stages.convert.coco:read_captions", default=True),
        _coco(split, "instances", "stages.convert.coco:read_instances"),
        _coco(split, "panoptic", "stages.convert.panoptic:read"),
    )


def _refcoco(name: str, by: str, splits: tuple[str, ...]) -> Entry:
    return Entry(
        licence=f"RefCOCO's expressions: see their authors; COCO's masks: CC BY 4.0; {_FLICKR_OWNERS}",
        parts=tuple(
            Part(
                split=split,
                subset=f"{name}_{by}_{split}",
                reader="stages.convert.refcoco:read",
                annotations=(f"{name}/refs({by}).p", f"{name}/instances.json"),
                images=(_COCO_2014,),
            )
            for split in splits
        ),
    )


def _narratives(split: str, subset: str, images: str, *, files: int = 1, default: bool = False) -> Part:
    stem = f"localized_narratives/{subset}_localized_narratives"
    numbered = tuple(f"{stem}-{number:05d}-of-{files:05d}.jsonl" for number in range(files))
    return Part(
        split=split,
        subset=subset,
        reader="stages.convert.narratives:read",
        annotations=numbered if files > 1 else (f"{stem}.jsonl",),
        images=(images,),
        default=default,
    )


def _labels(split: str, reader: str, classes: str, *, labels: str, images: str) -> Part:
    return Part(
        split=split,
        subset=f"{reader}_{split}",
        reader=f"stages.convert.label_maps:read_{reader}",
        annotations=(f"semantic/{classes}",),
        listed=(f"semantic/{labels}",),
        images=(images,),
        text="none",
    )


def _object_parts(split: str, subset: str, annotations: str, images: str) -> Part:
    return Part(
        split=split,
        subset=subset,
        reader="stages.convert.coco:read_parts",
        annotations=(annotations,),
        images=(images,),
        text="none",
    )


def _pix2cap(split: str) -> Part:
    return Part(
        split=split,
        subset=f"pix2cap_coco_{split}",
        reader="stages.convert.panoptic:read",
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
            _grand_f("train", "flickr_mergedGT_GCG_train", "flickr", _GRANDF_FLICKR),
            _grand_f("val", "OpenPsgGCG_val", "groundings", "coco/val2017", default=False),
            _grand_f("val", "RefCOCOg_GCG_val", "refs", _COCO_2014, default=False),
            _grand_f("val", "flickr_mergedGT_GCG_val", "flickr", _GRANDF_FLICKR, default=False),
            _gcg_coco("val"),  # the benchmark: what a split means when no subset is named
            _gcg_coco("test"),
        ),
    ),
    "pix2cap_coco": Entry(
        licence="Pix2Cap-COCO: Apache-2.0; COCO's masks: CC BY 4.0; images belong to their owners (Flickr)",
        parts=(_pix2cap("train"), _pix2cap("val")),
    ),
    "jsonl": Entry(
        licence="one's own data: its owner knows",
        own=True,
        parts=(Part(split="train", subset="", reader="stages.convert.jsonl:read", annotations=(), images=()),),
    ),
    "coco": Entry(
        licence=f"COCO's annotations: CC BY 4.0; {_FLICKR_OWNERS}",
        parts=_coco_parts("train") + _coco_parts("val"),
    ),
    "refcoco": _refcoco("refcoco", "unc", ("train", "val", "testA", "testB")),
    "refcoco+": _refcoco("refcoco+", "unc", ("train", "val", "testA", "testB")),
    "refcocog": _refcoco("refcocog", "umd", ("train", "val", "test")),
    "localized_narratives": Entry(
        licence=f"Localized Narratives: CC BY 4.0; {_FLICKR_OWNERS}",
        parts=(
            _narratives("train", "coco_train", "coco/train2017", files=4, default=True),
            _narratives("val", "coco_val", "coco/val2017", default=True),
            _narratives("train", "flickr30k_train", _FLICKR),
            _narratives("val", "flickr30k_val", _FLICKR),
            _narratives("test", "flickr30k_test", _FLICKR, default=True),
            _narratives("train", "ade20k_train", "semantic/ade20k/images/training"),
            _narratives("val", "ade20k_validation", "semantic/ade20k/images/validation"),
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
        licence=f"Flickr30k Entities: see its authors; {_FLICKR_OWNERS}",
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
            _labels(
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
        licence=f"COCO-Stuff: CC BY 4.0; {_FLICKR_OWNERS}",
        parts=tuple(
            _labels(
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
            _labels(
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
        licence=f"PACO: MIT; {_FLICKR_OWNERS}",
        parts=tuple(
            _object_parts(
                split, f"paco_lvis_v1_{split}", f"{_VLPART}/paco/annotations/paco_lvis_v1_{split}.json", "coco"
            )
            for split in ("train", "val", "test")
        ),
    ),
    "pascal_part": Entry(
        licence="PASCAL-Part and VOC 2010: their own terms, for research",
        parts=(
            _object_parts(
                "train",
                "pascal_part_train",
                f"{_VLPART}/pascal_part/train.json",
                f"{_VLPART}/pascal_part/VOCdevkit/VOC2010/JPEGImages",
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
}
