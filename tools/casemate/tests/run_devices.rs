//! The devices of `casemate run`, used by Linux in an emulated host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::fs;

use casemate_test_support::process::GUEST_IN_SHELL;
use common::{Guest, lab, pattern, said, sum};

const DISKS: &str = r"
dmesg -n 1
echo DISK $(sha256sum </dev/vda | cut -d' ' -f1)
echo SERIAL $(cat /sys/block/vda/serial) READ-ONLY $(cat /sys/block/vda/ro /sys/block/vdb/ro)
echo WRITING $(dd if=/dev/zero of=/dev/vda bs=512 count=1 2>&1 | grep -o 'not permitted')
echo QUEUES $(ls /sys/block/vdb/mq | wc -l)
dd if=/dev/vda of=/dev/vdb bs=64k 2>/dev/null
sync
";

#[test]
fn disks_are_read_and_written() {
    if lab().is_none() {
        return;
    }
    let guest = Guest::new("6.12", DISKS);
    let contents = pattern(3 << 20);
    fs::write(guest.path("from"), &contents).unwrap();
    fs::write(guest.path("to"), vec![0; contents.len()]).unwrap();
    let (from, to) = (guest.path("from"), guest.path("to"));
    let flags = format!(
        "--vcpus 2 --disk {},read_only=true,serial=from-1 --disk {},queues=2",
        from.display(),
        to.display()
    );
    let script = guest.command("vmlinux", "", &flags) + " </dev/null";
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert_eq!(output.status, 0, "{console}");
    assert_eq!(said(console, "DISK "), sum(&contents));
    assert_eq!(said(console, "SERIAL "), "from-1 READ-ONLY 1 0");
    assert_eq!(said(console, "WRITING "), "not permitted");
    assert!(fs::read(&from).unwrap() == contents, "the guest wrote to a disk that is only read");
    assert_eq!(said(console, "QUEUES "), "2");
    assert!(fs::read(&to).unwrap() == contents, "the copy differs");
}

const OTHERS: &str = r"
dmesg -n 1
echo RANDOM $(cat /sys/class/misc/hw_random/rng_current) $(head -c 1000 /dev/hwrng | wc -c)
ip link set eth0 up
ip addr add 10.0.0.2/24 dev eth0
echo ADDRESS $(cat /sys/class/net/eth0/address)
echo PING $(ping -c 3 -s 1400 10.0.0.1 | grep -o '[0-9]* packets received')
ip link set eth1 up
ip addr add 10.0.1.2/24 dev eth1
echo LIMITED $(ping -c 3 -s 1400 10.0.1.1 | grep -o '[0-9]* packets received')
# The console echoes what it is given, and adds a carriage return.
stty -F /dev/hvc0 raw -echo
exec 3<>/dev/hvc0
echo CONSOLE >&3
read -r line <&3
echo CONSOLE-GOT $line >&3
";

