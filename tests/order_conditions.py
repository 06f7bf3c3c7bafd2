"""The order of a solver's steps, by computer algebra, from the table that its own code makes.

A solver's function runs on power series in the scale ε of the steps (`formal`), over steps of any
ratios, from a level where α = σ = 1: `test_only_ratios_of_scales_matter` says why that is any
level. Its table then goes through `advance`, as any table does, on a
formal denoiser F along a path x(λ) of the probability flow, λ half the log-SNR:

    F(x(λ), λ) = g_0 + g_1 u + g_2 u² + ..           u from where the step begins
    F(x(λ) + δ, λ) = F(x(λ), λ) + (J_0 + J_1 u + ..) δ + O(δ²)
    x(λ) = (σ / σ_t) X + α ∫ e^{-(u - v)} g(v) dv    (Lu et al. 2022b, Eq. 8)

g_i are vectors and J_i matrices that stand for any. The sum over words in them that is left
between the table's x_s and x(λ_s) is the step's error; its lowest power of ε, less one, is the
order of the step. A solver that reads eps needs nothing else: its table makes eps of F and x.

From steps to the whole path. A step multiplies the error of x by 1 + O(ε), so that n = O(1 / ε)
errors of O(ε^{p+1}) add up to O(ε^p) (Hairer et al. 1993, II.3; III.4 for several steps, whose
root condition only `bdia` has to meet). The first steps have fewer readings: their errors, of a
bounded number of steps, stay what they are, and `start` is the power of the largest.

With noise, what is proved is the law of x for Gaussian data, to which `convergence` measures the
distance (`weak_order`): its local errors add up in the same way. For other data, the weak order of
methods with memory needs moments of readings at noisy points, and is not proved here. The proof of
`er_sde` is for φ(k) = k^(1 + q), any q, where steps are even, and for k^(3 / 2) where they are not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from formal import QQ, TERMS, K, S, Series, Vector, exactly, q2, q3, r1, r2, r3

from ddpm_core import Level, advance, samplers
from ddpm_core.samplers import Row, Sampler, State

ANY, EVEN = (r1, r2, r3), (K.one, K.one, K.one)
#: Where products of many series are taken: one ratio is any.
ANY_ONE = (r1, K(QQ(3, 2)), K(QQ(2, 3)))
EPSILON = Series([K.zero, K.one] + [K.zero] * (TERMS - 2))


def compose(terms: list[Any], u: Series) -> Series:
    """Σ terms[i] u^i, where u begins with ε."""
    total = Series.of(0)
    for term in reversed(terms):
        total = total * u + Series.of(term)
    return total


class Formal:
    """A schedule of any levels and times, as far as series about one level know it.

    scaled: whether α is any function of λ; else it is 1
    """

    def __init__(self, offsets: list[Series], *, scaled: bool = False):
        self.times, self.offsets = np.array([self.time(u) for u in offsets], dtype=object), offsets
        self.scaled, self.ends = scaled, (offsets[-1], Series.of(-1))

    @staticmethod
    def time(u: Series) -> Series:
        return -u + u * u * q2 + u * u * u * q3

    def alpha(self, u: Series) -> Series:
        return (u * q2 + u * u * q3).exp() if self.scaled else Series.of(1)

    def level(self, u: Series) -> Level:
        alpha = self.alpha(u)
        return Level(self.time(u), Series((2 * u).terms, 2), alpha, alpha * (-u).exp())

    def at(self, logsnr: Any) -> Level:
        each = [self.level(Series((a / 2).terms)) for a in np.ravel(logsnr)]
        fields = (np.array(field, dtype=object) for field in zip(*each, strict=True))
        return Level(*(field.reshape(np.shape(logsnr)) for field in fields))

    def __call__(self, times: Any) -> Level:
        if isinstance(times, Series):  # the noisiest: none here is as noisy
            return Level(times, Series([K(-(10**6))] + [K.zero] * (TERMS - 1), 2), 0, 1)
        known = list(zip(self.times, self.offsets, strict=True))
        found = [next(u for time, u in known if time == a) for a in times]
        return self.at(np.array([Series((2 * u).terms, 2) for u in found], dtype=object))

    def path(self, u: Series) -> Vector:
        """x(λ) at an offset u."""
        alpha = self.alpha(u)
        words = {("X",): alpha * (-u).exp()}
        for j in range(TERMS - 1):
            # e^-u ∫ e^v v^j dv, whose derivative is u^j less itself.
            integral = [K.zero] * (j + 1) + [K.one / (j + 1)]
            while len(integral) < TERMS:
                integral.append(-integral[-1] / len(integral))
            words[(f"g{j}",)] = alpha * compose(integral, u)
        return Vector(words)

    def denoiser(self, x: Vector, u: Series) -> Vector:
        """F(x, λ)."""
        away = x - self.path(u)
        # Of a step, all through ε^4 is here: what is of second order in `away`, and J_2, is of ε^5.
        assert away.order >= 2
        away = Vector({word: a for word, a in away.words.items() if a.order < 5})
        reading = Vector({(f"g{j}",): u**j for j in range(TERMS - 1)})
        for i in range(2):
            reading = reading + away.after(f"J{i}") * u**i
        return reading


def offsets(before: int, ratios: tuple[Any, ...], after: int = 1) -> list[Series]:
    """Where the steps begin, from where the step in question does, and the ends of `after` more."""
    behind = [EPSILON * -sum(ratios[:i], K.zero) for i in range(before, 0, -1)]
    return [*behind, *(EPSILON * i for i in range(after + 1))]


def lincomb(*terms: Any) -> Any:
    """Of a row: coefficients (), values in arrays (1,)."""
    total = sum((x[0] * c for c, x in terms if c), Vector({}))
    return np.array([total], dtype=object)


def row(sampler: Sampler, i: int) -> Row:
    level = Level(*(field[i] for field in sampler.levels))
    return Row(level, *(tuple(table[i]) for table in (sampler.read, sampler.point, sampler.anchor)))


def array(x: Vector) -> Any:
    return np.array([x], dtype=object)


class Step(NamedTuple):
    """The orders of one step's error: where it came to, and where it was predicted to come to."""

    corrected: int
    predicted: int


