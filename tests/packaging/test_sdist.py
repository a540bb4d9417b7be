"""What the sdist holds: all that a build reads, and nothing that git does not know."""

import tarfile
from pathlib import PurePosixPath

import pytest

from tests.packaging.archives import ROOT, SUFFIXES_OF_DATA, files_of_checkout, newest

# Written by the tool, or rewritten for the smaller workspace.
GENERATED = {"PKG-INFO", "Cargo.lock", "Cargo.toml", "pyproject.toml"}


@pytest.fixture(scope="module")
def sdist():
    path = newest("*.tar.gz")
    if path is None:
        pytest.skip("no sdist in target/wheels: 'make test' builds one")
    if (ROOT / "pyproject.toml").stat().st_mtime > path.stat().st_mtime:
        pytest.skip("the sdist in target/wheels is older than the sources: 'make test' renews it")
    with tarfile.open(path) as archive:
        # Paths without the leading easyedit_fast-VERSION/.
        yield {member.name.split("/", 1)[1] for member in archive if member.isfile()}


def test_holds_what_a_build_reads(sdist):
    read = files_of_checkout("csrc", "hparams", "python", "rust/core/src", "rust/python/src")
    read |= {"LICENSE", "README.md", "CHANGELOG.md", "rust/python/build.rs"}
    assert read - sdist == set()
    assert sdist >= GENERATED


def test_holds_only_files_of_the_checkout(sdist):
    assert sdist - files_of_checkout() - GENERATED == set()


def test_holds_no_data_and_nothing_compiled(sdist):
    data = {name for name in sdist if PurePosixPath(name).suffix in SUFFIXES_OF_DATA}
    folders = tuple(f"python/easyedit_fast/{method}/editors/" for method in ("mend", "serac"))
    assert data == {name for name in data if name.startswith(folders)}
