"""Numbers that are power series in the scale of the steps, and NumPy for the solvers to run on.

A `Series` is c_0 + c_1 ε + c_2 ε² + .. + O(ε^n), its coefficients exact rational functions of
symbols. Object arrays of them go through the solvers' own code: a ufunc calls the method of its
name on each, and `exactly` puts `Exact` where that code says `np`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import pytest

import ddpm_core.samplers as package

QQ: Any = pytest.importorskip("sympy").QQ
fields: Any = pytest.importorskip("sympy.polys.fields")

#: r1, r2, r3 are the steps before over this one; q2, q3 the terms of a schedule's time, of log φ or
#: of log α in half log-SNR; S is a variance or the churn.
K, r1, r2, r3, q2, q3, S = fields.field("r1 r2 r3 q2 q3 S", QQ)
#: Where signs are looked at: of differences of levels, which are those of steps of any ratios.
WITNESS = (QQ(6, 5), QQ(7, 5), QQ(8, 5), QQ(1), QQ(1), QQ(3))
TERMS = 9


def exact(number: Any) -> fields.FracElement:
    """A number of the code as the fraction of small terms that it is, to a few roundings."""
    if isinstance(number, fields.FracElement):
        return number
    if not isinstance(number, Fraction):
        value = float(number)
        if abs(value) < 1e-9:  # what the code allows for rounding
            return K.zero
        number = Fraction(value).limit_denominator(10_000)
        if abs(number - Fraction(value)) > 1e-14 * abs(value):
            raise ValueError(f"{value} is no small fraction")
    return K(QQ(number.numerator, number.denominator))


def is_nan(a: Any) -> bool:
    return isinstance(a, float) and math.isnan(a)


def sign(coefficient: fields.FracElement) -> int:
    values = list(zip(K.ring.gens, WITNESS, strict=True))
    top, bottom = (QQ(part.evaluate(values)) for part in (coefficient.numer, coefficient.denom))
    return (top * bottom > 0) - (top * bottom < 0)


class Series:
    """Σ terms[i] ε^i + O(ε^len(terms)), and `logs` times λ, the half log-SNR where the step begins.

    Only differences and exponentials of numbers with logs != 0 are taken, and e^λ is 1: of all else
    only differences of λ matter, so that where it begins is where α = σ.
    """

    def __init__(self, terms: list[fields.FracElement], logs: Fraction | int = 0):
        self.terms, self.logs = terms, logs

    @classmethod
    def of(cls, a: Any) -> Series:
        return a if isinstance(a, Series) else cls([exact(a)] + [K.zero] * (TERMS - 1))

    @property
    def order(self) -> int:
        """The power of the first term that is not 0."""
        return next((i for i, term in enumerate(self.terms) if term), len(self.terms))

    def coefficient(self, i: int) -> fields.FracElement:
        if i >= len(self.terms):
            raise ValueError(f"O(ε^{len(self.terms)}) does not know its term {i}")
        return self.terms[i]

    def __add__(self, other: Any) -> Series:
        if isinstance(other, Root):
            return NotImplemented
        if is_nan(other):
            return other
        if not isinstance(other, Series):
            return Series([self.terms[0] + exact(other), *self.terms[1:]], self.logs)
        terms = [a + b for a, b in zip(self.terms, other.terms, strict=False)]
        return Series(terms, self.logs + other.logs)

    def __mul__(self, other: Any) -> Series:
        if isinstance(other, (Root, Vector)):
            return NotImplemented
        if is_nan(other):
            return other
        if not isinstance(other, Series):
            factor = exact(other)
            number = Fraction(int(factor.numer.LC), int(factor.denom.LC)) if factor else 0
            return Series([a * factor for a in self.terms], self.logs and self.logs * number)
        assert self.logs == other.logs == 0
        i, j = self.order, other.order
        terms = [K.zero] * min(len(self.terms) + j, len(other.terms) + i, i + j + TERMS)
        for n, a in enumerate(self.terms[i:], i):
            for m, b in enumerate(other.terms[j : max(len(terms) - n, j)], j):
                terms[n + m] += a * b
        return Series(terms)

    def __truediv__(self, other: Any) -> Series:
        if is_nan(other):
            return other
        if not isinstance(other, Series):
            return self * (1 / exact(other))
        assert self.logs == other.logs == 0
        i = other.order
        assert i < len(other.terms), "a division by 0"
        lead, rest = other.terms[i], other.terms[i + 1 :]
        assert not any(self.terms[:i]), "a pole"
        quotient: list[fields.FracElement] = []
        for n, a in enumerate(self.terms[i:]):
            if n > len(rest):
                break
            done = sum((b * quotient[n - 1 - m] for m, b in enumerate(rest[:n])), K.zero)
            quotient.append((a - done) / lead)
        return Series(quotient)

    def __pow__(self, exponent: Any) -> Series:
        assert exponent == int(exponent) >= 0
        return math.prod([self] * int(exponent), start=Series.of(1))

    def __neg__(self) -> Series:
        return self * -1

    def __sub__(self, other: Any) -> Series:
        return self + -other if not isinstance(other, Root) else NotImplemented

    def __rsub__(self, other: Any) -> Series:
        return -self + other

    def __rtruediv__(self, other: Any) -> Series:
        if is_nan(other):
            return other
        return Series.of(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def __abs__(self) -> Series:
        return self if self >= 0 else -self

    def _sign(self, other: Any) -> int:
        if isinstance(other, float) and math.isinf(other):
            return -1 if other > 0 else 1
        if isinstance(other, float) and abs(other) >= 1e-9:  # such as sqrt(2) - 1, to compare with
            other = Fraction(other)
        difference = self - other
        assert difference.logs == 0
        return next((sign(term) for term in difference.terms if term), 0)

    def __gt__(self, other: Any) -> bool:
        return self._sign(other) > 0

    def __lt__(self, other: Any) -> bool:
        return self._sign(other) < 0

    def __ge__(self, other: Any) -> bool:
        return self._sign(other) >= 0

    def __le__(self, other: Any) -> bool:
        return self._sign(other) <= 0

    def __eq__(self, other: object) -> bool:
        return self._sign(other) == 0

    __hash__ = None  # pyright: ignore

    def __bool__(self) -> bool:
        return any(self.terms)

    # What NumPy's ufuncs call. --------------------------------------------------------------------

    def expm1(self) -> Series:
        assert self.logs == 0
        assert not self.terms[0]
        total, term = self, self
        for i in range(2, TERMS):
            term = term * self / i
            total = total + term
        return total

    def exp(self) -> Series:
        return Series(self.terms).expm1() + 1

    def log1p(self) -> Series:
        total, power = Series.of(0), Series.of(1)
        assert not self.terms[0]
        for i in range(1, TERMS):
            power = power * self
            total = total + power * Fraction((-1) ** (i + 1), i)
        return total

    def sqrt(self) -> Root | Series:
        if self.terms[0] != K.one:
            return Root(self) if self else self
        root = [K.one]
        for n, a in enumerate(self.terms[1:], 1):
            root.append((a - sum((root[i] * root[n - i] for i in range(1, n)), K.zero)) / 2)
        return Series(root)

    def square(self) -> Series:
        return self * self


class Root:
    """The square root of a series, which only products and `square` see: what multiplies noise."""

    def __init__(self, square: Series):
        self.inside = square

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return NotImplemented
        square = other.inside if isinstance(other, Root) else Series.of(other) * Series.of(other)
        return Root(self.inside * square) if square else Series.of(0)

    def __add__(self, other: Any) -> Root:
        if other:
            raise TypeError("a root and a series have no sum")
        return self

    __radd__, __rmul__ = __add__, __mul__

    def __bool__(self) -> bool:
        return bool(self.inside)


class Vector:
    """A sum of words, each times a series: the words are products of matrices and a vector."""

    def __init__(self, words: dict[tuple[str, ...], Series]):
        self.words = words

    def __add__(self, other: Vector | int) -> Vector:
        if not isinstance(other, Vector):
            assert not other
            return self
        words = dict(self.words)
        for word, a in other.words.items():
            words[word] = words[word] + a if word in words else a
        return Vector(words)

    def __mul__(self, factor: Any) -> Vector:
        return Vector({word: a * factor for word, a in self.words.items()})

    __rmul__, __radd__ = __mul__, __add__

    def __sub__(self, other: Vector) -> Vector:
        return self + other * -1

    def __truediv__(self, divisor: Any) -> Vector:
        return Vector({word: a / divisor for word, a in self.words.items()})

    def after(self, matrix: str) -> Vector:
        """A matrix times this vector."""
        return Vector({(matrix, *word): a for word, a in self.words.items()})

    @property
    def order(self) -> int:
        """The lowest power of ε in it; TERMS if there is none that is known."""
        order = min((a.order for a in self.words.values() if a), default=TERMS)
        if any(len(a.terms) < order for a in self.words.values()):
            raise ValueError("too few terms to tell; let TERMS be larger")
        return order


def by_element(name: str, a: Any) -> Any:
    """A function of series, and of the numbers among them."""
    if not isinstance(a, (np.ndarray, Series)):
        return getattr(math, name)(a)
    return np.frompyfunc(lambda x: getattr(Series.of(x), name)(), 1, 1)(a)


def by_kind(a: Any, test: Callable[[float], bool]) -> Any:
    """A test of the floats in an array, which no series passes."""
    return np.vectorize(lambda x: isinstance(x, float) and test(x), otypes=[bool])(a)


class Exact:
    """NumPy, with what it lacks on object arrays."""

    float64 = object

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def isfinite(a: Any) -> Any:
        return np.vectorize(lambda x: not isinstance(x, float) or math.isfinite(x), otypes=[bool])(
            a
        )

    @staticmethod
    def isnan(a: Any) -> Any:
        return by_kind(a, math.isnan)

    @staticmethod
    def isinf(a: Any) -> Any:
        return by_kind(a, math.isinf)

    @staticmethod
    def exp(a: Any) -> Any:
        return by_element("exp", a)

    @staticmethod
    def expm1(a: Any) -> Any:
        return by_element("expm1", a)

    @staticmethod
    def log1p(a: Any) -> Any:
        return by_element("log1p", a)

    @staticmethod
    def sqrt(a: Any) -> Any:
        return by_element("sqrt", a)

    @staticmethod
    def zeros(shape: Any) -> Any:
        return np.full(shape, 0, dtype=object)

    @staticmethod
    def bincount(at: Any, weights: Any, minlength: int) -> Any:
        total = np.full(minlength, 0, dtype=object)
        np.add.at(total, at, weights)
        return total

    class linalg:
        @staticmethod
        def solve(systems: Any, wanted: Any) -> Any:
            """By elimination."""
            found = np.full(wanted.shape, 0, dtype=object)
            for i, system in enumerate(systems):
                columns = np.concatenate([system, wanted[i]], axis=1)
                rows = [[Series.of(a) for a in row] for row in columns]
                for n in range(len(rows)):
                    pivot = min(range(n, len(rows)), key=lambda j: rows[j][n].order)
                    rows[n], rows[pivot] = rows[pivot], rows[n]
                    lead = rows[n][n]
                    rows[n] = [a / lead if a else a for a in rows[n]]
                    for j in range(len(rows)):
                        if j != n and rows[j][n]:
                            factor = rows[j][n]
                            rows[j] = [
                                a - factor * b if b else a
                                for a, b in zip(rows[j], rows[n], strict=True)
                            ]
                found[i, :, 0] = [row[-1] for row in rows]
            return found

    class polynomial:
        class legendre:
            @staticmethod
            def leggauss(points: int) -> Any:
                """Another rule, of rational points, that is exact on all terms of a `Series`.

                So is Gauss and Legendre's, whose points are not rational: both give the integral.
                """
                assert 2 * points - 1 >= TERMS
                node = [Fraction(2 * i, TERMS - 1) - 1 for i in range(TERMS)]
                powers = [[Series.of(x**m) for x in node] for m in range(TERMS)]
                moments = [[Series.of(Fraction((m + 1) % 2 * 2, m + 1))] for m in range(TERMS)]
                weight = Exact.linalg.solve(
                    np.array([powers], dtype=object), np.array([moments], dtype=object)
                )
                return np.array([Series.of(x) for x in node], dtype=object), weight[0, :, 0]


@contextmanager
def exactly() -> Iterator[None]:
    """Where the solvers' modules compute with `Exact` instead of NumPy."""
    names = ("tables", "multistep", "adams", "dpm_solver", "edm", "extended", "first_order")
    with ExitStack() as stack:
        for name in (*names, "reversible", "unipc", "unrolled"):
            stack.enter_context(mock.patch.object(getattr(package, name), "np", Exact()))
        yield
