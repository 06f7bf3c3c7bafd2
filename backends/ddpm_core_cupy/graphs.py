"""Calls as CUDA graphs: captured once, then launched as one piece of work."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, cast

from ddpm_core.typing import Array
from ddpm_core_cupy._cupy import cupy


class Captured(NamedTuple):
    """A graph, and the arrays that it reads and writes.

    inputs: what a call is copied into, in the order of `key_of`
    result: what the function returned, whose arrays every launch fills anew
    """

    inputs: list[Array]
    graph: Any
    result: Any


def graphed(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function, as one graph for each shape and dtype of its arrays and each other argument.

    Arguments and results are arrays of CuPy, alone or in tuples, lists and dicts, or anything
    hashable. A number that is no array is a constant of the graph, so that a call with another is
    captured anew: what changes at every call is better an array. Whatever else f reads stays as it
    was when the graph was captured.

    f must not wait for the GPU, copy to or from it, or multiply matrices by CuPy's own calls, which
    raise; `ddpm_core_cupy.matmul` can be captured. f is called twice: the first time compiles
    kernels and makes constants. Calls may come from any stream, but from one thread at a time;
    within another captured function it is a part of that one's graph.
    """
    known: dict[Any, Captured] = {}
    # Memory of its own, since a launch writes to it again; graphs that run in turn can share it.
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    done = cupy.cuda.Event(disable_timing=True)

    def launched(*args: Any, **kwargs: Any) -> Any:
        arrays: list[Array] = []
        key = key_of((args, kwargs), arrays)
        here = cupy.cuda.get_current_stream()
        if here.is_capturing():
            return f(*args, **kwargs)
        here.wait_event(done)  # of the call before, which may have come from another stream
        if key not in known:
            known[key] = capture(f, args, kwargs, pool, stream)
        call = known[key]
        for held, x in zip(call.inputs, arrays, strict=True):
            cupy.copyto(held, x)
        call.graph.launch()
        result = with_arrays(call.result, lambda x: x.copy())
        done.record(here)
        return result

    weakref.finalize(launched, _free, known, pool, cupy.cuda.Device())
    return launched


def capture(f: Callable[..., Any], args: Any, kwargs: Any, pool: Any, stream: Any) -> Captured:
    """The call as a graph, which has not run yet, in the memory of a pool."""
    # Outside of it: constants that this makes and f keeps must not lie where other graphs write.
    first, named = with_arrays((args, kwargs), lambda x: x.copy())
    f(*first, **named)
    inputs: list[Array] = []

    def held(x: Array) -> Array:
        inputs.append(x.copy())
        return inputs[-1]

    outside = cupy.cuda.get_current_stream()
    stream.wait_event(outside.record())  # the arguments may still be in the making
    try:
        with stream, cupy.cuda.using_allocator(pool.malloc):
            args, kwargs = with_arrays((args, kwargs), held)
            stream.begin_capture()
            try:
                result = f(*args, **kwargs)
            except BaseException:
                with suppress(cupy.cuda.runtime.CUDARuntimeError):  # invalid, it ends
                    stream.end_capture()
                raise
            return Captured(inputs, stream.end_capture(), result)
    finally:
        outside.wait_event(stream.record())


def _free(known: dict[Any, Captured], pool: Any, device: Any) -> None:
    """CuPy's pools keep their memory when they go, unless they are told."""
    known.clear()
    with device:
        pool.free_all_blocks()


def key_of(tree: Any, arrays: list[Array]) -> Any:
    """What a graph is known by: arrays by shape and dtype, the rest by type and value.

    arrays: receives the arrays in order

    TypeError if something is neither an array of CuPy nor hashable.
    """
    if isinstance(tree, cupy.ndarray):
        arrays.append(tree)
        return tree.shape, tree.dtype
    kind = cast(Any, type(tree))
    if isinstance(tree, dict):
        parts = cast(dict[Any, Any], tree).items()
        return dict, *((name, key_of(part, arrays)) for name, part in parts)
    if isinstance(tree, tuple | list):
        return kind, *(key_of(part, arrays) for part in cast(list[Any], tree))
    try:
        hash(tree)
    except TypeError:
        raise TypeError(
            f"a captured call takes arrays of CuPy and what is hashable, not "
            f"{kind.__module__}.{kind.__name__}; make it an array of CuPy before"
        ) from None
    return kind, tree


def with_arrays(tree: Any, change: Callable[[Array], Array]) -> Any:
    """The nest of tuples, lists and dicts with its arrays changed, in the order of `key_of`."""
    if isinstance(tree, cupy.ndarray):
        return change(tree)
    kind = cast(Any, type(tree))
    if isinstance(tree, dict):
        parts = cast(dict[Any, Any], tree).items()
        return {name: with_arrays(part, change) for name, part in parts}
    if isinstance(tree, tuple | list):
        changed = [with_arrays(part, change) for part in cast(list[Any], tree)]
        return kind(*changed) if hasattr(kind, "_fields") else kind(changed)
    return tree
