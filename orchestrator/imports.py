"""Which modules of ours a module runs, found by reading the code and not by importing it."""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
QUOTED = re.compile(r"[\w.\[\], |]+")  # a quoted annotation
WORD = re.compile(r"\w+")
QUIET = frozenset({"record", "dataclass"})
DYNAMIC = ("import_module", "__import__")
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # where statements hold statements
UNSAID = frozenset(
    {"ctx", "kind", "type_comment", "type_ignores"}
)  # what Python adds to a tree beside what was written


class Sources:
    """The code of some packages, each module read and parsed once.

    A module is named "a.b", or "a.b:Class" for that class and what it needs of its module: stages that share a file
    do not share its changes. `packages` are top-level names; what lies outside is a library, recorded and not hashed.
    `neutral` modules ("a.b", or "a.b.*" for all in a package) are left out, and so is what only they import.
    """

    def __init__(self, packages: Iterable[str], neutral: Collection[str]) -> None:
        """Finds where the packages lie; nothing is read yet."""
        self._roots = {package: _folder_of(package) for package in packages}
        self._neutral = neutral
        self._paths: dict[str, Path | None] = {}
        self._trees: dict[str, ast.Module] = {}
        self._imports: dict[str, tuple[str, ...]] = {}
        self._digests: dict[str, str] = {}
        self._closures: dict[tuple[str, ...], dict[str, str]] = {}

    def closure(self, modules: Iterable[str]) -> dict[str, str]:
        """Returns module -> digest of its code, for the modules and all that they import, in order of name."""
        wanted = tuple(sorted(set(modules)))
        if wanted not in self._closures:
            self._closures[wanted] = {name: self._digest(name) for name in sorted(self._reached(wanted))}
        return self._closures[wanted]

    def path(self, module: str) -> Path | None:
        """Returns the file of a module, None if it has none (a folder without `__init__.py`, a library)."""
        if module not in self._paths:
            self._paths[module] = self._find(module)
        return self._paths[module]

    def _find(self, module: str) -> Path | None:
        top, *rest = module.partition(":")[0].split(".")
        root = self._roots.get(top)
        if root is None:
            return None
        if root.suffix == ".py":
            return None if rest else root
        place = root.joinpath(*rest)
        candidates = (place / "__init__.py", place.with_name(place.name + ".py") if rest else place / "__init__.py")
        return next((path for path in candidates if path.is_file()), None)

    def _reached(self, modules: Iterable[str]) -> set[str]:
        reached: set[str] = set()
        waiting = [parent for module in modules for parent in _with_parents(module)]
        while waiting:
            module = waiting.pop()
            if module not in reached and not self._is_neutral(module) and self.path(module) is not None:
                reached.add(module)
                waiting.extend(self._imported(module))
        return reached

    def _is_neutral(self, module: str) -> bool:
        name = module.partition(":")[0]
        return name in self._neutral or name.rpartition(".")[0] + ".*" in self._neutral

    def _imported(self, module: str) -> tuple[str, ...]:
        if module not in self._imports:
            path = self.path(module)
            name = module.partition(":")[0]
            inside = name if path is not None and path.name == "__init__.py" else name.rpartition(".")[0]
            text = b"" if path is None else path.read_bytes()
            nodes = _walk if any(word.encode() in text for word in DYNAMIC) else _statements  # calls are many
            found = {name for node in nodes(self._tree(module)) for name in self._named(node, inside)}
            self._imports[module] = tuple(sorted(name for name in found if self.path(name) is not None))
        return self._imports[module]

    def _named(self, node: ast.AST, inside: str) -> Iterator[str]:
        """Yields the modules that a statement or a call imports; `inside` is the package it stands in."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            package = _absolute(node, inside)
            yield from _with_parents(package)
            for alias in node.names:  # a name of the package, or a module in it: only a file tells
                yield f"{package}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and _called(node) in DYNAMIC:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield from _with_parents(first.value)

    def _tree(self, module: str) -> ast.Module:
        tree = self._trees.get(module)
        if tree is None:
            path = self.path(module)
            tree = self._trees[module] = ast.Module(body=[], type_ignores=[]) if path is None else parse(path, module)
        return tree

    def _digest(self, module: str) -> str:
        if module not in self._digests:
            self._digests[module] = digest(self._tree(module))
        return self._digests[module]


def parse(path: Path, module: str = "") -> ast.Module:
    """Parses a Python file, of "a.b:Class" only what the class needs; InputError names the line that is not Python."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    _, colon, name = module.partition(":")
    return _pruned(tree, name.partition(".")[0]) if colon else tree


