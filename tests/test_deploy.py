"""The files in deploy/ fit the relay that they run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from resumable_stream.server import MemoryLog, Relay

pytest.importorskip("click")

from resumable_stream._cli.relay import relay as command

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
UNIT = (DEPLOY / "resumable-stream-relay.service").read_text()
OBJECTS = {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "relay.kubernetes.yaml").read_text())}
POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def of_image(instruction: str) -> list[str]:
    """The list of an instruction of the Containerfile."""
    (found,) = re.findall(rf"^{instruction} .*?(\[.*\])$", CONTAINERFILE, re.MULTILINE)
    return list(json.loads(found))


def of_unit(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


COMMANDS = {
    "Containerfile": of_image("CMD"),
    "systemd": shlex.split(of_unit("ExecStart")[0]),
    "Kubernetes": CONTAINER["args"],
}


def settings(words: list[str]) -> dict[str, Any]:
    """What the command line makes of the arguments: one that it does not know is an error."""
    assert Path(words[0]).name == "resumable-stream"
    assert words[1] == "relay"
    return command.make_context("relay", words[2:]).params


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_option_is_one_of_the_relay(words: list[str]) -> None:
    shown = command.get_help(command.make_context("relay", []))
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert options
    assert [option for option in options if not re.search(rf"^ *{option}\b", shown, re.MULTILINE)] == []
    assert settings(words)["config_path"] == Path("/etc/resumable-stream/relay.toml")


def test_what_waits_for_the_relay_waits_for_its_drain() -> None:
    unit = settings(COMMANDS["systemd"])
    assert float(of_unit("TimeoutStopSec")[0]) > unit["timeout"] + unit["spread"]

    pod = settings(COMMANDS["Kubernetes"])
    word, before = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"
    assert POD["terminationGracePeriodSeconds"] > float(before) + pod["timeout"] + pod["spread"]


def test_a_balancer_is_the_first_to_close_a_connection_without_a_request() -> None:
    assert tomllib.loads((DEPLOY / "relay.toml").read_text())["keep_alive"] > 60


def test_the_path_that_is_probed_is_one_of_the_relay() -> None:
    path = CONTAINER["readinessProbe"]["httpGet"]["path"]
    assert f"http://127.0.0.1:8787{path}'" in of_image("HEALTHCHECK")[-1]

    async def ask() -> list[int]:
        async with Relay("https://llm.example.com", MemoryLog()) as relay:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(relay), base_url="http://relay") as client:
                before = await client.get(path)
                await relay.hub.drain(0, 0)
                return [before.status_code, (await client.get(path)).status_code]

    assert asyncio.run(ask()) == [200, 503]


def test_what_is_installed_is_there_to_install() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    (name, extras), *more = re.findall(r'pip install [^"]*"([\w-]+)\[([\w,]+)\]"', CONTAINERFILE)
    assert not more
    assert name == project["name"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_ports_are_one() -> None:
    ports = {settings(COMMANDS[name])["port"] for name in ("Containerfile", "Kubernetes")}
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", CONTAINERFILE, re.MULTILINE)
    (inside,) = CONTAINER["ports"]
    (outside,) = OBJECTS["Service"]["spec"]["ports"]
    assert ports == {int(exposed)} == {inside["containerPort"]}
    assert inside["name"] == outside["targetPort"] == CONTAINER["readinessProbe"]["httpGet"]["port"]


def test_the_objects_find_each_other() -> None:
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert [each["name"] for each in CONTAINER["volumeMounts"]] == [each["name"] for each in POD["volumes"]]


def test_no_secret_is_in_the_files() -> None:
    assert {each["name"] for each in CONTAINER["env"] if "secretKeyRef" in each["valueFrom"]} == {
        "RESUMABLE_STREAM_STORE",
        "RESUMABLE_STREAM_SECRET",
    }
    assert [line for line in UNIT.splitlines() if line.startswith("Environment=RESUMABLE_STREAM_SECRET")] == []
    assert not re.search(r"^(ENV|ARG) .*SECRET", CONTAINERFILE, re.MULTILINE)


def test_nobody_is_root() -> None:
    (user,) = re.findall(r"^USER (\d+)$", CONTAINERFILE, re.MULTILINE)
    assert int(user) > 0
    assert f"--uid {user} " in CONTAINERFILE
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert of_unit("DynamicUser") == ["yes"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_command_of_the_image_runs_and_its_probe_passes() -> None:
    """With the two things that differ here: the file's place, and a port that is free."""
    words = [word.replace("/etc/resumable-stream", str(DEPLOY)) for word in of_image("CMD")]
    words[words.index("--port") + 1] = "0"
    words[words.index("--host") + 1] = "127.0.0.1"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "RESUMABLE_STREAM_SECRET": "x" * 32}
    # A proxy that is not there: the probe must not ask it.
    probing = {**environment, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "resumable_stream", *words[1:]], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" on http://127\.0\.0\.1:(\d+)$", process.stdout.readline().strip())
            assert found is not None
            probe = of_image("HEALTHCHECK")[-1].replace(":8787/", f":{found[1]}/")
            subprocess.run([sys.executable, "-c", probe], check=True, timeout=200, env=probing)
            elsewhere = probe.replace("/.health", "/.streams/none")
            assert subprocess.run([sys.executable, "-c", elsewhere], timeout=200, env=probing, capture_output=True).returncode
            process.send_signal(signal.SIGTERM)
            assert process.wait(200) == 0
        finally:
            process.kill()
