"""How fast it is, against the least that could be done and against others: python -m experiments.benchmark vae

Each comparison takes turns within one process, since machines drift; the ratio of each turn is what counts. With
`--out experiments/benchmarks.jsonl` it is kept, and `--write` makes the README's table and picture of what was kept.

  vae      training through the real loop (log, checkpoints, next batches) against a bare lax.scan, and PyTorch
  conv     a convolutional VAE with this project's convolutions against the same with those of lax
  gan      a DCGAN at 32x32x3 against a bare lax.scan, and eager PyTorch
  gpt      shakespeare_cpu against a bare lax.scan, and nanoGPT: steps/s, loss, characters/s
  peak     arithmetic of training steps against products of large matrices
  seeds    ten seeds of a small GAN trained at once against the same ten one after another
  nll      importance-sampled test likelihood against a bare loop over chunks
  cost     the same loop with guard, log and checkpoints against the same without, one by one and together
  scaling  one run on several forced host devices, or in several processes, against one device: they share the cores
  start    from the start of a process to its first logged step, compilation cache full against empty
  run      the default run: seconds and memory

gan and gpt need PyTorch, gpt nanoGPT too (NANOGPT is the folder of its checkout).
"""

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import gan_toy, peers, transformer_text
from experiments.ratios import Rates, picture, show, table, take_turns
from experiments.results import README, between, read
from jaxgen import log, parallel
from jaxgen.checkpoint import Checkpoints
from jaxgen.data import load_images
from jaxgen.data.decode import from_signed, to_signed, to_uint8, to_unit
from jaxgen.data.source import batch_indices, gather
from jaxgen.data.vocabulary import vocabulary
from jaxgen.emissions import bernoulli
from jaxgen.errors import UserError
from jaxgen.evaluate import importance_weighted_nll
from jaxgen.experiment import initializer
from jaxgen.folder import cores, device, versions
from jaxgen.guard import Guard
from jaxgen.models.gan import gan, non_saturating
from jaxgen.models.vae import independent, vae
from jaxgen.networks import conv, convolution, dcgan
from jaxgen.networks.mlp import MLP
from jaxgen.run import chunk
from jaxgen.step import init_state, make_step, over_seeds, scan_steps
from jaxgen.train import Hook, Progress, train
from jaxgen.types import Codec

RESULTS = Path(__file__).with_name("benchmarks.jsonl")
PICTURE = Path(__file__).with_name("benchmarks.svg")
BEGIN, END = "<!-- benchmarks: python -m experiments.benchmark --write -->\n", "<!-- end of benchmarks -->\n"

Comparisons = Iterator[tuple[str, str, Rates]]  # what is done, the unit, its rates

CHUNK = 50


def observe(batch, key):
    return to_unit(batch["image"])


def mlp_vae(hidden: tuple[int, ...], latents: int, activation: Callable = nn.relu):
    shape = (28, 28, 1)
    return vae(
        encoders=[MLP(hidden, (2 * latents,), event=3, activation=activation)],
        decoder=independent(MLP(hidden, shape, activation=activation), bernoulli()),
        latents=[latents],
        codec=Codec(observe, to_uint8),
        optimizer=optax.adam(1e-3),
    )


def bare_dense(params, x):
    return x @ params["kernel"] + params["bias"]


