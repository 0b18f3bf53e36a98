"""How good generated molecules are: SMILES in, figures out. RDKit does the chemistry.

Definitions are those of MOSES (Polykovskiy et al. 2020, section 4) unless a function names another source. A SMILES is
valid if it has at most `LONGEST` characters and RDKit makes a molecule of it that has an atom.
"""

import importlib.util
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxgen.errors import UserError, install

PROPERTIES = ("logP", "QED", "SA", "weight")
LONGEST = 2_000  # characters of a SMILES; RDKit's recursion overflows the stack at 20,000
TOLERANCE = {"logP": 0.5, "QED": 0.1, "SA": 0.5, "weight": 25.0}  # of what counts as what was asked for


def rdkit() -> ModuleType:
    """The package, with `Chem` loaded. UserError: it is not installed."""
    try:
        import rdkit
        import rdkit.Chem
    except ImportError as error:
        raise UserError(f"molecules need RDKit ({error}): {install('rdkit')}") from error
    return rdkit


def _of_each(smiles: Sequence[str | None], what: Callable[[Any], Any], otherwise: Any = None) -> list[Any]:
    """`what` of the molecule of each SMILES, or `otherwise` where it is none; once for each, as generated ones repeat.

    A molecule of RDKit's takes some 30 kB: none is kept once `what` has seen it.
    """
    package = rdkit()

    @cache
    def once(one):
        molecule = package.Chem.MolFromSmiles(one) if one and len(one) <= LONGEST else None
        return otherwise if molecule is None else what(molecule)

    with package.rdBase.BlockLogs():
        return [once(one) for one in smiles]


def canonical(smiles: Sequence[str | None]) -> list[str | None]:
    """RDKit's spelling of each molecule, the same for all of its SMILES; None where it is not valid."""
    return _of_each(smiles, rdkit().Chem.MolToSmiles)


def valid(smiles: Sequence[str | None]) -> np.ndarray:
    """Bool [N]."""
    return np.array(_of_each(smiles, lambda molecule: True, otherwise=False), bool)


def properties(smiles: Sequence[str | None]) -> np.ndarray:
    """Those of `PROPERTIES` of each molecule, float64 [N, 4]; not numbers where it is not valid.

    The octanol-water partition coefficient log P (Wildman & Crippen 1999), the quantitative estimate of
    drug-likeness in [0, 1] (Bickerton et al. 2012), the score of synthetic accessibility from 1, easy, to 10 (Ertl &
    Schuffenhauer 2009), and the molecular weight in daltons.
    """
    invalid = (np.nan,) * len(PROPERTIES)
    return np.array(_of_each(smiles, _properties, invalid), np.float64).reshape(-1, len(PROPERTIES))


def _properties(molecule: Any) -> tuple[float, ...]:
    from rdkit.Chem import QED, Crippen, Descriptors

    score = _sascorer().calculateScore(molecule)
    return Crippen.MolLogP(molecule), QED.qed(molecule), score, Descriptors.MolWt(molecule)


@cache
def _sascorer() -> ModuleType:
    """A script that RDKit carries among its contributions, in no package."""
    from rdkit import RDConfig

    path = Path(RDConfig.RDContribDir, "SA_Score", "sascorer.py")
    spec = importlib.util.spec_from_file_location("jaxgen_sascorer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Of one list ----------------------------------------------------------------------------------------------------------


def uniqueness(smiles: Sequence[str | None], first: int | None = None) -> float:
    """Share of different molecules among the valid ones, or among the first so many of those."""
    known = [one for one in canonical(smiles) if one][:first]
    return len(set(known)) / len(known) if known else np.nan


def novelty(smiles: Sequence[str | None], training: Collection[str]) -> float:
    """Share of the different valid molecules that are not among `training`, which are canonical SMILES."""
    known = {one for one in canonical(smiles) if one}
    return len(known.difference(training)) / len(known) if known else np.nan


def fingerprints(smiles: Sequence[str | None], radius: int = 2, bits: int = 1024) -> np.ndarray:
    """Morgan fingerprints of the valid molecules (Rogers & Hahn 2010), uint8 [M, bits]."""
    generator = _of_fingerprints(radius, bits)
    found = _of_each(smiles, generator.GetFingerprintAsNumPy)
    return np.array([one for one in found if one is not None], np.uint8).reshape(-1, bits)


@cache
def _of_fingerprints(radius: int, bits: int) -> Any:
    rdkit()
    from rdkit.Chem import rdFingerprintGenerator

    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)


def internal_diversity(smiles: Sequence[str | None]) -> float:
    """1 minus the mean Tanimoto similarity of all pairs of valid molecules, each with itself too (Benhenda 2017)."""
    prints = fingerprints(smiles)
    total = sum(float(block.sum(dtype=np.float64)) for block in _similarities(prints, prints))
    return 1 - total / len(prints) ** 2 if len(prints) else np.nan


def _similarities(one: np.ndarray, other: np.ndarray, rows: int = 1_000) -> Iterator[np.ndarray]:
    """Tanimoto similarities of fingerprints [N, bits] and [M, bits], some rows of [N, M] at a time."""
    other, sizes = other.astype(np.float32), other.sum(1, dtype=np.float32)
    for start in range(0, len(one), rows):
        block = one[start : start + rows].astype(np.float32)
        common = block @ other.T
        yield common / np.maximum(block.sum(1)[:, None] + sizes - common, 1)


