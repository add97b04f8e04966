"""What is known of jobs, from whoever answers: lines as a Slurm 22.05 wrote them, by programs that write them again."""

import time
from pathlib import Path

import pytest

from orchestrator.errors import SurroundingsError
from slurm import asking, queue
from slurm.asking import SlurmAway, SlurmRefused
from tests.slurm.programs import Programs

RUNNING = "21|orch-a-1|RUNNING|1795272559|1795276159|1795272550|n[1-2]|None"
WAITING = "22|orch-b-1|PENDING|1795279999|N/A|1795272551||Priority"
ENDED = "20|orch-c-1|FAILED|1795272506|1795272507|1795272505|n1|NonZeroExitCode"
BACKWARD = "21|orch-a-1|COMPLETING|1795272559|N/A|1795272550|n[1-2]|None"
AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
DATABASE_DOWN = "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1"


@pytest.fixture
def commands(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setattr(asking, "BETWEEN_TRIES_S", 0.01)
    programs.say("squeue", "")
    programs.say("sacct", "")
    programs.does("scontrol", "exit 1")
    return programs


def test_a_running_job_has_its_nodes_and_a_waiting_one_its_reason_and_estimate(commands: Programs) -> None:
    commands.say("squeue", RUNNING, WAITING)

    found = queue.look(["orch-a-1", "orch-b-1"])

    assert (found["orch-a-1"].nodes, found["orch-a-1"].started) == (("n1", "n2"), 1795272559.0)
    assert (found["orch-b-1"].reason, found["orch-b-1"].estimated_start) == ("Priority", 1795279999.0)
    assert (found["orch-b-1"].started, found["orch-b-1"].ended_for_good()) == (None, False)


def test_the_heading_of_a_cluster_is_not_taken_for_a_job(commands: Programs) -> None:
    commands.say("squeue", "CLUSTER: first", RUNNING, "CLUSTER: second")

    assert queue.look(["orch-a-1"])["orch-a-1"].id == "21"


def test_one_question_is_asked_for_all_names_and_accounting_only_for_what_is_not_alive(commands: Programs) -> None:
    commands.say("squeue", RUNNING, WAITING)

    queue.find(["orch-a-1", "orch-b-1"])
    queue.find(["orch-a-1", "orch-b-1", "gone-1"])

    assert len(commands.calls("squeue")) == 2
    assert len(commands.calls("sacct")) == 1
    assert "--name=gone-1" in commands.calls("sacct")[0]


def test_accounting_knows_how_a_job_ended_who_cancelled_it_and_how_often_it_restarted(commands: Programs) -> None:
    commands.say(
        "sacct",
        "4|orch-d-1|CANCELLED by 1000|1795272506|1795272512|1795272505|n1|0:0|None",
        "4.batch|batch|CANCELLED|1795272506|1795272512|1795272506|n1|0:15|",
        "21|orch-a-1|NODE_FAIL|1795272556|1795272559|1795272550|n1|0:0|None",
        "21|orch-a-1|OUT_OF_MEMORY|1795272566|1795272569|1795272550|n2|0:125|None",
        "21.batch|batch|FAILED|1795272566|1795272569|1795272566|n2|1:0|",
        "21.0|python|OUT_OF_MEMORY|1795272566|1795272569|1795272566|n2|0:125|",
    )

    found = queue.look(["orch-a-1", "orch-d-1"])

    assert (found["orch-d-1"].state, found["orch-d-1"].reason) == ("CANCELLED", "by 1000")
    assert (found["orch-a-1"].state, found["orch-a-1"].restarts, found["orch-a-1"].nodes) == (
        "OUT_OF_MEMORY", 1, ("n2",),
    )  # fmt: skip
    assert found["orch-a-1"].steps == {"batch": "FAILED", "0": "OUT_OF_MEMORY"}
    assert found["orch-a-1"].signal == 125


def test_how_a_job_that_waits_again_ended_before_is_remembered_by_accounting(commands: Programs) -> None:
    commands.say("squeue", WAITING.replace("22|orch-b-1", "21|orch-a-1"))
    commands.say(
        "sacct",
        "21|orch-a-1|NODE_FAIL|1795272556|1795272559|1795272550|n1|0:0|None",
        "21|orch-a-1|PENDING|Unknown|Unknown|1795272560|None assigned|0:0|None",
    )
    waiting = queue.look(["orch-a-1"])["orch-a-1"]

    assert queue.last_ending(waiting).state == "NODE_FAIL"


def test_a_job_removed_for_its_dependency_is_not_taken_for_one_that_somebody_cancelled(commands: Programs) -> None:
    commands.say(
        "sacct",
        "2|orch-a-1|CANCELLED|None|1795272507|1795272505|None assigned|0:0|Dependency",
        "5|orch-b-1|CANCELLED by 0|None|1795272511|1795272505|None assigned|0:0|BeginTime",
    )

    found = queue.look(["orch-a-1", "orch-b-1"])

    assert [found[name].killed_by_dependency() for name in ("orch-a-1", "orch-b-1")] == [True, False]


@pytest.mark.parametrize("silence", [NO_ACCOUNTING, DATABASE_DOWN])
def test_without_accounting_the_controller_tells_what_it_still_knows(commands: Programs, silence: str) -> None:
    commands.say("squeue", ENDED)
    commands.does("sacct", silence)
    commands.does("scontrol", "echo 'JobId=20 JobName=orch-c-1 JobState=FAILED Restarts=2 ExitCode=7:0 NodeList=n1'")

    survey = queue.find(["orch-c-1", "never-1"])

    facts = survey.latest("orch-c-1")
    assert facts is not None
    assert (facts.state, facts.exit_code, facts.restarts, facts.source) == ("FAILED", 7, 2, "scontrol")
    assert (survey.controller, survey.accounting, survey.latest("never-1")) == (True, False, None)


def test_without_the_controller_accounting_tells_and_nobody_is_taken_for_lost(commands: Programs) -> None:
    commands.does("squeue", AWAY)
    commands.say("sacct", "21|orch-a-1|RUNNING|1795272556|Unknown|1795272550|n1|0:0|None")

    survey = queue.find(["orch-a-1", "orch-b-1"])

    facts = survey.latest("orch-a-1")
    assert facts is not None
    assert facts.state == "RUNNING"
    assert not survey.controller


def test_a_job_that_a_restarted_controller_forgot_is_told_from_one_that_runs(commands: Programs) -> None:
    commands.say("sacct", "21|orch-a-1|RUNNING|1795272556|Unknown|1795272550|n1|0:0|None")

    facts = queue.look(["orch-a-1"])["orch-a-1"]

    assert (facts.state, facts.ended_for_good()) == (queue.FORGOTTEN, True)


def test_accounting_that_is_late_does_not_take_back_an_end_that_the_controller_saw(commands: Programs) -> None:
    commands.say("squeue", ENDED)
    commands.say("sacct", "20|orch-c-1|RUNNING|1795272506|Unknown|1795272505|n1|0:0|None")

    assert queue.look(["orch-c-1"])["orch-c-1"].state == "FAILED"


def test_a_job_that_is_completing_is_still_alive(commands: Programs) -> None:
    commands.say("squeue", BACKWARD)

    assert not queue.look(["orch-a-1"])["orch-a-1"].ended_for_good()


def test_if_nobody_answers_that_is_said_with_slurms_words_and_exit_code_3(commands: Programs) -> None:
    commands.does("squeue", AWAY)
    commands.does("sacct", DATABASE_DOWN)

    with pytest.raises(SurroundingsError, match=r"squeue: .*Unable to contact slurm controller") as caught:
        queue.look(["orch-a-1"])

    assert caught.value.exit_code == 3


def test_a_controller_that_restarts_is_asked_again(commands: Programs) -> None:
    commands.does(
        "squeue", f"test -e '{commands.folder}/up' && echo '{WAITING}' && exit; touch '{commands.folder}/up'; {AWAY}"
    )

    assert queue.look(["orch-b-1"])["orch-b-1"].id == "22"


def test_a_command_that_hangs_is_given_up(commands: Programs) -> None:
    commands.does("squeue", "exec sleep 30")
    began = time.monotonic()

    with pytest.raises(SlurmAway, match="squeue took more than"):
        asking.ask(["squeue"], tries=2, timeout_s=0.2)

    assert time.monotonic() - began < 20  # the answer takes thirty


def test_a_machine_without_slurm_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SlurmAway, match="there is no Slurm here: the command squeue is not in PATH"):
        asking.ask(["squeue"], tries=1)


