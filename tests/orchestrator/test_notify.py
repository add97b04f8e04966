"""Telling people of a run: what arrives, and that nothing that goes wrong there reaches the work."""

import email
import email.policy
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator import notify
from orchestrator.notify import Notify, tell
from orchestrator.state import Launch, write_launch
from tests.listener import SECRET, Listener


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Makes a run whose recipe tells the webhook of everything."""
    directory = tmp_path / "runs" / "toy"
    directory.mkdir(parents=True)
    told = Notify(webhook_env="TOY_WEBHOOK", events=("started", "failed", "done", "needs_human"))
    launch = Launch(recipe="toy", launcher="local", host="here", user="me", started=1.0, stages=(), notify=asdict(told))
    write_launch(directory, launch)
    return directory


def test_a_webhook_hears_what_happened_where_and_why(run: Path, listener: Listener) -> None:
    assert tell(run, "failed", stage="gcg", cause="diverged", detail="the loss is nan").wait()

    (message,) = listener.heard
    assert message["text"] == "toy/gcg has failed (diverged: the loss is nan)"
    assert (message["event"], message["stage"], message["cause"]) == ("failed", "gcg", "diverged")
    assert message["run"] == str(run)


def test_only_what_was_asked_for_is_told(run: Path, listener: Listener) -> None:
    others = [Notify(webhook_env="TOY_WEBHOOK", events=("done",))]
    write_launch(run, Launch(recipe="toy", launcher="local", host="here", user="me", started=1.0, stages=()))

    assert tell(run, "started", others=others).wait()
    assert tell(run, "done", others=others).wait()
    assert [message["event"] for message in listener.heard] == ["done"]


@pytest.mark.parametrize(("answers", "heard"), [([500, 503], 3), ([500] * 9, 3), ([404], 1), ([2.0], 2)])
def test_a_server_in_trouble_is_tried_again_a_few_times_only(
    run: Path, listener: Listener, answers: list[int | float], heard: int
) -> None:
    listener.answers = answers
    begun = time.monotonic()
    telling = tell(run, "done")
    returned = time.monotonic() - begun

    assert telling.wait()
    assert len(listener.heard) == heard
    assert returned < 1.5  # nobody waits for the other side


def test_nobody_waits_longer_than_he_said(run: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "TRY_S", 30.0)
    listener.answers = [20.0]
    begun = time.monotonic()

    assert not tell(run, "done").wait(0.3)
    assert time.monotonic() - begun < 10  # the answer takes twenty


def test_a_dead_server_is_a_line_in_the_log_without_its_address(
    run: Path, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    assert listener.server is not None
    listener.server.shutdown()
    listener.server.server_close()

    assert tell(run, "done").wait()
    assert "TOY_WEBHOOK did not take the message: it cannot be reached" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("address", ["", "file:///etc/passwd", f"http://[::1/{SECRET}", f"http://h\n/{SECRET}"])
def test_an_address_that_is_none_is_told_by_its_name_only(
    run: Path, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOY_WEBHOOK", address)

    assert tell(run, "done").wait()
    assert "TOY_WEBHOOK" in caplog.text
    assert SECRET not in caplog.text


def test_a_command_gets_the_message_and_no_shell(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "$(touch pwned)"
    code = "import sys; from pathlib import Path; Path(sys.argv[1]).write_text(sys.stdin.read())"
    command = (sys.executable, "-c", code, str(target))

    assert tell(run, "done", detail="it's; $(done)", others=[Notify(command=command)]).wait()
    assert json.loads(target.read_text(encoding="utf-8"))["detail"] == "it's; $(done)"
    assert not (Path.cwd() / "pwned").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/nowhere/at/all",), "could not be started"),
        (("false",), "ended with exit code 1"),
        (("sleep", "60"), "ended with exit code -9"),
    ],
)
def test_a_command_that_fails_is_a_line_in_the_log(
    run: Path,
    command: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(notify, "TRY_S", 0.2)

    assert tell(run, "done", others=[Notify(command=command)]).wait()
    assert words in caplog.text


def test_a_run_folder_that_cannot_be_read_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "launch.json").symlink_to("launch.json")  # the kernel gives up, as it does on a broken disk

    assert tell(tmp_path, "done").wait()
    assert "nobody could be told" in caplog.text


def test_an_address_in_the_place_of_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name of an environment variable"):
        Notify(webhook_env="https://hooks.example.org/T000/B000")


def test_slack_gets_one_text_in_which_nothing_calls_people(run: Path, listener: Listener) -> None:
    others = [Notify(webhook_env="TOY_WEBHOOK", webhook_format="slack", events=("alert",))]
    write_launch(run, Launch(recipe="toy", launcher="local", host="here", user="me", started=1.0, stages=()))
    facts = {"rule": "throughput_drop", "value": 0.25, "threshold": 0.2}
    assert tell(run, "alert", stage="gcg", detail="<!channel> a & b", others=others, facts=facts).wait()

    (body,) = listener.heard
    assert set(body) == {"text"}
    assert body["text"].splitlines()[0] == "toy/gcg raises an alert (&lt;!channel&gt; a &amp; b)"
    assert {"rule: throughput_drop", "value: 0.25", "threshold: 0.2", f"run: {run}"} <= set(body["text"].splitlines())


def test_an_alert_without_a_number_is_json_all_the_same(run: Path, listener: Listener) -> None:
    others = [Notify(webhook_env="TOY_WEBHOOK", events=("alert",))]

    assert tell(run, "alert", others=others, facts={"value": float("nan"), "threshold": float("inf")}).wait()
    assert (listener.heard[0]["value"], listener.heard[0]["threshold"]) == (None, None)


@pytest.fixture
def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a `sendmail` into PATH that keeps what it is given; returns the folder in which it does."""
    folder = tmp_path / "post"
    folder.mkdir()
    program = folder / "sendmail"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/words\ncat > {folder}/mail\n', encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_a_mail_goes_through_the_sendmail_of_the_site(run: Path, post: Path) -> None:
    others = [Notify(email=("ada@example.org", "root"), events=("done",))]
    assert tell(run, "done", detail="schön", others=others).wait()

    mail = email.message_from_bytes((post / "mail").read_bytes(), policy=email.policy.default)
    assert (post / "words").read_text(encoding="ascii").split() == ["-t", "-i"]
    assert (mail["To"], mail["Subject"]) == ("ada@example.org, root", "[orch] toy is done (schön)")
    assert mail["Auto-Submitted"] == "auto-generated"
    assert f"run: {run}" in mail.get_content().splitlines()


