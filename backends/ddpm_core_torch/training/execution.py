"""Where training runs: processes, devices and precision, by Hugging Face accelerate."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch

_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_SPREAD = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MPS"}


def accelerator(device: str, precision: str, compiled: bool) -> Any:
    """An Accelerator for one run; each process of a launcher gets the device of its own number.

    device: as torch names it, such as "cpu", "cuda" or "cuda:1"

    ValueError if the device does not have the precision.
    """
    if precision == "float16" and torch.device(device).type == "cpu":
        raise ValueError(f"precision float16 is of GPUs, but device is {device}")
    library: Any = importlib.import_module("accelerate")  # which has no types
    # It keeps its state for the whole process; another trainer in it may want another.
    alone = not torch.distributed.is_initialized()
    library.state.AcceleratorState._reset_state(reset_partial_state=alone)
    asked = {} if "LOCAL_RANK" in os.environ else {"accelerate_torch_device": device}
    try:
        with library.utils.patch_environment(**asked):
            made = library.Accelerator(
                cpu=torch.device(device).type == "cpu",
                mixed_precision=_MIXED[precision],
                dynamo_backend="inductor" if compiled else "no",
            )
    except ValueError as error:
        raise ValueError(f"precision {precision} is not possible on {device}: {error}") from None
    made.gradient_accumulation_steps = 1  # whatever a launcher's file says: the trainer counts
    if made.distributed_type.value not in _SPREAD and not made.is_fsdp2:
        raise ValueError(
            f"training is spread over processes by DDP or FSDP 2, not by {made.distributed_type}"
        )
    return made


def bfloat16_is_fast(device: str) -> bool:
    """Whether autocast to bfloat16 pays: on CUDA, and on CPUs that multiply bfloat16.

    On CPUs without such instructions (AMX or AVX-512 BF16) the float32 step was the faster one.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return kind == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)
