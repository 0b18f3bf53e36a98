"""The flags that every experiment has. An experiment derives from `Config`, adds its own and sets the defaults."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from msgspec import Meta

from jaxgen import ranges
from jaxgen.data import Dataset, Spec, load_images
from jaxgen.data.audio import load_audio
from jaxgen.data.molecules import load_molecules
from jaxgen.data.text import load_text
from jaxgen.errors import UserError
from jaxgen.ranges import Count, Index, NonNegative, Partial, Positive, Seed, Share, UpTo1k, UpTo1M, UpTo10k, Width
from jaxgen.types import PyTree


@dataclass(frozen=True)
class DataConfig:
    """Which data, and where they lie."""

    name: str = "mnist"
    """Name of the data set, or folder:PATH for your own images."""
    dir: Path | None = None
    """Folder of prepared data sets (default: that of tensorflow-datasets)."""
    strict: bool = False
    """Stop if the data set is not available, instead of training on one that needs no network."""
    validation: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    """Share of the training examples held out for validation, 0 to 0.5; data sets with a validation split of their own
    keep it. Curves, warnings and the best checkpoint come from validation data. With 0 a part of the training data is
    evaluated instead, and no best checkpoint is kept."""


@dataclass(frozen=True)
class ImageDataConfig(DataConfig):
    """Which images."""

    name: str = "mnist"
    """Name of the data set: mnist, fashion_mnist, binarized_mnist, mnist_5k (5,000 digits, no download), sprites
    (synthetic), any other prepared image data set of tensorflow-datasets, or folder:PATH for your own images."""
    binarization: Literal["dynamic", "fixed", "none"] | None = None
    """Treatment of gray levels: dynamic (pixels sampled anew at each step), fixed (sampled once) or none (default:
    dynamic for gray data sets, none for color and for folder:PATH)."""
    image_size: UpTo1k | None = None
    """Height and width of the images in pixels: their center square is resized."""
    background: str = "white"
    """Color behind transparent pixels of folder:PATH: a name or #rrggbb."""

    def load(self) -> Dataset:
        """The images, in memory."""
        return load_images(
            self.name,
            data_dir=self.dir,
            strict=self.strict,
            image_size=self.image_size,
            background=self.background,
            binarization=self.binarization,
            validation=self.validation,
        )


@dataclass(frozen=True)
class TextDataConfig(DataConfig):
    """Which text."""

    name: str = "tiny_shakespeare"
    """Name of the data set: tiny_shakespeare, python_source (Python's own code), or text:PATH for your own file or
    folder."""
    vocabulary: Literal["characters", "bytes", "bpe"] = "characters"
    """Kind of token: characters, bytes, or bpe (frequent byte pairs)."""
    vocabulary_size: Annotated[int, Meta(ge=256, le=65_536)] = 1024
    """Number of tokens of bpe, including the 256 bytes."""
    column: str | None = None
    """Column of texts in a table of text:PATH (CSV, TSV, JSON lines, or Parquet with the package pyarrow)."""

    def load(self, context: int) -> Dataset:
        """The text, in memory: windows of that many tokens and one more."""
        return load_text(
            self.name,
            data_dir=self.dir,
            strict=self.strict,
            vocabulary=self.vocabulary,
            vocabulary_size=self.vocabulary_size,
            context=context,
            column=self.column,
            validation=self.validation,
        )


@dataclass(frozen=True)
class AudioDataConfig(DataConfig):
    """Which sounds."""

    name: str = "notes"
    """Name of the data set: notes (synthetic plucked strings), spoken_digit, or audio:PATH for your own folder of WAV
    and FLAC files."""
    sample_rate: Annotated[int, Meta(ge=1_000, le=192_000)] = 8_000
    """Sample rate in hertz; recordings are resampled."""
    seconds: Annotated[float, Meta(gt=0, le=60)] | None = None
    """Length of an example in seconds: longer ones are cut, shorter ones padded with silence (default: notes 0.256,
    spoken_digit 0.64, audio:PATH 1)."""
    joint: bool = False
    """Label by pitch and brightness, or by digit and speaker, instead of the first alone."""
    channel: str = "mix"
    """Channel of recordings in audio:PATH: mix (the mean of all), left, right, or a number from 1."""

    def load(self) -> Dataset:
        """The sounds, in memory."""
        return load_audio(
            self.name,
            data_dir=self.dir,
            strict=self.strict,
            sample_rate=self.sample_rate,
            seconds=self.seconds,
            joint=self.joint,
            channel=self.channel,
            validation=self.validation,
        )


