"""What the pages say of the package is true of it: names, lists, links."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import resumable_stream as rs
from resumable_stream import protocols
from resumable_stream import _notices
from resumable_stream._core import actions
from resumable_stream._core.phases import Phase
from resumable_stream.protocols import _registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
GUARANTEES = (DOCS / "guarantees.md").read_text()
SERVER_GUARANTEES = (DOCS / "server/guarantees.md").read_text()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1``` *$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.split()[0]
    start = text.index(f"{heading}\n")
    rest = text[start + len(heading) :]
    end = re.search(rf"^#{{1,{len(level)}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the tables below a heading whose rows begin with code."""
    text = section((DOCS / page).read_text(), heading)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]


def names(cell: str) -> list[str]:
    """The identifiers in a cell."""
    return re.findall(r"`(\w+)`", cell)


# --- lists that must be whole


def test_errors_lists_every_error_and_its_attributes() -> None:
    listed = {name: set(names(attributes)) for name, _, _, attributes in rows("errors.md", "## All of them")}
    errors = [value for name in rs.__all__ if isinstance(value := getattr(rs, name), type) and issubclass(value, Exception)]
    assert list(listed) == [f"`{error.__name__}`" for error in errors]
    for error in errors:
        own = set(inspect.signature(error.__init__).parameters) - {"self", "message", "args", "kwargs"}
        root = {"checkpoint", "text_so_far"} if error is rs.ResumableStreamError else set()
        assert listed[f"`{error.__name__}`"] == own | root


def test_architecture_lists_every_action_of_the_machine() -> None:
    listed = [names(row[0])[0] for row in rows("architecture.md", "### Actions")]
    assert sorted(listed) == sorted(action.__name__ for action in get_args(actions.Action))


def test_architecture_describes_every_phase_of_the_machine() -> None:
    listed = [row[0] for row in rows("architecture.md", "### Phases")]
    assert listed == [f"`{phase.value}`" for phase in Phase]


def test_the_picture_of_the_phases_is_that_of_their_table() -> None:
    script = runpy.run_path(str(ROOT / "scripts/phases_picture.py"))
    drawn = script["TARGET"].read_text()
    assert script["draw"]() == drawn, "draw it anew: .venv/bin/python scripts/phases_picture.py"


def test_architecture_names_modules_that_exist() -> None:
    package = ROOT / "resumable_stream"
    text = (DOCS / "architecture.md").read_text()
    modules = re.findall(r"`(_?\w+/\w+\.py|_\w+\.py)`", text)
    assert modules
    folders = ("", "_contract", "_core", "_drivers", "protocols", "transports", "server")
    missing = [module for module in modules if not any((package / folder / module).is_file() for folder in folders)]
    assert missing == []


def test_architecture_says_where_to_change_what_by_functions_that_exist() -> None:
    package = ROOT / "resumable_stream"
    text = section((DOCS / "architecture.md").read_text(), "## Where to change what")
    named = 0
    for line in text.splitlines():
        modules = [package / name for name in re.findall(r"`([\w/]+\.py)`", line)]
        defined = {node.name for path in modules for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "name")}
        # In the first column, and of a protocol or a stream, they are what the reader knows.
        for function in re.findall(r"`(?:\w+\.)?(\w+)\(\)`", line.split("|")[-2] if line.startswith("|") else ""):
            if function not in ("on_status", "deltas"):
                assert function in defined, f"{function}() is in none of {[path.name for path in modules]}"
                named += 1
    assert named >= 8


def test_observe_lists_every_notice_with_its_fields() -> None:
    listed = {names(notice)[0]: names(fields) for notice, _, fields in rows("how-to/observe.md", "## Notices")}
    assert listed == {notice.__name__: list(notice.__dataclass_fields__) for notice in get_args(_notices.Notice)}


@pytest.mark.parametrize(
    ("page", "heading", "cls"),
    [
        ("how-to/observe.md", "## Numbers", rs.Stats),
        ("how-to/retries-and-timeouts.md", "## Clocks", rs.Timeouts),
        ("how-to/retries-and-timeouts.md", "## Limits", rs.Limits),
    ],
)
def test_a_table_lists_every_field(page: str, heading: str, cls: Any) -> None:
    listed = [name for row in rows(page, heading) for name in names(row[0])]
    assert sorted(listed) == sorted(cls.__dataclass_fields__)


def test_the_table_of_promises_is_what_the_protocols_say() -> None:
    listed = {call.strip("`"): cells for call, *cells in rows("guarantees.md", "## What each protocol promises")}
    assert listed.pop("CursorProtocol(…)")
    assert len(listed) >= 7
    for call, cells in listed.items():
        promises = eval(call, vars(protocols)).promises
        facts = (promises.resumable, promises.numbered, promises.has_end, promises.tied)
        assert [cell != "no" for cell in cells] == list(facts), call


def test_every_protocol_is_in_the_readme() -> None:
    table = section((ROOT / "README.md").read_text(), "## Protocols")
    assert re.findall(r"^\| \[`(\w+)`\]", table, re.MULTILINE) == _registry.__all__


def test_every_protocol_is_exported() -> None:
    ready = [name for name in protocols.__all__ if _is_ready_made(name)]
    assert ready == _registry.__all__


def test_every_protocol_is_in_the_reference() -> None:
    """The page has one line for them, and the hook makes a stanza of each."""
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    page = hooks["on_page_markdown"]((DOCS / "reference/protocols.md").read_text())
    listed = re.findall(r"^::: resumable_stream\.protocols\.(\w+)$", page, re.MULTILINE)
    # `Verdict` is the union of those below "Verdicts".
    assert sorted(listed) == sorted({*protocols.__all__} - {"Verdict"})
    assert [name for name in listed if name in _registry.__all__] == _registry.__all__


