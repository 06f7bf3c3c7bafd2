"""Published checkpoints: names and shapes as they were published, outputs as of diffusers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import schedules
from ddpm_core.checkpoints import layouts, load, save, save_diffusers
from ddpm_core.cli.app import run
from ddpm_core.nn import UNetConfig, parameter_shapes

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
KEYS = Path(__file__).parent / "checkpoint-keys"


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published checkpoint."""
    lines = (KEYS / f"keys_{name}.txt").read_text().splitlines()
    pairs = (line.split(" ", 1) for line in lines if line)
    return {name: tuple(map(int, re.findall(r"\d+", shape))) for name, shape in pairs}


def empty(name: str) -> dict[str, np.ndarray]:
    """Tensors of those shapes that take no memory."""
    zero = np.zeros((), np.float32)
    return {name: np.broadcast_to(zero, shape) for name, shape in shapes_of(name).items()}


def shapes(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# Published names and shapes. --------------------------------------------------------------------

CIFAR = {
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "sample_size": 32,
}


def test_diffusers_cifar():
    """google/ddpm-cifar10-32 is the network of Ho et al. 2020: its config.json is our default."""
    config = layouts.config_of_diffusers(CIFAR)
    assert config == UNetConfig()
    found = layouts.from_diffusers(empty("diffusers_cifar"), config)
    assert shapes(found) == parameter_shapes(config)
    assert shapes(layouts.to_diffusers(found, config)) == shapes_of("diffusers_cifar")


def test_pesser_cifar():
    """The port's names are ours, and say all of the network."""
    params, config, schedule, size, scale = layouts.pesser(empty("pesser_cifar"))
    assert (config, size, scale) == (UNetConfig(), (32, 32), 1.0)
    assert shapes(params) == parameter_shapes(config)
    assert schedule.logsnr == ddpm.linear(1000).logsnr


def test_improved_cifar():
    """The 52.5 M network of Nichol & Dhariwal 2021, by its tensors."""
    params, config, schedule, size, scale = layouts.openai(empty("improved_cifar"))
    assert shapes(params) == parameter_shapes(config)
    assert sum(int(np.prod(shape)) for shape in shapes(params).values()) == 52_546_438
    assert (config.widths, config.blocks, config.attention) == ((128, 256, 256, 256), 3, (1, 2))
    assert (config.heads, config.scale_shift, config.out_channels) == (4, True, 6)
    assert (size, scale, schedule.logsnr) == ((32, 32), 0.25, ddpm.cosine(4000).logsnr)


def test_guided_64():
    """ADM at 64x64, 296 M, of Dhariwal & Nichol 2021, by its tensors."""
    params, config, schedule, size, scale = layouts.openai(empty("guided64"))
    assert shapes(params) == parameter_shapes(config)
    assert sum(int(np.prod(shape)) for shape in shapes(params).values()) == 295_904_454
    assert (config.widths, config.blocks, config.attention) == ((192, 384, 576, 768), 3, (1, 2, 3))
    assert (config.head_width, config.classes, config.residual_resampling) == (64, 1000, True)
    assert (size, scale, schedule.logsnr) == ((64, 64), 1.0, ddpm.cosine(1000).logsnr)


# Outputs. ---------------------------------------------------------------------------------------


@st.composite
def networks(draw):
    """A random UNet2DModel of the switches that both can express, and an input for it."""
    levels = draw(st.integers(1, 3))
    attends = draw(st.lists(st.booleans(), min_size=levels, max_size=levels))
    residual = draw(st.booleans())
    groups = draw(st.sampled_from([2, 4]))
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    plain = plain if residual else ("DownBlock2D", "UpBlock2D")
    way = "resnet" if residual else "conv"
    kinds = [
        ["AttnDownBlock2D" if a else plain[0] for a in attends],
        ["AttnUpBlock2D" if a else plain[1] for a in reversed(attends)],
    ]
    width = st.integers(1, 3).map(lambda k: 8 * k)
    return {
        "sample_size": 8,
        "in_channels": draw(st.integers(1, 3)),
        "out_channels": draw(st.integers(1, 4)),
        "block_out_channels": draw(st.lists(width, min_size=levels, max_size=levels)),
        "down_block_types": kinds[0],
        "up_block_types": kinds[1],
        "downsample_type": way,
        "upsample_type": way,
        "layers_per_block": draw(st.integers(1, 2)),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "attention_head_dim": draw(st.sampled_from([None, 4, 8])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "downsample_padding": draw(st.integers(0, 1)),
        "flip_sin_to_cos": draw(st.booleans()),
        "freq_shift": draw(st.integers(0, 1)),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "num_class_embeds": draw(st.sampled_from([None, 3])),
    }


def network(about, seed: int = 0):
    """diffusers' own network with weights that are far from their initial ones."""
    torch.manual_seed(seed)
    net = diffusers.UNet2DModel(**about).eval()
    for p in net.parameters():
        std = p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
        torch.nn.init.normal_(p, 0.0 if p.ndim > 1 else 0.5, std)
    return net


def outputs(net, checkpoint, backend: str):
    """What diffusers' network and ours make of the same input, on the scale of the first."""
    config = checkpoint.config
    x = torch.randn(2, config.channels, *checkpoint.size)
    t = torch.tensor([7, 903])
    y = torch.tensor([2, 0]) if config.classes else None
    on = ddpm.backend(backend)
    ours = on.network(dict(checkpoint.params), config)
    with torch.inference_mode():
        wanted = net(x, t, class_labels=y).sample.numpy()
        found = ours(
            on.asarray(x.numpy()),
            on.asarray(t.numpy(), on.xp.float32),
            None if y is None else on.asarray(y.numpy(), on.xp.int64),
        )
    scale = np.abs(wanted).max()
    return on.to_numpy(found) / scale, wanted / scale


@settings(max_examples=12)
@given(about=networks(), old=st.booleans(), torch_file=st.booleans())
def test_any_network_of_diffusers(tmp_path_factory, about, old, torch_file):
    """A folder that diffusers wrote: outputs to 1e-5, back and forth exactly, in every layout."""
    folder = tmp_path_factory.mktemp("diffusers")
    net = network(about)
    net.save_pretrained(folder, safe_serialization=not torch_file)
    diffusers.DDPMScheduler().save_pretrained(folder)
    if old:  # the attention's names until 2022
        tensors = {
            name.replace("to_q", "query")
            .replace("to_k", "key")
            .replace("to_v", "value")
            .replace("to_out.0", "proj_attn"): tensor
            for name, tensor in net.state_dict().items()
        }
        (folder / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
        torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    checkpoint = load(folder)
    for backend in ("numpy", "torch"):
        found, wanted = outputs(net, checkpoint, backend)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    again = folder / "again"
    save_diffusers(again, checkpoint)
    theirs = diffusers.UNet2DModel.from_pretrained(again).state_dict()
    assert theirs.keys() == net.state_dict().keys()
    assert all(torch.equal(theirs[name], p) for name, p in net.state_dict().items())
    assert load(again).config == checkpoint.config


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_ddpm_cifar10(backend):
    """The 35.7 M network of Ho et al. 2020, in diffusers' layout, with random weights."""
    net = network(CIFAR)
    config = layouts.config_of_diffusers(net.config)
    tensors = {name: p.numpy() for name, p in net.state_dict().items()}
    params = layouts.from_diffusers(tensors, config)
    found, wanted = outputs(net, ddpm.Checkpoint(params, config, ddpm.linear(), (32, 32)), backend)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


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


@pytest.mark.parametrize(
    ("kind", "options", "schedule"),
    [
        ("DDPMScheduler", {}, ddpm.linear()),
        ("DDIMScheduler", {"beta_schedule": "scaled_linear"}, None),
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, ddpm.cosine()),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}, schedules.beta_sigmoid()),
        ("DDPMScheduler", {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3}, None),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, None),
    ],
)
def test_schedules_of_diffusers(kind, options, schedule):
    """The ᾱ of its schedulers, in their float32; and what its network predicts."""
    for target, name in (("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")):
        scheduler = getattr(diffusers, kind)(prediction_type=target, **options)
        found = layouts.schedule_of_diffusers(scheduler.config)
        levels = found(np.arange(1.0, found.T + 1))
        np.testing.assert_allclose(levels.alpha**2, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
        assert schedule is None or found.logsnr == schedule.logsnr
        assert layouts.target_of_diffusers(scheduler.config) == name


def test_zero_terminal_snr_there_and_back():
    """β_T = 1, where no data is left at T: the same levels, to the roundings of the betas."""
    schedule = ddpm.zero_terminal_snr(ddpm.linear())
    about = layouts.schedule_to_diffusers(schedule, "v")
    assert about["trained_betas"][-1] == 1
    found = layouts.schedule_of_diffusers(about)
    assert found.logsnr[-1] == -np.inf
    np.testing.assert_allclose(found.logsnr[1:-1], schedule.logsnr[1:-1], rtol=0, atol=1e-9)


# What is refused. -------------------------------------------------------------------------------

SMALL = {
    "sample_size": 8,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "attn_norm_num_groups": 4,
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    network(SMALL).save_pretrained(path)
    diffusers.DDPMScheduler().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional', not 'four"),
        ({"act_fn": "gelu"}, "act_fn must be 'silu' or 'swish'"),
        ({"up_block_types": ["AttnUpBlock2D"]}, "attention must be the same down"),
        ({"down_block_types": ["SkipDownBlock2D"]}, "blocks must .* be of AttnDownBlock2D"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups must be norm_num_groups"),
        ({"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None}, "attn_norm"),
        ({"attention_head_dim": 3}, "3 does not divide the widths"),
        ({"sample_size": None}, "sample_size is missing"),
        ({"layers_per_block": 1}, r"unexpected: down_blocks\.0\.resnets\.1"),
        ({"layers_per_block": 3}, "missing: down.0.block.2"),
        ({"in_channels": 1}, "of a wrong shape: conv_in.weight"),
    ],
)
def test_refused_configurations(folder, change, message):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | change))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_refused_schedules(folder):
    place = folder / "scheduler_config.json"
    place.write_text('{"beta_schedule": "laplace"}')
    with pytest.raises(ValueError, match=r"beta_schedule must be one of linear.* not 'laplace'"):
        load(folder)
    place.write_text('{"prediction_type": "flow_prediction"}')
    with pytest.raises(ValueError, match=r"prediction_type must be one of .*'flow_prediction'"):
        load(folder)
    place.write_text("[]")
    with pytest.raises(ValueError, match="is not a JSON object"):
        load(folder)
    place.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load(folder)
    place.unlink()
    with pytest.raises(FileNotFoundError, match=r"no scheduler_config.json in"):
        load(folder)


def test_surplus_tensor(folder):
    """A tensor under a name that is not of the network keeps it, and is told."""
    from safetensors.numpy import load_file, save_file

    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"extra.weight": np.zeros(3, np.float32)}, file)
    with pytest.raises(ValueError, match=r"1 unexpected: extra\.weight"):
        load(folder)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is truncated"):
        load(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load(folder)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_refused_files(tmp_path, folder, capsys):
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


def test_what_diffusers_lacks(tmp_path):
    """Heads by number, continuous schedules, a scaled timestep: nothing is written."""
    config = UNetConfig(widths=(32,), attention=(), heads=2)
    make = lambda config, schedule, **more: ddpm.Checkpoint({}, config, schedule, (4, 4), **more)
    plain = UNetConfig(widths=(32,), attention=())
    for checkpoint, message in [
        (make(config, ddpm.linear()), "that is head_width=16"),
        (make(plain, ddpm.VP()), "diffusers has discrete schedules"),
        (make(plain, ddpm.linear(), timestep_scale=0.25), "timestep unscaled"),
        (make(plain, ddpm.linear(), predicts="score"), "targets eps, x0, v"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_diffusers(tmp_path / "folder", checkpoint)
        assert not (tmp_path / "folder").exists()


# The command line. ------------------------------------------------------------------------------


def test_convert_and_sample(folder, tmp_path, capsys, monkeypatch):
    """A folder samples as it is, and as the file and the folder that it is converted to."""
    monkeypatch.chdir(tmp_path)
    run(["convert", str(folder), "ours.safetensors"])
    told = capsys.readouterr().out
    assert told.startswith("Wrote ours.safetensors: 0.0 M parameters, 8x8, predicts eps, Discrete(")
    run(["convert", "ours.safetensors", "theirs"])
    pictures = []
    for model in (folder, "ours.safetensors", "theirs"):
        run(["sample", "--model", str(model), "--steps", "2", "--grid", "1x2", "--out", "x.png"])
        pictures.append((tmp_path / "x.png").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    with pytest.raises(FileExistsError, match=r"ours\.safetensors is there already"):
        run(["convert", str(folder), "ours.safetensors"])


def test_sample_without_torch(folder, tmp_path):
    """NumPy alone samples a folder of diffusers: with torch's import forbidden."""
    script = (
        "import sys; sys.modules['torch'] = None; from ddpm_core.cli import main; "
        "sys.argv[0] = 'ddpm-core'; main()"
    )
    options = ["sample", "--model", folder, "--steps", "2", "--grid", "1x1"]
    subprocess.run([sys.executable, "-c", script, *options], check=True, cwd=tmp_path)
    assert (tmp_path / "samples.png").is_file()
