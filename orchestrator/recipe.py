"""What a user asks for: a recipe of named stages. Reads it from YAML and writes it back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.alerts import Alerts
from orchestrator.errors import Fault, RecipeError
from orchestrator.heartbeat import Limits
from orchestrator.notify import Notify
from orchestrator.records import record
from orchestrator.redaction import Screen, login_in_address
from orchestrator.registration import Tracking
from orchestrator.resources import Resources
from orchestrator.retry import RetryPolicy
from orchestrator.typed import allowed, dotted, plain, suggestion, typed

MOST_NODES = 1_000_000  # of a file after its YAML aliases are written out: a thousand stages, but no bomb
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([A-Za-z0-9_]+)")
REFERENCE = re.compile(r"\$\{\s*([A-Za-z0-9_.-]+)\s*\}")
LONGEST_SHOWN = 60
UNNAMED = {"name": "unnamed", "seed": 0}  # stand for what is wrong, while the rest is looked at
OVERRIDE = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)=(.*)", re.DOTALL)


@record
class StageSpec:
    """One entry under `stages:`, as written."""

    stage: str  # a key of stages.STAGES
    inputs: dict[str, Any] = field(default_factory=dict)  # input -> "other.output" | path | mapping of those
    config: dict[str, Any] = field(default_factory=dict)  # typed later by the stage's own Config
    resources: Resources = field(default_factory=Resources)


@record
class Recipe:
    """A set of named stages; what they hand each other orders them."""

    name: str
    stages: dict[str, StageSpec]
    runs: Path = Path("runs")
    seed: int = 0
    tracking: Tracking = field(default_factory=Tracking)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    watch: Limits = field(default_factory=Limits)
    notify: Notify = field(default_factory=Notify)
    alerts: Alerts = field(default_factory=Alerts)
    vars: dict[str, Any] = field(default_factory=dict)  # for ${vars.x} only

    def __post_init__(self) -> None:
        """Refuses names that are no folder names and recipes without work."""
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits, '-' and '_': it names a folder, and is {self.name!r}")
        if self.seed < 0:
            raise ValueError("seed must be at least 0")
        if not self.stages:
            raise ValueError("stages must name at least one stage")


MAPPING = f"a recipe is a mapping with the keys {', '.join(allowed(Recipe))}"


@record
class Reading:
    """A recipe as far as it could be read, and everything that is wrong with it."""

    recipe: Recipe | None
    faults: tuple[Fault, ...]
    broken: frozenset[str]  # stages that are written but cannot be read


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, applies `KEY=VALUE` overrides, resolves interpolations; every fault in one RecipeError."""
    reading = read_recipe(path, overrides)
    if reading.faults or reading.recipe is None:
        raise RecipeError(reading.faults)
    return reading.recipe


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Reading:
    """Reads as much of a recipe as can be read, for a planner that tells its own faults along with these."""
    faults: list[Fault] = []
    try:
        written = _parse(path)
    except RecipeError as error:
        return Reading(recipe=None, faults=error.faults, broken=frozenset())
    for override in overrides:
        _override(written, override, faults)
    resolved = _resolve(written, "", faults)
    unresolved = {fault.key for fault in faults}
    faults.extend(_secrets(resolved, "", kept=_written_uri(written), screen=Screen()))
    found: list[Fault] = []
    recipe = typed(Recipe, resolved, "", found)
    if recipe is None:  # so that what is wrong with its stages is told along with what is wrong with its name
        recipe = typed(Recipe, {**resolved, **UNNAMED}, "", [])
    faults.extend(fault for fault in found if fault.key not in unresolved)
    stages = resolved.get("stages")
    names = frozenset(str(name) for name in stages) if isinstance(stages, Mapping) else frozenset()
    if recipe is None:
        return Reading(recipe=None, faults=tuple(faults), broken=names)
    recipe = _with_written_uri(recipe, _written_uri(written))
    return Reading(recipe=recipe, faults=tuple(faults), broken=names - recipe.stages.keys())


