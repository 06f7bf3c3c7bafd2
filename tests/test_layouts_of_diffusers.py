"""Folders of diffusers: outputs as diffusers has them, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import schedules
from ddpm_core.checkpoints import diffusers as layout
from ddpm_core.checkpoints import load, save_diffusers
from ddpm_core.cli.app import run
from ddpm_core.nn import UNetConfig, parameter_shapes

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from layouts import CIFAR, SMALL, empty, fields, network, outputs, shapes, shapes_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def test_diffusers_cifar():
    """google/ddpm-cifar10-32 is the network of Ho et al. 2020: its config.json is our default."""
    config = layout.config_of_diffusers(fields(CIFAR))
    assert config == UNetConfig()
    found = layout.from_diffusers(empty("diffusers_cifar"), config)
    assert shapes(found) == parameter_shapes(config)
    assert shapes(layout.to_diffusers(found, config)) == shapes_of("diffusers_cifar")


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
        "attn_norm_num_groups": draw(st.sampled_from([groups, None])),
        "attention_head_dim": draw(st.sampled_from([None, 4, 8])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "downsample_padding": draw(st.integers(0, 1)),
        "flip_sin_to_cos": draw(st.booleans()),
        "freq_shift": draw(st.integers(0, 1)),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "num_class_embeds": draw(st.sampled_from([None, 3])),
    }


@pytest.mark.slow
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
    theirs = diffusers.UNet2DModel.from_pretrained(again, subfolder="unet").state_dict()
    assert theirs.keys() == net.state_dict().keys()
    assert all(torch.equal(theirs[name], p) for name, p in net.state_dict().items())
    assert load(again).config == checkpoint.config


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_ddpm_cifar10(backend):
    """The 35.7 M network of Ho et al. 2020, in diffusers' layout, with random weights."""
    net = network(CIFAR)
    config = layout.config_of_diffusers(fields(net.config))
    tensors = {name: p.numpy() for name, p in net.state_dict().items()}
    params = layout.from_diffusers(tensors, config)
    found, wanted = outputs(net, ddpm.Checkpoint(params, config, ddpm.linear(), (32, 32)), backend)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


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
        found = layout.schedule_of_diffusers(fields(scheduler.config))
        levels = found(np.arange(1.0, found.T + 1))
        np.testing.assert_allclose(levels.alpha**2, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
        assert schedule is None or found.logsnr == schedule.logsnr
        assert layout.target_of_diffusers(fields(scheduler.config)) == name


def test_zero_terminal_snr_there_and_back():
    """β_T = 1, where no data is left at T: the same levels, to the roundings of the betas."""
    schedule = ddpm.zero_terminal_snr(ddpm.linear())
    checkpoint = ddpm.Checkpoint({}, UNetConfig(), schedule, (32, 32), "v")
    about = layout.scheduler_to_diffusers(checkpoint)
    assert about["trained_betas"][-1] == 1
    found = layout.schedule_of_diffusers(fields(about))
    assert found.logsnr[-1] == -np.inf
    np.testing.assert_allclose(found.logsnr[1:-1], schedule.logsnr[1:-1], rtol=0, atol=1e-9)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    network(SMALL).save_pretrained(path)
    diffusers.DDPMScheduler().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_embedding_type": "fourier"}, 'time_embedding_type must be "positional", not \'fo'),
        ({"act_fn": "gelu"}, 'act_fn must be one of "silu", "swish", not'),
        ({"up_block_types": ["AttnUpBlock2D"]}, "attention must be at the same resolutions down"),
        ({"block_out_channels": [8, 8]}, "must be of one length, but have 1, 1 and 2 entries"),
        ({"down_block_types": ["SkipDownBlock2D"]}, "blocks must .* be of AttnDownBlock2D"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups must be null or norm_num_groups = 4,"),
        ({"attention_head_dim": 3}, "3 does not divide the widths"),
        ({"sample_size": None}, "sample_size must be an integer from 1 to 16384, not None"),
        ({"sample_size": "x"}, "sample_size must be an integer from 1 to 16384, not 'x'"),
        ({"sample_size": 8.0}, "sample_size must be an integer from 1 to 16384, not 8.0"),
        ({"sample_size": ["8", "8"]}, "sample_size must be an integer from 1 to 16384, not '8'"),
        ({"sample_size": [8]}, r"sample_size must be a list of 2 integers, not \[8\]"),
        ({"sample_size": 10**9}, "sample_size must be an integer from 1 to 16384"),
        ({"layers_per_block": 10**6}, "blocks must be at most 100, but is 1000000"),
        ({"layers_per_block": True}, "blocks must be an integer, but is True"),
        ({"block_out_channels": [8.0]}, r"widths must be integers, but is \(8.0,\)"),
        ({"block_out_channels": [10**400]}, "widths must be multiples of groups = 4, at most"),
        ({"block_out_channels": 8}, "block_out_channels must be a list, not 8"),
        ({"down_block_types": [["x"]]}, "down_block_types must be a list of texts"),
        ({"norm_eps": 10**400}, "norm_eps must be a number, not 1000"),
        ({"norm_eps": float("nan")}, "norm_eps must be a finite number, not nan"),
        ({"num_class_embeds": "3"}, "num_class_embeds must be an integer from 1"),
        ({"attention_head_dim": 0}, "attention_head_dim must be an integer from 1"),
        ({"freq_shift": False}, "freq_shift must be one of 0, 1, not False"),
        ({"layers_per_block": 1}, r"unexpected: down_blocks\.0\.resnets\.1"),
        ({"layers_per_block": 3}, r"missing: down_blocks\.0\.resnets\.2"),
        ({"in_channels": 1}, "of a wrong shape: conv_in.weight"),
    ],
)
def test_refused_configurations(folder, change, message):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | change))
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"beta_schedule": "laplace"}',
            r"beta_schedule must be one of \"linear\".* not 'laplace'",
        ),
        ('{"prediction_type": "flow_prediction"}', "prediction_type must be one of .*'flow_pred"),
        (
            '{"num_train_timesteps": 100000000}',
            "must be an integer from 1 to 100000, not 100000000",
        ),
        ('{"num_train_timesteps": 1e3}', "num_train_timesteps must be an integer .* not 1000.0"),
        ('{"num_train_timesteps": 0}', "num_train_timesteps must be an integer from 1"),
        ('{"beta_end": "0.02"}', "beta_end must be a number, not '0.02'"),
        ('{"beta_end": 1e400}', "beta_end must be a finite number, not inf"),
        ('{"beta_start": 0.5}', "0 < beta_1 <= beta_T < 1"),
        (f'{{"trained_betas": [0.1, 1{"0" * 400}]}}', "trained_betas must be a number, not 1000"),
        ('{"trained_betas": 0.1}', "trained_betas must be a list, not 0.1"),
        ('{"trained_betas": []}', "betas must be T >= 1 numbers"),
        ('{"trained_betas": [0.1, NaN]}', r"betas must lie in \(0, 1\), but betas\[1\] = nan"),
        ('{"rescale_betas_zero_snr": 1}', "rescale_betas_zero_snr must be true or false, not 1"),
        ("[]", "is not a JSON object"),
        (f'{{"beta_end": 1{"0" * 5000}}}', "is not JSON: Exceeds the limit"),
        ("{", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[" * 10**5, "is nested too deeply"),
        (" " * (2**24 + 1), "has more than 16777216 bytes of JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused_schedules(folder, text, message):
    """What no scheduler of ours is, and what is no JSON, in a message that names the file."""
    (folder / "scheduler_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"scheduler_config.json.*{message}"):
        load(folder)


def test_places_of_the_scheduler(tmp_path, folder):
    """In the network's folder, or beside it as in a pipeline, which may be given as unet/ too."""
    pipeline = tmp_path / "pipeline"
    save_diffusers(pipeline, load(folder))
    wanted = load(folder)
    for place in (pipeline, pipeline / "unet"):
        found = load(place)
        assert found.config == wanted.config
        np.testing.assert_allclose(found.schedule.logsnr, wanted.schedule.logsnr, rtol=1e-10)
    (pipeline / "scheduler" / "scheduler_config.json").unlink()
    for place in (pipeline, pipeline / "unet"):
        with pytest.raises(
            FileNotFoundError, match=r"no scheduler_config.json in .*unet, nor in a"
        ):
            load(place)


def test_without_a_class(folder):
    """Which class of a network of diffusers is "no class", if any, is not in its files."""
    assert load(folder).unconditional
    network(SMALL | {"num_class_embeds": 3}).save_pretrained(folder)
    assert not load(folder).unconditional


@pytest.mark.parametrize("channels", [3, 6])
def test_pipeline(tmp_path, folder, channels):
    """DDPMPipeline takes a written folder, and its picture is that of our `ancestral`.

    Of the variance that the network learns (6 channels out), its shape alone is looked at.
    """
    net = network(SMALL | {"out_channels": channels})
    net.save_pretrained(folder)
    save_diffusers(tmp_path / "p", load(folder))
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "p")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe.unet.state_dict()
    assert all(torch.equal(theirs[name], p) for name, p in net.state_dict().items())
    wanted = diffusers.DDPMScheduler().alphas_cumprod
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod, wanted, rtol=1e-5, atol=0)
    images = pipe(num_inference_steps=3, output_type="np").images
    assert images.shape == (1, 8, 8, 3)


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
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model\.safetensors"):
        load(folder)


def test_what_diffusers_lacks(tmp_path):
    """Heads by number, continuous schedules, a scaled timestep: nothing is written."""
    config = UNetConfig(widths=(32,), attention=(), heads=2)
    make = lambda config, schedule, **more: ddpm.Checkpoint({}, config, schedule, (4, 4), **more)
    plain = UNetConfig(widths=(32,), attention=())
    bare = UNetConfig(widths=(32,), attention=(), middle_norm=False)
    for checkpoint, message in [
        (make(config, ddpm.linear()), "that is head_width=16"),
        (make(bare, ddpm.linear()), "lacks the middle norm only where it has scale_shift"),
        (make(plain, ddpm.VP()), "diffusers has discrete schedules"),
        (make(plain, ddpm.linear(), timestep_scale=0.25), "multiplied by 0.25"),
        (make(plain, ddpm.linear(), predicts="score"), "targets eps, x0, v"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_diffusers(tmp_path / "folder", checkpoint)
        assert not (tmp_path / "folder").exists()


def test_convert_and_sample(folder, tmp_path, capsys, monkeypatch):
    """A folder samples as it is, and as the file and the folder that it is converted to."""
    monkeypatch.chdir(tmp_path)
    run(["convert", str(folder), "ours.safetensors"])
    told = capsys.readouterr().out
    assert told.startswith("Wrote ours.safetensors: ")
    assert " parameters, 8x8, predicts eps, Discrete(" in told
    run(["convert", "ours.safetensors", "theirs"])
    for target in ("y.pt", "y.safetensor", "y.ckpt"):
        with pytest.raises(ValueError, match=rf"{target} must end in .safetensors, or be a folder"):
            run(["convert", "ours.safetensors", target])
        assert not (tmp_path / target).exists()
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder none to write y\.safetensors in"
    ):
        run(["convert", "ours.safetensors", "none/y.safetensors"])
    pictures = []
    for model in (folder, "ours.safetensors", "theirs"):
        run(["sample", "--model", str(model), "--steps", "2", "--grid", "1x2", "--out", "x.png"])
        pictures.append((tmp_path / "x.png").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    with pytest.raises(FileExistsError, match=r"ours\.safetensors is there already"):
        run(["convert", str(folder), "ours.safetensors"])
    run(["convert", "fashion-mnist", "clothes-v1.5"])
    assert load(tmp_path / "clothes-v1.5").size == (28, 28)


@pytest.mark.slow
def test_sample_without_torch(folder, tmp_path):
    """NumPy alone samples a folder of diffusers: with torch's import forbidden."""
    script = (
        "import sys; sys.modules['torch'] = None; from ddpm_core.cli import main; "
        "sys.argv[0] = 'ddpm-core'; main()"
    )
    options = ["sample", "--model", folder, "--steps", "2", "--grid", "1x1"]
    subprocess.run([sys.executable, "-c", script, *options], check=True, cwd=tmp_path)
    assert (tmp_path / "samples.png").is_file()
