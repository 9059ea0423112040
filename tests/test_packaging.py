"""What an installed distribution holds."""

import tomllib
from pathlib import Path

import metarl
import metarl_envs

ROOT = Path(__file__).parents[1]


def test_every_package_and_file_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = set()
    for package in (metarl, metarl_envs):
        folder = Path(package.__file__).parent
        paths = [init.parent.relative_to(folder).parts for init in folder.rglob("__init__.py")]
        packages |= {".".join((package.__name__, *parts)) for parts in paths}
        patterns = settings["package-data"].get(package.__name__, ())
        data = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        assert data == {path for pattern in patterns for path in folder.glob(pattern)}
    assert packages == {*settings["packages"]}
