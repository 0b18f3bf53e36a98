"""How fast the product is, against the least that could be done: python -m experiments.benchmark vae

Each comparison takes turns within one process, since machines drift; the ratio of each turn is what counts.

  vae      training through the real loop (log, checkpoints, next batches) against a bare lax.scan
  conv     a convolutional VAE with this project's convolutions against the same with those of lax
  gan      a DCGAN at 32x32x3 against the same in eager PyTorch (pip install -e '.[benchmark]')
  gpt      shakespeare_cpu against nanoGPT: steps/s, loss, characters/s (NANOGPT is the folder of its checkout; PyTorch)
  seeds    ten seeds of a small GAN trained at once against the same ten one after another
  nll      importance-sampled test likelihood against a bare loop over chunks
  cost     the same loop with guard, log and checkpoints against the same without, one by one and together
  run      the default run: seconds and memory
  compile  start of a process with an empty compilation cache against one with a full cache
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import gan_toy, transformer_text
from jaxgen import log, parallel
from jaxgen.checkpoint import Checkpoints
from jaxgen.data import load_images
from jaxgen.data.decode import from_signed, to_signed, to_uint8, to_unit
from jaxgen.data.source import batch_indices, gather
from jaxgen.data.vocabulary import vocabulary
from jaxgen.distributions import bernoulli
from jaxgen.evaluate import importance_weighted_nll
from jaxgen.experiment import initializer
from jaxgen.guard import Guard
from jaxgen.models.gan import gan, non_saturating
from jaxgen.models.vae import vae
from jaxgen.networks import conv, convolution, dcgan
from jaxgen.networks.mlp import MLP
from jaxgen.run import chunk
from jaxgen.step import init_state, make_step, over_seeds, scan_steps
from jaxgen.train import Hook, Progress, train

CHUNK = 50


def observe(batch, key):
    return to_unit(batch["image"])


def mlp_vae(hidden: tuple[int, ...], latents: int, activation: Callable = nn.relu):
    shape = (28, 28, 1)
    return vae(
        encoders=[MLP(hidden, (2 * latents,), event=3, activation=activation)],
        decoders=[MLP(hidden, shape, activation=activation)],
        latents=[latents],
        likelihood=bernoulli(),
        observe=observe,
        store=to_uint8,
        optimizer=optax.adam(1e-3),
    )


def bare_dense(params, x):
    return x @ params["kernel"] + params["bias"]


def benchmark_vae(turns: int = 7, steps: int = 1000, batch_size: int = 128) -> dict:
    """784-400-20-400-784, Adam, float32, intensities as targets as in pytorch/examples."""
    arrays = load_images("mnist_5k").train
    model, state = ready_to_train(arrays)
    count = len(arrays["image"])

    # Bare: everything on the device, nothing but the equations.
    optimizer = optax.adam(1e-3)
    images = jnp.asarray(arrays["image"].reshape(count, -1), jnp.float32) / 255
    params = jax.tree.map(jnp.copy, state.params["vae"])

    def loss(params, x, key):
        h = nn.relu(bare_dense(params["encoder_1"]["Dense_0"], x))
        mu, logvar = jnp.split(bare_dense(params["encoder_1"]["Dense_1"], h), 2, -1)
        z = mu + jnp.exp(logvar / 2) * jax.random.normal(key, mu.shape)
        logits = bare_dense(params["decoder_1"]["Dense_1"], nn.relu(bare_dense(params["decoder_1"]["Dense_0"], z)))
        cross_entropy = jnp.maximum(logits, 0) - x * logits + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        kl = 0.5 * (jnp.exp(logvar) + mu**2 - 1 - logvar)
        return (cross_entropy.sum(-1) + kl.sum(-1)).mean()

    def step(carry, indices):
        params, opt_state, key = carry
        key, noise = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, images[indices], noise)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state, key), value

    bare_steps = jax.jit(lambda carry, indices: jax.lax.scan(step, carry, indices), donate_argnums=0)
    carry = params, optimizer.init(params), jax.random.key(1)

    def bare() -> None:
        nonlocal carry
        indices = jnp.asarray(np.random.default_rng(0).integers(0, count, (steps // CHUNK, CHUNK, batch_size)))
        for rows in indices:
            carry, value = bare_steps(carry, rows)
        value.block_until_ready()

    with tempfile.TemporaryDirectory() as folder:
        real = real_loop(Path(folder), model, state, arrays, steps=steps, batch_size=batch_size, logs=True, saves=True)
        return take_turns({"real loop": real, "bare scan": bare}, turns, steps * batch_size)


def benchmark_cost(turns: int = 7, steps: int = 500, batch_size: int = 128) -> dict:
    """784-400-20-400-784 as above; a log line every 100 steps, a checkpoint at the end of each turn."""
    parts = {
        "all of them": ("guarded", "logs", "saves"),
        "guard": ["guarded"],
        "log": ["logs"],
        "checkpoints": ["saves"],
    }
    arrays = load_images("mnist_5k").train
    with tempfile.TemporaryDirectory() as folder:
        tasks = {}
        for name, options in {"none": (), **parts}.items():
            model, state = ready_to_train(arrays)
            chosen = dict.fromkeys(options, True)
            tasks[name] = real_loop(
                Path(folder, name), model, state, arrays, steps=steps, batch_size=batch_size, **chosen
            )
        return take_turns(tasks, turns, steps * batch_size)


def ready_to_train(arrays) -> tuple:
    """The model 784-400-20-400-784, and its state."""
    model = mlp_vae((400,), 20)
    return model, init_state(model, jax.random.key(0), arrays)


def real_loop(
    folder: Path, model, state, arrays, *, steps: int, batch_size: int, guarded=False, logs=False, saves=False
):
    """A function that trains so many steps more, as `jaxgen.run` does, and returns the state."""
    mesh, count = parallel.make_mesh(), len(next(iter(arrays.values())))
    template = parallel.sharded(jax.eval_shape(lambda: state), mesh)
    compiled = parallel.compile_steps(partial(make_step, model, guard=guarded), template, mesh)
    folder.mkdir(exist_ok=True)
    writer = log.Log(folder, start=0, stop=10**9, batch_size=batch_size, every=100, protocol="", quiet=True)
    checkpoints, guard = Checkpoints(folder / "checkpoints"), Guard(20)

    def batches(start: int, stop: int):
        return parallel.put_chunk(
            gather(arrays, batch_indices(count, batch_size, seed=0, start=start, stop=stop)), mesh
        )

    def on_progress(progress: Progress) -> None:
        if logs:
            writer.progress(progress)
        if guarded:
            guard.progress(progress)

    def run():
        nonlocal state
        stop = int(state.step) + steps
        hooks = [Hook(1000, checkpoints.save)] if saves else []
        state = train(state, compiled, batches, stop=stop, chunk=CHUNK, hooks=hooks, on_progress=on_progress)
        jax.block_until_ready(state)
        checkpoints.wait()
        return state

    return run


def benchmark_conv(turns: int = 5, steps: int = 20, batch_size: int = 64) -> dict:
    """Convolutional VAE: two halvings, two doublings, batch 64, in one process and in the better form of each."""

    class Lax(nn.Module):
        """The same layer, from flax."""

        features: int
        kernel_size: int
        stride: int
        use_bias: bool = True

        @nn.compact
        def __call__(self, x):
            window, strides = (self.kernel_size,) * 2, (self.stride,) * 2
            return self.layer(self.features, window, strides, use_bias=self.use_bias)(x)

    class LaxConv(Lax):
        layer = nn.Conv

    class LaxConvTranspose(Lax):
        layer = nn.ConvTranspose

    arrays = load_images("mnist_5k").train
    chunk = {"image": jnp.asarray(arrays["image"][: steps * batch_size].reshape(steps, batch_size, 28, 28, 1))}

    def make(down: type, up: type):
        model = vae(
            encoders=[conv.Encoder(64, conv=down)],
            decoders=[conv.Decoder((28, 28, 1), conv_transpose=up)],
            latents=[32],
            likelihood=bernoulli(),
            observe=observe,
            store=to_uint8,
            optimizer=optax.adam(1e-3),
        )
        return make_step(model), init_state(model, jax.random.key(0), {"image": chunk["image"][0]})

    def scanned(step, state):
        compiled = jax.jit(scan_steps(step))
        return lambda: jax.block_until_ready(compiled(state, chunk)[1])

    def stepwise(step, state):
        compiled = jax.jit(step)

        def run():
            current = state
            for i in range(steps):
                current, metrics = compiled(current, {"image": chunk["image"][i]})
            jax.block_until_ready(metrics)

        return run

    ours, lax = make(convolution.Conv, convolution.ConvTranspose), make(LaxConv, LaxConvTranspose)
    return take_turns(
        {"ours": scanned(*ours), "lax, a call per step": stepwise(*lax), "lax, scan": scanned(*lax)},
        turns,
        steps * batch_size,
    )


def benchmark_gan(turns: int = 5, steps: int = 10, batch_size: int = 64) -> dict:
    """DCGAN at 32x32x3, batch 64, G of 1.1 and D of 0.7 million parameters, images/s."""
    images = np.repeat(load_images("mnist_5k", image_size=32).train["image"][: steps * batch_size], 3, axis=-1)
    images = images.reshape(steps, batch_size, 32, 32, 3)
    in_torch, eager = torch_dcgan(np.asarray(to_signed(images)))
    model = gan(
        generator=dcgan.Generator((32, 32, 3), width=64),
        discriminator=dcgan.Discriminator(width=64),
        latents=100,
        loss=non_saturating(),
        observe=lambda batch: to_signed(batch["image"]),
        store=from_signed,
        generator_optimizer=optax.adam(2e-4, b1=0.5),
        discriminator_optimizer=optax.adam(2e-4, b1=0.5),
    )
    batches = {"image": jnp.asarray(images)}
    state = init_state(model, jax.random.key(0), {"image": images[0]})
    in_ours = {name: sum(x.size for x in jax.tree.leaves(state.params[name])) for name in in_torch}
    assert in_ours == in_torch, f"not the same networks: {in_ours} parameters here, {in_torch} in PyTorch"
    compiled = jax.jit(scan_steps(make_step(model)), donate_argnums=0)

    def ours() -> None:
        nonlocal state
        state, metrics = compiled(state, batches)
        jax.block_until_ready(metrics)

    return take_turns({"ours": ours, "eager PyTorch": eager}, turns, steps * batch_size)


def torch_dcgan(batches: np.ndarray) -> tuple[dict[str, int], Callable[[], None]]:
    """The same in PyTorch: parameters of each network, and a function that trains on each of [K, B, H, W, C]."""
    torch = pytorch()
    from torch import nn as layers
    from torch.nn.functional import softplus

    def up(i: int, o: int) -> list:
        return [layers.BatchNorm2d(i), layers.ReLU(inplace=True), layers.ConvTranspose2d(i, o, 4, 2, 1)]

    def down(i: int, o: int) -> list:
        return [layers.Conv2d(i, o, 4, 2, 1), layers.BatchNorm2d(o), layers.LeakyReLU(0.2, inplace=True)]

    start, first = [layers.Linear(100, 4096), layers.Unflatten(1, (256, 4, 4))], down(3, 64)
    generator = layers.Sequential(*start, *up(256, 128), *up(128, 64), *up(64, 3), layers.Tanh())
    del first[1]  # no normalisation before the first activation
    end = [layers.Flatten(), layers.Linear(4096, 1)]
    discriminator = layers.Sequential(*first, *down(64, 128), *down(128, 256), *end)
    networks = {"generator": generator, "discriminator": discriminator}
    g_optimizer, d_optimizer = (
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in networks.values()
    )
    images = torch.tensor(batches).permute(0, 1, 4, 2, 3).contiguous()

    def run() -> None:
        # Equal work: as in ours, each player has noise of its own, so that G runs forward twice a step, and neither
        # computes gradients for the other. The usual loop saves the one and wastes the other.
        for real in images:
            with torch.no_grad():
                fake = generator(torch.randn(len(real), 100))
            d_optimizer.zero_grad()
            (softplus(-discriminator(real)).mean() + softplus(discriminator(fake)).mean()).backward()
            d_optimizer.step()
            discriminator.requires_grad_(False)
            g_optimizer.zero_grad()
            softplus(-discriminator(generator(torch.randn(len(real), 100)))).mean().backward()
            g_optimizer.step()
            discriminator.requires_grad_(True)

    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}, run


def pytorch():
    """PyTorch, with as many threads as XLA takes.

    They wait for each other by spinning, four times slower where other work shares the cores: measure on an idle
    machine, or with OMP_WAIT_POLICY=passive.
    """
    try:
        import torch
    except ModuleNotFoundError:
        sys.exit("this comparison needs PyTorch: pip install -e '.[benchmark]'")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def benchmark_gpt(turns: int = 19, steps: int = 100) -> dict:
    """shakespeare_cpu, trained to the end in 20 turns, against nanoGPT as it stands: training steps/s."""
    config = transformer_text.NAMED["shakespeare_cpu"]
    data = transformer_text.load(config)
    experiment, batch = transformer_text.build(config, data.spec), {"tokens": data.train["tokens"][:1]}
    model, context, batch_size = experiment.model, config.model.context, config.batch_size
    reference, torch = nanogpt(config, vocabulary(data.vocabulary).size)
    optimizer = reference.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    text = torch.tensor(np.concatenate([data.train["tokens"][:, 0], data.train["tokens"][-1, 1:]]).astype(np.int64))
    done = 0

    def train_reference() -> None:
        """What its train.py does with the flags of its README."""
        nonlocal done
        for _ in range(steps):
            decay = 0.5 * (1 + np.cos(np.pi * max(done - 100, 0) / (config.steps - 100)))
            rate = 1e-3 * (done + 1) / 101 if done < 100 else 1e-4 + decay * (1e-3 - 1e-4)
            for group in optimizer.param_groups:
                group["lr"] = rate
            starts = torch.randint(len(text) - context, (batch_size,))
            x, y = (torch.stack([text[i + shift : i + shift + context] for i in starts]) for shift in (0, 1))
            reference(x, y)[1].backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1

    with tempfile.TemporaryDirectory() as folder:
        state = init_state(model, jax.random.key(0), batch)
        ours = real_loop(
            Path(folder), model, state, data.train, steps=steps, batch_size=batch_size, logs=True, saves=True
        )
        params = None

        def train_ours() -> None:
            nonlocal params
            params = ours().params

        rates = take_turns({"ours": train_ours, "nanoGPT": train_reference}, turns, steps)

    windows, lengths = torch.tensor(data.test["tokens"].astype(np.int64)), data.test["length"]
    reference.eval()
    with torch.no_grad():
        total = 0.0
        for window, length in zip(windows, lengths, strict=True):
            loss = reference(window[None, : length - 1], window[None, 1:length])[1]
            total += loss.item() * int(length - 1)
    loss = experiment.validate(params, data.test, jax.random.key(1))["loss"].mean
    print(f"validation loss, nats a character, whole split: ours {loss:.4f}, nanoGPT {total / (lengths - 1).sum():.4f}")

    sample = jax.jit(model.sample, static_argnames=("n", "length"))
    for name, rows, prompt, length in (("within", 1, 1, 64), ("within", 64, 1, 64), ("past", 1, 64, 1064)):
        start = data.test["tokens"][:rows, :prompt]
        speeds = take_turns(
            {
                "ours": lambda: jax.block_until_ready(
                    sample(params, jax.random.key(0), rows, prompt=start, length=length)
                ),
                "nanoGPT": lambda: reference.generate(torch.tensor(start.astype(np.int64)), length - prompt),
            },
            3 if length > 64 else 9,
            rows * (length - prompt),
        )
        show(f"characters/s {name} the context, {rows} at once", speeds)
    return rates


def nanogpt(config: transformer_text.Config, size: int) -> tuple:
    """Its model of the same sizes, and PyTorch."""
    torch = pytorch()
    try:
        sys.path.insert(0, str(Path(os.environ["NANOGPT"]).expanduser()))
        from model import GPT, GPTConfig
    except (ImportError, KeyError):
        sys.exit("the comparison gpt needs nanoGPT: NANOGPT=the folder of its checkout")
    torch.manual_seed(1337)
    options = config.model
    sizes = {"n_layer": options.layers, "n_head": options.heads, "n_embd": options.width}
    return GPT(GPTConfig(options.context, size, **sizes, dropout=0.0, bias=False)), torch


def benchmark_seeds(turns: int = 5, steps: int = 100, seeds: int = 10) -> dict:
    """Ten seeds of the default GAN of points, seed-steps/s."""
    config = gan_toy.Config(seeds=seeds)
    data, singles = gan_toy.load(config), [replace(config, seed=seed, seeds=1) for seed in range(seeds)]
    model = gan_toy.build(config, data.spec).model
    step = make_step(model, ema_decay=config.optimizer.ema_decay)

    def start(config: gan_toy.Config) -> tuple:
        """State and batches, of one seed or of all."""
        batches = jax.tree.map(jnp.asarray, chunk(config, data, 0, CHUNK))
        return jax.jit(initializer(config, model))({name: x[0] for name, x in batches.items()}), batches

    def trained(step: Callable, starts: list[tuple]) -> Callable[[], None]:
        compiled = jax.jit(scan_steps(step), donate_argnums=0)

        def run() -> None:
            for i, (state, batches) in enumerate(starts):
                for _ in range(steps // CHUNK):
                    state, metrics = compiled(state, batches)
                jax.block_until_ready(metrics)
                starts[i] = state, batches

        return run

    at_once, in_turn = trained(over_seeds(step), [start(config)]), trained(step, [start(one) for one in singles])
    return take_turns({"at once": at_once, "one after another": in_turn}, turns, seeds * steps)


def benchmark_nll(turns: int = 3, images: int = 100, num_samples: int = 5000) -> dict:
    """784-200-200-50, samples/s of the importance-weighted bound; the bare loop takes an image a chunk."""
    model = mlp_vae((200, 200), 50, nn.tanh)
    arrays = load_images("mnist_5k", binarization="fixed").test
    params = model.init(jax.random.key(0), arrays)
    arrays = {name: array[:images] for name, array in arrays.items()}
    x = jnp.asarray(arrays["image"].reshape(images, -1), jnp.float32) / 255

    @jax.jit
    def bare_chunk(params, x, key):
        def net(layers, h):
            h = jnp.tanh(bare_dense(layers["Dense_1"], jnp.tanh(bare_dense(layers["Dense_0"], h))))
            return bare_dense(layers["Dense_2"], h)

        mu, logvar = jnp.split(net(params["encoder_1"], x), 2, -1)
        eps = jax.random.normal(key, (num_samples, 50))
        z = mu + jnp.exp(logvar / 2) * eps
        logits = net(params["decoder_1"], z)
        log_p = (x * logits - jnp.maximum(logits, 0) - jnp.log1p(jnp.exp(-jnp.abs(logits)))).sum(-1)
        return jax.scipy.special.logsumexp(log_p + 0.5 * (eps**2 + logvar - z**2).sum(-1)) - jnp.log(num_samples)

    def bare():
        keys = jax.random.split(jax.random.key(0), images)
        np.asarray([bare_chunk(params["vae"], x[i], keys[i]) for i in range(images)])

    measure = importance_weighted_nll(model.observe, model.log_weights, num_samples=num_samples)
    return take_turns(
        {"ours": lambda: measure(params, arrays, jax.random.key(0)), "bare loop": bare}, turns, images * num_samples
    )


def benchmark_compile(turns: int = 3) -> dict:
    """Seconds from the first call of the compiled steps to their first result, in a fresh process each time."""
    program = (
        "import time, jax, numpy as np\n"
        "from functools import partial\n"
        "from jaxgen import parallel, run\n"
        "from jaxgen.step import init_state, make_step\n"
        "from experiments.benchmark import mlp_vae\n"
        "run.cache_compilations()\n"
        "model, mesh = mlp_vae((400,), 20), parallel.make_mesh()\n"
        "batch = {'image': np.zeros((50, 128, 28, 28, 1), np.uint8)}\n"
        "start = time.perf_counter()\n"
        "init, one = partial(init_state, model), {'image': batch['image'][0]}\n"
        "template = parallel.sharded(jax.eval_shape(init, jax.random.key(0), one), mesh)\n"
        "state = parallel.compile_init(init, template)(jax.random.key(0), one)\n"
        "steps = parallel.compile_steps(partial(make_step, model), template, mesh)\n"
        "steps.lower(state, parallel.put_chunk(batch, mesh)).compile()\n"
        "print(time.perf_counter() - start)\n"
    )
    seconds = {"first start": [], "second start": []}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            for name in seconds:
                environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}
                output = subprocess.run(
                    [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
                )
                seconds[name].append(float(output.stdout))
    return seconds


def benchmark_run(turns: int = 1) -> dict:
    """The default run, offline, from typing to its last line: seconds, and peak memory in MB."""
    figures = {"seconds": [], "peak MB": []}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "experiments.vae_mnist", "--workdir", f"{folder}/run"]
            command += ["--data.dir", f"{folder}/data"]
            start = time.perf_counter()
            process = subprocess.Popen(command, env=os.environ | {"XDG_CACHE_HOME": folder}, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0, "the run failed"
            figures["seconds"].append(time.perf_counter() - start)
            figures["peak MB"].append(usage.ru_maxrss / 1024)
    return figures


def take_turns(tasks: dict[str, Callable[[], None]], turns: int, work: int) -> dict:
    """Units of work per second of each task, turn by turn, after one turn to warm up; another begins each time."""
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    names = deque(tasks)
    for turn in range(turns + 1):
        for name in names:
            start = time.perf_counter()
            tasks[name]()
            if turn:
                rates[name].append(work / (time.perf_counter() - start))
        names.rotate(1)
    return rates


def main(names: list[str]) -> None:
    known = {name.removeprefix("benchmark_"): f for name, f in globals().items() if name.startswith("benchmark_")}
    if not names or set(names) - set(known):
        sys.exit(__doc__)
    for name in names:
        rates = known[name]()
        show(f"{name}: {known[name].__doc__.splitlines()[0]}", rates)
        print(json.dumps({name: rates}))


def show(title: str, rates: dict[str, list[float]]) -> None:
    """The first against each other one, turn by turn."""
    print(f"\n{title}")
    (reference, first), *others = rates.items()
    print(f"  {reference:<22} {np.median(first):12,.2f}")
    for other, values in others:
        ratio = np.array(first) / np.array(values)
        low, middle, high = np.quantile(ratio, [0, 0.5, 1])
        print(f"  {other:<22} {np.median(values):12,.2f}   {reference} / this: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(sys.argv[1:])
