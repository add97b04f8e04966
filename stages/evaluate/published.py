"""Numbers of papers beside ours, and everything for which the two cannot be compared.

All from GLaMM's paper, arXiv 2311.03356 (CVPR 2024), or its README; METEOR, CIDEr and IoU times 100, as printed there.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orchestrator.records import record
from stages.evaluate.benchmark import Benchmark, Tools

GCG, REFERRING, REGIONS = (f"arXiv 2311.03356, table {number}" for number in (3, 4, 5))
README = "README of github.com/mbzuai-oryx/groundingLMM"
IN_PRINT = {"meteor": 100.0, "cider": 100.0, "miou": 100.0, "ap50": 100.0, "mask_recall": 100.0, "ciou": 100.0}
ENCODER = "bert-base-uncased"  # whose cosines the papers' mask recall asks for
CAPTION_TOKENS = 512  # at most, in the released evaluation of GCG


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


def _region(model: str, meteor: float, cider: float) -> Published:
    return Published(model=model, source=REGIONS, scores={"meteor": meteor, "cider": cider})


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
            rows=(_region("GRiT", 15.2, 71.6), _region("GLaMM (ZS)", 15.7, 104.0), _region("GLaMM (FT)", 16.2, 106.0)),
        ),
        Split(
            name="Visual Genome test",
            subset="test_caption",
            rows=(
                _region("GRiT", 17.1, 142.0),
                _region("GPT4RoI", 17.4, 145.2),
                _region("GLaMM (ZS)", 17.0, 127.0),
                _region("GLaMM (FT)", 19.7, 180.5),
            ),
        ),
    ),
    "refer": _REFERRING,
    "refer_compat": _REFERRING,
}


@record
class Setting:
    """What of one shards input's evaluation decides whether scores can stand beside a paper's."""

    facts: Mapping[str, Any]  # of the manifest of the shards
    limited: bool  # not every sample was asked about
    max_new_tokens: int
    tools: Tools


def beside(name: str, benchmark: Benchmark, settings: Sequence[Setting]) -> dict[str, Any]:
    """Returns the published rows for the data of some shards inputs, and why they cannot be compared.

    {"data", "rows": [{"model", "source", "scores"}], "times": score -> what ours are multiplied by, "differs":
    sentences about all scores, "differs_in": score -> sentence}; what neither names is comparable. Empty where no
    published numbers are known.
    """
    splits = PUBLISHED.get(name)
    if splits is None:
        return {}
    subsets = [str(one) for setting in settings for one in setting.facts.get("subsets", ())]
    split = next((one for one in splits if subsets == [one.subset]), None)
    shown = split or splits[0]
    times = {score: IN_PRINT[score] for score in benchmark.meanings if any(score in row.scores for row in shown.rows)}
    differs = []
    if split is None:
        ours = ", ".join(subsets) or "data of another origin"
        differs.append(f"the published numbers are of {shown.name}, these scores of {ours}")
    return {
        "data": shown.name,
        "rows": [{"model": row.model, "source": row.source, "scores": dict(row.scores)} for row in shown.rows],
        "times": times,
        "differs": [*differs, *_differences(name, settings, known=split is not None)],
        "differs_in": dict(_differences_in(benchmark, settings[0].tools, times)),
    }


def _differences(name: str, settings: Sequence[Setting], *, known: bool) -> list[str]:
    found = []
    if any(setting.limited for setting in settings):
        found.append("only some of the samples were asked about")
    lost = sum(setting.facts.get("skipped", {}).get("total", 0) for setting in settings)
    if known and lost:
        found.append(f"{lost} records of the data could not be converted")
    if name == "refer":
        found.append("another protocol: for the published numbers the model is told its answers, see refer_compat")
    tokens = settings[0].max_new_tokens
    if name == "gcg" and tokens < CAPTION_TOKENS:
        found.append(f"captions end after {tokens} tokens, the published ones after {CAPTION_TOKENS}")
    return found


def _differences_in(benchmark: Benchmark, tools: Tools, scores: Collection[str]) -> list[tuple[str, str]]:
    found = []
    for score in scores:
        if score in benchmark.worded and tools.captions.name == "plain":
            found.append((score, "not pycocoevalcap's"))
        if score in benchmark.likened and tools.likeness.name != ENCODER:
            found.append((score, f"phrases compared by {tools.likeness.name}, not by {ENCODER}"))
    return found
