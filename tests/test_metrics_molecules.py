"""Measures of generated molecules, on lists whose figures can be told by hand."""

import importlib.util
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from jaxgen.errors import UserError
from jaxgen.metrics import molecules as chemistry

missing = [name for name in ("rdkit", "selfies") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")

ASPIRIN, BENZENE, ETHANOL = "CC(=O)Oc1ccccc1C(=O)O", "c1ccccc1", "CCO"
FOUR = ["OCC", "C1=CC=CC=C1", "C(C", ETHANOL]  # one of them twice, one broken


def test_three_of_four_are_valid_and_two_of_three_unique():
    assert chemistry.valid(FOUR).tolist() == [True, True, False, True]
    assert chemistry.canonical(FOUR) == [ETHANOL, BENZENE, None, ETHANOL]
    assert chemistry.uniqueness(FOUR) == pytest.approx(2 / 3)
    assert chemistry.uniqueness(FOUR, 2) == 1
    assert chemistry.novelty(FOUR, {ETHANOL}) == 0.5
    assert chemistry.novelty(FOUR, set()) == 1


@pytest.mark.parametrize("broken", ["", None, "C(C", "c1ccccc", "CC(C)(C)(C)(C)C", "Zz", "c1cccc1"])
def test_what_is_no_molecule(broken, capfd):
    assert not chemistry.valid([broken]).any()
    assert np.isnan(chemistry.properties([broken])).all()
    assert capfd.readouterr().err == ""  # RDKit would complain of each


def test_of_nothing_no_figure_is_a_number():
    assert np.isnan(chemistry.uniqueness(["C(C"]))
    assert np.isnan(chemistry.novelty([], set()))
    assert np.isnan(chemistry.internal_diversity(["C(C"]))
    assert np.isnan(chemistry.nearest_similarity([], [BENZENE]))
    assert np.isnan(chemistry.cosine(Counter(), Counter("a")))
    assert np.isnan(chemistry.wasserstein(np.array([np.nan]), np.ones(3)))
    figures = chemistry.measures(["C(C", ""], [BENZENE], frozenset())
    assert figures == {"valid, %": 0, "valid and unique, %": 0}


def test_properties_are_those_of_the_literature():
    logp, qed, sa, weight = chemistry.properties([ASPIRIN, BENZENE, ETHANOL]).T
    np.testing.assert_allclose(weight, [180.16, 78.11, 46.07], atol=0.01)
    np.testing.assert_allclose(logp[:2], [1.31, 1.69], atol=0.01)  # Wildman & Crippen's contributions, summed
    assert ((qed > 0) & (qed < 1)).all()
    assert qed[0] > qed[1] > qed[2]  # a drug, a solvent, a smaller one
    assert ((sa >= 1) & (sa < 3)).all()
    assert chemistry.properties(["C1CC2CC1C3C2C4CC3C5CC45"])[0, 2] > sa.max()  # rings upon rings are hard to make


def brute_force(one, other):
    """Tanimoto similarities by sets of bits."""
    sets = [[set(np.flatnonzero(row)) for row in chemistry.fingerprints(some)] for some in (one, other)]
    return np.array([[len(a & b) / len(a | b) for b in sets[1]] for a in sets[0]])


def test_diversity_and_nearest_neighbours_by_brute_force(monkeypatch):
    some = [ASPIRIN, BENZENE, ETHANOL, "CCN", "Cc1ccccc1", "CCCCCC", "O=C(O)c1ccccc1"]
    reference = ["Oc1ccccc1", "CCCO", "CC(=O)O"]
    expected = brute_force(some, some), brute_force(some, reference)
    blocks = list(chemistry._similarities(chemistry.fingerprints(some), chemistry.fingerprints(reference), rows=2))
    assert [len(block) for block in blocks] == [2, 2, 2, 1]
    np.testing.assert_allclose(np.concatenate(blocks), expected[1], rtol=1e-6)
    assert chemistry.internal_diversity(some) == pytest.approx(1 - expected[0].mean(), rel=1e-6)
    assert chemistry.nearest_similarity(some, reference) == pytest.approx(expected[1].max(1).mean(), rel=1e-6)
    assert chemistry.nearest_similarity([BENZENE, ETHANOL], [ETHANOL, BENZENE]) == 1
    assert chemistry.internal_diversity([BENZENE] * 5) == 0
    assert chemistry.fingerprints([*FOUR]).shape == (3, 1024)


def test_fragments_and_scaffolds():
    biphenyl_ether = "CCOc1ccccc1-c1ccccc1"
    assert chemistry.scaffolds([biphenyl_ether, "Cc1ccccc1-c1ccccc1", BENZENE, ETHANOL, "C(C"]) == {
        "c1ccc(-c2ccccc2)cc1": 2  # of benzene one ring only, of ethanol none
    }
    assert chemistry.scaffolds([BENZENE], rings=1) == {BENZENE: 1}
    assert chemistry.fragments([ETHANOL, "C(C"]) == {ETHANOL: 1}  # no bond that BRICS breaks
    parts = chemistry.fragments(["CCOc1ccccc1"])
    assert sum(parts.values()) == 3  # ethyl, oxygen, phenyl
    assert chemistry.cosine(parts, parts) == pytest.approx(1)


def test_cosine_of_counts():
    one, other = Counter({"a": 3, "b": 4}), Counter({"b": 1, "c": 7})
    assert chemistry.cosine(one, other) == pytest.approx(4 / (5 * np.sqrt(50)))
    assert chemistry.cosine(one, Counter("c")) == 0


def test_wasserstein_distance_in_closed_form():
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    assert chemistry.wasserstein(x, x + 3) == pytest.approx(3)
    assert chemistry.wasserstein(x, np.repeat(x, 7)) == pytest.approx(0, abs=1e-12)
    y = rng.normal(1, 2, 100)
    assert chemistry.wasserstein(x, y) == pytest.approx(np.abs(np.sort(x) - np.sort(y)).mean())
    assert chemistry.wasserstein([0, 1], [0, 0, 0, 1]) == pytest.approx(0.25)
    assert chemistry.wasserstein([0, 1, np.nan], [0, 0, 0, 1]) == pytest.approx(0.25)


def test_alerts():
    azo, acid_chloride = "c1ccc(cc1)N=Nc1ccc(O)cc1", "CC(=O)Cl"
    assert chemistry.alerts([azo, ETHANOL, "C(C"], "PAINS") == 0.5
    assert chemistry.alerts([acid_chloride, BENZENE, BENZENE, BENZENE], "BRENK") == 0.25


def test_all_measures_of_a_set_against_itself():
    some = ["CCOc1ccccc1-c1ccccc1", ASPIRIN, "CCN", "Cc1ccc2ccccc2c1"]
    some = chemistry.canonical(some)
    figures = chemistry.measures([*some, "C(C"], some, frozenset(some[:1]))
    assert figures["valid, %"] == figures["valid and unique, %"] == 80
    assert figures["novel, %"] == 75
    for name in ("SNN", "fragment similarity", "scaffold similarity"):
        assert figures[name] == pytest.approx(1)
    assert all(value == pytest.approx(0) for name, value in figures.items() if "Wasserstein" in name)
    assert "unique@1k, %" not in figures  # there are not so many
    assert "novel, %" not in chemistry.measures(some, some, None)


def test_frechet_chemnet_distance_where_it_is_installed(monkeypatch):
    asked = []

    def get_fcd(one, other):
        asked.extend([one, other])
        return np.float64(1.5)

    monkeypatch.setitem(sys.modules, "fcd", SimpleNamespace(get_fcd=get_fcd, __spec__=object()))
    assert chemistry.frechet_chemnet(FOUR, [BENZENE]) == 1.5
    assert asked == [[ETHANOL, BENZENE, ETHANOL], [BENZENE]]
    monkeypatch.delitem(sys.modules, "fcd")
    if importlib.util.find_spec("fcd") is None:
        assert chemistry.frechet_chemnet(FOUR, [BENZENE]) is None


def test_without_rdkit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(UserError, match=r"molecules need RDKit .*pip install rdkit"):
        chemistry.canonical(FOUR)
