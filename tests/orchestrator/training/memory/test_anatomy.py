"""The highest of many lines, kept in few; what was found out survives being written down."""

import json
import random

from orchestrator.training.memory.anatomy import Anatomy, Line, envelope


def test_the_envelope_is_as_high_as_all_lines_together_for_any_number_of_samples() -> None:
    chance = random.Random(3)
    for _ in range(50):
        lines = [Line(fixed=chance.randint(-500, 5000), per_sample=chance.randint(0, 60)) for _ in range(40)]
        kept = envelope(lines)

        assert len(kept) <= len(lines)
        for samples in (1, 2, 3, 5, 8, 40, 1000):
            assert max(line.at(samples) for line in kept) == max(line.at(samples) for line in lines)


def test_an_anatomy_can_be_written_down_and_read_again() -> None:
    anatomy = Anatomy(
        numels=(4, 6), parts=("body", "head"), groups=(-1, 0), moments=(0, 8), buffers={"body": 8},
        uses=((0,), (1,), (1,)),
        released=(Line(fixed=1.0, per_sample=2.5),), kept=(Line(fixed=3.0, per_sample=2.5),),
        at_peak={"head": Line(fixed=0.0, per_sample=2.0)}, flops=Line(fixed=0.0, per_sample=20.0),
    )  # fmt: skip

    assert Anatomy.from_plain(json.loads(json.dumps(anatomy.to_plain()))) == anatomy
    assert (anatomy.elements(), anatomy.elements(learning=True)) == (10, 6)
