"""What an evaluation can ask, as far as planning needs to know it: no code of a benchmark is imported for this."""

from collections.abc import Mapping

from orchestrator.records import record


@record
class Question:
    """A benchmark's scores, and what a model must be able to do to be asked it."""

    ability: str  # a protocol of stages/family.py
    scores: tuple[str, ...]  # the higher the better, but for those in `falling`
    falling: frozenset[str] = frozenset()


_BOTH_WAYS = tuple(f"{way}{most}" for most in (1, 5, 10) for way in ("image_to_text", "text_to_image"))

QUESTIONS: Mapping[str, Question] = {
    "gcg": Question(
        ability="Grounds",
        scores=(
            "miou", "miou_strict", "ap50", "mask_recall", "mask_recall_strict", "mask_recall_exact", "phrase_exact",
            "phrases_found", "phrases_right", "meteor", "cider",
        ),
    ),
    "region_captions": Question(
        ability="DescribesRegions", scores=("meteor", "cider", "meteor_strict", "cider_strict", "exact")
    ),
    "refer": Question(ability="Refers", scores=("ciou", "giou", "precision50", "pointed_once")),
    "refer_compat": Question(ability="Refers", scores=("ciou", "giou")),
    "refer_boxes": Question(ability="RefersByBox", scores=("precision50", "mean_iou")),
    "word_locations": Question(
        ability="LocatesWords",
        scores=("word_error", "middle_error", "iou50"),
        falling=frozenset({"word_error", "middle_error"}),
    ),
    "dense_captions": Question(ability="DescribesDensely", scores=("map", "map_strict", "recall50")),
    "region_retrieval": Question(
        ability="Embeds", scores=("region_to_text10", "text_to_region10", "region_to_text1", "text_to_region1")
    ),
    "region_recognition": Question(ability="Embeds", scores=("class_accuracy", "class_accuracy5", "accuracy")),
    "image_retrieval": Question(ability="Embeds", scores=_BOTH_WAYS),
    "masked_retrieval": Question(
        ability="Embeds", scores=("region_to_text10", "text_to_region10", "region_to_text1", "text_to_region1")
    ),
    "masked_recognition_crops": Question(ability="Embeds", scores=("class_accuracy", "class_accuracy5", "accuracy")),
    "masked_recognition_whole": Question(ability="Embeds", scores=("class_accuracy", "class_accuracy5", "accuracy")),
    "long_texts": Question(ability="Embeds", scores=_BOTH_WAYS),
    "long_texts_compat": Question(ability="EmbedsWhole", scores=_BOTH_WAYS),
    "refer_proposals": Question(ability="Embeds", scores=("precision50", "mean_iou")),
    "refer_proposals_parsed": Question(ability="Embeds", scores=("precision50", "mean_iou")),
    "refer_proposals_reclip": Question(ability="Embeds", scores=("precision50", "mean_iou")),
    "panoptic": Question(
        ability="SegmentsPanoptic",
        scores=("pq", "sq", "rq", "bleu4", "rouge_l", "cider", "meteor", "exact", "map", "map_strict"),
    ),
    "vip_bench": Question(ability="Answers", scores=("worded",)),
}  # fmt: skip