@cache
def _catalog(name: str) -> Any:
    rdkit()
    from rdkit.Chem import FilterCatalog

    parameters = FilterCatalog.FilterCatalogParams()
    parameters.AddCatalog(getattr(FilterCatalog.FilterCatalogParams.FilterCatalogs, name))
    return FilterCatalog.FilterCatalog(parameters)


def alerts(smiles: Sequence[str | None], catalog: str) -> float:
    """Share of the valid molecules that have a part which a catalogue of RDKit's warns of.

    "PAINS" are those that disturb assays (Baell & Holloway 2010), "BRENK" those that are toxic, reactive or unstable
    (Brenk et al. 2008).
    """
    known = [one for one in canonical(smiles) if one]
    if not known:
        return np.nan
    from rdkit.Chem import FilterCatalog

    found = FilterCatalog.RunFilterCatalog(_catalog(catalog), known, numThreads=0)  # milliseconds each, on all cores
    return float(np.mean([len(entries) > 0 for entries in found]))


# Of generated molecules against others --------------------------------------------------------------------------------


def nearest_similarity(smiles: Sequence[str | None], reference: Sequence[str]) -> float:
    """SNN: mean over valid molecules of the Tanimoto similarity to the nearest of the reference."""
    best = [block.max(1) for block in _similarities(fingerprints(smiles), fingerprints(reference))]
    return float(np.concatenate(best).mean()) if best else np.nan


def fragments(smiles: Sequence[str | None]) -> Counter:
    """How often each BRICS fragment occurs in the valid molecules (Degen et al. 2008)."""
    chem, found = rdkit().Chem, Counter()
    from rdkit.Chem.BRICS import BreakBRICSBonds

    for parts in _of_each(smiles, lambda molecule: chem.MolToSmiles(BreakBRICSBonds(molecule)).split("."), ()):
        found.update(parts)
    return found


def scaffolds(smiles: Sequence[str | None], rings: int = 2) -> Counter:
    """How often each scaffold of at least so many rings occurs in the valid molecules (Bemis & Murcko 1996)."""
    chem, found = rdkit().Chem, Counter()
    from rdkit.Chem.Scaffolds.MurckoScaffold import GetScaffoldForMol

    def scaffold_of(molecule):
        scaffold = GetScaffoldForMol(molecule)
        enough = scaffold.GetNumAtoms() and scaffold.GetRingInfo().NumRings() >= rings
        return chem.MolToSmiles(scaffold) if enough else None

    found.update(one for one in _of_each(smiles, scaffold_of) if one is not None)
    return found


def cosine(one: Counter, other: Counter) -> float:
    """Cosine of the angle between two vectors of counts; not a number where one is empty."""
    norms = np.sqrt([sum(n * n for n in counts.values()) for counts in (one, other)])
    return sum(n * other[key] for key, n in one.items()) / norms.prod() if norms.all() else np.nan


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples [N], [M] of a number: the area between their distribution functions."""
    one, other = (np.sort(x[np.isfinite(x)]) for x in (np.asarray(one, float), np.asarray(other, float)))
    if not len(one) or not len(other):
        return np.nan
    steps = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(x, steps[:-1], side="right") / len(x) for x in (one, other)]
    return float((np.abs(shares[0] - shares[1]) * np.diff(steps)).sum())


def frechet_chemnet(smiles: Sequence[str | None], reference: Sequence[str]) -> float | None:
    """Frechet ChemNet distance (Preuer et al. 2018) of the valid molecules; None where `fcd` is not installed."""
    if importlib.util.find_spec("fcd") is None:
        return None
    import fcd

    return float(fcd.get_fcd([one for one in canonical(smiles) if one], list(reference)))


def measures(smiles: Sequence[str | None], reference: Sequence[str], training: Collection[str] | None) -> dict:
    """All of the above, by name; shares in percent. Of the reference, canonical and valid, and of the training set.

    Novelty wants `training`, and uniqueness at 1,000 or 10,000 as many SMILES; of those it counts the valid ones.
    """
    known = [one for one in canonical(smiles) if one]
    figures = {"valid, %": 100 * len(known) / len(smiles)}
    sizes = [n for n in (1_000, 10_000) if len(smiles) >= n and known]
    figures |= {f"unique@{n // 1000}k, %": 100 * uniqueness(known, n) for n in sizes}
    figures["valid and unique, %"] = 100 * len(set(known)) / len(smiles)
    if not known:
        return figures
    if training is not None:
        figures["novel, %"] = 100 * novelty(known, training)
    figures["internal diversity"] = internal_diversity(known)
    figures["SNN"] = nearest_similarity(known, reference)
    figures["fragment similarity"] = cosine(fragments(known), fragments(reference))
    figures["scaffold similarity"] = cosine(scaffolds(known), scaffolds(reference))
    distance = frechet_chemnet(known, reference)
    if distance is not None:
        figures["Frechet ChemNet distance"] = distance
    pairs = zip(PROPERTIES, properties(known).T, properties(reference).T, strict=True)
    figures |= {f"Wasserstein distance of {name}": wasserstein(one, other) for name, one, other in pairs}
    for name in ("PAINS", "BRENK"):
        figures[f"with {name} alerts, %"] = 100 * alerts(known, name)
        figures[f"held out with {name} alerts, %"] = 100 * alerts(reference, name)
    return figures
