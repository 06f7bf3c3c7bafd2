"""The checks of denoisers, parameterisations, kernels, noise and networks.

Right ones pass, and each wrong one breaks the law that is for it, and no other that it obeys.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from functools import partial

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import parameterisations, testing
from ddpm_core.arrays import fit
from ddpm_core.gaussians import Gaussian
from ddpm_core.kernels import optimal
from ddpm_core.levels import tau
from ddpm_core.nn import UNetConfig
from ddpm_core.process import q_posterior, small
from ddpm_core.schedules import EDM
from ddpm_core.testing import (
    Finding,
    Report,
    check_denoiser,
    check_kernel,
    check_network,
    check_noise,
    check_parameterisation,
    examine_denoiser,
    examine_kernel,
    examine_network,
    examine_noise,
    examine_parameterisation,
)
from ddpm_core.testing.backend_checks import random_params
from ddpm_core.testing.cases import Sides, compared, tried
from ddpm_core.testing.report import raising

LINEAR = ddpm.linear()
SCHEDULES = [LINEAR, ddpm.cosine(1000), ddpm.VP(), ddpm.zero_terminal_snr(LINEAR)]
NORMAL = ddpm.GaussianOracle([0.3, -0.2], [0.25, 0.04])
WIDE = ddpm.GaussianOracle([0.3, -0.2], 4.0)
MIXTURE = ddpm.MixtureOracle([0.3, 0.7], [[-1.0], [0.5]], [0.09, 0.16])
POINTS = ddpm.DatasetOracle(np.eye(3))


def broken(report):
    return [finding.law for finding in report.broken]


# Denoisers


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("oracle", [NORMAL, WIDE, MIXTURE, POINTS])
def test_oracles_pass(oracle, schedule):
    """Each beside itself, and read back from a network that predicts v."""
    check_denoiser(oracle, oracle, schedule)
    if not hasattr(schedule, "T"):
        return  # whose times are rounded to float32 for a network

    def network(x, time):
        t = schedule(time.astype(np.float64) + 1)
        x_0 = oracle(x, t)
        return (fit(t.alpha, x) * x - x_0) / fit(t.sigma, x)

    check_denoiser(ddpm.Predictor(network, schedule, ddpm.v), oracle, schedule)


def test_denoisers_of_other_libraries():
    """In float32 of torch, with the precision of that."""
    torch = pytest.importorskip("torch")
    kw = {"asarray": partial(torch.tensor, dtype=torch.float32), "to_numpy": np.asarray}
    check_denoiser(NORMAL, NORMAL, **kw)
    off = lambda x, t: NORMAL(x, t) * (1 + 1e-3)
    assert broken(examine_denoiser(off, NORMAL, **kw)) == ["x_0 is E[x_0 | x_t]"]


def remembering(denoise):
    """A denoiser that adds a little of what it said before."""
    said = []

    def call(x, t):
        said.append(denoise(x, t))
        return said[-1] + 1e-6 * len(said)

    return call


def writing(x, t):
    found = NORMAL(x, t)
    x *= 1 + 1e-9
    return found


EXACT = "x_0 is E[x_0 | x_t]"
LIMIT = "at little noise x_0 is x_t / alpha, within 8 sigma / alpha"
ALONE = "a sample does not depend on those beside it"
MIXED = "levels (B,) are those of each sample"
PURE = "a pure function: twice the same, and x_t is not changed"
FORM = "x_0 has the shape and the dtype of x_t"


@pytest.mark.parametrize(
    ("denoise", "laws"),
    [
        (lambda x, t: WIDE(x, t), [EXACT]),
        (lambda x, t: 0.5 * x, [EXACT, LIMIT]),
        (lambda x, t: NORMAL(x, t) + 1e-6 * x.mean(), [EXACT, ALONE, MIXED]),
        (lambda x, t: NORMAL(x, t.map(lambda a: np.ravel(a)[0])), [MIXED]),
        (remembering(NORMAL), [EXACT, ALONE, MIXED, PURE]),
        (writing, [PURE]),
        (lambda x, t: NORMAL(x, t).astype(np.float32), [FORM, EXACT]),
        (
            lambda x, t: np.where(np.abs(x) > 50, np.nan, NORMAL(x, t)),
            ["x_0 is finite, for x_t of any size"],
        ),
    ],
    ids=["wide", "half", "batch", "first level", "memory", "writes", "float32", "far"],
)
def test_wrong_denoisers(denoise, laws):
    """Each is named by what is wrong with it."""
    found = broken(examine_denoiser(denoise, NORMAL))
    assert [law for law in found if law in laws] == laws
    assert set(found) - set(laws) <= {ALONE, MIXED, PURE}


def test_data_of_a_denoiser_without_means():
    """x_0 says what x_t is made of."""
    plain = lambda x, t: NORMAL(x, t)
    with pytest.raises(TypeError, match="pass x_0, samples of the data"):
        check_denoiser(plain, plain)
    check_denoiser(plain, plain, x_0=np.zeros((2, 2)))


# Parameterisations


@pytest.mark.parametrize("name", ["x0", "v", "flow", "eps", "score", "edm", "mu"])
def test_parameterisations_pass(name):
    """On every schedule on which they can be read."""
    for schedule in (*SCHEDULES, EDM()):
        predicts = getattr(parameterisations, name)
        if name == "mu":
            if not hasattr(schedule, "T"):
                continue
            predicts = predicts(schedule)
        predicts = predicts() if name == "edm" else predicts
        report = examine_parameterisation(predicts, schedule)
        if name in ("eps", "score") and schedule is SCHEDULES[-1]:
            assert "determine x_0" in report.broken[0].law
        else:
            assert not report.broken, report


def test_growth_is_noted():
    """Of eps at T its errors grow by sigma / alpha: 157 times (Ho et al. 2020's schedule)."""
    t = LINEAR(1000)
    notes = [f.note for f in check_parameterisation(ddpm.eps).findings]
    assert any(f"up to {t.sigma / t.alpha:.3g} times, at time 1000" in note for note in notes)


def on_floats(t):
    return -math.sqrt(1 - t.alpha * t.alpha), t.alpha


DIGITS = "a and b keep their digits near both ends"


@pytest.mark.parametrize(
    ("predicts", "laws"),
    [
        (lambda t: (t.alpha, t.sigma), ["the target and x_t determine x_0", "comes back"]),
        (lambda t: (-np.sqrt(1 - t.alpha**2), t.alpha), [DIGITS]),
        (on_floats, ["at an array of levels"]),
        (lambda t: (0.0, 1 / (t.sigma - LINEAR(1).sigma)), ["are finite"]),
    ],
    ids=["x_t", "cancels", "floats", "pole"],
)
def test_wrong_parameterisations(predicts, laws):
    """A multiple of x_t, a difference that cancels, one of floats alone, and a pole."""
    found = broken(examine_parameterisation(predicts))
    for law in laws:
        assert any(law in each for each in found), found


# Kernels


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_kernels_pass(schedule):
    """Fixed, best and exact variances; what is above β is noted, not judged."""
    error = lambda t: float(NORMAL.error(t).mean())
    for kernel, oracle in (
        (ddpm.reverse(NORMAL), NORMAL),
        (ddpm.reverse(NORMAL, ddpm.large), NORMAL),
        (ddpm.reverse(NORMAL, optimal(error)), NORMAL),
        (NORMAL.reverse, NORMAL),
        (ddpm.reverse(MIXTURE, ddpm.large), MIXTURE),
        (ddpm.reverse(POINTS), POINTS),
    ):
        report = check_kernel(kernel, oracle, schedule)
        assert not any("above β" in finding.note for finding in report.findings)
    report = check_kernel(WIDE.reverse, WIDE, schedule)
    assert any("above β" in finding.note for finding in report.findings)


def kernel_of(change):
    """The right kernel of NORMAL but for a change of its mean and variance, and of its levels."""

    def kernel(x_t, t, s):
        mean, var = ddpm.reverse(NORMAL, ddpm.large)(x_t, t, s)
        return Gaussian(*change(mean, var, s))

    return kernel


MEAN = "the mean is that of q(x_s | x_t, x_0) at the denoiser's x_0"
LEAST = "the variance is at least β̃, that of known data"
MOST = "the variance is at most what any data need"
FINITE = "KL(q(x_s | x_t, x_0) ‖ p) is finite and not negative"
LANDS = "on clean data it lands on the denoiser's x_0"
STEP = "a step takes the mean of q(x_t) to that of q(x_s)"
TENDS = "of Gaussian data the variance drawn tends to the data's as the steps grow"


@pytest.mark.parametrize(
    ("change", "laws"),
    [
        (lambda mean, var, s: (mean * 1.01, var), [MEAN, LANDS, STEP]),
        (lambda mean, var, s: (mean, -var), [LEAST, FINITE]),
        (lambda mean, var, s: (mean, np.log(var) if s.sigma else var), [LEAST, FINITE]),
        (lambda mean, var, s: (mean, 0.9 * var**1.1), [LEAST]),
        (lambda mean, var, s: (mean, math.sqrt(var)), [MOST, TENDS]),
        (lambda mean, var, s: (mean, math.nan), [LEAST, MOST, FINITE, LANDS]),
    ],
    ids=["mean", "negative", "logarithm", "small", "standard deviation", "nan"],
)
def test_wrong_kernels(change, laws):
    """Each is named by what is wrong with it."""
    found = broken(examine_kernel(kernel_of(change), NORMAL))
    assert [law for law in found if law in laws] == laws


def test_an_exact_variance_between_two_modes():
    """Of two points it is above the mean that any data need, at an x_t between them."""
    oracle = ddpm.DatasetOracle([[-1.0], [1.0]])

    def kernel(x_t, t, s):
        x_0 = oracle(x_t, t)
        error = (s.alpha * tau(t, s)) ** 2 * (1 - x_0**2)  # of x_0 = -1 or 1
        mean = q_posterior(x_0, x_t, t, s).mean
        return Gaussian(mean, small(t, s) + error if s.sigma else 0.0)

    check_kernel(kernel, oracle, x_0=[[1.0], [-1.0], [1.0], [-1.0]])


@pytest.mark.parametrize("variance", [ddpm.small, ddpm.large])
def test_kernels_in_float32(variance):
    """With the precision of that, also along a whole walk; a thousandth off is not right."""
    kw = {"asarray": partial(np.asarray, dtype=np.float32)}
    check_kernel(ddpm.reverse(NORMAL, variance), NORMAL, **kw)
    check_kernel(NORMAL.reverse, NORMAL, **kw)
    off = lambda x, t: NORMAL(x, t) * (1 + 1e-3)
    found = broken(examine_kernel(ddpm.reverse(off, variance), NORMAL, **kw))
    assert "a step takes the mean of q(x_t) to that of q(x_s)" in found


@pytest.mark.parametrize(("variance", "verdict"), [(1e-4, "does not apply"), (1e-3, "holds")])
def test_kernels_of_narrow_data(variance, verdict):
    """What is drawn of data that vary less than the noise at time 4 says nothing of its limit."""
    t = LINEAR(4)
    assert 1e-4 < (t.sigma / t.alpha) ** 2 < 1e-3
    data = ddpm.GaussianOracle([0.5], variance)
    (tends,) = (
        finding
        for finding in check_kernel(ddpm.reverse(data), data).findings
        if finding.law.startswith("of Gaussian data the variance drawn tends")
    )
    assert tends.verdict == verdict


def test_kernels_of_other_libraries():
    """Of torch, whose arrays with gradients NumPy does not take."""
    torch = pytest.importorskip("torch")
    asarray = partial(torch.tensor, dtype=torch.float64, requires_grad=True)
    kernel = ddpm.reverse(NORMAL, ddpm.large)
    check_kernel(kernel, NORMAL, asarray=asarray, to_numpy=lambda x: x.detach().numpy())


def test_a_kernel_of_draws_alone():
    """The variance of a kernel that has none is that of its draws."""

    class Drawn:
        def __init__(self, step):
            self.mean, self.reparameterise = step.mean, step.reparameterise

    kernel = lambda x, t, s: Drawn(ddpm.reverse(NORMAL, ddpm.large)(x, t, s))
    wide = lambda x, t, s: Drawn(kernel_of(lambda mean, var, s: (mean, 2 * var + 1))(x, t, s))
    assert MOST in broken(examine_kernel(wide, NORMAL))
    assert MEAN not in broken(examine_kernel(kernel, NORMAL))
    assert MOST not in broken(examine_kernel(kernel, NORMAL))


# Noise


def test_portable_noise_passes():
    """On NumPy, and with many samples of few numbers."""
    check_noise(ddpm.portable_noise(3))
    check_noise(ddpm.portable_noise(4, dtype=np.float64), (512, 2, 3))
    check_noise(ddpm.portable_noise(5), (4096, 1))


def test_noise_of_other_libraries():
    """What to_numpy takes an array out of."""
    noise = ddpm.portable_noise(0)
    check_noise(lambda step, shape: {"x": noise(step, shape)}, to_numpy=lambda made: made["x"])


def by(change):
    """Portable noise, changed: (step, shape, x) -> what is drawn."""
    noise = ddpm.portable_noise(0, dtype=np.float64)
    return lambda step, shape: change(step, shape, noise(step, shape))


def uniform(step, shape, x):
    """Of variance 1, with the moments of a uniform variable."""
    return np.argsort(np.argsort(x.ravel())).reshape(shape) / x.size * 3.46 - 1.73


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        (by(lambda step, shape, x: 1.05 * x), "moments 1 to 4"),
        (by(lambda step, shape, x: x + 0.1), "moments 1 to 4"),
        (by(uniform), "Kolmogorov's distance"),
        (by(lambda step, shape, x: np.round(x, 1)), "Kolmogorov's distance"),
        (by(lambda step, shape, x: x.astype(int)), "of the shape asked for"),
        (by(lambda step, shape, x: x[0]), "of the shape asked for"),
        (by(lambda step, shape, x: np.where(x > 3, np.inf, x)), "of the shape asked for"),
        (by(lambda step, shape, x: np.broadcast_to(x[:1], shape)), "samples and neighbours"),
        (by(lambda step, shape, x: np.sort(x, axis=1)), "samples and neighbours"),
        (by(lambda step, shape, x: x[::-1]), "a batch begins"),
        (lambda step, shape: ddpm.portable_noise(0)(0, shape), "steps are independent"),
        (lambda step, shape: np.random.default_rng().standard_normal(shape), "a pure function"),
    ],
    ids=[
        "wide", "shifted", "uniform", "rounded", "integers", "shape", "infinite", "one sample",
        "sorted", "reversed", "one step", "a stream",
    ],
)  # fmt: skip
def test_wrong_noise(noise, law):
    """Each is named by what is wrong with it."""
    assert any(each.startswith(law) for each in broken(examine_noise(noise)))


