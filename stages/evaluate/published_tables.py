"""Numbers of papers and releases, as printed, and where they stand. What is not here nobody has told us.

Of Pix2Cap-COCO's panoptic tables, PixCLIP's own ones and word grounding on Localized Narratives no figure is known.
"""

from collections.abc import Mapping, Sequence

from orchestrator.records import record

GCG, REFERRING, REGIONS = (f"arXiv 2311.03356, table {number}" for number in (3, 4, 5))
README = "README of github.com/mbzuai-oryx/groundingLMM"
PIXELLLM = "README of github.com/google-research/scenic, projects/pixel_llm: released weights"
PIXELLLM_PAPER = "arXiv 2312.09237, as other papers' tables have it"
CLOC = "arXiv 2410.02746v2"
ALPHA_CLIP = "README of github.com/SunzeY/AlphaCLIP"
LLM2CLIP = "arXiv 2411.04997, table 1"
LOTLIP = "model card huggingface.co/weiwu-ww/LoTLIP-ViT-B-16-100M"
UNKNOWN = ""  # a subset that no shards have: which images the paper took is not said


@record
class Published:
    """One row of a paper's table."""

    model: str
    source: str
    scores: Mapping[str, float]  # as printed


@record
class Split:
    """The data that rows are about."""

    name: str
    subset: str  # of convert_shards
    rows: tuple[Published, ...]


def _gcg(model: str, printed: Sequence[float]) -> Published:
    names = ("meteor", "cider", "ap50", "miou", "mask_recall")
    return Published(model=model, source=GCG, scores=dict(zip(names, printed, strict=True)))


def _ciou(name: str, subset: str, lisa: float, zero_shot: float, glamm: float) -> Split:
    rows = (
        Published(model="LISA-7B (FT)", source=REFERRING, scores={"ciou": lisa}),
        Published(model="GLaMM (ZS)", source=README, scores={"ciou": zero_shot}),
        Published(model="GLaMM (FT)", source=REFERRING, scores={"ciou": glamm}),
    )
    return Split(name=name, subset=subset, rows=rows)


def _region(model: str, meteor: float, cider: float, source: str = REGIONS) -> Published:
    return Published(model=model, source=source, scores={"meteor": meteor, "cider": cider})


def _precision(name: str, subset: str, printed: Mapping[str, float]) -> Split:
    rows = (
        Published(model=model, source=_SOURCES[model], scores={"precision50": value})
        for model, value in printed.items()
    )
    return Split(name=name, subset=subset, rows=tuple(rows))


def _both_ways(name: str, subset: str, *rows: tuple[str, float, float], source: str = LLM2CLIP) -> Split:
    published = tuple(
        Published(model=model, source=source, scores={"image_to_text1": to_text, "text_to_image1": to_image})
        for model, to_text, to_image in rows
    )
    return Split(name=name, subset=subset, rows=published)


def _proposals(model: str, printed: Mapping[str, float]) -> tuple[Split, ...]:
    return tuple(
        Split(
            name=known.name,
            subset=known.subset,
            rows=(Published(model=model, source=ALPHA_CLIP, scores={"precision50": printed[known.subset]}),),
        )
        for known in _REFERRING
        if known.subset in printed
    )


