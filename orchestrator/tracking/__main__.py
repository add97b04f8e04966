"""`python -m orchestrator.tracking RUN_DIR [--follow]`: the forwarder as a process of its own."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import OrchError
from orchestrator.redaction import screen_output
from orchestrator.tracking.beside import tell_beside
from orchestrator.tracking.forwarder import forward


def main(arguments: Sequence[str] | None = None) -> int:
    """Forwards until everything is told, the run is over, or SIGTERM asks for an end; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("--to", help="tell one of `tracking.also`, and not MLflow; a forwarder starts it so")
    parser.add_argument("--parent", type=int, default=0, help="the process id of that forwarder")
    given = parser.parse_args(arguments)
    screen_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        if given.to is not None:
            return 0 if tell_beside(given.run_dir, given.to, parent=given.parent, follow=given.follow, stop=stop) else 3
        delivery = forward(given.run_dir, follow=given.follow, stop=stop)
    except OrchError as error:
        logging.getLogger(__name__).warning("%s", error)
        return error.exit_code
    logging.getLogger(__name__).info("%s (%d points)", delivery.message, delivery.points)
    return 0 if delivery.complete else 3


if __name__ == "__main__":
    sys.exit(main())
