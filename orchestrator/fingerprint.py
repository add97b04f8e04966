"""Fingerprints: one digest of everything that decides what a stage computes.

A fingerprint is the sha256 of the canonical JSON of an identity: the stage's key and class, its typed config without
incidental fields, the seed, the code, the fingerprints of its inputs' makers (or the digests of artifacts from
elsewhere), and what the stage itself names outside of all that (raw files).

Code means: the class of the stage with what it needs of its module, what `Stage.code_roots` names, the model family
that a stage asks, and every module of ours that these import, also inside functions. Each counts as its syntax tree
without docstrings, so comments and layout change nothing, while any statement does. Modules that only observe or
place work are NEUTRAL.

Not in it: resources, cluster, tracking, and the versions of libraries. Another torch must not throw away a week of
work unasked; the versions a stage ran with are in the facts of its outputs, for whoever compares.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.imports import Sources
from orchestrator.records import INCIDENTAL
from orchestrator.typed import plain

# Modules that cannot change what a stage computes. Whoever adds one answers: can a change in it alter one byte of an
# output? A test keeps torch, numpy and random out of them. Not neutral, on purpose: world (collectives), artifacts
# (what files look like), everything in data/ and training/, everything in stages/ but the table of names.
NEUTRAL = frozenset({
    # they read what is asked for and decide when it runs; what they decide is in the identity itself
    "orchestrator.cli", "orchestrator.recipe", "orchestrator.typed", "orchestrator.checks", "orchestrator.wiring",
    "orchestrator.drafts", "orchestrator.plan", "orchestrator.history", "orchestrator.fingerprint",
    "orchestrator.imports", "orchestrator.foresight", "orchestrator.hardware", "orchestrator.interval",
    "orchestrator.outlook", "stages.glamm.foresight", "stages.pixelllm.foresight",
    "orchestrator.training.memory", "orchestrator.training.memory.*",
    # they place work: which process, which machine, which attempt
    "orchestrator.run", "orchestrator.lock", "orchestrator.snapshot", "orchestrator.launcher", "orchestrator.local",
    "orchestrator.supervisor", "orchestrator.worker", "orchestrator.ranks", "orchestrator.lifeline",
    # they watch it and tell people
    "orchestrator.state", "orchestrator.status", "orchestrator.display", "orchestrator.journal",
    "orchestrator.progress", "orchestrator.tracking", "orchestrator.tracking.*", "orchestrator.report",
    "orchestrator.causes", "orchestrator.errors",
    # they declare and compute nothing: how a record is made, what a stage is
    "orchestrator.records", "orchestrator.stage",
    # the table of names: the entry that a stage uses is in its identity, the others are none of its business
    "stages",
})  # fmt: skip

# Handed to every stage from outside, so that no import in the stage need show it: the collectives.
ALWAYS = ("orchestrator.world",)


def sources_of(targets: Iterable[str]) -> Sources:
    """Makes the reader of our code: orchestrator, and the packages in which the targets ("module:Class") live."""
    return Sources({"orchestrator", *(target.partition(".")[0].partition(":")[0] for target in targets)}, NEUTRAL)


def identity(
    *,
    key: str,
    target: str,
    families: Mapping[str, str],
    config: Any,
    seed: int,
    code: Mapping[str, str],
    inputs: Mapping[str, str],
    outside: Mapping[str, str],
) -> dict[str, Any]:
    """Returns, as plain data, everything that decides what a stage computes.

    Mappings of the config keep the order in which they were written, for code may iterate over them.
    """
    return {
        "stage": key,
        "target": target,
        "families": dict(sorted(families.items())),
        "config": plain(config, skip=INCIDENTAL),
        "seed": seed,
        "code": dict(sorted(code.items())),
        "inputs": dict(sorted(inputs.items())),
        "outside": dict(sorted(outside.items())),
    }


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Returns the sha256 of an identity."""
    canonical = json.dumps(identity, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def roots(target: str, code_roots: Iterable[str], families: Mapping[str, str]) -> list[str]:
    """Returns the modules from which the code of a stage is followed."""
    return [target, *code_roots, *families.values(), *ALWAYS]
