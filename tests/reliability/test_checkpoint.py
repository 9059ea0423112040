import json
import math
import multiprocessing
import os
import pickle
import resource
import signal
import zipfile
from collections import OrderedDict, namedtuple
from hashlib import sha256

import numpy as np
import pytest
import torch

from metarl import checkpoint
from metarl.checkpoint import CheckpointError, CheckpointStore, load_checkpoint, save_checkpoint


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert [*a] == [*b]
        assert [type(key) for key in a] == [type(key) for key in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
    elif isinstance(a, np.ndarray | np.generic):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, float):
        assert math.copysign(1, a) == math.copysign(1, b)
        assert a == b or (math.isnan(a) and math.isnan(b))
    else:
        assert a == b


STATE = {
    "plain": [None, True, False, 0, -1, 2**130 + 1, "", "text \u2603 \ud800", "$dict", [], {}, ()],
    "floats": [0.1, -0.0, 1e-320, 1.7976931348623157e308, math.inf, -math.inf, math.nan],
    "tuples": ((1, (2, [3, (4,)])), {"a": (5,)}),
    "keys": {0: "int", "0": "str", None: "none", (1, ("a", 2.5)): "tuple", -1.5: "float", 2**70: "long"},
    "true": {True: 1},
    "dollar": {"$tensor": 0},
    "tensors": {
        "float64": torch.tensor([1 / 3, math.nan, -math.inf, -0.0], dtype=torch.float64),
        "bfloat16": torch.randn(3, 2).to(torch.bfloat16),
        "int64": torch.tensor([2**62 + 1, -(2**63)]),
        "bool": torch.tensor([[True], [False]]),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "complex": torch.tensor([1 + 2j]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
    },
    "arrays": [
        np.array(7, np.int16),
        np.zeros((0, 4), np.float32),
        np.array([2**64 - 1], np.uint64),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([1, 2], ">i4"),
        np.array(["ab", "c"]),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
        np.arange(10)[::3],
    ],
    "numpy scalars": [np.float64(0.1), np.float32(0.1), np.int64(5), np.bool_(True), np.uint64(2**64 - 1)],
    "generators": [
        np.random.PCG64(1).state,
        np.random.MT19937(1).state,
        np.random.Philox(1).state,
        torch.Generator().manual_seed(3).get_state(),
    ],
}


def test_everything_comes_back_exactly(tmp_path):
    path = save_checkpoint(tmp_path / "new" / "a.ckpt", STATE)
    assert_same(load_checkpoint(path), STATE)


def test_equal_states_give_equal_files(tmp_path):
    one, two = (save_checkpoint(tmp_path / name, STATE) for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_optimizer_continues_to_the_bit(tmp_path):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    def train(model, optimizer):
        for i in range(3):
            optimizer.zero_grad()
            model(torch.full((4, 3), float(i))).square().sum().backward()
            optimizer.step()

    model, optimizer = make()
    train(model, optimizer)
    path = save_checkpoint(tmp_path / "a.ckpt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer)

    other, other_optimizer = make()
    state = load_checkpoint(path)
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(other, other_optimizer)
    assert_same([*other.state_dict().values()], [*model.state_dict().values()])


def test_a_view_does_not_bring_its_storage_along(tmp_path):
    path = save_checkpoint(tmp_path / "a.ckpt", {"row": torch.zeros(1000, 1000)[0], "grid": torch.zeros(1).expand(5, 5)})
    assert path.stat().st_size < 20_000
    assert_same(load_checkpoint(path), {"row": torch.zeros(1000), "grid": torch.zeros(5, 5)})


def test_parameters_and_ordered_dictionaries_become_plain(tmp_path):
    state = {"p": torch.nn.Parameter(torch.ones(2)), "d": OrderedDict(b=1, a=2)}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "a.ckpt", state))
    assert_same(loaded, {"p": torch.ones(2), "d": {"b": 1, "a": 2}})
    assert not loaded["p"].requires_grad


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", lambda: 0, np.array([object()]), Pair(1, 2), torch.eye(2).to_sparse(), 1j]
)
def test_what_cannot_come_back_is_refused_by_place_and_type(tmp_path, value):
    path = save_checkpoint(tmp_path / "a.ckpt", {"old": 1})
    with pytest.raises(TypeError, match=r"cannot hold state\['parts'\]\[1\], which is of type .*" + type(value).__name__):
        save_checkpoint(path, {"parts": [0, value]})
    assert load_checkpoint(path) == {"old": 1}
    assert [*tmp_path.iterdir()] == [path]


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    return save_checkpoint(tmp_path / "a.ckpt", {"step": 3, "w": torch.arange(4.0), "a": np.arange(3)})


