"""Four devices on one processor, so that what is sharded can be tested anywhere."""

import os

# These tests spend their time on compiling, and hardly any on running what was compiled.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax

jax.config.update("jax_num_cpu_devices", 4)
