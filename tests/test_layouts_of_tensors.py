"""Files of tensors alone: Ho et al.'s port, OpenAI's, and those that are refused."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core.checkpoints import load, openai, port, save, save_diffusers
from ddpm_core.nn import UNetConfig, parameter_shapes

torch = pytest.importorskip("torch")
from layouts import SMALL, empty, network, outputs, shapes  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def taken(checkpoint):
    found = checkpoint
    assert found.unconditional == (found.config.classes == 0)
    return found.params, found.config, found.schedule, found.size, found.timestep_scale


def test_pesser_cifar():
    """The port's names are ours, and say all of the network."""
    params, config, schedule, size, scale = taken(port.read("it", empty("pesser_cifar")))
    assert (config, size, scale) == (UNetConfig(), (32, 32), 1.0)
    assert shapes(params) == parameter_shapes(config)
    assert schedule.logsnr == ddpm.linear(1000).logsnr


def test_improved_cifar():
    """The 52.5 M network of Nichol & Dhariwal 2021, by its tensors."""
    params, config, schedule, size, scale = taken(openai.read("it", empty("improved_cifar")))
    assert shapes(params) == parameter_shapes(config)
    assert sum(int(np.prod(shape)) for shape in shapes(params).values()) == 52_546_438
    assert (config.widths, config.blocks, config.attention) == ((128, 256, 256, 256), 3, (1, 2))
    assert (config.heads, config.scale_shift, config.out_channels) == (4, True, 6)
    assert (size, scale, schedule.logsnr) == ((32, 32), 0.25, ddpm.cosine(4000).logsnr)


def test_guided_64():
    """ADM at 64x64, 296 M, of Dhariwal & Nichol 2021, by its tensors."""
    params, config, schedule, size, scale = taken(openai.read("it", empty("guided64")))
    assert shapes(params) == parameter_shapes(config)
    assert sum(int(np.prod(shape)) for shape in shapes(params).values()) == 295_904_454
    assert (config.widths, config.blocks, config.attention) == ((192, 384, 576, 768), 3, (1, 2, 3))
    assert (config.head_width, config.classes, config.residual_resampling) == (64, 1000, True)
    assert (size, scale, schedule.logsnr) == ((64, 64), 1.0, ddpm.cosine(1000).logsnr)


