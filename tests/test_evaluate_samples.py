"""`ddpm-core evaluate --samples`: the classifier, and the scores of samples beside real images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from command import fails, run, tiny

from ddpm_core.checkpoints import load, save
from ddpm_core.checkpoints.classifier import load_classifier
from ddpm_core.cli import app, judging
from ddpm_core.cli.datasets import read
from ddpm_core.cli.judging import compared
from ddpm_core.distances import frechet, kernel_distance, precision_recall, scores
from ddpm_core.models import bundled, classifiers

pytest_plugins = ["command_fixtures"]
FASHION = Path("/usr/share/datasets/fashion-mnist")
SIZE = (28, 28)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, *SIZE), dtype=np.uint8)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A model with the classes of Fashion-MNIST, one with three others, and forty images."""
    folder = tmp_path_factory.mktemp("samples")
    config, labels = tiny().config, load("fashion-mnist").labels
    config = type(config)(**vars(config) | {"classes": 10})
    save(folder / "clothes.safetensors", tiny(config=config, labels=labels, size=SIZE))
    save(folder / "other.safetensors", tiny(size=SIZE))
    save(folder / "small.safetensors", tiny())
    np.savez(folder / "data.npz", images=noise(40)[:, 0], classes=np.arange(40) % 10)
    np.savez(folder / "bare.npz", images=noise(40)[:, 0])
    np.savez(folder / "small.npz", images=noise(40)[:, 0, :4, :6])
    return folder


def numbers(place: Path, capsys, *words: object) -> dict:
    """The part of the JSON about samples, whose values the table shows too."""
    path = place / "out.json"
    path.unlink(missing_ok=True)
    capsys.readouterr()
    run("evaluate", "--json", path, *words)
    found, shown = json.loads(path.read_text()), capsys.readouterr().out
    for name in ("drawn", "other"):
        for value in found["samples"].get(name, {}).values():
            assert f"{value['value']:.4g}" in shown
            assert f"{value['error']:.2g}" in shown
    return found


def test_scores_are_the_distances():
    """Each field is its function's, of what a callable makes of the sets; the order matters."""
    rng = np.random.default_rng(0)
    real, drawn = rng.standard_normal((30, 2)), 2 * rng.standard_normal((20, 2))
    found = scores(real.astype(str), drawn.astype(str), lambda x: x.astype(float))
    shares = precision_recall(real, drawn)
    assert shares.precision != shares.recall
    assert found == (frechet(real, drawn), kernel_distance(real, drawn), *shares)


def test_equal_sets_are_at_no_distance():
    """A copy has distance 0 and shares of 1, and more than that none can reach."""
    x = np.random.default_rng(0).standard_normal((200, 3))
    found = compared({"real": x, "drawn": x.copy()}, "x")["drawn"]
    assert found["frechet"]["value"] < 1e-12
    assert found["precision"] == found["recall"] == {"value": 1.0, "error": 0.0}
    assert found["kernel"]["value"] < 0  # it leaves out k(x, x), which is larger than most


def test_one_distribution_is_at_the_floor():
    """Samples of the data's own distribution score as other real ones do; others do not."""
    rng = np.random.default_rng(1)
    sets = {name: rng.standard_normal((500, 4)) for name in ("real", "drawn", "other")}
    found = compared(sets, "x")
    assert found["count"] == found["real"] == 500
    for key, floor in found["other"].items():
        both = np.hypot(found["drawn"][key]["error"], floor["error"])
        assert abs(found["drawn"][key]["value"] - floor["value"]) < 4 * both
    sets["drawn"] = sets["drawn"] + 0.5
    found = compared(sets, "x")
    for key in ("frechet", "kernel"):
        both = np.hypot(found["drawn"][key]["error"], found["other"][key]["error"])
        assert found["drawn"][key]["value"] > found["other"][key]["value"] + 4 * both


@pytest.mark.needs("torch")
def test_classifier_is_that_of_torch():
    """The bundled classifier in NumPy gives the features and logits of the same layers in torch."""
    import torch
    from torch import nn

    classifier, images = load_classifier(), noise(150)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    for layer, name in zip((0, 3, 7, 9), ("conv1", "conv2", "dense", "out"), strict=True):
        for key in ("weight", "bias"):
            getattr(net[layer], key).data = torch.tensor(classifier.params[f"{name}.{key}"])
    with torch.no_grad():
        features = net[:-1](torch.tensor(images / 127.5 - 1, dtype=torch.float32))
        logits = net[-1](features)
    for ours, theirs in zip(classifier.read(images), (features, logits), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(abs(theirs).max()))
    np.testing.assert_array_equal(classifier(images), classifier.read(images).features)


