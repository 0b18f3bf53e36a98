"""A Transformer that writes text: python -m experiments.transformer_text --data.name text:~/book.txt

Default: sizes and steps of nanoGPT's recipe for a laptop, on the works of Shakespeare, character by character.

Configurations, as an optional first word:
  shakespeare_cpu   nanoGPT's recipe for a laptop (1.88 nats per character there)
  shakespeare_char  nanoGPT's recipe for an accelerator (1.4697 nats per character there), in half its steps
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxgen import config as flags
from jaxgen.data import Dataset, Spec
from jaxgen.data.vocabulary import Vocabulary, vocabulary
from jaxgen.emissions import Controls, categorical
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, per_example, ratio
from jaxgen.experiment import Experiment
from jaxgen.models.autoregressive import Autoregressive, autoregressive
from jaxgen.networks.transformer import Transformer
from jaxgen.ranges import Count, Depth, Index, NonNegative, Partial, Probability, UpTo1k, UpTo1M, Width
from jaxgen.run import main
from jaxgen.types import Codec


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer."""

    layers: Depth = 4
    """Number of Transformer blocks."""
    heads: UpTo1k = 4
    """Number of attention heads."""
    kv_heads: UpTo1k | None = None
    """Number of key-value heads, a divisor of --model.heads (grouped-query attention)."""
    width: Width = 128
    """Number of features of a token."""
    context: Annotated[int, Meta(ge=1, le=65_536)] = 64
    """Context length in tokens."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Position encoding: rotary, or learned, which ends at the context length."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalization before attention and perceptron."""
    feed_forward: Literal["gelu", "swiglu"] = "gelu"
    """Activation of the perceptron."""
    dropout: Partial = 0.0
    """Dropout rate."""
    tied: bool = True
    """Share the matrix of the token embedding with the output layer."""
    bias: bool = False
    """Biases in all layers and norms."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How text is written, here and by `python -m jaxgen sample`."""

    prompt: str = ""
    """Beginning of the text (default: a line break, or the first character of the vocabulary)."""
    length: UpTo1M = 500
    """Number of tokens to write after the prompt."""
    temperature: NonNegative = 0.8
    """Temperature: above 1 is more diverse, below 1 less; 0 takes the most probable token."""
    top_k: Count | None = None
    """Number of most probable tokens to sample from."""
    top_p: Probability | None = None
    """Total probability of the most probable tokens to sample from (nucleus sampling)."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/transformer_text")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 2_000
    """Number of training steps."""
    batch_size: UpTo1M = 12
    """Windows of text per step."""
    data: flags.TextDataConfig = field(default_factory=flags.TextDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: flags.OptimizerConfig = field(
        default_factory=lambda: flags.OptimizerConfig(
            learning_rate=2e-3, warmup_steps=100, b2=0.99, weight_decay=0.1, clip_norm=1.0
        )
    )
    run: flags.RunConfig = field(default_factory=lambda: flags.RunConfig(log_every=100, evaluate_every=500))
    sample: SampleConfig = field(default_factory=SampleConfig)


def load(config: Config) -> Dataset:
    return config.data.load(config.model.context)


def build(config: Config, spec: Spec) -> Experiment:
    options, words = config.model, vocabulary(spec.vocabulary)
    pair = 2 * options.heads
    if options.width % pair:
        raise UserError(f"--model.width {options.width}: expected a multiple of {pair}, twice --model.heads")
    if options.kv_heads is not None and options.heads % options.kv_heads:
        raise UserError(f"--model.kv-heads {options.kv_heads}: expected a divisor of --model.heads {options.heads}")
    network = Transformer(
        vocabulary=words.size,
        remat=config.run.remat,
        dtype=config.run.dtype,
        **asdict(options),  # each flag is an attribute of the network
    )
    (length,), dtype = spec.entries["tokens"]
    model = autoregressive(
        network=network,
        emission=categorical(words.size),
        codec=Codec(lambda batch, key: batch["tokens"], lambda tokens: tokens.astype(dtype)),
        optimizer=config.optimizer.build(config.steps),
        length=length,
        opening=opening(words),
        per_token=True,
    )
    return experiment(model, network, words, config, spec)


def controls_of(sample: SampleConfig) -> Controls:
    return Controls(sample.temperature, sample.top_k, sample.top_p)


def opening(words: Vocabulary) -> np.ndarray:
    """A line break, or where the text has none its first token."""
    try:
        return words.encode("\n")
    except UserError:
        return np.zeros((1,), np.uint8)


def experiment(
    model: Autoregressive, network: Transformer, words: Vocabulary, config: Config, spec: Spec
) -> Experiment:
    """What there is to see and to measure of a model of text."""
    protocol = f"{spec.name}, {words.name}"
    begin = jax.jit(model.begin)
    grow = jax.jit(model.grow, static_argnames="steps")
    sample = jax.jit(model.sample, static_argnames=("n", "length"))

    characters = np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in words.pieces])  # that begin there

    def nats(params, arrays, key):
        """Of each window, [N]; the first of its tokens is not predicted."""
        return (arrays["tokens"].shape[1] - 1) * per_example(model.evaluate, params, arrays, key)["loss"]

    def validate(params, arrays, key):
        """Nats per token of the whole split."""
        return {"loss": ratio(nats(params, arrays, key), arrays["length"] - 1)}

    def measure(params, arrays, key, on_progress):
        total, (tokens, length) = nats(params, arrays, key), (arrays["tokens"], arrays["length"])
        loss, inside = ratio(total, length - 1), np.arange(1, tokens.shape[1]) < length[:, None]
        bits = ratio(total / math.log(2), np.where(inside, characters[tokens[:, 1:]], 0).sum(1))
        perplexity = math.exp(min(loss.mean, 700.0))
        return {
            f"test loss, nats per token ({protocol})": loss,
            f"test bits per character ({protocol})": bits,
            f"test perplexity per token ({protocol})": Estimate(perplexity, perplexity * loss.error),
        }

    def prompted(n):
        """[P] tokens of the prompt, and how many come after them."""
        prompt = words.encode(config.sample.prompt) if config.sample.prompt else opening(words)
        if network.limit is not None and len(prompt) + config.sample.length > network.limit:
            raise UserError(
                f"--length {config.sample.length} after a prompt of {len(prompt)} tokens: a model with learned "
                f"positions ends at {network.limit} tokens in all"
            )
        return prompt

    def draw(params, key, n, labels=None):
        prompt = prompted(n)
        length = len(prompt) + config.sample.length
        return sample(params, key, n, prompt=prompt, length=length, controls=controls_of(config.sample))

    def render(samples, columns=None):
        return "\n\n".join(f"--- {i} ---\n{words.decode(tokens)}" for i, tokens in enumerate(samples, 1))

    def stream(params, key, piece=16) -> Iterator[str]:
        prompt, left = prompted(1), config.sample.length
        decode = words.decoder()
        yield decode(prompt)
        prefix = begin(params, jnp.asarray(prompt, jnp.int32)[None])
        while left > 0:
            again = jax.random.clone(key)  # folded with each token's position
            prefix, tokens = grow(params, prefix, again, piece, controls_of(config.sample))
            yield decode(np.asarray(tokens[0])[:left])
            left -= piece
        yield decode([], final=True)

    def exhibits(params, arrays, key):
        length = 300 if network.limit is None else network.limit
        tokens = sample(params, key, 3, length=length, controls=Controls(temperature=0.8))
        return {"samples": render(tokens)}

    return Experiment(
        model,
        "Transformer",
        protocol,
        exhibits,
        validate=validate,
        measure=measure,
        sample=draw,
        render=render,
        stream=stream,
        unit="windows",
    )


NAMED = {
    # The sizes of nanoGPT's recipes; what it reaches: 1.88 and 1.4697 nats a character.
    "shakespeare_cpu": Config(
        workdir=Path("runs/shakespeare_cpu"), data=flags.TextDataConfig(strict=True, validation=0.0)
    ),
    # The second in fewer steps than nanoGPT's 5,000, which go on to learn the text by heart.
    "shakespeare_char": Config(
        workdir=Path("runs/shakespeare_char"),
        steps=2_500,
        batch_size=64,
        data=flags.TextDataConfig(strict=True, validation=0.0),
        model=ModelConfig(layers=6, heads=6, width=384, context=256, dropout=0.3),
        optimizer=replace(Config().optimizer, learning_rate=1e-3, final_rate=0.1),
    ),
}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
