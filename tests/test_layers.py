"""Who may import whom, read from the sources; and what importing the package costs."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import resumable_stream

ROOT = Path(resumable_stream.__file__).parent
PACKAGE = "resumable_stream"
# No I/O, no clock, no randomness, no log of their own.
PURE = {
    "httpx",
    "httpx2",
    "httpcore",
    "httpx_sse",
    "anyio",
    "asyncio",
    "trio",
    "threading",
    "socket",
    "ssl",
    "time",
    "random",
    "logging",
    "tenacity",
    "redis",
    "sqlite3",
    "starlette",
    "aiohttp",
}
# Of the server half: what decides about logs, mirrors and answers. (`server` itself loads nothing until a name is used.)
PURE_SERVER = (
    *("server.log", "server._values", "server._rules", "server._records", "server.mirror", "server.wire"),
    *("server._redis_scripts", "server._redis_entries", "server._durable"),
    *("server._relay_rules", "server._relay_reading", "server._relay_notes"),
)
OPTIONAL = {
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "httpx_sse",
    "anyio",
    "trio",
    "tenacity",
    "redis",
    "starlette",
    "uvicorn",
    "aiohttp",
    "click",
    "rich",
    "IPython",
}
OPTIONAL |= {"opentelemetry", "pytest", "sqlite3", "asyncio"}


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        found[name] = path
    return found


MODULES = modules()


@functools.cache
def imports_of(name: str) -> set[str]:
    """Absolute names that a module imports when it is imported: not under `TYPE_CHECKING`, not inside functions."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            match node:
                case ast.Import(names):
                    found.update(alias.name for alias in names)
                case ast.ImportFrom(module, names, level):
                    if level:
                        base = package.split(".")[: len(package.split(".")) - level + 1]
                        origin = ".".join([*base, *([module] if module else [])])
                    else:
                        origin = module or ""
                    for alias in names:
                        whole = f"{origin}.{alias.name}"
                        found.add(whole if whole in MODULES else origin)
                case ast.If(test, body, orelse):
                    if ast.unparse(test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                        visit(body)
                    visit(orelse)
                case ast.Try(body, handlers, orelse, final):
                    visit([*body, *(statement for handler in handlers for statement in handler.body), *orelse, *final])
                case ast.With(_, body) | ast.ClassDef(_, _, _, body):
                    visit(body)

    visit(ast.parse(path.read_text()).body)
    # Importing a.b.c imports a and a.b too.
    return found | {parent for each in found for parent in _parents(each) if parent in MODULES}


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


@functools.cache
def reach(name: str) -> dict[str, list[str]]:
    """Everything that importing a module imports, own modules transitively, with the way there."""
    ways = {name: [name]}
    queue = [name]
    while queue:
        current = queue.pop()
        for target in imports_of(current) if current in MODULES else ():
            if target not in ways:
                ways[target] = [*ways[current], target]
                queue.append(target)
    return ways


def layer(*prefixes: str) -> list[str]:
    wanted = [f"{PACKAGE}.{prefix}" for prefix in prefixes]
    return sorted(name for name in MODULES if any(name == prefix or name.startswith(prefix + ".") for prefix in wanted))


def forbidden(name: str, roots: set[str]) -> list[str]:
    return [" → ".join(way) for target, way in reach(name).items() if target.partition(".")[0] in roots]


def ways(names: list[str], *targets: str) -> list[str]:
    """How some of the modules reach what they must not."""
    unwanted = tuple(f"{PACKAGE}.{each}" for each in targets)
    return [" → ".join(way) for name in names for target, way in reach(name).items() if target.startswith(unwanted)]


def test_the_reader_of_imports_sees_what_there_is() -> None:
    assert "resumable_stream._core.ledger" in imports_of("resumable_stream._core.machine")
    assert "resumable_stream.framing.sse" in reach("resumable_stream._core.machine")
    assert "tenacity" in reach("resumable_stream._policy")
    assert forbidden("resumable_stream._api", {"tenacity"})


def imported(names: list[str], *targets: str) -> list[str]:
    """What some of the modules import themselves and must not."""
    unwanted = tuple(f"{PACKAGE}.{each}" for each in targets)
    return [f"{name} → {target}" for name in names for target in imports_of(name) if target.startswith(unwanted)]


def test_what_decides_does_no_io() -> None:
    names = layer("_contract", "_notices", "_core", "framing", "protocols", *PURE_SERVER)
    assert len(names) > 50
    assert [way for name in names for way in forbidden(name, PURE)] == []


def test_the_core_is_handed_its_protocol_and_its_store() -> None:
    upper = ("protocols", "stores", "_drivers", "transports", "server", "testing", "compat", "_api", "_policy", "_cli")
    assert ways(layer("_core"), *upper) == []


def test_framing_the_protocols_and_what_is_told_know_no_core() -> None:
    upper = ("_core", "_drivers", "transports", "stores", "server", "testing", "compat", "_api", "_policy", "_observe", "_cli")
    assert ways(layer("framing", "protocols", "_contract", "_notices"), *upper) == []


def test_the_contract_knows_neither_side() -> None:
    assert ways(layer("_contract", "_notices"), "protocols", "framing") == []


def test_nobody_goes_round_the_contract() -> None:
    """Its modules are its own matter."""
    assert imported(layer("_drivers", "transports", "compat", "_api", "_text"), "_contract.") == []


def test_the_server_knows_nothing_of_the_core() -> None:
    assert imported(layer("server"), "_core", "_drivers") == []


def test_only_two_places_name_the_http_libraries() -> None:
    allowed = (
        f"{PACKAGE}._drivers.http",
        f"{PACKAGE}.transports",
        f"{PACKAGE}.compat",
        f"{PACKAGE}.testing",
        f"{PACKAGE}.server",
        f"{PACKAGE}._cli",
    )
    wrong = [
        name
        for name in MODULES
        if not name.startswith(allowed) and {target.partition(".")[0] for target in imports_of(name)} & {"httpx", "httpx2"}
    ]
    assert wrong == []


def test_only_the_policy_imports_tenacity_and_only_the_plugin_pytest() -> None:
    def importers(root: str) -> list[str]:
        # The command line is a user of the package like any other.
        found = [name for name in MODULES if root in {target.partition(".")[0] for target in imports_of(name)}]
        return [name for name in found if not name.startswith(f"{PACKAGE}._cli")]

    assert importers("tenacity") == [f"{PACKAGE}._policy"]
    assert importers("pytest") == [f"{PACKAGE}.testing.pytest_plugin"]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import json, sys; import {PACKAGE}; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(run_python(code))}
    assert loaded & OPTIONAL == set()