def test_classifier_is_small_and_no_model():
    """It takes at most 500 kB, and is not among the models that can be sampled."""
    path = classifiers()["fashion-mnist"]
    assert path.stat().st_size <= 500_000
    assert path not in bundled().values()
    assert load_classifier().labels == load("fashion-mnist").labels


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.exists(), reason="Fashion-MNIST is not installed")
def test_classifier_recognises_what_its_card_says():
    test, classifier = read(FASHION, split="t10k"), load_classifier()
    right = classifier.read(test.images).logits.argmax(axis=1) == test.classes
    card = classifiers()["fashion-mnist"].with_suffix(".md").read_text("utf-8")
    for k, label in enumerate(classifier.labels):
        assert f"| {label} | {100 * right[test.classes == k].mean():.1f} % |" in card
    assert f"| **all** | **{100 * right.mean():.2f} %** |" in card


def test_samples_are_drawn_and_judged(place, capsys, monkeypatch):
    """The features are of the model's samples, with the classes of the other real images."""
    seen = {}

    def batches(*words, **more):
        seen.update(zip(("checkpoint", "on", "solver", "ids", "y", "seed"), words, strict=False))
        yield seen["ids"], [seen["y"][:, None, None, None] / 9 * np.ones((1, 1, *SIZE)) * 2 - 1]

    monkeypatch.setattr(judging, "batches", batches)
    words = ["--model", place / "clothes.safetensors", "--data", place / "data.npz"]
    words += ["--no-bound", "--samples", 20, "--sampler", "ddim", "--sampler-steps", 3, "--seed", 4]
    found = numbers(place, capsys, *words)["samples"]
    assert (len(seen["ids"]), len(seen["solver"].rows()), seen["seed"]) == (20, 3, 4)
    data, classifier = np.load(place / "data.npz"), load_classifier()
    order = np.random.default_rng(4).permutation(40)
    real, other = order[:20], order[20:]
    np.testing.assert_array_equal(seen["y"], data["classes"][other])
    images = data["images"][:, None]
    drawn = np.rint(seen["y"] / 9 * 255).astype(np.uint8)[:, None, None, None] * np.ones(
        (1, 1, *SIZE), np.uint8
    )
    for name, x in (("drawn", drawn), ("other", images[other])):
        wanted = scores(images[real], x, classifier)
        for key, value in wanted._asdict().items():
            np.testing.assert_allclose(
                [found[name][key]["value"], found[name][key]["error"]], value, rtol=1e-6
            )
        p = (classifier.read(x).logits.argmax(1) == data["classes"][other]).mean()
        assert found[name]["recognised"] == {"value": p, "error": np.sqrt(p * (1 - p) / 20)}
    assert found["features"] == "the bundled classifier of fashion-mnist"
    assert (found["count"], found["real"], found["dimensions"]) == (20, 20, 64)


@pytest.mark.parametrize(("model", "data"), [("other", "data"), ("clothes", "bare")])
def test_only_known_classes_are_recognised(place, capsys, model, data):
    """No share of classes that the classifier, or the data, does not have; the bound stays."""
    words = ["--model", place / f"{model}.safetensors", "--data", place / f"{data}.npz"]
    words += ["--samples", 6, "--sampler-steps", 2, "--guidance", 2]
    words += ["--terms", 1, "--images", 4, "--steps", 5, "--variance", "small"]
    found = numbers(place, capsys, *words)
    assert found["images"] == 4
    assert found["bits_per_dim"]["mean"] > 0
    assert found["samples"]["guidance"] == 2
    assert ("recognised" in found["samples"]["drawn"]) == (model == "clothes")
    assert "recognised" not in found["samples"]["other"]


def test_guidance_reaches_the_samples(place, capsys):
    words = ["--model", place / "clothes.safetensors", "--data", place / "data.npz"]
    words += ["--no-bound", "--samples", 6, "--sampler-steps", 2]
    plain, guided, other = (
        numbers(place, capsys, *words, *more)["samples"]["drawn"]["frechet"]
        for more in ([], ["--guidance", 3], ["--seed", 1])
    )
    assert plain != guided != other != plain


