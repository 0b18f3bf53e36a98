"""Tests see nothing of the user's: a home, caches, settings and a working directory of their own, all temporary.

Four devices on one processor, so that sharded arrays can be tested anywhere.
"""

import os
import re
import shutil
import tempfile

# Variables that would change a result: of JAX, of clusters it would join, of data folders, of terminals and languages.
# Two may stay, for whoever wants to test an accelerator or to keep what was compiled.
THEIRS = r"(JAX|XLA|TF|TFDS|XDG|SLURM|OMPI|PMIX?|MPL|GIT|PYTHONIO|PYTHONUTF8|LC|TYRO)(_|[A-Z]|$)"
THEIRS += r"|(LANG|LANGUAGE|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|NANOGPT|KUBERNETES_SERVICE_HOST)$"
KEPT = {"JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"}
# These tests spend their time on compiling, and hardly any on running compiled programs: the quicker of XLA's two code
# generators takes a third of the time, and a program is compiled once for all tests.
# Workers keep the cores busy: code is generated in one piece.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
QUICK += " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
home = None
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have the first process's
    for name in set(os.environ) - KEPT:
        if re.match(THEIRS, name):
            del os.environ[name]
    home = tempfile.mkdtemp(prefix="jaxgen-tests-")
    os.environ |= {"HOME": home, "USERPROFILE": home, "LANG": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1", "COLUMNS": "120"}
    nowhere = "http://127.0.0.1:9"  # nobody listens: with and without a network, a download fails at once
    os.environ |= {f"{kind}_proxy": nowhere for kind in ("http", "https", "ftp", "all", "HTTP", "HTTPS", "ALL")}
    os.environ |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")
    os.environ |= {
        f"XDG_{kind}_HOME": os.path.join(home, kind.lower()) for kind in ("CACHE", "CONFIG", "DATA", "STATE")
    }
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(home, "compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["XLA_FLAGS"] = QUICK

import jax  # noqa: E402
import pytest  # noqa: E402
from conformance import mesh_of  # noqa: E402

from jaxgen import parallel  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """A working directory in which there is nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        yield


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
    if home:
        shutil.rmtree(home, ignore_errors=True)
