"""Stages that tell every secret they know, wherever a stage can tell anything: for tests of what gets out.

A catalog of its own, for `ORCH_CATALOG=tests.toysecrets`.
"""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.artifacts import Report, write_json
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext

STAGES = {"tell": "tests.toysecrets:Tell", "break": "tests.toysecrets:Break"}
FAMILIES: Mapping[str, str] = {}
TOKEN, ADDRESS, WORD = "TOY_ACCESS_TOKEN", "TOY_ADDRESS", "TOY_WORD"  # variables; only the first is named like a secret


@record
class Written:
    """One file, called `value.json`."""

    value: Report


@record
class Read:
    """What another stage wrote."""

    value: Report


class Tell(Stage):
    """Tells them, and ends well."""

    Outputs: ClassVar[type] = Written

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        token, address, word = (os.environ[name] for name in (TOKEN, ADDRESS, WORD))
        print(f"the token is {token}")  # noqa: T201 - that is the point
        sys.stderr.write(f"read from {address}\n")
        logging.getLogger(__name__).warning("password: %s", word)
        warnings.warn(f"{token} and {address}", stacklevel=1)
        context.journal.append("params", values={"address": address, "said": token, "deep": {"api_key": word}})
        context.journal.metrics(1, {f"loss/{token}": 1.0, address: 2.0})
        context.progress.note(f"reads {address} with api_key={word}")
        context.progress.advance(1, 1, "step")
        write_json(self.outputs.value.path / "value.json", 1)
        return {"value": {"source": address, "secret_key": word, "notes": [f"made with {token}"]}}


class Break(Stage):
    """Ends with an exception that names them."""

    Inputs: ClassVar[type] = Read
    Outputs: ClassVar[type] = Written

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        token, address, word = (os.environ[name] for name in (TOKEN, ADDRESS, WORD))
        context.progress.enter("ending")
        raise RuntimeError(f"{address} does not take {token}; password={word}")