def digest(tree: ast.Module) -> str:
    """Returns the sha256 of what code does: comments, layout, docstrings and type-only imports do not count.

    The text that is hashed leaves out what is empty and what Python itself adds, so that it is the same on every
    version of Python that can parse the code.
    """
    words: list[str] = []
    _spell(tree, words)
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest()


def _pruned(tree: ast.Module, name: str) -> ast.Module:
    """Leaves out what a class does not need of its module: classes, functions and `from` imports that are not named.

    A name counts wherever it stands in what is kept. Everything else at the top of the module runs when it is
    imported, so it stays; so does a plain `import x`, and what a decorator may keep for later use.
    """
    definitions = {node.name: node for node in tree.body if isinstance(node, DEFINITIONS) and _is_quiet(node)}
    if name not in definitions:
        return tree
    kept = {name}
    waiting = [node for node in tree.body if node not in definitions.values()] + [definitions[name]]
    names: set[str] = set()
    while waiting:
        found = set(_names(waiting.pop()))
        new = (found & definitions.keys()) - kept
        waiting.extend(definitions[needed] for needed in new)
        kept |= new
        names |= found
    body = [
        _narrowed(node, names) for node in tree.body if getattr(node, "name", None) not in definitions.keys() - kept
    ]
    return ast.Module(body=[node for node in body if node is not None], type_ignores=[])


def _names(tree: ast.AST) -> Iterator[str]:
    """Yields the names in code that runs, those in quoted annotations too."""
    for node in _walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and QUOTED.fullmatch(node.value):
            yield from WORD.findall(node.value)


def _narrowed(node: ast.stmt, names: set[str]) -> ast.stmt | None:
    """Returns a `from` import with the names that are used; None if none is."""
    if not isinstance(node, ast.ImportFrom) or node.module == "__future__":
        return node
    used = [alias for alias in node.names if alias.name == "*" or (alias.asname or alias.name) in names]
    return ast.ImportFrom(module=node.module, names=used, level=node.level) if used else None


def _is_quiet(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tells whether defining it does nothing else: no decorator that could note it down somewhere."""
    return all(isinstance(decorator, ast.Name) and decorator.id in QUIET for decorator in node.decorator_list)


def _spell(node: ast.AST, words: list[str]) -> None:
    words.append(type(node).__name__)
    if type(node) is ast.Constant:
        words.append(f"{type(node.value).__name__} {node.value!r}")
        return
    for name in node._fields:
        value = getattr(node, name, None)
        items = list(_running(value)) if isinstance(value, list) else [value]
        if value is None or not items or name in UNSAID:
            continue
        words.append(name)
        for item in items:
            _spell(item, words) if isinstance(item, ast.AST) else words.append(repr(item))
    words.append(")")


def _running(items: list[Any]) -> Iterator[Any]:
    """Yields the statements that run: no docstrings, nothing that is only there for type checkers."""
    for item in items:
        if type(item) is ast.Expr and type(item.value) is ast.Constant:
            continue
        if type(item) is ast.If and _only_for_types(item.test):
            yield from _running([*item.orelse])
        else:
            yield item


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields every node that runs."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if type(node) is ast.Expr and type(node.value) is ast.Constant:
            continue
        yield node
        if type(node) is ast.If and _only_for_types(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields every statement that runs, without looking into expressions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        blocks = BLOCKS if not (type(node) is ast.If and _only_for_types(node.test)) else ("orelse",)
        for block in blocks:
            waiting.extend(getattr(node, block, ()))


def _only_for_types(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _called(node: ast.Call) -> str:
    function = node.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _absolute(node: ast.ImportFrom, inside: str) -> str:
    """Returns the full name of the package that `from ... import` names."""
    if node.level == 0:
        return node.module or ""
    parts = inside.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _with_parents(module: str) -> list[str]:
    """Returns a.b.c, a.b and a: importing the first runs all three."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _folder_of(package: str) -> Path | None:
    """Returns the folder of a package, or the file of a module that is no package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None
