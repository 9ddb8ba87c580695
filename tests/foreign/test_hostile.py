"""Hostile and broken files are refused by name, run nothing, and cost no memory."""

import contextlib
import os
import sys
import time
import tracemalloc

import pytest

from edm_jax.foreign import edm_snapshot, importer
from edm_jax.foreign.torch_files import ModuleDictRecord
from edm_jax.store.errors import WeightsError
from tests.support import weights_bombs
from tests.support import weights_golden as wg
from tests.support import weights_hostile as wh
from tests.support.weights_payloads import MARKER

CORPUS = wh.corpus()
BOMBS = weights_bombs.bombs_corpus()

# Audit events of the interpreter that a payload could not avoid.
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "subprocess.Popen",
    "socket.",
    "shutil.",
    "pickle.find_class",
    "marshal.",
    "ctypes.",
    "code.__new__",
    "exec",
    "compile",
    "import",
    "webbrowser.open",
)
_watch: list[str] | None = None


def _audit(event, args):
    if _watch is None:
        return
    if event.startswith(_FORBIDDEN):
        _watch.append(f"{event} {str(args)[:80]}")
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        _watch.append(f"open {args[0]}")


sys.addaudithook(_audit)  # stays for the process, and does nothing unless watching


@contextlib.contextmanager
def watched():
    """Yields a list that collects what no reader may do."""
    global _watch
    _watch = []
    try:
        yield _watch
    finally:
        _watch = None


@pytest.fixture(scope="module", autouse=True)
def modules_loaded(tmp_path_factory):
    """Our own lazy imports happen before anything is watched."""
    path = tmp_path_factory.mktemp("warm") / "a.pkl"
    path.write_bytes(wg.content("small_torch1.pkl"))
    importer.read_model_file(path)
    with pytest.raises(WeightsError):
        path.write_bytes(CORPUS["DUP"][0])  # loads pickletools for the name
        importer.read_model_file(path)


def test_the_watch_sees_a_payload_run(tmp_path, monkeypatch):
    """The standard unpickler runs these files: the corpus and the watch are real."""
    import pickle

    monkeypatch.chdir(tmp_path)
    with watched() as events:
        pickle.loads(CORPUS["INST"][0])
    assert os.path.exists(MARKER)
    assert any(e.startswith("os.system") for e in events)
    with watched() as events, open("x", "w"):
        pass
    assert events == ["open x"]


def test_corpus_is_large_enough():
    assert len(CORPUS) > 40


@pytest.mark.parametrize("name", CORPUS)
def test_refused_by_name_and_nothing_runs(name, tmp_path, monkeypatch):
    data, offender = CORPUS[name]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    loaded = set(sys.modules)
    with watched() as events, pytest.raises(WeightsError) as refusal:
        importer.read_model_file(path)
    message = str(refusal.value)
    assert offender in message, message
    assert "\n" not in message and len(message) < 600
    assert message.startswith(str(path))
    assert events == []
    assert set(sys.modules) == loaded
    assert os.listdir(tmp_path) == ["file.pkl"]


# Per opcode the machine makes one small object; 256 bytes hold it, its entries in lists
# and memo, and their growth.  MAX_OPCODES bounds their number, the file bounds the rest.
_ALLOWANCE = 4 << 20


def peak_of_refusal(path, data):
    """Bytes in use at most while the file is read and refused."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            importer.read_model_file(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [n for n, (d, _) in CORPUS.items() if len(d) < 1 << 20])
def test_memory_stays_near_the_size_of_the_file(name, tmp_path):
    data, _ = CORPUS[name]
    assert peak_of_refusal(tmp_path / "file.pkl", data) < 256 * len(data) + _ALLOWANCE


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_no_more_than_their_file(name, tmp_path):
    """Read on, the first three take 50 to 400 MB or half a minute, the last three seconds."""
    data, _ = BOMBS[name]
    path = tmp_path / "file.pkl"
    # One byte of the file becomes one pointer on the stack, then one in a list or tuple, and
    # lists grow in steps.
    assert peak_of_refusal(path, data) < 32 * len(data) + (1 << 20)
    start = time.process_time()
    with pytest.raises(WeightsError):
        importer.read_model_file(path)
    # Processor time, without tracing: below 0.5 s for the 2^19 opcodes a file may run.
    assert time.process_time() - start < 4


def test_long_names_are_refused_before_they_multiply():
    leaf = ModuleDictRecord({"_modules": {"b" * 300: ModuleDictRecord({})}})
    with pytest.raises(WeightsError, match="is longer than 512"):
        edm_snapshot.walk(ModuleDictRecord({"_modules": {"a" * 300: leaf}}))
    edm_snapshot.walk(ModuleDictRecord({"_modules": {"a" * 200: leaf}}))


def test_directory_and_pipe(tmp_path):
    with pytest.raises(WeightsError, match="is a directory"):
        importer.read_model_file(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(WeightsError, match="not a regular file"):
        importer.read_model_file(pipe)