def step(
    solver: Callable[..., Sampler],
    before: int,
    ratios: tuple[Any, ...] = ANY,
    off: int = TERMS,
    way: int = 1,
    after: int = 1,
    scaled: bool = False,
) -> Step:
    """The error of the step after `before` others, whose points lie on the path.

    after: 2 of a solver that corrects the step in the row of the next
    way: 1 towards data, -1 towards noise
    scaled: as in `Formal`
    off: the power of ε by which the points of all readings were off the path, times any vectors
    """
    at = [u * way for u in offsets(before, ratios, after)]
    schedule = Formal(at, scaled=scaled)
    with exactly():
        sampler = solver(schedule, len(at) - 1, times=schedule.times)
    begin = at[before]
    u_of = [Series((a / 2).terms) for a in sampler.levels.logsnr]
    first = next(i for i, u in enumerate(u_of) if u == begin)
    first += sampler.nfe > len(u_of) - 1 or (before > 0 and u_of[first + 1] == begin)
    corrects = any(bool(a) for a in sampler.anchor[-1][2:])

    def read(i: int, x: Vector) -> Vector:
        a, b = sampler.read[i]
        return x * a + schedule.denoiser(x, u_of[i]) * b

    memory = []
    for back in range(1, sampler.point.shape[-1] - 3):
        i = first - back
        if i < 0:
            memory.append(Vector({}))
            continue
        m = read(i, schedule.path(u_of[i]))
        if off < TERMS:
            m = m + Vector({("J", f"d{back}"): EPSILON**off})
        memory.append(m)
    state = State(
        array(schedule.path(begin)),
        array(schedule.path(at[max(before - 1, 0)])),
        tuple(map(array, memory)),
    )
    i = first
    y = schedule.denoiser(state.point[0], u_of[i])
    if before and off < TERMS:
        y = y + Vector({("J", "d0"): EPSILON**off})
    if corrects and before:
        on_anchor, readings = sampler.anchor[i][1], [y, *memory]
        there = sum(
            (m * a for m, a in zip(readings, sampler.anchor[i][2:-1], strict=True)), Vector({})
        )
        state = state._replace(anchor=array(schedule.path(begin) - there / on_anchor))
    while True:
        state = advance(row(sampler, i), state, array(y), lincomb=lincomb)
        i += 1
        if u_of[i] == at[before + 1] and (i + 1 >= len(u_of) or u_of[i + 1] != u_of[i]):
            break
        y = schedule.denoiser(state.point[0], u_of[i])
    exact = schedule.path(at[before + 1])
    predicted = (state.point[0] - exact).order
    if not corrects:
        return Step(predicted - 1, predicted - 1)
    y = schedule.denoiser(state.point[0], u_of[i])
    state = advance(row(sampler, i), state, array(y), lincomb=lincomb)
    corrected = state.anchor[0] / sampler.anchor[i][1]
    return Step((corrected - exact).order - 1, predicted - 1)


