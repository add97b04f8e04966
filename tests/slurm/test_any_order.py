"""Whoever dies, and whatever happens while somebody looks: no stage is lost, and none runs twice. On a toy Slurm."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.state import read_state
from slurm.asking import SlurmAway
from slurm.queue import JobFacts, Survey
from tests.slurm.toyslurm import Killed, ToySlurm, settle, submit, toy_run, work_through

CHAIN = {"data": [], "train": ["data"], "score": ["train"]}

FATES = st.sampled_from(["taken", "taken", "killed before", "killed after", "late", "away"])
ACTS = st.sampled_from(["settle", "settle", "arrive", "begin", "finish"])
LOSSES = st.sampled_from(["settle", "settle", "arrive", "begin", "begin", "finish", "lose", "queue_again"])
MEANWHILE = st.sampled_from(["rest", "rest", "begin", "begin", "finish", "lose", "queue_again", "arrive"])


class Story:
    """A run to which things happen in any order; `meanwhile`, while somebody who settles waits for Slurm's answer."""

    def __init__(self, folder: Path, fates: list[str], meanwhile: Sequence[str] = ()) -> None:
        self.run = folder / "toy"
        toy_run(self.run, CHAIN)
        self.slurm = ToySlurm(self.run)
        self.slurm.fate = lambda: fates.pop() if fates else "taken"
        self.running: list[str] = []
        self.begun: Counter[str] = Counter()
        self._meanwhile = list(meanwhile)
        self._find, self._last_ending = self.slurm.find, self.slurm.last_ending
        self.slurm.find = self._find_slowly  # type: ignore[method-assign] # the answer is old when it arrives
        self.slurm.last_ending = self._recall_slowly  # type: ignore[method-assign] # and so is this one

    def _find_slowly(self, names: Sequence[str], *, since: float, uid: int) -> Survey:
        found = self._find(names, since=since, uid=uid)
        self._let_happen()
        return found

    def _recall_slowly(self, facts: JobFacts) -> JobFacts:
        self._let_happen()
        return self._last_ending(facts)

    def _let_happen(self) -> None:
        if self._meanwhile:
            getattr(self, self._meanwhile.pop())()

    def rest(self) -> None:
        """Lets nothing happen."""

    def submit(self) -> None:
        submit(self.run, self.slurm)

    def settle(self) -> None:
        settle(self.run, self.slurm)

    def arrive(self) -> None:
        self.slurm.arrive()

    def begin(self) -> None:
        for job_id in self.slurm.ready()[:1]:
            if self.slurm.begin(job_id):
                assert self.slurm.stage(job_id) not in map(self.slurm.stage, self.running)
                self.begun[self.slurm.stage(job_id)] += 1
                self.running.append(job_id)

    def finish(self) -> None:
        if self.running:
            self.slurm.finish(self.running.pop(0))

    def lose(self) -> None:
        if self.running:
            self.slurm.lose(self.running.pop(0))

    def queue_again(self) -> None:
        if self.running:
            self.slurm.queue_again(self.running.pop(0))

    def come_to_rest(self) -> None:
        self.slurm.fate = lambda: "taken"
        self._meanwhile.clear()
        while self.running:
            self.finish()
        while self.slurm.late:
            self.arrive()
        self.begun += work_through(self.run, self.slurm)


def _no_loss_no_twins(folder: Path, acts: list[str], fates: list[str]) -> None:
    story = Story(folder, fates)
    happens = {"settle": story.settle, "arrive": story.arrive, "begin": story.begin, "finish": story.finish}
    for act in [story.submit, *(happens[name] for name in acts)]:  # it holds the run, so it is first
        with suppress(Killed, SlurmAway):
            act()

    story.come_to_rest()

    assert story.begun == dict.fromkeys(CHAIN, 1)
    assert not [job for job in story.slurm.jobs.values() if not job.ended_for_good()]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=st.lists(ACTS, max_size=14), fates=st.lists(FATES, max_size=10))
def test_whatever_dies_and_whenever_each_stage_runs_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str], fates: list[str]
) -> None:
    _no_loss_no_twins(tmp_path_factory.mktemp("run"), acts, fates)


@pytest.mark.long
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=st.lists(ACTS, max_size=30), fates=st.lists(FATES, max_size=20))
def test_whatever_dies_and_whenever_each_stage_runs_exactly_once_in_many_orders(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str], fates: list[str]
) -> None:
    _no_loss_no_twins(tmp_path_factory.mktemp("run"), acts, fates)


def _no_twins(folder: Path, acts: list[str], fates: list[str], meanwhile: list[str]) -> None:
    story = Story(folder, fates, meanwhile)
    for act in ["submit", *acts]:
        with suppress(Killed, SlurmAway):
            getattr(story, act)()

    story.come_to_rest()

    ended = [read_state(story.run / name).state for name in CHAIN]
    lost = [sum(a.state == "failed" for a in read_state(story.run / name).attempts) for name in CHAIN]
    assert ended == ["done"] * 3 or ("failed" in ended and max(lost) >= 3), (ended, lost)
    assert not [job for job in story.slurm.jobs.values() if not job.ended_for_good()]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    acts=st.lists(LOSSES, max_size=24), fates=st.lists(FATES, max_size=6), meanwhile=st.lists(MEANWHILE, max_size=12)
)
def test_whatever_is_lost_besides_and_meanwhile_no_stage_is_ever_run_by_two_jobs_at_once(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str], fates: list[str], meanwhile: list[str]
) -> None:
    _no_twins(tmp_path_factory.mktemp("run"), acts, fates, meanwhile)


@pytest.mark.long
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    acts=st.lists(LOSSES, max_size=30), fates=st.lists(FATES, max_size=9), meanwhile=st.lists(MEANWHILE, max_size=20)
)
def test_whatever_is_lost_besides_and_meanwhile_no_stage_is_ever_run_by_two_jobs_at_once_in_many_orders(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str], fates: list[str], meanwhile: list[str]
) -> None:
    _no_twins(tmp_path_factory.mktemp("run"), acts, fates, meanwhile)
