"""Networks as files of ONNX: what onnxruntime computes of them is what NumPy does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnx_files import CONFIGS, batch, checkpoint, runner

import ddpm_core as ddpm
from ddpm_core.checkpoints import Checkpoint
from ddpm_core.checkpoints.files import read_tensors
from ddpm_core_numpy import NumPy

onnx = pytest.importorskip("onnx")
pytest.importorskip("ndonnx")

from ddpm_core_onnx import export_network, graphs  # noqa: E402


def numpys(of: Checkpoint, given: dict[str, np.ndarray]) -> np.ndarray:
    return NumPy("cpu").network(dict(of.params), of.config)(*given.values())


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Within 1e-5 of the size of the output: some dozens of layers in float32."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def weights_of(file: bytes) -> dict[str, np.ndarray]:
    stored = onnx.load_from_string(file).graph.initializer
    return {each.name: onnx.numpy_helper.to_array(each) for each in stored}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_of_every_kind(name):
    """One file computes what NumPy's network does, whatever the batch."""
    of = checkpoint(name)
    run = runner(export_network(of))
    for count in (1, 3):
        given = batch(of, count)
        close(run(given), numpys(of, given))


def test_no_class_is_minus_1():
    """y = -1 is what the network says without y, and any class is not."""
    of = checkpoint()
    given = batch(of, 2) | {"y": np.int64([-1, -1])}
    bare = NumPy("cpu").network(dict(of.params), of.config)(given["x"], given["timestep"])
    close(runner(export_network(of))(given), bare)


@pytest.mark.parametrize("name", ["ho", "odd"])
def test_what_is_in_a_file(name, tmp_path):
    """Its inputs and output, its weights by name, and the metadata of a file of ours."""
    of = checkpoint(name, labels=tuple("abcde") if name == "ho" else (), notes={"of": "tests"})
    file = export_network(of)
    graph = onnx.load_from_string(file).graph
    found = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }
    real, integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    wanted = {"x": (real, ["batch", 1, 8, 12]), "timestep": (real, ["batch"])}
    wanted |= {"y": (integer, ["batch"])} if of.config.classes else {}
    assert found == wanted | {"output": (real, ["batch", 1, 8, 12])}
    stored = weights_of(file)
    assert stored.keys() == of.params.keys()
    for name, p in of.params.items():
        np.testing.assert_array_equal(stored[name], p, strict=True)
    ddpm.save(tmp_path / "a.safetensors", of)
    entries = onnx.load_from_string(file).metadata_props
    assert {e.key: e.value for e in entries} == read_tensors(tmp_path / "a.safetensors")[1]


def test_the_timestep_of_a_file_is_the_schedules():
    """A checkpoint's timestep_scale is in its graph."""
    of = checkpoint(timestep_scale=0.25)
    given = batch(of, 2)
    wanted = numpys(of, given | {"timestep": given["timestep"] * np.float32(0.25)})
    close(runner(export_network(of))(given), wanted)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_weights(dtype):
    """A file of fewer bytes computes, in float32, with the weights that it stores."""
    of = checkpoint()
    file = export_network(of, dtype)
    stored, params = weights_of(file), {}
    assert stored["mid.block_1.conv1.weight"].dtype == dtype
    for name, p in of.params.items():
        params[name] = stored[name].astype(np.float32)
        if stored[name].dtype == np.int8:
            scale = stored[f"{name}.scale"].reshape(-1, *[1] * (p.ndim - 1))
            params[name] *= scale
            assert (np.abs(params[name] - p) <= scale * (0.5 + 1e-4)).all()
        else:
            assert (np.abs(params[name] - p) <= np.abs(p) * 2**-11 + 2**-25).all()
    given = batch(of, 2)
    close(runner(file)(given), numpys(dataclasses.replace(of, params=params), given))


def test_what_is_no_file_of_onnx(monkeypatch):
    """One line says what is wrong with a dtype, a weight, or a size."""
    of = checkpoint()
    with pytest.raises(ValueError, match=r"\Adtype must be one of .*, but is 'int4'\Z"):
        export_network(of, "int4")
    large = dataclasses.replace(of, params={n: p * np.float32(1e6) for n, p in of.params.items()})
    with pytest.raises(ValueError, match=r"\Athe network in float16 has .* in temb\.dense\.0"):
        export_network(large, "float16")
    missing = dataclasses.replace(of, params=dict(list(of.params.items())[1:]))
    with pytest.raises(ValueError, match=r"1 missing: temb\.dense\.0\.weight"):
        export_network(missing)
    monkeypatch.setattr(graphs, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"\Athe weights have .* bytes, but .* 1,000 at most\Z"):
        export_network(of)