def test_importing_the_package_has_no_side_effects() -> None:
    code = (
        "import signal, sys, threading; before = signal.getsignal(signal.SIGINT), sys.excepthook, threading.active_count()\n"
        f"import {PACKAGE}\n"
        "assert before == (signal.getsignal(signal.SIGINT), sys.excepthook, threading.active_count())"
    )
    run_python(code)


def test_what_decides_can_be_had_without_an_http_client() -> None:
    modules = ("protocols", "stores", "_contract", "_core.machine", "framing", "server.log")
    names = ", ".join(f"{PACKAGE}.{each}" for each in modules)
    code = f"import json, sys; import {names}; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(run_python(code))}
    assert loaded & {"httpx", "httpx2", "httpcore", "anyio", "tenacity", "redis"} == set()


def test_the_whole_public_face_never_loads_the_second_library() -> None:
    code = f"import sys; import {PACKAGE} as rs; [getattr(rs, name) for name in rs.__all__]\n"
    code += "print('httpx2' in sys.modules, 'pytest' in sys.modules)"
    assert run_python(code).split() == ["False", "False"]


# --- what is exported -----------------------------------------------------------------------------------------------


def test_every_name_that_the_package_exports_is_there() -> None:
    assert len(set(resumable_stream.__all__)) == len(resumable_stream.__all__)
    for name in resumable_stream.__all__:
        value = getattr(resumable_stream, name)
        assert value is not None
        assert getattr(value, "__name__", name).rpartition(".")[2] == name or name in ("AUTO", "Notice")
    assert set(resumable_stream.__all__) <= set(dir(resumable_stream))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = resumable_stream.nonsense  # type: ignore[attr-defined]


def test_the_lazy_names_and_the_typed_names_are_the_same() -> None:
    """What a type checker sees under TYPE_CHECKING is what `__getattr__` loads, and both are `__all__`."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {"ModuleType"} == set(resumable_stream.__all__)


def test_all_is_what_there_is() -> None:
    lacking = []
    for name in sorted(name for name in MODULES if not name.rpartition(".")[2].startswith("__main")):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            lacking.append(f"{name} needs an extra: {error}")
            continue
        exported = getattr(module, "__all__", None)
        if exported is None:
            continue
        assert len(set(exported)) == len(exported), name
        assert [each for each in exported if not hasattr(module, each)] == [], name
        if name == PACKAGE or MODULES[name].name != "__init__.py":
            continue
        own = {
            node.name
            for node in ast.parse(MODULES[name].read_text()).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
        }
        assert own - set(exported) == set(), name
    if lacking:
        pytest.skip("\n".join(lacking))


def test_a_public_package_exports_all_of_its_public_classes() -> None:
    from resumable_stream import protocols
    from resumable_stream._contract import ResumeProtocol

    defined = {
        value.__name__
        for name in layer("protocols")
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and issubclass(value, ResumeProtocol) and value.__module__.startswith(f"{PACKAGE}.protocols")
    }
    assert {name for name in defined if not name.startswith("_")} <= set(protocols.__all__)
