"""BENCHMARKS: every question that an evaluation can put."""

from collections.abc import Mapping

from stages.evaluate.benchmark import Benchmark
from stages.evaluate.boxes import REFER_BOXES
from stages.evaluate.dense_captions import DENSE_CAPTIONS
from stages.evaluate.grounded import GCG
from stages.evaluate.masked import (
    LONG_TEXTS,
    LONG_TEXTS_COMPAT,
    MASKED_CROPS,
    MASKED_RETRIEVAL,
    MASKED_WHOLE,
)
from stages.evaluate.panoptic import PANOPTIC
from stages.evaluate.points import WORD_LOCATIONS
from stages.evaluate.proposals import REFER_PROPOSALS, REFER_PROPOSALS_PARSED, REFER_PROPOSALS_RECLIP
from stages.evaluate.referring import REFER, REFER_COMPAT
from stages.evaluate.regions import REGION_CAPTIONS
from stages.evaluate.retrieval import IMAGE_RETRIEVAL, REGION_RECOGNITION, REGION_RETRIEVAL
from stages.evaluate.vip_bench import VIP_BENCH

BENCHMARKS: Mapping[str, Benchmark] = {
    "gcg": GCG,
    "region_captions": REGION_CAPTIONS,
    "refer": REFER,
    "refer_compat": REFER_COMPAT,
    "refer_boxes": REFER_BOXES,
    "word_locations": WORD_LOCATIONS,
    "dense_captions": DENSE_CAPTIONS,
    "region_retrieval": REGION_RETRIEVAL,
    "region_recognition": REGION_RECOGNITION,
    "image_retrieval": IMAGE_RETRIEVAL,
    "masked_retrieval": MASKED_RETRIEVAL,
    "masked_recognition_crops": MASKED_CROPS,
    "masked_recognition_whole": MASKED_WHOLE,
    "long_texts": LONG_TEXTS,
    "long_texts_compat": LONG_TEXTS_COMPAT,
    "refer_proposals": REFER_PROPOSALS,
    "refer_proposals_parsed": REFER_PROPOSALS_PARSED,
    "refer_proposals_reclip": REFER_PROPOSALS_RECLIP,
    "panoptic": PANOPTIC,
    "vip_bench": VIP_BENCH,
}
