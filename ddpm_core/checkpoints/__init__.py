"""Checkpoints: trained networks in files, ours and those of other libraries."""

from ddpm_core.checkpoints.own import Checkpoint, load, save, save_diffusers

__all__ = ["Checkpoint", "load", "save", "save_diffusers"]