@pytest.mark.parametrize(
    "evil", ["a\r\nBcc: eve@example.org\r\n\r\nbody", "a\nBcc: eve@example.org", "a\x0bb\u2028c\x85d"]
)
def test_whatever_a_run_says_adds_no_header_to_a_mail(run: Path, post: Path, evil: str) -> None:
    others = [Notify(email=("ada@example.org",), events=("failed",))]
    assert tell(run, "failed", stage=evil, cause=evil, detail=evil, others=others).wait()

    mail = email.message_from_bytes((post / "mail").read_bytes(), policy=email.policy.default)
    assert sorted(mail.keys()) == [
        "Auto-Submitted", "Content-Transfer-Encoding", "Content-Type", "MIME-Version", "Subject", "To",
    ]  # fmt: skip
    assert mail["To"] == "ada@example.org"


def test_a_site_without_sendmail_is_a_line_in_the_log(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(notify, "SENDMAIL_PLACES", ())

    assert tell(run, "done", others=[Notify(email=("ada@example.org",))]).wait()
    assert "there is no sendmail" in caplog.text


@pytest.mark.parametrize(
    "address", ["-oQ/tmp", "ada@example.org,eve@x.org", "a b@c", "ada@", "a\nBcc: e@x.org", "<a@b>", ""]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="email must be addresses"):
        Notify(email=(address,))


def test_secrets_of_addresses_are_not_passed_on(run: Path, listener: Listener) -> None:
    detail = "GET https://ada:pw@host/x?X-Amz-Signature=abc&part=1&access_token=t0k was refused"
    assert tell(run, "failed", detail=detail).wait()

    assert listener.heard[0]["detail"] == (
        "GET https://host/x?X-Amz-Signature=(hidden)&part=1&access_token=(hidden) was refused"
    )


def test_a_run_tells_of_its_beginning_and_end_and_its_folder_never_holds_the_address(
    listener: Listener, orch: Any
) -> None:
    told = {"webhook_env": "TOY_WEBHOOK", "events": ["started", "failed", "done", "needs_human"]}
    orch("launch", orch.recipe({"first": {"stage": "count"}}, notify=told))
    orch("launch", orch.recipe({"first": {"stage": "fail"}}, notify=told), code=1)
    retry = {"attempts": 1}
    orch(
        "launch", orch.recipe({"first": {"stage": "fail", "config": {"how": "kill"}}}, notify=told, retry=retry), code=1
    )
    orch.wait(lambda: len(listener.heard) == 6)

    events = [(message["event"], message["stage"], message["cause"]) for message in listener.heard]
    assert events == [
        ("started", None, None),
        ("done", None, None),
        ("started", None, None),
        ("needs_human", "first", "code_error"),
        ("started", None, None),
        ("failed", "first", "unknown"),
    ]
    files = [path for path in orch.run_folder.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