@dataclass(frozen=True)
class MoleculeDataConfig(DataConfig):
    """Which molecules."""

    name: str = "nci"
    """Name of the data set: nci (5,000 molecules from RDKit), qm9, zinc250k, or smiles:PATH for your own file."""
    representation: Literal["smiles", "selfies"] = "smiles"
    """Notation of molecules; every SELFIES string is a valid molecule."""
    spellings: Annotated[int, Meta(ge=0, le=100)] = 0
    """Number of additional randomized SMILES per training molecule."""
    longest: UpTo10k | None = None
    """Largest number of tokens of a molecule; longer ones are left out."""
    column: str | None = None
    """Name or number (from 1) of the column of SMILES in smiles:PATH (default: the one that RDKit can read)."""
    largest_fragment: bool = False
    """Keep only the largest fragment of each molecule, without counterions and solvents."""

    def load(self) -> Dataset:
        """The molecules, in memory."""
        return load_molecules(
            self.name,
            data_dir=self.dir,
            strict=self.strict,
            representation=self.representation,
            spellings=self.spellings,
            longest=self.longest,
            column=self.column,
            largest_fragment=self.largest_fragment,
            validation=self.validation,
        )


@dataclass(frozen=True)
class ModelConfig:
    """Networks and loss: options of a family."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: Literal["adam", "muon"] = "adam"
    """Optimizer: Adam (Kingma & Ba 2015), or Muon (Jordan et al. 2024) for kernels, which needs fewer but costlier
    steps."""
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning-rate schedule after the warmup: constant, or a cosine decay to --optimizer.final-rate."""
    warmup_steps: Index = 0
    """Number of steps of linear warmup from 0."""
    b1: Partial = 0.9
    """Decay rate of the first moment."""
    b2: Partial = 0.999
    """Decay rate of the second moment."""
    epsilon: Positive = 1e-8
    """Constant added to the root of the second moment."""
    final_rate: Share = 0.0
    """Final learning rate of the cosine, as a share of the peak."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of kernels and embeddings (AdamW, Loshchilov & Hutter 2019)."""
    clip_norm: Positive | None = None
    """Largest global norm of a gradient; larger gradients are scaled down."""
    ema_decay: Partial | None = None
    """Decay of the moving average of the parameters used in evaluation and sampling, at most (1 + t) / (10 + t) at step
    t."""
    noise_multiplier: NonNegative | None = None
    """Differentially private training (DP-SGD, Abadi et al. 2016): standard deviation of the noise on the sum of the
    examples' gradients, in units of --optimizer.example-norm. The noise comes from the operating system, not from
    --seed. None: not private."""
    example_norm: Positive | None = None
    """Clipping norm of the gradient of each example in private training."""

    @property
    def private(self) -> bool:
        """Whether gradients are clipped for each example and noise is added."""
        return self.noise_multiplier is not None

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optimiser for a training of that many steps."""
        rate = optax.constant_schedule(self.learning_rate)
        if self.schedule == "cosine":
            duration = max(1, steps - self.warmup_steps)
            rate = optax.cosine_decay_schedule(self.learning_rate, duration, self.final_rate)
        if self.warmup_steps:
            rise = optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
            rate = optax.join_schedules([rise, rate], [self.warmup_steps])
        moments = {"b1": self.b1, "b2": self.b2, "eps": self.epsilon}
        if self.name == "muon":
            decay = optax.add_decayed_weights(self.weight_decay, mask=_decays)
            optimizer = optax.chain(_muon(**moments), decay, optax.scale_by_learning_rate(rate))
        elif self.weight_decay:
            optimizer = optax.adamw(rate, weight_decay=self.weight_decay, mask=_decays, **moments)
        else:
            optimizer = optax.adam(rate, **moments)
        if self.clip_norm:
            optimizer = optax.chain(optax.clip_by_global_norm(self.clip_norm), optimizer)
        return optimizer


def _muon(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Muon's directions for kernels, Adam's with Nesterov's momentum for the rest, of one size (Liu et al. 2025)."""

    def matrices(params: PyTree) -> PyTree:
        """[in, out], layers that are stacked [L, in, out], and the kernels of images [H, W, in, out] as one matrix."""
        axes = {2: (0, 1), 3: (1, 2), 4: ((0, 1, 2), 3)}

        def axes_of(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            kernel = getattr(path[-1], "key", "").startswith("kernel") and leaf.ndim in axes
            return optax.contrib.MuonDimensionNumbers(*axes[leaf.ndim]) if kernel else None

        return jax.tree.map_with_path(axes_of, params)

    shapes = {"consistent_rms": 0.2, "muon_weight_dimension_numbers": matrices}
    return optax.contrib.muon(-1.0, beta=b1, adam_b1=b1, adam_b2=b2, eps=eps, **shapes)


def _decays(params: PyTree) -> PyTree:
    """True for what multiplies activations; a norm's scale and a bias have no size that ought to be small."""
    names = ("kernel", "embedding")
    return jax.tree.map_with_path(lambda path, _: getattr(path[-1], "key", "").startswith(names), params)


@dataclass(frozen=True)
class RunConfig:
    """How a run is watched and kept. None of it changes what is trained."""

    log_every: Count = 500
    """Steps between two log lines."""
    evaluate_every: Count = 2_000
    """Steps between two evaluations on validation data."""
    checkpoint_every: Count = 2_000
    """Steps between two checkpoints."""
    keep: Count = 2
    """Number of newest checkpoints to keep, besides the one of the lowest validation loss."""
    synchronous: bool = False
    """Wait until each checkpoint is written, instead of training meanwhile."""
    guard: bool = True
    """Skip steps whose loss or gradient is not finite."""
    max_bad_steps: Count = 20
    """Number of consecutive skipped steps after which the run stops."""
    overwrite: bool = False
    """Start afresh: delete the earlier run in the folder."""
    chunk: UpTo10k = 50
    """Largest number of steps per dispatch to the device."""
    sharding: Literal["replicated", "fsdp"] = "replicated"
    """Placement of parameters and optimizer state: replicated on every device, or split over the devices (fsdp)."""
    parallel: Literal["jit", "pmap", "shard_map"] = "jit"
    """Method of data parallelism: the compiler's (jit), or an explicit map over parts of the batch."""
    accumulate: Width = 1
    """Number of parts into which a batch is split to save memory; gradients are accumulated."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the arithmetic in the networks; parameters, losses and optimizer state are always float32."""
    remat: bool = False
    """Recompute activations in the backward pass to save memory."""
    coordinator: str | None = None
    """Address HOST:PORT of process 0, for several processes outside of Slurm, Open MPI and TPU pods."""
    num_processes: Count | None = None
    """Number of processes of the run; 1 ignores any cluster."""
    process_id: Index | None = None
    """Index of this process, from 0."""
    start_timeout: Count = 60
    """Seconds to wait at the start for the other processes."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured at the end of a run, and by `python -m jaxgen evaluate`: options of a family."""

    delta: Annotated[float, Meta(gt=0, lt=1)] | None = field(default=None, kw_only=True)
    """Delta of differential privacy, at which epsilon of private training is computed (default: the largest power of
    ten below 1 / training examples)."""


@dataclass(frozen=True)
class ImageEvaluateConfig(EvaluateConfig):
    """What is measured of a model of images."""

    copies: Annotated[int, Meta(ge=10, le=1_000_000)] | None = field(default=1_000, kw_only=True)
    """Number of samples in the copy audit (nearest training images), and of images in its membership inference. None
    skips the audit."""
    features: bool = field(default=False, kw_only=True)
    """Repeat the copy audit in the features of a network trained once on the labels of the data, or on rotations if
    there are none: a moved copy is near in features, and far in pixels."""


@dataclass(frozen=True)
class SampleConfig:
    """Controls of `python -m jaxgen sample`: options of a family."""


@dataclass(frozen=True)
class Config:
    """What every experiment has."""

    workdir: Path = Path("runs/experiment")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    seed: Seed = 0
    """Seed of parameters, order of the data and noise, except the noise of private training."""
    seeds: UpTo1k = 1
    """Number of models trained at once, with seeds from --seed on; figures are their means and standard deviations."""
    steps: Index = 10_000
    """Number of training steps."""
    batch_size: UpTo1M = 128
    """Examples per step."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    run: RunConfig = field(default_factory=RunConfig)


def check_condition(conditional: bool, label: int | None, spec: Spec) -> None:
    """Raises UserError where a model is to know labels that the data lack, or a label is asked for that it lacks."""
    if conditional and not spec.classes:
        raise UserError(f"--model.conditional: {spec.name} has no labels: use --model.no-conditional, or labelled data")
    if label is not None and not (conditional and label in range(len(spec.classes))):
        expected = f"0 to {len(spec.classes) - 1}" if conditional else "none, since the model has no condition"
        raise UserError(f"--label {label}: expected {expected}")


def labels_asked(conditional: bool, label: int | None, n: int, labels: jax.Array | None) -> jax.Array | None:
    """What a conditional model is asked for: n times the label of the flags, or without one `labels` [n], if any."""
    if not conditional or label is None:
        return labels if conditional else None
    return jnp.full(n, label)


def check(config: Config) -> None:
    """Raises UserError where a field is out of its range, or two of them exclude each other."""
    ranges.check(config)
    run, optimizer = config.run, config.optimizer
    if (optimizer.noise_multiplier is None) != (optimizer.example_norm is None):
        raise UserError("--optimizer.noise-multiplier and --optimizer.example-norm: expected both of them, or neither")
    if config.seeds > 1 and run.parallel != "jit":
        raise UserError(f"--seeds {config.seeds} is trained under jit: leave out --run.parallel {run.parallel}")
    if run.sharding == "fsdp" and run.parallel != "jit":
        raise UserError(f"--run.sharding fsdp is the compiler's work: leave out --run.parallel {run.parallel}")
