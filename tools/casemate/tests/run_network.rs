//! Network interfaces of `casemate run`, as Linux uses them: queues, offloads, rates.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::fs;

use casemate_lab::packages::Packages;
use common::{Guest, lab, pattern, said, sum};

/// Interfaces in the order of their names: served by the host's kernel, by the VMM, and with a rate that
/// is felt. Of each: a transfer from the guest by one processor, one to it by the other, and the time of
/// both in hundredths of a second.
const SCRIPT: &str = r"
dmesg -n 1
now() { read -r up _ </proc/uptime; echo ${up%.*}${up#*.}; }
mkfifo /tmp/never
exec 9<>/tmp/never
for net in 0 1 2; do
	eth=eth$net peer=10.0.$net.1
	ip link set $eth up
	ip addr add 10.0.$net.2/24 dev $eth
	cd /sys/class/net/$eth
	echo $eth-FEATURES $(cat device/features)
	echo $eth-QUEUES $(ls queues) MTU $(cat mtu)
	began=$(now)
	taskset 1 nc $peer 500$net </data >/dev/null
	middle=$(now)
	echo $eth-SUM $(taskset 2 nc $peer 510$net <&9 | sha256sum)
	echo $eth-TIMES $((middle - began)) $(($(now) - middle))
	for queue in 0 1; do
		echo $eth-INTERRUPTS$queue \
			$(grep virtio$net-input.$queue$ /proc/interrupts | tr -s ' ' | cut -d' ' -f3,4)
	done
done
";

#[test]
fn queues_offloads_and_rates_work() {
    if lab().is_none() {
        return;
    }
    let busybox = fs::read(Packages::open().unwrap().busybox().unwrap()).unwrap();
    let data = pattern(4 << 20);
    let guest = Guest::with_files("6.12", SCRIPT, &[("busybox", &busybox), ("data", &data)]);
    let nets = "--net tap0,queues=2 --net tap1,queues=2,bytes_per_second=10G \
                --net tap2,bytes_per_second=1M";
    let command = guest.command("vmlinux", "", &format!("{nets} --vcpus 2"));
    let (busybox, data_file) = (guest.path("busybox"), guest.path("data"));
    let (busybox, data_file) = (busybox.display(), data_file.display());
    let script = format!(
        "mkfifo /tmp/never; exec 9<>/tmp/never
         for net in 0 1 2; do
             many=; [ $net = 2 ] || many=multi_queue
             ip tuntap add tap$net mode tap $many
             ip addr add 10.0.$net.1/24 dev tap$net && ip link set tap$net up
             {busybox} nc -l -p 500$net <&9 | sha256sum >/tmp/sum$net &
             {busybox} nc -l -p 510$net <{data_file} >/dev/null &
         done
         ip link set tap2 mtu 4000
         {command} </dev/null; echo STATUS $?
         for net in 0 1 2; do
             cd /sys/class/net/tap$net/statistics
             echo tap$net-SUM $(cat /tmp/sum$net)
             echo tap$net-MEAN $(($(cat rx_bytes) / $(cat rx_packets))) $(($(cat tx_bytes) / $(cat tx_packets)))
         done"
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert_eq!(said(console, "STATUS "), "0", "{console}");
    let sum = sum(&data);
    for (net, pairs) in [(0, 2), (1, 2), (2, 1)] {
        let of_guest = |what| said(console, &format!("eth{net}-{what} "));
        let of_host = |what| said(console, &format!("tap{net}-{what} "));
        features_are_taken(of_guest("FEATURES"), pairs > 1);
        let queues = if pairs > 1 { "rx-0 rx-1 tx-0 tx-1" } else { "rx-0 tx-0" };
        let mtu = if net == 2 { 4000 } else { 1500 };
        assert_eq!(of_guest("QUEUES"), format!("{queues} MTU {mtu}"), "{console}");
        assert!(of_guest("SUM").starts_with(&sum), "{console}");
        assert!(of_host("SUM").starts_with(&sum), "{console}");
        // Each way there are packets that no wire would carry.
        for mean in numbers(of_host("MEAN")).into_iter().filter(|_| pairs > 1) {
            assert!(mean > mtu + 14, "{console}");
        }
        for queue in 0..pairs {
            let counts = numbers(said(console, &format!("eth{net}-INTERRUPTS{queue} ")));
            assert!(counts.iter().sum::<usize>() > 0, "{console}");
        }
    }
    // 4 s, less what was saved up and the last packet, which is not paid for.
    for time in numbers(said(console, "eth2-TIMES ")) {
        assert!(time >= 370, "{console}");
    }
}

fn numbers(text: &str) -> Vec<usize> {
    text.split(' ').map(|word| word.parse().unwrap()).collect()
}

/// The string of sysfs has a digit for each feature bit, from 0 on (VIRTIO 1.2, sections 5.1.3 and 6).
fn features_are_taken(features: &str, several_queues: bool) {
    let has = |bit: usize| features.as_bytes()[bit] == b'1';
    // Checksums and segments of both directions, merged buffers, MTU, VERSION_1.
    for bit in [0, 1, 3, 7, 8, 11, 12, 15, 32] {
        assert!(has(bit), "{bit}: {features}");
    }
    // The control queue, and several pairs.
    assert_eq!((has(17), has(22)), (several_queues, several_queues), "{features}");
}
