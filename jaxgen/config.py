"""The flags that every experiment has. An experiment derives from `Config`, adds its own and sets the defaults."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from msgspec import Meta

from jaxgen import privacy, ranges
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
    """A data set by name, or folder:PATH for your own images."""
    dir: Path | None = None
    """Folder of prepared tensorflow-datasets (default: the one that tensorflow-datasets itself uses)."""
    strict: bool = False
    """Stop where the data set cannot be had, instead of training on one that needs no network."""


@dataclass(frozen=True)
class ImageDataConfig(DataConfig):
    """Which images."""

    binarization: Literal["dynamic", "fixed", "none"] | None = None
    """Pixels drawn anew at each step, drawn once, or left as they are (default: dynamic for grey data sets, none for
    color and for folder:PATH)."""
    image_size: Annotated[int, Meta(ge=1, le=4_096)] | None = None
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
        )


@dataclass(frozen=True)
class TextDataConfig(DataConfig):
    """Which text."""

    name: str = "tiny_shakespeare"
    """tiny_shakespeare, python_source (Python's own code), or text:PATH for a file or folder of yours."""
    vocabulary: Literal["characters", "bytes", "bpe"] = "characters"
    """What a token is: a character of the text, a byte, or byte pairs often written together."""
    vocabulary_size: Annotated[int, Meta(ge=256, le=65_536)] = 1024
    """How many tokens bpe learns, the 256 bytes among them."""
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
        )


@dataclass(frozen=True)
class AudioDataConfig(DataConfig):
    """Which sounds."""

    name: str = "notes"
    """notes (plucked strings, made here), spoken_digit, or audio:PATH for a folder of your WAV and FLAC files."""
    sample_rate: Annotated[int, Meta(ge=1_000, le=192_000)] = 8_000
    """Samples per second, to which recordings are converted."""
    seconds: Annotated[float, Meta(gt=0, le=60)] | None = None
    """Of an example: what is longer is cut, what is shorter ends in silence (notes: 0.256, digits: 0.64, yours: 1)."""
    joint: bool = False
    """Label by pitch and brightness, or digit and speaker, instead of the first alone."""

    def load(self) -> Dataset:
        """The sounds, in memory."""
        return load_audio(
            self.name,
            data_dir=self.dir,
            strict=self.strict,
            sample_rate=self.sample_rate,
            seconds=self.seconds,
            joint=self.joint,
        )


@dataclass(frozen=True)
class MoleculeDataConfig(DataConfig):
    """Which molecules."""

    name: str = "nci"
    """nci (5,000 that lie inside RDKit), qm9, zinc250k, or smiles:PATH for a file of yours."""
    representation: Literal["smiles", "selfies"] = "smiles"
    """How they are written; no SELFIES is invalid."""
    spellings: Annotated[int, Meta(ge=0, le=100)] = 0
    """Randomised SMILES of each training molecule that are trained on too."""
    longest: UpTo10k | None = None
    """Leave out molecules of more tokens than so many."""

    def load(self) -> Dataset:
        """The molecules, in memory."""
        return load_molecules(
            self.name,
            data_dir=self.dir,
            strict=self.strict,
            representation=self.representation,
            spellings=self.spellings,
            longest=self.longest,
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: Literal["adam", "muon"] = "adam"
    """Adam (Kingma & Ba 2015), or for kernels Muon (Jordan et al. 2024), whose steps get further and cost more."""
    learning_rate: Positive = 1e-3
    """Step size at its highest."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the step size goes on: as it is, or along half a cosine down to 0 at the last step."""
    warmup_steps: Index = 0
    """Steps over which it rises linearly from 0."""
    b1: Partial = 0.9
    """Decay of the first moment."""
    b2: Partial = 0.999
    """Decay of the second moment."""
    epsilon: Positive = 1e-8
    """Added to the root of the second moment."""
    final_rate: Share = 0.0
    """Where the cosine ends, as a share of the highest step size."""
    weight_decay: NonNegative = 0.0
    """Share of each kernel and embedding that a step of size 1 takes away (AdamW, Loshchilov & Hutter 2019)."""
    clip_norm: Positive | None = None
    """Largest norm of a gradient; a longer one is scaled down to it."""
    ema_decay: Partial | None = None
    """Decay of the moving average of the parameters that evaluation and sampling use; lower in the first steps t:
    (1 + t) / (10 + t)."""
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
    """Steps between two lines of metrics."""
    evaluate_every: Count = 2_000
    """Steps between two evaluations on held-out data, with pictures."""
    checkpoint_every: Count = 2_000
    """Steps between two checkpoints."""
    keep: Count = 2
    """Checkpoints that stay, beside the one of the lowest held-out loss."""
    synchronous: bool = False
    """Wait until each checkpoint is written, instead of training on meanwhile."""
    guard: bool = True
    """Leave out steps whose loss or gradient is not finite."""
    max_bad_steps: Count = 20
    """Such steps in a row after which the run stops."""
    overwrite: bool = False
    """Start afresh: delete what an earlier run left in the folder."""
    chunk: UpTo10k = 50
    """Most steps in one dispatch to the device."""
    sharding: Literal["replicated", "fsdp"] = "replicated"
    """Parameters and optimiser state on every device, or split over them."""
    parallel: Literal["jit", "pmap", "shard_map"] = "jit"
    """Who splits the work over devices: the compiler, or a map over the parts of the batch."""
    accumulate: Width = 1
    """Parts of a batch whose gradients are computed one after another: the same step in less memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic; parameters, losses and the optimiser stay float32."""
    remat: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes are not found by JAX itself (as Slurm's and Open MPI's are)."""
    num_processes: Count | None = None
    """How many processes make this run; 1 keeps it alone in any case."""
    process_id: Index | None = None
    """Which of them this is, from 0."""


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
    """Samples whose nearest training images are looked for, and images that are asked whether they were trained on:
    does the model copy? None: it is not asked."""
    features: bool = field(default=False, kw_only=True)
    """Look for copies in the features of a classifier too, trained once on the labels: a copy that is moved is near
    there, and far in pixels."""


@dataclass(frozen=True)
class SampleConfig:
    """Controls of `python -m jaxgen sample`: options of a family."""


@dataclass(frozen=True)
class Config:
    """What every experiment has."""

    workdir: Path = Path("runs/experiment")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    seed: Seed = 0
    """Of all that is random: parameters, order of the data, noise."""
    seeds: UpTo1k = 1
    """Train so many at once, of the seeds from --seed on; figures are then their mean and standard deviation."""
    steps: Index = 10_000
    """Training steps."""
    batch_size: UpTo1M = 128
    """Examples in one step."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


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
    if optimizer.private:
        privacy.check(config.evaluate.delta)
    if config.seeds > 1 and run.parallel != "jit":
        raise UserError(f"--seeds {config.seeds} is trained under jit: leave out --run.parallel {run.parallel}")
    if run.sharding == "fsdp" and run.parallel != "jit":
        raise UserError(f"--run.sharding fsdp is the compiler's work: leave out --run.parallel {run.parallel}")
