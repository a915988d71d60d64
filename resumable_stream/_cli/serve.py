"""`resumable-stream serve module:hub`: the streams of a hub over HTTP, with a shutdown that loses nothing."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterable
from shlex import quote
from typing import IO, TYPE_CHECKING, Any

from ._extra import click
from .needs import needs
from .options import KEEP_ALIVE, drain_timeout, keep_alive_option, spread_option
from .output import visible

if TYPE_CHECKING:
    from ..server import Hub, StreamLog

__all__ = ["STORE_VARIABLE", "Mistake", "listen", "log_at", "near_url", "say", "serve", "url_of"]

STORE_VARIABLE = "RESUMABLE_STREAM_STORE"
"""A store's URL may hold a password, and everybody on the machine can read the arguments of a process."""
_SHOWN = 300
"""Characters of a foreign error to print. 300: a line or two of a terminal, while some messages contain a whole document."""


class Mistake(click.ClickException):
    """A usage error: one line, and exit code 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {visible(self.message)}", file=file, err=file is None)


@click.command(short_help="Serve the streams of a hub over HTTP.")
@click.argument("target", metavar="MODULE:HUB")
@click.option("--app", "app_text", metavar="MODULE:APP", help="Serve this ASGI app instead of the routes of the hub.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 and :: are all of them.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Number of processes.")
@click.option(
    "--store",
    metavar="LOG",
    envvar=STORE_VARIABLE,
    show_envvar=True,
    help="Keep the streams here instead: memory:, sqlite:///streams.db, redis://host:6379/0, …",
)
@drain_timeout("generations")
@spread_option
@keep_alive_option(KEEP_ALIVE)
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="Log a line per request.")
@click.option("--listener", type=int, hidden=True)
@click.option("--control", type=int, hidden=True)
def serve(
    target: str,
    app_text: str | None,
    host: str,
    port: int,
    workers: int,
    store: str | None,
    timeout: float,
    spread: float,
    keep_alive: int,
    access_log: bool,
    listener: int | None,
    control: int | None,
) -> None:
    """
    Serve the streams of a hub, with uvicorn.

    MODULE:HUB names a Hub in a module of yours, such as app:hub in app.py. The working directory is on the path.

    SIGTERM or Ctrl-C drains: nothing new is started, readers are sent away and return to another instance, and generations
    finish. The process then ends, at most a second after --drain-timeout. A second signal stops at once.

    Exit codes: 0 drained, 1 it could not start, 2 the command is wrong, 130 and 143 stopped at once.
    """
    hub = _hub_at(target)
    app = None if app_text is None else _app_at(app_text)
    if store is not None:
        hub.use_log(log_at(store))
    if workers > 1:
        _check_shared(hub, workers)
    with needs("serve", "server", "uvicorn", "starlette"):
        from .serving import HubServer, set_up_logging
        from .serving import serve as run
        from .workers import supervise
    if listener is not None and control is not None:
        # A worker: the supervisor has printed everything.
        server = HubServer(
            hub,
            app,
            timeout=timeout,
            spread=spread,
            announce=lambda: None,
            access_log=access_log,
            keep_alive=keep_alive,
            quiet=True,
        )
        set_up_logging(several=True, access_log=access_log)
        inherited = socket.socket(fileno=listener), socket.socket(fileno=control)
        for each in inherited:
            each.set_inheritable(False)
        sys.exit(run(server, *inherited))
    sock = listen(host, port)

    def announce() -> None:
        _announce(hub, target, app_text, url_of(host, sock.getsockname()[1]), host, workers, timeout)

    if workers > 1:
        arguments = _arguments(target, app_text, timeout, spread, keep_alive, access_log)
        if store is not None:
            os.environ[STORE_VARIABLE] = store
        sys.exit(supervise(arguments, sock, workers, timeout=timeout, announce=announce))
    server = HubServer(hub, app, timeout=timeout, spread=spread, announce=announce, access_log=access_log, keep_alive=keep_alive)
    set_up_logging(several=False, access_log=access_log)
    sys.exit(run(server, sock))


# --- the hub and the app ------------------------------------------------------------------------------------------------


def _hub_at(text: str) -> Hub:
    from ..server import Hub

    found = _named(text, "hub")
    if isinstance(found, Hub):
        return found
    kind = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
    hint = "; pass an app with --app, in addition to its hub: serve app:hub --app app:app" if callable(found) else ""
    raise Mistake(f"{text} is {kind}, but a Hub was expected{hint}")


def _app_at(text: str) -> Any:
    found = _named(text, "app")
    if not callable(found) or isinstance(found, type):
        raise Mistake(f"{text} is not an ASGI app: expected an object such as Starlette() or FastAPI()")
    return found


def _named(text: str, what: str) -> Any:
    module_name, colon, name = text.partition(":")
    if (
        module_name.endswith(".py")
        or not colon
        or not all(part.isidentifier() for part in (*module_name.split("."), *name.split(".")))
    ):
        raise Mistake(f"expected MODULE:{what.upper()}, such as app:{what} for {what} in app.py, got {text!r}")
    if sys.path[0] != (here := os.getcwd()):
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(module_name, error) from error
        raise Mistake(f"there is no module {error.name!r} in {here} or where Python looks for modules") from error
    except (Exception, SystemExit) as error:
        raise _broken(module_name, error) from error
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise Mistake(f"module {module_name!r} has no {name!r}{_others(module)}") from None
    return found


def _broken(module_name: str, error: BaseException) -> Mistake:
    said = " ".join(str(error).split())[:_SHOWN]
    # The innermost frame outside Python's import machinery: usually the line to fix.
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<frozen")]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames[1:] and not isinstance(error, SyntaxError) else ""
    return Mistake(f"module {module_name!r} cannot be imported: {type(error).__name__}: {said}{where}")


def _others(module: Any) -> str:
    from ..server import Hub

    names = [name for name, value in vars(module).items() if isinstance(value, Hub)]
    return f"; it has the hub {', '.join(map(repr, names))}" if names else ""


def log_at(text: str) -> StreamLog:
    from ..server import log_of

    try:
        return log_of(text)
    except (ValueError, ImportError) as error:
        raise Mistake(f"--store: {error}") from None


def _check_shared(hub: Hub, workers: int) -> None:
    from ..server import MemoryLog

    if isinstance(hub.log, MemoryLog):
        raise Mistake(
            f"--workers {workers} needs a log that processes share. The streams of this hub are in a MemoryLog, and each "
            f"process has its own, so {workers - 1} of {workers} requests would not find them; "
            "use --store sqlite:///streams.db or redis://…"
        )
    if os.name != "posix":
        raise Mistake("--workers needs a system on which processes share a socket; run several instances behind a proxy instead")


# --- the socket, and the announcement -----------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # Without the suffix of `create_server()`, which repeats the address.
        reason = os.strerror(error.errno) if error.errno and not isinstance(error, socket.gaierror) else error.strerror
        hint = "; use --port to name another, or 0 for any free port" if error.errno == errno.EADDRINUSE else ""
        click.echo(f"error: cannot listen on {host}, port {port}: {reason}{hint}", err=True)
        sys.exit(1)
    # Connections inherit it. asyncio sets it only if the listener reports TCP as its protocol, but this one reports 0, "any".
    # Without it, the second of two writes waits for the acknowledgement of the first, which a client delays by 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def near_url(url: str) -> str:
    """The URL on this machine, for a server that listens on all addresses."""
    return url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104


def say(lines: Iterable[str]) -> None:
    """Print what a server announces when it is ready; a closed output does not stop it."""
    with contextlib.suppress(OSError):
        for line in lines:
            click.echo(line)


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _arguments(target: str, app_text: str | None, timeout: float, spread: float, keep_alive: int, access_log: bool) -> list[str]:
    found = [target, "--drain-timeout", str(timeout), "--spread", str(spread), "--keep-alive", str(keep_alive)]
    found += [] if app_text is None else ["--app", app_text]
    return found if access_log else [*found, "--no-access-log"]


def _announce(hub: Hub, target: str, app_text: str | None, url: str, host: str, workers: int, timeout: float) -> None:
    """Print the address, and how to try it."""
    from ..server import MemoryLog

    processes = f", {workers} processes" if workers > 1 else ""
    lines = [f"serving {app_text or target} on {url}{processes}", f"log: {type(hub.log).__name__}"]
    if isinstance(hub.log, MemoryLog):
        lines[-1] += ", gone when this process ends; --store sqlite:///streams.db keeps the streams"
    if host not in ("127.0.0.1", "::1", "localhost") and hub.authorize is None:
        lines.append("anyone who reaches this address may start streams, and read those whose id they know: see Hub(authorize=…)")
    lines.append(f"Ctrl-C drains, {timeout:g} s at most; press it again to stop at once")
    near = near_url(url)
    if app_text is not None:
        pass
    elif not hub.kinds:
        lines.append("POST /streams starts nothing yet: register a producer with @hub.kind('chat')")
    else:
        body = quote(json.dumps({"kind": next(iter(hub.kinds)), "input": "Hi"}))
        lines += [
            "start a stream and read it; cut it and read it again, from the start or after an id:",
            f"    curl -N {near}/streams -H 'Idempotency-Key: try-1' -d {body}",
            f"    curl -N {near}/streams/try-1",
            f"    curl -N {near}/streams/try-1 -H 'Last-Event-ID: <id>'",
        ]
    say(lines)
