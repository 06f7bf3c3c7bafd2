"""Files of ONNX of ours: the weights and the metadata in them. Their graphs are not looked at."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_core.checkpoints import own
from ddpm_core.checkpoints.fields import cut
from ddpm_core.checkpoints.files import open_regular
from ddpm_core.typing import Array

SUFFIX = ".onnx"
SCALE = ".scale"  #: ends the name of what weights in int8 are multiplied by, for each row
_DTYPES = {1: "<f4", 3: "i1", 10: "<f2"}  # TensorProto.FLOAT, INT8, FLOAT16


def read(path: Path) -> own.Checkpoint:
    """The checkpoint in a file of `ddpm_core_onnx.export_network` or `export_sampler`.

    Memory is bounded by the size of the file, and no other file is read.
    """
    with open_regular(path) as file:
        data = file.read()
    try:
        library: Any = importlib.import_module("onnx")
    except ModuleNotFoundError:
        raise ImportError(f"{path} needs onnx to be read: pip install 'ddpm-core[onnx]'") from None
    try:
        model = library.load_model_from_string(data)
    except Exception as error:  # of protobuf
        raise ValueError(f"{path} is not a file of ONNX, or is truncated ({cut(error)})") from None
    about = {entry.key: entry.value for entry in model.metadata_props}
    if own.KEY not in about:
        raise ValueError(
            f"{path} was not written by ddpm-core export: its metadata has no {own.KEY!r}"
        )
    stored: dict[str, Array] = {}
    for each in model.graph.initializer:
        what = f"{path}: {cut(each.name)}"
        if not isinstance(each.name, str) or each.name in stored:  # bytes, if they are no UTF-8
            raise ValueError(f"{what} is there twice, or is no name")
        if each.data_type not in _DTYPES or not each.HasField("raw_data"):
            raise ValueError(f"{what} has no numbers of float32, float16 or int8 in the file")
        dtype, shape = np.dtype(_DTYPES[each.data_type]), tuple(each.dims)
        whole = math.prod(shape) * dtype.itemsize == len(each.raw_data)
        if not whole or len(shape) > 4 or min(shape, default=0) < 0:
            raise ValueError(f"{what} has other numbers than its shape asks for")
        stored[each.name] = np.frombuffer(each.raw_data, dtype).reshape(shape).copy()
    tensors = {name: p for name, p in stored.items() if not name.endswith(SCALE)}
    for name, p in tensors.items():
        if p.dtype == np.int8:
            scale = stored.get(name + SCALE, np.empty(0, np.float32))
            if p.ndim < 2 or scale.shape != p.shape[:1]:
                raise ValueError(f"{path}: {cut(name)} is of int8, without a scale for each row")
            tensors[name] = p * scale.astype(np.float32).reshape(-1, *[1] * (p.ndim - 1))
    return own.read(path, tensors, about[own.KEY])
