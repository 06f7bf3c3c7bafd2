"""What an installation needs, and that what docs/deployment.md tells to do works."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Only these packages can be imported, and nothing can be reached.
ALONE = """
import sys
sys.path[:] = [path for path in sys.path if path]
class Alone:
    def find_spec(name, path=None, target=None):
        first = name.partition(".")[0]
        ours = first in {allowed!r} or first in sys.stdlib_module_names
        if not (ours or first.startswith("_")):  # such as the standard library's own _sysconfigdata
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"{{event}} of {{args}}")
sys.meta_path.insert(0, Alone)
sys.addaudithook(refuse)
"""
NUMPY = ("ddpm_core", "ddpm_core_numpy", "numpy", "array_api_compat")
SAMPLE = """
import numpy as np, ddpm_core as ddpm
from ddpm_core.models import bundled
on, model = ddpm.backend("numpy"), ddpm.load(bundled()["fashion-mnist"])
x = on.portable_noise(0)(0, (1, 1, *model.size))
x = ddpm.sample(model.predictor(on.network), ddpm.ddim(model.schedule, 1), x, y=np.array([7]))
print(x.shape)
"""


def python(code: str, *allowed: str) -> subprocess.CompletedProcess[str]:
    """Runs code where only some packages can be imported."""
    words = [sys.executable, "-c", ALONE.format(allowed=allowed) + code]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.slow
def test_python_needs_numpy_and_safetensors():
    """A model is loaded and sampled from without the command line's packages or a network."""
    ran = python(SAMPLE, *NUMPY, "safetensors")
    assert (ran.stdout, ran.stderr) == ("(1, 1, 28, 28)\n", "")
    assert (
        "ImportError: checkpoints need safetensors: pip install safetensors"
        in python(SAMPLE, *NUMPY).stderr
    )