def test_shape_of_noise():
    for shape in ((4,), (1, 4096), (4, 499)):
        with pytest.raises(ValueError, match=r"shape must be \(B, \*D\) with B at least 2, and"):
            check_noise(ddpm.portable_noise(0), shape)


# Networks


def test_the_unet_passes():
    """With random weights, in float32."""
    on = ddpm.backend("numpy")
    for out in (1, 2):  # the second with a learned variance
        config = UNetConfig(channels=1, out_channels=out, widths=(4, 4), blocks=1, groups=2)
        network = on.network(random_params(on, config), config)
        check_network(network, (1, 4, 4), asarray=on.asarray, to_numpy=on.to_numpy)


def net(x, time):
    return x * np.cos(time)[:, None]


@pytest.mark.parametrize(
    ("network", "law"),
    [
        (lambda x, time: net(x, time) - net(x, time).mean(axis=0), "a sample does not depend"),
        (lambda x, time: net(x, time[:1]), "timesteps (B,)"),
        (lambda x, time: 0 * x, "it depends on time"),
        (lambda x, time: net(x, time).astype(np.float32), "the shape and the dtype"),
        (lambda x, time: net(x, time)[:, :1], "the shape and the dtype"),
        (lambda x, time: net(x, time) / x.any(), "finite"),
        (remembering(net), "a pure function"),
        (lambda x, time: net(x, np.sqrt(time - 1)), "finite"),
    ],
    ids=["batch", "one time", "no time", "float32", "shape", "zero", "memory", "time -1"],
)
def test_wrong_networks(network, law):
    """Each is named by what is wrong with it."""
    with np.errstate(all="ignore"):
        assert any(each.startswith(law) for each in broken(examine_network(network, (3,))))