def test_altered_bytes_are_noticed_everywhere(small):
    data = small.read_bytes()
    for position in [*range(0, len(data) - 150, 4), *range(len(data) - 150, len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        small.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.ckpt is truncated(,| or) altered"):
            load_checkpoint(small)


def test_truncations_are_noticed(small):
    data = small.read_bytes()
    for length in [*range(0, len(data), 11), *range(len(data) - 100, len(data))]:
        small.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"a\.ckpt is truncated"):
            load_checkpoint(small)


@pytest.mark.parametrize(
    "change", [lambda d: d + b"\0", lambda d: d + d, lambda d: d[1:], lambda d: d[:50] + d[51:], bytes.swapcase]
)
def test_other_changes_are_noticed(small, change):
    small.write_bytes(change(small.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.ckpt is truncated"):
        load_checkpoint(small)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")


# -- forgery ---------------------------------------------------------------------------------------------------------


def forge(path, **members):
    """A checkpoint with a correct hash around whatever `members` hold."""
    content = {"state.json": json.dumps({"format": 1, "state": {"$tensor": 0}}).encode(), **members}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.comment = b"sha256:" + b"0" * 64
    body = path.read_bytes()[:-64]
    path.write_bytes(body + sha256(body).hexdigest().encode())
    return path


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_malicious_pickles_do_not_run(tmp_path):
    payload = Payload(tmp_path / "ran")
    torch.save([payload], tmp_path / "tensors.pt")
    np.save(tmp_path / "array.npy", np.array([payload]), allow_pickle=True)
    tensors, array = (tmp_path / "tensors.pt").read_bytes(), (tmp_path / "array.npy").read_bytes()
    torch.save([], tmp_path / "empty.pt")
    empty = (tmp_path / "empty.pt").read_bytes()
    for members in [
        {"tensors.pt": tensors},
        {"tensors.pt": pickle.dumps(payload)},
        {"tensors.pt": empty, "arrays/0.npy": array},
        {"tensors.pt": empty, "arrays/0.npy": pickle.dumps(payload)},
    ]:
        with pytest.raises(CheckpointError, match=r"bad\.ckpt does not hold a readable checkpoint") as caught:
            load_checkpoint(forge(tmp_path / "bad.ckpt", **members))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"format": 2, "state": {}}', b'{"format": 1, "state": {"$code": 1}}', b"[" * 100_000]
)
def test_unreadable_documents_are_refused(tmp_path, document):
    torch.save([], tmp_path / "tensors.pt")
    with pytest.raises(CheckpointError, match=r"bad\.ckpt does not hold a readable checkpoint"):
        load_checkpoint(
            forge(tmp_path / "bad.ckpt", **{"state.json": document, "tensors.pt": (tmp_path / "tensors.pt").read_bytes()})
        )


# -- failures while saving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, error):
    path = save_checkpoint(tmp_path / "a.ckpt", {"old": 1})

    def fail(*arguments):
        raise error

    monkeypatch.setattr(checkpoint.os, call, fail)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"new": torch.ones(3)})
    monkeypatch.undo()
    assert load_checkpoint(path) == {"old": 1}
    assert [*tmp_path.iterdir()] == [path]


def test_a_write_cut_short_by_the_system_leaves_the_old_file_and_nothing_else(tmp_path):
    path = save_checkpoint(tmp_path / "a.ckpt", {"old": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, {"new": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path) == {"old": 1}
    assert [*tmp_path.iterdir()] == [path]


def make_state(step):
    return {"step": step, "w": torch.full((1000,), float(step)), "a": np.full(200_000, step)}


def save_and_die(folder, call, delay):
    """Save one step after the other, killed at the first call of `os.call`, or after `delay` seconds."""
    signal.setitimer(signal.ITIMER_REAL, delay)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if call:
        setattr(os, call, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    for step in range(2, 10_000):
        CheckpointStore(folder).save(step, make_state(step))


def test_killed_at_any_moment_a_loadable_checkpoint_remains(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metarl.checkpoint"])
    store = CheckpointStore(tmp_path)
    store.save(1, make_state(1))
    leftovers = 0
    moments = [("fsync", 60), ("replace", 60), ("unlink", 60), *((None, 0.1 + 0.0437 * i) for i in range(4))]
    for call, delay in moments:
        process = context.Process(target=save_and_die, args=(tmp_path, call, delay))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        leftovers += len([*tmp_path.glob(".*.tmp")])
        _, state = store.latest()
        assert_same(state, make_state(state["step"]))
    assert leftovers >= 2
    store.save(10_000, make_state(10_000))
    assert sorted(tmp_path.iterdir()) == store.paths()


# -- the store -------------------------------------------------------------------------------------------------------


def test_the_store_keeps_the_last_ones(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.latest() is None
    for step in (0, 999_999_999_999, 10**12):
        assert store.save(step, {"step": step}) == store.paths()[-1]
    assert [path.name for path in store.paths()] == ["step_999999999999.ckpt", "step_1000000000000.ckpt"]
    assert store.latest() == (store.paths()[-1], {"step": 10**12})


def test_the_store_falls_back_with_a_warning(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        store.save(step, {"step": step})
    one, two, three = store.paths()
    three.write_bytes(three.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"falling back to step_0*2\.ckpt: .*step_0*3\.ckpt is truncated"):
        assert store.latest() == (two, {"step": 2})
    two.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step_0*3\.ckpt is truncated.*; .*step_0*2\.ckpt is truncated"):
        assert store.latest() == (one, {"step": 1})
    one.write_bytes(b"sha256:" + b"0" * 64)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is readable: .*step_0*3.*; .*step_0*2.*; .*step_0*1"):
        store.latest()


def test_after_a_fallback_the_new_checkpoint_is_the_latest(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20, 30):
        store.save(step, {"step": step})
    store.paths()[-1].write_bytes(b"damaged")
    store.save(25, {"step": 25})
    assert [load_checkpoint(path)["step"] for path in store.paths()] == [20, 25]


def test_a_failed_save_removes_no_older_checkpoint(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {"step": 1})
    with pytest.raises(TypeError):
        store.save(2, {"step": object()})
    assert store.latest()[1] == {"step": 1}


def test_other_files_are_left_alone(tmp_path):
    for name in ("step_best.ckpt", "notes.txt", "step_1.ckpt.bak"):
        (tmp_path / name).write_text("mine")
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {})
    store.save(2, {})
    assert len([*tmp_path.iterdir()]) == 4


def test_bounds_are_named(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        CheckpointStore(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        CheckpointStore(tmp_path).save(-1, {})
