"""The demo's server: what it answers, what it refuses, and from whom it takes a question."""

import base64
import io
import json
import os
import signal
import socket
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.artifacts import Export
from orchestrator.errors import InputError, SurroundingsError
from stages.demo.server import HOST, MOST_BYTES, DemoServer
from stages.glamm.family import GlammFamily
from tests.command_line import Orch
from tests.stages.glamm_models import tiny_checkpoint
from tests.stages.scenes import scene

SCENE = scene(1)
PICTURE = base64.b64encode(SCENE.image).decode()


def request(
    server: DemoServer, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    line = HTTPConnection(HOST, server.server_port, timeout=60)
    line.request(method, path, body, dict(headers or {}))
    answer = line.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    line.close()
    return found


def asked(server: DemoServer, **question: Any) -> tuple[int, dict[str, Any]]:
    status, _, body = request(server, "POST", "/ask", json.dumps({"image": PICTURE, **question}).encode())
    return status, json.loads(body)


def test_the_page_comes_with_a_policy_that_lets_it_load_nothing_from_elsewhere(server: DemoServer) -> None:
    for path in ("/", "/page.js", "/page.css"):
        status, headers, body = request(server, "GET", path)

        assert (status, headers["Content-Security-Policy"][:18]) == (200, "default-src 'none'")
        assert b"//" not in body.replace(b"// ", b"")  # no address but its own; comments of the script


def test_the_page_hears_what_the_model_can_be_asked(server: DemoServer) -> None:
    about = json.loads(request(server, "GET", "/about")[2])

    assert [kind["name"] for kind in about["questions"]] == ["describe", "boxes", "refer", "ask"]


def test_a_grounded_caption_is_told_and_drawn(server: DemoServer) -> None:
    status, told = asked(server, kind="describe")

    assert (status, told["lines"][0]) == (200, SCENE.caption)
    assert [part["phrase"] for part in told["answer"]["phrases"]] == ["A green bar", "a blue bar"]
    with Image.open(io.BytesIO(base64.b64decode(told["picture"]))) as drawn:
        assert drawn.width > 300


def test_boxes_are_measured_in_whole_pixels(server: DemoServer) -> None:
    _, told = asked(server, kind="boxes", boxes=[[0.601, 0.12, 0.852, 0.878]])

    assert told["answer"]["regions"] == [{"box_xyxy_px": [24, 5, 34, 35], "caption": "the blue bar"}]


def test_each_line_is_pointed_at(server: DemoServer) -> None:
    _, told = asked(server, kind="refer", text="the green bar\n\n the moon ")

    assert told["lines"] == ["the green bar: 18.8% of the image", "the moon: pointed at nothing"]


def test_boxes_that_a_question_does_not_name_are_put_at_its_end(server: DemoServer) -> None:
    _, told = asked(server, kind="ask", text="What is it?", boxes=[[0.1, 0.125, 0.35, 0.875]])

    assert told["lines"] == ["What is it? <bbox> the green bar"]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"kind": "sing"}, "kind: 'sing' is unknown; allowed: describe"),
        ({"kind": "describe", "image": None}, "choose a picture first"),
        ({"kind": "describe", "image": "?"}, "did not arrive whole"),
        ({"kind": "describe", "image": base64.b64encode(b"GIF89a").decode()}, "the image"),
        ({"kind": "refer", "text": " \n"}, "write what to point at into the field first"),
        ({"kind": "boxes"}, "draw a box into the picture first"),
        ({"kind": "boxes", "boxes": [[0, 0, 0, 1]]}, "inside the image of 40 x 40 pixels"),
        ({"kind": "boxes", "boxes": [[0, 0, 1, float("nan")]]}, "in units of the picture"),
        ({"kind": "boxes", "boxes": [[0, 0, 2, 1]]}, "in units of the picture"),
        ({"kind": "boxes", "boxes": "everywhere"}, "a list of x0, y0, x1, y1"),
        ({"kind": "ask", "text": "What is <bbox>?"}, "prompt has 1 <bbox>, but 0 box are given"),
        ({"kind": "rank", "text": "a bar"}, "this model cannot give how well texts fit"),
    ],
)
def test_a_question_that_cannot_be_answered_is_told_why(
    server: DemoServer, question: dict[str, Any], message: str
) -> None:
    status, told = asked(server, **question)

    assert status == 400
    assert message in told["error"]


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff"])
def test_what_is_no_question_is_refused(server: DemoServer, body: bytes) -> None:
    status, _, told = request(server, "POST", "/ask", body)

    assert (status, json.loads(told)) == (400, {"error": "a question is a JSON object"})


def test_other_addresses_and_endless_questions_are_refused_unread(server: DemoServer) -> None:
    assert request(server, "GET", "/../pyproject.toml")[0] == 404
    for path, headers in (("/elsewhere", {}), ("/ask", {"Content-Length": str(MOST_BYTES + 1)})):
        status, _, told = request(server, "POST", path, None if headers else b"{}", headers)
        assert status == 400
        assert b"at most" in told


@pytest.mark.parametrize("stranger", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}])
def test_pages_of_others_are_not_answered(server: DemoServer, stranger: Mapping[str, str]) -> None:
    question = json.dumps({"kind": "describe", "image": PICTURE}).encode()

    assert request(server, "POST", "/ask", question, stranger)[0] == 403
    assert request(server, "GET", "/about", None, stranger)[0] == 403


def test_a_folder_that_is_no_export_is_refused_and_the_port_is_free_again(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]

    with pytest.raises(InputError, match="is not an export"):
        DemoServer(tmp_path, port=port)

    with socket.socket() as taken:
        taken.bind((HOST, port))


def test_a_port_that_is_taken_is_told(server: DemoServer, tmp_path: Path) -> None:
    with pytest.raises(SurroundingsError, match=rf"port {server.server_port} cannot be had: .*--port names another"):
        DemoServer(tmp_path, port=server.server_port)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.needs("torch")
def test_the_command_shows_the_page_of_an_export_until_it_is_interrupted(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    (tmp_path / "export").mkdir()
    GlammFamily().export(checkpoint.path, tmp_path / "export", card="# card")
    Export(tmp_path / "export").commit("c" * 64, facts={"family": "glamm"})
    orch = Orch(tmp_path)

    demo = orch.start("demo", tmp_path / "export", "--port", "0")
    assert demo.stdout is not None
    said = demo.stdout.readline()
    address = said.split()[0].removeprefix("http://")
    line = HTTPConnection(address, timeout=60)
    line.request("POST", "/ask", json.dumps({"kind": "refer", "image": PICTURE, "text": "a bar"}))
    told = json.loads(line.getresponse().read())
    line.close()
    os.killpg(demo.pid, signal.SIGINT)
    _, errors = demo.communicate(timeout=60)

    assert "shows the demo; Ctrl-C ends it" in said
    assert told["answer"]["referred"][0]["expression"] == "a bar"
    assert (demo.returncode, errors) == (0, "")
    assert "is not an export" in orch("demo", tmp_path / "model", code=2).stderr
