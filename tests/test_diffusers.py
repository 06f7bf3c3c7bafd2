"""The solvers against those of Hugging Face diffusers, number by number.

A scheduler and a sampler are the same if their unrolled matrices are. Where they are not, the test
says by what rule they differ, and checks that this is all of it.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import denoisers, grids, samplers, schedules
from ddpm_core.arrays import log_sigmoid
from ddpm_core.samplers.unipc import predictor_corrector
from ddpm_core.testing.foreign.diffusers import unrolled

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
]

LINEAR, STEPS = ddpm.linear(), 20
#: Of float64, near clean data: theirs takes 1 - ᾱ as a difference, and ᾱ_1 = 0.9999.
TOLERANCE = 1e-10


def on(schedule, solver, u, at=slice(None), **options):
    """Our solver on the levels of an unrolled scheduler."""
    noisiest = schedule(schedule.ends[1]).logsnr  # theirs may round past it
    times = np.array(schedule.at(np.maximum(u.levels.logsnr[at], noisiest)).time)
    return solver(schedule, len(times) - 1, times=times, **options).unroll()


def differences(theirs, ours, points=slice(None)):
    """The largest difference of x, y and z, relative to the largest entry, or to 1."""
    assert theirs.nfe == ours.nfe
    assert np.allclose(theirs.levels.logsnr[:-1], ours.levels.logsnr[:-1], rtol=0, atol=1e-9)
    pairs = ((theirs.x, ours.x), (theirs.y, ours.y), (theirs.z, ours.z))
    return [np.abs(a - b)[points].max() / max(1.0, np.abs(b).max()) for a, b in pairs]


def check(theirs, ours, points=slice(None)):
    assert max(differences(theirs, ours, points)) < TOLERANCE


# The same. ---------------------------------------------------------------------------------------

DDPM = partial(diffusers.DDPMScheduler, clip_sample=False)
DDIM = partial(diffusers.DDIMScheduler, clip_sample=False)
MULTISTEP = partial(diffusers.DPMSolverMultistepScheduler, lower_order_final=False)
TO_SIGMA_MIN = partial(MULTISTEP, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
SDE = partial(MULTISTEP, algorithm_type="sde-dpmsolver++")
UNIPC = partial(
    diffusers.UniPCMultistepScheduler, lower_order_final=False, final_sigmas_type="sigma_min"
)
BH1 = [partial(solver, b="bh1") for solver in (samplers.unipc_1, ddpm.unipc_2, samplers.unipc_3)]
#: Theirs, ours.
SAME = {
    "ddpm small": (DDPM, ddpm.ancestral),
    "ddpm large": (
        partial(DDPM, variance_type="fixed_large"),
        partial(ddpm.ancestral, variance=ddpm.large),
    ),
    "ddpm linspace": (partial(DDPM, timestep_spacing="linspace"), ddpm.ancestral),
    "ddim": (DDIM, ddpm.ddim),
    "ddim x_0": (partial(DDIM, prediction_type="sample"), ddpm.ddim),
    "ddim v": (partial(DDIM, prediction_type="v_prediction"), ddpm.ddim),
    "ddim trailing": (partial(DDIM, timestep_spacing="trailing"), ddpm.ddim),
    "dpm++ 1": (partial(MULTISTEP, solver_order=1), ddpm.ddim),
    "dpm++ 2": (MULTISTEP, ddpm.dpmpp_2m),
    "dpm++ 2 v": (partial(MULTISTEP, prediction_type="v_prediction"), ddpm.dpmpp_2m),
    "dpm++ 2 karras": (partial(MULTISTEP, use_karras_sigmas=True), ddpm.dpmpp_2m),
    "dpm 2": (TO_SIGMA_MIN, samplers.dpm_solver_2m),
    "sde-dpm++ 1": (partial(SDE, solver_order=1), ddpm.ancestral),
    "sde-dpm++ 2": (SDE, samplers.sde_dpmpp_2m),
    "unipc 1 bh1": (partial(UNIPC, solver_order=1, solver_type="bh1"), BH1[0]),
    "unipc 1 bh2": (partial(UNIPC, solver_order=1), samplers.unipc_1),
    "unipc 2 bh1": (partial(UNIPC, solver_type="bh1"), BH1[1]),
    "unipc 2 bh2": (UNIPC, ddpm.unipc_2),
    "unipc 3 bh1": (partial(UNIPC, solver_order=3, solver_type="bh1"), BH1[2]),
    "unipc 3 bh2": (partial(UNIPC, solver_order=3), samplers.unipc_3),
    "unip 2": (partial(UNIPC, disable_corrector=list(range(STEPS))), ddpm.dpmpp_2m),
    "euler": (diffusers.EulerDiscreteScheduler, ddpm.ddim),
    "euler to sigma_min": (
        partial(
            diffusers.EulerDiscreteScheduler,
            final_sigmas_type="sigma_min",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        ddpm.ddim,
    ),
    "euler karras": (
        partial(diffusers.EulerDiscreteScheduler, use_karras_sigmas=True),
        ddpm.ddim,
    ),
    "euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, ddpm.ancestral),
}


@pytest.mark.parametrize("name", SAME)
def test_same(name):
    theirs, ours = SAME[name]
    u = unrolled(theirs(), STEPS)
    check(u, on(LINEAR, ours, u))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_eta(eta):
    u = unrolled(DDIM(), STEPS, eta=eta)
    assert u.stochastic == (eta > 0)
    check(u, on(LINEAR, ddpm.ddim, u, eta=eta))


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (diffusers.HeunDiscreteScheduler, ddpm.heun),
        (
            partial(diffusers.KDPM2DiscreteScheduler, beta_start=1e-4, beta_end=0.02),
            samplers.dpm_solver_2,
        ),
    ],
    ids=["heun", "kdpm2"],
)
def test_two_calls_a_step(kind, ours):
    u = unrolled(kind(), STEPS)
    assert u.nfe == 2 * STEPS - 1  # the step into clean data is Euler's
    check(u, on(LINEAR, ours, u, at=np.r_[0 : u.nfe : 2, u.nfe]))


def test_pndm():
    """With skip_prk_steps, as every pipeline sets it; its second call is at the second time."""
    u = unrolled(diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1), STEPS)
    assert (u.nfe, u.levels.time[-1]) == (STEPS + 1, 1)
    check(u, on(LINEAR, samplers.plms, u, at=np.r_[0:2, 3 : u.nfe + 1]))


def test_ipndm():
    """Its betas are sigmas, and its network predicts v."""
    sigma = LINEAR(np.linspace(1000, 1, STEPS + 1)).sigma
    u = unrolled(diffusers.IPNDMScheduler(trained_betas=sigma.tolist()), STEPS)
    check(u, on(LINEAR, samplers.ipndm, u))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    """Polynomials in log ρ are DEIS in the time of a schedule whose log-SNR is linear."""
    solver = (ddpm.ddim, samplers.deis_2, samplers.deis_3)[order - 1]
    u = unrolled(diffusers.DEISMultistepScheduler(solver_order=order), STEPS)
    check(u, on(schedules.LinearLogSNR(12.0, -12.0), solver, u))


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (diffusers.EDMEulerScheduler, ddpm.ddim),
        (partial(diffusers.EDMEulerScheduler, prediction_type="v_prediction"), ddpm.ddim),
        (diffusers.EDMDPMSolverMultistepScheduler, ddpm.dpmpp_2m),
        (
            partial(diffusers.EDMDPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
            samplers.sde_dpmpp_2m,
        ),
        (
            partial(diffusers.CosineDPMSolverMultistepScheduler, sigma_max=100.0),
            samplers.sde_dpmpp_2m,
        ),
    ],
    ids=["euler", "euler v", "dpm++ 2", "sde-dpm++ 2", "cosine"],
)
def test_edm(kind, ours):
    """x / α over k = σ / α, and the preconditioned network of Karras et al. 2022."""
    u = unrolled(kind(), STEPS)
    check(u, on(ddpm.VP(), ours, u))


SHIFTS = pytest.mark.parametrize("shift", [1.0, 3.0, 0.4])


def times_of_flow(shift):
    """Theirs shifts the cleanest of its times twice."""
    return np.append(np.linspace(1, shift / 1000 / (1 + (shift - 1) / 1000), STEPS), 0)


@SHIFTS
def test_flow_euler_is_ddim(shift):
    """Euler on a straight path, whose u its network is told, times 1000."""
    u = unrolled(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), STEPS)
    mine = ddpm.ddim(schedules.Flow(shift), STEPS, times=times_of_flow(shift)).unroll()
    assert max(differences(u, mine)) < 1e-12
    label = denoisers.straight(1000).label(mine.levels)
    assert np.allclose(u.levels.time, label, rtol=1e-12, atol=0)


@SHIFTS
def test_flow_heun(shift):
    """Heun's method in the x and u of the straight path; `heun` is that in x / α and σ / α."""
    u = unrolled(diffusers.FlowMatchHeunDiscreteScheduler(shift=shift), STEPS)
    mine = heun_in_u(schedules.Flow(shift), STEPS, times_of_flow(shift))
    assert max(differences(u, mine)) < 1e-12
    times = np.linspace(0.9, 0.1, 5)
    other = ddpm.heun(schedules.Flow(shift), 4, times=times).unroll()
    assert differences(heun_in_u(schedules.Flow(shift), 4, times), other)[1] > 1e-2


