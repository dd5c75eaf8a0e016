"""Bootstrap intervals: they cover what they say, whatever the statistic."""

import numpy as np
import pytest

from elidir.frontends.evaluation import bootstrap


def test_an_interval_of_95_percent_covers_about_so_many() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(200):
        found = bootstrap(rng.normal(3.0, 2.0, 60), seed=trial)
        hits += found.low <= 3.0 <= found.high
    assert 175 <= hits <= 199


def test_the_statistic_is_resampled_not_its_parts() -> None:
    samples = [0.1, 0.2, 0.9, 0.4]
    found = bootstrap(samples, 0, lambda x: np.exp(x.mean(-1)))
    plain = bootstrap(samples, 0)
    assert found.value == pytest.approx(np.exp(0.4))
    assert found.low == pytest.approx(np.exp(plain.low))
    assert found.high == pytest.approx(np.exp(plain.high))


def test_equal_samples_leave_nothing_open() -> None:
    found = bootstrap([2.0] * 9)
    assert (found.value, found.low, found.high) == (2, 2, 2)
    assert str(found) == "2 (2 to 2)"
    assert str(bootstrap([0.0])) == "0"
    assert [str(bootstrap([x])) for x in (1234.5, 0.01234, -0.5)] == ["1234", "0.0123", "-0.5"]
