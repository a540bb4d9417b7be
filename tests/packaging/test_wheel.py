"""What the wheel holds: the package, both native modules, hparams/, and nothing else."""

import email
import sysconfig
import zipfile

import pytest

from tests.packaging.archives import ROOT, newest, package_files

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
NATIVE = {f"easyedit_fast/_kernels{SUFFIX}", f"easyedit_fast/_loader{SUFFIX}"}
LARGEST = 16 * 2**20  # bytes


@pytest.fixture(scope="module")
def wheel():
    path = newest("*.whl")
    if path is None:
        pytest.skip("no wheel in target/wheels: 'make test' builds one")
    sources = [ROOT / "pyproject.toml", *(ROOT / "python").rglob("*.py")]
    if max(source.stat().st_mtime for source in sources) > path.stat().st_mtime:
        pytest.skip("the wheel in target/wheels is older than the sources: 'make test' renews it")
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata_folder(wheel):
    return next(name for name in wheel.namelist() if name.endswith("/RECORD")).split("/")[0]


def test_files(wheel):
    folder = metadata_folder(wheel)
    found = {name for name in wheel.namelist() if not name.startswith(f"{folder}/")}
    assert found == package_files() | NATIVE
    assert len(wheel.namelist()) == len(set(wheel.namelist()))


def test_top_level(wheel):
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "easyedit_fast",
        metadata_folder(wheel),
    }


def test_files_are_those_of_the_checkout(wheel):
    for name in package_files():
        folder = "" if name.startswith("easyedit_fast/hparams/") else "python"
        relative = name.removeprefix("easyedit_fast/") if not folder else name
        assert wheel.read(name) == (ROOT / folder / relative).read_bytes(), name


def test_metadata(wheel):
    folder = metadata_folder(wheel)
    headers, _, description = wheel.read(f"{folder}/METADATA").decode().partition("\n\n")
    metadata = email.message_from_string(headers)
    assert metadata["Name"] == "easyedit-fast"
    assert f'version = "{metadata["Version"]}"' in (ROOT / "Cargo.toml").read_text()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert description.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_command_and_types(wheel):
    folder = metadata_folder(wheel)
    assert b"easyedit-fast=easyedit_fast.cli:main" in wheel.read(f"{folder}/entry_points.txt")
    assert "easyedit_fast/py.typed" in wheel.namelist()


def test_tag_is_of_one_python(wheel):
    # A pybind11 module is bound to one Python version, so the wheel must not be tagged abi3.
    tag = SUFFIX.split(".")[1].split("-")[1]
    assert f"Tag: cp{tag}-cp{tag}-" in wheel.read(f"{metadata_folder(wheel)}/WHEEL").decode()


def test_native_modules_do_not_name_the_checkout(wheel):
    for name in NATIVE:
        assert str(ROOT).encode() not in wheel.read(name), name


def test_size(wheel):
    assert sum(entry.compress_size for entry in wheel.infolist()) < LARGEST
