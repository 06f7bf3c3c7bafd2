"""A stand-in for CuPy on NumPy, and stricter than NumPy wherever CuPy is.

It has the names of the real CuPy and no other, takes the arguments that the real functions take,
refuses arrays of NumPy and implicit copies to the host, and wraps `take`. It counts what waits for
the GPU and what is copied to it. RawKernels and ElementwiseKernels are their own sources, compiled
by g++ with `cuda_shim.h`; cuBLAS is `cublas_shim.cpp`. Between `begin_capture` and `end_capture`
nothing is computed: arrays are full of NaN until the graph is launched, which computes everything
again from its inputs.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import inspect
import operator
import re
import subprocess
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SHIM, CUBLAS = (Path(__file__).with_name(name) for name in ("cuda_shim.h", "cublas_shim.cpp"))
HANDLE = 7  # of cuBLAS
SCALARS = (bool, int, float, np.generic)


class GPU:
    """What is counted and recorded."""

    def __init__(self) -> None:
        self.synchronisations = 0  # the host waits
        self.uploads = 0  # copies from the host
        self.recorded: list[Callable[[], Any]] | None = None  # by the capture that is going on
        self.events: list[str] = []  # of streams and graphs
        self.kernels: list[Any] = []  # all that were made
        self.backwards = False  # the order of the threads of a block
        self.allocator: Any = None
        self.stream: Any = None
        self.folder: Path | None = None  # of compiled kernels
        self.real: Any = None  # CuPy

    def wait(self) -> None:
        self._not_in_capture("synchronous API calls")
        self.synchronisations += 1

    def upload(self) -> None:
        self._not_in_capture("H2D transfers")
        assert self.allocator is None, "what is made once would lie where graphs write"
        self.uploads += 1

    def _not_in_capture(self, what: str) -> None:
        if self.recorded is not None:
            raise RuntimeError(f"the current stream is capturing, so {what} are disallowed")

    def write(self, f: Callable[[], Any]) -> None:
        """Runs what writes into an array that is there, now or at every launch."""
        if self.recorded is None:
            f()
        else:
            self.recorded.append(f)

    def fresh(self, f: Callable[[], Any]) -> Any:
        """The arrays that f makes; in a capture only their shapes mean anything."""
        result = f()
        if self.recorded is not None:
            parts = result if isinstance(result, list | tuple) else [result]
            for part in parts:
                if np.issubdtype(part.dtype, np.floating):
                    part[...] = np.nan

            def again() -> None:
                made = f()
                for part, new in zip(parts, made if parts is result else [made], strict=True):
                    part[...] = new

            self.recorded.append(again)
        return result


gpu = GPU()


def bare(x: Any) -> Any:
    """Arguments for NumPy; arrays of NumPy are no arguments of CuPy."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, list | tuple):
        return type(x)(map(bare, x))
    return x


