"""`resumable-stream relay --upstream URL`: makes any streaming API resumable by changing the base URL."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from ._extra import click
from .needs import needs
from .options import KEEP_ALIVE, drain_timeout, keep_alive_option, spread_option
from .serve import STORE_VARIABLE, Mistake, listen, log_at, near_url, say, url_of

if TYPE_CHECKING:
    from ..server import Relay, StreamLog

__all__ = ["relay"]

SECRET_VARIABLE = "RESUMABLE_STREAM_SECRET"  # noqa: S105
_NUMBERS = ("retention", "abandon_after", "takeover_wait", "idle", "connect", "lease")
_SWITCHES = ("metrics", "capability_urls", "keep_answers", "join_retries")
_KEYS = ("store", "host", "port", "keep_alive", "upstreams", "allow", "cors", "body_bytes", "answer_bytes", *_SWITCHES, *_NUMBERS)
_HOST, _PORT, _STORE = "127.0.0.1", 8787, "memory:"


@click.command(short_help="Make the streams of any API resumable.")
@click.option(
    "--upstream",
    "upstreams",
    metavar="[MOUNT=]URL",
    multiple=True,
    help="The API, such as https://api.openai.com; for several, each with its path: /openai=https://api.openai.com.",
)
@click.option(
    "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Settings, a TOML file."
)
@click.option(
    "--store",
    metavar="LOG",
    envvar=STORE_VARIABLE,
    show_envvar=True,
    help=f"Where streams are kept: {_STORE} (the default), sqlite:///streams.db, redis://host:6379/0, …",
)
@click.option("--host", help=f"Address to listen on; 0.0.0.0 and :: are all of them.  [default: {_HOST}]")
@click.option("--port", type=click.IntRange(0, 65535), help=f"0: any free port.  [default: {_PORT}]")
@drain_timeout("streams")
@spread_option
@keep_alive_option(None)
@click.option(
    "--capability-urls/--no-capability-urls",
    default=None,
    help="Content-Location lets a browser without a key read its stream.  [default: no]",
)
@click.option(
    "--keep-answers/--no-keep-answers",
    default=None,
    help="Also keep answers that are not streams, for requests with an Idempotency-Key.  [default: no]",
)
@click.option(
    "--join-retries/--no-join-retries",
    default=None,
    help="An SDK's retry gets the answer to its first attempt, without an Idempotency-Key.  [default: no]",
)
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="Log a line per request, without its query.")
def relay(
    upstreams: tuple[str, ...],
    config_path: Path | None,
    store: str | None,
    host: str | None,
    port: int | None,
    timeout: float,
    spread: float,
    keep_alive: int | None,
    access_log: bool,
    **switches: bool | None,
) -> None:
    """
    Keep the streams of an API, between it and its clients.

    Clients change only their base URL to that of the relay. A stream that was cut can be read on at the URL in its
    Content-Location, by any client with the same API key. The key is passed on but never stored.

    A configuration file uses the same names, and those of Relay:

    \b
        store = "redis://localhost:6379/0"
        port = 8787
        [upstreams]
        "/openai" = "https://api.openai.com"
        "/anthropic" = "https://api.anthropic.com"

    RESUMABLE_STREAM_SECRET, of at least 16 characters, is the secret for hashing keys; without it the store keeps one.

    SIGTERM or Ctrl-C drains: clients are sent away, and answers finish in the store. A second signal stops at once.

    Exit codes: 0 drained, 1 it could not start, 2 the command is wrong, 130 and 143 stopped at once.
    """
    settings = {} if config_path is None else _read(config_path)
    named = _upstreams(upstreams) if upstreams else settings.pop("upstreams", None)
    settings.pop("upstreams", None)
    if not named:
        raise Mistake("name the API with --upstream, such as --upstream https://api.openai.com, or in a file with --config")
    store = store or settings.pop("store", _STORE)
    host = host or settings.pop("host", _HOST)
    port = settings.pop("port", _PORT) if port is None else port
    settings.update({name: value for name, value in switches.items() if value is not None})
    keep_alive = settings.pop("keep_alive", KEEP_ALIVE) if keep_alive is None else keep_alive
    for name in ("store", "host", "port", "keep_alive"):
        settings.pop(name, None)
    with needs("relay", "cli,relay", "uvicorn", "starlette", "aiohttp", "yarl"):
        from ..server import Relay
        from .serving import HubServer, set_up_logging
        from .serving import serve as run
    log = log_at(store)
    secret = os.environ.get(SECRET_VARIABLE)
    try:
        made = Relay(named, log, secret=None if secret is None else secret.encode(), **settings)
    except (ValueError, TypeError) as error:
        raise Mistake(str(error)) from None
    sock = listen(host, port)
    announce = _announcing(made, log, named, url_of(host, sock.getsockname()[1]), timeout)
    server = HubServer(
        made.hub, made, timeout=timeout, spread=spread, announce=announce, access_log=access_log, keep_alive=keep_alive
    )
    set_up_logging(several=False, access_log=access_log)
    sys.exit(run(server, sock))


def _upstreams(texts: tuple[str, ...]) -> str | dict[str, str]:
    if len(texts) == 1 and not texts[0].startswith("/"):
        return texts[0]
    found = {}
    for text in texts:
        mount, equals, url = text.partition("=")
        if not equals or not mount.startswith("/"):
            raise Mistake(f"several upstreams need a path each: --upstream /openai=https://api.openai.com, got {text[:80]!r}")
        if mount in found:
            raise Mistake(f"two upstreams are mounted at {mount!r}")
        found[mount] = url
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            settings = tomllib.load(file)
    except OSError as error:
        raise Mistake(f"--config: {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Mistake(f"--config: {path} is not TOML: {error}") from None
    for name, value in settings.items():
        if name not in _KEYS:
            raise Mistake(f"--config: {path} has {name!r}, which is not a setting; the settings are {', '.join(_KEYS)}")
        if not _fits(name, value):
            # The value is left out: a store may hold a password.
            raise Mistake(f"--config: {path} has {name!r} with a value of the wrong type ({type(value).__name__})")
    return settings


def _fits(name: str, value: Any) -> bool:
    if name in ("store", "host"):
        return isinstance(value, str) and value != ""
    if name == "upstreams":
        return isinstance(value, dict) and all(isinstance(url, str) for url in value.values())
    if name in ("allow", "cors"):
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if name in _SWITCHES:
        return isinstance(value, bool)
    if name == "port":
        return type(value) is int and 0 <= value <= 65535
    if name == "keep_alive":
        return type(value) is int and 1 <= value <= 3600
    return type(value) is int or (name in _NUMBERS and type(value) is float)


def _announcing(made: Relay, log: StreamLog, named: str | Mapping[str, str], url: str, timeout: float) -> Callable[[], None]:
    """Print the address, and how to try it."""
    from ..server import MemoryLog

    def announce() -> None:
        near = near_url(url)
        mounts = {"": named} if isinstance(named, str) else named
        lines = [f"relaying {', '.join(mounts.values())} on {url}", f"log: {type(log).__name__}"]
        if isinstance(log, MemoryLog):
            lines[-1] += ", gone when this process ends; --store sqlite:///streams.db keeps the streams"
        lines.append(f"Ctrl-C drains, {timeout:g} s at most; press it again to stop at once")
        lines += [f"base URL: {near}{mount} in place of {upstream}" for mount, upstream in mounts.items()]
        lines += [
            "Content-Location says where a stream can be read again, with the same key:",
            f'    curl -N {quote(f"{near}/.streams/<id>?view=verbatim")} -H "Authorization: Bearer $KEY"',
        ]
        say(lines)

    return announce
