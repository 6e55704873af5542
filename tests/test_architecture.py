"""The house: folders stand one above the other, and each has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dsaml_jax"

FLOORS = (
    ("errors", "metrics", "pretrained", "progress"),
    ("base", "meta"),
    ("config", "convert", "devices", "losses", "models"),
    ("adaptation", "corpus"),
    ("runs",),
    ("listener",),
    ("evaluation",),
    ("reporting",),
    ("training",),
    ("experiment",),
    ("studio",),
    ("cli",),
)
"""From the ground up. What stands on a floor imports from the floors below it; the README of the package draws this."""

FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder or file on the top floor of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """`(module below the package, name)` of everything a file imports from the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dsaml_jax":
            for alias in node.names:
                yield str(node.module).removeprefix("dsaml_jax").lstrip("."), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("dsaml_jax."):
                    yield alias.name.removeprefix("dsaml_jax."), ""


def test_every_room_is_on_a_floor():
    assert {room_of(path) for path in FILES} == {*FLOOR_OF, "__init__", "__main__"}


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_nothing_is_imported_from_above(room):
    for path in FILES:
        if room_of(path) == room:
            below = {(module or name).split(".")[0] for module, name in imports_of(path)} - {room}
            below &= FLOOR_OF.keys()
            wrong = [other for other in below if FLOOR_OF[other] >= FLOOR_OF[room]]
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("part", ["dsaml_jax", "experiments"])
def test_folders_are_entered_by_their_door(part):
    """From outside nothing is imported but what a folder's `__init__` offers, or a module of it as a whole."""
    for path in sorted((ROOT / part).rglob("*.py")):
        mine = room_of(path) if part == "dsaml_jax" else ""
        inside = [
            f"{module}.{name}"
            for module, name in imports_of(path)
            if "." in module and module.split(".")[0] != mine
        ]
        assert not inside, f"{path.relative_to(ROOT)} imports {inside}"