def heun_in_u(schedule, steps, times):
    """x' = x + (u' - u) (v + v') / 2, the last step into clean data Euler's."""
    grid = schedule(np.asarray(times))
    u, clean = grid.sigma / (grid.alpha + grid.sigma), grid.sigma[-1] == 0
    levels = grid.take(np.repeat(np.arange(steps + 1), 2)[1 : 2 * steps + 2 - clean])
    norm, kept = levels.alpha + levels.sigma, []

    def step(i, x_t, v, z):
        x, number = x_t / norm[i], (i + 1) // 2
        if i % 2 == 0:
            kept[:] = [x, v]
            x = x + (u[number + 1] - u[number]) * v
        else:
            x = kept[0] + (u[number] - u[number - 1]) * (kept[1] + v) / 2
        return x * norm[i + 1]

    return samplers.from_step(step, levels, ddpm.flow)


def test_order_of_flow_heun():
    found = ddpm.convergence(heun_in_u, (40, 80), schedules.Flow())
    assert abs(found.slopes[0] - 2) < 0.15


def test_flow_with_new_noise():
    """stochastic_sampling forgets x at each step: x_s = α_s x_0 + σ_s z."""
    kind = diffusers.FlowMatchEulerDiscreteScheduler
    u = unrolled(kind(stochastic_sampling=True), STEPS)
    wanted = np.zeros((2, STEPS + 1, STEPS))
    i = np.arange(STEPS)
    wanted[0, i + 1, i], wanted[1, i + 1, i] = u.levels.alpha[1:], u.levels.sigma[1:]
    assert max(np.abs(u.y - wanted[0]).max(), np.abs(u.z - wanted[1]).max()) < 1e-12
    assert np.abs(u.x[1:]).max() < 1e-12