_T5, _BERT, _PAPER = "PixelLLM, Flan-T5", "PixelLLM, BERT", "PixelLLM (paper)"
_FERRET, _WITH_CLOC = "Ferret with CLIP L/14", "Ferret with CLOC L/14"
_SOURCES = {
    _T5: PIXELLLM, _BERT: PIXELLLM, _PAPER: PIXELLLM_PAPER, _FERRET: CLOC, _WITH_CLOC: CLOC,
}  # fmt: skip
_BOXES = (
    _precision(
        "RefCOCO val",
        "refcoco_unc_val",
        {_T5: 90.3, _BERT: 89.6, _PAPER: 89.8, _FERRET: 88.0, _WITH_CLOC: 89.0},
    ),
    _precision("RefCOCO testA", "refcoco_unc_testA", {_T5: 92.3, _BERT: 91.4, _FERRET: 90.4, _WITH_CLOC: 91.0}),
    _precision("RefCOCO testB", "refcoco_unc_testB", {_T5: 86.8, _BERT: 86.9, _FERRET: 83.5, _WITH_CLOC: 84.7}),
    _precision("RefCOCO+ val", "refcoco+_unc_val", {_T5: 83.7, _BERT: 82.2}),
    _precision("RefCOCO+ testA", "refcoco+_unc_testA", {_T5: 87.2, _BERT: 86.9}),
    _precision("RefCOCO+ testB", "refcoco+_unc_testB", {_T5: 78.5, _BERT: 76.4}),
    _precision("RefCOCOg val (umd)", "refcocog_umd_val", {_T5: 84.5, _BERT: 84.2}),
    _precision("RefCOCOg test (umd)", "refcocog_umd_test", {_T5: 85.7, _BERT: 85.0}),
)
_REFERRING = (
    _ciou("RefCOCO val", "refcoco_unc_val", 74.9, 54.7, 79.5),
    _ciou("RefCOCO testA", "refcoco_unc_testA", 79.1, 58.1, 83.2),
    _ciou("RefCOCO testB", "refcoco_unc_testB", 72.3, 52.2, 76.9),
    _ciou("RefCOCO+ val", "refcoco+_unc_val", 65.1, 42.5, 72.6),
    _ciou("RefCOCO+ testA", "refcoco+_unc_testA", 70.8, 47.1, 78.7),
    _ciou("RefCOCO+ testB", "refcoco+_unc_testB", 58.1, 39.5, 64.6),
    _ciou("RefCOCOg val (umd)", "refcocog_umd_val", 67.9, 54.8, 74.2),
    _ciou("RefCOCOg test (umd)", "refcocog_umd_test", 70.6, 55.6, 74.9),
)
# choosing among a detector's proposals, by subset
_ALPHA_CLIP = {
    "refcoco_unc_val": 55.7, "refcoco_unc_testA": 61.1, "refcoco_unc_testB": 50.3,
    "refcoco+_unc_val": 55.6, "refcoco+_unc_testA": 62.7, "refcoco+_unc_testB": 46.4,
    "refcocog_umd_val": 61.2, "refcocog_umd_test": 62.0,
}  # fmt: skip
_RECLIP = {"refcoco_unc_val": 45.8, "refcoco_unc_testA": 46.1, "refcoco_unc_testB": 47.1}
# image to text, and text to image; of the models of PixCLIP's size that its paper's peers are compared with
_LONG_TEXTS = (
    _both_ways(
        "Urban1k",
        "urban1k",
        ("CLIP B/16", 67.5, 53.1),
        ("Long-CLIP B/16", 79.1, 79.1),
        ("EVA02-CLIP B/16", 67.0, 60.8),
        ("EVA02-CLIP B/16, LLM2CLIP", 88.2, 91.3),
    ),
    _both_ways(
        "ShareGPT4V, the first 1,000",
        "sharegpt4v_1k",
        ("CLIP B/16", 84.5, 79.8),
        ("Long-CLIP B/16", 94.8, 93.5),
        ("EVA02-CLIP B/16", 90.5, 85.5),
        ("EVA02-CLIP B/16, LLM2CLIP", 98.5, 98.5),
    ),
    _both_ways(
        "DOCCI (test, it seems: the paper does not say)",
        "docci_test",
        ("CLIP B/16", 60.7, 57.1),
        ("Long-CLIP B/16", 63.1, 71.4),
        ("EVA02-CLIP B/16", 67.7, 68.0),
        ("EVA02-CLIP B/16, LLM2CLIP", 86.8, 88.5),
    ),
    _both_ways("DCI, all images", "dci_extended", ("LoTLIP B/16", 64.11, 62.63), source=LOTLIP),
)
# model, its scores on val, and on test
_GCG = (
    ("BuboGPT", (17.2, 3.6, 19.1, 54.0, 29.4), (17.1, 3.5, 17.3, 54.1, 27.0)),
    ("Kosmos-2", (16.1, 27.6, 17.1, 55.6, 28.3), (15.8, 27.2, 17.2, 56.8, 29.0)),
    ("LISA (adapted)", (13.0, 33.9, 25.2, 62.0, 36.3), (12.9, 32.2, 24.8, 61.7, 35.5)),
    ("GLaMM without the 1K human images", (15.2, 43.1, 28.9, 65.8, 39.6), (14.6, 37.9, 27.2, 64.6, 38.0)),
    ("GLaMM", (16.2, 47.2, 30.8, 66.3, 41.8), (15.8, 43.5, 29.2, 65.6, 40.8)),
)
# benchmark -> its splits; the first one is shown where the data is none of them
PUBLISHED: Mapping[str, Sequence[Split]] = {
    "gcg": (
        Split(name="GranD-f val", subset="val_gcg_coco", rows=tuple(_gcg(name, val) for name, val, _ in _GCG)),
        Split(name="GranD-f test", subset="test_gcg_coco", rows=tuple(_gcg(name, test) for name, _, test in _GCG)),
    ),
    "region_captions": (
        Split(
            name="RefCOCOg val (umd)",
            subset="refcocog_umd_val",
            rows=(
                _region("GRiT", 15.2, 71.6),
                _region("GLaMM (ZS)", 15.7, 104.0),
                _region("GLaMM (FT)", 16.2, 106.0),
                _region(_T5, 15.3, 92.0, PIXELLLM),
                _region(_PAPER, 14.3, 82.3, PIXELLLM_PAPER),
            ),
        ),
        Split(
            name="Visual Genome test",
            subset="test_caption",
            rows=(
                _region("GRiT", 17.1, 142.0),
                _region("GPT4RoI", 17.4, 145.2),
                _region("GLaMM (ZS)", 17.0, 127.0),
                _region("GLaMM (FT)", 19.7, 180.5),
                _region(_T5, 20.1, 149.0, PIXELLLM),
                _region(_PAPER, 19.9, 148.9, PIXELLLM_PAPER),
            ),
        ),
    ),
    "refer": _REFERRING,
    "refer_compat": _REFERRING,
    "refer_boxes": _BOXES,
    "dense_captions": (
        Split(
            name="Visual Genome test",
            subset="test",
            rows=(
                Published(model=_T5, source=PIXELLLM, scores={"map": 17.5}),
                Published(model=_BERT, source=PIXELLLM, scores={"map": 17.4}),
                Published(model=_PAPER, source=PIXELLLM_PAPER, scores={"map": 17.0}),
            ),
        ),
    ),
    "long_texts": _LONG_TEXTS,
    "long_texts_compat": _LONG_TEXTS,
    "refer_proposals_parsed": _proposals("Alpha-CLIP", _ALPHA_CLIP),
    "refer_proposals_reclip": _proposals("ReCLIP", _RECLIP),
    "region_retrieval": (
        Split(
            name="GRIT, 2,000 images",
            subset="grit-20m",
            rows=tuple(
                Published(model=model, source=CLOC, scores={"region_to_text10": to_text, "text_to_region10": to_region})
                for model, to_text, to_region in (
                    ("CLOC B/16, RoIAlign in place of the Prompter", 55.5, 18.4),
                    ("CLOC B/16", 63.9, 65.9),
                    ("CLOC L/14", 66.9, 68.3),
                    ("CLOC H/14", 67.4, 69.4),
                )
            ),
        ),
    ),
    "region_recognition": (
        Split(
            name="COCO, given boxes",
            subset="instances_val2017",
            rows=tuple(
                Published(model=model, source=CLOC, scores={"class_accuracy": accuracy})
                for model, accuracy in (("CLOC B/16", 71.1), ("CLOC L/14", 72.9), ("CLOC H/14", 73.0))
            ),
        ),
    ),
    "image_retrieval": (
        _both_ways(
            "COCO's captions",
            UNKNOWN,
            ("OpenAI CLIP B/16", 52.4, 33.1),
            ("CLOC B/16", 69.2, 49.3),
            ("CLOC L/14", 74.8, 54.4),
            ("CLOC H/14", 75.7, 55.1),
            source=CLOC,
        ),
    ),
}
