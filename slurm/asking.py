"""Calls Slurm's commands: with a time limit, again where Slurm was only slow, and with its own words on refusal."""

import os
import re
import subprocess
import time
from collections.abc import Sequence

from orchestrator.errors import OrchError, SurroundingsError

TIMEOUT_S = 30.0
TRIES, BETWEEN_TRIES_S = 3, 1.0
# what a controller that restarts, an overloaded one or a cut network lets its commands say
AWAY_WORDS = (
    "unable to contact", "connection refused", "timed out", "zero bytes were transmitted", "connect failure",
    "transport endpoint", "temporarily unavailable", "temporarily unable", "connection reset", "unexpected message",
    "no route to host", "protocol authentication error", "could not establish a configuration source",
    "network is unreachable", "problem talking to the database",
)  # fmt: skip
# what a user's shell may set to change how Slurm's commands answer, or whose job it thinks this is
FOREIGN = ("SQUEUE_", "SACCT_", "SINFO_", "SBATCH_", "SCANCEL_", "SRUN_", "SLURM_", "SLURMD_", "SUBMITIT_")
PREFIX = re.compile(r"^s[a-z]+: (?:(?:error|fatal): )?")
KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS"})


class SlurmAway(SurroundingsError):
    """Slurm does not answer, or its commands are not here."""


class SlurmRefused(OrchError):
    """Slurm answers, and will not do what it was asked; the message holds its words."""


def ask(command: Sequence[str], *, given: str = "", tries: int = TRIES, timeout_s: float = TIMEOUT_S) -> str:
    """Runs one of Slurm's commands and returns what it printed.

    Raises SlurmAway where nobody answered in time, again and again, and SlurmRefused where Slurm said no.
    """
    return answer(command, given=given, tries=tries, timeout_s=timeout_s).stdout


def answer(
    command: Sequence[str], *, given: str = "", tries: int = TRIES, timeout_s: float = TIMEOUT_S
) -> "subprocess.CompletedProcess[str]":
    """Does the same, and returns all that the command left: some answer on the error stream."""
    for left in reversed(range(tries)):
        try:
            return _once(command, given, timeout_s)
        except SlurmAway:
            if not left:
                raise
            time.sleep(BETWEEN_TRIES_S)
    raise ValueError("tries must be at least 1")


def own_environment() -> dict[str, str]:
    """Returns this process's environment without what would change Slurm's answers or make a job look like a step."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(FOREIGN)}
    return kept | {"SLURM_TIME_FORMAT": "%s"}  # seconds since 1970, whatever the time zone of whoever asks


def _once(command: Sequence[str], given: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    name = command[0]
    try:
        done = subprocess.run(
            command, env=own_environment(), check=False, text=True, encoding="utf-8", errors="replace",
            capture_output=True, input=given, timeout=timeout_s,
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmAway(f"there is no Slurm here: the command {name} is not in PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmAway(f"Slurm does not answer: {name} took more than {timeout_s:.0f} s") from None
    except OSError as error:
        raise SlurmAway(f"{name} cannot be started: {error.strerror}") from error
    if done.returncode == 0:
        return done
    words = said(done.stderr) or said(done.stdout) or f"exit code {done.returncode}"
    if is_away(words):
        raise SlurmAway(f"Slurm does not answer: {name}: {words}")
    raise SlurmRefused(f"{name}: {words}")


def is_away(words: str) -> bool:
    """Tells whether these are the words of a command that reached nobody, not of one that was refused."""
    return any(word in words.lower() for word in AWAY_WORDS)


def said(text: str) -> str:
    """Puts what a command printed into one line, without the repeated name of the command."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(PREFIX.sub("", line) for line in lines)[:1000]
