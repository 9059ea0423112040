import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from metarl.interrupts import StopOnInterrupt, graceful_interrupts


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_first_signal_is_only_noted(number, exit_code, capfd):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with graceful_interrupts() as interrupts:
        assert (interrupts.requested, interrupts.exit_code) == (None, 0)
        signal.raise_signal(number)
        assert (interrupts.requested, interrupts.exit_code) == (number, exit_code)
    assert (interrupts.requested, interrupts.exit_code) == (number, exit_code)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert "Stopping at the next safe point" in capfd.readouterr().err


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigint_interrupts_at_once(first):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with graceful_interrupts() as interrupts:
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interrupts.requested == first
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_may_be_repeated(capfd):
    with graceful_interrupts() as interrupts:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert interrupts.requested == signal.SIGTERM
    assert capfd.readouterr().err.count("Stopping") == 1


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), graceful_interrupts():
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGINT) is before


def test_blocks_may_be_nested():
    with graceful_interrupts() as outer:
        with graceful_interrupts() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert (outer.requested, inner.requested) == (None, signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert outer.requested == signal.SIGINT


def test_other_threads_install_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with graceful_interrupts() as interrupts:
            seen.extend([signal.getsignal(signal.SIGINT), interrupts.requested, interrupts.exit_code])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None, 0]


class RaiseSignal(BaseCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        if self.num_timesteps == self.step:
            os.kill(os.getpid(), signal.SIGINT)
        return True


def test_learning_stops_at_the_next_step_and_can_go_on():
    model = A2C("MlpPolicy", "CartPole-v1", n_steps=8, device="cpu")
    with graceful_interrupts() as interrupts:
        model.learn(1000, callback=CallbackList([StopOnInterrupt(interrupts), RaiseSignal(20)]))
    assert model.num_timesteps in (20, 21)
    with graceful_interrupts() as interrupts:
        model.learn(16, callback=StopOnInterrupt(interrupts), reset_num_timesteps=False)
    assert model.num_timesteps >= 36


def run(connection):
    with graceful_interrupts() as interrupts:
        connection.send("ready")
        while interrupts.requested is None:
            time.sleep(0.01)
    sys.exit(interrupts.exit_code)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_codes_of_a_process(number, exit_code):
    context = multiprocessing.get_context("forkserver")
    connection, remote = context.Pipe()
    process = context.Process(target=run, args=(remote,))
    process.start()
    assert connection.recv() == "ready"
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == exit_code
    connection.close()
    remote.close()