def dump_recipe(recipe: Recipe) -> str:
    """Writes the resolved recipe as YAML that plans the same.

    `vars` is left out, for nothing refers to it any more. `tracking.uri` keeps its `${oc.env:...}` as it was written:
    such addresses carry passwords, and a run folder holds none.
    """
    shown = _escaped(plain(recipe))
    del shown["vars"]
    if recipe.tracking.written_uri is not None:
        shown["tracking"]["uri"] = recipe.tracking.written_uri
    return OmegaConf.to_yaml(OmegaConf.create(shown))


def _parse(path: Path) -> DictConfig:
    try:
        written = OmegaConf.load(path, max_yaml_expanded_nodes=MOST_NODES)
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file") from None
    except IsADirectoryError:
        raise _unreadable(path, "is a folder; a recipe is a YAML file") from None
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"is not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = str(error.problem).partition(". ")[0]  # what follows is advice for programs
        raise _unreadable(path, f"is not YAML: {place}{problem}") from None
    except RecursionError:
        raise _unreadable(path, "is nested too deeply: a recipe needs a dozen levels at most") from None
    except yaml.YAMLError as error:
        raise _unreadable(path, f"is not YAML: {error}") from None
    except OmegaConfBaseException as error:
        raise _unreadable(path, f"cannot be read: {_first_line(error)}") from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror or error}") from None
    return _mapping(path, written)


def _mapping(path: Path, written: DictConfig | ListConfig) -> DictConfig:
    if not isinstance(written, DictConfig):
        raise _unreadable(path, f"holds a list; {MAPPING}")
    names = list(written)
    if len(names) == 1 and names[0] not in allowed(Recipe) and written[names[0]] is None:  # how OmegaConf reads a text
        raise _unreadable(path, f"holds nothing but the text {str(names[0])[:LONGEST_SHOWN]!r}; {MAPPING}")
    return written


def _unreadable(path: Path, message: str) -> RecipeError:
    return RecipeError([Fault(key=str(path), message=message)])


def _override(written: DictConfig, override: str, faults: list[Fault]) -> None:
    match = OVERRIDE.fullmatch(override)
    if match is None:
        faults.append(
            Fault(key=override, message="is no override; write KEY=VALUE, as in stages.gcg.config.train.steps=10")
        )
        return
    key, text = match.groups()
    problem = _misplaced(written, key.split("."))
    if problem:
        faults.append(Fault(key=key, message=f"cannot be overridden: {problem}"))
        return
    try:
        # as it was written: what it refers to is the recipe's, and what stands in the environment stays there
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        value = given["value"]
        OmegaConf.update(written, key, value, merge=value != {})  # {} joined to a mapping would say nothing: it empties
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        faults.append(Fault(key=key, message=f"cannot be set to {text!r}: {_first_line(error)}"))


def _misplaced(written: DictConfig, parts: list[str]) -> str | None:
    """Says why an override names nothing that exists. Keys below config and inputs are checked with the stage."""
    levels: list[tuple[str, Sequence[str]]] = [("a recipe", allowed(Recipe))]
    sections = {"tracking": Tracking, "retry": RetryPolicy, "watch": Limits, "notify": Notify, "alerts": Alerts}
    if parts[0] in sections:
        levels.append((parts[0], allowed(sections[parts[0]])))
    if parts[0] == "vars":
        levels.append(("vars", _names(written, "vars")))
    if parts[0] == "stages":
        levels += [("stages", _names(written, "stages")), ("a stage", allowed(StageSpec))]
        if parts[2:3] == ["resources"]:
            levels.append(("resources", allowed(Resources)))
    for part, (place, names) in zip(parts, levels, strict=False):
        if part not in names:
            return f"{place} has no '{part}'{suggestion(part, names)}"
    return None


