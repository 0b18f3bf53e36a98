"""The game against a pair whose every number can be worked out by hand: G(z) = a z + b and D(x) = sum w x^2 + v x."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import check_model, close, initial

from jaxgen.data.decode import to_uint8
from jaxgen.models import gan as losses
from jaxgen.models.gan import Loss, gan, gradient_penalty, hinge, non_saturating, r1, r2, relativistic
from jaxgen.networks import dcgan
from jaxgen.networks.mlp import MLP
from jaxgen.step import STACKED, init_state, make_step, over_seeds
from jaxgen.types import Codec

KEY = jax.random.key(7)
NOISE = (-1.5, -0.2, 0.4, 2.0)
POINTS = jnp.array([[0.3], [-1.0], [2.0], [0.7]])
LINE, PARABOLA = {"a": 0.8, "b": 0.3}, {"w": 0.4, "v": -0.9}


class Line(nn.Module):
    """z -> a z + b; with `known`, z is NOISE whatever is drawn."""

    known: bool = False

    @nn.compact
    def __call__(self, z, condition=None):
        a, b = (self.param(name, nn.initializers.constant(value), ()) for name, value in LINE.items())
        return a * (jnp.array(NOISE)[:, None] if self.known else z) + b


class Parabola(nn.Module):
    """x -> sum w x^2 + v x; `see` is told of every x."""

    see: Callable = id

    @nn.compact
    def __call__(self, x, condition=None):
        w, v = (self.param(name, nn.initializers.constant(value), ()) for name, value in PARABOLA.items())
        self.see(x)
        return (w * x**2 + v * x).reshape(len(x), -1).sum(-1)


def toy(*, known=False, see=id, **options):
    return gan(
        **{"generator": Line(known), "discriminator": Parabola(see), "latents": 1, "loss": non_saturating()}
        | {"codec": Codec(lambda batch, key: batch["point"], lambda x: x)}
        | {f"{name}_optimizer": optax.sgd(0.1) for name in ("generator", "discriminator")}
        | options
    )


def batch_normalised(**options):
    """A pair that remembers statistics, on points [B, 2]."""
    optimizer = optax.adam(0.1)
    return toy(
        generator=MLP((4,), (2,), norm="batch"), discriminator=MLP((4,), (1,), norm="batch"), latents=2,
        generator_optimizer=optimizer, discriminator_optimizer=optimizer, **options,
    )  # fmt: skip


def cloud(n=8, seed=1):
    return {"point": jax.random.normal(jax.random.key(seed), (n, 2))}


def run(model, batch, steps, **options):
    """The states before the first step and after each, and the reports of each."""
    step, states, reports = jax.jit(make_step(model, **options)), [initial(model, batch)], []
    if "ema_decay" in options:
        states = [states[0].replace(ema=states[0].params)]
    for _ in range(steps):
        state, new = step(states[-1], batch)
        states, reports = [*states, state], [*reports, new]
    return states, reports


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


# Losses ---------------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


log, zero = np.log, np.zeros_like
CLASSIC = (
    lambda r, f: -log(sigmoid(r)) - log(1 - sigmoid(f)),
    lambda r, f: sigmoid(r) - 1,
    lambda r, f: sigmoid(f),
)
# Of r = D(x) and f = D(G(z)): D's loss, its derivatives with respect to r and f; G's loss, its derivative by f.
BY_HAND = {
    "minimax": (*CLASSIC, lambda r, f: log(1 - sigmoid(f)), lambda r, f: -sigmoid(f)),
    "non_saturating": (*CLASSIC, lambda r, f: -log(sigmoid(f)), lambda r, f: sigmoid(f) - 1),
    "least_squares": (
        lambda r, f: (r - 1) ** 2 / 2 + f**2 / 2,
        lambda r, f: r - 1,
        lambda r, f: f,
        lambda r, f: (f - 1) ** 2 / 2,
        lambda r, f: f - 1,
    ),
    "wasserstein": (
        lambda r, f: f - r,
        lambda r, f: zero(r) - 1,
        lambda r, f: zero(f) + 1,
        lambda r, f: -f,
        lambda r, f: zero(f) - 1,
    ),
    "hinge": (
        lambda r, f: -np.minimum(0, -1 + r) - np.minimum(0, -1 - f),
        lambda r, f: -1.0 * (r < 1),
        lambda r, f: 1.0 * (f > -1),
        lambda r, f: -f,
        lambda r, f: zero(f) - 1,
    ),
    "relativistic": (
        lambda r, f: -log(sigmoid(r - f)),
        lambda r, f: -sigmoid(f - r),
        lambda r, f: sigmoid(f - r),
        lambda r, f: -log(sigmoid(f - r)),
        lambda r, f: -sigmoid(r - f),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_loss_is_that_of_its_paper(name):
    real, fake = np.array([-3.0, -0.5, 0.2, 1.7]), np.array([0.4, -2.0, 1.3, -0.1])
    loss, (value, _, _, generator, _) = getattr(losses, name)(), BY_HAND[name]
    np.testing.assert_allclose(loss.discriminator(jnp.array(real), jnp.array(fake)), value(real, fake), rtol=1e-5)
    np.testing.assert_allclose(loss.generator(jnp.array(real), jnp.array(fake)), generator(real, fake), rtol=1e-5)
    far = jnp.array([-200.0, 200.0])  # where the logarithm of a logistic would be that of 0
    assert jnp.isfinite(loss.discriminator(far, -far)).all()
    assert jnp.isfinite(loss.generator(far, -far)).all()


@pytest.mark.parametrize("name", BY_HAND)
def test_both_players_descend_the_gradient_worked_out_by_hand(name):
    (a, b), (w, v), z, x = LINE.values(), PARABOLA.values(), np.array(NOISE), np.array(POINTS[:, 0], np.float64)
    y = a * z + b
    r, f = w * x**2 + v * x, w * y**2 + v * y
    d, by_real, by_fake, g, by_generated = BY_HAND[name]
    model = toy(loss=getattr(losses, name)(), known=True)
    params, batch = {"generator": LINE, "discriminator": PARABOLA}, {"point": POINTS}

    @partial(jax.jit, static_argnums=0)
    def gradient(objective):
        def loss(network):
            return objective.loss(params | {objective.wrt: network}, batch, KEY, 0)

        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params[objective.wrt])
        return {"value": value, "metric": aux.metrics[f"{objective.wrt} loss"]} | grads

    value = d(r, f).mean()
    dw, dv = ((by_real(r, f) * x**n + by_fake(r, f) * y**n).mean() for n in (2, 1))
    close(gradient(model.objectives[0]), {"value": value, "metric": value, "w": dw, "v": dv})
    value, slope = g(r, f).mean(), by_generated(r, f) * (2 * w * y + v)
    close(gradient(model.objectives[1]), {"value": value, "metric": value, "a": (slope * z).mean(), "b": slope.mean()})


# Penalties ------------------------------------------------------------------------------------------------------------

X, Y = jax.random.normal(jax.random.key(2), (2, 5, 3, 2))


def penalised(penalty, w, v, real=X, fake=Y):
    """The mean penalty of D(x) = sum w x^2 + v x, and its derivatives with respect to w and v."""

    def value(w, v):
        return penalty.value(lambda x: (w * x**2 + v * x).sum((1, 2)), real, fake, KEY).mean()

    return jax.value_and_grad(value, (0, 1))(w, v)


@pytest.mark.parametrize(("penalty", "x"), [(r1(3.0), X), (r2(3.0), Y)], ids=["R1", "R2"])
def test_r1_and_r2_in_closed_form(penalty, x):
    w, v, x = 0.4, -0.9, np.asarray(x, np.float64)
    slope = 2 * w * x + v
    value = 3 / 2 * (slope**2).sum((1, 2)).mean()
    dw, dv = 3 * (slope * 2 * x).sum((1, 2)).mean(), 3 * slope.sum((1, 2)).mean()
    close(penalised(penalty, w, v), (value, (dw, dv)))


def test_gradient_penalty_in_closed_form():
    w, v, x = 0.4, -0.9, np.asarray(X, np.float64)
    slope = 2 * w * x + v  # with fake = real there is but one place between them
    norm = np.sqrt((slope**2).sum((1, 2)))
    dw, dv = (20 * ((norm - 1) / norm * (slope * d).sum((1, 2))).mean() for d in (2 * x, 1))
    close(penalised(gradient_penalty(10.0), w, v, fake=X), (10 * ((norm - 1) ** 2).mean(), (dw, dv)))
    # Of a linear D the slope is the same everywhere.
    size = 0.9 * np.sqrt(6)
    value, (_, dv) = penalised(gradient_penalty(10.0), 0.0, v)
    close((value, dv), (10 * (size - 1) ** 2, -20 * (size - 1) * np.sqrt(6)))
    # Where D is flat the norm has no derivative, but the penalty has to have one.
    value, grads = penalised(gradient_penalty(10.0), 0.0, 0.0)
    np.testing.assert_allclose(value, 10, rtol=1e-4)
    assert np.isfinite(grads).all()


def test_gradient_penalty_is_taken_at_one_random_place_between_each_pair():
    def score(x):
        jax.debug.callback(lambda x: seen.append(x), x)
        return x.sum((1, 2))

    seen = []
    gradient_penalty(1.0).value(score, X, Y, KEY)
    jax.effects_barrier()
    t = (np.asarray(seen[0]) - Y) / (X - Y)
    np.testing.assert_allclose(t, np.broadcast_to(t[:, :1, :1], t.shape), atol=1e-3)
    assert ((t > -1e-3) & (t < 1 + 1e-3)).all()
    assert len(np.unique(np.round(t[:, 0, 0], 3))) == len(X)


def test_penalties_due_at_every_step_are_part_of_the_loss():
    plain, full = toy(), toy(penalties=[r1(0.5), r2(2.0), gradient_penalty(10.0)])
    params, batch = plain.init(KEY, {"point": POINTS}), {"point": POINTS}
    value, _ = plain.objectives[0].loss(params, batch, KEY, 0)
    total, aux = full.objectives[0].loss(params, batch, KEY, 0)
    np.testing.assert_allclose(aux.metrics["discriminator loss"], value, rtol=1e-6)
    assert len(full.objectives) == 2
    np.testing.assert_allclose(
        total, value + sum(aux.metrics[name] for name in ("R1", "R2", "gradient penalty")), rtol=1e-6
    )


def test_lazy_penalty_is_a_step_of_its_own_as_heavy_as_those_left_out():
    nothing = Loss(lambda real, fake: 0 * real, lambda real, fake: 0 * fake)
    states, reports = run(toy(loss=nothing, penalties=[r1(0.5, every=3)]), {"point": POINTS}, 6)
    w, v, x = *PARABOLA.values(), np.array(POINTS[:, 0], np.float64)
    for t, (before, after) in enumerate(pairwise(states)):
        if t % 3 < 2:
            assert same(before.params, after.params)
            assert not reports[t]["R1"].due
        else:
            slope = 2 * w * x + v
            np.testing.assert_allclose(reports[t]["R1"].metrics["R1"], 0.5 / 2 * (slope**2).mean(), rtol=1e-5)
            w, v = w - 0.1 * 3 * 0.5 * (slope * 2 * x).mean(), v - 0.1 * 3 * 0.5 * slope.mean()
            close(after.params["discriminator"], {"w": w, "v": v})


# The game -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_a_step_of_one_player_leaves_the_other_as_it_is(player):
    model = batch_normalised(penalties=[r1(1.0, every=2)])
    own = [o for o in model.objectives if o.wrt == player]
    before = initial(model, cloud())
    after, _ = jax.jit(make_step(replace(model, objectives=tuple(own))))(before.replace(step=jnp.array(1)), cloud())
    for name, value in before.params.items():
        assert same(value, after.params[name]) == (not name.startswith(player)), name
    for name, value in before.opt_state.items():
        assert same(value, after.opt_state[name]) == (name != player), name
    assert {f"{player}_statistics", player} < set(before.params)


def test_generator_waits_for_n_critic_steps():
    states, reports = run(toy(n_critic=3), {"point": POINTS}, 6)
    for t, (before, after) in enumerate(pairwise(states)):
        due = t % 3 == 2
        assert same(before.params["generator"], after.params["generator"]) != due
        assert not same(before.params["discriminator"], after.params["discriminator"])
        assert reports[t]["generator"].due == due


@pytest.mark.parametrize("pack", [1, 2, 4])
@pytest.mark.parametrize("event", [(2,), (3, 3, 2)], ids=["points", "images"])
def test_pack_joins_consecutive_examples_along_the_last_axis(pack, event):
    seen, x = [], jax.random.normal(KEY, (8, *event))
    model = toy(see=seen.append, pack=pack, generator=MLP((), event), penalties=[r1(1.0)])
    params = model.init(KEY, {"point": x})
    assert [a.shape for a in seen] == [(1, *event[:-1], pack * event[-1])]
    seen.clear()
    model.objectives[0].loss(params, {"point": x}, KEY, 0)
    rows = [np.concatenate(list(x[i : i + pack]), axis=-1) for i in range(0, 8, pack)]
    np.testing.assert_array_equal(seen[0], np.stack(rows))
    assert seen[1].shape == seen[0].shape  # the fake ones
    # Evaluation is still per example.
    seen.clear()
    assert model.evaluate(params, {"point": x}, KEY)["discriminator real"].shape == (8,)
    np.testing.assert_array_equal(seen[0][2], np.concatenate(list(x[2 : 2 + pack]), axis=-1))


@pytest.mark.parametrize(
    "options",
    [{"n_critic": 0}, {"pack": 0}, {"latents": 0}, {"pack": 2, "num_classes": 3}, {"penalties": [r1(1.0, every=0)]}],
    ids=", ".join,
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match=r"at least 1|pack|every"):
        toy(**options)


# Augmentation ---------------------------------------------------------------------------------------------------------


def shift(x, key, p):
    return x + p


def test_augmentation_is_of_all_that_the_discriminator_sees():
    seen, batch = [], {"point": POINTS}
    model = toy(see=seen.append, known=True, augment=shift)
    params = model.init(KEY, batch)
    assert set(params) == {"generator", "discriminator"}
    for objective in model.objectives:
        seen.clear()
        objective.loss(params, batch, KEY, 0)
        np.testing.assert_allclose(seen[0], POINTS + 1, rtol=1e-6)  # not adaptive: p is 1
        np.testing.assert_allclose(seen[1][:, 0], 0.8 * np.array(NOISE) + 0.3 + 1, rtol=1e-6)
    seen.clear()
    model.evaluate(params, batch, KEY)
    np.testing.assert_array_equal(seen[0], POINTS)


@pytest.mark.parametrize(
    ("points", "start", "way"),
    [([1, 2, 3, -1], 0.5, -1), ([1, 2, 3, 4], 0.5, 1), ([1, 2, 3, 4], 1, 0), ([1, 2, 3, -1], 0, 0), ([1] * 4, 0, 1)],
)
def test_strength_goes_to_where_the_mean_sign_is_on_target(points, start, way):
    """D(x) = x, so that three of four positive points have a mean sign of 0.5, below the target of 0.6."""
    seen, batch = [], {"point": jnp.array(points, jnp.float32)[:, None]}
    model = toy(see=seen.append, known=True, augment=lambda x, key, p: (1 + p) * x, augment_target=0.6)
    params = model.init(KEY, batch)
    assert params["augmentation"]["p"] == 0
    params |= {"augmentation": {"p": jnp.float32(start)}, "discriminator": {"w": 0.0, "v": 1.0}}
    seen.clear()
    _, aux = model.objectives[0].loss(params, batch, KEY, 0)
    np.testing.assert_allclose(seen[0], (1 + start) * batch["point"])
    p = aux.writes["augmentation"]["p"]
    np.testing.assert_allclose(p - start, way * 64 / 500_000, atol=2e-7)
    assert aux.metrics["augmentation"] == p


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=str)
def test_strength_is_remembered_and_goes_as_far_with_a_batch_in_parts(options):
    states, _ = run(toy(augment=shift, augment_target=-2.0), {"point": POINTS}, 5, **options)
    np.testing.assert_allclose(states[-1].params["augmentation"]["p"], 5 * 64 / 500_000, rtol=1e-5)


# Sampling -------------------------------------------------------------------------------------------------------------


def test_average_is_of_parameters_and_never_of_statistics():
    model = batch_normalised()
    states, _ = run(model, cloud(), 4, ema_decay=0.9)
    params, ema = states[-1].params, states[-1].ema
    average = states[0].params["generator"]
    for t, state in enumerate(states[1:]):
        decay = (1 + t) / (10 + t)
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params["generator"])
    close(ema["generator"], average)
    assert same(ema["generator_statistics"], params["generator_statistics"])
    assert not same(states[0].params["generator_statistics"], params["generator_statistics"])
    sample = jax.jit(lambda params: model.sample(params, KEY, 4))
    one, other = sample(params), sample(ema)
    assert np.abs(one - other).max() > 1e-3


class Echo(nn.Module):
    """(z, condition) -> both, side by side."""

    @nn.compact
    def __call__(self, z, condition=None):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * (z if condition is None else jnp.concatenate([z, condition], axis=-1))


def test_sample_obeys_labels_or_draws_them():
    model = toy(generator=Echo(), num_classes=3)
    params = model.init(KEY, {"point": jnp.zeros((4, 4)), "label": jnp.zeros(4, jnp.int32)})
    labels = np.array([2, 0, 1, 1, 2])
    np.testing.assert_array_equal(model.sample(params, KEY, 5, labels)[:, 1:], np.eye(3)[labels])
    counts = np.asarray(model.sample(params, KEY, 3000)[:, 1:].sum(0))
    assert counts.sum() == 3000
    assert (np.abs(counts - 1000) < 5 * np.sqrt(3000 * 2 / 9)).all()


@pytest.mark.parametrize("prior", ["normal", "uniform", "mixture"])
def test_prior_and_truncation(prior):
    model = toy(generator=Echo(), prior=prior, latents=2)
    params = model.init(KEY, {"point": jnp.zeros((1, 2))})
    z, n = model.sample(params, KEY, 20_000), 40_000
    # E (s + e)^2 and E (s + e)^4 of a sign s and e of variance v are 1 + v and 1 + 6 v + 3 v^2.
    second, fourth = {"normal": (1, 3), "uniform": (1 / 3, 1 / 5), "mixture": (1.04, 1.2448)}[prior]
    assert abs(z.mean()) < 5 * np.sqrt(second / n)
    assert abs((z**2).mean() - second) < 5 * np.sqrt((fourth - second**2) / n)
    assert prior != "uniform" or (1 - 1e-3 < jnp.abs(z).max() <= 1)
    # Within the bound, up to the bound, and not heaped there.
    z = np.abs(model.sample(params, KEY, 20_000, truncation=0.7))
    z = np.abs(z - 1) * 5 if prior == "mixture" else z
    assert 0.69 < z.max() <= 0.70001
    assert (z > 0.69).mean() < 0.02


# What every model must pass -------------------------------------------------------------------------------------------


def test_several_seeds_train_as_each_would_alone():
    points = jax.random.normal(KEY, (3, 4, 1))
    model = toy(penalties=[r1(0.1, every=2)], n_critic=2)
    init, step = partial(init_state, model), make_step(model)
    state, step_all = jax.vmap(init, out_axes=STACKED)(jax.random.split(KEY, 3), {"point": points}), over_seeds(step)
    alone = [init(key, {"point": x}) for key, x in zip(jax.random.split(KEY, 3), points, strict=True)]
    step, step_all = jax.jit(step), jax.jit(step_all)
    for _ in range(4):
        state, _ = step_all(state, {"point": points})
        alone = [step(one, {"point": x})[0] for one, x in zip(alone, points, strict=True)]
    assert len(np.unique(state.params["generator"]["a"])) == 3
    close(state.params, jax.tree.map(lambda *x: jnp.stack(x), *(one.params for one in alone)))


# Group normalisation, since batch normalisation couples what the parity of mapped steps takes apart. D's images are
# scaled up from the tiny weights of DCGAN, so that its outputs tell one example from another.
def images(optimizer):
    return toy(
        generator=dcgan.Generator((8, 8, 1), width=4, norm="group"),
        discriminator=dcgan.Discriminator(width=4, norm="group", kernel_init=nn.initializers.lecun_normal()),
        latents=3, num_classes=3, loss=relativistic(), penalties=[r1(0.1), r2(0.1)],
        codec=Codec(lambda batch, key: batch["image"] / 127.5 - 1, lambda x: to_uint8((x + 1) / 2)),
        generator_optimizer=optax.sgd(1e-3), discriminator_optimizer=optimizer,
    )  # fmt: skip


def points(optimizer):
    return toy(
        generator=MLP((8,), (2,)), discriminator=MLP((8,), (1,)), latents=2,
        loss=hinge(), penalties=[gradient_penalty(1.0, every=2)],
        generator_optimizer=optax.sgd(1e-3), discriminator_optimizer=optimizer,
    )  # fmt: skip


def test_conformance_of_images():
    image = jax.random.randint(KEY, (8, 8, 8, 1), 0, 256).astype(jnp.uint8)
    batch = {"image": image, "label": jnp.arange(8, dtype=jnp.int32) % 3}
    check_model(images, batch, loss="discriminator loss")


def test_conformance_of_points():
    check_model(points, {"point": 2 + cloud()["point"]}, entry="point", loss="discriminator loss")
