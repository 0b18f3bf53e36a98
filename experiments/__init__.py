"""Results, one small file each: `python -m experiments.vae_mnist`."""
