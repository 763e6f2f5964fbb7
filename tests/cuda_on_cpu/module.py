"""A stand-in for cupy.RawModule that runs the same CUDA C source on the CPU, over numpy arrays."""

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
FLAGS = (
    *("-std=c++17", "-O2", "-march=native", "-fPIC", "-pipe", "-w"),
    # nvcc contracts a * b + c, which is not asked of a test's reference: kernels call fmaf where it matters
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"),
    *("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fno-stack-protector", "-U_FORTIFY_SOURCE"),
)
# nothing of the C++ runtime is used, and linking it takes as long as compiling a small kernel
LINK_FLAGS = ("-shared", "-nostartfiles", "-nodefaultlibs", "-lm", "-lc")
KERNEL = re.compile(r'extern\s*"C"[^;{}=]*?\b__global__\b[^;{}=]*?\bvoid\b[^;{}=]*?(\w+)\s*\((?=[^;]*\{)')
NESTED = r"\([^()]*\)"  # parentheses in parentheses, four deep
for _ in range(3):
    NESTED = rf"\((?:[^()]|{NESTED})*\)"
LAUNCH_BOUNDS = re.compile(rf"__launch_bounds__\s*{NESTED}")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
BARRIER = re.compile(r"__sync|__shfl|__ballot|__any_sync|__all_sync|mma_tf32")
DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s*)?([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
FLOAT32 = re.compile(r"\bfloat[234]?\b")

MAX_THREADS = 1024
STACK = (64 << 10) + 320  # as in cuda_on_cpu.h
DYNAMIC_SHARED_BYTES = 256 << 10
LIMITS = (("grid", (2**31 - 1, 65535, 65535)), ("block", (1024, 1024, 64)))

_order: ContextVar[int] = ContextVar("thread_order", default=0)
# The state of a launch is static in its library, and all libraries share one area for stacks.
_lock = threading.Lock()


class CompilerMissing(RuntimeError):  # noqa: N818 - named for what a skipped test says
    """There is no g++ on this machine."""


@contextmanager
def thread_order(order: int) -> Iterator[None]:
    """Order of threads and blocks inside the with: 0 forward, 1 reversed, any other number seeds a shuffle."""
    token = _order.set(order)
    try:
        yield
    finally:
        _order.reset(token)


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("arguments", ctypes.c_void_p),
        ("stacks", ctypes.c_void_p),
        ("dynamic_shared", ctypes.c_void_p),
        ("dynamic_bytes", ctypes.c_ulonglong),
        ("order", ctypes.c_int),
        ("fibers", ctypes.c_int),
        ("flush", ctypes.c_int),
        ("at", ctypes.c_uint * 3),
        ("waiting_block", ctypes.c_int),
        ("waiting_warp", ctypes.c_int),
        ("left", ctypes.c_int),
    )


@dataclass(frozen=True)
class _Value:
    """An argument or a parameter: f float, i integer, s struct, p pointer; what a pointer leads to, "" if unknown."""

    kind: str
    size: int
    target: str = ""
    target_size: int = 0

    def accepts(self, given: "_Value") -> bool:
        if (self.kind, self.size) != (given.kind, given.size):
            return False
        comparable = self.target in ("f", "i") and given.target in ("f", "i")  # float4* over float32 is no mistake
        return not comparable or (self.target, self.target_size) == (given.target, given.target_size)

    def __str__(self) -> str:
        words = {"f": "float", "i": "integer", "s": "struct", "v": "void", "p": "pointer"}
        if self.kind == "p":
            return f"pointer to {words[self.target]}{8 * self.target_size or ''}" if self.target else "pointer"
        return f"{words[self.kind]} of {self.size} bytes"


def _kind(dtype: np.dtype[Any]) -> str:
    return {"f": "f", "i": "i", "u": "i", "b": "i"}.get(dtype.kind, "s")


def _pointer(address: int) -> bytes:
    return address.to_bytes(8, "little")


def _argument(value: Any) -> tuple[_Value, bytes]:
    if value is None:
        return _Value("p", 8), _pointer(0)
    if isinstance(value, np.void) or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.names):
        return _Value("s", value.nbytes), value.tobytes()
    if isinstance(value, np.ndarray):
        return _Value("p", 8, _kind(value.dtype), value.dtype.itemsize), _pointer(
            value.ctypes.data if value.size else 0
        )
    if isinstance(value, np.generic):
        return _Value(_kind(value.dtype), value.dtype.itemsize), value.tobytes()
    if hasattr(value, "pointer"):
        return _Value("p", 8), _pointer(int(value.pointer))
    # as CuPy passes Python's own numbers
    if isinstance(value, bool):
        return _argument(np.bool_(value))
    if isinstance(value, int):
        return _argument(np.int64(value))
    if isinstance(value, float):
        return _argument(np.float64(value))
    raise TypeError(f"a kernel takes no {type(value).__name__}")


