"""What pyproject.toml promises to installers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_dev_extra_and_the_dev_group_name_the_same_tools() -> None:
    extra = [
        item for item in PROJECT["project"]["optional-dependencies"]["dev"] if not item.startswith(PROJECT["project"]["name"])
    ]
    assert extra == PROJECT["dependency-groups"]["dev"]


def test_no_dependency_has_an_upper_bound() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(item for extra in extras for item in extra)]
    # What stands behind a semicolon says where it is wanted.
    assert [item for item in wanted if re.search(r"<|==|~=", item.partition(";")[0])] == []


def test_types_ship() -> None:
    assert (ROOT / "resumable_stream" / "py.typed").is_file()
