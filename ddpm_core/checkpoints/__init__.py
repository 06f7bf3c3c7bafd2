"""Checkpoints: trained networks in files, ours and those of other libraries."""

from __future__ import annotations

from pathlib import Path

from ddpm_core.checkpoints import diffusers, onnx, openai, own, port
from ddpm_core.checkpoints.diffusers import save_diffusers
from ddpm_core.checkpoints.fields import cut
from ddpm_core.checkpoints.files import read_tensors
from ddpm_core.checkpoints.own import KEY, Checkpoint, checked, save
from ddpm_core.models import bundled

__all__ = ["Checkpoint", "load", "save", "save_diffusers"]


def load(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, its weights in float32.

    path: the name of a bundled model, such as "fashion-mnist"; a file of `save`; the folder of a
        run of `ddpm-core train`; a folder of diffusers, which is a pipeline with a `UNet2DModel`
        or that network's own; an .onnx file of `ddpm-core export`; or a file of tensors in the
        layout of Ho et al.'s port (pesser, DDIM) or of OpenAI's improved- and guided-diffusion.
        Files of torch (.pt, .pth, .ckpt, .bin) need torch; no code in them is run

    FileNotFoundError or OSError if it cannot be read; ValueError if it is not a checkpoint, is
    truncated, has weights that are not finite, or has other tensors than its configuration asks
    for.
    """
    models = bundled()
    path = models.get(str(path), Path(path))
    if not path.exists():
        raise FileNotFoundError(
            f"no model {str(path)!r}: neither a file, nor a folder, nor one of {', '.join(models)}"
        )
    if path.is_dir():
        return _load_folder(path)
    if path.suffix.lower() == onnx.SUFFIX:
        return onnx.read(path)
    tensors, metadata = read_tensors(path)
    if KEY in metadata:
        return own.read(path, tensors, metadata[KEY])
    if port.MARK in tensors:
        return checked(path, port.read(path, tensors))
    if openai.MARK in tensors:
        return checked(path, openai.read(path, tensors))
    if diffusers.MARK in tensors:
        raise ValueError(
            f"{path} holds a network of diffusers: load its folder, where {diffusers.CONFIG} and "
            f"{diffusers.SCHEDULER} say what it is"
        )
    if any("init_conv.weight" in name for name in tensors):
        raise ValueError(
            f"{path} is a checkpoint of denoising-diffusion-pytorch, whose network is another: "
            f"7x7 first convolution, RMS norms, linear attention with memory tokens"
        )
    if "training" in metadata:
        raise ValueError(
            f"{path} is what a run resumes from: load its folder, or model.safetensors beside it"
        )
    some = ", ".join(cut(name) for name in list(tensors)[:3])
    raise ValueError(
        f"{path} is not a checkpoint of ddpm-core, whose metadata has {KEY!r}, nor in a layout "
        f"that is known, with tensors such as {some}; known are those of Ho et al.'s port (pesser, "
        f"DDIM), of OpenAI, and folders of diffusers"
    )


def _load_folder(path: Path) -> Checkpoint:
    run = path / "model.safetensors"
    if run.is_file():
        return load(run)
    if any((place / diffusers.CONFIG).is_file() for place in (path, path / "unet")):
        return checked(path, diffusers.read(path))
    raise FileNotFoundError(
        f"no checkpoint at {path}: a run's folder has model.safetensors, one of diffusers has "
        f"{diffusers.CONFIG} or unet/{diffusers.CONFIG}"
    )
