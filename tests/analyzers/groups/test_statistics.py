"""The statistics of group comparisons against closed forms, least squares, and all permutations."""

import itertools
import math

import numpy as np
import torch

from layerlens.analyzers.groups.permutation import Shuffles, corrected
from layerlens.analyzers.groups.separation import hold_out, separation
from tests.cases import normal


def effects(table, groups, strata=None, permutations=200, seed=0):
    member = torch.tensor(groups)[:, None].bool()
    strata = torch.zeros(len(groups), dtype=torch.int64) if strata is None else torch.tensor(strata)
    shuffles = Shuffles(member, strata, permutations, seed)
    return shuffles, shuffles.effect(table)


def test_hedges_g_and_its_error_in_closed_form():
    table, groups = normal(25, 7).double(), [1] * 9 + [0] * 16
    _, found = effects(table, groups)
    first, second = table[:9], table[9:]
    pooled = ((8 * first.var(dim=0) + 15 * second.var(dim=0)) / 23).sqrt()
    g = (1 - 3 / (4 * 23 - 1)) * (first.mean(dim=0) - second.mean(dim=0)) / pooled
    torch.testing.assert_close(found.difference[0], first.mean(dim=0) - second.mean(dim=0))
    torch.testing.assert_close(found.size[0], g)
    torch.testing.assert_close(found.error[0], (25 / (9 * 16) + g.square() / 50).sqrt())


def test_within_strata_it_is_the_coefficient_of_least_squares():
    table, rng = normal(40, 3).double(), np.random.default_rng(0)
    strata, groups = rng.integers(4, size=40).tolist(), rng.integers(2, size=40).tolist()
    table += torch.tensor(strata)[:, None] * 5.0  # what the strata differ by does not count
    _, found = effects(table, groups, strata)
    design = np.column_stack([groups, np.eye(4)[strata]]).astype(float)
    for column in range(3):
        y = table[:, column].numpy()
        weights, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
        np.testing.assert_allclose(found.difference[0, column], weights[0])
        g = (1 - 3 / (4 * 35 - 1)) * weights[0] / math.sqrt(residual[0] / 35)
        np.testing.assert_allclose(found.size[0, column], g)


def test_p_is_that_of_all_permutations():
    table, groups = normal(8, 3).double(), [1, 1, 1, 0, 0, 0, 0, 0]
    table[:3, 1] += 2.5

    def statistics(chosen):
        rest = [row for row in range(8) if row not in chosen]
        gap = (table[list(chosen)].mean(dim=0) - table[rest].mean(dim=0)).abs()
        return gap / (table - table.mean(dim=0)).norm(dim=0)  # monotone in |t|

    peaks = torch.stack([statistics(chosen).max() for chosen in itertools.combinations(range(8), 3)])
    exact = (peaks[:, None] >= statistics((0, 1, 2)) - 1e-12).double().mean(dim=0)
    _, found = effects(table, groups, permutations=20000)
    torch.testing.assert_close(corrected({"": found})[""][0], exact, atol=0.012, rtol=0)


def test_shuffles_stay_within_strata_and_are_uniform():
    strata = [0, 1, 0, 1, 1, 0]
    shuffles, _ = effects(normal(6, 1).double(), [1, 0, 0, 1, 0, 1], strata, permutations=6000)
    assert torch.equal(torch.tensor(strata)[shuffles.orders], torch.tensor(strata).expand(6000, 6))
    share = (shuffles.orders[:, 0] == torch.tensor([[0], [2], [5]])).double().mean(dim=1)
    torch.testing.assert_close(share, torch.full_like(share, 1 / 3), atol=0.03, rtol=0)


def test_false_findings_anywhere_are_as_rare_as_promised():
    wrong = 0
    for seed in range(200):
        tables = {name: normal(30, 20, seed=1000 * k + seed).double() for k, name in enumerate("ab")}
        found = {
            name: effects(table, [1] * 12 + [0] * 18, permutations=99, seed=seed)[1] for name, table in tables.items()
        }
        wrong += min(float(p.min()) for p in corrected(found).values()) <= 0.05
    assert 2 <= wrong <= 20  # 10 expected, standard deviation 3.1


def test_small_contrasts_do_not_hide_what_large_ones_find():
    strata = torch.tensor([0] * 100 + [1] * 12)
    group = torch.arange(112) % 2 == 0
    table = normal(112, 300).double()
    table[group, 7] += 1.2
    shuffles = Shuffles(torch.stack([group, group & (strata == 1)], dim=1), strata, 999, 0)
    p = corrected({"": shuffles.effect(table)})[""]
    alone = corrected({"": Shuffles(group[:, None], strata, 999, 0).effect(table)})[""]
    assert float(alone[0, 7]) <= 0.01 and float(p[0, 7]) <= 0.01 and (p[0] >= alone[0] - 1e-12).all()
    wrong = 0
    for seed in range(150):
        table = normal(112, 10, seed=seed).double()
        shuffles = Shuffles(torch.stack([group, group & (strata == 1)], dim=1), strata, 99, seed)
        wrong += float(corrected({"": shuffles.effect(table)})[""].min()) <= 0.05
    assert 1 <= wrong <= 16  # 7.5 expected, standard deviation 2.7


def test_constant_quantities_differ_nowhere_and_separated_ones_without_end():
    table = torch.stack([torch.full((10,), 0.1), torch.tensor([1.0] * 4 + [0.0] * 6)], dim=1).double()
    _, found = effects(table, [1] * 4 + [0] * 6)
    assert found.size[0, 0] == 0 and corrected({"": found})[""][0, 0] == 1
    assert 1000 < found.size[0, 1] < 1e4


def test_a_contrast_of_one_stratum_is_that_stratum_alone():
    table = normal(30, 4).double()
    strata = torch.tensor([0] * 14 + [1] * 16)
    group = torch.tensor([1, 0] * 15).bool()
    member = torch.stack([group, group & (strata == 1)], dim=1)
    both = Shuffles(member, strata, 50, 0).effect(table)
    _, alone = effects(table[14:], group[14:].long().tolist())
    torch.testing.assert_close(both.size[1], alone.size[0])
    torch.testing.assert_close(both.error[1], alone.error[0])


def test_separation_is_one_for_what_is_told_apart_and_chance_for_what_is_not():
    strata, groups = torch.zeros(60, dtype=torch.int64), torch.tensor([0, 1] * 30)
    shuffles = Shuffles((groups == 0)[:, None], strata, 100, 0)
    folds = hold_out(groups, strata, 0)
    assert folds.bincount().tolist() == [12] * 5 and groups[folds == 2].double().mean() == 0.5
    table = normal(60, 300).double()
    area, null = separation(table, shuffles, folds)
    assert 0.3 < float(area) < float(null) + 0.1 and 0.5 < float(null) < 0.75
    table[groups == 0, 5] += 8
    area, null = separation(table, shuffles, folds)
    assert float(area) > 0.97 and float(null) < 0.8
    area, null = separation(torch.ones(60, 3).double(), shuffles, folds)
    assert float(area) == 0.5 == float(null)