class _Workspace:
    """Dynamic shared memory and the stacks of all threads; pages that no kernel touches cost nothing."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(
            -1, DYNAMIC_SHARED_BYTES + MAX_THREADS * STACK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        self.dynamic_shared = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.stacks = self.dynamic_shared + DYNAMIC_SHARED_BYTES


_workspace: _Workspace | None = None


def _get_workspace() -> _Workspace:
    global _workspace
    _workspace = _workspace or _Workspace()
    return _workspace


def _compiler() -> str:
    path = shutil.which("g++")
    if path is None:
        raise CompilerMissing("g++ is not installed, and running CUDA kernels on the CPU needs it")
    return path


def _preprocessed(code: str, defines: Sequence[str]) -> str:
    """The source without what #if leaves out: kernels that are not there have no name and no barrier."""
    command = [_compiler(), "-E", "-DCUDA_ON_CPU", *defines, "-x", "c++", "-"]
    run = subprocess.run(command, input=f'#line 1 "kernel.cu"\n{code}', capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the kernel does not compile:\n{run.stderr}")
    return "\n".join(line for line in run.stdout.splitlines() if not line.startswith("#pragma"))


def _default_cache() -> Path:
    return Path(tempfile.gettempdir()) / f"cuda-on-cpu-{os.getuid()}"


def _build(source: str, options: Sequence[str], cache: Path) -> Path:
    """The shared library of this source, from the cache if it is there."""
    runtime = _cached(cache, ".o", HEADER.read_text(), [*FLAGS, "-DCUDA_ON_CPU_RUNTIME", "-c", "-x", "c++", "-"])
    flags = [*options, *FLAGS, "-x", "c++", "-", "-x", "none", str(runtime), *LINK_FLAGS]
    return _cached(cache, ".so", source, flags)


def _cached(cache: Path, suffix: str, source: str, flags: Sequence[str]) -> Path:
    compiler = _compiler()
    made = cache / (hashlib.sha256("\0".join([compiler, source, *flags]).encode()).hexdigest()[:32] + suffix)
    if made.exists():
        return made
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    # other processes may build the same kernel now: each writes a file of its own, and the last rename wins
    own = made.with_name(f"{made.stem}.{os.getpid()}.{threading.get_ident()}{suffix}")
    run = subprocess.run([compiler, *flags, "-o", str(own)], input=source, capture_output=True, text=True, check=False)
    if run.returncode:
        own.unlink(missing_ok=True)
        raise RuntimeError(f"the kernel does not compile:\n{run.stderr}")
    own.replace(made)
    return made


@dataclass(frozen=True)
class CpuKernel:
    """One kernel of a module, called as CuPy's: kernel(grid, block, args, shared_mem=bytes)."""

    name: str
    function: Any
    parameters: tuple[_Value, ...]
    barriers: bool
    flush_denormals: bool

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0) -> None:
        sizes = []
        for (what, limits), given in zip(LIMITS, (grid, block), strict=True):
            full = (*map(int, given), 1, 1, 1)[:3]
            if len(given) > 3 or any(not 1 <= size <= limit for size, limit in zip(full, limits, strict=True)):
                raise ValueError(f"{self.name}: a GPU cannot launch the {what} {tuple(given)}")
            sizes.append(full)
        if np.prod(sizes[1]) > MAX_THREADS:
            raise ValueError(f"{self.name}: {tuple(block)} are more than {MAX_THREADS} threads in a block")
        if not 0 <= shared_mem <= DYNAMIC_SHARED_BYTES:
            raise ValueError(f"{self.name}: {shared_mem} bytes of shared memory")
        values, pieces = zip(*map(_argument, args), strict=True) if len(args) else ((), ())
        self._check(values)

        offsets, total = [], 0
        for piece in pieces:
            offsets.append(total)
            total += -(-len(piece) // 16) * 16
        packed = (ctypes.c_double * (total // 8 + 2))()  # one more pair, to align the first to 16
        base = -(-ctypes.addressof(packed) // 16) * 16
        for offset, piece in zip(offsets, pieces, strict=True):
            ctypes.memmove(base + offset, piece, len(piece))
        addresses = (ctypes.c_void_p * (len(offsets) + 1))(*[base + offset for offset in offsets])

        with _lock:
            workspace = _get_workspace()
            launch = _Launch(
                grid=sizes[0],
                block=sizes[1],
                arguments=ctypes.addressof(addresses),
                stacks=workspace.stacks,
                dynamic_shared=workspace.dynamic_shared,
                dynamic_bytes=shared_mem,
                order=_order.get(),
                fibers=self.barriers,
                flush=self.flush_denormals,
            )
            outcome = self.function(ctypes.byref(launch))
        if outcome:
            raise RuntimeError(f"{self.name}, block {tuple(launch.at)}: {self._explain(outcome, launch)}")

    def _check(self, values: Sequence[_Value]) -> None:
        if len(values) != len(self.parameters):
            raise TypeError(f"{self.name} has {len(self.parameters)} parameters, not {len(values)}")
        for i, (parameter, value) in enumerate(zip(self.parameters, values, strict=True)):
            if not parameter.accepts(value):
                raise TypeError(f"{self.name}: argument {i} is a {value}, its parameter a {parameter}")

    @staticmethod
    def _explain(outcome: int, launch: _Launch) -> str:
        match outcome:
            case 1:
                return (
                    "threads wait at a barrier that others never reach: "
                    f"{launch.waiting_block} at __syncthreads, {launch.waiting_warp} at a warp operation, "
                    f"{launch.left} have left the kernel"
                )
            case 2:
                return f"a thread used more than {STACK >> 10} KiB of stack"
            case 3:
                return "a thread called a warp operation whose mask does not name it"
            case 4:
                return "it has a barrier that its source does not show"
        return f"outcome {outcome}"


class CpuModule:
    """Compiles CUDA C source for the CPU: CpuModule(code, options).get_function(name)(grid, block, args).

    Numpy arrays stand for cupy arrays. Of the options only -D counts. CuPy compiles with -ftz=true, which flushes
    denormals of float32 and leaves those of float64, but a CPU has one switch for both: flush_denormals sets it, by
    default to whether the source or its options name float.
    """

    def __init__(
        self,
        code: str,
        options: Sequence[str] = (),
        *,
        cache: Path | None = None,
        flush_denormals: bool | None = None,
    ) -> None:
        defines = [option for option in options if option.startswith("-D")]
        code = _preprocessed(code, defines)
        bare = COMMENT.sub(" ", code)
        self.names: list[str] = KERNEL.findall(LAUNCH_BOUNDS.sub(" ", bare))
        self.barriers = bool(BARRIER.search(bare))
        if flush_denormals is None:
            flush_denormals = bool(FLOAT32.search(" ".join([bare, *defines])))
        self.flush_denormals = flush_denormals
        code = DYNAMIC_SHARED.sub(r"\1* const \2 = (\1*)cuda_on_cpu::dyn_shared();", code)
        entries = "".join(
            f'extern "C" int cpu_launch_{name}(cuda_on_cpu::Launch& l) {{ return cuda_on_cpu::launch<{name}>(l); }}\n'
            f'extern "C" int cpu_describe_{name}(cuda_on_cpu::Parameter* out) '
            f"{{ return cuda_on_cpu::describe({name}, out); }}\n"
            for name in self.names
        )
        # with external linkage, shared memory of a template could not be in one section with that of a kernel
        source = f'#include "{HEADER}"\nnamespace {{\n#line 1 "kernel.cu"\n{code}\n}}\n{entries}'
        self.library = ctypes.CDLL(str(_build(source, defines, cache or _default_cache())))

    def get_function(self, name: str) -> CpuKernel:
        if name not in self.names:
            raise KeyError(f"the module has no kernel {name}, only {', '.join(self.names)}")
        found = (ctypes.c_int * (4 * 1024))()
        count = self.library[f"cpu_describe_{name}"](found)
        parameters = tuple(
            _Value(chr(kind), size, chr(target) if target else "", target_size)
            for kind, size, target, target_size in np.reshape(found[: 4 * count], (-1, 4)).tolist()
        )
        return CpuKernel(name, self.library[f"cpu_launch_{name}"], parameters, self.barriers, self.flush_denormals)
