"""
Test the shipped package: build the wheel, install it into throw-away environments, and use it without access to the sources.

Two environments: without extras, every module imports or names the extra it needs; with all extras, every module imports.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "chat,cli,httpx2,notebook,otel,redis,server"

SMOKE = """
import importlib, importlib.metadata, importlib.resources, pkgutil, sys

import resumable_stream

with_extras = sys.argv[1] == "extras"
[home] = resumable_stream.__path__
assert home.startswith(sys.prefix), home
assert importlib.resources.files("resumable_stream").joinpath("py.typed").is_file(), "py.typed is not in the wheel"
assert importlib.resources.files("resumable_stream").joinpath("_cli/fastapi_chat/static/index.html").is_file(), "no page"
assert not {"httpx2", "redis", "starlette", "click", "IPython"} & set(sys.modules), "importing the package loads an extra"

def importable(name):
    # No extra installs pytest: it belongs to the test runner.
    try:
        importlib.import_module(name)
    except ImportError as exc:
        if getattr(exc, "name", None) == "pytest" and name.startswith("resumable_stream.testing"):
            return
        assert not with_extras, f"{name}: {exc}"
        if name.rpartition(".")[2].startswith("_"):
            return  # the module that imports it reports the missing extra
        assert "resumable-stream-sdk[" in str(exc), f"{name}: the error does not name the extra to install: {exc}"

seen = 0
for module in pkgutil.walk_packages(resumable_stream.__path__, "resumable_stream.", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        importable(module.name)
        seen += 1
for name in getattr(resumable_stream, "__all__", ()):
    getattr(resumable_stream, name)

from resumable_stream.stores import FileStore, MemoryStore, SQLiteStore
from resumable_stream._checkpoint import Checkpoint

place = Checkpoint(protocol="LastEventID", method="GET", url="https://example.com/", cursor="7")
for store in MemoryStore(), FileStore("kept"), SQLiteStore("kept.db"):
    before, fence = store.open("a key")
    assert before is None
    store.save("a key", place, fence=fence)
    assert store.open("a key")[0] == place

version = importlib.metadata.version("resumable-stream-sdk")
print(f"{version} {sys.argv[1]}: {seen} modules")
"""


# The sources are not accessible here, so the served files come from the wheel.
CHAT = """
import re, subprocess, sys, urllib.request

command = [sys.argv[1], "chat", "--port", "0", "--store", "memory:"]
with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
    try:
        url = re.fullmatch("serving a chat on (http://[^ ]+)", server.stdout.readline().strip())[1]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=60) as page:
            text, place = page.read().decode(), page.url
        assert place.startswith(url + "/c/") and "<title>Chat</title>" in text, place
        for link in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
            assert opener.open(url + link, timeout=60).status == 200
    finally:
        server.terminate()
assert server.returncode == 0, server.returncode
"""


def run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def main() -> None:
    pip = (sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check")
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        run(*pip, "wheel", "--no-deps", "--wheel-dir", work / "wheel", ROOT)
        [wheel] = (work / "wheel").glob("*.whl")
        for kind, wanted in (("bare", str(wheel)), ("extras", f"{wheel}[{EXTRAS}]")):
            home = work / kind
            venv.create(home, with_pip=True)
            python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
            run(python, "-m", "pip", "-qq", "--disable-pip-version-check", "install", wanted)
            away = work / f"away-{kind}"
            away.mkdir()
            # -I: neither the current directory nor PYTHONPATH can make the sources visible.
            run(python, "-I", "-W", "error::ImportWarning", "-c", SMOKE, kind, cwd=away)
            if kind == "extras":
                run(python.with_name("resumable-stream"), "--help", cwd=away)
                run(python, "-I", "-c", CHAT, python.with_name("resumable-stream"), cwd=away)


if __name__ == "__main__":
    main()
