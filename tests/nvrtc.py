"""Compiles CUDA C with NVRTC as CuPy does; needs the wheel nvidia-cuda-nvrtc, but no GPU and no driver."""

import ctypes
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What fgcam_onnx.backends.cupy asks for, and what CuPy adds to it.
AS_CUPY = ("--std=c++17", "-ftz=true", "--device-as-default-execution-space")
WHEEL_LIBRARY = "cu13/lib/libnvrtc.so.13"
KERNEL = re.compile(r"Compiling entry function '(\w+)'")
STACK_AND_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class CompileError(RuntimeError):
    """NVRTC refuses the source; the message is its log."""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes, as ptxas reports it; spill_bytes are stores and loads together."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Compiled:
    cubin: bytes
    kernels: dict[str, Usage]
    log: str


def find() -> "Nvrtc | None":
    """NVRTC of the installed wheel, None where there is none."""
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or ()) if package else ():
        library = Path(folder) / WHEEL_LIBRARY
        if library.exists():
            return Nvrtc(library)
    return None


class Nvrtc:
    def __init__(self, library: Path) -> None:
        # NVRTC opens its builtins by name alone: they are found only if they are loaded already
        for builtins in library.parent.glob("libnvrtc-builtins.so.13*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(library))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return major.value, minor.value

    def architectures(self) -> list[int]:
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(found))
        return list(found)

    def compile(self, source: str, architecture: int, options: Sequence[str] = ()) -> Compiled:
        log, cubin = self._compile(source, f"sm_{architecture}", ["--ptxas-options=-v", *options], "CUBIN")
        return Compiled(cubin, _usages(log), log)

    def ptx(self, source: str, architecture: int, options: Sequence[str] = ()) -> str:
        """The code before registers are given out: what is loaded and stored, and how wide, can be read there."""
        return self._compile(source, f"compute_{architecture}", options, "PTX")[1].rstrip(b"\0").decode()

    def _compile(self, source: str, architecture: str, options: Sequence[str], kind: str) -> tuple[str, bytes]:
        """The log, and the code of this kind: CUBIN or PTX."""
        program = ctypes.c_void_p()
        self._check(
            self._library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
        )
        try:
            # the first three are CuPy's own
            flags = [f"-arch={architecture}", *AS_CUPY, *options]
            encoded = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
            outcome = self._library.nvrtcCompileProgram(program, len(flags), encoded)
            log = self._read(self._library.nvrtcGetProgramLogSize, self._library.nvrtcGetProgramLog, program)
            text = log.rstrip(b"\0").decode()
            if outcome:
                raise CompileError(f"{architecture}: {self._error(outcome)}\n{text}")
            size, read = (getattr(self._library, f"nvrtcGet{kind}{what}") for what in ("Size", ""))
            code = self._read(size, read, program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))
        return text, code

    def _read(self, size: Callable[..., int], read: Callable[..., int], program: ctypes.c_void_p) -> bytes:
        count = ctypes.c_size_t()
        self._check(size(program, ctypes.byref(count)))
        content: Any = ctypes.create_string_buffer(count.value + 1)
        self._check(read(program, content))
        return bytes(content.raw[: count.value])

    def _error(self, outcome: int) -> str:
        return str(self._library.nvrtcGetErrorString(outcome).decode())

    def _check(self, outcome: int) -> None:
        if outcome:
            raise RuntimeError(self._error(outcome))


def _usages(log: str) -> dict[str, Usage]:
    _, *parts = KERNEL.split(log)
    usages = {}
    for name, report in zip(parts[::2], parts[1::2], strict=True):
        memory, registers, shared = (p.search(report) for p in (STACK_AND_SPILLS, REGISTERS, SHARED))
        if memory is None or registers is None:
            raise RuntimeError(f"ptxas reports on {name} in a form that is not known here:\n{log}")
        stack, stores, loads = map(int, memory.groups())
        usages[name] = Usage(int(registers[1]), stores + loads, stack, int(shared[1]) if shared else 0)
    return usages
