"""What a stage says of its secrets stays with the stage: planted ones are looked for in all that a run leaves."""

import secrets
from pathlib import Path

import pytest

from tests.command_line import Orch, alive
from tests.toysecrets import ADDRESS, TOKEN, WORD
from tests.waiting import until

LISTEN = ("/bin/sh", "-c", 'cat >> "$ORCH_TOLD"')
EVERYTHING = ["started", "failed", "done", "needs_human", "alert"]


@pytest.mark.slow
def test_planted_secrets_reach_no_file_message_or_page_of_a_run(tmp_path: Path) -> None:
    planted = {name: secrets.token_hex(12) for name in ("token", "password", "signature", "word")}
    environment = {
        TOKEN: planted["token"],
        ADDRESS: f"https://ada:{planted['password']}@host/tars?X-Amz-Signature={planted['signature']}",
        WORD: planted["word"],
        "ORCH_TOLD": str(tmp_path / "told.json"),
    }
    orch = Orch(tmp_path, catalog="tests.toysecrets", environment=environment)
    stages = {"tells": {"stage": "tell"}, "breaks": {"stage": "break", "inputs": {"value": "tells.value"}}}
    recipe = orch.recipe(
        stages, tracking={"uri": "sqlite:///mlflow.db"}, retry={"attempts": 1},
        notify={"command": list(LISTEN), "events": EVERYTHING},
    )  # fmt: skip

    said = [orch("launch", recipe, code=1), orch("sync", "toy"), orch("report", "toy")]
    said += [orch("status", "toy", "--json"), orch("logs", "toy", "breaks"), orch("lineage", "toy", "--json")]
    until(lambda: not alive(orch.supervisor()), what="the supervisor has told everybody")

    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    leaks = [
        f"{name} in {path.relative_to(tmp_path)}"
        for path, content in files.items()
        for name, secret in planted.items()
        if secret.encode() in content
    ]
    spoken = "".join(answer.stdout + answer.stderr for answer in said)
    names = {path.relative_to(tmp_path).name for path in files}
    assert leaks == []
    assert [name for name, secret in planted.items() if secret in spoken] == []
    # each of them was there to be found, with what was told beside it
    assert {"mlflow.db", "told.json", "report.html", "journal.jsonl", "state.json", "rank_0.error.json"} <= names
    log = (orch.run_folder / "tells" / "logs" / "attempt_1" / "rank_0.log").read_text(encoding="utf-8")
    assert "the token is (hidden)" in log
    assert "read from https://host/tars?X-Amz-Signature=(hidden)" in log
    assert b"does not take (hidden)" in files[tmp_path / "told.json"]
    assert b"loss/_hidden_" in files[tmp_path / "mlflow.db"]
