import json
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.resources import files
from itertools import chain
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest

import dnigraph

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project():
    if not (ROOT / "passes").is_dir():
        pytest.skip("not in a checkout")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_below(folder, name):
    inside = (file.parent.relative_to(folder).parts for file in folder.rglob("*.py"))
    return {".".join((name, *parts)) for parts in inside}


def test_every_folder_with_code_is_shipped(project):
    own = {name for name in packages_below(ROOT / "dnigraph", "dnigraph") if not name.startswith("dnigraph.passes")}
    passes = packages_below(ROOT / "passes", "dnigraph.passes")

    listed = project["tool"]["setuptools"]["packages"]

    assert sorted(listed) == sorted(own | passes), "bring the list of packages in pyproject.toml up to date"


def test_the_passes_ship_under_the_name_of_the_library_alone():
    from dnigraph.passes.errors import DniGraphError

    assert DniGraphError.__module__ == "dnigraph.passes.errors"


def test_type_checkers_find_the_marker_that_the_library_is_typed():
    assert files(dnigraph).joinpath("py.typed").is_file()


def test_the_installed_version_is_the_one_in_the_project_file(project):
    try:
        installed = version("dnigraph")
    except PackageNotFoundError:
        pytest.skip("not installed, only found in the working directory")

    assert installed == project["project"]["version"]


def test_an_editable_install_is_a_path_that_editors_and_type_checkers_follow(project):
    # A build leaves metadata in the checkout, too: what was installed says where from.
    origins = {d: json.loads(d.read_text("direct_url.json") or "{}") for d in distributions(name="dnigraph")}
    installed = next((d for d, origin in origins.items() if origin.get("dir_info", {}).get("editable")), None)
    if installed is None:
        pytest.skip("not an editable install")
    checkout = Path(url2pathname(urlparse(origins[installed]["url"]).path))

    lines = [line for file in installed.files if file.suffix == ".pth" for line in file.read_text().splitlines()]

    assert lines == [str(checkout)]
    assert (checkout / "dnigraph" / "passes" / "errors.py").is_file()


def test_every_requirement_is_pinned(project):
    extras = project["project"]["optional-dependencies"].values()
    asked = {entry.split(">")[0] for entry in chain(project["project"]["dependencies"], *extras)}

    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}

    assert asked <= pinned
