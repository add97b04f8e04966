"""Published numbers stand beside ours, with everything for which they cannot be compared."""

from typing import Any

import pytest

from stages.evaluate.benchmark import Tools
from stages.evaluate.benchmarks import BENCHMARKS
from stages.evaluate.caption_scorers import CaptionScorer, CaptionScores, open_caption_scorer
from stages.evaluate.likeness import BY_WORDS, Likeness
from stages.evaluate.published import ENCODER, Setting, beside
from stages.evaluate.published_tables import PUBLISHED

PLAIN = Tools(captions=open_caption_scorer("plain"), likeness=BY_WORDS)
LIKE_THE_PAPER = Tools(
    captions=CaptionScorer(
        name="pycocoevalcap", told="", score=lambda *_: CaptionScores(meteor=0.0, cider=0.0), each=lambda *_: []
    ),
    likeness=Likeness(name=ENCODER, told="", prepare=BY_WORDS.prepare),
)


def shown(name: str, facts: dict[str, Any], *, tools: Tools = LIKE_THE_PAPER, **more: Any) -> dict[str, Any]:
    setting = Setting(**{"facts": facts, "limited": False, "max_new_tokens": 512, "tools": tools, **more})
    return beside(name, BENCHMARKS[name], [setting])


def test_on_the_papers_data_with_the_papers_tools_all_is_comparable() -> None:
    found = shown("gcg", {"subsets": ["test_gcg_coco"]})

    glamm = next(row for row in found["rows"] if row["model"] == "GLaMM")
    assert (found["data"], found["differs"], found["differs_in"]) == ("GranD-f test", [], {})
    assert glamm["source"] == "arXiv 2311.03356, table 3"
    assert glamm["scores"] == {"meteor": 15.8, "cider": 43.5, "ap50": 29.2, "miou": 65.6, "mask_recall": 40.8}


def test_long_texts_stand_beside_those_of_their_data_set() -> None:
    for subset, data in (("urban1k", "Urban1k"), ("dci_extended", "DCI, all images")):
        found = shown("long_texts", {"subsets": [subset]})

        assert (found["data"], found["differs"]) == (data, [])
        assert found["times"] == {"image_to_text1": 100.0, "text_to_image1": 100.0}


def test_the_fallbacks_are_named_score_by_score() -> None:
    found = shown("gcg", {"subsets": ["val_gcg_coco"]}, tools=PLAIN)

    assert found["differs"] == []
    assert set(found["differs_in"]) == {"meteor", "cider", "mask_recall"}


@pytest.mark.parametrize(
    ("name", "facts", "more", "reason"),
    [
        ("gcg", {"subsets": ["pix2cap_coco_val"]}, {}, "are of GranD-f val, these scores of pix2cap_coco_val"),
        ("gcg", {}, {}, "these scores of data of another origin"),
        ("gcg", {"subsets": ["val_gcg_coco"]}, {"limited": True}, "only some of the samples"),
        ("gcg", {"subsets": ["val_gcg_coco"]}, {"max_new_tokens": 64}, "captions end after 64 tokens"),
        ("gcg", {"subsets": ["val_gcg_coco"], "skipped": {"total": 3}}, {}, "3 records of the data"),
        ("refer", {"subsets": ["refcoco_unc_val"]}, {}, "the model is told its answers"),
        ("refer_proposals_parsed", {"subsets": ["refcoco_unc_val"]}, {}, "among a detector's proposals"),
        ("long_texts", {"subsets": ["docci_first_1000"]}, {}, "are of Urban1k, these scores of docci_first_1000"),
        ("dense_captions", {"subsets": ["region_descriptions"]}, {}, "are of Visual Genome test"),
    ],
)
def test_what_keeps_numbers_apart_is_said(name: str, facts: dict[str, Any], more: dict[str, Any], reason: str) -> None:
    (told,) = shown(name, facts, **more)["differs"]

    assert reason in told


def test_every_published_number_is_of_a_score_that_exists_and_has_a_source() -> None:
    assert {"gcg", "region_captions", "refer", "refer_compat"} <= set(PUBLISHED) <= set(BENCHMARKS)
    for name, splits in PUBLISHED.items():
        for split in splits:
            for row in split.rows:
                assert set(row.scores) <= set(BENCHMARKS[name].meanings), (name, split.name)
                assert row.source.startswith(("arXiv ", "README of github.com/", "model card huggingface.co/"))
                assert all(1 < printed < 200 for printed in row.scores.values())  # as printed: percentages


def test_boxes_and_dense_captions_stand_beside_what_pixelllm_released() -> None:
    boxes, dense = (
        shown("refer_boxes", {"subsets": ["refcoco_unc_testB"]}),
        shown("dense_captions", {"subsets": ["test"]}),
    )

    assert boxes["differs"] == dense["differs"] == []
    assert {row["model"]: row["scores"]["precision50"] for row in boxes["rows"]} == {
        "PixelLLM, Flan-T5": 86.8, "PixelLLM, BERT": 86.9, "Ferret with CLIP L/14": 83.5, "Ferret with CLOC L/14": 84.7
    }  # fmt: skip
    assert [row["scores"]["map"] for row in dense["rows"]] == [17.5, 17.4, 17.0]
    assert boxes["times"] == {"precision50": 100.0}


def test_what_nobody_has_published_has_no_rows() -> None:
    assert {"panoptic", "word_locations", "vip_bench"}.isdisjoint(PUBLISHED)