def weak_order(
    solver: Callable[..., Sampler],
    before: int,
    ratios: tuple[Any, ...] = ANY,
    after: int = 1,
) -> int:
    """The weak order of a step after `before` others, for the exact denoiser of data N(m, v).

    A step is a linear map of x, of the points p_0, p_1, .. where readings were taken, and of z.
    The covariances of these before the first step are S_t + D ε, with any D: points of a path are
    so far apart. Then each step must give x the mean and the variance of the schedule, after a step
    that gave it those. (A solver that corrects has x apart from p_0, the point it predicted.)
    """
    at = offsets(before, ratios, after)
    schedule = Formal(at)
    with exactly():
        sampler = solver(schedule, len(at) - 1, times=schedule.times)
    variance = [Series((t.sigma * t.sigma + (S - 1)).terms[:5]) for t in map(schedule.level, at)]
    gain = [Series([S - 1] + [K.zero] * 4) / a for a in variance]
    one = [Series.of(1)] * len(gain)
    corrects = after == 2
    size = sampler.point.shape[-1] - 2  # x and the points of all readings

    def short(a: Any) -> Any:
        return Series(a.terms[:5]) if isinstance(a, Series) else a

    def maps(i: int, gain: list[Series]) -> list[list[Any]]:
        """Row i: (x, p_0, p_1, ..) -> the next x and p_0."""

        def on(coefficients: Any, i: int) -> list[Any]:
            pairs = enumerate(map(short, coefficients[2:-1]))
            return [b * gain[i - j] if i >= j else Series.of(0) for j, b in pairs]

        if not corrects:
            x = [short(sampler.point[i, 0]), *on(sampler.point[i], i)]
            return [x, x]
        now, then = sampler.anchor[i : i + 2]
        carried = short(now[1] if i else now[0])
        p = [a - (b if i else 0) for a, b in zip(on(sampler.point[i], i), on(now, i), strict=True)]
        mend, *others = (a / short(then[1]) for a in on(then, i + 1))
        p = [carried, *p]
        x = [mend * b + a for a, b in zip([carried, *others, 0], p, strict=True)]
        return [x, p]

    first = Vector({("1",): variance[0]})
    joint = [
        [first + Vector({("D", f"{max(i, j)} {min(i, j)}"): EPSILON}) for i in range(size)]
        for j in range(size)
    ]
    joint[0][0] = first
    order = 0
    for i in range(before + 1):
        table = sampler.anchor if corrects else sampler.point
        noise = table[i, -1].inside
        both = maps(i, gain)
        moved = [[K.one if n == j else 0 for n in range(size)] for j in range(1, size - 1)]
        rows = [*both, *moved]
        # What multiplies z, as a multiple of the same root.
        shares = [
            1
            if not corrects
            else 1 + sampler.anchor[i + 1, 2] / sampler.anchor[i + 1, 1] * gain[i + 1],
            1,
        ]
        new = [[Vector({})] * size for _ in range(size)]
        for a in range(size):
            for b in range(a + 1):
                pairs = (
                    (n, m) for n in range(size) for m in range(size) if rows[a][n] and rows[b][m]
                )
                total = sum((joint[n][m] * rows[a][n] * rows[b][m] for n, m in pairs), Vector({}))
                if a < 2 and b < 2:
                    total = total + Vector({("1",): short(noise) * shares[a] * shares[b]})
                new[a][b] = new[b][a] = total
        mean = sum(maps(i, one)[0], Series.of(-1))
        wanted = Vector({("1",): variance[i + 1]})
        order = min((new[0][0] - wanted).order, mean.order) - 1
        joint = new
        joint[0][0] = wanted
        if not corrects:
            joint[0][1] = joint[1][0] = joint[1][1] = wanted
    return order


