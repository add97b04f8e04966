"""Which code scores captions, that the report says so, and that the fallback agrees with pycocoevalcap where it can."""

from pathlib import Path

import pytest

from orchestrator.errors import InputError
from stages.evaluate import captions
from stages.evaluate.caption_scorers import open_caption_scorer, why_not

SAID = ("a red circle left of the dog", "two blue squares over sand", "", "a dog 's red-ish ball is n't big", "...")
TRUE = (
    ("a red circle near the dog", "the red circle"),
    ("two blue squares on sand",),
    ("a man rides a horse",),
    ("the dog 's ball is n't red-ish",),
    ("something",),
)


def test_the_fallback_says_that_it_is_one() -> None:
    scorer = open_caption_scorer("plain")

    assert scorer.name == "plain"
    assert "pure-Python fallback" in scorer.told
    assert scorer.score(SAID, TRUE).cider == captions.cider(SAID, TRUE)


def test_auto_takes_the_package_where_it_can_run_and_else_says_why_not() -> None:
    missing, scorer = why_not(), open_caption_scorer("auto")

    assert scorer.name == ("pycocoevalcap" if missing is None else "plain")
    assert missing is None or missing in scorer.told


def test_without_java_the_reason_is_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pycocoevalcap/tokenizer").mkdir(parents=True)
    (tmp_path / "pycocoevalcap/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert why_not() == "there is no Java runtime on the path"
    with pytest.raises(InputError, match=r"config.caption_scorer: pycocoevalcap cannot run here, there is no Java"):
        open_caption_scorer("pycocoevalcap")


def test_captions_without_words_have_a_defined_score_in_the_fallback() -> None:
    score = open_caption_scorer("plain").score

    assert score(["", "..."], [["a dog"], [""]]).meteor == 0.0
    assert score([], []).cider == 0.0


def test_the_fallbacks_cider_is_what_pycocoevalcap_1_2_gave_for_these_texts() -> None:
    # recorded from the package itself on Java 17; the test below asks it again where it is installed
    assert open_caption_scorer("plain").score(SAID, TRUE).cider == pytest.approx(2.1150952822386735, rel=1e-12)


@pytest.mark.slow
@pytest.mark.needs("java", "pycocoevalcap")
def test_the_fallbacks_cider_is_that_of_pycocoevalcap_and_its_meteor_is_near() -> None:
    ours, theirs = (
        open_caption_scorer("plain").score(SAID, TRUE),
        open_caption_scorer("pycocoevalcap").score(SAID, TRUE),
    )

    assert ours.cider == pytest.approx(theirs.cider, rel=1e-9)
    assert theirs.cider > 1
    assert ours.meteor == pytest.approx(theirs.meteor, abs=0.2)


@pytest.mark.slow
@pytest.mark.needs("java", "pycocoevalcap")
def test_the_packages_scorers_are_asked_as_its_own_evaluation_asks_them() -> None:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = ["A red circle, left of the dog's ball.", "Two blue squares (over sand)!", "dogs running 3.5 m"]
    true = [["A red ball near a dog.", "the red circle"], ["Two blue squares on sand."], ["The dog runs; it is fast."]]
    truths = PTBTokenizer().tokenize({n: [{"caption": text} for text in some] for n, some in enumerate(true)})
    answers = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(said)})
    meteor = Meteor()
    expected = meteor.compute_score(truths, answers)[0], Cider().compute_score(truths, answers)[0]
    for pipe in (meteor.meteor_p.stdin, meteor.meteor_p.stdout, meteor.meteor_p.stderr):
        pipe.close()

    found = open_caption_scorer("pycocoevalcap").score(said, true)

    assert (found.meteor, found.cider) == pytest.approx(expected, rel=1e-12)
    assert 0.1 < found.meteor < 1


@pytest.mark.slow
@pytest.mark.needs("java", "pycocoevalcap")
def test_pycocoevalcap_survives_empty_captions_line_breaks_and_bars() -> None:
    score = open_caption_scorer("pycocoevalcap").score

    broken = score(["a dog\nruns", "a ||| cat", "", " "], [["a dog runs"], ["a cat"], ["a man"], [""]])
    empty = score(["", ""], [["a dog"], ["a cat"]])

    assert 0 < broken.meteor < 1
    assert broken.cider > 0
    assert (empty.meteor, empty.cider) == (0.0, 0.0)
