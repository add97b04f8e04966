"""METEOR and CIDEr of captions: pycocoevalcap's own where it can run, else plain Python, which says that it is that.

The one place that knows which. Both take one hypothesis and one or more references for each item, as plain text.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.evaluate import captions

PACKAGE = "pycocoevalcap"
NOTHING = "."  # a text that the tokenizer cuts to nothing, but that keeps its line
# what METEOR reads for empty texts: it would wait for ever for one, and these match no word, nor each other
UNSAID, UNTOLD = "unsaidcaption", "untoldreference"

Texts = dict[int, list[str]]  # number of an item -> its texts


@record
class CaptionScores:
    """How well captions are worded, averaged over the items."""

    meteor: float  # 0 to 1
    cider: float  # CIDEr-D, 0 to 10


@record
class CaptionScorer:
    """One way to score captions."""

    name: str
    told: str  # what a reader of the scores must know
    score: Callable[[Sequence[str], Sequence[Sequence[str]]], CaptionScores]  # hypotheses, references of each
    each: Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]  # METEOR of each item


def open_caption_scorer(wish: str) -> CaptionScorer:
    """Returns the scorer that `config.caption_scorer` names; "auto" takes pycocoevalcap where it can run."""
    missing = why_not()
    if wish == "plain":
        return _plain("config.caption_scorer asks for it")
    if missing is None:
        return CaptionScorer(
            name=PACKAGE,
            told=(
                "METEOR and CIDEr are pycocoevalcap's, with its Penn Treebank tokenizer and METEOR 1.5, as in the "
                "released evaluation; an empty caption counts as one wrong word."
            ),
            score=_with_java,
            each=_each_with_java,
        )
    if wish == PACKAGE:
        raise InputError(f"config.caption_scorer: {PACKAGE} cannot run here, {missing}; plain and auto can")
    return _plain(missing)


def why_not() -> str | None:
    """Says why pycocoevalcap cannot run here; None if it can."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return f"{PACKAGE} is not installed (pip install '.[scores]')"
    if shutil.which("java") is None:
        return "there is no Java runtime on the path"
    tokenizer = Path(next(iter(spec.submodule_search_locations))) / "tokenizer"
    # the package writes what it tokenizes beside its jar
    return None if os.access(tokenizer, os.W_OK) else f"{tokenizer} cannot be written to"


def _plain(why: str) -> CaptionScorer:
    return CaptionScorer(
        name="plain",
        told=(
            f"METEOR and CIDEr are this project's pure-Python fallback ({why}): METEOR is NLTK's with exact and "
            "stemmed matches, averaged over items, without synonyms and paraphrases; CIDEr is CIDEr-D on text cut by a "
            "simple Penn-Treebank-like tokenizer. Papers' numbers come from pycocoevalcap and are close, not equal."
        ),
        score=lambda hypotheses, references: CaptionScores(
            meteor=captions.meteor(hypotheses, references), cider=captions.cider(hypotheses, references)
        ),
        each=captions.each_meteor,
    )


def _with_java(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores as COCOEvalCap does: all texts through the tokenizer, then CIDEr and METEOR over all items."""
    from pycocoevalcap.cider.cider import Cider

    if not hypotheses:
        return CaptionScores(meteor=0.0, cider=0.0)
    said, true = _cut(hypotheses, references)
    cider, _ = Cider().compute_score(true, said)
    return CaptionScores(meteor=_meteor(said, true)[0], cider=float(cider))


def _each_with_java(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    return _meteor(*_cut(hypotheses, references))[1] if hypotheses else []


def _cut(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Texts, Texts]:
    """Cuts all texts at once, for a tokenizer takes a second to start."""
    cut = iter(_tokenized([*hypotheses, *(text for some in references for text in some)]))
    said = {number: [next(cut)] for number in range(len(hypotheses))}
    return said, {number: [next(cut) for _ in some] for number, some in enumerate(references)}


def _tokenized(texts: Sequence[str]) -> list[str]:
    """Cuts texts with Stanford's tokenizer; words are joined by single spaces, punctuation is gone."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # a line a text: it would take a line break for the next text, and lose empty lines at the end
    lines = {number: [{"caption": " ".join(text.split()) or NOTHING}] for number, text in enumerate(texts)}
    cut: dict[int, list[str]] = PTBTokenizer().tokenize(lines)
    # bars part the fields of what METEOR reads
    return [" ".join(cut[number][0].replace("|||", " ").split()) for number in range(len(texts))]


def _meteor(said: Texts, true: Texts) -> tuple[float, list[float]]:
    """Returns METEOR over all items together, which is not the mean of their own scores, and those."""
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        total, each = meteor.compute_score(_never_empty(true, UNTOLD), _never_empty(said, UNSAID))
    finally:
        for pipe in (meteor.meteor_p.stdin, meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            pipe.close()
        meteor.meteor_p.kill()
        meteor.meteor_p.wait()
    return float(total), [float(one) for one in each]


def _never_empty(texts: Texts, instead: str) -> Texts:
    return {number: [text or instead for text in some] for number, some in texts.items()}
