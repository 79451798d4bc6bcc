"""Kernels, busybox and initial RAM file systems."""

import lzma
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from guestwire.errors import HostError
from guestwire.testing import images, initramfs
from guestwire.testing.initramfs import Kernel
from guestwire.testing.packages import Apt


@pytest.fixture(scope="module")
def busybox():
    return images.busybox()


@pytest.fixture
def kernel(tmp_path):
    """A kernel with the modules alpha, which needs beta-two and gamma; gamma is built in."""
    modules = tmp_path / "lib/modules/1.2.3"
    folder = modules / "kernel/drivers"
    folder.mkdir(parents=True)
    (modules / "modules.builtin").write_text("kernel/net/gamma.ko\n")
    (folder / "alpha.ko.xz").write_bytes(lzma.compress(b"\x7fELF\0depends=beta-two,gamma\0x"))
    (folder / "beta-two.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=\0")
    return Kernel(tmp_path / "vmlinuz", modules)


def test_archive_is_what_cpio_reads(busybox, tmp_path):
    entries = [
        ("folder", stat.S_IFDIR | 0o755, b""),
        ("folder/program", stat.S_IFREG | 0o755, b"x" * 4097),
        ("empty", stat.S_IFREG | 0o600, b""),
    ]
    subprocess.run(
        [busybox, "cpio", "-idm"],
        input=initramfs.cpio_newc(entries),
        cwd=tmp_path,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    assert (tmp_path / "folder/program").read_bytes() == b"x" * 4097
    assert (tmp_path / "folder/program").stat().st_mode == stat.S_IFREG | 0o755
    assert (tmp_path / "empty").stat().st_size == 0
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "empty"}


def test_modules_are_loaded_after_what_they_need(kernel):
    order = initramfs.load_order(kernel, ["alpha", "gamma", "beta-two"])
    assert [name for name, _ in order] == ["beta_two", "alpha"]
    assert dict(order)["alpha"].startswith(b"\x7fELF")


def test_missing_module_is_named(kernel):
    with pytest.raises(HostError, match=r"kernel 1\.2\.3 has no module delta"):
        initramfs.load_order(kernel, ["delta"])


def test_initramfs_is_rebuilt_only_when_its_parts_change(kernel, busybox, tmp_path):
    folder = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        made = {
            build.result()
            for build in [pool.submit(initramfs.build, kernel, busybox, ["alpha"], folder) for _ in range(4)]
        }
    (first,) = made
    written = first.stat().st_mtime_ns
    assert initramfs.build(kernel, busybox, ["alpha"], folder) == first
    assert first.stat().st_mtime_ns == written
    assert initramfs.build(kernel, busybox, ["beta-two"], folder) != first
    assert len(list(folder.iterdir())) == 2


def test_programs_bring_the_libraries_that_they_need(kernel, busybox, tmp_path):
    program = images.installed("ip")
    libraries = initramfs.shared_libraries(program)
    assert any(path.name.startswith("libc.so") for path in libraries)
    assert initramfs.shared_libraries(busybox) == []
    archive = initramfs.build(kernel, busybox, [], tmp_path / "cache", programs=[program])
    with archive.open("rb") as file:
        subprocess.run(
            [busybox, "cpio", "-idm"], stdin=file, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL
        )
    for path in libraries:
        assert (tmp_path / path.relative_to("/")).read_bytes() == path.read_bytes()
    assert (tmp_path / "bin/ip").read_bytes() == program.read_bytes()


@pytest.mark.parametrize(
    ("records", "meta", "expected"),
    [
        pytest.param(
            {
                "linux-image-cloud-amd64": "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)",
                "linux-image-6.1.0-56-cloud-amd64": "kmod, linux-base, initramfs-tools | dracut",
            },
            "linux-image-cloud-amd64",
            {"linux-image-6.1.0-56-cloud-amd64"},
            id="debian-12",
        ),
        pytest.param(
            {
                "linux-image-virtual": "linux-image-6.8.0-49-generic, linux-firmware",
                "linux-image-6.8.0-49-generic": "kmod, linux-modules-6.8.0-49-generic",
                "linux-modules-6.8.0-49-generic": "wireless-regdb",
            },
            "linux-image-virtual",
            {"linux-image-6.8.0-49-generic", "linux-modules-6.8.0-49-generic"},
            id="ubuntu-24.04",
        ),
        pytest.param(
            {
                "linux-image-cloud-amd64": "linux-image-7.2-cloud-amd64 (= 7.2.13-1)",
                "linux-image-7.2-cloud-amd64": "linux-binary-7.2-cloud-amd64 (= 7.2.13-1), "
                "linux-modules-7.2-cloud-amd64 (= 7.2.13-1)",
                "linux-binary-7.2-cloud-amd64": "kmod, linux-base-7.2-cloud-amd64 (= 7.2.13-1)",
                "linux-modules-7.2-cloud-amd64": "linux-base, linux-base-7.2-cloud-amd64 (= 7.2.13-1)",
                "linux-base-7.2-cloud-amd64": "",
            },
            "linux-image-cloud-amd64",
            {
                "linux-base-7.2-cloud-amd64",
                "linux-image-7.2-cloud-amd64",
                "linux-binary-7.2-cloud-amd64",
                "linux-modules-7.2-cloud-amd64",
            },
            id="debian-14",
        ),
        pytest.param({}, "linux-image-cloud-amd64", set(), id="not-offered"),
    ],
)
def test_packages_that_hold_a_kernel(records, meta, expected):
    class Offered(Apt):
        def record(self, package):
            return f"Package: {package}\nDepends: {records[package]}\n" if package in records else ""

    parts = images._kernel_parts(Offered(), meta)
    assert set(parts) == expected
    assert len(parts) == len(expected)


def test_of_the_newest_kernel_only_what_it_needs_is_kept(kernel, monkeypatch):
    root = kernel.modules.parents[2]
    kernel.modules.rename(root / "usr-lib-modules")
    modules = root / "usr/lib/modules/1.2.3"
    modules.parent.mkdir(parents=True)
    (root / "usr-lib-modules").rename(modules)
    (modules / "vmlinuz").touch()
    (modules / "kernel/unrelated.ko.xz").touch()
    monkeypatch.setattr(images, "ZERO_COPY_MODULES", ("alpha",))
    monkeypatch.setattr(images, "MEMORY_MODULES", ())
    images._keep_needed_modules(root)
    assert {path.name for path in modules.glob("kernel/**/*.ko*")} == {"alpha.ko.xz", "beta-two.ko"}
