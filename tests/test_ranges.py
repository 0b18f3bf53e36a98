"""Every number that a user can give has a range, and every value is accepted or refused in one line."""

import math
import typing
from dataclasses import is_dataclass, replace

import msgspec
import numpy as np
import pytest
from msgspec import Meta
from test_experiments import CONFIGS, NAMES, module_of

from experiments import vae_mnist
from jaxgen.commands import compare, data, evaluate, export, paths, replay, reproduce, sample
from jaxgen.data import Dataset
from jaxgen.errors import UserError
from jaxgen.experiment import abstract_state, built
from jaxgen.folder import load_run, record_of
from jaxgen.parallel import make_mesh
from jaxgen.run import parse

COMMANDS = (
    sample.Flags, paths.Interpolate, paths.Traverse, paths.Arithmetic, reproduce.Flags, evaluate.Evaluate,
    export.Export, compare.Compare, replay.Replay, data.Prepare, data.Inception,
)  # fmt: skip
INTEGERS = (-(10**20), -1, 0, 2, 10**9, 10**20)
FLOATS = (-math.inf, -1.0, 0.0, 0.5, 2.0, 1e9, 1e300, math.inf, math.nan)


def numbers(kind):
    """(path, type, range) of every number of a dataclass, and of the dataclasses in it."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if is_dataclass(hint):
            yield from ((f"{name}.{path}", *rest) for path, *rest in numbers(hint))
        else:
            yield from ((name, *found) for found in bounded(hint))


def bounded(hint, meta=None):
    """(int or float, its range) of the numbers in a type."""
    if hint in (int, float):
        yield hint, meta
    elif typing.get_origin(hint) is typing.Annotated:
        found = next((one for one in hint.__metadata__ if isinstance(one, Meta)), None)
        yield from bounded(hint.__origin__, found)
    elif typing.get_origin(hint) is not typing.Literal:
        for part in typing.get_args(hint):
            yield from bounded(part)


def of(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


def changed(config, path, value):
    first, _, rest = path.partition(".")
    return replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.hidden", "0"], "--model.hidden 0: expected at least 1"),
        (["--model.hidden", "200", "-1"], "--model.hidden 200 -1: expected at least 1"),
        (["--model.hidden"], "--model.hidden: expected at least 1 number"),
        (["--data.image-size", "1000000000"], "--data.image-size 1000000000: expected at most 1,024, or None"),
        (["--optimizer.b2", "2"], "--optimizer.b2 2.0: expected a number below 1"),
        (["--optimizer.clip-norm", "0"], "--optimizer.clip-norm 0.0: expected a number above 0, or None"),
        (["--model.beta", "nan"], "--model.beta nan: expected at least 0"),
        (["--model.beta", "inf"], "--model.beta inf: expected at most 1,000,000,000"),
        (["--seed", "1" * 30], f"--seed {'1' * 30}: expected at most 9,223,372,036,854,775,807"),
        (["--run.keep", "0"], "--run.keep 0: expected at least 1"),
    ],
)
def test_a_value_out_of_range_is_one_line(flags, message):
    with pytest.raises(UserError) as error:
        parse("vae_mnist", "", vae_mnist.Config(), {}, flags)
    assert str(error.value) == message


def test_a_configuration_that_was_edited_is_refused(tmp_path):
    data = Dataset("points", {"image": np.zeros((2, 4, 4, 1), np.uint8)}, {"image": np.zeros((2, 4, 4, 1), np.uint8)})
    record = record_of("vae_mnist", "", vae_mnist.Config(), data)
    edited = replace(record, config=record.config | {"model": record.config["model"] | {"hidden": [0]}})
    for one, expected in ((record, vae_mnist.Config(workdir=tmp_path)), (edited, None)):
        (tmp_path / "config.json").write_bytes(msgspec.json.encode(one))
        if expected is None:
            with pytest.raises(UserError, match=r"config.json .*>= 1 - at `\$.model.hidden"):
                load_run(tmp_path)
        else:
            assert load_run(tmp_path)[-1] == expected


KINDS = [module_of(name).Config for name in CONFIGS if " " not in name]


@pytest.mark.parametrize("kind", [*KINDS, *COMMANDS], ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_number_has_two_ends(kind):
    for path, number, meta in numbers(kind):
        low, high = (None, None) if meta is None else (meta.ge, meta.gt), (meta.le, meta.lt)
        assert any(x is not None for x in low), f"{path}: {number.__name__}"
        assert any(x is not None for x in high), f"{path}: {number.__name__}"


@pytest.mark.parametrize("name", [name for name in NAMES if "muon" not in str(name) and "iwae" not in str(name)])
def test_every_value_is_built_or_refused_in_one_line(name):
    """One flag at a time, in a model that is small otherwise; of the ends of a range, the shapes."""
    config, module = CONFIGS[name], module_of(name)
    spec, lines = module.load(config).spec, []
    for path, number, meta in numbers(type(config)):
        is_tuple = isinstance(of(config, path), tuple)
        ends = [number(x) for x in (meta.ge, meta.le) if x is not None]
        for value in [*{*(INTEGERS if number is int else FLOATS), *ends}, *[()] * is_tuple]:
            other = changed(config, path, (value,) if is_tuple and value != () else value)
            try:
                experiment = built(module.build, other, spec)
                if path.startswith("model.") and value in (*ends, 0.5):
                    abstract_state(other, experiment.model, spec, make_mesh())
            except UserError as error:
                lines.append(str(error))
            except Exception as error:
                pytest.fail(f"{path} = {value}: {type(error).__name__}: {error}")
    assert [line for line in lines if "\n" in line] == []