def test_two_times():
    with pytest.raises(ValueError, match="times must be two or more"):
        check_network(net, (3,), times=[5])


# Checks and reports


@pytest.mark.parametrize("name", [n for n in testing.__all__ if n.startswith("check_")])
def test_a_check_is_its_examination(name):
    """By name, place, arguments and words, of which the first says that it raises."""
    check, examine = getattr(testing, name), getattr(testing, name.replace("check", "examine"))
    assert (check.__name__, check.__qualname__) == (name, name)
    assert check.__module__ == examine.__module__
    assert getattr(sys.modules[check.__module__], name) is check
    assert inspect.signature(check) == inspect.signature(examine)
    first, _, rest = inspect.getdoc(check).partition("\n\n")
    assert first.startswith("AssertionError if a law is broken")
    assert rest == inspect.getdoc(examine)


def test_a_check_raises_what_its_examination_reports():
    """With all arguments passed on, by place and by name, and the report in the error."""
    keep = lambda first, *, second: Report("it", (Finding(first, "source", 1, failure=second),))
    keep.__name__ = "examine_it"
    assert raising(keep)("law", second="").findings == keep("law", second="").findings
    with pytest.raises(
        AssertionError, match=r"1 law of it fails\n- law \(source\): too far"
    ) as error:
        raising(keep)("law", second="too far")
    assert error.value.report.broken[0].failure == "too far"


