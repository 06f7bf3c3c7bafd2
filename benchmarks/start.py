"""What an installation weighs, how long it takes to import, and to make its first picture.

    python benchmarks/start.py [--torch torch] [--rounds N] [--json FILE]

Fresh environments with and without torch; in each the bundled model makes one image in one step,
process start and imports included, all in turn within a round. The import is that of `ddpm_core`
above that of NumPy, in processor time of fresh processes, the least of all rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = {  # by name: the extras, and the backend that samples there
    "numpy": ("cli", "numpy"),
    "numpy and torch": ("cli,torch", "torch"),
}


def install(where, extras, torch):
    """A fresh environment; returns its site-packages, without what only installs packages."""
    subprocess.run([sys.executable, "-m", "venv", where], check=True)
    pip = [where / "bin" / "pip", "install", "--quiet"]
    if "torch" in extras:
        subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, f"{PROJECT}[{extras}]"], check=True)
    subprocess.run([where / "bin" / "pip", "uninstall", "--quiet", "-y", "pip"], check=True)
    return next((where / "lib").glob("python*/site-packages"))


def processor_seconds(python, code):
    """What a fresh process spends on a line of Python."""
    code = f"{code}; import time; print(time.process_time())"
    return float(subprocess.run([python, "-c", code], check=True, capture_output=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default="torch", help="what pip installs for it")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes, times = {}, {name: [] for name in ENVIRONMENTS}
    imports = {"numpy": [], "ddpm_core": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, (extras, _) in ENVIRONMENTS.items():
            packages = install(Path(folder) / name.replace(" ", "-"), extras, options.torch)
            files = [file for file in packages.rglob("*") if file.is_file()]
            sizes[name] = sum(file.stat().st_size for file in files) / 2**20
        for k in range(options.rounds + 1):
            for name, (_, backend) in ENVIRONMENTS.items():
                command = Path(folder) / name.replace(" ", "-") / "bin" / "ddpm-core"
                arguments = ["sample", "--grid", "1x1", "--steps", "1", "--backend"]
                start = time.perf_counter()
                subprocess.run(
                    [command, *arguments, backend, "--out", Path(folder) / "one.png"],
                    check=True,
                    capture_output=True,
                )
                if k:  # the first reads the files from the disk
                    times[name].append(time.perf_counter() - start)
            for module, seconds in imports.items():
                seconds.append(processor_seconds(command.with_name("python"), f"import {module}"))
    numpy, ours = (min(seconds) for seconds in imports.values())
    print(f"import ddpm_core  {ours - numpy:.3f} s above NumPy's {numpy:.3f} s")
    results = {"import": {"numpy": numpy, "ddpm_core": ours}}
    for name, seconds in times.items():
        low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
        print(f"{name:16} {sizes[name]:6.0f} MiB   {middle:.2f} s [{low:.2f}, {high:.2f}]")
        results[name] = {"MiB": sizes[name], "seconds": [low, middle, high]}
    if options.json is not None:
        environment = {"machine": platform.machine(), "python": platform.python_version()}
        options.json.write_text(json.dumps({"environment": environment, "results": results}))


if __name__ == "__main__":
    main()
