"""Private training: each example's gradient is clipped, noise is drawn once, epsilon is what the paper says."""

import math
import re
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
from jaxgen.checkpoint import saved_steps
from jaxgen.data import load_images
from jaxgen.data.source import batch_indices
from jaxgen.errors import UserError
from jaxgen.experiment import abstract_state, built, guarantee
from jaxgen.privacy import RELATIONS, default_delta, epsilon, gaussian_delta, privately, releases
from jaxgen.run import chunk, initial_state, run
from jaxgen.step import make_step
from jaxgen.types import Aux, Model, Objective

pytestmark = pytest.mark.usefixtures("one_device")


def private(model: Model, *, norm: float, noise: float, optimizer=None) -> Model:
    """The same model, trained in private."""
    one = model.objectives[0]
    model = replace(model, objectives=(one._replace(optimizer=optimizer or one.optimizer),))
    return privately(model, example_norm=norm, noise_multiplier=noise)


def first(steps: int = 1, size: int = 8) -> dict:
    return {name: jnp.asarray(x[0]) for name, x in batches(steps, size).items()}


def change(model: Model, batch: dict, **options):
    """What one step adds to the parameters."""
    state = initial(model, batch)
    new, reports = jax.jit(make_step(model, **options))(state, batch)
    return jax.tree.map(jnp.subtract, new.params, state.params), reports


def test_gradients_are_clipped_one_by_one():
    """Against a loop over the examples, and against optax's own aggregate."""
    model, batch, norm = regression(), first(), 25.0
    params = initial(model, batch).params
    loss = model.objectives[0].loss

    def gradient(x, y):
        return jax.grad(lambda p: loss(p, {"x": x[None], "y": y[None]}, jax.random.key(0), 0)[0])(params)

    each = list(map(jax.jit(gradient), batch["x"], batch["y"]))
    lengths = np.array([math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(one))) for one in each])
    scales = np.minimum(1, norm / lengths)
    assert 0 < (scales < 1).sum() < 8
    gradients = [jax.tree.map(lambda g, scale=scale: scale * g, one) for one, scale in zip(each, scales, strict=True)]
    expected = jax.tree.map(lambda *g: -sum(g) / 8, *gradients)
    found, reports = change(private(model, norm=norm, noise=0.0, optimizer=optax.sgd(1.0)), batch, guard=True)
    close(found, expected, atol=1e-5)
    np.testing.assert_allclose(reports["net"].gradient_norm, optax.tree.norm(expected), rtol=1e-5)
    aggregate = optax.contrib.differentially_private_aggregate(norm, 0.0, key=jax.random.key(0))
    per_example = jax.tree.map(lambda *g: jnp.stack(g), *each)
    close(aggregate.update(per_example, aggregate.init(params))[0], jax.tree.map(jnp.negative, expected), atol=1e-5)


def test_one_example_moves_the_sum_of_gradients_by_no_more_than_its_relation_says():
    """The sensitivities that epsilon is computed with, and both are reached."""
    model, batch, norm = private(regression(), norm=0.5, noise=0.0, optimizer=optax.sgd(1.0)), first(), 0.5
    w = initial(model, batch).params["net"]
    fitted = jnp.tanh(batch["x"] @ w["w"]) @ w["v"] + w["c"]

    def moved(one, other):
        changes = [change(model, batch | {"y": batch["y"].at[3].set(y)})[0] for y in (one, other)]
        return 8 * optax.tree.norm(optax.tree.sub(*changes)) / norm

    far = 100 * fitted[3]
    assert moved(far, fitted[3]) == pytest.approx(RELATIONS["zeroed out"], abs=1e-4)  # fitted: no gradient
    assert moved(far, 2 * fitted[3] - far) == pytest.approx(RELATIONS["replaced"], abs=1e-4)  # the opposite gradient


def test_without_noise_and_with_a_large_norm_a_step_is_the_ordinary_one():
    model = noise_by_example(regression(noise=0.1))  # noise that belongs to an example, in a batch of any size
    batch = first() | {"index": jnp.arange(8)}
    close(change(model, batch)[0], change(private(model, norm=1e6, noise=0.0), batch)[0], atol=1e-7)


