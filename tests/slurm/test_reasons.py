"""Why a job waits, in words, and what to type where only a human can help."""

import pytest

from slurm.reasons import in_words


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("", "Slurm has not looked at it yet"),
        ("Dependency", "it waits for train"),
        ("Resources", "it waits for free nodes (Resources)"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "nodes that it needs are down or reserved (ReqNodeNotAvail, "),
        ("QOSMaxJobsPerUserLimit", "a limit of the account is reached (QOSMaxJobsPerUserLimit)"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_what_a_job_waits_for(reason: str, expected: str) -> None:
    assert in_words(reason, ["train"], job_id="12", run="toy").startswith(expected)


@pytest.mark.parametrize(
    ("reason", "who"),
    [
        ("JobHeldUser", "somebody holds it"),
        ("JobHeldAdmin", "an administrator holds it"),
        ("launch failed requeued held", "its node could not start it"),
        ("launch_failed_requeued_held", "its node could not start it"),
        ("job_requeued_in_held_state", "somebody queued it again"),
        ("whatever a later Slurm calls held", "Slurm holds it"),
    ],
)
def test_a_held_job_is_called_so_with_what_to_type(reason: str, who: str) -> None:
    found = in_words(reason, [], job_id="12", run="toy")

    assert found.startswith(f"held: {who}")
    assert "scontrol release 12" in found
    assert "orch cancel toy" in found
