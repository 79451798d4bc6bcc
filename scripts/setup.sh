#!/bin/bash
# usage: setup.sh [--test]
#
# Installs what guestwire needs and this machine lacks: what it takes to build it and to boot a
# guest on it, and with --test what the tests need besides.  Everything comes from the machine's own
# package sources (apt-get); they are not changed.  Root rights, or sudo, are asked for only when
# there is something to install.
set -euo pipefail

# An ordinary user may have no way to where ip and ethtool are.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
offered() { [ -n "$(apt-cache show --no-all-versions "$1" 2>/dev/null)" ]; }

want_tests=no
case "${1:-}" in
    "") ;;
    --test) want_tests=yes ;;
    *) fail "unknown option $1; the only one is --test" ;;
esac

python=$("$(dirname "$0")/find-python.sh") || python=
packages=()

# need PACKAGE COMMAND...: the package is missing unless the command succeeds.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || packages+=("$package")
}

python_package=python3
if [ -n "$python" ]; then
    # A Python that stands beside the distribution's own has packages under its own name.
    case "$(basename "$python")" in python3.*) python_package=$(basename "$python") ;; esac
elif command -v python3 >/dev/null; then
    # The distribution's own is too old; it may offer a newer one beside it.
    for name in python3.14 python3.13 python3.12 python3.11; do
        if offered "$name"; then python_package=$name; break; fi
    done
    [ "$python_package" != python3 ] || fail "$(python3 --version 2>&1) is too old:" \
        "guestwire needs Python 3.11 or newer (Debian 12, Ubuntu 24.04 and later have it)." \
        "If one is installed in a place of its own, name it: make PYTHON=/path/to/python3"
fi

header='import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
need "$python_package" test -n "$python"
need "$python_package-venv" "${python:-false}" -c 'import ensurepip, venv'
need "$python_package-dev" "${python:-false}" -c "$header"
need gcc command -v gcc
need libc6-dev test -e /usr/include/stdlib.h
need linux-libc-dev test -e /usr/include/linux/if_xdp.h
need make command -v make
need iproute2 command -v ip
need qemu-system-x86 command -v qemu-system-x86_64
need zstd command -v zstd # Ubuntu's kernel modules are compressed with it

if [ $want_tests = yes ]; then
    need ethtool command -v ethtool
    need iperf3 command -v iperf3
    need tcpdump command -v tcpdump
    # Without libvirt-daemon-system, which would start services and make users.
    need libvirt-daemon command -v libvirtd
    need libvirt-clients command -v virsh
    need dpdk-dev command -v dpdk-testpmd
fi

[ ${#packages[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || fail "no apt-get here; install by hand what these Debian" \
    "packages hold: ${packages[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "missing: ${packages[*]}. Run as root: $0 $*"
    as_root=(sudo)
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -q "$@"; }

say "missing: ${packages[*]}"
say "updating the package lists"
apt update >/dev/null || say "that failed; trying with the lists that are there"

if [ $want_tests = yes ] && ! offered dpdk-dev; then
    say "dpdk-dev is not in this machine's package sources (on Ubuntu: enable universe);" \
        "tests and benchmarks against DPDK will be skipped"
    remaining=()
    for package in "${packages[@]}"; do [ "$package" = dpdk-dev ] || remaining+=("$package"); done
    packages=("${remaining[@]}")
    [ ${#packages[@]} -gt 0 ] || exit 0
fi

say "installing ${packages[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! apt install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 "${packages[@]}" \
    >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "apt-get could not install ${packages[*]}, see above"
fi
say "done"