def test_reports_have_sources_and_are_json():
    """Every law of every check says what it is and where it is from."""
    for report in (
        examine_denoiser(NORMAL, NORMAL),
        examine_kernel(NORMAL.reverse, NORMAL),
        examine_network(net, (3,)),
        examine_noise(ddpm.portable_noise(0)),
        examine_parameterisation(ddpm.v),
    ):
        assert all(len(f.law) > 5 and len(f.source) > 5 for f in report.findings)
        assert json.loads(json.dumps(report.to_json())) == report.to_json()


def test_the_first_case_is_told_and_the_worst():
    """Of cases from the simplest; a NaN is worse than any number, and equal infinities are none."""
    found = compared(
        "law",
        "source",
        Sides([1.0, 2.0, np.inf, 9.0, np.nan], [1.0, 2.5, np.inf, 4.0, 1.0], 0.1),
        str,
    )
    assert found.failure == (
        "at 1: 2 and not 2.5; 3 of 5 cases break it, the worst off by nan at 4, where 0.1 is "
        "rounding"
    )
    assert (found.cases, found.verdict) == (5, "broken")
    close = compared("law", "source", Sides(1 + 1e-15, 1.0), str)
    assert "1.000000000000001 and not 1.0, off by 1.11e-15" in close.failure


def test_exceptions_and_words_break_a_law():
    """With the case; a case of which the law says nothing is not counted."""
    sides = lambda case: None if case == 0 else Sides(1, 1) if case < 2 else 1 / 0
    found = tried("law", "source", range(4), sides)
    assert (found.cases, found.failure) == (
        2,
        "at 2: it raises ZeroDivisionError: division by zero",
    )
    assert tried("law", "source", [7], lambda case: "it is odd").failure == "at 7: it is odd"
    silent = tried("law", "source", [0, 0], sides, note="nothing to try")
    assert (silent.verdict, silent.note) == ("does not apply", "nothing to try")
    assert tried("law", "source", range(2), sides).cases == 1
