//! Devices of `casemate run` that Linux lets go and takes again: driver by driver, and by a reset.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::fs;

use common::{Guest, lab, pattern, said, sum};

/// Uses every device, lets each driver go and come again, and uses them all once more; then, where the
/// second disk has no word of it yet, resets.
const SCRIPT: &str = r"
dmesg -n 1
use_all() {
	echo $1-MEMORY $(grep -c '^1.*System RAM' /proc/iomem) PROCESSORS $(nproc)
	echo $1-DISK $(sha256sum </dev/vda)
	echo $1-RANDOM $(head -c 1000 /dev/hwrng | wc -c)
	for net in 0 1; do
		[ -e /sys/class/net/eth$net ] || continue
		ip link set eth$net up
		ip addr add 10.0.$net.2/24 dev eth$net
		echo $1-PING$net $(ping -c 2 -s 1400 10.0.$net.1 | grep -o '[0-9]* packets received')
	done
	echo $1-SOCKET $(until /echo connect vsock 6000 from-the-guest-END 2>/dev/null; do sleep 0.2; done)
	# Both consoles are one text here: the serial port's is to be out before.
	stty -F /dev/ttyS0 cs8
	[ ! -e /dev/hvc0 ] || echo $1-CONSOLE >/dev/hvc0
}
use_all FIRST
echo 0 >/sys/devices/system/cpu/cpu1/online
echo 1 >/sys/devices/system/cpu/cpu1/online
for device in /sys/bus/virtio/devices/*; do
	driver=$(readlink -f $device/driver)
	echo ${device##*/} >$driver/unbind
	echo ${device##*/} >$driver/bind && echo BOUND ${driver##*/}
done
use_all SECOND
if ! grep -q again /dev/vdb; then
	echo again | dd of=/dev/vdb bs=512 conv=sync,notrunc,fsync 2>/dev/null
	reboot -f
fi
";

#[test]
fn devices_come_back_after_their_drivers_and_after_a_reset() {
    if lab().is_none() {
        return;
    }
    let program = common::compile(include_str!("common/echo.c"));
    let guest = Guest::with_files("6.12", SCRIPT, &[("echo", &program)]);
    let image = pattern(1 << 20);
    fs::write(guest.path("disk"), &image).unwrap();
    fs::write(guest.path("mark"), [0; 4096]).unwrap();
    let (disk, mark) = (guest.path("disk"), guest.path("mark"));
    let disks = format!("--disk {},queues=2 --disk {}", disk.display(), mark.display());
    let all = "--memory 3500M --on-reset restart --balloon true --console true --vsock ,vhost=true \
               --net tap0,queues=2 --net tap1,bytes_per_second=1G";
    // The second has the word on its disk already, and the sockets that the VMM serves.
    let [all, ours] = [all, "--vsock /tmp/sock"]
        .map(|flags| guest.command("vmlinux", "", &format!("{disks} --vcpus 2 {flags}")));
    let echo = guest.path("echo");
    let echo = echo.display();
    let script = format!(
        "for net in 0 1; do
             many=; [ $net = 1 ] || many=multi_queue
             ip tuntap add tap$net mode tap $many
             ip addr add 10.0.$net.1/24 dev tap$net && ip link set tap$net up
         done
         while :; do {echo} listen vsock 6000; done >/dev/null 2>&1 &
         while :; do rm -f /tmp/sock_6000; {echo} listen unix /tmp/sock_6000; done >/dev/null 2>&1 &
         for command in \"{all}\" \"{ours}\"; do
             sh -c \"$command\" </dev/null; echo STATUS $?; echo NEXT
         done"
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let (all, ours) = output.console.split_once("NEXT").unwrap();
    let sum = sum(&image);
    for (console, boots, bound) in [(all, 2, 8), (ours, 1, 4)] {
        assert_eq!(said(console, "STATUS "), "0", "{console}");
        let count = |word: &str| console.lines().filter(|line| line.starts_with(word)).count();
        assert_eq!(count("BOUND "), boots * bound, "{console}");
        for word in ["FIRST", "SECOND"] {
            for what in ["RANDOM 1000", "SOCKET from-the-guest-END", &format!("DISK {sum}")] {
                assert_eq!(count(&format!("{word}-{what}")), boots, "{what}: {console}");
            }
        }
    }
    for word in ["FIRST", "SECOND"] {
        for what in ["MEMORY 1 PROCESSORS 2", "PING0 2", "PING1 2", "CONSOLE"] {
            assert_eq!(all.matches(&format!("{word}-{what}")).count(), 2, "{what}: {all}");
        }
    }
}