def test_every_protocol_has_its_page_among_the_providers() -> None:
    """That of its module, if it is not one for endpoints of your own."""
    linked = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\)", (DOCS / "protocols/index.md").read_text(), re.MULTILINE)
    pages = {name: getattr(protocols, name).__module__.rpartition(".")[2] for name, _ in linked}
    assert dict(linked) == {name: {"hub": "hub_stream"}.get(page, page) for name, page in pages.items()}
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    providers = next(part["Providers"] for part in nav if "Providers" in part)
    assert {f"protocols/{page}.md" for _, page in linked} | {"protocols/index.md"} == set(_leaves(providers))


def test_what_the_readme_says_is_not_in_it_is_not() -> None:
    line = re.search(r"^Not in it: (.*)\.$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert line is not None
    missing = {
        "a notebook display": ["notebook"],
    }
    assert line[1].split(", ") == list(missing)
    found = [module for modules in missing.values() for module in modules if find_spec(f"resumable_stream.{module}")]
    assert found == []


def test_the_table_of_detection_is_in_the_order_of_detection() -> None:
    table = (DOCS / "protocols/index.md").read_text()
    listed = re.findall(r"^\| \[`(\w+)`\].*\| (never)?.*\| (yes|no) \|$", table, re.MULTILINE)
    assert all((cancels == "yes") == _cancels(getattr(protocols, name)) for name, _, cancels in listed)
    candidates = [each.__name__ for each in (*_registry.SPECIFIC, *_registry.PLAIN)]
    # One that has to be named may stand anywhere, and says so.
    assert [name for name, never, _ in listed if not never or name in candidates] == candidates
    # Two kinds of your own are chosen by hand only, and have no row.
    assert {name for name, _, _ in listed} == {*_registry.__all__} - {"CursorProtocol", "ReplayFromZero"}


def _cancels(protocol: type[protocols.ResumeProtocol]) -> bool:
    return protocol.cancel_request is not protocols.ResumeProtocol.cancel_request


def _is_ready_made(name: str) -> bool:
    value = getattr(protocols, name)
    return isinstance(value, type) and issubclass(value, protocols.ResumeProtocol) and value is not protocols.ResumeProtocol


def test_the_decisions_are_listed() -> None:
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (DOCS / "decisions/index.md").read_text())
    assert listed == sorted(page.name for page in (DOCS / "decisions").glob("0*.md"))


# --- guarantees


@pytest.mark.parametrize("number", range(1, 10))
def test_a_guarantee_says_what_holds_it_and_where_it_ends(number: int) -> None:
    heading = re.search(rf"^## G{number}: .*$", GUARANTEES, re.MULTILINE)
    assert heading is not None
    text = section(GUARANTEES, heading[0])
    assert "Where it ends:" in text
    assert "The tests that hold it" in text
    assert f"guarantees.md#g{number}-" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("heading", re.findall(r"^## S\d: .*$", SERVER_GUARANTEES, re.MULTILINE))
def test_a_guarantee_of_the_server_says_what_holds_it_and_where_it_ends(heading: str) -> None:
    text = section(SERVER_GUARANTEES, heading)
    assert "Where it ends:" in text
    assert "The tests that hold it" in text


def test_every_row_of_the_failure_table_names_its_test() -> None:
    text = section(SERVER_GUARANTEES, "## When something fails")
    rows = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert rows == re.findall(r"^(\d+)\. `[\w/]+\.py::\w+`$", text, re.MULTILINE)
    assert rows == [str(number) for number in range(1, len(rows) + 1)]
    assert len(rows) > 10


NAMED = sorted(set(re.findall(r"`((?:\w+/)+test_\w+\.py(?:::\w+)?)`", GUARANTEES + SERVER_GUARANTEES)))


def test_every_test_that_guarantees_names_exists() -> None:
    missing = []
    for named in NAMED:
        path, _, function = named.partition("::")
        file = ROOT / "tests" / path
        if not file.is_file() or (function and function not in functions(file)):
            missing.append(named)
    assert missing == []
    assert len(NAMED) > 100


@functools.cache
def functions(file: Path) -> set[str]:
    # The trees of all these files take a second.
    return set(re.findall(r"^ *(?:async )?def (\w+)\(", file.read_text(), re.MULTILINE))


# --- links and navigation


@functools.cache
def anchors(page: Path) -> set[str]:
    """What `#…` may name: headings, where GitHub and MkDocs spell them alike."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\- ]", "", heading.lower()).strip()) for heading in headings}


def test_links_lead_somewhere() -> None:
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))]
    assert len(links) > 200
    lost = []
    for page, target in links:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            lost.append(f"{name_of(page)}: {target}")
    assert lost == []


def test_the_navigation_holds_every_page_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = list(_leaves(config["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def _leaves(node: Any) -> Any:
    if isinstance(node, str):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from _leaves(child)


# --- the style of the source


def test_a_line_holds_one_sentence() -> None:
    lines = [(name_of(page), line) for page in PAGES for line in without_code(page.read_text()).splitlines()]
    crowded = re.compile(r"[a-z)`][.!?] [A-Z][a-z]+ ")
    assert [line for line in lines if not re.match(r"\||- | *\d", line[1]) and crowded.search(line[1])] == []
