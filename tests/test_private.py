"""Private training: each example's gradient is clipped, noise is drawn once, epsilon is what the paper says."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import close, initial, mapped, noise_by_example
from test_parallel import batches, regression, trained

from experiments import gan_mnist, gan_toy, vae_mnist
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import log, parallel
from jaxgen.data import load_images
from jaxgen.data.source import batch_indices
from jaxgen.errors import UserError
from jaxgen.experiment import abstract_state, built, guarantee
from jaxgen.privacy import default_delta, epsilon, releases
from jaxgen.run import chunk, initial_state, run
from jaxgen.step import make_step
from jaxgen.types import Aux, Model, Objective, Private

pytestmark = pytest.mark.usefixtures("one_device")


def private(model: Model, *, norm: float, noise: float, optimizer=None) -> Model:
    """The same model, trained in private."""
    one = model.objectives[0]
    optimizer = Private(*(optimizer or one.optimizer), norm, noise)
    return replace(model, objectives=(one._replace(optimizer=optimizer),))


def first(steps: int = 1, size: int = 8) -> dict:
    return {name: jnp.asarray(x[0]) for name, x in batches(steps, size).items()}


def change(model: Model, batch: dict, **options):
    """What one step adds to the parameters."""
    state = initial(model, batch)
    new, metrics = jax.jit(make_step(model, **options))(state, batch)
    return jax.tree.map(jnp.subtract, new.params, state.params), metrics


def test_gradients_are_clipped_one_by_one():
    """Against a loop over the examples, and against optax's own aggregate."""
    model, batch, norm = regression(), first(), 25.0
    params = initial(model, batch).params
    loss = model.objectives[0].loss

    def gradient(x, y):
        return jax.grad(lambda p: loss(p, {"x": x[None], "y": y[None]}, jax.random.key(0))[0])(params)

    each = list(map(jax.jit(gradient), batch["x"], batch["y"]))
    lengths = np.array([math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(one))) for one in each])
    scales = np.minimum(1, norm / lengths)
    assert 0 < (scales < 1).sum() < 8
    gradients = [jax.tree.map(lambda g, scale=scale: scale * g, one) for one, scale in zip(each, scales, strict=True)]
    expected = jax.tree.map(lambda *g: -sum(g) / 8, *gradients)
    found, metrics = change(private(model, norm=norm, noise=0.0, optimizer=optax.sgd(1.0)), batch, guard=True)
    close(found, expected, atol=1e-5)
    np.testing.assert_allclose(metrics["net gradient norm"], optax.tree.norm(expected), rtol=1e-5)
    aggregate = optax.contrib.differentially_private_aggregate(norm, 0.0, key=jax.random.key(0))
    per_example = jax.tree.map(lambda *g: jnp.stack(g), *each)
    close(aggregate.update(per_example, aggregate.init(params))[0], jax.tree.map(jnp.negative, expected), atol=1e-5)


def test_one_example_moves_the_step_by_no_more_than_the_norm():
    model = private(regression(), norm=0.5, noise=0.0, optimizer=optax.sgd(1.0))
    batch = first()
    other = batch | {"y": batch["y"].at[3].set(1e3)}
    difference = optax.tree.norm(optax.tree.sub(change(model, batch)[0], change(model, other)[0]))
    assert 0.01 < difference <= 2 * 0.5 / 8 + 1e-6


def test_without_noise_and_with_a_large_norm_a_step_is_the_ordinary_one():
    model = noise_by_example(regression(noise=0.1))  # noise that belongs to an example, in a batch of any size
    batch = first() | {"index": jnp.arange(8)}
    close(change(model, batch)[0], change(private(model, norm=1e6, noise=0.0), batch)[0], atol=1e-7)


def flat() -> Model:
    """A loss without a gradient: whatever moves is noise."""
    return Model(
        init=lambda key, batch: {"net": {"a": jnp.zeros((100, 50)), "b": jnp.zeros(5000)}},
        objectives=(Objective("net", lambda p, batch, key: (0.0 * p["net"]["b"].sum(), Aux()), optax.sgd(1.0)),),
        evaluate=lambda params, batch, key: {"loss": jnp.zeros(len(batch["x"]))},
        sample=lambda params, key, n, condition=None: jnp.zeros((n, 3)),
    )


@pytest.mark.parametrize("how", ["plain", "parts", "shards"])
def test_noise_has_its_scale_and_is_drawn_once(how):
    model, batch, deviation = private(flat(), norm=0.5, noise=3.0), first(), 3.0 * 0.5 / 8
    if how == "shards":
        (moved, _), (other, _) = mapped(model, initial(model, batch), batch)
        close(moved, other)
    else:
        moved, _ = change(model, batch, accumulate=2 if how == "parts" else 1)
    close(moved, change(model, batch)[0])  # the same draw, however the batch is split
    a, b = (np.ravel(moved["net"][name]) / deviation for name in "ab")
    for x in (a, b):
        assert abs(x.mean()) < 4 / math.sqrt(5000)
        assert abs(x.var() - 1) < 4 * math.sqrt(2 / 5000)
        assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / 5000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(5000)


