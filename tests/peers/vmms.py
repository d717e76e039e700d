"""What the benchmarks of whole guests share: each VMM's command line for the same guest, its start, and
tables.

Peers take part where an environment variable names them: FIRECRACKER, CLOUD_HYPERVISOR, ALIOTH, QEMU.
"""

import json
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import time

MEMORY = 256  # MiB of each guest
SLOW = 120  # seconds for one start under an instrument
ROOT = pathlib.Path(__file__).resolve().parents[2]


def casemate():
    """Our own program, built as it is released."""
    make = ["make", "--quiet", "--no-print-directory", "-C", ROOT, "release"]
    subprocess.run(make, check=True, stdout=sys.stderr)
    metadata = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
    text = subprocess.run(metadata, check=True, capture_output=True, cwd=ROOT).stdout
    return json.loads(text)["target_directory"] + "/release/casemate"


def commands(ours, folder, kernel, initrd=None, cmdline="console=ttyS0", disk=None):
    """Command lines by name, for one vCPU, the serial port on standard output. `folder` takes what they
    need to read."""
    kernel, memory = str(kernel), f"size={MEMORY}M"
    options = lambda name, value: [name, str(value)] if value else []
    # Only ours has an entropy device unless told otherwise.
    found = {"casemate": [ours, "run", "--platform", "plain", "--memory", f"{MEMORY}M", "--rng", "false",
                          "--stop-timeout", "0",
                          "--cmdline", cmdline, "--kernel", kernel, *options("--initrd", initrd), *options("--disk", disk)]}
    given = lambda name: shutil.which(os.environ.get(name, ""))
    if qemu := given("QEMU"):
        # QEMU gives up where KVM refuses the MSR of the architectural capabilities.
        found["qemu-microvm"] = [
            qemu, "-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off", "-bios", "qboot.rom",
            "-accel", "kvm", "-cpu", "host,arch-capabilities=off", "-m", str(MEMORY), "-nodefaults",
            "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
            "-global", "virtio-mmio.force-legacy=false", "-append", cmdline,
            "-kernel", kernel, *options("-initrd", initrd),
            *options("-drive", disk and f"file={disk},format=raw,if=none,id=disk"),
            *options("-device", disk and "virtio-blk-device,drive=disk")]
    if firecracker := given("FIRECRACKER"):
        source = {"kernel_image_path": kernel, "boot_args": cmdline}
        drive = {"drive_id": "disk", "path_on_host": str(disk), "is_root_device": False,
                 "is_read_only": False}
        config = folder / "firecracker.json"
        config.write_text(json.dumps({
            "boot-source": source | ({"initrd_path": str(initrd)} if initrd else {}),
            "drives": [drive] if disk else [],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY}}))
        found["firecracker"] = [firecracker, "--no-api", "--level", "Error", "--config-file", config]
    if hypervisor := given("CLOUD_HYPERVISOR"):
        found["cloud-hypervisor"] = [
            hypervisor, "--memory", memory, "--kernel", kernel, *options("--initramfs", initrd),
            "--cmdline", cmdline, "--serial", "tty", "--console", "off",
            *options("--disk", disk and f"path={disk},image_type=raw")]
    if alioth := given("ALIOTH"):
        found["alioth"] = [
            alioth, "-l", "error", "boot", "--pvh", kernel, *options("--initramfs", initrd),
            "--cmdline", cmdline, "--memory", memory, *options("--blk", disk and f"file,path={disk}")]
    return found


class Vmm:
    """A started VMM, on a terminal, without which some do not start; at the end of a `with` it is ended."""

    def __init__(self, command, limit):
        self.terminal, slave = pty.openpty()
        self.limit = limit
        self.began = time.perf_counter()
        self.child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL)
        os.close(slave)
        self.pid = self.child.pid
        self.said = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        os.close(self.terminal)

    def until(self, word):
        """Waits for a word of the guest's; seconds since the start."""
        while word not in self.said:
            left = self.began + self.limit - time.perf_counter()
            if not select.select([self.terminal], [], [], max(left, 0))[0]:
                raise RuntimeError(f"no {word.decode()} within {self.limit} s")
            try:
                self.said += os.read(self.terminal, 4096)
            except OSError:  # the other end of the terminal is closed
                raise RuntimeError(f"it ended before {word.decode()}") from None
        return time.perf_counter() - self.began


def instructions(command, folder, word):
    """How many the VMM executes in user space until the guest's word, and to end when it is told to. None
    without valgrind, or where it does not know pidfd_open, which `casemate run` needs."""
    if not shutil.which("valgrind"):
        return None
    counts = folder / "callgrind"
    counts.mkdir(exist_ok=True)
    with Vmm(["valgrind", "--tool=callgrind", f"--callgrind-out-file={counts}/%p", *command], SLOW) as vmm:
        try:
            vmm.until(word)
        except RuntimeError:
            return None
        vmm.child.terminate()
        vmm.child.wait(SLOW)
    # One file for each process. A child begins with a copy of what its parent has counted so far.
    totals = [int(re.search(r"^totals: (\d+)", file.read_text(), re.M)[1]) for file in counts.iterdir()]
    for file in counts.iterdir():
        file.unlink()
    return sum(totals)


def guest_process(pid):
    """The process that holds the guest: a child of the one that was started, or that one."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def mappings(pid):
    """The mappings of a process, each as its fields in kB."""
    fields = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if match := re.match(r"(\w+): +(\d+) kB", line):
            if match[1] == "Size" and fields:
                yield fields
                fields = {}
            fields[match[1]] = int(match[2])
    if fields:
        yield fields


def memory(pid):
    """Resident and anonymous kB of all mappings but those that can be the guest's RAM, and the resident
    ones of those. Of a parent of the guest's process counts what only it has."""
    resident = anonymous = guest = 0
    holder = guest_process(pid)
    for fields in mappings(holder):
        if fields["Size"] < MEMORY * 1024 // 2:
            resident += fields["Rss"]
            anonymous += fields["Anonymous"]
        else:
            guest += fields["Rss"]
    for fields in mappings(pid) if holder != pid else ():
        private = fields["Private_Clean"] + fields["Private_Dirty"]
        resident += private
        anonymous += min(private, fields["Anonymous"])
    return resident, anonymous, guest


def relay(lab, title):
    """Runs a command in an emulated host, where there is one terminal: JSON goes to standard output, the
    rest to standard error."""
    ended = subprocess.run(lab, stdout=subprocess.PIPE, text=True)
    lines = ended.stdout.splitlines()
    print("\n".join(line for line in lines if not line.startswith("{")), file=sys.stderr)
    found = [line for line in lines if line.startswith("{")]
    print("\n".join(found) or json.dumps({title: f"not run: status {ended.returncode}, see above"}))


def table(title, rows, figures):
    """Prints figures by VMM: JSON to standard output, a table to standard error. What failed is a text."""
    print(json.dumps({title: figures}), flush=True)
    print("| VMM | " + " | ".join(rows) + " |\n" + "|---" * (len(rows) + 1) + "|", file=sys.stderr)
    for name, found in figures.items():
        cells = found if isinstance(found, str) else " | ".join(str(found[row]) for row in rows)
        print(f"| {name} | {cells} |", file=sys.stderr)


def has_kvm():
    return os.access("/dev/kvm", os.R_OK | os.W_OK)