def even(n, **options):
    """Options that make an even grid in log-SNR the levels of training, and of n steps."""
    levels = LINEAR.at(np.linspace(LINEAR.logsnr[-1], LINEAR.logsnr[1], n + 1))
    return {"num_train_timesteps": n + 1, "trained_betas": betas(levels), **options}


def betas(levels):
    log_abar = log_sigmoid(np.asarray(levels.logsnr))[::-1]
    return (-np.expm1(np.diff(log_abar, prepend=0.0))).tolist()


SINGLE = partial(diffusers.DPMSolverSinglestepScheduler, final_sigmas_type="sigma_min")


@pytest.mark.parametrize(
    ("algorithm", "ours"),
    [("dpmsolver++", samplers.dpmpp_2s), ("dpmsolver", samplers.dpm_solver_2)],
)
def test_single_step(algorithm, ours):
    """It takes two of its timesteps for a step: one of ours where they are even in log-SNR."""
    u = unrolled(SINGLE(algorithm_type=algorithm, **even(STEPS)), STEPS)
    check(u, on(LINEAR, ours, u, at=slice(None, None, 2)))


def test_inversion():
    """The network is told where the step ends, though it is shown where the step begins."""
    inverse = partial(diffusers.DDIMInverseScheduler, clip_sample=False, set_alpha_to_one=False)
    u = unrolled(inverse(timestep_spacing="trailing"), STEPS)
    check(u, on(LINEAR, samplers.ddim_inversion, u))
    assert np.array_equal(u.levels.time, np.append(grids.trailing(LINEAR, STEPS)[-2::-1], 1000))