def order_between_noise(solver: Callable[..., Sampler]) -> int:
    """The least order of the steps of two rows of a solver that adds noise after each.

    The noise must take x to the law of the next row's level exactly: of x / α its variance is
    k_to² - k_s².
    """
    at = offsets(2, ANY)
    schedule = Formal(at)
    with exactly():
        sampler = solver(schedule, 3, times=schedule.times)
    u_of = [Series((a / 2).terms) for a in sampler.levels.logsnr]
    orders = []
    for i in range(0, sampler.nfe, 2):
        t, s, to = u_of[i : i + 3]
        state = State(array(schedule.path(t)), array(Vector({})), (array(Vector({})),))
        for j, u in ((i, t), (i + 1, s)):
            y = schedule.denoiser(state.point[0], u)
            state = advance(row(sampler, j), state, array(y), lincomb=lincomb)
        orders.append((state.point[0] - schedule.path(s)).order - 1)
        added = sampler.point[i + 1, -1]
        k_to, k_s = ((-u).exp() for u in (to, s))
        assert not (added.inside if added else Series.of(0)) - (k_to * k_to - k_s * k_s)
    return min(orders)


class Proof(NamedTuple):
    """What is proved of a solver.

    arbitrary: the order of its step, whatever the steps before were; in law, whatever the last was
    even: the same, where all steps are even in log-SNR
    start: the power of the step size in what its first steps leave; None if they are as the others
    weak: whether it is of the law, for Gaussian data, and not of the path, for any denoiser
    """

    arbitrary: int
    even: int
    start: int | None
    weak: bool = False


#: How many steps before one decide about it: all that its readings are of.
BEFORE = (
    dict.fromkeys(("ddim", "heun", "dpm_solver_2", "dpm_solver_3", "dpmpp_2s", "ddim_inversion"), 0)
    | dict.fromkeys(("dpmpp_2m", "dpm_solver_2m", "deis_2", "bdia", "bdia_inversion", "unipc_1"), 1)
    | dict.fromkeys(("dpmpp_3m", "dpm_solver_3m", "deis_3", "unipc_2"), 2)
    | dict.fromkeys(("lms", "ipndm", "plms", "unipc_3"), 3)
)
#: The same, and the steps in which the covariances of those points come about.
BEFORE_IN_LAW = {"ancestral": 0, "sde_dpmpp_2m": 2, "sde_dpmpp_3m": 3, "sa_solver": 3, "er_sde": 3}


def power(k: Any, exponent: Any) -> Any:
    """k^exponent."""
    return np.frompyfunc(lambda k: ((k - 1).log1p() * exponent).exp(), 1, 1)(k)


@cache
def proof(name: str) -> Proof:
    """The proof of a solver of the registry."""
    solver, inverse = getattr(samplers, name), name.endswith("_inversion")
    if name in ("restart", "edm_stochastic"):
        if name == "edm_stochastic":
            solver = partial(solver, churn=EPSILON * S * 3)  # γ = S ε in each of 3 steps
        p = order_between_noise(solver)
        return Proof(p, p, None, weak=True)
    if name in BEFORE_IN_LAW:
        of_any, of_even = solver, solver
        if name == "er_sde":
            of_any, of_even = (
                partial(solver, phi=partial(power, exponent=n)) for n in (QQ(3, 2), 1 + q2)
            )
        n, after = BEFORE_IN_LAW[name], 2 if name == "sa_solver" else 1
        p, even = weak_order(of_any, n, ANY_ONE, after), weak_order(of_even, n, EVEN, after)
        return Proof(p, even, 1 + weak_order(of_even, 0, EVEN, after) if n else None, weak=True)
    n = BEFORE[name]
    # In `bdia` points of two levels are added, so that their scales count.
    options = {"scaled": name[:4] == "bdia"}
    options |= {"way": -1 if inverse else 1, "after": 2 if name[:5] in ("unipc", "plms") else 1}
    found = []
    for ratios in (ANY, EVEN):
        predicted = step(solver, n, ratios, **options).predicted
        # The readings that a step takes were off by as much as it predicts.
        again = step(solver, n, ratios, off=predicted + 1, **options)
        assert again.predicted >= predicted
        found.append(again.corrected)
    first = [step(solver, i, ANY, **options).corrected for i in range(n)]
    return Proof(*found, start=1 + min(first) if first else None)
