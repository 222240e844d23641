"""Tensors on a CUDA device, staged for a background save.

Copies go into page-locked memory that is kept from save to save, on a stream of their own, behind
what the thread that computes has queued. Two tests stand in for the device; the others need one.
"""

from __future__ import annotations

import contextlib
import threading

import pytest

torch = pytest.importorskip("torch")

import casckpt  # noqa: E402
from casckpt.adapters import torch as adapter  # noqa: E402
from casckpt.checkpoint import staging  # noqa: E402
from casckpt.checkpoint.tree import flatten  # noqa: E402
from tests.suites import memory_repository  # noqa: E402, F401  (makes torch known)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_one_locked_buffer_is_kept_and_filled_on_the_callers_thread(monkeypatch):
    made: list[int] = []
    copied: dict[int, int] = {}

    def locked(length: int) -> memoryview:
        made.append(length)
        return memoryview(bytearray(length))

    on_device = [torch.arange(400_000.0), torch.arange(3.0)]
    on_host = [torch.full((400_000,), value) for value in (5.0, 6.0, 7.0)]
    places = {tensor.data_ptr() for tensor in on_device}
    plain_copy, plain_move = adapter.TensorSource.copy_to, staging.ctypes.memmove
    movers: set[int] = set()
    both = threading.Barrier(2)

    def copy_to(source, place):
        copied[source.tensor.data_ptr()] = threading.get_ident()
        plain_copy(source, place)

    def maker(source):
        return locked if source.tensor.data_ptr() in places else None

    def address(source):
        place = source.tensor.data_ptr()
        return None if place in places else place

    def move(*piece):
        if threading.get_ident() not in movers:
            movers.add(threading.get_ident())
            both.wait(20)  # large tensors of the CPU are shared out
        plain_move(*piece)

    monkeypatch.setattr(adapter.TensorSource, "copy_to", copy_to)
    monkeypatch.setattr(adapter.TensorSource, "memory_maker", property(maker))
    monkeypatch.setattr(adapter.TensorSource, "address", property(address))
    monkeypatch.setattr(staging.ctypes, "memmove", move)
    monkeypatch.setattr(staging.os, "sched_getaffinity", lambda _: {0, 1})
    state = {"device": on_device, "host": on_host}
    pool = staging.StagingPool()
    for number in range(3):
        expected = [tensor.numpy().tobytes() for tensor in (*on_device, *on_host)]
        staged = pool.stage(flatten(state))
        for tensor in (*on_device, *on_host):
            tensor.add_(1)
        found = [bytes(leaf.source.view()) for leaf in staged.state.leaves if leaf.kind == "tensor"]
        assert found == expected
        staged.release()
        assert len(made) == 1, f"save {number} has made new page-locked memory"
        here = threading.get_ident()
        assert copied == dict.fromkeys(places, here)
        assert len(movers) == 2
        movers.clear()
    assert made[0] >= sum(tensor.nbytes for tensor in (*on_device, *on_host))


def test_the_copying_stream_waits_for_the_computing_one_and_is_waited_for(monkeypatch):
    done: list[object] = []

    class Stream:
        def wait_stream(self, other):
            done.append(("behind", other))

        def synchronize(self):
            done.append("waited")

    @contextlib.contextmanager
    def on(stream):
        done.append(("on", stream))
        yield
        done.append("queued")

    weights, copying = torch.arange(6.0).reshape(2, 3).t(), Stream()
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(adapter, "_copy_stream", lambda device: copying)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "computing")
    monkeypatch.setattr(torch.cuda, "stream", on)
    place = bytearray(24)
    wait = adapter.TensorSource(weights).start_copy(memoryview(place))
    assert done == [("behind", "computing"), ("on", copying), "queued"]
    wait()
    assert done[-1] == "waited"
    assert bytes(place) == weights.contiguous().numpy().tobytes()
    assert adapter.TensorSource(torch.empty(0)).start_copy(memoryview(b"")) is None


def test_locked_memory_is_the_hosts_whatever_the_default_device_is(monkeypatch):
    make = torch.empty
    locked = []

    def empty(*size, pin_memory=False, **options):
        locked.append(pin_memory)
        return make(*size, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with torch.device("meta"):
        assert len(adapter._pinned_memory(8)) == 8
    assert locked == [True]


@needs_cuda
def test_tensors_of_any_layout_are_copied_beside_what_the_program_computes():
    state = {
        "dense": torch.arange(5000.0, device="cuda"),
        "gaps": torch.arange(10_000.0, device="cuda")[::2],
        "conj": torch.conj(torch.full((100,), 1 + 2j, device="cuda")),
        "host": torch.arange(5000.0),
    }
    expected = {name: tensor.resolve_conj().cpu().clone() for name, tensor in state.items()}
    staged = staging.StagingPool().stage(flatten(state))
    for tensor in state.values():
        tensor.zero_()
    leaves = {leaf.path: bytes(leaf.source.view()) for leaf in staged.state.leaves}
    for name in ("dense", "gaps", "host"):
        assert leaves[name] == expected[name].contiguous().numpy().tobytes()
    assert leaves["conj"] == expected["conj"].conj().resolve_conj().numpy().tobytes()


@needs_cuda
def test_a_background_save_holds_what_was_there_when_it_was_called(tmp_path):
    weights = torch.zeros(4 << 20, device="cuda")
    half = torch.zeros(1 << 20, device="cuda", dtype=torch.bfloat16)
    with casckpt.open(tmp_path / "s") as store:
        for step in range(3):
            for _ in range(200):
                weights.add_(1)  # queued: the copy has to wait for all of them
            half.fill_(step)
            store.save_async("r", {"w": weights, "h": half}, step)
            weights.mul_(1.0)
            half.fill_(-1)
        store.wait()
        for step in range(3):
            back = store.restore(f"r@{step}", device="cpu")
            assert torch.equal(back["w"], torch.full((4 << 20,), 200.0 * (step + 1)))
            assert torch.equal(back["h"], torch.full((1 << 20,), step, dtype=torch.bfloat16))
        assert store.restore("r", device="cuda")["w"].is_cuda


@needs_cuda
def test_a_copy_follows_the_stream_that_computes():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        weights = torch.zeros(8 << 20, device="cuda")
        for _ in range(500):
            weights.add_(1)
        staged = staging.StagingPool().stage(flatten({"w": weights}))
        weights.zero_()
    copy = torch.frombuffer(bytearray(staged.state.leaves[0].source.view()), dtype=torch.float32)
    assert torch.equal(copy, torch.full((8 << 20,), 500.0))


@needs_cuda
def test_staging_memory_is_page_locked():
    memory = adapter._pinned_memory(1 << 16)
    assert torch.frombuffer(memory, dtype=torch.uint8).is_pinned()