# Not the same. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "ours", "at"),
    [
        (diffusers.LMSDiscreteScheduler, {}, samplers.lms, slice(None)),
        (
            diffusers.PNDMScheduler,
            {"skip_prk_steps": True, "set_alpha_to_one": True},
            samplers.plms,
            np.r_[0:2, 3 : STEPS + 2],
        ),
        (
            diffusers.IPNDMScheduler,
            {"trained_betas": LINEAR(grids.trailing(LINEAR, STEPS)).sigma.tolist()},
            samplers.ipndm,
            slice(None),
        ),
    ],
    ids=["lms", "pndm", "ipndm"],
)
def test_adams_into_clean_data(kind, options, ours, at):
    """Theirs extrapolates eps to the end, by 4 readings; ours takes x_0 as it is read there."""
    u = unrolled(kind(**options), STEPS)
    mine = on(LINEAR, ours, u, at=at)
    check(u, mine, points=slice(None, -1))
    assert mine.y[-1, -1] == 1
    assert np.count_nonzero(mine.y[-1]) == 1
    assert np.abs(u.y[-1]).sum() > 1.1


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 2), (2, 3), (3, 3), (3, 4)])
def test_sa_solver(tau, predictor, corrector):
    """Where it combines two readings, theirs takes h² / 2 for the first moment: UniPC's bh1."""
    kind = partial(diffusers.SASolverScheduler, tau_func=lambda _: tau, lower_order_final=False)
    u = unrolled(kind(predictor_order=predictor, corrector_order=corrector), STEPS)
    lead = (1 + tau**2) * np.diff(u.levels.logsnr) / 2
    check(u, predictor_corrector("", u.levels, predictor, corrector - 1, tau, lead).unroll())
    if tau == 0 and corrector == predictor + 1:
        check(
            u,
            on(
                LINEAR,
                (samplers.unipc_1, ddpm.unipc_2, samplers.unipc_3)[predictor - 1],
                u,
                b="bh1",
            ),
        )
    exact = on(
        LINEAR,
        samplers.sa_solver,
        u,
        stochasticity=tau,
        predictor=predictor,
        corrector=corrector - 1,
    )
    assert differences(u, exact)[1] > 1e-5


def test_lowered_order():
    """Into clean data UniPC lowers its order before: two steps of a solver of order 3."""
    u = unrolled(diffusers.UniPCMultistepScheduler(solver_order=3), STEPS)
    mine = on(LINEAR, samplers.unipc_3, u)
    check(u, mine, points=slice(None, -2))
    assert np.abs(u.y - mine.y)[-2].max() > 1e-3


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
def test_third_order(algorithm):
    """D_2 is half of h² times the second derivative there; and in the SDE, 1/2 has a wrong sign."""
    final = "zero" if algorithm != "dpmsolver" else "sigma_min"
    kind = partial(MULTISTEP, solver_order=3, algorithm_type=algorithm, final_sigmas_type=final)
    u = unrolled(kind(), STEPS)
    solver = {
        "dpmsolver++": samplers.dpmpp_3m,
        "dpmsolver": samplers.dpm_solver_3m,
        "sde-dpmsolver++": samplers.sde_dpmpp_3m,
    }[algorithm]
    mine = on(LINEAR, solver, u)
    check(u, mine, points=slice(3))
    half = u.levels.logsnr[:4] / 2
    h = half[3] - half[2]
    divided = [1 / np.prod([a - b for b in half[:3] if b != a]) for a in half[:3]]
    s = u.levels.take(3)
    right, scale, reads = {
        "dpmsolver++": (-2 * ((np.expm1(-h) + h) / h**2 - 0.5), s.alpha, np.eye(3)),
        "dpmsolver": (
            -2 * ((np.expm1(h) - h) / h**2 - 0.5),
            s.sigma,
            (u.y[:3, :3] - u.levels.alpha[:3, None] * np.eye(3)) / u.levels.sigma[:3, None],
        ),
        "sde-dpmsolver++": (
            2 * ((-np.expm1(-2 * h) - 2 * h) / (2 * h) ** 2 + 0.5),
            s.alpha,
            np.eye(3),
        ),
    }[algorithm]
    wrong = right / 2 - (1 if algorithm.startswith("sde") else 0)
    missing = (wrong - right) * h**2 * scale * np.array(divided) @ reads
    assert np.allclose((u.y - mine.y)[3, :3], missing, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "steps", "slope"),
    [
        ("dpmsolver++", (42, 84), 2),
        ("dpmsolver", (42, 84), 2),
        ("sde-dpmsolver++", (42, 84), 1),
    ],
)
def test_order_of_third_order(algorithm, steps, slope):
    def theirs(schedule, n, times):
        options = {"num_train_timesteps": n + 1, "trained_betas": betas(schedule(times))}
        kind = partial(MULTISTEP, solver_order=3, final_sigmas_type="sigma_min")
        return unrolled(kind(algorithm_type=algorithm, **options), n)

    assert ddpm.convergence(theirs, steps).slopes[0] == pytest.approx(slope, abs=0.25)


