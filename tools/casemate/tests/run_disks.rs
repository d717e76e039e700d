//! Disks of `casemate run`, as Linux uses them: what the host's files are after it, and how fast.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::fmt::Write as _;
use std::fs;

use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use common::{Guest, lab, pattern, said, sum};

const MIB: usize = 1 << 20;

/// A disk's size.
const SIZE: usize = 8 * MIB;

/// Asks each disk for all that a disk can do, and says what it finds.
const SCRIPT: &str = r"
dmesg -n 1
sum() { sha256sum | cut -d' ' -f1; }
tr '\0' 3 </dev/zero | head -c 65536 >/tmp/3
for disk in vda vdb vdc vdd; do
	device=/dev/$disk
	cd /sys/block/$disk/queue
	echo $disk-HAS $(cat write_cache discard_max_bytes write_zeroes_max_bytes)
	echo $disk-BEFORE $(sum <$device)
	# Sectors where the host has larger blocks; whole blocks; all at once through the guest's cache.
	/disk write $device 0x600 512 5 1
	/disk write $device 0x5000 4096 4 2
	dd if=/tmp/3 of=$device bs=64k seek=16 conv=notrunc,fsync 2>/dev/null
	/disk discard $device 0x200000 0x200000
	/disk zeroes $device 0x500000 0x100000
	/disk unmap $device 0x600000 0x100000
	sync
	echo 3 >/proc/sys/vm/drop_caches
	echo $disk-AFTER $(sum <$device)
	echo $disk-DIRECT $(/disk read $device 512 512 63 | sum)
	set -- $(cat /sys/block/$disk/stat)
	# Requests of each kind.
	echo $disk-DONE read=$1 written=$5 discarded=${12} flushed=${16}
done
";

/// What the disks are after that.
fn changed(image: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image[3 * 512..][..5 * 512].fill(b'1');
    image[5 * 4096..][..4 * 4096].fill(b'2');
    image[MIB..][..65536].fill(b'3');
    image[2 * MIB..4 * MIB].fill(0);
    image[5 * MIB..7 * MIB].fill(0);
    image
}

/// A guest with the test's program, and busybox beside it.
fn guest(script: &str) -> Guest {
    let program = common::compile(include_str!("common/disk.c"));
    let busybox = fs::read(Packages::open().unwrap().busybox().unwrap()).unwrap();
    Guest::with_files("6.12", script, &[("disk", &program), ("busybox", &busybox)])
}

/// A line of shell that gives the emulated host what it lacks: loop devices and a file system on a disk.
fn load_modules(guest: &Guest) -> String {
    let packages = Packages::open().unwrap();
    let kernel = Kernel::debian(&packages, "6.12", Flavour::Generic).unwrap();
    let load = |(name, bytes): (String, Vec<u8>)| {
        let file = guest.path(&format!("{name}.ko"));
        fs::write(&file, bytes).unwrap();
        format!("{} insmod {}\n", guest.path("busybox").display(), file.display())
    };
    kernel.modules(&["loop", "crc32c_generic", "ext4"]).unwrap().into_iter().map(load).collect()
}

