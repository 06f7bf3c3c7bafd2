"""guided-diffusion, of a checkout."""

from ddpm_core.testing.audits.found import Subject
from ddpm_core.testing.audits.openai import NOTES, subjects_of

__all__ = ["NOTES", "subjects"]


def subjects() -> list[Subject]:
    return subjects_of("guided_diffusion")
