"""The peers that experiments/benchmark.py measures: plain PyTorch loops, written for the purpose, and nanoGPT."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments import transformer_text
from jaxgen.errors import UserError, install
from jaxgen.folder import cores


def pytorch():
    """PyTorch, with as many threads as XLA takes.

    They wait for each other by spinning, four times slower where other work shares the cores: measure on an idle
    machine, or with OMP_WAIT_POLICY=passive.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(f"this comparison needs PyTorch: {install('torch')}") from None
    torch.set_num_threads(cores())
    return torch


def torch_vae(images: np.ndarray, steps: int, batch_size: int) -> Callable[[], None]:
    """784-400-20-400-784, Adam, as pytorch/examples has it: a function that trains on random batches of [N, 784]."""
    torch = pytorch()
    from torch import nn as layers
    from torch.nn.functional import binary_cross_entropy_with_logits

    encoder = layers.Sequential(layers.Linear(784, 400), layers.ReLU(), layers.Linear(400, 40))
    decoder = layers.Sequential(layers.Linear(20, 400), layers.ReLU(), layers.Linear(400, 784))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    data = torch.tensor(images, dtype=torch.float32)

    def run() -> None:
        for _ in range(steps):
            x = data[torch.randint(len(data), (batch_size,))]
            mu, logvar = encoder(x).chunk(2, dim=-1)
            logits = decoder(mu + torch.exp(logvar / 2) * torch.randn_like(mu))
            kl = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).sum()
            loss = (binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl) / batch_size
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


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


def nanogpt(sizes: transformer_text.ModelConfig, vocabulary: int) -> tuple:
    """Its model of the same sizes, and PyTorch."""
    torch = pytorch()
    try:
        sys.path.insert(0, str(Path(os.environ["NANOGPT"]).expanduser()))
        from model import GPT, GPTConfig
    except (ImportError, KeyError):
        raise UserError("the comparison gpt needs nanoGPT: NANOGPT=the folder of its checkout") from None
    torch.manual_seed(1337)
    options = {"n_layer": sizes.layers, "n_head": sizes.heads, "n_embd": sizes.width}
    return GPT(GPTConfig(sizes.context, vocabulary, **options, dropout=0.0, bias=False)), torch
