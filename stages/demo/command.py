"""`orch demo`: the page of an exported model."""

import contextlib
from typing import Annotated

import typer

from orchestrator import options

Port = Annotated[int, typer.Option("--port", metavar="N", help="Where the page is; 0 takes any port that is free.")]


def demo(export: options.ExportFolder, port: Port = 7860) -> None:
    """Opens a page on this machine where one asks an exported model: choose a picture, type, draw boxes, see masks.

    Example: orch demo runs/quickstart/export/model
    """
    from stages.demo.server import DemoServer

    with DemoServer(export, port=port) as server, contextlib.suppress(KeyboardInterrupt):
        typer.echo(f"{server.address} shows the demo; Ctrl-C ends it")
        server.serve_forever()