def flat() -> Model:
    """A loss without a gradient: whatever moves is noise."""
    return Model(
        init=lambda key, batch: {"net": {"a": jnp.zeros((100, 50)), "b": jnp.zeros(5000)}},
        objectives=(Objective("net", lambda p, batch, key, step: (0.0 * p["net"]["b"].sum(), Aux()), optax.sgd(1.0)),),
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


def test_noise_is_of_its_own_key_and_the_step():
    model, batch = private(flat(), norm=1.0, noise=1.0), first()
    step, state = jax.jit(make_step(model)), initial(model, batch)
    close(step(state, batch)[0].params, step(state.replace(key=jax.random.key(8)), batch)[0].params)
    moves = []
    for key in (state.noise, jax.random.key(7)):
        start = state.replace(noise=key)
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
    moved, reports = change(model, batch | {"x": batch["x"].at[2].set(jnp.nan)}, guard=True)
    assert reports["net"].skipped
    assert not any(x.any() for x in jax.tree.leaves(moved))


def test_what_a_loss_writes_may_not_depend_on_examples():
    def counted(of):
        def loss(params, batch, key, step):
            value = ((params["net"]["w"] - batch["x"]) ** 2).mean()
            return value, Aux({"loss": value}, {"seen": params["seen"] + of(batch)})

        model = Model(
            init=lambda key, batch: {"net": {"w": jnp.zeros(3)}, "seen": jnp.zeros(())},
            objectives=(Objective("net", loss, optax.sgd(0.1)),),
            evaluate=lambda params, batch, key: {"loss": batch["x"].sum(-1)},
            sample=lambda params, key, n, condition=None: jnp.zeros((n, 3)),
        )
        return private(model, norm=1.0, noise=1.0)

    model, batch = counted(lambda batch: 1), first()
    assert jax.jit(make_step(model))(initial(model, batch), batch)[0].params["seen"] == 1
    model = counted(lambda batch: batch["x"].sum())
    with pytest.raises(UserError, match="as batch normalization does"):
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


def shuffled(epochs: int, steps: int, sigma: float, samples: int, rng) -> np.ndarray:
    """Privacy losses log P/Q, [samples], of a worst-case pair for shuffled batches (Chua et al. 2024), under P.

    All gradients are -1 but that of one example, which is +1 under P and zeroed out under Q: up to a known offset, one
    step of each epoch releases a sum of 2 under P, of 1 under Q, and 0 at each other step, plus noise.
    """
    total = np.zeros(samples)
    for _ in range(epochs):
        x = sigma * rng.standard_normal((samples, steps), np.float32)
        x[:, 0] += 2  # the step that the example lands in is uniform, and the steps are alike
        ones, twos = (np.exp((k * x - k * k / 2) / sigma**2).sum(1, dtype=float) for k in (1, 2))
        total += np.log(twos) - np.log(ones)
    return total


def test_epsilon_is_above_a_monte_carlo_bound_for_shuffled_batches():
    """And the one for Poisson batches, which this project once printed, is below it."""
    epochs, delta, samples = 10, 1e-2, 20_000
    found = epsilon(noise_multiplier=1.0, releases=epochs, delta=delta)
    losses = shuffled(epochs, 20, 1.0, samples, np.random.default_rng(0))

    def delta_at(epsilon):
        """A lower confidence bound, by 5 standard errors."""
        terms = -np.expm1(np.minimum(0.0, epsilon - losses))
        return terms.mean() - 5 * terms.std() / math.sqrt(samples)

    assert delta_at(7.0) > delta
    assert found > 7.0 > 3.0
    assert delta_at(found) < delta


def test_epsilon_of_the_example_in_the_readme():
    """4,000 examples, batches of 200, 10 and 60 epochs. A longer Monte Carlo run gave at least 11.9 and 35.4."""
    common = {"noise_multiplier": 1.0, "delta": 1e-4}
    assert 11.9 < epsilon(releases=10, **common) == pytest.approx(16.103, abs=1e-3)
    assert 35.4 < epsilon(releases=60, **common) == pytest.approx(57.993, abs=1e-3)
    assert epsilon(releases=10, sensitivity=2, **common) == pytest.approx(42.737, abs=1e-3)


@pytest.mark.parametrize("delta", [0.3, 1e-2, 1e-5, 1e-12])
@pytest.mark.parametrize("mu", [0.01, 0.3, 1.0, 3.0, 20.0, 500.0])
def test_epsilon_is_the_root_of_its_closed_form(mu, delta):
    """Of Balle & Wang 2018, with 60 digits."""
    mpmath = pytest.importorskip("mpmath", reason="another arithmetic")
    value = epsilon(noise_multiplier=1 / mu, releases=1, delta=delta)
    with mpmath.workdps(60):
        e, m = mpmath.mpf(value), mpmath.mpf(mu)
        exact = mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)
    assert float(exact) <= delta * (1 + 1e-6)
    assert float(exact) == pytest.approx(delta, rel=1e-6) or value == 0
    assert gaussian_delta(mu, value) == pytest.approx(float(exact), rel=1e-6)


