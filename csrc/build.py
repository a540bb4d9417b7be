"""Builds ``easyedit_fast._kernels``: names the sources and flags, writes build.ninja, runs ninja.

Cargo runs it through ``rust/python/build.rs`` when a wheel is built. By itself::

    python csrc/build.py --out DIR [--dev]

leaves ``_kernels*.so`` and a copy of ``hparams/`` in DIR. It needs a C++17 compiler and the
packages ``ninja`` and ``pybind11``; for the CUDA part also the compiler packages that
``--requirements`` lists. No CUDA installation, no driver and no GPU are needed.

Environment:
    CXX: The host compiler (default ``g++``, then ``c++``).
    EASYEDIT_FAST_CUDA: ``0`` leaves the CUDA part out, ``1`` insists on it; unset, it is built
        where the platform has a compiler package.
    EASYEDIT_FAST_DEV: ``1`` is the same as ``--dev``: every warning is an error.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

CSRC = Path(__file__).resolve().parent
ROOT = CSRC.parent

# All five are pinned: the compiler's own requirements are not, and PTX of a newer compiler needs
# a newer driver than 13.0's.
CUDA_RELEASE = "13.0.*"
CUDA_PACKAGES = (
    "nvidia-cuda-nvcc",
    "nvidia-cuda-crt",
    "nvidia-cuda-runtime",
    "nvidia-cuda-cccl",
    "nvidia-nvvm",
)


class BuildError(Exception):
    """A build that cannot start; the message is one line with the remedy."""


# Paths below csrc/.
HOST_SOURCES = (
    "bindings.cpp",
    "common/cpu.cpp",
    "common/tile_kernel.cpp",
    "rank_update/rank_update.cpp",
    "rank_update/rank_update_cpu.cpp",
    "rank_update/thin_rows.cpp",
    "second_moment/panels.cpp",
    "second_moment/second_moment.cpp",
    "second_moment/second_moment_cpu.cpp",
)
CUDA_SOURCES = (
    "common/cuda_info.cu",
    "rank_update/rank_update_cuda.cu",
    "second_moment/second_moment_cuda.cu",
)

HOST_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp")
HOST_DEV_FLAGS = ("-Wall", "-Wextra", "-Werror")
LINK_FLAGS = ("-shared", "-fopenmp", "-s", "-Wl,--as-needed")

# Machine code for A100, H100 and B200, and PTX for what comes after them.
CUDA_TARGETS = (
    "arch=compute_80,code=sm_80",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_100,code=[sm_100,compute_100]",
)
CUDA_FLAGS = (
    "-std=c++17",
    "-O3",
    "-Xfatbin=-compress-all",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    *(f"-gencode={target}" for target in CUDA_TARGETS),
)
CUDA_DEV_FLAGS = (
    "-Werror=all-warnings",
    "-Xptxas=-Werror,-warn-spills,-warn-lmem-usage",
    "-Xcompiler=-Wall,-Wextra,-Werror",
)
CUDA_LINK_FLAGS = ("-lcudart_static", "-ldl", "-lrt", "-lpthread")

# Lines of a ninja rule: the compiler itself says which headers a source has read.
DEPENDENCIES = ("  depfile = $out.d", "  deps = gcc")


def cuda_supported() -> bool:
    """Whether the compiler packages exist for this platform: glibc Linux, x86-64 or AArch64."""
    return (
        sys.platform == "linux"
        and platform.machine() in ("x86_64", "aarch64")
        and platform.libc_ver()[0] == "glibc"
    )


def cuda_wanted() -> bool:
    """Whether the CUDA part is to be built.

    Raises:
        BuildError: EASYEDIT_FAST_CUDA has an unknown value, or asks for what cannot be built.
    """
    choice = os.environ.get("EASYEDIT_FAST_CUDA", "")
    if choice not in ("", "0", "1"):
        raise BuildError(f"EASYEDIT_FAST_CUDA is {choice!r}; set it to 0 or 1, or unset it")
    if choice == "1" and not cuda_supported():
        raise BuildError(
            f"EASYEDIT_FAST_CUDA=1, but there is no CUDA compiler package for {sys.platform} on "
            f"{platform.machine()}; unset it, or set it to 0"
        )
    return choice != "0" and cuda_supported()


def cuda_requirements() -> list[str]:
    """The packages that hold the CUDA compiler, pinned; empty where CUDA is not built."""
    return [f"{name}=={CUDA_RELEASE}" for name in CUDA_PACKAGES] if cuda_wanted() else []


def toml_value(path: Path, table: str, key: str) -> object:
    """Reads one string or list of strings from a TOML file.

    Python 3.10 has no TOML reader, and this runs before any package is there.
    """
    text = path.read_text(encoding="utf-8")
    section = re.search(
        rf"^\[{re.escape(table)}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL
    )
    value = section and re.search(
        rf"^{re.escape(key)}\s*=\s*(\[.*?\]|\".*?\")", section.group(1), re.MULTILINE | re.DOTALL
    )
    if not value:
        raise BuildError(f"{path.name} has no {key!r} in [{table}]; restore it")
    return ast.literal_eval(value.group(1))


def package_version() -> str:
    """The version of the package, from where the wheel has it too."""
    return str(toml_value(ROOT / "Cargo.toml", "workspace.package", "version"))


def build_requirements() -> list[str]:
    """All that a build installs: the requirements in pyproject.toml and the CUDA compiler."""
    requires = toml_value(ROOT / "pyproject.toml", "build-system", "requires")
    if not isinstance(requires, list):
        raise BuildError("[build-system] requires in pyproject.toml is no list; restore it")
    return [*requires, *cuda_requirements()]


def find_host_compiler() -> str:
    """The C++ compiler."""
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["g++", "c++"]:
        if path := shutil.which(name):
            return path
    what = f"CXX is {chosen!r}, which is not found" if chosen else "no C++ compiler found"
    raise BuildError(f"{what}; install g++ (Debian: apt install g++) or set CXX to a compiler")


def find_python_headers() -> Path:
    """The folder of Python.h."""
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise BuildError(
            f"{headers}/Python.h not found; install the Python headers (Debian: apt install "
            "python3-dev)"
        )
    return headers


def find_nvcc() -> Path:
    """The CUDA compiler that the package index delivered."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvcc") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvcc":
            return Path(str(file.locate())).resolve()
    raise BuildError(
        "the package nvidia-cuda-nvcc is not installed; run pip install with build isolation, "
        "install what 'python csrc/build.py --requirements' lists, or set EASYEDIT_FAST_CUDA=0"
    )


