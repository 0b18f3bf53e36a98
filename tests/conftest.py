"""Four devices on one processor, so that what is sharded can be tested anywhere."""

import os
import shutil
import tempfile

# These tests spend their time on compiling, and hardly any on running what was compiled: the quicker of XLA's two code
# generators takes a third of the time, and what one test has compiled, all others are spared.
# Workers keep the cores busy: code is generated in one piece. A cache of your own, named by JAX_COMPILATION_CACHE_DIR,
# spares it the next time too. What is kept in the user's cache folder beside compiled code is not touched.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
QUICK += " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
cache = None
if "PYTEST_XDIST_WORKER" not in os.environ:  # which has the first process's
    cache = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jaxgen-tests-")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "compiled"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import pytest  # noqa: E402
from conformance import mesh_of  # noqa: E402

from jaxgen import parallel  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="module")
def one_device():
    """Whole runs on one device, as on a laptop, which compile in less time; test_run has four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_mesh", lambda: mesh_of(1))
        yield


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: "test_processes" not in item.nodeid)


def pytest_unconfigure():
    if cache:
        shutil.rmtree(cache, ignore_errors=True)
