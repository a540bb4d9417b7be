"""The wheel and the sdist that `make test` builds, and the files of the checkout."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "target" / "wheels"
SUFFIXES_OF_DATA = {
    ".bin", ".gguf", ".gz", ".json", ".jsonl", ".npz", ".parquet", ".pt", ".safetensors", ".so",
}  # fmt: skip


def newest(pattern):
    """The newest built file of that pattern, or None."""
    return max(BUILT.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


def files_of_checkout(*folders):
    """Paths, relative to the root, of all files that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


def package_files():
    """Paths in the wheel of all that is not compiled: the package and the hyperparameters."""
    package = {name.removeprefix("python/") for name in files_of_checkout("python")}
    return package | {f"easyedit_fast/{name}" for name in files_of_checkout("hparams")}
