"""Types of constructor parameters, read from the source files: nothing is imported, so nothing heavy is loaded."""

import ast
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

_SCALARS = {"int": int, "float": float, "str": str, "bool": bool, "bytes": str, "Path": str, "PathLike": str}
_LISTS = {"list", "tuple", "set", "frozenset", "List", "Tuple", "Sequence", "Iterable", "Collection"}
_DICTS = {"dict", "Dict", "Mapping", "MutableMapping", "Callable"}
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}
_MOST_STEPS = 12  # aliases of aliases; stops at a circle of imports


@dataclass(frozen=True)
class Accepted:
    """Values that an annotation admits: some of the YAML types, some constants, or anything at all."""

    kinds: frozenset[type] = frozenset()
    choices: tuple[Any, ...] = ()
    anything: bool = False

    def __or__(self, other: "Accepted") -> "Accepted":
        return Accepted(self.kinds | other.kinds, self.choices + other.choices, self.anything or other.anything)

    def admits(self, value: Any) -> bool:
        """Whether a plain YAML value fits; a whole number is a number, but true is not 1."""
        kind = type(value)
        fits = kind in self.kinds or (kind is int and float in self.kinds)
        return self.anything or fits or any(value == c and kind is type(c) for c in self.choices)

    def describe(self) -> str:
        """``a whole number or null``, ``one of a, b``."""
        kinds = [text for kind, text in _WORDS.items() if kind in self.kinds and kind is not type(None)]
        texts = [f"one of {', '.join(map(str, self.choices))}"] if self.choices else []
        return " or ".join([*texts, *kinds, *(["null"] if type(None) in self.kinds else [])]) or "nothing"


ANYTHING = Accepted(anything=True)


@dataclass(frozen=True)
class Signature:
    """Parameters that a target takes: what each admits; ``open`` where it takes any other name too."""

    parameters: Mapping[str, Accepted] = field(default_factory=dict)
    open: bool = False


@dataclass(frozen=True)
class _Module:
    """A parsed source file and what its top level defines or imports."""

    name: str
    is_package: bool
    definitions: Mapping[str, ast.stmt]

    def imported_from(self, statement: ast.ImportFrom) -> str:
        """Absolute name of the module that the statement imports from."""
        if not statement.level:
            return statement.module or ""
        parts = self.name.split(".")
        kept = parts[: len(parts) - statement.level + self.is_package]
        return ".".join([*kept, *([statement.module] if statement.module else [])])


def signature(target: str) -> Signature | None:
    """Signature of the class or function that ``_target_`` names, or None where there is none of that name."""
    module, _, name = target.rpartition(".")
    found = _find(module, name)
    if found is None:
        return None
    where, statement = found
    if isinstance(statement, ast.ClassDef):
        return _narrowed(_of_class(where, statement), _choices(where))
    if isinstance(statement, ast.FunctionDef):
        return _narrowed(_of_function(where, statement, bound=False), _choices(where))
    return Signature(open=True)


def _choices(module: _Module) -> dict[str, tuple[Any, ...]]:
    """The table ``CHOICES = {parameter: (value, …)}`` of a module that checks choices itself, or nothing."""
    statement = module.definitions.get("CHOICES")
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return {}
    try:
        return {str(name): tuple(values) for name, values in dict(ast.literal_eval(statement.value)).items()}
    except ValueError:
        return {}  # not written out as constants


def _narrowed(found: Signature, choices: Mapping[str, tuple[Any, ...]]) -> Signature:
    none = frozenset({type(None)})
    narrow = {
        name: Accepted(found.parameters[name].kinds & none, values)
        for name, values in choices.items()
        if name in found.parameters
    }
    return Signature({**found.parameters, **narrow}, found.open)


def accepted(annotation: str) -> Accepted:
    """What an annotation of plain types admits: ``accepted("int | None")``."""
    return _admitted(ast.parse(annotation, mode="eval").body, _Module("", False, {}), 0)


def names_in(module: str) -> list[str]:
    """Classes and functions defined in a module, or the empty list where there is no such module."""
    parsed = _parse(module)
    definitions = parsed.definitions if parsed else {}
    return [name for name, stmt in definitions.items() if isinstance(stmt, ast.ClassDef | ast.FunctionDef)]


