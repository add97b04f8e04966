"""The parts of data sets whose files come in one layout, many times: a function a layout."""

from stages.convert.parts import Entry, Part

HA = "grandf/GranDf_HA_images"
_GRANDF = "grandf/annotations"
_COCO = "coco/annotations"
COCO_2014 = "images/mscoco/images/train2014"
FLICKR_OWNERS = "images belong to their owners (Flickr)"


def coco(split: str, kind: str, reader: str, *, default: bool = False) -> Part:
    """Names one annotation file of COCO 2017."""
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


def coco_parts(split: str) -> tuple[Part, ...]:
    """Names captions, instances and panoptic segments of a split; captions are what the split means alone."""
    return (
        coco(split, "captions", "stages.convert.coco:read_captions", default=True),
        coco(split, "instances", "stages.convert.coco:read_instances"),
        coco(split, "panoptic", "stages.convert.panoptic:read"),
    )


def refcoco(name: str, by: str, splits: tuple[str, ...]) -> Entry:
    """Names RefCOCO and its sisters: a part a split, all in the same two files."""
    return Entry(
        licence=f"RefCOCO's expressions: see their authors; COCO's masks: CC BY 4.0; {FLICKR_OWNERS}",
        parts=tuple(
            Part(
                split=split,
                subset=f"{name}_{by}_{split}",
                reader="stages.convert.refcoco:read",
                annotations=(f"{name}/refs({by}).p", f"{name}/instances.json"),
                images=(COCO_2014,),
            )
            for split in splits
        ),
    )


def narratives(split: str, subset: str, images: str, *, files: int = 1, default: bool = False) -> Part:
    """Names Localized Narratives of one data set, in one file or in numbered ones."""
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


def labels(split: str, reader: str, classes: str, *, labels: str, images: str) -> Part:
    """Names pictures of class numbers: `reader` names their layout."""
    return Part(
        split=split,
        subset=f"{reader}_{split}",
        reader=f"stages.convert.label_maps:read_{reader}",
        annotations=(f"semantic/{classes}",),
        listed=(f"semantic/{labels}",),
        images=(images,),
        text="none",
    )


def object_parts(split: str, subset: str, annotations: str, images: str) -> Part:
    """Names objects and their parts in COCO's layout."""
    return Part(
        split=split,
        subset=subset,
        reader="stages.convert.coco:read_parts",
        annotations=(annotations,),
        images=(images,),
        text="none",
    )


def pix2cap(split: str) -> Part:
    """Names Pix2Cap-COCO, with COCO's panoptic PNGs."""
    return Part(
        split=split,
        subset=f"pix2cap_coco_{split}",
        reader="stages.convert.panoptic:read",
        annotations=(f"pix2cap_coco/pix2cap_coco_{split}.json",),
        images=(f"coco/{split}2017",),
        masks=(f"coco/panoptic_{split}2017",),
        text="caption",
    )


def grand_f(split: str, subset: str, layout: str, images: str, *, default: bool = True) -> Part:
    """Names one file of GranD-f."""
    return Part(
        split=split,
        subset=subset,
        reader=f"stages.convert.grand_f:read_{layout}",
        annotations=(f"{_GRANDF}/train/{subset}.json",),  # the authors keep their val files beside the train files
        images=(images,),
        default=default,
    )


def gcg_coco(split: str) -> Part:
    """Names a split of the GCG benchmark: captions and masks in two files."""
    return Part(
        split=split,
        subset=f"{split}_gcg_coco",
        reader="stages.convert.grand_f:read_pair",
        annotations=tuple(f"{_GRANDF}/val_test/{split}_gcg_coco_{kind}_gt.json" for kind in ("caption", "mask")),
        images=(f"{HA}/val_test",),
    )


def docci(split: str, subset: str) -> Part:
    """Names a split of DOCCI; all are in one file."""
    return Part(
        split=split,
        subset=subset,
        reader="stages.convert.long_texts:read_docci",
        annotations=("docci/docci_descriptions.jsonlines",),
        images=("docci/images",),
    )


def sharegpt4v(split: str, subset: str) -> Part:
    """Names the texts of ShareGPT4V's captioner: the first thousand, or the others. Images may lie in COCO's folder."""
    return Part(
        split=split,
        subset=subset,
        reader="stages.convert.long_texts:read_sharegpt4v",
        annotations=("sharegpt4v/data/share-captioner_coco_lcs_sam_1246k_1107.json",),
        images=("sharegpt4v/data",),
        more_images=("",),
    )


def dci(split: str, texts: str, *, default: bool = False) -> Part:
    """Names the images of Densely Captioned Images that belong to a split of theirs, or all; `texts` names a text."""
    return Part(
        split=split,
        subset=f"dci_{texts}" if split == "all" else f"dci_{texts}_{split}",
        reader=f"stages.convert.dci:read_{texts}",
        annotations=() if split == "all" else ("densely_captioned_images/splits.json",),
        listed=("densely_captioned_images/annotations",),
        images=("densely_captioned_images/photos",),
        text="caption",
        default=default,
    )
