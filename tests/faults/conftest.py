"""A test that forks has a process of its own."""

import os
import subprocess
import sys

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test marked ``forks`` runs in a new pytest: a worker of pytest-xdist has a second thread
    and what earlier tests left, and a child of its would inherit any lock that is held then."""
    if "forks" not in pyfuncitem.keywords or "PYTEST_XDIST_WORKER" not in os.environ:
        return None
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return True
