"""Compiles the CUDA sources against csrc/emulator and calls them on CPU tensors."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
KERNELS = ("second_moment/second_moment_cuda.cu", "rank_update/rank_update_cuda.cu")
SUPPORT = (
    "emulator/cuda_emulator.cpp",
    "emulator/memory.cpp",
    "emulator/entry.cpp",
    "second_moment/second_moment.cpp",
    "rank_update/rank_update.cpp",
)
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class EmulatorError(Exception):
    """A kernel broke a rule of the execution model, or touched memory that is not its own."""


class RefusedError(Exception):
    """rank_update_ found a result that is not finite."""


def compile_sources(sources, folder, csrc=CSRC):
    """Compiles sources below ``csrc`` into objects in ``folder``, two at a time."""
    flags = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-U_FORTIFY_SOURCE", "-DEASYEDIT_FAST_EMULATOR", "-DEASYEDIT_FAST_CUDA=1"]
    flags += [f"-I{csrc}"]
    compiler = ["g++", *flags, "-x", "c++", "-c"]
    objects = [folder / (source.replace("/", "-") + ".o") for source in sources]
    for start in range(0, len(sources), 2):
        running = [
            subprocess.Popen([*compiler, str(csrc / source), "-o", str(target)])
            for source, target in zip(
                sources[start : start + 2], objects[start : start + 2], strict=True
            )
        ]
        assert [process.wait() for process in running] == [0] * len(running)
    return objects


def link(objects, path):
    """Links objects into a library and loads it."""
    command = ["g++", "-shared", "-Wl,-z,defs", "-o", str(path), *map(str, objects)]
    subprocess.run(command, check=True)
    return Emulator(path)


class Build:
    """The emulated kernels, and variants of them with one place changed."""

    def __init__(self, folder):
        self.folder = folder
        self.support = compile_sources(SUPPORT, folder)
        self.kernels = dict(zip(KERNELS, compile_sources(KERNELS, folder), strict=True))
        self.emulator = link([*self.support, *self.kernels.values()], folder / "emulated.so")

    def mutant(self, name, file, old, new):
        """The same kernels with ``old``, which must occur once in ``file``, replaced.

        A change of a header is compiled into the first kernel alone, which spares time.
        """
        folder = self.folder / name
        if folder.exists():
            return Emulator(folder / "emulated.so")
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
        text = (csrc / file).read_text()
        assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times"
        (csrc / file).write_text(text.replace(old, new))
        changed = [file if file in KERNELS else KERNELS[0]]
        kept = [self.kernels[kernel] for kernel in KERNELS if kernel not in changed]
        objects = compile_sources(changed, folder, csrc)
        return link([*self.support, *kept, *objects], folder / "emulated.so")


class Emulator:
    """Calls of one compiled library; tensors are copied into guarded buffers and back."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.emulator_error.restype = ctypes.c_char_p
        self.library.emulator_allocate.restype = ctypes.c_void_p
        self.library.emulator_allocate.argtypes = [ctypes.c_int64, ctypes.c_int]
        self.backward = False
        self.at_end = True

    def second_moment_(self, out, x, mask=None):
        with Buffers(self) as buffers:
            self.call(
                "emulated_second_moment",
                buffers.place(out, written=True),
                buffers.place(x),
                *sizes(*x.shape),
                strides(x),
                DTYPES[x.dtype],
                None if mask is None else buffers.place(mask),
                *sizes(0 if mask is None else mask.stride(0)),
            )

    def symmetrise_(self, out):
        with Buffers(self) as buffers:
            self.call("emulated_symmetrise", buffers.place(out, written=True), *sizes(out.shape[0]))

    def rank_update_(self, weight, output_factor, input_factor, rounding="nearest", seed=0):
        status = torch.zeros(1, dtype=torch.int32)
        with Buffers(self) as buffers:
            self.call(
                "emulated_rank_update",
                buffers.place(weight, written=True),
                *sizes(*weight.shape),
                strides(weight),
                DTYPES[weight.dtype],
                buffers.place(output_factor),
                strides(output_factor),
                buffers.place(input_factor),
                strides(input_factor),
                *sizes(output_factor.shape[1]),
                ("nearest", "stochastic").index(rounding),
                *sizes(seed),
                buffers.place(status, written=True),
            )
        if status.item() != 0:
            raise RefusedError

    def call(self, name, *arguments):
        self.library.emulator_set_order(int(self.backward))
        if getattr(self.library, name)(*arguments) != 0:
            raise EmulatorError(self.library.emulator_error().decode())


class Buffers:
    """Copies of tensors in guarded memory; what was written comes back at the end."""

    def __init__(self, emulator):
        self.emulator = emulator
        self.written = []

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if kind is None:
            for tensor, address, size in self.written:
                ctypes.memmove(tensor.data_ptr(), address, size)
        self.emulator.library.emulator_free_all()

    def place(self, tensor, *, written=False):
        # From the first element to the last, with all that lies between them.
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((length - 1) * stride for length, stride in steps)
        size = (1 + last) * tensor.element_size() if tensor.numel() else 0
        address = self.emulator.library.emulator_allocate(size, int(self.emulator.at_end))
        ctypes.memmove(address, tensor.data_ptr(), size)
        if written:
            self.written.append((tensor, address, size))
        return ctypes.c_void_p(address)


def sizes(*values):
    return [ctypes.c_int64(value) for value in values]


def strides(tensor):
    return (ctypes.c_int64 * 2)(*tensor.stride())