def test_noise_is_of_the_seed_and_the_step():
    model, batch = private(flat(), norm=1.0, noise=1.0), first()
    step, state = jax.jit(make_step(model)), initial(model, batch)
    moves = []
    for key in (state.key, jax.random.key(7)):
        start = state.replace(key=key)
        one, _ = step(start, batch)
        two, _ = step(one, batch)
        moves += [one.params["net"]["b"], two.params["net"]["b"] - one.params["net"]["b"]]
    correlation = np.corrcoef(np.stack(moves)) - np.eye(4)
    assert np.abs(correlation).max() < 0.07


def test_devices_agree_and_parts_are_the_whole():
    model = private(regression(noise=0.1), norm=2.0, noise=0.5)
    one, _ = trained(model, devices=1)
    close(one, *(trained(model, **options)[0] for options in ({}, {"fsdp": True}, {"guard": True})), atol=1e-5)
    quiet = private(regression(), norm=2.0, noise=0.5)  # whose examples draw nothing of their own
    ways = [{"accumulate": 2}, {"how": "shard_map"}, {"how": "pmap"}, {"how": "shard_map", "accumulate": 2}]
    close(trained(quiet)[0], *(trained(quiet, **options)[0] for options in ways), atol=1e-5)


def test_a_bad_example_is_still_found():
    model, batch = private(regression(), norm=1.0, noise=1.0), first()
    moved, metrics = change(model, batch | {"x": batch["x"].at[2].set(jnp.nan)}, guard=True)
    assert metrics["net skipped"] == 1
    assert not any(x.any() for x in jax.tree.leaves(moved))


def test_what_a_loss_writes_may_not_depend_on_examples():
    def counted(of):
        def loss(params, batch, key):
            value = ((params["net"]["w"] - batch["x"]) ** 2).mean()
            return value, Aux({"loss": value}, {"seen": params["seen"] + of(batch)})

        return Model(
            init=lambda key, batch: {"net": {"w": jnp.zeros(3)}, "seen": jnp.zeros(())},
            objectives=(Objective("net", loss, Private(*optax.sgd(0.1), 1.0, 1.0)),),
            evaluate=lambda params, batch, key: {"loss": batch["x"].sum(-1)},
            sample=lambda params, key, n, condition=None: jnp.zeros((n, 3)),
        )

    model, batch = counted(lambda batch: 1), first()
    assert jax.jit(make_step(model))(initial(model, batch), batch)[0].params["seen"] == 1
    model = counted(lambda batch: batch["x"].sum())
    with pytest.raises(UserError, match="as batch normalisation does"):
        jax.jit(make_step(model))(initial(model, batch), batch)


def test_no_batch_holds_an_example_twice():
    found = batch_indices(50, 16, seed=3, start=0, stop=9, whole=True)
    assert all(len(set(row)) == 16 for row in found)
    assert all(len(set(found[i : i + 3].ravel())) == 48 for i in (0, 3, 6))
    assert any(len(set(row)) < 16 for row in batch_indices(50, 16, seed=3, start=0, stop=90))
    np.testing.assert_array_equal(batch_indices(50, 16, seed=3, start=4, stop=7, whole=True), found[4:7])
    np.testing.assert_array_equal(
        batch_indices(48, 16, seed=3, start=0, stop=9, whole=True), batch_indices(48, 16, seed=3, start=0, stop=9)
    )


# Epsilon --------------------------------------------------------------------------------------------------------------


def renyi(q: float, sigma: float, steps: int, delta: float) -> float:
    """Epsilon by integration: Mironov et al. 2019, eq. 4, converted as in Canonne et al. 2020, proposition 12."""
    width = 12 * sigma + 60
    x = np.linspace(-width, width, 400_001)
    log_p = -(x**2) / (2 * sigma**2) - 0.5 * np.log(2 * np.pi * sigma**2)
    log_ratio = np.logaddexp(np.log1p(-q) if q < 1 else -np.inf, np.log(q) + (2 * x - 1) / (2 * sigma**2))
    best = math.inf
    for alpha in np.concatenate([np.arange(1.1, 12, 0.1), np.arange(12, 64)]):
        exponent = log_p + alpha * log_ratio
        largest = exponent.max()
        divergence = (largest + np.log(np.trapezoid(np.exp(exponent - largest), x))) / (alpha - 1)
        best = min(best, steps * divergence + math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1))
    return best


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [(256 / 60_000, 1.1, 14_062, 1e-5), (0.025, 1.0, 3_000, 1e-4), (0.01, 4.0, 10_000, 1e-5), (1.0, 10.0, 50, 1e-5)],
)
def test_epsilon_is_that_of_an_integral(rate, noise, steps, delta):
    pytest.importorskip("dp_accounting", reason="needs the extra privacy")
    found = epsilon(sampling_rate=rate, noise_multiplier=noise, steps={1: steps}, delta=delta)
    assert found == pytest.approx(renyi(rate, noise, steps, delta), rel=0.01)


