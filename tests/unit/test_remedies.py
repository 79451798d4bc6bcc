"""What we tell people to type: nothing that destroys what may not be ours.

Every text in the source that speaks of something destructive, or of a setting that others may depend on, is
listed here with the reason why it may. Looked at are all texts, wherever they stand: a remedy is put together
in many places.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import guestwire

SOURCE = Path(guestwire.__file__).parent

DESTRUCTIVE = re.compile(
    r"""
      \b(rm|rmdir|unlink|shred|dd|mkfs\S*|truncate|umount|p?kill|killall|rmmod|reboot|poweroff|halt)\s
    | \bmodprobe\s+-r
    | \bip\b.*\b(del|delete|flush|replace|nomaster)\b
    | \bip\b.*\bset\b.*\b(down|netns|nomaster|off)\b
    | \b(tc|nft|iptables|bridge|bpftool|brctl)\b.*\b(del|delete|delif|detach|flush|unload)\b
    | \bethtool\s+(-[ACGKLNUWXs]|--set-\S+)
    | \b(systemctl|service)\b.*\b(stop|restart|kill|disable|mask)\b
    | \b(chmod|chown|setfacl|setenforce|sysctl)\s
    | >\s*/(dev|proc|sys|etc|run|boot)
    | \b(stop|end|kill|remove|delete|detach|destroy|unload|take)\b.*\b(that|the|this|it|its|off)\b.*
      \b(process|program|file|rule|route|address|interface|bridge|socket|directory)\b
    | \bmove\s+the\b
    """,
    re.VERBOSE,
)

SETTING = "a setting of the interface that was named for a guest, which the same command sets back"
LOOK = "said with the look that comes first, and only for what is then nobody's"
OURS = "it was made by this very process, and has its number in its name"
GUEST = "not said to anybody: done inside a guest of our own"

# By file: how each text begins, and why it may be there.
REVIEWED = {
    "host/checks/interface.py": {
        "ethtool -K {name} tx off": SETTING,
        "ethtool -K {name} txvlan off": SETTING,
        "ethtool -K SENDER txvlan off": SETTING,
        "ethtool -K {interface.name} {words}": SETTING,
    },
    "host/checks/machine.py": {
        "sysctl net.core.bpf_jit_enable=1": "compiles programs that are interpreted, no more",
        "sysctl vm.nr_hugepages=512 ": "said only where no huge page is reserved, so none is anybody's",
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled": "said where nobody gets any",
    },
    "host/flow_steering.py": {
        "ethtool -K {steering.interface} ntuple on": SETTING,
        "ethtool -n {name} shows it; if it is nobody's, ethtool -N": LOOK,
    },
    "host/interface.py": {"ethtool -L {self.name} {self.channels.setting}": SETTING + ", for more queues"},
    "host/steering.py": {
        "ethtool -L {name} {self.queue_setting} ": SETTING + "; not said if the host uses it",
        "{self._spread_command(queues)} && ethtool -N {name} flow-type": SETTING + ", and adds a rule",
        "ethtool -X {self.interface} ": SETTING,
        "ethtool -K {name} ntuple on": SETTING,
        "ethtool --set-priv-flags {name} flow-director-atr off": SETTING,
        "a VF: echo 1 > /sys/class/net/{name}/device/sriov_numvfs": "the kernel refuses it where VFs are",
    },
    "host/xdp_occupation.py": {"{look}; if nobody needs it, ip link set dev {name} xdp off": LOOK},
    "host/xdp_program.py": {
        "ethtool -L {interface.name} rx ": SETTING,
        "ethtool -L {name} tx ": SETTING,
        "ethtool -L {name} combined 1": SETTING,
        "ethtool -K {name} lro off": SETTING,
    },
    "ports/capture_file.py": {"cut short by the end of the file": "says what was seen"},
    "ports/pinning.py": {"the end of the guest's memory": "says what was seen"},
    "ports/xdp_facts.py": {"ethtool -G {interface.name} rx 256": SETTING},
    "share_watch.py": {"give the NIC as many queues as the guest uses (ethtool -L": SETTING},
    "testing/demo.py": {"ip netns delete {namespace.name}": OURS},
    "testing/guests.py": {"(sleep 0.1; poweroff -f)": GUEST},
    "testing/initramfs.py": {"exec 3<>{CHANNEL_DEVICE}": GUEST},
    "testing/memory.py": {"sysctl vm.nr_hugepages={size // HUGE_PAGE}, or more if others use": "says so"},
    "testing/transfer.py": {"dd if=/dev/urandom of={GUEST_FILE}": GUEST, "nc {address} {port} -e dd": GUEST},
    "virtio/ring_errors.py": {
        "reset the device in the guest (unbind and bind its driver, or reboot the guest)": "it is broken"
    },
}


def text(node: ast.AST) -> str | None:
    """A string as it stands in the source, with what is put in between braces."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else str(text(part))
            for part in node.values
        )
    return None


def texts(path: Path) -> Iterator[str]:
    """All strings of a module but its docstrings."""
    tree = ast.parse(path.read_text())
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
        elif isinstance(node, ast.Expr):  # a docstring
            inner.add(id(node.value))
    for node in ast.walk(tree):
        if id(node) not in inner and (found := text(node)) is not None:
            yield found


def compiled_texts(path: Path) -> Iterator[str]:
    """All strings of a Cython module that stand on one line."""
    yield from re.findall(r'"((?:[^"\\\n]|\\.)+)"', path.read_text())


def destructive() -> dict[str, list[str]]:
    """All texts that speak of something destructive, by file."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py*")):
        if path.suffix not in {".py", ".pyx", ".pxd"}:
            continue
        said = texts(path) if path.suffix == ".py" else compiled_texts(path)
        if here := [one for one in said if DESTRUCTIVE.search(one)]:
            found[str(path.relative_to(SOURCE))] = here
    return found


def test_no_remedy_destroys_what_may_not_be_ours() -> None:
    unknown = [
        f"{file}: {said}"
        for file, here in destructive().items()
        for said in here
        if not said.startswith(tuple(REVIEWED.get(file, {}) or ("\0",)))
    ]
    assert unknown == [], "review them, and say here why they may be said"


def test_what_was_reviewed_is_still_said() -> None:
    found = destructive()
    gone = [
        f"{file}: {start}"
        for file, reviewed in REVIEWED.items()
        for start in reviewed
        if not any(said.startswith(start) for said in found.get(file, []))
    ]
    assert gone == []


@pytest.mark.parametrize(
    "said",
    [
        "choose another path, or remove it: rm -r {path}",
        "ip address del {address} dev {name}",
        "{prefix}ip link del {name}; {prefix}ip tuntap add dev {name} mode tap",
        "ip link set dev {name} xdp off; if a BPF link holds it, stop the process that names",
        "stop that process, or choose another socket path",
        "ethtool -N {name} delete {rule.location}",
        "ethtool -X {name} default",
        "use another queue (,queue=N) or stop the program that holds it: ss --xdp -p",
        "use another interface (ip -brief link), or move the route (ip route show default)",
        "kill -9 {pid}",
    ],
)
def test_such_words_are_found(said: str) -> None:
    assert DESTRUCTIVE.search(said)