def test_epsilon_is_that_of_another_accountant():
    accounting = pytest.importorskip("dp_accounting", reason="the accountant to compare with")
    from dp_accounting.pld import PLDAccountant

    for noise, count, delta in ((1.0, 10, 1e-4), (4.0, 100, 1e-5), (20.0, 7, 1e-6)):
        accountant = PLDAccountant(accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(accounting.GaussianDpEvent(noise), count)
        found = epsilon(noise_multiplier=noise, releases=count, delta=delta)
        assert found == pytest.approx(accountant.get_epsilon(delta), rel=1e-3)


def test_epsilon_grows_with_what_is_released_and_falls_with_noise_and_delta():
    def of(noise_multiplier=1.0, releases=10, delta=1e-5, sensitivity=1.0):
        return epsilon(noise_multiplier=noise_multiplier, releases=releases, delta=delta, sensitivity=sensitivity)

    assert (np.diff([of(releases=count) for count in (0, 1, 2, 10, 1000)]) > 0).all()
    assert (np.diff([of(noise_multiplier=noise) for noise in (0.1, 1, 5, 100)]) < 0).all()
    assert (np.diff([of(delta=delta) for delta in (1e-9, 1e-5, 1e-2, 0.3)]) < 0).all()
    assert of(sensitivity=2) == pytest.approx(of(noise_multiplier=0.5), rel=1e-9)
    assert of(releases=16) == pytest.approx(of(noise_multiplier=0.25, releases=1), rel=1e-9)
    assert of(releases=0, noise_multiplier=0.0) == 0
    assert of(noise_multiplier=0.0) == of(noise_multiplier=1e-300) == math.inf
    assert of(noise_multiplier=1e9) == 0


def test_releases_are_the_most_that_the_order_of_the_data_allows():
    def objective(every):
        return Objective("net", None, None, every)

    assert releases([objective(1)], 200, 20) == 10
    assert releases([objective(1)], 201, 20) == 11
    assert releases([objective(3)], 2, 1) == releases([objective(1)], 0, 5) == 0
    players = [objective(1), objective(4), objective(2)]
    assert releases(players, 9, 3) == 2 + 3 + 3  # at most 1 2 1 | 3 1 2 | 1 3 1
    due = [sum(t % o.every == o.every - 1 for o in players) for t in range(9)]
    counts = np.zeros((50, 16), int)
    for seed in range(50):
        for step, batch in enumerate(batch_indices(16, 5, seed=seed, start=0, stop=9, whole=True)):
            counts[seed, batch] += due[step]
    assert counts.max() == 8  # an example of one of these orders meets the busiest step of each epoch


def test_delta_is_below_one_over_the_examples():
    assert [default_delta(n) for n in (999, 1000, 4000, 10_000, 60_000)] == [1e-3, 1e-4, 1e-4, 1e-5, 1e-5]


# Runs -----------------------------------------------------------------------------------------------------------------

OPTIMIZER = flags.OptimizerConfig(noise_multiplier=1.0, example_norm=1.0, ema_decay=0.9)


def config_of(path, **options) -> vae_mnist.Config:
    config = vae_mnist.Config(
        workdir=path,
        steps=6,
        batch_size=32,
        data=flags.ImageDataConfig("mnist_5k", image_size=8, validation=0.0),
        model=vae_mnist.ModelConfig(hidden=(8,), latents=(3,), depth=1),
        optimizer=OPTIMIZER,
        evaluate=vae_mnist.EvaluateConfig(nll_samples=2, copies=None),
        run=flags.RunConfig(log_every=3, chunk=3, checkpoint_every=3),
    )
    return replace(config, **options)


def state_of(config, *, most=None):
    """The newest state of a run, and its compiled steps and batches."""
    data = vae_mnist.load(config)
    experiment = built(vae_mnist.build, config, data.spec)
    mesh = parallel.make_mesh()
    template = abstract_state(config, experiment.model, data.spec, mesh)
    make = partial(make_step, experiment.model, ema_decay=0.9, guard=True)
    steps = parallel.compile_steps(make, template, mesh, stacked=config.seeds > 1)
    state = initial_state(config, experiment, data, template, most=most)

    def train(state, start, stop):
        return steps(state, parallel.put_chunk(chunk(config, data, start, stop), mesh, stacked=config.seeds > 1))[0]

    return state, train


def start(config) -> None:
    run(config, vae_mnist.load, vae_mnist.build, "vae_mnist", "python -m experiments.vae_mnist")


def test_a_private_run_says_epsilon_and_goes_on_to_the_bit(tmp_path, capsys):
    config = config_of(tmp_path / "run")
    start(config)
    printed = capsys.readouterr()
    name = "epsilon, one example {} (delta {}, noise 1, 6 steps of 32 of 4,000 examples in shuffled epochs, no amplif"
    figures = next(row["figures"] for row in log.read(config.workdir) if "figures" in row)
    for change, sensitivity in (("zeroed out", 1), ("replaced", 2)):
        value = epsilon(noise_multiplier=1.0, releases=1, delta=1e-4, sensitivity=sensitivity)
        shown = name.format(change, 0.0001)
        assert next(v for k, v in figures.items() if k.startswith(shown)) == [pytest.approx(value), 0.0]
        assert shown in printed.out
        assert shown in (config.workdir / "report.html").read_text()
    commands.main(["evaluate", str(config.workdir), "--delta", "1e-6"])
    assert name.format("replaced", "1e-06") in capsys.readouterr().out

    assert "the seed does not reproduce the run" in printed.err
    card = " ".join((config.workdir / "MODEL_CARD.md").read_text().split())
    assert "the seed does not reproduce the run" in card
    assert "the same command trains another model" in card
    assert "All randomness derives from the seed" not in card

    (middle, train), (end, _) = (state_of(config, most=step) for step in (3, 6))
    assert (int(middle.step), int(end.step)) == (3, 6)
    jax.tree.map(np.testing.assert_array_equal, bits(train(middle, 3, 6)), bits(end))


def test_noise_cannot_be_drawn_again_from_what_a_run_writes_down(tmp_path, monkeypatch):
    """Two runs of one configuration differ; no file but the checkpoint holds the key, nor a compiled program."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    ends = []
    for name in ("one", "other"):
        config = config_of(tmp_path / name, steps=2)
        start(config)
        ends.append(state_of(config)[0])
    one, other = ends
    assert not np.array_equal(*map(jax.random.key_data, (one.noise, other.noise)))
    np.testing.assert_array_equal(*map(jax.random.key_data, (one.key, other.key)))
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True))
    for end in ends:
        numbers = np.asarray(jax.random.key_data(end.noise))
        word = numbers.tobytes()
        spellings = [word, word[::-1], word.hex().encode(), *(str(n).encode() for n in numbers)]
        files = [path for path in tmp_path.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
        assert {"config.json", "metrics.jsonl", "report.html", "MODEL_CARD.md"} <= {path.name for path in files}
        assert not [path for path in files if any(text in path.read_bytes() for text in spellings)]


def test_a_private_run_that_is_killed_before_its_first_checkpoint_goes_on_with_its_noise(tmp_path, monkeypatch):
    config = config_of(tmp_path / "run", seeds=2)
    with pytest.raises(UserError, match="has no checkpoint up to step 3, and with it the noise of the run is lost"):
        state_of(config, most=3)

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jaxgen.run.train", killed)
        with pytest.raises(KeyboardInterrupt):
            start(config)
    assert saved_steps(config.workdir / "checkpoints") == [0]
    state, train = state_of(config, most=0)
    assert int(state.step) == 0
    assert (np.diff(jax.random.key_data(state.noise), axis=0) != 0).all()  # a key of its own for each seed
    state = train(train(state, 0, 3), 3, 6)
    start(config)
    jax.tree.map(np.testing.assert_array_equal, bits(state), bits(state_of(config)[0]))
    figures = next(row["figures"] for row in log.read(config.workdir) if "figures" in row)
    assert any(name.startswith("epsilon of each seed, one example replaced (") for name in figures)


def test_all_processes_share_the_noise_key_of_the_first(tmp_path, monkeypatch):
    """This is process 1, and process 0 answers: no checkpoint, and these words."""
    answers = iter([None, [1, 2]])
    monkeypatch.setattr("jaxgen.processes.is_main", lambda: False)
    monkeypatch.setattr("jaxgen.processes.exchange", lambda value: [(next(answers), None), value])
    monkeypatch.setattr("jaxgen.privacy.entropy", None)
    state, _ = state_of(config_of(tmp_path / "run"))
    np.testing.assert_array_equal(jax.random.key_data(state.noise), [1, 2])


def test_a_private_step_that_went_wrong_is_run_again(tmp_path, capsys):
    optimizer = replace(OPTIMIZER, learning_rate=1e9, schedule="constant")
    config = config_of(tmp_path / "run", optimizer=optimizer, steps=60)
    config = replace(config, run=replace(config.run, checkpoint_every=1000))
    with pytest.raises(UserError, match="steps in a row were not finite"):
        start(config)
    commands.main(["replay", str(config.workdir)])
    assert re.search(r"step \d+: .*primitive", capsys.readouterr().out)


def bits(state):
    return jax.device_get(
        state.replace(**{name: jax.random.key_data(getattr(state, name)) for name in ("key", "noise")})
    )


def test_a_private_model_starts_without_the_data(tmp_path):
    """Others start at the mean of their images; its output bias, too, would give some of them away."""
    data = vae_mnist.load(config_of(tmp_path))
    biases = []
    for optimizer in (OPTIMIZER, flags.OptimizerConfig()):
        config = config_of(tmp_path, optimizer=optimizer)
        experiment = built(vae_mnist.build, config, data.spec)
        template = abstract_state(config, experiment.model, data.spec, parallel.make_mesh())
        for test in (data, replace(data, train={"image": 255 - data.train["image"], "label": data.train["label"]})):
            params = initial_state(config, experiment, test, template).params
            biases.append(jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)]))
    np.testing.assert_array_equal(*biases[:2])
    assert not np.array_equal(*biases[2:])


def test_epsilon_counts_both_players_of_a_game(tmp_path):
    model = gan_mnist.ModelConfig(width=4, norm="group", lazy=2, n_critic=3)
    config = gan_mnist.Config(steps=6, batch_size=8, optimizer=OPTIMIZER, model=model)
    config = replace(config, data=flags.ImageDataConfig("mnist_5k", binarization="none", image_size=8))
    data = gan_mnist.load(config)
    model = built(gan_mnist.build, config, data.spec).model
    # Due at steps 0 to 5: D always, R1 and R2 at every second, G at every third.
    assert [releases(model.objectives, 6, size) for size in (500, 2, 1)] == [4, 3 + 3 + 4, 1 + 3 + 2 + 3 + 1 + 4]
    value, _ = guarantee(config, model, len(data), 6).values()
    assert value.mean == pytest.approx(epsilon(noise_multiplier=1.0, releases=4, delta=1e-4))
    batch = {"image": data.train["image"][:8], "label": data.train["label"][:8]}
    state, reports = jax.jit(make_step(model, guard=True))(initial(model, batch), batch)
    assert not reports["discriminator"].skipped
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
        ({"evaluate": vae_mnist.EvaluateConfig(delta=1.0)}, "delta 1.0: expected a number below 1, or None"),
        ({"batch_size": 4004}, "batch-size 4004: private training wants at most one example of each"),
        ({"model": vae_mnist.ModelConfig(total_correlation=2.0)}, "total-correlation 2 is estimated between examples"),
    ],
)
def test_what_cannot_be_private_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(config_of(tmp_path / "run", **options), vae_mnist.load, vae_mnist.build, "vae_mnist", "")


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
        model = built(gan_mnist.build, config, spec).model
        with pytest.raises(UserError, match="as batch normalization does"):
            jax.eval_shape(lambda model=model: make_step(model)(initial(model, batch), batch))


def test_an_optimizer_that_was_made_by_hand_is_private_too(tmp_path):
    data = vae_mnist.load(config_of(tmp_path))

    def build(config, spec):
        return vae_mnist.build(replace(config, optimizer=flags.OptimizerConfig()), spec)

    assert all(o.noise for o in built(build, config_of(tmp_path), data.spec).model.objectives)
