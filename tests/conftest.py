"""What every test shares: one thread, an untouched home, and the embedded model for those that ask for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub

import pytest

# a shell that starts the tests in the background has Ctrl-C ignored, and what the tests start would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from retain.lm.decoder import DecoderLM


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the user's configuration file nor the user's environment reaches a test."""
    for name in list(os.environ):
        if name.startswith("RETAIN_") and name != "RETAIN_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("RETAIN_CONFIG", str(tmp_path_factory.getbasetemp() / "no-such-config.yaml"))


def _embedded() -> Path:
    """The embedded model's directory. Where it cannot be had: a skip that says why, or with CI=true a failure."""
    from retain.lm.embedded import EmbeddedModelError, embedded_model_dir

    try:
        return embedded_model_dir()
    except EmbeddedModelError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("embedded"):
        _embedded()


@pytest.fixture(scope="session")
def embedded_dir() -> Path:
    """The directory of the embedded model."""
    return _embedded()


@pytest.fixture(scope="session")
def tiny_model_dir() -> Path:
    """A small pre-trained model (tests/tiny.py) as a directory; trained once per machine, then kept beside pytest's temporary files."""
    import getpass
    import tempfile

    from tests.tiny import tiny_directory

    return tiny_directory(Path(tempfile.gettempdir()) / f"retain-tests-{getpass.getuser()}")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path) -> DecoderLM:
    """The small model, loaded in float32."""
    from retain.lm.decoder import DecoderLM
    from retain.lm.loading import load_model

    model = load_model(tiny_model_dir, device="cpu", precision="float32", cache_dir=tiny_model_dir.parent)
    assert isinstance(model, DecoderLM)
    return model
