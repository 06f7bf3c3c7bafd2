"""Samplers as files of ONNX: the pictures are those of `ddpm-core sample`, the noise to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_files import checkpoint, runner

import ddpm_core as ddpm
from ddpm_core.cli.drawing import batches
from ddpm_core.samplers import Sampler, by_name
from ddpm_core.schedules import VP
from ddpm_core_numpy import NumPy

onnx = pytest.importorskip("onnx")
pytest.importorskip("ndonnx")

from ddpm_core_onnx import export_sampler  # noqa: E402

SEEDS = (0, 2**32 + 7, 2**64 - 1)
IDS = np.int64([0, 3, 2**31 - 1])


def given(seed: int, ids: np.ndarray = IDS, **cond: np.ndarray) -> dict[str, np.ndarray]:
    return {"seed": np.asarray(np.uint64(seed).astype(np.int64)), "ids": ids, **cond}


@pytest.mark.slow
def test_the_noise():
    """The first noise and that of a row are portable noise, to the bit."""
    of, levels = checkpoint("odd"), ddpm.linear()(np.float64([1000, 600, 200]))
    first, last = np.eye(4)[[0, 3]]
    stays = np.tile(np.eye(4)[1], (2, 1))
    read = np.tile([0.0, 1.0], (2, 1))
    for rows, step in (([first, first], 0), ([first, last], 2)):
        run = runner(export_sampler(of, Sampler("noise", levels, read, np.stack(rows), stays)))
        for seed in SEEDS:
            wanted = ddpm.portable_noise(seed)(step, (3, 1, 8, 12), IDS)
            np.testing.assert_array_equal(run(given(seed)), wanted, strict=True)


#: A kind of network, a solver, its steps, guidance, and how the network is to be read.
CASES = {
    "memory": ("ho", "dpmpp_2m", 4, None, {}),
    "noise and guidance": ("ho", "ancestral", 3, 2.0, {"predicts": "v"}),
    "corrector": ("odd", "unipc_3", 5, None, {"schedule": ddpm.cosine(100), "predicts": "v"}),
    "learned variance": ("nichol", "sde_dpmpp_2m", 3, None, {}),
    "two calls": ("ho", "edm_stochastic", 3, 1, {"schedule": VP(), "timestep_scale": 999.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_pictures(name):
    """What the command line draws on NumPy, of any seed, ids and batch."""
    kind, solver, steps, guidance, fields = CASES[name]
    of = checkpoint(kind, **fields)
    sampler = by_name(solver)(of.schedule, steps)
    run = runner(export_sampler(of, sampler, guidance))
    dealt = np.int64([2, -1, 4]) if of.config.classes else None
    for seed, ids in zip(SEEDS, (IDS, IDS[:1], IDS), strict=True):
        drawn = batches(
            of, NumPy("cpu"), sampler, ids, dealt, seed, 8, guidance=guidance, quiet=True
        )
        wanted = np.concatenate([x for _, (x,) in drawn])
        cond = {} if dealt is None else {"y": dealt[ids % 3]}
        found = run(given(seed, ids, **cond))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
        assert np.abs(found).max() <= 1
        assert 0.1 < found.std() < 0.99


@pytest.mark.slow
def test_a_file_does_not_grow_with_the_steps():
    """Twenty steps take the nodes of four, and their rows."""
    of = checkpoint("odd")
    files = [export_sampler(of, ddpm.dpmpp_2m(of.schedule, n)) for n in (4, 20)]
    graphs = [onnx.load_from_string(file).graph for file in files]
    (few, many) = (
        [node.op_type for node in graph.node]
        + [node.op_type for loop in graph.node if loop.op_type == "Loop"
           for node in loop.attribute[0].g.node]
        for graph in graphs
    )  # fmt: skip
    assert few == many
    assert many.count("Loop") == 1
    assert len(files[1]) - len(files[0]) < 16 * 16 * 4 + 100
    weights = sum(p.nbytes for p in of.params.values())
    assert [w.name for w in graphs[1].initializer] == list(of.params)
    assert len(files[1]) < weights + 2**20


def test_samplers_that_no_file_holds():
    """One line says what does not go together."""
    of, bare = checkpoint(unconditional=False), checkpoint("odd")
    for each in (of, bare):
        with pytest.raises(ValueError, match=r"\Aguidance needs a model of classes"):
            export_sampler(each, ddpm.ddim(each.schedule, 2), 2.0)
    with pytest.raises(ValueError, match=r"on the network's schedule"):
        export_sampler(bare, ddpm.ddim(ddpm.cosine(1000), 2))
    with pytest.raises(TypeError, match=r"\Asampler must be a Sampler"):
        export_sampler(bare, "ddim")