@lru_cache(maxsize=256)
def _parse(module: str) -> _Module | None:
    file = _file_of(module)
    if file is None:
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return _Module(module, file.name == "__init__.py", dict(_definitions(tree.body)))


def _file_of(module: str) -> Path | None:
    root, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(root) if root else None  # a top-level name is found without being imported
    except ValueError:
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py") if rest else path):
            if file.is_file():
                return file
    return None


def _definitions(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            yield statement.name, statement
        elif isinstance(statement, ast.ImportFrom):
            yield from ((alias.asname or alias.name, statement) for alias in statement.names)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from ((target.id, statement) for target in targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.If | ast.Try):
            yield from _definitions([*statement.orelse, *statement.body])


def _find(module: str, name: str, steps: int = 0) -> tuple[_Module, ast.stmt] | None:
    """Statement that defines ``name``, followed through ``from … import``, with the module it stands in."""
    parsed = _parse(module)
    statement = parsed.definitions.get(name) if parsed else None
    if parsed is None or statement is None or steps > _MOST_STEPS:
        return None
    if not isinstance(statement, ast.ImportFrom):
        return parsed, statement
    original = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
    return _find(parsed.imported_from(statement), original, steps + 1)


def _of_class(module: _Module, cls: ast.ClassDef) -> Signature:
    init = next((s for s in cls.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
    if init is not None:
        return _of_function(module, init, bound=True)
    if any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        fields = [s for s in cls.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
        kept = [s for s in fields if "ClassVar" not in ast.unparse(s.annotation)]
        return Signature({ast.unparse(s.target): _admitted(s.annotation, module, 0) for s in kept})
    return Signature(open=bool(cls.bases))  # an inherited constructor is not looked for


def _of_function(module: _Module, function: ast.FunctionDef, bound: bool) -> Signature:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args][1 if bound else 0 :] + arguments.kwonlyargs
    return Signature(
        {a.arg: _admitted(a.annotation, module, 0) if a.annotation else ANYTHING for a in named},
        open=arguments.kwarg is not None,
    )


def _admitted(node: ast.expr, module: _Module, steps: int) -> Accepted:
    if steps > _MOST_STEPS:
        return ANYTHING
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _admitted(node.left, module, steps) | _admitted(node.right, module, steps)
    if isinstance(node, ast.Constant):
        return _of_constant(node.value, module, steps)
    if isinstance(node, ast.Subscript):
        return _of_subscript(node, module, steps)
    return _of_name(node.id, module, steps) if isinstance(node, ast.Name) else ANYTHING


def _of_constant(value: Any, module: _Module, steps: int) -> Accepted:
    if value is None:
        return Accepted(frozenset({type(None)}))
    if isinstance(value, str):  # an annotation in quotes
        return _admitted(ast.parse(value, mode="eval").body, module, steps + 1)
    return ANYTHING


def _of_subscript(node: ast.Subscript, module: _Module, steps: int) -> Accepted:
    name = ast.unparse(node.value).rpartition(".")[2]
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        constants = tuple(item.value for item in inner if isinstance(item, ast.Constant))
        none = frozenset({type(None)}) if None in constants else frozenset[type]()
        return Accepted(none, tuple(c for c in constants if c is not None))
    if name in ("Optional", "Union"):
        found = Accepted(frozenset({type(None)}) if name == "Optional" else frozenset())
        for item in inner:
            found |= _admitted(item, module, steps)
        return found
    if name == "Annotated":
        return _admitted(inner[0], module, steps)
    return _of_container(name)


def _of_container(name: str) -> Accepted:
    if name in _LISTS:
        return Accepted(frozenset({list}))
    return Accepted(frozenset({dict})) if name in _DICTS else ANYTHING


def _of_name(name: str, module: _Module, steps: int) -> Accepted:
    if name in _SCALARS:
        return Accepted(frozenset({_SCALARS[name]}))
    if name in _LISTS | _DICTS:
        return _of_container(name)
    found = _find(module.name, name)
    if found is None:
        return ANYTHING
    where, statement = found
    if isinstance(statement, ast.ClassDef):  # an object, which YAML states as a mapping with a _target_
        is_enum = any("Enum" in ast.unparse(base) for base in statement.bases)
        return ANYTHING if is_enum else Accepted(frozenset({dict}))
    if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        return _admitted(statement.value, where, steps + 1)
    return ANYTHING