def find_cuda_library_folder(nvcc: Path) -> Path:
    """The folder of libcudart_static.a."""
    folder = nvcc.parent.parent / "lib"
    if not (folder / "libcudart_static.a").is_file():
        raise BuildError(
            f"{folder}/libcudart_static.a not found; install nvidia-cuda-runtime=={CUDA_RELEASE} "
            "or set EASYEDIT_FAST_CUDA=0"
        )
    return folder


def find_ninja() -> str:
    """The program of the package ``ninja``, or one on the search path."""
    folders = [os.environ.get("PATH", "")]
    if importlib.util.find_spec("ninja"):
        folders.insert(0, importlib.import_module("ninja").BIN_DIR)
    if path := shutil.which("ninja", path=os.pathsep.join(folders)):
        return path
    raise BuildError("ninja not found; run: pip install ninja")


def find_pybind11_headers() -> Path:
    """The folder of the headers in the package ``pybind11``."""
    if not importlib.util.find_spec("pybind11"):
        raise BuildError("the package pybind11 is not installed; run: pip install 'pybind11>=3'")
    return Path(importlib.import_module("pybind11").get_include())


def shell_words(*words: object) -> str:
    """Joins words into a ninja value that the shell splits again as they were."""
    return " ".join(shlex.quote(str(word)) for word in words).replace("$", "$$")


