"""The C core's AVX-512 kernel on an emulated processor: `python -m tests.tasks avx512`.

No machine of ours has AVX-512 and qemu does not emulate it; Bochs does. It is a whole machine, so
a Linux is booted in it whose first process (native/tests/emulated/init.c) runs one static program.
Needs Debian's bochs, bochs-term, bochsbios, vgabios, isolinux, syslinux-common, genisoimage and
cpio, and a kernel in /boot, or where CASCKPT_VMLINUZ says (linux-image-cloud-amd64 has one).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent.parent / "native"
PROCESSOR = "corei7_skylake_x"
_PROGRAMS = ("bochs", "script", "genisoimage", "cpio", "gcc")
_LOADER = Path("/usr/lib/ISOLINUX/isolinux.bin")
_MODULE = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
_BIOS = Path("/usr/share/bochs/BIOS-bochs-latest")
_SCREEN = Path("/usr/share/bochs/VGABIOS-lgpl-latest")
_TIMEOUT_S = 3600
_ENDED = "program ended: "
_BOOT = """\
default casckpt
label casckpt
 kernel /vmlinuz
 append initrd=/initrd console=ttyS0 quiet nokaslr mitigations=off panic=1 clearcpuid={flawed}
"""
# Of the extended state they give a size that Linux finds wrong, and then goes without AVX.
_FLAWED = "xsaves,xsavec"
_MACHINE = """\
config_interface: textconfig
display_library: term
cpu: model={processor}, count=1, ips=50000000, reset_on_triple_fault=0
clock: sync=none
memory: guest=256, host=256
romimage: file={bios}
vgaromimage: file={screen}
ata0-master: type=cdrom, path={folder}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder}/said
com2: enabled=1, mode=file, dev={folder}/kept
log: {folder}/log
panic: action=fatal
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended in the machine: its status, its output, and what it left in /kept."""

    status: int
    output: str
    kept: bytes


def missing() -> str:
    """Return what this machine lacks to run a program so; empty if nothing."""
    lacks = [name for name in _PROGRAMS if shutil.which(name) is None]
    lacks += [str(path) for path in (_LOADER, _MODULE, _BIOS, _SCREEN) if not path.exists()]
    lacks += [] if _kernel() else ["a kernel in /boot"]
    return f"no {', no '.join(lacks)}" if lacks else ""


def run(program: Path) -> Ended:
    """Run a static program of x86-64 under Linux on a processor with AVX-512.

    Args:
        program: the program; it is called with the word `quick`, and may write /kept.

    Raises:
        RuntimeError: if the machine stopped before the program ended, with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="casckpt-emulator-") as name:
        folder = Path(name)
        _pack(program, folder)
        machine = _MACHINE.format(folder=folder, processor=PROCESSOR, bios=_BIOS, screen=_SCREEN)
        (folder / "machine").write_text(machine)
        (folder / "debugger").write_text("continue\n")
        # Its screen wants a terminal, which `script` gives it.
        bochs = f"bochs -q -f {folder}/machine -rc {folder}/debugger"
        subprocess.run(
            ["script", "-qec", f"timeout {_TIMEOUT_S} {bochs}", "/dev/null"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        said = folder / "said"
        output = said.read_text("utf-8", "replace").replace("\r", "") if said.exists() else ""
        text, ended, status = output.rpartition(_ENDED)
        if not ended:
            raise RuntimeError(f"the emulated machine stopped before the program ended: {output}")
        kept = folder / "kept"
        return Ended(int(status.split()[0]), text, kept.read_bytes() if kept.exists() else b"")


def _pack(program: Path, folder: Path) -> None:
    """Make boot.iso of a loader, a kernel, and a disk in memory with two programs."""
    disk, image = folder / "disk", folder / "image"
    disk.mkdir()
    (image / "isolinux").mkdir(parents=True)
    init = NATIVE / "tests" / "emulated" / "init.c"
    _do("gcc", "-std=gnu11", "-O2", "-static", init, "-o", disk / "init")
    shutil.copy(program, disk / "program")
    names = "".join(f"{path.name}\n" for path in disk.iterdir()).encode()
    _do("cpio", "-o", "-H", "newc", "--quiet", "-O", image / "initrd", cwd=disk, said=names)
    kernel = _kernel()
    assert kernel is not None
    shutil.copy(kernel, image / "vmlinuz")
    for path in (_LOADER, _MODULE):
        shutil.copy(path, image / "isolinux")
    (image / "isolinux" / "isolinux.cfg").write_text(_BOOT.format(flawed=_FLAWED))
    floppy = ("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    loader = ("-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", *floppy)
    _do("genisoimage", "-quiet", "-o", folder / "boot.iso", *loader, image)


def _kernel() -> Path | None:
    named = os.environ.get("CASCKPT_VMLINUZ")
    found = [Path(named)] if named else sorted(Path("/boot").glob("vmlinuz-*"))
    return found[-1] if found and found[-1].exists() else None


def _do(*command: object, cwd: Path | None = None, said: bytes = b"") -> bytes:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, input=said, stdout=subprocess.PIPE, check=True).stdout


def main() -> int:
    """Run the tests of the C core there; return 1 unless every kernel of the processor passed."""
    if why := missing():
        sys.stdout.write(f"SKIPPED: {why}\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="casckpt-emulator-") as name:
        folder = Path(name)
        vectors = _do(sys.executable, NATIVE / "tests" / "vectors_header.py")
        (folder / "vectors.h").write_bytes(vectors)
        smoke = folder / "smoke"
        flags = ("-std=c11", "-O3", "-static", f"-I{NATIVE / 'include'}", f"-I{folder}")
        sources = (*NATIVE.glob("src/*.c"), *NATIVE.glob("tests/*.c"))
        _do("gcc", *flags, *sources, "-lm", "-o", smoke)
        ended = run(smoke)
    sys.stdout.write(ended.output)
    wide = "kernel 3: done" in ended.output
    sys.stdout.write(f"{PROCESSOR}: {'passed' if not ended.status and wide else 'FAILED'}\n")
    return 0 if ended.status == 0 and wide else 1


if __name__ == "__main__":
    sys.exit(main())