def call(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """NumPy's f on the arrays, as new arrays or as views of them."""
    if f in (operator.matmul, np.matmul) and gpu.recorded is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is unsupported")
    out = kwargs.pop("out", None)
    args, kwargs = tuple(map(bare, args)), {name: bare(value) for name, value in kwargs.items()}
    if out is not None:
        gpu.write(lambda: f(*args, out=out._a, **kwargs))
        return out
    flat = [a for x in args for a in (x if isinstance(x, list | tuple) else [x])]
    arrays = [a for a in flat if isinstance(a, np.ndarray)]
    made = f(*args, **kwargs)
    if not isinstance(made, np.ndarray | np.generic | list | tuple):
        return made
    if isinstance(made, np.ndarray) and any(np.may_share_memory(made, a) for a in arrays):
        return ndarray(made)

    def again() -> Any:
        made = f(*args, **kwargs)
        return [np.asarray(m) for m in made] if isinstance(made, list | tuple) else np.array(made)

    made = gpu.fresh(again)
    return list(map(ndarray, made)) if isinstance(made, list) else ndarray(made)


class ndarray:
    __slots__ = ("_a",)
    __array_ufunc__ = None  # so that NumPy's operators leave the operation to these
    __hash__ = None

    def __init__(self, a: np.ndarray) -> None:
        assert isinstance(a, np.ndarray)
        self._a = a

    dtype = property(lambda self: self._a.dtype)
    shape = property(lambda self: self._a.shape)
    strides = property(lambda self: self._a.strides)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    T = property(lambda self: ndarray(self._a.T))
    device = property(lambda self: Device(0))
    data = property(lambda self: Memory(self._a))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to "
            "construct a NumPy array explicitly."
        )

    def get(self) -> np.ndarray:
        gpu.wait()
        return self._a.copy()

    def item(self) -> Any:
        return self.get().item()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"fake {self._a!r}"

    def __getitem__(self, key: Any) -> ndarray:
        if isinstance(key, ndarray) and key.dtype == bool:
            gpu.wait()
        return call(lambda a, k: np.asarray(a[k]), self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, ndarray) and key.dtype == bool:
            gpu.wait()
        a, key, value = self._a, bare(key), bare(value)
        gpu.write(lambda: operator.setitem(a, key, value))

    def reshape(self, *shape: Any) -> ndarray:
        return call(lambda a: a.reshape(*shape), self)

    def transpose(self, *axes: Any) -> ndarray:
        return ndarray(self._a.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> ndarray:
        return ndarray(self._a.swapaxes(first, second))

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        return call(lambda a: a.astype(dtype, order=order), self)

    def copy(self) -> ndarray:
        return call(lambda a: a.copy(), self)

    def clip(self, low: Any = None, high: Any = None) -> ndarray:
        return call(lambda a, low, high: a.clip(low, high), self, low, high)

    def max(self, axis: Any = None, keepdims: bool = False) -> ndarray:
        return call(lambda a: a.max(axis=axis, keepdims=keepdims), self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> ndarray:
        return call(lambda a: a.sum(axis=axis, keepdims=keepdims), self)

    def mean(self, axis: Any = None, keepdims: bool = False) -> ndarray:
        return call(lambda a: a.mean(axis=axis, keepdims=keepdims), self)

    def repeat(self, repeats: int, axis: Any = None) -> ndarray:
        return call(lambda a: a.repeat(repeats, axis=axis), self)


class Memory:
    """Where an array lies; a graph that is told keeps it."""

    def __init__(self, a: np.ndarray) -> None:
        if gpu.recorded is not None:
            gpu.recorded.append(lambda a=a: None)
        self.ptr = a.ctypes.data


class CuBLAS:
    """The library, as ctypes gives it."""

    def __init__(self, folder: Path) -> None:
        library = ctypes.CDLL(str(compiled(CUBLAS.read_text(), "cublas", folder)))
        self.cublasSetStream_v2 = Function(library.cublasSetStream_v2)
        self.cublasGemmStridedBatchedEx = Function(library.cublasGemmStridedBatchedEx)


class Function:
    """One of cuBLAS: what sets the stream does so, the others work now, or at every launch."""

    stream: Any = None

    def __init__(self, f: Any) -> None:
        self.f = f

    argtypes = property(
        lambda self: self.f.argtypes, lambda self, types: setattr(self.f, "argtypes", types)
    )

    def __call__(self, handle: int, *args: Any) -> int:
        assert handle == HANDLE
        assert self.argtypes is not None, "ctypes would cut pointers to 32 bits"
        if self.f.__name__ == "cublasSetStream_v2":
            Function.stream = args[0]
        elif Function.stream != current_stream().ptr:
            raise AssertionError("cuBLAS works on another stream")
        elif gpu.recorded is not None:
            gpu.recorded.append(lambda: check(self.f(handle, *args)))
            return 0
        return self.f(handle, *args)


def check(status: int) -> None:
    assert status == 0, f"cuBLAS returns {status}"


def compiled(source: str, name: str, folder: Path) -> Path:
    """The shared library of a source."""
    stem = folder / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    if not stem.with_suffix(".so").exists():
        stem.with_suffix(".cpp").write_text(source)
        flags = "-O1 -std=c++17 -shared -fPIC -ffp-contract=off -Wall -Wno-unknown-pragmas"
        command = ["g++", *flags.split(), "-Werror", "-Wno-unused-function"]
        files = ["-o", str(stem.with_suffix(".so")), str(stem.with_suffix(".cpp"))]
        done = subprocess.run([*command, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return stem.with_suffix(".so")


def _operators() -> None:
    def known(x: Any) -> bool:
        if isinstance(x, np.ndarray):
            raise TypeError(f"Unsupported type {type(x)}")
        return isinstance(x, (ndarray, *SCALARS))

    def add(name: str, symbol: Callable[..., Any], in_place: Callable[..., Any] | None) -> None:
        def forward(self: ndarray, other: Any) -> Any:
            return call(symbol, self, other) if known(other) else NotImplemented

        def reverse(self: ndarray, other: Any) -> Any:
            return call(symbol, other, self) if known(other) else NotImplemented

        def into(self: ndarray, other: Any) -> Any:
            if not known(other):
                return NotImplemented
            a, b = self._a, bare(other)
            gpu.write(lambda: in_place(a, b))
            return self

        setattr(ndarray, f"__{name}__", forward)
        if in_place is not None:
            setattr(ndarray, f"__r{name}__", reverse)
            setattr(ndarray, f"__i{name}__", into)

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift"):
        add(name, getattr(operator, name), getattr(operator, f"i{name}"))
    for name in ("and", "or", "xor"):
        symbol = operator.xor if name == "xor" else getattr(operator, f"{name}_")
        add(name, symbol, getattr(operator, f"i{name}"))
    for name in ("matmul", "lt", "le", "gt", "ge", "eq", "ne"):
        add(name, getattr(operator, name), None)
    for name in ("neg", "pos", "abs", "invert"):
        symbol = getattr(operator, name)
        setattr(ndarray, f"__{name}__", lambda self, symbol=symbol: call(symbol, self))


_operators()


def as_array(obj: Any, dtype: Any = None, copy: bool | None = None) -> ndarray:
    if isinstance(obj, ndarray):
        if copy is not True and (dtype is None or obj.dtype == dtype):
            return obj
        return obj.astype(obj.dtype if dtype is None else dtype)
    a = np.array(obj, dtype=dtype)  # of a list of arrays of CuPy too: __array__ refuses
    if a.ndim:
        gpu.upload()
    return ndarray(a)


def as_contiguous(a: Any, dtype: Any = None) -> ndarray:
    dtype = a.dtype if dtype is None else dtype
    if a.dtype == dtype and a._a.flags.c_contiguous:
        return a
    return a.astype(dtype, order="C")


def as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
    return ndarray(np.lib.stride_tricks.as_strided(x._a, shape, strides))


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    assert where is None
    a, b = dst._a, bare(src)
    gpu.write(lambda: np.copyto(a, b, casting=casting))


# Kernels. ---------------------------------------------------------------------------------------

NUMBERS = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "unsigned": np.uint32,
    "long long": np.int64,
}


class RawKernel:
    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        self.code, self.name = code, name
        typedefs = {b: a for a, b in re.findall(r"typedef (.+?) (\w+);", code)}
        signature = re.search(rf'extern "C" __global__ void {name}\((.*?)\)', code, re.DOTALL)
        assert signature is not None
        #: (C's type, dtype, whether a pointer)
        self.parameters: list[tuple[str, Any, bool]] = []
        for parameter in signature[1].split(","):
            kind, star = re.fullmatch(r"\s*(?:const )?([\w ]+?)(\*?) \w+", parameter).groups()  # type: ignore[union-attr]
            kind = typedefs.get(kind, kind)
            self.parameters.append((kind, NUMBERS[kind], bool(star)))
        self._launch: Any = None
        gpu.kernels.append(self)

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple) -> None:
        assert len(grid) == len(block) == 1
        assert grid[0] > 0, "CUDA refuses an empty grid"
        values, pointers = [], []
        for arg, (kind, dtype, pointer) in zip(args, self.parameters, strict=True):
            if pointer and isinstance(arg, ndarray):
                if arg.dtype != dtype:
                    raise TypeError(f"{self.name}: an array of {arg.dtype} for {kind}*")
                if not arg._a.flags.c_contiguous:
                    raise ValueError(f"{self.name}: strides would be ignored")
                value: Any = ctypes.c_void_p(arg._a.ctypes.data)
            elif pointer and arg is None:
                value = ctypes.c_void_p(None)
            elif not pointer and np.asarray(arg).dtype == dtype and np.ndim(arg) == 0:
                value = np.ctypeslib.as_ctypes_type(dtype)(arg.item())
            else:
                raise TypeError(f"{self.name}: {type(arg)} for {kind}{'*' * pointer}")
            values.append(value)
            pointers.append(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p))
        packed = (ctypes.c_void_p * len(pointers))(*pointers)
        kept = values, args  # alive as long as the graph

        def run() -> None:
            if self._launch is None:
                self._launch = self._compiled()
            if self._launch(packed, grid[0], block[0], int(gpu.backwards)):
                raise RuntimeError(f"{self.name}: threads wait at different barriers {kept[:0]}")

        gpu.write(run)

    def _compiled(self) -> Any:
        casts = ", ".join(
            f"*({kind}{'*' * pointer}*)args[{i}]"
            for i, (kind, _, pointer) in enumerate(self.parameters)
        )
        source = (
            f'#include "{SHIM}"\n{self.code}\n'
            f"static void body_of(void** args) {{ {self.name}({casts}); }}\n"
            f'extern "C" int run(void** args, unsigned grid, unsigned block, int backwards)\n'
            f"{{ return launch(body_of, args, grid, block, backwards); }}\n"
        )
        assert gpu.folder is not None
        return ctypes.CDLL(str(compiled(source, self.name, gpu.folder))).run


class ElementwiseKernel:
    """Its operation in a loop over contiguous arrays, which the arguments are broadcast to."""

    def __init__(self, in_params: str, out_params: str, operation: str, name: str) -> None:
        gpu.real.ElementwiseKernel(in_params, out_params, operation, name)  # which parses them
        self.inputs = [tuple(p.split()) for p in in_params.split(",")]
        ((dtype, out),) = [tuple(p.split()) for p in out_params.split(",")]
        names = {np.dtype(t).name: c for c, t in NUMBERS.items()}
        self.dtype = np.dtype(dtype)
        arrays = "".join(f"const {names[t]}* {n}_, " for t, n in self.inputs)
        values = " ".join(f"const {names[t]} {n} = {n}_[i];" for t, n in self.inputs)
        self.kernel = RawKernel(
            f'extern "C" __global__ void {name}({arrays}{names[dtype]}* {out}_, long long n)\n'
            f"{{\n    long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x;\n"
            f"    for (long long i = first; i < n; i += (long long)gridDim.x * blockDim.x) {{\n"
            f"        {values} {names[dtype]} {out};\n        {operation};\n"
            f"        {out}_[i] = {out};\n    }}\n}}\n",
            name,
        )

    def __call__(self, *args: Any) -> ndarray:
        for arg in args:
            if not isinstance(arg, (ndarray, *SCALARS)):
                raise TypeError(f"Unsupported type {type(arg)}")
        arrays = [(np.asarray(bare(a)), t) for a, (t, _) in zip(args, self.inputs, strict=True)]
        for a, (given, t) in zip(args, arrays, strict=True):
            if isinstance(a, ndarray) and given.dtype != t:
                raise TypeError(f"{self.kernel.name}: an array of {given.dtype} for {t}")
        shape = np.broadcast_shapes(*(a.shape for a, _ in arrays))

        def run() -> np.ndarray:
            # The kernel itself is not recorded: this is, and what it calls runs at once.
            recorded, gpu.recorded = gpu.recorded, None
            try:
                whole = [np.ascontiguousarray(np.broadcast_to(a, shape), t) for a, t in arrays]
                out = np.empty(shape, self.dtype)
                args = (*map(ndarray, whole), ndarray(out), np.int64(out.size))
                if out.size:
                    self.kernel((1,), (1,), args)
                return out
            finally:
                gpu.recorded = recorded

        return ndarray(gpu.fresh(run))


# Devices, streams, graphs, memory. --------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    pass


class Device:
    def __init__(self, device: Any = None) -> None:
        self.id = 0 if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> None:
        gpu.events.append(f"device {self.id} is current")

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        gpu.wait()


class Graph:
    def __init__(self, recorded: list[Callable[[], Any]], pool: Any) -> None:
        self.recorded, self.pool = recorded, weakref.ref(pool)

    def launch(self, stream: Any = None) -> None:
        assert self.pool() is not None, "the memory of the graph is gone"
        gpu.events.append("launch")
        for f in self.recorded:
            f()


class Stream:
    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.null = null
        self.name = "null" if null else f"stream{'' if non_blocking else ' (blocking)'}"
        self.ptr = 0 if null else id(self)
        self.outer: list[Any] = []

    def __enter__(self) -> Stream:
        self.outer.append(gpu.stream)
        gpu.stream = self
        return self

    def __exit__(self, *args: Any) -> None:
        gpu.stream = self.outer.pop()

    def record(self) -> str:
        gpu.events.append(f"{self.name} recorded")
        return self.name

    def is_capturing(self) -> bool:
        return gpu.recorded is not None

    def wait_event(self, event: Any) -> None:
        gpu.events.append(f"{self.name} waits for {event}")

    def begin_capture(self, mode: Any = None) -> None:
        if self.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        assert gpu.stream is self, "work goes to another stream"
        assert gpu.allocator is not None, "the graph's arrays would be given to others"
        gpu.events.append("begin")
        gpu.recorded = []

    def end_capture(self) -> Graph:
        recorded, gpu.recorded = gpu.recorded, None
        assert recorded is not None
        gpu.events.append("end")
        return Graph(recorded, gpu.allocator.__self__)

    def synchronize(self) -> None:
        gpu.wait()


NULL = Stream(null=True)


def current_stream(device_id: int = -1) -> Stream:
    return gpu.stream or NULL


class Event:
    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        assert disable_timing, "its time is not read"

    def __str__(self) -> str:
        return "the event"

    def record(self, stream: Any = None) -> None:
        gpu.events.append(f"{(stream or current_stream()).name} records {self}")


class MemoryPool:
    def malloc(self, size: int) -> None: ...

    def free_all_blocks(self, stream: Any = None) -> None:
        gpu.events.append("memory is free")

    def used_bytes(self) -> int:
        return 0


@contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    before, gpu.allocator = gpu.allocator, allocator
    try:
        yield
    finally:
        gpu.allocator = before


class Philox4x3210:
    def __init__(self, seed: Any = None, *, size: int = -1) -> None:
        self.rng = np.random.Generator(np.random.Philox(seed))


class Generator:
    def __init__(self, bit_generator: Philox4x3210) -> None:
        self.rng = bit_generator.rng

    def standard_normal(
        self, size: Any = None, dtype: Any = np.float64, out: Any = None
    ) -> ndarray:
        assert gpu.recorded is None, "the generator's state is made anew"
        return ndarray(self.rng.standard_normal(size, dtype=dtype))


# The module. ------------------------------------------------------------------------------------


def _module(real: Any, source: Any, given: dict[str, Any]) -> types.ModuleType:
    """NumPy's functions under the names and signatures of the real CuPy, and those that differ."""
    module = types.ModuleType(real.__name__)
    module.__path__ = []
    for name in {n for n in dir(source) if not n.startswith("_")} & set(dir(real)):
        value = getattr(source, name)
        if callable(value) and not isinstance(value, type):
            setattr(module, name, _checked(value, getattr(real, name)))
        elif not isinstance(value, types.ModuleType):
            setattr(module, name, value)
    for name, value in given.items():
        if not hasattr(real, name):
            raise AttributeError(f"{real.__name__} has no {name}")
        is_function = isinstance(value, types.FunctionType) and name != "using_allocator"
        setattr(module, name, _same_signature(value, getattr(real, name)) if is_function else value)
    return module


def _same_signature(f: Callable[..., Any], real: Any) -> Callable[..., Any]:
    try:
        signature = inspect.signature(real)
    except (TypeError, ValueError):  # of a ufunc, or compiled
        return f

    def checked(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return f(*args, **kwargs)

    return checked


def _checked(f: Callable[..., Any], real: Any) -> Callable[..., Any]:
    return _same_signature(lambda *args, **kwargs: call(f, *args, **kwargs), real)


def _modules() -> dict[str, types.ModuleType]:
    real = gpu.real = importlib.import_module("cupy")
    missing = {n for n in vars(ndarray) if n != "_a"} - set(dir(real.ndarray))
    missing -= {"__slots__", "__slotnames__"}  # the second is copyreg's, once one was copied
    if missing:
        raise AttributeError(f"cupy.ndarray has no {missing}")
    for kind, its in (
        (Stream, real.cuda.Stream),
        (Graph, real.cuda.Graph),
        (Device, real.cuda.Device),
        (MemoryPool, real.cuda.MemoryPool),
        (Event, real.cuda.Event),
        (Generator, real.random.Generator),
    ):
        if missing := {n for n in vars(kind) if not n.startswith("_")} - set(dir(its)):
            raise AttributeError(f"{its} has no {missing}")
    modules = {
        "cupy.lib.stride_tricks": _module(
            real.lib.stride_tricks, types.SimpleNamespace(), {"as_strided": as_strided}
        ),
        "cupy.linalg": _module(real.linalg, np.linalg, {}),
        "cupy.fft": _module(real.fft, np.fft, {}),
        "cupy.random": _module(
            real.random,
            types.SimpleNamespace(),
            {"Philox4x3210": Philox4x3210, "Generator": Generator},
        ),
        "cupy.cuda.runtime": _module(
            real.cuda.runtime,
            types.SimpleNamespace(),
            {
                "getDeviceCount": lambda: 2,
                "getDeviceProperties": lambda device: {"name": b"stand-in %d" % device},
                "runtimeGetVersion": lambda: 13000,
                "CUDARuntimeError": CUDARuntimeError,
            },
        ),
    }
    modules["cupy.cuda.device"] = _module(
        real.cuda.device,
        types.SimpleNamespace(),
        {"Device": Device, "get_cublas_handle": lambda: HANDLE},
    )
    modules["cupy.cuda"] = _module(
        real.cuda,
        types.SimpleNamespace(),
        {
            "Device": Device,
            "Stream": Stream,
            "MemoryPool": MemoryPool,
            "Event": Event,
            "using_allocator": using_allocator,
            "get_current_stream": current_stream,
        },
    )
    for part in ("device", "runtime"):
        setattr(modules["cupy.cuda"], part, modules[f"cupy.cuda.{part}"])
    modules["cupy.lib"] = types.ModuleType("cupy.lib")
    modules["cupy.lib"].stride_tricks = modules["cupy.lib.stride_tricks"]
    modules["cupy"] = _module(
        real,
        np,
        {
            "ndarray": ndarray,
            "asarray": lambda a, dtype=None, order=None, *, copy=None: as_array(a, dtype, copy),
            "array": lambda obj, dtype=None, copy=True: as_array(obj, dtype, copy),
            "asnumpy": lambda a: a.get() if isinstance(a, ndarray) else np.asarray(a),
            "ascontiguousarray": as_contiguous,
            "copyto": copyto,
            "get_default_memory_pool": MemoryPool,
            "__version__": real.__version__,
            "take": lambda a, indices, axis=None: call(
                lambda a, i: np.take(a, i, axis=axis, mode="wrap"), a, indices
            ),
            "RawKernel": RawKernel,
            "ElementwiseKernel": ElementwiseKernel,
        },
    )
    for part in ("linalg", "fft", "random", "cuda", "lib"):
        setattr(modules["cupy"], part, modules[f"cupy.{part}"])
    return modules


@contextmanager
def installed(folder: Path) -> Iterator[types.ModuleType]:
    """The stand-in as `cupy`; what was imported with it is forgotten afterwards."""
    modules = _modules()
    ours = ("cupy", "cupyx", "cupy_backends", "ddpm_core_cupy")

    def taken() -> dict[str, Any]:
        return {
            name: module
            for name, module in sys.modules.items()
            if name.split(".")[0] in ours or name.startswith("array_api_compat.cupy")
        }

    before = taken()
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    gpu.folder = folder
    cublas = importlib.import_module("ddpm_core_cupy.cublas")
    cublas.ctypes = types.SimpleNamespace(**vars(ctypes) | {"CDLL": lambda name: CuBLAS(folder)})
    try:
        yield modules["cupy"]
    finally:
        for name in taken():
            del sys.modules[name]
        sys.modules.update(before)
