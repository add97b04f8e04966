"""What is true of one cluster and of nothing else, read from a file of slurm/clusters/ or from any path."""

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import yaml

from orchestrator.errors import Fault, InputError, RecipeError
from orchestrator.hardware import Hardware
from orchestrator.notify import Notify
from orchestrator.records import record
from orchestrator.redaction import login_in_address

FOLDER = Path(__file__).parent / "clusters"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FLAG = re.compile(r"[a-z][a-z0-9-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
ASSIGNED = re.compile(r"""([A-Za-z_][\w-]*)=["']?([^\s"',;]+)""")
ELSEWHERE = ("$", "`", "/", "~")  # begins what only says where a secret is
# what a launch decides for each job: a cluster file that set it too would make two truths
OURS = frozenset({
    "array", "chdir", "cpus-per-task", "dependency", "distribution", "error", "exclude", "gpus-per-node", "gres",
    "job-name", "kill-on-invalid-dep", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output",
    "parsable", "partition", "requeue", "signal", "test-only", "time", "wait", "wrap",
})  # fmt: skip
LONGEST_SIGNAL_S = 65_535
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it was built so


@record
class Container:
    """In what the tasks of a job run. The keeper of the job always runs on the host."""

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    image: str | None = None  # as `srun --container-image` or `apptainer exec` takes it
    mounts: tuple[str, ...] = ()  # "/data" or "/data:/inside"; the run's folders are always mounted
    python: str = "python"  # inside

    def __post_init__(self) -> None:
        """Refuses a container without an image."""
        if self.kind != "none" and not self.image:
            raise ValueError("image must be given: what the tasks run in")


@record
class Checks:
    """What a node must be before it may join a job."""

    disk_gb: float = 1.0  # free in the temporary folder
    clock_s: float = 5.0  # how far its clock may be off
    gpus: bool = True  # count and memory errors of its GPUs, where the stage asks for any


@record
class Cluster:
    """One cluster, as its users know it. Recipes never mention any of this."""

    name: str
    partition: str | None = None  # null = Slurm's default
    cpu_partition: str | None = None  # for stages without GPUs; null = the same
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None  # for stages with GPUs
    interface: str = "auto"  # the network interface of gloo and NCCL
    gpus_per_node: int | None = None  # this and the next four are limits: null = not checked
    cpus_per_node: int | None = None
    memory_gb_per_node: float | None = None
    max_hours: float | None = None  # of a job
    max_nodes: int | None = None
    hardware: Hardware = field(default_factory=Hardware)  # what a plan's memory and cost are reckoned with
    gpu_flag: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: str | None = None  # "a100" asks for gpu:a100
    container: Container = field(default_factory=Container)
    python: str | None = None  # of the hosts; null = the one that launches
    setup: tuple[str, ...] = ()  # shell lines before the job begins; trusted, for whoever wrote this file wrote them
    environment: dict[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    grace_s: int = 30  # between SIGTERM and SIGKILL: KillWait, or GraceTime of a preemptible partition
    signal_s: int | None = None  # how long before its time ends a job is told; null = from the measured save time
    requeue: bool = True
    comment: str | None = None
    extra: dict[str, str | int | bool] = field(default_factory=dict)  # other flags of sbatch
    srun: tuple[str, ...] = ()  # other words for srun
    ledger: Path | None = None  # of bad nodes; null = ~/.orch/nodes/NAME.jsonl
    ledger_days: float = 7.0  # after which a bad node is tried again
    checks: Checks = field(default_factory=Checks)
    notify: Notify = field(default_factory=Notify)

    def __post_init__(self) -> None:
        """Refuses what would end up in an sbatch text as something else than was meant."""
        if not NAME.fullmatch(self.name) or self.name == "local":
            raise ValueError("name must be letters, digits, '.', '-' and '_', and not 'local': it names a file")
        for name in ("gpus_per_node", "cpus_per_node", "memory_gb_per_node", "max_hours", "max_nodes"):
            limit = getattr(self, name)
            if limit is not None and limit < (0 if name == "gpus_per_node" else 1e-9):
                raise ValueError(f"{name} must be above 0, or null")
        if self.signal_s is not None and not 0 < self.signal_s <= LONGEST_SIGNAL_S:
            raise ValueError(f"signal_s must be between 1 and {LONGEST_SIGNAL_S}, or null")
        if self.grace_s < 0:
            raise ValueError("grace_s must be at least 0")
        for key, text in _texts(self):
            if "\n" in text or "\r" in text or "\0" in text:
                raise ValueError(f"{key} must be one line")
        _check_names(self)

    def ledger_path(self) -> Path:
        """Returns where the bad nodes of this cluster are remembered."""
        path = self.ledger or Path("~/.orch/nodes") / f"{self.name}.jsonl"
        try:
            return path.expanduser()
        except RuntimeError:  # a user without a home
            return Path(tempfile.gettempdir()) / f"orch-{os.getuid()}" / f"{self.name}.jsonl"


def read_cluster(name_or_path: str | Path) -> Cluster:
    """Reads a cluster by the name of a file in slurm/clusters/ or by path; every fault in one RecipeError."""
    from orchestrator.typed import typed  # and with it omegaconf, which whoever only reopens a file does not need

    path = find_cluster(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_doubles(yaml.compose(text, Loader=yaml.SafeLoader), set())
        written = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{path} is not YAML: {place}{error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(written, dict):
        raise InputError(f"{path} is no cluster file: it holds no mapping of keys to values")
    faults: list[Fault] = []
    cluster = typed(Cluster, {"name": path.stem, **written}, "", faults)
    if faults or cluster is None:
        raise RecipeError([Fault(key=f"{path}: {fault.key}", message=fault.message) for fault in faults])
    return cluster


def _refuse_doubles(node: yaml.Node | None, seen: set[int]) -> None:
    """Refuses a key that is written twice in one mapping: YAML would take the last of them, and say nothing."""
    if node is None or id(node) in seen:  # aliases share a node, and may go round in circles
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} is written twice", problem_mark=key.start_mark)
            keys.add(str(key.value))
            _refuse_doubles(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_doubles(item, seen)


def reopen_cluster(path: Path) -> Cluster:
    """Reads a file that `write_cluster` has written, in a tenth of the time: between two stages that counts."""
    try:
        written = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - both are safe ones
        parts = {"container": Container, "checks": Checks, "notify": Notify, "hardware": Hardware}
        made = {name: kind(**_tuples(written[name])) for name, kind in parts.items()}
        ledger = None if written["ledger"] is None else Path(written["ledger"])
        return Cluster(**{**_tuples(written), **made, "ledger": ledger})
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):  # edited by hand: here every fault is told
        return read_cluster(path)


def write_cluster(path: Path, cluster: Cluster) -> None:
    """Writes a cluster file that reads as the same cluster, by rename; for its owner's eyes, as `setup` is anything."""
    from orchestrator.typed import plain

    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            yaml.safe_dump(plain(cluster), file, sort_keys=False, allow_unicode=True)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def find_cluster(name_or_path: str | Path) -> Path:
    """Returns the file that is meant; InputError lists the known clusters."""
    from orchestrator.typed import suggestion

    words = str(name_or_path)
    named = FOLDER / f"{words.removesuffix('.yaml')}.yaml"
    if "/" not in words and named.is_file():
        return named
    if Path(words).is_file():
        return Path(words)
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if "/" in words:
        raise InputError(f"--on: there is no cluster file {words}")
    hint = suggestion(words, ["local", *known])
    raise InputError(f"--on: there is no cluster {words!r} in {FOLDER}{hint}, or the path of a cluster file")


def _tuples(written: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}


def _texts(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yields every text of a cluster file with its key, except the shell lines of `setup`."""
    for key, value in dataclasses.asdict(cluster).items():
        if key != "setup":
            yield from ((key, text) for text in _leaves(value))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from (str(name), *_leaves(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str | Path):
        yield str(value)


def _check_names(cluster: Cluster) -> None:
    for flag in cluster.extra:
        if not FLAG.fullmatch(flag):
            raise ValueError(f"extra.{flag} is no flag of sbatch; write it as `sbatch --help` does, without the dashes")
        if flag in OURS:
            raise ValueError(f"extra.{flag} cannot be set here: each launch sets it for each job")
    for name in cluster.environment:
        if not VARIABLE.fullmatch(name):
            raise ValueError(f"environment.{name} is no name of an environment variable")
    for key, secret in _secrets(cluster):
        advice = "export it in your shell, jobs inherit it"
        raise ValueError(f"{key} holds a secret ({secret}), which would be written into every run folder; {advice}")


def _secrets(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yields what looks like a secret: the key that holds it, and what it is called, never the secret itself."""
    written = [(f"environment.{name}", f"{name}={value}") for name, value in cluster.environment.items()]
    written += [(f"extra.{flag}", f"{flag}={value}") for flag, value in cluster.extra.items()]
    written += [(key, text) for key in ("setup", "srun") for text in getattr(cluster, key)]
    written += [("comment", cluster.comment or "")]
    for key, text in written:
        for name, value in ASSIGNED.findall(text):
            if SECRET_NAME.search(name) and not value.startswith(ELSEWHERE):
                yield key, name
        if "://" in text and login_in_address(text):
            yield key, "a password in an address"
