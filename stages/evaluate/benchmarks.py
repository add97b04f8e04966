"""BENCHMARKS: every question that an evaluation can put."""

from collections.abc import Mapping

from stages.evaluate.benchmark import Benchmark
from stages.evaluate.grounded import GCG
from stages.evaluate.referring import REFER, REFER_COMPAT
from stages.evaluate.regions import REGION_CAPTIONS

BENCHMARKS: Mapping[str, Benchmark] = {
    "gcg": GCG,
    "region_captions": REGION_CAPTIONS,
    "refer": REFER,
    "refer_compat": REFER_COMPAT,
}