def test_a_refusal_is_not_repeated_and_keeps_slurms_words(commands: Programs) -> None:
    commands.does("scontrol", "echo 'Access/permission denied for job 9' >&2; exit 1")

    with pytest.raises(SlurmRefused, match=r"scontrol: Access/permission denied for job 9"):
        queue.requeue("9")

    assert len(commands.calls("scontrol")) == 1


def test_a_job_that_is_still_completing_is_changed_as_soon_as_it_waits(commands: Programs) -> None:
    up = commands.folder / "up"
    commands.does(
        "scontrol", f"test -e '{up}' && exit 0; touch '{up}'; echo 'Job is no longer pending execution' >&2; exit 1"
    )

    queue.set_exclude("9", ["n2", "n1"])

    assert commands.calls("scontrol")[-1] == "update JobId=9 ExcNodeList=n1,n2"


def test_cancelling_what_has_ended_is_no_mistake(commands: Programs) -> None:
    commands.does("scancel", "echo 'scancel: error: Kill job error on job id 1: Invalid job id specified' >&2; exit 1")

    queue.cancel(["1"])

    assert commands.calls("scancel") == ["1"]


def test_a_users_own_settings_do_not_change_how_slurm_answers(
    commands: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%A")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    commands.does("squeue", "env | grep -E '^(SQUEUE|SLURM)' | sort > env.txt")
    monkeypatch.chdir(commands.folder)

    queue.find(["orch-a-1"])

    kept = (commands.folder / "env.txt").read_text(encoding="utf-8").splitlines()
    assert kept == ["SLURM_CONF=/etc/slurm/slurm.conf", "SLURM_TIME_FORMAT=%s"]


@pytest.mark.parametrize(("when", "start"), [("1795275628", 1795275628.0), ("N/A", None)])
def test_a_test_of_a_script_that_slurm_would_take_says_when(commands: Programs, when: str, start: float | None) -> None:
    commands.does("sbatch", f"cat > '{commands.folder}/seen'; echo 'sbatch: Job 9 to start at {when} using 2 ...' >&2")

    found = queue.test_only("#!/bin/bash\ntrue\n")

    assert (found.valid, found.start) == (True, start)
    assert (commands.folder / "seen").read_text(encoding="utf-8") == "#!/bin/bash\ntrue\n"


def test_a_test_of_a_script_that_slurm_would_refuse_says_why(commands: Programs) -> None:
    commands.does("sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")

    found = queue.test_only("#!/bin/bash\n")

    assert not found.valid
    assert "Requested node configuration is not available" in found.message


def test_many_names_are_asked_for_in_pieces_that_a_command_line_can_hold(commands: Programs) -> None:
    names = [f"orch-{'x' * 80}-{number}" for number in range(1200)]

    queue.find(names)

    assert len(commands.calls("squeue")) == 3
    assert max(map(len, commands.calls("squeue"))) < 128 * 1024
