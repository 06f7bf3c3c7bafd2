"""Certificates of samplers: what they draw, exactly, and how fast they converge.

`law` and `convergence` take a `Sampler`, or a foreign solver as an `Unrolled`; `law_of` takes any
affine loop.
"""

from ddpm_core.certificates.laws import Law, law, law_of
from ddpm_core.certificates.orders import Convergence, Solver, convergence

__all__ = ["Convergence", "Law", "Solver", "convergence", "law", "law_of"]
