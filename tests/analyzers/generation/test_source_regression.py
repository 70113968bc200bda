import numpy as np
import pytest

from layerlens.analyzers.generation.source_regression import fit, masks


def planted(random, sources, noise=0.0, count=12, agreement=0.9, size=1.0):
    """A linear truth, a prior that agrees with it, ablations (the first one whole) and their scores."""
    truth = size * random.normal(size=sources) * random.choice([0.1, 2.0], size=sources)
    other = random.permutation(truth)
    prior = agreement * truth + np.sqrt(1 - agreement**2) * other
    kept = np.vstack([np.ones((1, sources), dtype=bool), masks(count - 1, sources, prior, int(random.integers(1000)))])
    scores = kept @ truth - 3.0 + noise * np.linalg.norm(truth) / 2 * random.normal(size=count)
    return truth, prior[None], kept, scores[:, None]


def test_a_linear_truth_is_found_with_its_intercept():
    truth, prior, kept, scores = planted(np.random.default_rng(0), 6, count=20)
    for given in (None, prior, 100 * prior):
        values, errors, intercept = fit(kept, scores, given)
        np.testing.assert_allclose(values[0], truth, atol=0.15 * np.abs(truth).max())
        np.testing.assert_allclose(intercept, -3.0, atol=0.5)
        assert (np.abs(values[0] - truth) < 4 * errors[0]).all()


def test_values_have_the_unit_of_the_scores_whatever_that_of_the_prior():
    _, prior, kept, scores = planted(np.random.default_rng(1), 8, noise=0.2, count=16)
    values, errors, intercept = fit(kept, scores, prior)
    for unit in (1e-3, 1e3):
        more = fit(kept, unit * scores + 5, unit * prior)
        np.testing.assert_allclose(more[0], unit * values, rtol=1e-6)
        np.testing.assert_allclose(more[1], unit * errors, rtol=1e-6)
        np.testing.assert_allclose(more[2], unit * intercept + 5, rtol=1e-6)


def test_standard_errors_are_calibrated():
    random = np.random.default_rng(2)
    for agreement in (0.0, 0.9):
        apart = []
        for _ in range(80):
            truth, prior, kept, scores = planted(random, 10, noise=0.3, agreement=agreement)
            values, errors, _ = fit(kept, scores, prior)
            apart.append((values[0] - truth) / errors[0])
        apart = np.abs(np.array(apart))
        assert 0.60 < (apart < 1).mean() < 0.85
        assert 0.89 < (apart < 1.96).mean() < 0.99


def correlation(random, agreement, with_prior):
    found = []
    for _ in range(60):
        truth, prior, kept, scores = planted(random, 12, noise=0.3, count=9, agreement=agreement)
        values, _, _ = fit(kept, scores, prior if with_prior else None)
        found.append(np.corrcoef(values[0], truth)[0, 1])
    return np.mean(found)


def test_a_good_prior_helps_and_noise_is_ignored():
    good, none = (correlation(np.random.default_rng(3), 0.9, prior) for prior in (True, False))
    noise, without = (correlation(np.random.default_rng(3), 0.0, prior) for prior in (True, False))
    assert good > none + 0.05
    assert noise > without - 0.05


@pytest.mark.parametrize(("sources", "count"), [(1, 2), (1, 1), (3, 1), (40, 8), (2, 30)])
def test_any_number_of_sources_and_ablations(sources, count):
    _, prior, kept, scores = planted(np.random.default_rng(4), sources, count=count)
    for given in (prior, None, np.zeros_like(prior)):
        values, errors, intercept = fit(kept, scores, given)
        assert values.shape == errors.shape == (1, sources)
        assert np.isfinite(values).all()
        assert np.isfinite(intercept).all()
        assert (np.isfinite(errors) | ((count == 1) & (given is not prior))).all()


def test_parts_are_fitted_each_with_its_own_prior():
    random = np.random.default_rng(5)
    first, second = (planted(random, 7) for _ in range(2))
    kept, prior = first[2], np.vstack([first[1], second[1]])
    scores = kept @ np.stack([first[0], second[0]], axis=1)
    values, errors, intercept = fit(kept, scores, prior)
    for part in range(2):
        alone = fit(kept, scores[:, part : part + 1], prior[part : part + 1])
        np.testing.assert_allclose(values[part], alone[0][0])
        np.testing.assert_allclose(errors[part], alone[1][0])
        np.testing.assert_allclose(intercept[part], alone[2][0])


def test_designs_are_balanced_and_their_beginning_is_a_design():
    prior = np.array([5.0, 1, 1, 0, 0, 0, 0, 0])
    design = masks(16, 8, prior, 3)
    np.testing.assert_array_equal(masks(5, 8, prior, 3), design[:5])
    np.testing.assert_array_equal(masks(16, 8, prior, 3), design)
    assert len(np.unique(design, axis=0)) == 16
    assert len(np.unique(masks(7, 3, prior[:3]), axis=0)) == 7
    assert (np.abs(design.mean(axis=0) - 0.5) < 0.2).all()
    assert masks(0, 3).shape == (0, 3)
    assert (masks(16, 8, prior, 4) != design).any()


def test_a_score_that_never_changes_has_no_effects():
    kept = masks(10, 4)
    values, _, intercept = fit(kept, np.full((10, 1), 2.5), np.ones((1, 4)))
    np.testing.assert_allclose(values, 0, atol=1e-9)
    np.testing.assert_allclose(intercept, 2.5)