#[test]
fn entropy_network_and_console_work() {
    if lab().is_none() {
        return;
    }
    let guest = Guest::new("6.12", OTHERS);
    // The second interface has a rate, for which the VMM moves the packets, not the host's kernel.
    let nets = "--net tap7 --net tap8,bytes_per_second=10M";
    let command = guest.command("vmlinux", "", &format!("{nets} --console true --vcpus 2"));
    let script = format!(
        "{GUEST_IN_SHELL}for net in 0 1; do tap=tap$((7 + net)); ip tuntap add $tap mode tap\n\
         ip addr add 10.0.$net.1/24 dev $tap && ip link set $tap up; done\n\
         mkfifo /tmp/keys; {command} </tmp/keys >/tmp/log 2>&1 & exec 3>/tmp/keys\n\
         until grep -q CONSOLE /tmp/log; do sleep 0.2; done\n\
         echo THREADS $(cat /proc/$(guest)/task/*/comm)\n\
         echo to the guest >&3; wait $!; echo STATUS $?; cat /tmp/log"
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert_eq!(said(console, "RANDOM "), "virtio_rng.0 1000", "{console}");
    assert_eq!(said(console, "ADDRESS "), "02:ca:5e:00:00:00");
    assert_eq!(said(console, "PING "), "3 packets received", "{console}");
    assert_eq!(said(console, "LIMITED "), "3 packets received", "{console}");
    let vhost = said(console, "THREADS ").matches("vhost-").count();
    assert_eq!(vhost, 1, "threads of vhost-net: {console}");
    assert_eq!(said(console, "CONSOLE-GOT "), "to the guest");
}

const BALLOON: &str = r"
dmesg -n 1
dd if=/dev/zero of=/tmp/f bs=1M count=150 2>/dev/null
echo FULL
sleep 3
rm /tmp/f
sleep 12
echo EMPTY
sleep 3
";

#[test]
fn a_balloon_gives_free_pages_back_by_itself() {
    if lab().is_none() {
        return;
    }
    let guest = Guest::new("6.12", BALLOON);
    let command = guest.command("vmlinux", "", "--memory 320M --balloon true");
    let script = format!(
        "{GUEST_IN_SHELL}{command} </dev/null >/tmp/log 2>&1 &\n\
         for word in FULL EMPTY; do until grep -q $word /tmp/log; do sleep 0.2; done\n\
         echo $word $(sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(guest)/status); done\n\
         wait $!; echo STATUS $?"
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let resident = |word| said(console, word).parse::<u64>().unwrap();
    let given_back = resident("FULL ").saturating_sub(resident("EMPTY "));
    assert!(given_back > 100 << 10, "only {given_back} KiB: {console}");
    assert_eq!(said(console, "STATUS "), "0");
}

/// Its memory is full of what it read from an open disk, which it does not give back by itself.
const SQUEEZED: &str = r"
dmesg -n 1
kilobytes() { grep ^$1: /proc/meminfo | tr -dc 0-9; }
exec 8</dev/vda 9</dev/vda
cat <&8 >/dev/null
echo READ
until [ $(kilobytes Buffers) -lt 50000 ]; do sleep 0.2; done
echo SMALL
until [ $(kilobytes MemFree) -gt 100000 ]; do sleep 0.2; done
cat <&9 >/dev/null
echo LARGE
read -r line
";

#[test]
fn the_monitor_fills_and_empties_the_balloon() {
    if lab().is_none() {
        return;
    }
    let guest = Guest::new("6.12", SQUEEZED);
    let flags = "--memory 256M --balloon true --disk /tmp/disk,read_only=true";
    let command = guest.command("vmlinux", "", flags);
    let script = format!(
        "{GUEST_IN_SHELL}truncate -s 128M /tmp/disk; mkfifo /tmp/keys
         script -qefc \"{command}\" /tmp/log </tmp/keys >/dev/null & exec 3>/tmp/keys
         after() {{
             until grep -q \"$1\" /tmp/log || ! kill -0 $!; do sleep 0.5; printf \"$3\" >&3; done
             echo $2 $(sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(guest)/status)
         }}
         after READ BEFORE; printf '\\001cballoon 160M\\r' >&3
         after SMALL SMALL; after 'balloon: 160M' FULL 'status\\r'
         printf 'balloon 0\\r' >&3
         after LARGE EMPTY; after 'balloon: 0' NONE 'status\\r'
         printf '\\001c\\r' >&3
         wait $!; echo STATUS $?; cat /tmp/log"
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let resident = |word| said(console, word).parse::<u64>().unwrap();
    let (before, full, empty) = (resident("BEFORE "), resident("FULL "), resident("EMPTY "));
    assert!(full + (64 << 10) < before, "{full} KiB of {before}: {console}");
    assert!(full + (64 << 10) < empty, "{empty} KiB after {full}: {console}");
    assert_eq!(said(console, "STATUS "), "0", "{console}");
}

const SOCKETS: &str = r"
dmesg -n 1
echo TO-HOST $(/echo connect vsock 6000 from-the-guest-END)
/echo listen vsock 5000
";

#[test]
fn sockets_connect_both_ways() {
    if lab().is_none() {
        return;
    }
    // The guest's programs and the host's are the same one, without libraries.
    let program = common::compile(include_str!("common/echo.c"));
    let guest = Guest::with_files("6.12", SOCKETS, &[("echo", &program)]);
    let echo = guest.path("echo");
    let echo = echo.display();
    let sockets = guest.command("vmlinux", "", "--vsock /tmp/sock");
    let kernel = guest.command("vmlinux", "", "--vsock ,vhost=true,cid=7");
    let script = format!(
        "{echo} listen unix /tmp/sock_6000 >/dev/null &\n{sockets} </dev/null >/tmp/log 2>&1 &\n\
         until grep -q LISTENING /tmp/log; do sleep 0.2; done\n\
         {echo} connect unix /tmp/sock \"$(printf 'CONNECT 5000\\nfrom-the-host-END')\"\n\
         wait $!; echo STATUS $?; cat /tmp/log; echo NEXT\n\
         {echo} listen vsock 6000 >/dev/null &\n{kernel} </dev/null >/tmp/next 2>&1 &\n\
         until grep -q LISTENING /tmp/next; do sleep 0.2; done\n\
         {echo} connect vsock:7 5000 from-the-host-END\n\
         wait $!; echo STATUS $?; cat /tmp/next"
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let (console, kernel) = output.console.split_once("NEXT").unwrap();
    assert!(said(console, "OK ").parse::<u32>().is_ok(), "{console}");
    for console in [console, kernel] {
        assert!(console.contains("\nfrom-the-host-END"), "{console}");
        assert_eq!(said(console, "TO-HOST "), "from-the-guest-END", "{console}");
        assert_eq!(said(console, "STATUS "), "0", "{console}");
    }
}