def _names(written: DictConfig, key: str) -> list[str]:
    try:
        section = written.get(key)
    except OmegaConfBaseException:
        return []
    return [str(name) for name in section] if isinstance(section, DictConfig) else []


def _resolve(node: DictConfig | ListConfig, key: str, faults: list[Fault]) -> Any:
    """Returns the plain data of a node with every interpolation filled in; names those that cannot be."""
    names: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    values = [_resolve_item(node, name, dotted(key, str(name)), faults) for name in names]
    return dict(zip(names, values, strict=True)) if isinstance(node, DictConfig) else values


def _resolve_item(node: DictConfig | ListConfig, name: Any, key: str, faults: list[Fault]) -> Any:
    if OmegaConf.is_missing(node, name):
        faults.append(Fault(key=key, message="is '???': a value must be given, in the recipe or as KEY=VALUE"))
        return None
    try:
        value = node[name]
        if OmegaConf.is_interpolation(node, name) and isinstance(value, DictConfig | ListConfig):
            return OmegaConf.to_container(value, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        faults.append(Fault(key=key, message=_unresolved(node, str(_raw(node, name)), error)))
        return _raw(node, name)
    if isinstance(value, bytes):
        faults.append(Fault(key=key, message="holds binary data; a recipe holds text, numbers, lists and mappings"))
    return _resolve(value, key, faults) if isinstance(value, DictConfig | ListConfig) else value


def _unresolved(node: DictConfig | ListConfig, text: str, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"{text!r} refers to itself"
    for variable in ENVIRONMENT.findall(text):
        if f"'{variable}'" in str(error):
            return f"{text!r} needs the environment variable {variable}, which is not set"
    root = node._get_root()  # noqa: SLF001 - OmegaConf has no public way up
    for reference in REFERENCE.findall(text):
        section, _, name = reference.rpartition(".")
        if isinstance(root, DictConfig) and section == "vars" and name not in (names := _names(root, "vars")):
            return f"{text!r} refers to {reference}, which is not there{suggestion(name, names)}"
    return f"{text!r} cannot be filled in: {_first_line(error)}"


def _raw(node: DictConfig | ListConfig, name: Any) -> Any:
    container: Any = OmegaConf.to_container(node, resolve=False)
    return container[name]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _written_uri(written: DictConfig) -> str | None:
    """Returns tracking.uri as written, if it takes something from the environment."""
    # of this section alone: a recipe of a thousand stages takes its time to copy
    raw: Any = OmegaConf.to_container(OmegaConf.masked_copy(written, ["tracking"]), resolve=False)
    tracking = raw.get("tracking") if isinstance(raw, dict) else None
    uri = tracking.get("uri") if isinstance(tracking, dict) else None
    return uri if isinstance(uri, str) and ENVIRONMENT.search(uri) and "${vars" not in uri else None


def _with_written_uri(recipe: Recipe, uri: str | None) -> Recipe:
    return replace(recipe, tracking=replace(recipe.tracking, written_uri=uri))


def _secrets(value: Any, key: str, *, kept: str | None, screen: Screen) -> list[Fault]:
    """Finds passwords, tokens and signed addresses, which would be written into the run folder."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = (_secrets(item, dotted(key, str(name)), kept=kept, screen=screen) for name, item in items)
        return [fault for faults in found for fault in faults]
    if not isinstance(value, str) or key.partition(".")[0] == "vars":
        return []
    if key == "tracking.uri" and kept is not None and not login_in_address(kept):
        return []
    why = screen.why_secret(value, key)
    advice = (
        "put it into the environment and write ${oc.env:MLFLOW_TRACKING_URI}" if key == "tracking.uri" else "remove it"
    )
    return [Fault(key=key, message=f"{why}, which would be written into the run folder; {advice}")] if why else []


def _escaped(value: Any) -> Any:
    """Protects a resolved `${` from being filled in when the file is read again."""
    if isinstance(value, dict):
        return {name: _escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
