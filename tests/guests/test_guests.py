"""Guests boot, obey, and go without a trace.  No network here: that is the backend's test."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from guestwire.errors import HostError
from guestwire.host.capabilities import Kvm
from guestwire.testing import accelerator, images
from guestwire.testing.accelerator import QEMU, tried_kvm, usable_accelerator, why_it_does_not_boot
from guestwire.testing.channel import ChannelError
from guestwire.testing.guests import QemuGuest, UmlGuest

pytestmark = pytest.mark.root


@pytest.fixture(params=[UmlGuest, QemuGuest], ids=["uml", "qemu"])
def kind(request):
    if request.param is QemuGuest and shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    try:
        images.uml_kernel() if request.param is UmlGuest else images.qemu_kernel()
    except HostError as error:
        pytest.skip(str(error))
    return request.param


def processes_with(word):
    """Process ids of those whose command line holds a word."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in command and int(folder.name) != os.getpid():
            found.add(int(folder.name))
    return found


def wait_for(condition, what):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_guest_obeys(kind):
    with kind() as guest:
        done = guest.run("echo out; echo err >&2; exit 3")
        assert (done.status, done.output) == (3, "out\nerr\n")
        assert guest.check("seq 1 5000").split() == [str(number) for number in range(1, 5001)]
        assert guest.run("sleep 60", timeout=1).status == 137
        assert guest.check("true") == ""  # the guest survived a command that had to be killed
        with pytest.raises(ChannelError, match=r"exit status 1 from: false"):
            guest.check("false")
        with pytest.raises(ValueError, match="too long"):
            guest.run("x" * 4096)
        assert "virtio_net" in guest.check("lsmod")
        guest.power_off()
        assert not guest.alive


def test_guest_has_programs_of_this_machine(kind):
    name = "ip"  # linked dynamically, and not busybox' own
    with kind(programs=[name]) as guest:
        assert "iproute2" in guest.check(f"/bin/{name} -V")


def test_a_program_that_is_missing_here_is_named(kind):
    guest = kind(programs=["no-such-program"])
    try:
        with pytest.raises(HostError, match="no-such-program is not installed") as caught:
            guest.start()
        assert "apt-get install" in caught.value.remedy
    finally:
        guest.close()


@pytest.mark.parametrize("kind", [QemuGuest], indirect=True)
def test_orphans_that_end_do_not_disturb_the_channel(kind):
    with kind() as guest:
        # Every line is read while children of nobody end, a thousand of them in the end.
        guest.check("(i=0; while [ $i -lt 1000 ]; do (true &); i=$((i + 1)); done) >/dev/null 2>&1 &")
        word = "x" * 2000
        for number in range(20):
            assert guest.check(f"echo {number} {word}") == f"{number} {word}\n"


def test_killed_guest_leaves_no_process(kind):
    word = f"guestwire.test={os.getpid()}"
    with kind(kernel_options=word) as guest:
        assert processes_with(word)
        guest.kill()
        wait_for(lambda: not processes_with(word), "processes are left")
        with pytest.raises(ChannelError, match="the guest is gone"):
            guest.run("true")


def test_guest_dies_with_us(kind, tmp_path):
    word = f"guestwire.test=orphan-{os.getpid()}"
    script = f"""
        import time
        from guestwire.testing.guests import {kind.__name__}
        guest = {kind.__name__}(kernel_options={word!r})
        guest.start()
        guest.wait_ready()
        print("up", flush=True)
        time.sleep(3600)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # the killed one cannot clean up
    )
    try:
        assert owner.stdout.readline() == b"up\n"
    finally:
        owner.kill()
        owner.communicate()
    wait_for(lambda: not processes_with(word), "processes outlived their owner")


def test_console_explains_a_guest_that_does_not_come_up(kind):
    with (
        pytest.raises(ChannelError, match=r"(?s)its process ended with.*(panic|Kernel)"),
        kind(kernel_options="rdinit=/no/such/init", memory_mib=128),
    ):
        pass


def test_acceleration_is_judged_by_a_boot(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", 60.0)
    assert not why_it_does_not_boot(images.qemu_kernel().image, "tcg")
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", 0.5)
    not_a_kernel = tmp_path / "not-a-kernel"
    not_a_kernel.write_bytes(b"\0" * 4096)
    assert "did not boot within 0.5 s" in why_it_does_not_boot(not_a_kernel, "tcg")


def test_doctor_and_guests_have_one_opinion_of_kvm():
    """On a machine whose KVM makes machines that do not run, both say so."""
    accelerated = usable_accelerator() == "kvm"
    done = subprocess.run(
        [sys.executable, "-m", "guestwire", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    (check,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "kvm"]
    assert (check["status"] == "ok") is accelerated, check
    assert accelerated or "vectors=0" in check["remedy"]


def test_what_kvm_does_is_found_out_once(monkeypatch, tmp_path):
    tried = []

    def try_it(image, accelerator):
        tried.append(accelerator)
        return "it aborts"

    monkeypatch.setenv("GUESTWIRE_CACHE", str(tmp_path))
    monkeypatch.setattr(accelerator.capabilities, "kvm", lambda: Kvm(True, ""))
    monkeypatch.setattr(accelerator, "why_it_does_not_boot", try_it)
    monkeypatch.setattr(accelerator.shutil, "which", lambda program: program)
    assert tried_kvm(lambda: None).usable is None
    for _ in range(2):
        assert tried_kvm(lambda: tmp_path) == Kvm(False, "it aborts")
    assert tried_kvm(lambda: None) == Kvm(False, "it aborts")
    assert tried == ["kvm"]


def test_missing_emulator_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    guest = QemuGuest(accelerator="tcg")
    try:
        with pytest.raises(HostError, match=QEMU) as caught:
            guest.start()
        assert "apt-get install" in caught.value.remedy
    finally:
        guest.close()