/// An image as a file past the host's page cache and through it, and as a block device, on a file system
/// with blocks of 4 KiB, on a disk with sectors as large; and as a file in memory, where ranges cannot be
/// zeroed but by writing. With io_uring, and where the host forbids that.
#[test]
fn disks_do_what_linux_asks_of_them() {
    if lab().is_none() {
        return;
    }
    let guest = guest(SCRIPT);
    let image = pattern(SIZE);
    fs::write(guest.path("image"), &image).unwrap();
    let flags = "--log casemate_devices=info --disk /tmp/disks/direct,direct=true \
                 --disk /tmp/disks/cached --disk /dev/loop1,direct=true --disk /tmp/memory";
    let command = guest.command("vmlinux", "", flags);
    let (modules, image_file) = (load_modules(&guest), guest.path("image"));
    let (image_file, disk) = (image_file.display(), guest.path("disk"));
    let disk = disk.display();
    let script = format!(
        "PATH=$PATH:/usr/sbin:/sbin; {modules}cd /tmp; mkdir disks; truncate -s 128M fs; losetup -b 4096 /dev/loop0 fs
         mkfs.ext4 -q -b 4096 /dev/loop0 && mount /dev/loop0 disks && cd disks
         flushes() {{ set -- $(cat /sys/block/loop0/stat); echo ${{16}}; }}
         for engine in ring calls; do
             [ $engine = ring ] || echo 2 >/proc/sys/kernel/io_uring_disabled
             for file in direct cached device ../memory; do cp {image_file} $file; done
             losetup /dev/loop1 device; sync; echo 3 >/proc/sys/vm/drop_caches
             echo BLOCKS $(stat -c %b direct cached device ../memory) FLUSHES $(flushes)
             {command} </dev/null; echo STATUS $?
             echo BLOCKS $(stat -c %b direct cached device ../memory) FLUSHES $(flushes)
             echo CACHED $({disk} cached direct) $({disk} cached cached)
             losetup -d /dev/loop1; sync
             for file in direct cached device ../memory; do echo FILE $(sha256sum <$file); done
             echo NEXT
         done"
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let after = changed(&image);
    let (before_sum, after_sum) = (sum(&image), sum(&after));
    for (console, engine) in console.split("NEXT").zip(["go through io_uring", "no io_uring"]) {
        assert!(console.contains(engine), "{engine}: {console}");
        assert_eq!(said(console, "STATUS "), "0", "{console}");
        for disk in ["vda", "vdb", "vdc", "vdd"] {
            let says = |what| said(console, &format!("{disk}-{what} "));
            assert_eq!(says("HAS"), "write back 1073741824 1073741824", "{console}");
            assert_eq!(says("BEFORE"), before_sum, "{disk}: {console}");
            assert_eq!(says("AFTER"), after_sum, "{disk}: {console}");
            assert_eq!(says("DIRECT"), sum(&after[512..64 * 512]), "{disk}: {console}");
            let done = says("DONE");
            assert!(done.contains("discarded=1 ") && !done.ends_with("flushed=0"), "{console}");
        }
        assert_eq!(console.matches(&format!("FILE {after_sum}")).count(), 4, "{console}");
        blocks_are_given_back(console);
        let cached: Vec<usize> = numbers(said(console, "CACHED "));
        // The few sectors that direct I/O could not carry, and their neighbours read ahead.
        assert!(cached[0] < MIB && cached[1] > 4 * MIB, "{console}");
    }
}

fn numbers(text: &str) -> Vec<usize> {
    text.split(' ').filter_map(|word| word.parse().ok()).collect()
}

/// Discarded and unmapped ranges lost their blocks, 3 MiB in all but for what the file system notes of the
/// holes; zeroed ones did not. Flushes reached the host's disk.
fn blocks_are_given_back(console: &str) {
    let lines = console.lines().filter_map(|line| line.strip_prefix("BLOCKS "));
    let figures: Vec<Vec<usize>> = lines.map(numbers).collect();
    let [before, after] = &figures[..] else { panic!("two lines of BLOCKS: {console}") };
    for disk in 0..4 {
        let lost = (before[disk] - after[disk]) * 512;
        assert!((3 * MIB - 65536..=3 * MIB).contains(&lost), "{disk}: {lost}: {console}");
    }
    assert!(after[4] > before[4], "{console}");
}

/// Reads and writes at once, by a queue of each processor; then requests without many bytes; then without
/// a limit, while another disk's is used. Times are in hundredths of a second.
const LIMITED: &str = r"
dmesg -n 1
now() { read -r up _ </proc/uptime; echo ${up%.*}${up#*.}; }
began=$(now)
taskset 1 /disk read /dev/vda 0 65536 24 >/dev/null &
taskset 2 /disk write /dev/vda 0x200000 65536 24 x
wait
echo BYTES $(($(now) - began))
began=$(now)
/disk read /dev/vdb 0 512 60 >/dev/null
echo REQUESTS $(($(now) - began))
/disk read /dev/vda 0 65536 48 >/dev/null &
/disk read /dev/vdc 0 65536 48 >/dev/null
kill -0 $! && echo UNLIMITED first
wait
# Interrupts of each queue of the first disk: what both processors had of them.
for queue in 0 1; do
	echo QUEUE$queue $(grep virtio0-req.$queue$ /proc/interrupts | tr -s ' ' | cut -d' ' -f3,4)
done
";

#[test]
fn limited_disks_take_their_time_and_others_do_not() {
    if lab().is_none() {
        return;
    }
    let guest = guest(LIMITED);
    let mut flags = "--vcpus 2".to_owned();
    for (name, limit) in [
        ("bytes", ",bytes_per_second=1M,queues=2"),
        ("requests", ",requests_per_second=20"),
        ("unlimited", ""),
    ] {
        let file = guest.path(name);
        fs::write(&file, vec![0; 4 * MIB]).unwrap();
        write!(flags, " --disk {}{limit}", file.display()).unwrap();
    }
    let script = guest.command("vmlinux", "", &flags) + " </dev/null";
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert_eq!(output.status, 0, "{console}");
    let took = |what| said(console, what).parse::<u32>().unwrap();
    // What a tenth of a second is worth was saved up, and the last request is not paid for.
    assert!(took("BYTES ") >= 270, "{console}");
    assert!(took("REQUESTS ") >= 270, "{console}");
    assert_eq!(said(console, "UNLIMITED "), "first", "{console}");
    for queue in ["QUEUE0 ", "QUEUE1 "] {
        assert!(numbers(said(console, queue)).iter().sum::<usize>() > 0, "{console}");
    }
}

const MOST: &str = r"
dmesg -n 1
for disk in /sys/block/vd*; do
	echo ${disk##*/} $(cat $disk/serial) $(head -c 5 /dev/${disk##*/}) $(ls $disk/mq | wc -l)
done
";

/// In their order, with more queues in all than the customary limit of open files is good for.
#[test]
fn as_many_disks_as_there_can_be_are_all_there() {
    if lab().is_none() {
        return;
    }
    let guest = Guest::new("6.12", MOST);
    let mut flags = "--vcpus 2".to_owned();
    let mut expected = String::new();
    for (number, letter) in (10..).zip('a'..='x') {
        let file = guest.path(&format!("disk{number}"));
        let mut image = format!("is-{number}").into_bytes();
        image.resize(4096, 0);
        fs::write(&file, image).unwrap();
        write!(flags, " --disk {},queues=16,serial=number-{number}", file.display()).unwrap();
        writeln!(expected, "vd{letter} number-{number} is-{number} 2").unwrap();
    }
    let script = format!("ulimit -Sn 1024; {} </dev/null", guest.command("vmlinux", "", &flags));
    let Some(output) = guest.in_lab(&script) else { return };
    let console = output.console.replace('\r', "");
    assert!(output.status == 0 && console.contains(&expected), "{expected}: {console}");
}
