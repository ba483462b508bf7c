"""Slow reference implementations of the set-wise preference's probability."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import mpmath


def by_permutations(s, levels):
    """Equation (8): the sum over all orders of the positives (level >= 1); N! terms."""
    weights = [math.exp(value) for value in s]
    positives = [i for i, level in enumerate(levels) if level >= 1]
    negative_mass = sum(weights[i] for i, level in enumerate(levels) if level == 0)
    total = 0.0
    for order in itertools.permutations(positives):
        probability = 1.0
        for n, item in enumerate(order):
            probability *= weights[item] / (negative_mass + sum(weights[i] for i in order[n:]))
        total += probability
    return total


def logp_by_inclusion_exclusion(a, digits):
    """log P_PL = log Σ_{A ⊆ P} (−1)^|A| / (1 + Σ_A r), r = exp(a), equation (31), in mpmath.

    Equal values of a are counted together: a value that occurs n times gives n + 1 terms, not 2^n.
    Terms cancel, so `digits` must be many more than P has zeros.
    """
    with mpmath.workdps(digits):
        groups = [(mpmath.exp(value), count) for value, count in Counter(a).items()]
        total = mpmath.mpf(0)
        for taken in itertools.product(*(range(count + 1) for _, count in groups)):
            sign = -1 if sum(taken) % 2 else 1
            ways = math.prod(
                math.comb(count, k) for (_, count), k in zip(groups, taken, strict=True)
            )
            mass = sum(r * k for (r, _), k in zip(groups, taken, strict=True))
            total += sign * ways / (1 + mass)
        return float(mpmath.log(total))


def logp_of_rationals(numerators, denominator):
    """log P_PL for r_i = numerators_i / denominator, exact: inclusion-exclusion over subset sums.

    All weights may differ and N be large: subsets of equal sum are counted together in integers.
    """
    signed_counts = [1]  # of the subsets with sum m, signed by their size
    for number in numerators:
        longer = signed_counts + [0] * number
        for m, count in enumerate(signed_counts):
            longer[m + number] -= count
        signed_counts = longer
    probability = sum(
        Fraction(count * denominator, denominator + m) for m, count in enumerate(signed_counts)
    )
    return math.log(probability.numerator) - math.log(probability.denominator)
