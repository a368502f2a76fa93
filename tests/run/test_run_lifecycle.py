"""Seeds, allocator, clean close."""

import platform
import signal
import sys
from types import SimpleNamespace

import pytest

from recdepth import lifecycle


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
def test_the_allocator_takes_all_settings() -> None:
    assert lifecycle.keep_large_buffers()
    assert lifecycle.keep_large_buffers()


def test_the_allocator_is_left_alone_elsewhere(monkeypatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not lifecycle.keep_large_buffers()


@pytest.mark.parametrize(("largest", "taken"), [(2**30, True), (2**25, True), (0, False)])
def test_an_older_glibc_gets_its_own_maximum(monkeypatch, largest, taken) -> None:
    asked = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append((parameter, value))
        return int(parameter != -3 or value <= largest)

    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(lifecycle.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=SpecialMallopt(mallopt)))
    assert lifecycle.keep_large_buffers() is taken
    assert asked[0] == (-3, 2**30)
    assert ((-1, 2**31 - 1) in asked) is taken


class SpecialMallopt:
    """A function that takes ctypes' attributes."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


@pytest.mark.parametrize("failing", [False, True])
def test_wandb_is_finished_and_ctrl_c_restored_whatever_happens(monkeypatch, failing) -> None:
    finished = []
    wandb = SimpleNamespace(run=object(), finish=lambda exit_code: finished.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with lifecycle.closing():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if failing:
                raise RuntimeError
    except RuntimeError:
        assert failing
    assert finished == [int(failing)]
    assert signal.getsignal(signal.SIGINT) is handler


def test_provenance_names_command_code_and_versions() -> None:
    facts = lifecycle.provenance()
    assert {"command", "torch", "lightning", "transformers", "threads", "started"} <= set(facts)
    assert lifecycle.git_state().keys() <= {"git_commit", "git_dirty"}
