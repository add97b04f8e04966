"""When the next checkpoint is due."""

import math

from orchestrator.interval import best_interval_s
from orchestrator.training.config import SaveConfig
from orchestrator.training.pace import FIRST_STEPS, Pace
from tests.toys import toy_train

AUTO = toy_train(10_000, save=SaveConfig(every_steps="auto", node_mtbf_hours=1.0))


def due(pace: Pace, steps: range) -> list[int]:
    return [step for step in steps if pace.due(step)]


def test_every_so_many_steps_and_after_the_last() -> None:
    pace = Pace(toy_train(10, save=SaveConfig(every_steps=4)))
    pace.start(2, nodes=1)

    assert due(pace, range(3, 11)) == [4, 8, 10]


def test_an_automatic_pace_first_finds_out_what_a_save_costs() -> None:
    pace = Pace(AUTO)
    pace.start(100, nodes=1)

    assert due(pace, range(101, 131)) == [100 + n * FIRST_STEPS for n in (1, 2, 3)]


def test_then_it_is_what_young_and_daly_say() -> None:
    pace = Pace(AUTO)
    pace.start(0, nodes=2)

    pace.learn(10, stall_s=2.0, save_s=5.0, step_s=0.5)

    every = math.ceil(best_interval_s(2.0, 1800.0) / 0.5)
    assert due(pace, range(11, 11 + 3 * every)) == [10 + every, 10 + 2 * every, 10 + 3 * every]


def test_saves_do_not_overtake_each_other_however_cheap_they_are() -> None:
    pace = Pace(AUTO)
    pace.start(0, nodes=1)

    pace.learn(10, stall_s=0.0, save_s=7.0, step_s=0.5)

    assert due(pace, range(11, 40)) == [24, 38]


def test_the_last_step_is_saved_whatever_the_pace() -> None:
    pace = Pace(toy_train(7, save=SaveConfig(every_steps="auto")))
    pace.start(0, nodes=1)

    assert due(pace, range(1, 8)) == [7]