def benchmark_vae(turns: int = 7, steps: int = 1000, batch_size: int = 128) -> Comparisons:
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

    tasks = {"bare scan": bare}
    if importlib.util.find_spec("torch"):
        tasks["eager PyTorch"] = peers.torch_vae(np.asarray(images), steps, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        real = real_loop(Path(folder), model, state, arrays, steps=steps, batch_size=batch_size, logs=True, saves=True)
        rates = take_turns({"real loop": real, **tasks}, turns, steps * batch_size)
    yield "training a VAE 784-400-20-400-784, batch 128", "images/s", rates


def benchmark_cost(turns: int = 7, steps: int = 500, batch_size: int = 128) -> Comparisons:
    """784-400-20-400-784; each turn ends with a checkpoint."""
    parts = {
        "guard, log and checkpoints": ["guarded", "logs", "saves"],
        "guard": ["guarded"],
        "a log line every 100 steps": ["logs"],
        "a checkpoint every 500 steps": ["saves"],
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
        rates = take_turns(tasks, turns, steps * batch_size)
    none = rates.pop("none")
    for name, values in rates.items():
        yield f"training a VAE 784-400-20-400-784 with {name}", "images/s", {"real loop": values, "with none": none}


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
        state = train(
            state, compiled, batches, stop=stop, chunk=min(CHUNK, steps), hooks=hooks, on_progress=on_progress
        )
        jax.block_until_ready(state)
        checkpoints.wait()
        return state

    return run


def bare_scan(model, arrays, *, steps: int, batch_size: int) -> tuple[Callable[[], None], float]:
    """A function that trains so many steps on batches on the device, and their operations as XLA counts them."""
    rows = batch_indices(len(next(iter(arrays.values()))), batch_size, seed=0, start=0, stop=steps)
    batches = jax.tree.map(jnp.asarray, gather(arrays, rows))
    first, step = {name: x[0] for name, x in batches.items()}, make_step(model)
    state = init_state(model, jax.random.key(0), first)
    operations = steps * jax.jit(step).lower(state, first).cost_analysis()["flops"]  # of a scan it counts one step
    compiled = jax.jit(scan_steps(step), donate_argnums=0)

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, batches)
        jax.block_until_ready(metrics)

    return run, operations


def benchmark_conv(turns: int = 5, steps: int = 20, batch_size: int = 64) -> Comparisons:
    """Two halvings, two doublings; lax in the better form of each."""

    class Lax(nn.Module):
        """The same layer, from flax."""

        features: int
        kernel_size: int
        stride: int
        use_bias: bool = True
        dtype: str | None = None

        @nn.compact
        def __call__(self, x):
            window, strides = (self.kernel_size,) * 2, (self.stride,) * 2
            return self.layer(self.features, window, strides, use_bias=self.use_bias, dtype=self.dtype)(x)

    class LaxConv(Lax):
        layer = nn.Conv

    class LaxConvTranspose(Lax):
        layer = nn.ConvTranspose

    arrays = load_images("mnist_5k").train
    chunk = {"image": jnp.asarray(arrays["image"][: steps * batch_size].reshape(steps, batch_size, 28, 28, 1))}

    def make(down: type, up: type):
        model = vae(
            encoders=[conv.Encoder(64, conv=down)],
            decoder=independent(conv.Decoder((28, 28, 1), conv_transpose=up), bernoulli()),
            latents=[32],
            codec=Codec(observe, to_uint8),
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
    tasks = {"ours": scanned(*ours), "lax, a call per step": stepwise(*lax), "lax, scan": scanned(*lax)}
    yield "training a convolutional VAE, batch 64", "images/s", take_turns(tasks, turns, steps * batch_size)


def deep_gan():
    """DCGAN at 32x32x3, G of 1.1 and D of 0.7 million parameters."""
    return gan(
        generator=dcgan.Generator((32, 32, 3), width=64),
        discriminator=dcgan.Discriminator(width=64),
        latents=100,
        loss=non_saturating(),
        codec=Codec(lambda batch, key: to_signed(batch["image"]), from_signed),
        generator_optimizer=optax.adam(2e-4, b1=0.5),
        discriminator_optimizer=optax.adam(2e-4, b1=0.5),
    )


def colours(count: int) -> dict[str, np.ndarray]:
    """Digits in the format of CIFAR-10."""
    return {"image": np.repeat(load_images("mnist_5k", image_size=32).train["image"][:count], 3, axis=-1)}


def benchmark_gan(turns: int = 5, steps: int = 10, batch_size: int = 64) -> Comparisons:
    """The same networks in PyTorch."""
    model, arrays = deep_gan(), colours(steps * batch_size)
    batches = to_signed(arrays["image"]).reshape(steps, batch_size, 32, 32, 3)
    in_torch, eager = peers.torch_dcgan(np.asarray(batches))
    state = init_state(model, jax.random.key(0), {"image": arrays["image"][:batch_size]})
    in_ours = {name: sum(x.size for x in jax.tree.leaves(state.params[name])) for name in in_torch}
    assert in_ours == in_torch, f"not the same networks: {in_ours} parameters here, {in_torch} in PyTorch"
    bare, _ = bare_scan(model, arrays, steps=steps, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        real = real_loop(Path(folder), model, state, arrays, steps=steps, batch_size=batch_size, logs=True)
        tasks = {"real loop": real, "bare scan": bare, "eager PyTorch": eager}
        rates = take_turns(tasks, turns, steps * batch_size)
    yield "training a DCGAN at 32x32x3, batch 64", "images/s", rates


def benchmark_gpt(turns: int = 19, steps: int = 100) -> Comparisons:
    """Trained to the end in 20 turns, beside nanoGPT as it stands."""
    config = transformer_text.NAMED["shakespeare_cpu"]
    data = transformer_text.load(config)
    experiment, batch = transformer_text.build(config, data.spec), {"tokens": data.train["tokens"][:1]}
    model, context, batch_size = experiment.model, config.model.context, config.batch_size
    reference, torch = peers.nanogpt(config.model, vocabulary(data.vocabulary).size)
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

        bare, _ = bare_scan(model, data.train, steps=steps, batch_size=batch_size)
        tasks = {"real loop": train_ours, "bare scan": bare, "nanoGPT": train_reference}
        yield "training shakespeare_cpu", "steps/s", take_turns(tasks, turns, steps)

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
        yield f"text {name} the context, {rows} at once", "characters/s", speeds


def benchmark_peak(turns: int = 9, size: int = 2048) -> Comparisons:
    """How much of the arithmetic that the machine can do is done."""
    digits, config = load_images("mnist_5k").train, transformer_text.NAMED["shakespeare_cpu"]
    text = transformer_text.load(config)
    transformer = transformer_text.build(config, text.spec).model
    steps = {
        "VAE 784-400-20-400-784, batch 128": bare_scan(mlp_vae((400,), 20), digits, steps=500, batch_size=128),
        "DCGAN at 32x32x3, batch 64": bare_scan(deep_gan(), colours(640), steps=3, batch_size=64),
        "Transformer shakespeare_cpu": bare_scan(transformer, text.train, steps=20, batch_size=config.batch_size),
    }
    x, product = jax.random.normal(jax.random.key(0), (size, size)), jax.jit(jnp.matmul)
    steps["product"] = (lambda: product(x, x).block_until_ready()), 2.0 * size**3
    tasks, work = ({name: pair[i] for name, pair in steps.items()} for i in range(2))
    rates = take_turns(tasks, turns, work)
    peak = rates.pop("product")
    for name, values in rates.items():
        yield f"arithmetic of a step of {name}", "operations/s", {"bare scan": values, f"product of {size}²": peak}


def benchmark_seeds(turns: int = 5, steps: int = 100, seeds: int = 10) -> Comparisons:
    """The default GAN of points."""
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
    rates = take_turns({"at once": at_once, "one after another": in_turn}, turns, seeds * steps)
    yield f"training {seeds} seeds of gan_toy", "steps/s", rates


def benchmark_nll(turns: int = 3, images: int = 100, num_samples: int = 5000) -> Comparisons:
    """The bare loop takes an image a chunk."""
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
        np.asarray([bare_chunk(params["vae"], *each) for each in zip(x, keys, strict=True)])

    measure = importance_weighted_nll(model.observe, model.log_weights, num_samples=num_samples)
    tasks = {"ours": lambda: measure(params, arrays, jax.random.key(0)), "bare loop": bare}
    rates = take_turns(tasks, turns, images * num_samples)
    yield f"test NLL of 784-200-200-50, {num_samples:,} samples an image", "samples/s", rates


def benchmark_scaling(turns: int = 3) -> Comparisons:
    """The batch is the same; on a CPU, one device has all cores already."""
    arrangements = {"1 device": (1, 1), "2 devices": (1, 2), "4 devices": (1, 4)}
    arrangements |= {"2 processes": (2, 1), "4 processes": (4, 1)}
    rates: Rates = {name: [] for name in arrangements}
    for _ in range(turns):
        for name, (processes, devices) in arrangements.items():
            with tempfile.TemporaryDirectory() as folder:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    joined = ["--run.coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--run.num-processes"]
                flags = ["--data.name", "mnist_5k", "--batch-size", "512", "--steps", "400", "--run.log-every", "50"]
                flags += ["--evaluate.nll-samples", "1", "--evaluate.copies", "None"]
                running = []
                for i in range(processes):
                    command = [sys.executable, "-m", "experiments.vae_mnist", "--workdir", f"{folder}/run", *flags]
                    command += [*joined, str(processes), "--run.process-id", str(i)] if processes > 1 else []
                    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
                    running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
                statuses = [process.wait() for process in running]
                assert not any(statuses), "a run failed"
                seen = [row["train/images per second"] for row in log.read(Path(folder, "run")) if len(row) == 2]
                rates[name].append(float(np.median(seen[1:])))
    one = rates.pop("1 device")
    for name, values in rates.items():
        yield f"training vae_mnist, batch 512, {name}", "images/s", {"real loop": values, "1 device": one}


def benchmark_start(turns: int = 3) -> Comparisons:
    """A fresh process each time."""
    seconds: Rates = {"cache full": [], "cache empty": []}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            for name in reversed(seconds):
                command = [sys.executable, "-m", "experiments.vae_mnist", "--workdir", f"{folder}/{name}"]
                command += ["--data.name", "mnist_5k", "--run.log-every", "50"]
                environment, start = os.environ | {"XDG_CACHE_HOME": folder}, time.perf_counter()
                with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
                    assert any(line.startswith("step ") for line in process.stdout), "the run failed"
                    seconds[name].append(time.perf_counter() - start)
                    process.kill()
    yield "vae_mnist, from typing to the first logged step", "s", seconds


def benchmark_run(turns: int = 1) -> Comparisons:
    """Offline, with empty caches; by way of a small process: a forked one counts its parent's memory too."""
    program = (
        "import resource, subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
    )
    seconds, memory = [], []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", program, sys.executable, "-m", "experiments.vae_mnist"]
            command += ["--workdir", f"{folder}/run", "--data.dir", f"{folder}/data"]
            environment = os.environ | {"XDG_CACHE_HOME": folder}
            result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            for figures, value in zip((seconds, memory), map(float, result.stdout.split()), strict=True):
                figures.append(value)
    yield "vae_mnist, from typing to its last line", "s", {"the default run": seconds}
    yield "vae_mnist, peak of memory", "MB", {"the default run": memory}


KNOWN = {
    "vae": benchmark_vae,
    "conv": benchmark_conv,
    "gan": benchmark_gan,
    "gpt": benchmark_gpt,
    "peak": benchmark_peak,
    "seeds": benchmark_seeds,
    "nll": benchmark_nll,
    "cost": benchmark_cost,
    "scaling": benchmark_scaling,
    "start": benchmark_start,
    "run": benchmark_run,
}


def main(args: list[str]) -> None:
    """Compares what `args` name, and shows it; with `--out` keeps it, with `--write` shows in the README what was kept.

    Raises:
      UserError: there is no such comparison.
    """
    about, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser("python -m experiments.benchmark", description=about, epilog=rest)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(KNOWN)}")
    parser.add_argument("--out", type=Path, help="a file to append what is measured to, as lines of JSON")
    parser.add_argument("--write", action="store_true", help="the README's table and picture anew")
    options = parser.parse_args(args)
    if not options.names and not options.write:
        parser.print_help()
    for name in set(options.names) - set(KNOWN):
        raise UserError(f"no comparison {name!r}: expected some of {', '.join(KNOWN)}")
    for name in options.names:
        for what, unit, rates in KNOWN[name]():
            show(what, unit, rates)
            if options.out:
                short = {of: [float(f"{value:.5g}") for value in values] for of, values in rates.items()}
                where = {"device": device(), "cores": cores(), "versions": versions()}
                with options.out.open("a") as file:
                    file.write(json.dumps({"name": name, "what": what, "unit": unit, "rates": short} | where) + "\n")
    if options.write:
        README.write_text(between(README.read_text(), BEGIN, END, table(read(RESULTS))))
        PICTURE.write_text(picture(read(RESULTS)))


if __name__ == "__main__":
    from jaxgen.run import errors_in_one_line

    with errors_in_one_line():
        main(sys.argv[1:])