def test_epsilon_of_several_gradients_of_a_batch():
    pytest.importorskip("dp_accounting", reason="needs the extra privacy")
    common = {"sampling_rate": 0.01, "delta": 1e-5}
    two = epsilon(noise_multiplier=2.0, steps={2: 100}, **common)
    assert two == pytest.approx(epsilon(noise_multiplier=2**0.5, steps={1: 100}, **common))
    assert two > epsilon(noise_multiplier=2.0, steps={1: 200}, **common)  # of batches that are independent
    assert epsilon(noise_multiplier=2.0, steps={}, **common) == 0
    assert epsilon(noise_multiplier=0.0, steps={1: 1}, **common) == math.inf


def test_gradients_of_each_step_are_counted():
    def objective(every):
        return Objective("net", None, None, every)

    assert releases([objective(1)], 7) == {1: 7}
    assert releases([objective(1), objective(4), objective(2)], 9) == {1: 5, 2: 2, 3: 2}
    assert releases([objective(3)], 2) == {}


def test_delta_is_below_one_over_the_examples():
    assert [default_delta(n) for n in (999, 1000, 4000, 10_000, 60_000)] == [1e-3, 1e-4, 1e-4, 1e-5, 1e-5]


# Runs -----------------------------------------------------------------------------------------------------------------

OPTIMIZER = flags.OptimizerConfig(noise_multiplier=1.0, example_norm=1.0, ema_decay=0.9)


def config_of(path, **options) -> vae_mnist.Config:
    config = vae_mnist.Config(
        workdir=path,
        steps=6,
        batch_size=32,
        data=flags.ImageDataConfig("mnist_5k", image_size=8),
        model=vae_mnist.ModelConfig(hidden=(8,), latents=(3,), depth=1),
        optimizer=OPTIMIZER,
        evaluate=vae_mnist.EvaluateConfig(nll_samples=2, copies=None),
        run=flags.RunConfig(log_every=3, chunk=3, checkpoint_every=3),
    )
    return replace(config, **options)


def test_a_private_run_says_epsilon_and_goes_on_to_the_bit(tmp_path, capsys):
    pytest.importorskip("dp_accounting", reason="needs the extra privacy")
    config = config_of(tmp_path / "run")
    run(config, vae_mnist.load, vae_mnist.build, "vae_mnist", "python -m experiments.vae_mnist")
    value = epsilon(sampling_rate=32 / 4000, noise_multiplier=1.0, steps={1: 6}, delta=1e-4)
    name = "epsilon (delta 0.0001, noise 1, 6 steps of 32 of 4,000 examples, as if batches were drawn at random: "
    assert name in capsys.readouterr().out
    figures = next(row["figures"] for row in log.read(config.workdir) if "figures" in row)
    assert next(v for k, v in figures.items() if k.startswith(name)) == [pytest.approx(value), 0.0]
    assert name in (config.workdir / "report.html").read_text()
    commands.main(["evaluate", str(config.workdir), "--delta", "1e-6"])
    assert "epsilon (delta 1e-06, " in capsys.readouterr().out

    data = vae_mnist.load(config)
    experiment = vae_mnist.build(config, data.spec)
    template = abstract_state(config, experiment.model, data.spec, parallel.make_mesh())
    middle, end = (initial_state(config, experiment, data, template, most=step) for step in (3, 6))
    assert (int(middle.step), int(end.step)) == (3, 6)
    make = partial(make_step, experiment.model, ema_decay=0.9, guard=True)
    steps = parallel.compile_steps(make, template, parallel.make_mesh())
    again, _ = steps(middle, parallel.put_chunk(chunk(config, data, 3, 6), parallel.make_mesh()))
    jax.tree.map(np.testing.assert_array_equal, bits(again), bits(end))


def bits(state):
    return jax.device_get(replace(state, key=jax.random.key_data(state.key)))