def ninja_path(path: object) -> str:
    """Escapes a path where ninja itself reads it."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def shared_flags(*, cuda: bool) -> list[str]:
    """Include folders and definitions that host and CUDA sources have in common."""
    version = f'-DEASYEDIT_FAST_VERSION="{package_version()}"'
    return [version, f"-DEASYEDIT_FAST_CUDA={cuda:d}", "-DNDEBUG", f"-I{CSRC}"]


def host_rule(*, cuda: bool, dev: bool) -> list[str]:
    """The ninja rule of C++ sources."""
    system = [find_pybind11_headers(), find_python_headers()]
    flags = [*HOST_FLAGS, *(HOST_DEV_FLAGS if dev else ()), *shared_flags(cuda=cuda)]
    # No path of the machine that builds a wheel belongs in it.
    flags += [f"-ffile-prefix-map={folder}=." for folder in (CSRC, *system)]
    flags += [word for folder in system for word in ("-isystem", folder)]
    command = f"{shell_words(find_host_compiler(), *flags)} -MMD -MF $out.d -c $in -o $out"
    return ["rule host", f"  command = {command}", *DEPENDENCIES, "  description = C++ $in"]


def cuda_rule(*, dev: bool) -> list[str]:
    """The ninja rule of CUDA sources."""
    words = [find_nvcc(), "-ccbin", find_host_compiler(), *CUDA_FLAGS]
    words += [*(CUDA_DEV_FLAGS if dev else ()), *shared_flags(cuda=True)]
    words += [f"-Xcompiler=-ffile-prefix-map={CSRC}=."]
    command = f"{shell_words(*words)} -MMD -MF $out.d -c $in -o $out"
    return ["rule cuda", f"  command = {command}", *DEPENDENCIES, "  description = CUDA $in"]


def link_rule(*, cuda: bool) -> list[str]:
    """The ninja rule that makes the module."""
    words = list(LINK_FLAGS)
    if cuda:
        words += [f"-L{find_cuda_library_folder(find_nvcc())}", *CUDA_LINK_FLAGS]
    command = f"{shell_words(find_host_compiler())} -o $out $in {shell_words(*words)}"
    return ["rule link", f"  command = {command}", "  description = link $out"]


def write_ninja(work: Path, module: Path, *, cuda: bool, dev: bool) -> None:
    """Writes build.ninja.

    Args:
        work: Folder of the ninja file and the objects.
        module: The extension module to build.
        cuda: Whether the CUDA sources take part.
        dev: Whether warnings are errors.
    """
    lines = [*host_rule(cuda=cuda, dev=dev), *link_rule(cuda=cuda)]
    if cuda:
        lines += cuda_rule(dev=dev)
    objects = []
    for source in (*HOST_SOURCES, *(CUDA_SOURCES if cuda else ())):
        rule = "cuda" if source.endswith(".cu") else "host"
        objects.append(ninja_path(source.replace("/", "-") + ".o"))
        lines += [f"build {objects[-1]}: {rule} {ninja_path(CSRC / source)}"]
    lines += [f"build {ninja_path(module)}: link {' '.join(objects)}"]
    (work / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_ninja(work: Path) -> None:
    """Runs ninja, which passes on what the compilers say."""
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command = [find_ninja(), "-C", str(work), "-j", str(jobs or 1)]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise BuildError("the kernels did not compile; the compiler's messages are above")


def copy_hparams(out: Path) -> None:
    """Copies hparams/ whole, so that a file that is gone at the source is gone there too."""
    target = out / "hparams"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "hparams", target)


def build(out: Path, work: Path, *, dev: bool) -> Path:
    """Builds the module and copies the hyperparameter files.

    Args:
        out: Folder that receives ``_kernels*.so`` and ``hparams/``.
        work: Folder for objects, kept between builds.
        dev: Whether warnings are errors.

    Returns:
        The path of the module.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    module = out / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    # The folder outlives a change of interpreter, and every _kernels* in it goes into the wheel.
    for stale in out.glob("_kernels*"):
        if stale != module and stale.is_file():
            stale.unlink()
    write_ninja(work, module, cuda=cuda_wanted(), dev=dev)
    run_ninja(work)
    copy_hparams(out)
    return module


def main() -> int:
    """Runs the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Builds easyedit_fast._kernels.")
    parser.add_argument("--out", type=Path, help="folder for the module and hparams/")
    parser.add_argument("--work", type=Path, help="folder for objects (default: OUT/build)")
    parser.add_argument("--dev", action="store_true", help="make every warning an error")
    parser.add_argument("--requirements", action="store_true", help="list build requirements")
    options = parser.parse_args()
    if not options.requirements and options.out is None:
        parser.error("name the output folder with --out DIR")
    try:
        if options.requirements:
            print("\n".join(build_requirements()))
            return 0
        out = options.out.resolve()
        work = options.work.resolve() if options.work else out / "build"
        build(out, work, dev=options.dev or os.environ.get("EASYEDIT_FAST_DEV") == "1")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