def test_single_step_sde():
    """Each call has noise of its own, between t and s as well as from t to s: weak order 1."""

    def theirs(schedule, n, times):
        options = {"num_train_timesteps": n + 1, "trained_betas": betas(schedule(times))}
        return unrolled(SINGLE(algorithm_type="sde-dpmsolver++", **options), n)

    def on_one_path(schedule, n, times):
        u = theirs(schedule, n, times)
        half = u.levels.logsnr / 2
        whole, rest = half[2::2] - half[:-2:2], half[2::2] - half[1::2]
        share = np.exp(-rest) * np.sqrt(np.expm1(-2 * (whole - rest)) / np.expm1(-2 * whole))
        first, second = u.z[:, ::2], u.z[:, 1::2]
        z = np.empty_like(u.z)
        z[:, ::2], z[:, 1::2] = first + share * second, np.sqrt(1 - share**2) * second
        return dataclasses.replace(u, z=z)

    found, better = ddpm.convergence(theirs, (42, 84)), ddpm.convergence(on_one_path, (42, 84))
    first = ddpm.convergence(ddpm.ancestral, (42, 84))  # with as many calls
    assert np.all(found.errors > first.errors)
    assert found.slopes[0] < 1
    assert np.all(better.errors < first.errors / 2)
    assert better.slopes[0] > 1.7


def test_previous_time():
    """DDIM steps to t - T // S, which is not the next time unless S divides T."""
    oracle = ddpm.GaussianOracle([0.0], 0.25)
    for spacing in ("linspace", "trailing"):
        u = unrolled(DDIM(timestep_spacing=spacing), 600)
        reached = u.levels.alpha[0] * u.x + u.y.sum(axis=1)  # of x_0 = 1
        assert np.abs(reached - u.levels.alpha).max() > 0.2
        mine = on(LINEAR, ddpm.ddim, u)
        assert ddpm.law(u, oracle).w2 > 30 * ddpm.law(mine, oracle).w2


def test_last_step_has_noise():
    """DDPM leaves it out only at timestep 0, which trailing and steps_offset do not visit."""
    u = unrolled(DDPM(timestep_spacing="trailing", variance_type="fixed_large"), 20)
    mine = on(LINEAR, ddpm.ancestral, u, variance=ddpm.large)
    check(u, mine, points=slice(None, -1))
    assert u.z[-1, -1] == pytest.approx(LINEAR(50).sigma)


def test_calls_without_effect():
    u = unrolled(diffusers.PNDMScheduler(skip_prk_steps=True), STEPS)  # all else by default
    assert (u.levels.time[-2], u.levels.time[-1]) == (1, 1)
    assert np.array_equal(u.y[-1], u.y[-2])
    u = unrolled(diffusers.IPNDMScheduler(), STEPS)
    assert u.levels.alpha[0] == 0
    assert not u.y[:, 0].any()


def test_churn_comes_too_late():
    """Noise is added after the network was called, and so the last of it stays."""
    u = unrolled(diffusers.EulerDiscreteScheduler(), STEPS, s_churn=20.0)
    assert u.z[-1, -1] == pytest.approx(u.levels.sigma[-2] / u.levels.alpha[-2])


