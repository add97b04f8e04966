"""Numbers of papers beside ours, times 100 as printed there, and everything for which the two cannot be compared."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orchestrator.records import record
from stages.evaluate.benchmark import Benchmark, Tools
from stages.evaluate.published_tables import PUBLISHED

TIMES = 100.0  # of every score with published numbers: ours are shares, and METEOR and CIDEr likewise
ENCODER = "bert-base-uncased"  # whose cosines the papers' mask recall asks for
CAPTION_TOKENS = 512  # at most, in the released evaluation of GCG
_DETECTED = "the published choose among a detector's proposals, these scores among the regions of the data"
# what is true of every published row of a benchmark, whatever our data is
_OTHERWISE: Mapping[str, str] = {
    "refer": "another protocol: for the published numbers the model is told its answers, see refer_compat",
    "region_retrieval": "the published numbers are of 2,000 images of GRIT, drawn at random and nowhere named",
    "region_recognition": "which images of COCO the paper took is not verified",
    **dict.fromkeys(("refer_proposals_parsed", "refer_proposals_reclip"), _DETECTED),
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
    times = {score: TIMES for score in benchmark.meanings if any(score in row.scores for row in shown.rows)}
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
    if name in _OTHERWISE:
        found.append(_OTHERWISE[name])
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
