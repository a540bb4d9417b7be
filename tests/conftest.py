"""What all tests share: where the data is, and no network."""

import os
from pathlib import Path

import pytest

from easyedit_fast.errors import MissingPackageError

ROOT = Path(__file__).resolve().parent.parent

# Before transformers is imported: no test asks the network for a model.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared_data():
    """The folder that holds ``data/`` and ``reference/``, named by EASYEDIT_FAST_DATA."""
    named = os.environ.get("EASYEDIT_FAST_DATA")
    if not named:
        pytest.skip("EASYEDIT_FAST_DATA is not set")
    folder = ROOT / named
    missing = [name for name in ("data", "reference") if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"EASYEDIT_FAST_DATA={named} has no folder {missing[0]}")
    return folder


@pytest.fixture(scope="session")
def demo_model():
    """The packaged demo model and its tokenizer; tests leave the model as it was."""
    from easyedit_fast.models.loading import load_model

    try:
        return load_model("demo", device="cpu")
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture
def serac_editor(demo_model):
    """SERAC on the demo model, with an empty memory."""
    from easyedit_fast import Editor

    try:
        made = Editor(*demo_model, method="serac")
    except MissingPackageError as error:
        pytest.skip(str(error))
    yield made
    made.method.close()


@pytest.fixture(scope="session")
def mend_archive(demo_model, tmp_path_factory):
    """The file of a MEND editor for the demo model; not trained, but it takes a step."""
    from tests.unit.mend_editors import write_untrained_editor

    path = tmp_path_factory.mktemp("mend") / "editor.safetensors"
    write_untrained_editor(path, demo_model[0])
    return path


@pytest.fixture(scope="session")
def sentence_encoder(tmp_path_factory):
    """The folder of a small random sentence encoder."""
    from tests.unit.serac_encoders import write_encoder

    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """More threads only wait for each other on models and matrices that are small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def statistics_cache(tmp_path_factory):
    """Statistics that the user has collected change what an editor does: tests have none."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("easyedit_fast.moments.statistics.cache_folder", lambda: folder)
        yield folder


@pytest.fixture
def heeded_signals():
    """Both signals as a terminal leaves them; a shell has its jobs ignore SIGINT, and theirs."""
    import signal

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
