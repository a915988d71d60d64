"""
`resumable-stream chat`: the chat of `examples/fastapi_chat`, served from the folder that the wheel contains.

People read and copy the example, so the app is written only there; this module loads it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Final
from urllib.parse import urlsplit

from ._extra import click
from .needs import needs
from .options import drain_timeout
from .serve import STORE_VARIABLE, Mistake, listen, log_at, near_url, say, url_of

__all__ = ["chat", "folder", "load"]

_KEY: Final = "OPENAI_API_KEY"


@click.command(short_help="Serve a chat: to try it, and to copy it.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; with 0.0.0.0 phones can reach it.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option(
    "--store",
    metavar="LOG",
    envvar=STORE_VARIABLE,
    show_envvar=True,
    default="sqlite:///chat.db",
    show_default=True,
    help="Where conversations are kept: sqlite:///chat.db, memory:, redis://host:6379/0, …",
)
@click.option("--upstream", metavar="URL", help="Base URL of an OpenAI-compatible API: http://127.0.0.1:11434/v1")
@click.option("--model", metavar="NAME", help="Its model; without --upstream, one of OpenAI's.")
@drain_timeout("answers")
def chat(host: str, port: int, store: str, upstream: str | None, model: str | None, timeout: float) -> None:
    """
    Serve a chat that continues where it was: reload it, open it twice, move to your phone, restart the server.

    Without --model, all answers are the same text. With it, they come from the model, and the key from the environment variable
    OPENAI_API_KEY; a server of your own may need none.

    It needs: pip install 'resumable-stream-sdk[chat]'. The app is examples/fastapi_chat in the sources, ready to be copied.

    Exit codes: 0 drained, 1 it could not start, 2 the command is wrong, 130 and 143 stopped at once.
    """
    _check(upstream, model)
    log = log_at(store)
    with needs("chat", "chat", "fastapi", "openai", "segno", "starlette", "uvicorn", "pydantic"):
        app = load()
        from .serving import HubServer, serve, set_up_logging

        answer = app.words if model is None else app.model(model, upstream)
    from ..server import Hub

    hub = Hub(log, presence=True)
    sock = listen(host, port)
    url = url_of(host, sock.getsockname()[1])

    def announce() -> None:
        say(_announcement(url, store, model, upstream, timeout))

    server = HubServer(hub, app.chat_app(hub, answer), timeout=timeout, spread=2.0, announce=announce, access_log=False)
    set_up_logging(several=False, access_log=False)
    sys.exit(serve(server, sock))


def _check(upstream: str | None, model: str | None) -> None:
    if upstream is not None:
        place = urlsplit(upstream)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise Mistake("--upstream: expected a URL such as http://127.0.0.1:11434/v1")
        if place.username is not None or place.password is not None or place.query:
            raise Mistake(f"--upstream: everybody on this machine can read a URL with a secret; put the key into {_KEY}")
        if model is None:
            raise Mistake("--upstream needs --model: the name of the model to ask")
    elif model is not None and not os.environ.get(_KEY):
        raise Mistake(f"--model {model} asks OpenAI, which needs a key in the variable {_KEY}; or set --upstream")


def _announcement(url: str, store: str, model: str | None, upstream: str | None, timeout: float) -> list[str]:
    near = near_url(url)
    who = "always the same text; --model asks a model" if model is None else f"{model} at {upstream or 'OpenAI'}"
    where = (
        "in the memory of this process" if store == "memory:" else f"in {store}" if store.startswith("sqlite:") else "in Redis"
    )
    lines = [
        f"serving a chat on {url}",
        f"open {near}; each conversation has its own address, and anyone who knows it can read and write there",
        f"answers: {who}",
        f"kept {where}",
        f"Ctrl-C drains, {timeout:g} s at most; press it again to stop at once",
    ]
    if model is not None and near != url:
        lines.insert(2, "everybody who reaches this address can ask the model, at your cost")
    return lines


def folder() -> Path:
    """Where the app and its page are: next to this module in the wheel, among the examples in the sources."""
    shipped = Path(__file__).with_name("fastapi_chat")
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "examples" / "fastapi_chat"


def load() -> ModuleType:
    """The module `app.py` of the folder, under a unique name."""
    name = "resumable_stream._cli.fastapi_chat_app"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder() / "app.py")
        assert spec is not None and spec.loader is not None
        # Before running it: FastAPI looks up the annotations of its routes there.
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
