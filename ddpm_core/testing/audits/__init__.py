"""Audits: the objects of an installed library, law by law. One module per library is its data."""

from ddpm_core.testing.audits.libraries import LIBRARIES, audit

__all__ = ["LIBRARIES", "audit"]
