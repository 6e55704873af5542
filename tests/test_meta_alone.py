"""`dsaml_jax.meta` as a distribution of its own: it holds what it imports, and asks for what it needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import dsaml_jax

ROOT = Path(__file__).parent.parent
HOME = ROOT / "dsaml_jax" / "meta"
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())
SINGLE = {f"{name.replace('.', '/')}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"]}
FILES = SINGLE | {path.relative_to(ROOT).as_posix() for path in HOME.glob("*.py")}
NEEDED = {re.split("[<>=]", line)[0] for line in PROJECT["project"]["dependencies"]}


def modules_imported(tree):
    """Of every import that is carried out; those for type checkers alone are not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from modules_imported(node)


def is_there(module):
    """Whether a module of this package is in the distribution, or is a name within one that is."""
    path, above = module.replace(".", "/"), module.rpartition(".")[0].replace(".", "/")
    if (ROOT / path).exists() or (ROOT / f"{path}.py").exists():
        return bool({f"{path}.py", f"{path}/__init__.py"} & FILES)
    return bool({f"{above}.py", f"{above}/__init__.py"} & FILES)


@pytest.mark.parametrize("file", sorted(FILES))
def test_it_imports_nothing_but_itself_and_what_it_asks_for(file):
    for module in modules_imported(ast.parse((ROOT / file).read_text())):
        top = module.split(".")[0]
        if top == "dsaml_jax":
            assert is_there(module), f"{module} is not in the distribution"
        elif top not in sys.stdlib_module_names:
            assert top in NEEDED, f"{module} is not in its requirements"


def test_it_asks_for_no_more_than_it_imports():
    tops = {
        module.split(".")[0]
        for file in FILES
        for module in modules_imported(ast.parse((ROOT / file).read_text()))
    }
    assert tops >= NEEDED


def test_its_requirements_are_those_of_the_whole_package():
    whole = (ROOT / "setup.cfg").read_text()
    for line in PROJECT["project"]["dependencies"]:
        assert f"\n    {line}\n" in whole


def test_it_has_no_folders_within():
    """They would need a line of their own under `packages`."""
    assert not [path for path in HOME.rglob("*.py") if path.parent != HOME]


WITHOUT_THE_REST = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import dsaml_jax
assert dsaml_jax.UsageError.__module__ == "dsaml_jax.errors"
"""


def test_other_public_names_say_what_to_install():
    """Where the other modules are not there; in a process that has none of them yet."""
    homes = [dsaml_jax._HOMES.get(name, (f"dsaml_jax.{name}",))[0] for name in dsaml_jax.__all__]
    missing = sorted({home for home in homes if not is_there(home)})
    others = [n for n, home in zip(dsaml_jax.__all__, homes, strict=True) if home in missing]
    assert "DSAML" in others and "losses" in others and "meta" not in others
    tries = [
        f"""
try:
    from dsaml_jax import {name}
except ImportError as error:
    print(error)
"""
        for name in others
    ]
    program = WITHOUT_THE_REST.format(names=missing) + "".join(tries)
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.splitlines()
    for name, line in zip(others, said, strict=True):
        assert re.fullmatch(
            rf"dsaml_jax\.{name} needs \S+: pip install dsaml_jax; where dsaml_jax_meta is, uninstall that first",
            line,
        )


@pytest.mark.slow
def test_the_wheel_holds_these_files(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, HOME]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"dsaml_jax_meta-{dsaml_jax.__version__}-")
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        (licence,) = (name for name in names if name.endswith("/LICENSE"))
        assert files.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert {name for name in names if ".dist-info/" not in name} == FILES