def test_features_of_a_file(place, capsys):
    """An .npz of features is compared without a model, with or without others."""
    rng = np.random.default_rng(0)
    real, drawn, other = rng.standard_normal((3, 50, 4)).astype(np.float32)
    np.savez(place / "f.npz", real=real[:40], drawn=drawn, other=other)
    found = numbers(place, capsys, "--features", place / "f.npz")["samples"]
    assert (found["count"], found["real"], found["dimensions"]) == (50, 40, 4)
    for name, x in (("drawn", drawn), ("other", other)):
        assert found[name]["frechet"]["value"] == frechet(real[:40], x).value
    np.savez(place / "f.npz", real=real, drawn=drawn)
    assert "other" not in numbers(place, capsys, "--features", place / "f.npz")["samples"]


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"real": np.ones((9, 2))}, "lacks drawn"),
        ({"real": np.ones((9, 2)), "drawn": np.ones((9, 3))}, "real has 2 and drawn has 3 feat"),
        ({"real": np.ones((9, 2)), "drawn": np.ones((3, 2))}, "drawn has 3 samples, but at least"),
        ({"real": np.ones((9, 2)), "drawn": np.full((9, 2), np.nan)}, "drawn[0] is not finite"),
        ({"real": np.ones((9, 2)), "drawn": np.full((9, 2), "a")}, "drawn must hold numbers"),
        ({"real": np.ones((9, 2)), "drawn": np.ones(9)}, "a row a sample, but holds float64 (9,)"),
        (
            {"real": np.ones((9, 2)), "drawn": np.ones((9, 2)), "other": np.ones((8, 2))},
            "other has shape (8, 2), but drawn (9, 2)",
        ),
    ],
)
def test_bad_features(place, capsys, arrays, complaint):
    np.savez(place / "bad.npz", **arrays)
    assert complaint in fails(capsys, "evaluate", "--features", place / "bad.npz")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--samples 6 --model small --data small", "(1, 4, 6): pass --train-data, to see how"),
        ("--samples 21 --model other --data data", "21 needs 42 images, as many to compare with"),
        ("--samples 3 --model other --data data", "--samples must be at least 4, but is 3"),
        ("--samples 6 --model other --data data --sampler-steps 101", "--sampler-steps must be at"),
        ("--samples 6 --model other --data data --sampler best", "no sampler 'best'"),
        ("--model other --data data --split train", "leave out --split: data.npz has no splits"),
        ("--features nowhere.npz", "nowhere.npz"),
    ],
)
def test_bad_input(place, capsys, monkeypatch, words, complaint):
    monkeypatch.chdir(place)
    for name, suffix in (("model", "safetensors"), ("data", "npz")):
        for value in ("small", "other", "data"):
            words = words.replace(f"--{name} {value}", f"--{name} {value}.{suffix}")
    assert complaint in fails(capsys, "evaluate", *words.split())


OF_SAMPLES = (
    "--train-data", "--nearest-plot", "--sampler", "--sampler-steps", "--guidance",
    "--guidance-interval", "--no-bound",
)  # fmt: skip
OF_BOUND = ("--images", "--terms", "--steps", "--variance", "--labelled", "--plot")


@pytest.mark.parametrize(
    ("words", "idle", "when"),
    [
        ("--features f.npz", None, "with --features"),
        ("--samples 8 --no-bound", OF_BOUND, "with --no-bound"),
        ("--data d.npz --samples 0", OF_SAMPLES, "without --samples"),
        ("--data d.npz", OF_SAMPLES, "without --samples"),
    ],
)
def test_options_that_do_nothing(here, capsys, words, idle, when):
    """They are refused before anything is read; beside features that is every one but --json."""
    known = {
        option: [] if getattr(each, "is_flag", False) else ["1"] * each.nargs
        for each in typer.main.get_command(app.app).commands["evaluate"].params
        for option in (*each.opts, *each.secondary_opts)
    }
    for option in idle or known.keys() - {"--features", "--json"}:
        said = fails(capsys, "evaluate", *words.split(), option, *known[option])
        assert said == f"ddpm-core: {option} does nothing {when}\n"
    two = (idle or OF_BOUND)[:2]
    said = fails(capsys, "evaluate", *words.split(), *(w for o in two for w in (o, *known[o])))
    assert said == f"ddpm-core: {', '.join(two)} do nothing {when}\n"