def test_a_private_model_starts_without_the_data(tmp_path):
    """Others start at the mean of their images; its output bias, too, would give some of them away."""
    data = vae_mnist.load(config_of(tmp_path))
    biases = []
    for optimizer in (OPTIMIZER, flags.OptimizerConfig()):
        config = config_of(tmp_path, optimizer=optimizer)
        experiment = vae_mnist.build(config, data.spec)
        template = abstract_state(config, experiment.model, data.spec, parallel.make_mesh())
        for test in (data, replace(data, train={"image": 255 - data.train["image"], "label": data.train["label"]})):
            params = initial_state(config, experiment, test, template).params
            biases.append(jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)]))
    np.testing.assert_array_equal(*biases[:2])
    assert not np.array_equal(*biases[2:])


def test_epsilon_counts_both_players_of_a_game(tmp_path):
    pytest.importorskip("dp_accounting", reason="needs the extra privacy")
    model = gan_mnist.ModelConfig(width=4, norm="group", lazy=2, n_critic=3)
    config = gan_mnist.Config(steps=6, batch_size=8, optimizer=OPTIMIZER, model=model)
    config = replace(config, data=flags.ImageDataConfig("mnist_5k", binarization="none", image_size=8))
    data = gan_mnist.load(config)
    model = built(gan_mnist.build, config, data.spec).model
    assert releases(model.objectives, 6) == {1: 2, 2: 1, 3: 2, 4: 1}  # R1 and R2 at every second, G at every third
    (name, value), *_ = guarantee(config, model, len(data), 6).items()
    assert name.startswith("epsilon (delta 0.0001, noise 1, 6 steps of 8 of 4,000")
    assert value.mean > 0
    batch = {"image": data.train["image"][:8], "label": data.train["label"][:8]}
    state, metrics = jax.jit(make_step(model, guard=True))(initial(model, batch), batch)
    assert metrics["discriminator skipped"] == 0
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])).all()


def test_without_noise_there_is_no_guarantee(tmp_path):
    """Gradients of examples that are clipped, and no more."""
    config = config_of(tmp_path / "run", optimizer=replace(OPTIMIZER, noise_multiplier=0.0))
    run(config, vae_mnist.load, vae_mnist.build, "vae_mnist", "")
    figures = next(row["figures"] for row in log.read(config.workdir) if "figures" in row)
    assert any(name.startswith("test NLL") for name in figures)
    assert not any("epsilon" in name for name in figures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": flags.OptimizerConfig(noise_multiplier=1.0)}, "expected both of them, or neither"),
        ({"optimizer": flags.OptimizerConfig(example_norm=1.0)}, "expected both of them, or neither"),
        ({"optimizer": replace(OPTIMIZER, noise_multiplier=-1.0)}, "noise-multiplier -1.0: expected at least 0"),
        ({"optimizer": replace(OPTIMIZER, example_norm=0.0)}, "example-norm 0.0: expected a number above 0"),
        ({"evaluate": vae_mnist.EvaluateConfig(delta=1.0)}, "delta 1.0: expected a number between 0 and 1, or None"),
        ({"batch_size": 4004}, "batch-size 4004: private training wants at most one example of each"),
        ({"model": vae_mnist.ModelConfig(total_correlation=2.0)}, "total-correlation 2 is estimated between examples"),
    ],
)
def test_what_cannot_be_private_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(config_of(tmp_path / "run", **options), vae_mnist.load, vae_mnist.build, "vae_mnist", "")


def test_a_missing_package_is_said_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxgen.privacy.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs dp-accounting: pip install -e '\.\[privacy\]'"):
        run(config_of(tmp_path / "run"), None, None, "vae_mnist", "")
    assert not (tmp_path / "run").exists()


def test_games_between_examples_are_refused():
    config = gan_toy.Config(optimizer=OPTIMIZER, model=gan_toy.ModelConfig(pack=2))
    spec = gan_toy.load(config).spec
    with pytest.raises(UserError, match="pack 2 judges several examples together"):
        gan_toy.build(config, spec)
    data = load_images("mnist_5k", image_size=16)  # of 8x8 the discriminator normalises nothing
    batch = {"image": data.train["image"][:8], "label": data.train["label"][:8]}
    spec = replace(data.spec, binarization="none")
    for options in ({"norm": "batch"}, {"norm": "group", "discriminator_norm": "batch"}):
        options = gan_mnist.ModelConfig(width=4, **options)
        config = gan_mnist.Config(optimizer=OPTIMIZER, model=options)
        model = gan_mnist.build(config, spec).model
        with pytest.raises(UserError, match="as batch normalisation does"):
            jax.eval_shape(lambda model=model: make_step(model)(initial(model, batch), batch))


def test_an_optimiser_that_was_made_by_hand_is_refused():
    data = vae_mnist.load(config_of(None))

    def build(config, spec):
        return vae_mnist.build(replace(config, optimizer=flags.OptimizerConfig()), spec)

    with pytest.raises(UserError, match="vae has an optimiser without noise"):
        built(build, config_of(None), data.spec)