def test_third_order_of_edm_sde():
    kind = partial(diffusers.EDMDPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")
    with pytest.raises(UnboundLocalError):
        unrolled(kind(solver_order=3), STEPS)


# The adapter itself. -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        DDIM,
        partial(DDPM, timestep_spacing="trailing"),
        SDE,
        partial(SDE, prediction_type="v_prediction"),
        diffusers.SASolverScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.KDPM2DiscreteScheduler,
        diffusers.KDPM2AncestralDiscreteScheduler,
        partial(diffusers.PNDMScheduler, steps_offset=1),
        diffusers.EDMDPMSolverMultistepScheduler,
        partial(diffusers.EDMEulerScheduler, prediction_type="v_prediction"),
        diffusers.IPNDMScheduler,
    ],
)
def test_unrolled_is_what_it_computes(kind):
    """A pipeline's loop in float32, with any network, gives the combination that the rows say."""
    scheduler = kind()
    u = unrolled(scheduler, 12)
    draw = np.random.default_rng(0).standard_normal
    x_T, readings = draw(8), draw((u.nfe, 8))
    torch.manual_seed(0)
    scheduler.set_timesteps(12)
    vp = float(scheduler.scale_model_input(torch.ones(1), scheduler.timesteps[0])) == 1
    scheduler.set_timesteps(12)
    alphas = np.ones(u.nfe + 1) if vp else u.levels.alpha
    x, z = torch.tensor(x_T / alphas[0], dtype=torch.float32)[None], np.zeros((u.nfe, 8))
    config = scheduler.config
    for i, time in enumerate(scheduler.timesteps):
        t = u.levels.take(i)
        seen = scheduler.scale_model_input(x, time).numpy() * (alphas[i] if vp else 1)
        point = x.numpy() * alphas[i]
        if "sigma_data" in config:
            k, data = t.sigma / t.alpha, config.sigma_data
            assert np.allclose(seen, x / np.hypot(k, data), rtol=1e-5)
            sign = 1 if config.prediction_type == "epsilon" else -1
            skip, out = data**2 / (k**2 + data**2), sign * k * data / np.hypot(k, data)
            y = (readings[i] - skip * x.numpy()) / out
        else:
            if not vp:
                assert np.allclose(seen, point, rtol=1e-5)
            noise = (point - t.alpha * readings[i]) / t.sigma
            y = noise
            if config.get("prediction_type", "v_prediction") == "v_prediction":
                y = t.alpha * noise - t.sigma * readings[i]
        state = torch.get_rng_state()
        x = scheduler.step(torch.tensor(y, dtype=torch.float32), time, x).prev_sample
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        z[i] = torch.randn(1, 8).numpy()[0]
        torch.set_rng_state(after)
    wanted = u.x[-1] * x_T + u.y[-1] @ readings + u.z[-1] @ z
    found = x.numpy()[0] * alphas[-1]
    # x_0 from eps loses σ / α, which is 157 at first, to the rounding of float32.
    assert np.abs(found - wanted).max() < 1e4 * np.finfo(np.float32).eps * np.abs(u.y).max()


def test_leaves_all_as_it_was():
    import diffusers.schedulers.scheduling_ddim as module

    scheduler = DDIM()
    scheduler.set_timesteps(10)
    before = (module.torch, module.np, module.randn_tensor)
    u = unrolled(scheduler, STEPS)
    assert (module.torch, module.np, module.randn_tensor) == before
    assert torch.get_default_dtype() == torch.float32
    assert (len(scheduler.timesteps), scheduler.alphas_cumprod.dtype) == (10, torch.float32)
    assert u.nfe == STEPS


def test_as_it_stands():
    scheduler = MULTISTEP()
    scheduler.set_timesteps(10)
    single, double = unrolled(scheduler), unrolled(scheduler, 10)
    assert 0 < np.abs(single.y - double.y).max() < 1e-5
    assert scheduler.step_index is None


def test_custom_timesteps():
    u = unrolled(DDPM(), timesteps=[999, 500, 100])
    assert np.array_equal(u.levels.time, [1000, 501, 101, 0])
    check(u, on(LINEAR, ddpm.ancestral, u))


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (diffusers.DDPMScheduler, "clip_sample must be off"),
        (partial(DDIM, thresholding=True), "thresholding must be off"),
        (partial(MULTISTEP, use_flow_sigmas=True), "use_flow_sigmas must be off"),
        (partial(DDPM, variance_type="learned_range"), "variance_type must be off"),
        (partial(diffusers.AmusedScheduler, mask_token_id=0), "not of a variance-preserving"),
        (
            partial(diffusers.FlowMatchEulerDiscreteScheduler, invert_sigmas=True),
            "invert_sigmas must be off",
        ),
        (partial(DDIM, prediction_type="flow"), "prediction_type must be one of"),
        (partial(diffusers.DDIMInverseScheduler, clip_sample=False), "at clean data"),
    ],
)
def test_refuses(kind, match):
    with pytest.raises(ValueError, match=match):
        unrolled(kind(), STEPS)
