"""Moments of softmax attention against drawn queries, keys and values.

Queries, keys and values are Gaussian with a covariance between positions, equal in every channel,
as layers of large width make them. What is exact must agree within four standard errors of the mean
over draws; what is approximate within its own allowance, stated beside it.
"""

import numpy as np
import pytest

from keras_varinit.maths.attention import Attending, Tokens, products, shares
from keras_varinit.maths.patterns import banded, everything, of_mask

pytestmark = pytest.mark.once

SIZE = 16


def drawn(covariance, rng, count, size=SIZE):
    root = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance)))
    return np.einsum("pq,nqc->npc", root, rng.standard_normal((count, len(covariance), size)))


def alike(count, correlation, second=1.0):
    return second * ((1 - correlation) * np.eye(count) + correlation)


def rising(count):
    """Late positions are larger and more alike than early ones."""
    place = np.arange(count) / count
    factor = 0.85 + 0.3 * place
    return np.outer(factor, factor) * (0.7 * np.outer(place, place) + np.diag(1 - 0.7 * place**2))


def tokens(covariance):
    classes = np.arange(len(covariance))
    return Tokens(classes, np.diag(covariance).copy(), covariance, np.zeros(len(covariance)))


def measure(q, k, v, g, seen, scale, kept, rng):
    logits = np.sqrt(scale) * np.einsum("npc,nqc->npq", q, k)
    logits = np.where(seen, logits, -np.inf)
    a = np.exp(logits - logits.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    dropped = (rng.random(a.shape) < kept) / kept
    o = np.einsum("npq,nqc->npc", a * dropped, v)
    w = dropped * np.einsum("npc,nqc->npq", g, v)
    dl = a * (w - np.sum(a * w, -1, keepdims=True))
    return {
        "output": o,
        "value": np.einsum("npq,npc->nqc", a * dropped, g),
        "query": np.sqrt(scale) * np.einsum("npq,nqc->npc", dl, k),
        "logits": dl,
        "key": np.sqrt(scale) * np.einsum("npq,npc->nqc", dl, q),
    }


def band(rows, keys):
    return np.abs(np.arange(rows)[:, None] - np.arange(keys)) < 3


# name: pattern, whether a query sees a key, covariances of queries and of keys and values, logits'
# scale, coherence of the gradient, dropout's share kept.
CASES = {
    "plain": (everything(6, 6), None, alike(6, 0), alike(6, 0), 1.0, 0.0, 1.0),
    "alike": (everything(12, 12), None, alike(12, 0.8), alike(12, 0.8), 1.0, 0.0, 1.0),
    "sharp": (everything(8, 8), None, alike(8, 0.3), alike(8, 0.3), 5.0, 0.0, 1.0),
    "coherent": (everything(12, 12), None, alike(12, 0.5), alike(12, 0.2), 1.0, 0.6, 1.0),
    "cross": (everything(5, 9), None, alike(5, 0.2), alike(9, 0.4, 2.0), 1.0, 0.3, 1.0),
    "causal": (banded(12, 12, causal=True), "causal", alike(12, 0), alike(12, 0.2), 1.0, 0.3, 1.0),
    "causal, uneven": (
        banded(12, 12, causal=True), "causal", rising(12), rising(12), 1.0, 0.2, 1.0
    ),
    "band": (banded(9, 9, causal=False, window=3), "band", alike(9, 0), alike(9, 0), 1.0, 0.0, 1.0),
    "causal band": (
        banded(9, 9, causal=True, window=3), "causal band", alike(9, 0), alike(9, 0), 1.0, 0.0, 1.0
    ),
    "dropout": (everything(8, 8), None, alike(8, 0.2), alike(8, 0.4), 1.0, 0.0, 0.7),
}  # fmt: skip


def seen_by(name, rows, keys):
    causal = np.arange(rows)[:, None] >= np.arange(keys)
    return {
        None: np.ones((rows, keys), bool),
        "causal": causal,
        "band": band(rows, keys),
        "causal band": causal & band(rows, keys),
    }[name]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("as_mask", [False, True])
def test_against_draws(name, as_mask):
    """E o² exact, pairs within 5 %; gradients within 10 %, as a row's weights and the sizes of its
    keys count as uncorrelated; within 30 % at any one position where keys are unequal.
    """
    pattern, sight, of_queries, of_keys, strength, coherence, kept = CASES[name]
    seen = seen_by(sight, pattern.rows, pattern.keys)
    if as_mask:
        pattern = of_mask(seen)
    assert np.array_equal(pattern.counts, seen.sum(1))
    rng, scale = np.random.default_rng(0), strength / SIZE
    found = {key: [] for key in ("second", "pair", "value", "query", "key", "logits", "met")}
    for _ in range(40):
        q, k, v = (drawn(c, rng, 50) for c in (of_queries, of_keys, of_keys))
        g = drawn(alike(pattern.rows, coherence), rng, 50)
        result = measure(q, k, v, g, seen, scale, kept, rng)
        o = result["output"]
        found["second"].append((o**2).mean((0, 2)))
        found["pair"].append(np.einsum("npc,nqc->pq", o, o) / o[:, 0].size)
        for key in ("value", "query", "key"):
            found[key].append((result[key] ** 2).mean((0, 2)))
        found["logits"].append((result["logits"] ** 2).mean((0, 2)))
        sums = (result["value"].sum(1) ** 2).mean() - (result["value"] ** 2).sum(1).mean()
        found["met"].append(sums / (pattern.keys * (pattern.keys - 1)))
    query, key = tokens(of_queries), tokens(of_keys)
    logits = products(query, key, pattern, scale, SIZE)
    attending = Attending(query, key, key, pattern, logits, SIZE, kept)
    back = attending.backward(np.ones(pattern.rows), coherence)
    met = back["value"][1] * back["value"][0].mean()
    expected = {
        "second": attending.second(),
        "pair": attending.pair(),
        "met": np.array(met),
    }
    expected |= {key: second for key, (second, _) in back.items()}
    off = ~np.eye(pattern.rows, dtype=bool)
    for key, wanted in expected.items():
        values = np.array(found[key])
        if key == "pair":
            values, wanted = values[:, off].mean(1), wanted[off].mean()
        mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
        allowance = {"second": 0.0, "pair": 0.05}.get(key, 0.3 if "uneven" in name else 0.1)
        gap = np.abs(mean - wanted) - 4 * error - allowance * np.abs(wanted)
        assert np.all(gap <= 1e-12), (key, mean, wanted)


def test_shares_at_their_ends():
    """One key takes everything; equal logits are even; large ones leave one winner."""
    counts = np.array([1.0, 4.0, 100.0])
    assert np.allclose(shares(2.0, counts[:1]), 1.0)
    assert np.allclose(shares(0.0, counts)[0], [1, 1 / 4, 1 / 100])
    assert np.allclose(shares(1e-6, counts)[1], [1, 1 / 16, 1e-4], rtol=1e-4)
    assert shares(900.0, np.array([4.0]))[0] > 0.9
    # Many keys: Σ A² → e^{σ²}/n.
    assert shares(1.0, np.array([1e5]))[0] * 1e5 == pytest.approx(np.e, rel=0.01)


def test_a_row_that_sees_no_key_sees_all():
    pattern = of_mask(np.array([[True, False], [False, False]]))
    assert np.array_equal(pattern.counts, [1, 2])