def openai_names(net, new_order: bool):
    """diffusers' tensors under OpenAI's names, by the places of its blocks in the two lists."""
    about, tensors = net.config, net.state_dict()
    levels, blocks = len(about.block_out_channels), about.layers_per_block
    attends = [kind.startswith("Attn") for kind in about.down_block_types]
    places = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    k, n = 1, 0
    for i in range(levels):
        for j in range(blocks):
            places[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{k}.0"
            places[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{k}.1"
            k += 1
        places[f"down_blocks.{i}.downsamplers.0"] = f"input_blocks.{k}.0"
        k += i < levels - 1
    for i in range(levels):
        for j in range(blocks + 1):
            places[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{n}.0"
            places[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{n}.1"
            n += 1
        last = 2 if attends[levels - 1 - i] else 1
        places[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{n - 1}.{last}"
    layers = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
        "group_norm": "norm",
        "to_out.0": "proj_out",
    }
    found = {}
    for name, tensor in tensors.items():
        place = next(p for p in places if name.startswith(f"{p}."))
        layer, _, leaf = name[len(place) + 1 :].rpartition(".")
        if "downsamplers" in name and layer == "conv":
            layer = "op"
        if layer == "to_out.0" and leaf == "weight":
            tensor = tensor[..., None]
        if layer in ("to_k", "to_v"):
            continue
        if layer == "to_q":
            parts = [tensors[name.replace("to_q", f"to_{part}")] for part in "qkv"]
            heads = 1 if new_order else len(tensor) // about.attention_head_dim
            each = len(tensor) // heads
            rows = [p[h * each : (h + 1) * each] for h in range(heads) for p in parts]
            tensor = torch.cat(rows)
            tensor, layer = (tensor[..., None] if leaf == "weight" else tensor), "qkv"
        path = [places[place], layers.get(layer, layer), leaf]
        found[".".join(part for part in path if part)] = tensor
    return found


OPENAI = {
    "norm_num_groups": 32,
    "attn_norm_num_groups": 32,
    "layers_per_block": 2,
    "sample_size": 32,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
}


@pytest.mark.slow
def test_improved_diffusion(tmp_path):
    """Its layout with heads in the old order, from a .pt file, is diffusers' network."""
    about = {
        **OPENAI,
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 16,  # of 64 in 4 heads
    }
    net = network(about)
    torch.save(openai_names(net, new_order=False), tmp_path / "ema_0.9999_500000.pt")
    checkpoint = load(tmp_path / "ema_0.9999_500000.pt")
    found, wanted = outputs(net, checkpoint, "numpy")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert (checkpoint.size, checkpoint.schedule.T) == ((32, 32), 4000)
    assert checkpoint.timestep_scale == 0.25
    assert checkpoint.predictor(ddpm.backend("numpy").network).variance


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 192])
def test_guided_diffusion(tmp_path, width):
    """Resampling by residual blocks, classes, heads of 64; the new order at 192 channels alone."""
    kinds = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    about = {
        **OPENAI,
        "layers_per_block": 1,
        "block_out_channels": [width, 2 * width],
        "down_block_types": [kinds[0], "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", kinds[1]],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": 64,
        "num_class_embeds": 5,
        "sample_size": 16,
    }
    net = network(about)
    torch.save(openai_names(net, new_order=width == 192), tmp_path / "model.pt")
    checkpoint = load(tmp_path / "model.pt")
    assert checkpoint.size == (64, 64)
    small = ddpm.Checkpoint(checkpoint.params, checkpoint.config, checkpoint.schedule, (16, 16))
    found, wanted = outputs(net, small, "torch")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_rescaled_timesteps():
    """A network of T = 4000 is told time 4000 as 999.75 (improved-diffusion, rescale_timesteps)."""
    told = []

    class Told:
        def network(self, params, config):
            return lambda x, timestep, y: told.append(float(timestep[0])) or x

    checkpoint = ddpm.Checkpoint({}, UNetConfig(), ddpm.cosine(4000), (4, 4), timestep_scale=0.25)
    checkpoint.predictor(Told().network)(np.zeros((1, 3, 4, 4)), checkpoint.schedule(4000.0))
    assert told == [999.75]


def test_pesser(tmp_path):
    """A .ckpt of DDIM's training, its averaged weights, through ours and diffusers and back."""
    config = UNetConfig(widths=(32, 64), attention=(1,), blocks=1)
    rng = np.random.default_rng(0)
    params = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }
    average = {f"module.{name}": torch.from_numpy(p) for name, p in params.items()}
    states = [{name: 0 * p for name, p in average.items()}, {"lr": 1.0}, 3, 100, average]
    torch.save(states, tmp_path / "ckpt.ckpt")
    checkpoint = load(tmp_path / "ckpt.ckpt")
    assert (checkpoint.config, checkpoint.size) == (config, (32, 32))
    save(tmp_path / "ours.safetensors", checkpoint)
    save_diffusers(tmp_path / "folder", load(tmp_path / "ours.safetensors"))
    again = load(tmp_path / "folder")
    for name, p in params.items():
        np.testing.assert_array_equal(again.params[name], p)
    levels, found = (c.schedule(np.arange(1001.0)) for c in (checkpoint, again))
    np.testing.assert_allclose(found.logsnr[1:], levels.logsnr[1:], rtol=1e-10)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_refused_files(tmp_path, capsys):
    """Pickles that run code, other libraries' networks, and what is no network."""
    path = tmp_path / "model.pt"
    torch.save({"a": Evil()}, path)
    with pytest.raises(ValueError, match="is no file of tensors"):
        load(path)
    assert capsys.readouterr().out == ""
    for content, message in [
        ({"step": 1, "model": {"model.init_conv.weight": torch.ones(1)}}, "another: 7x7 first"),
        (
            {"fc.weight": torch.ones(1)},
            "nor in a layout that is known, .* such as fc.weight",
        ),
        ({"input_blocks.0.0.weight": torch.ones(1, 1)}, "OpenAI has .* which is missing"),
        ({"temb.dense.0.weight": torch.ones(1, 1)}, "Ho et al. 2020 has .*missing"),
        ({"step": 3}, "holds no tensors"),
        ([], "holds no tensors"),
        (network(SMALL).state_dict(), "of diffusers: load its folder"),
    ]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load(path)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="is no file of tensors"):
        load(path)
