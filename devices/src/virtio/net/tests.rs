//! An interface, driven over its queues: on a pair of sockets, and on a real tap where the machine
//! lets an ordinary process have one.

use std::io;
use std::net::UdpSocket;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{MockQueue, MockTransport, RING_FEATURES, activate, memory, wait};

const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const MANY: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
const RECEIVE: u64 = 0x10_0000;
const TRANSMIT: u64 = 0x80_0000;
const CONTROL: u64 = 0xf0_0000;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// In place of a tap: each datagram is a packet with its header.
struct FakeLink {
    socket: UnixDatagram,
    offloads: Mutex<u32>,
    attached: Mutex<bool>,
    gone: AtomicBool,
}

impl AsFd for FakeLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link for FakeLink {
    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        *self.offloads.lock().unwrap() = offloads;
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        *self.attached.lock().unwrap() = attached;
        Ok(())
    }

    fn name(&self) -> &str {
        "fake0"
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

fn options() -> NetOptions {
    NetOptions {
        mac: MAC,
        mtu: 1500,
        receive: Limits::default(),
        transmit: Limits::default(),
        vhost: true,
    }
}

/// An interface, its driver, and the other ends of its links.
struct Rig {
    net: Net,
    memory: Arc<DeviceMemory>,
    /// Receive and transmit queue of each pair, then the control queue.
    queues: Vec<MockQueue>,
    transport: Arc<MockTransport>,
    links: Vec<Arc<FakeLink>>,
    hosts: Vec<UnixDatagram>,
}

impl Rig {
    fn new(pairs: usize, options: NetOptions, features: u64) -> Self {
        let (mut links, mut hosts) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            let (socket, host) = UnixDatagram::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let (offloads, attached) = (Mutex::new(!0), Mutex::new(true));
            let gone = AtomicBool::new(false);
            links.push(Arc::new(FakeLink { socket, offloads, attached, gone }));
            hosts.push(host);
        }
        let as_links = links.iter().map(|link| Arc::clone(link) as Arc<dyn Link>).collect();
        let (net, memory, queues, transport) = start(as_links, options, features);
        Self { net, memory, queues, transport, links, hosts }
    }

    /// Posts buffers of these sizes to the receive queue of a pair, one behind the other.
    fn post(&mut self, pair: u64, sizes: &[u32]) {
        let mut address = RECEIVE + pair * 0x10_0000;
        for &size in sizes {
            self.queues[2 * usize::try_from(pair).unwrap()].add(&[], &[(address, size)]);
            address += u64::from(size);
        }
        self.queues[2 * usize::try_from(pair).unwrap()].kick();
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Sends `bytes` in buffers of at most `step` bytes.
    fn send(&mut self, bytes: &[u8], step: usize) {
        self.memory.write_slice(bytes, GuestAddress(TRANSMIT)).unwrap();
        let mut address = TRANSMIT;
        let mut buffers = Vec::new();
        for part in bytes.chunks(step) {
            buffers.push((address, u32::try_from(part.len()).unwrap()));
            address += part.len() as u64;
        }
        self.queues[1].add(&buffers, &[]);
        self.queues[1].kick();
        assert_eq!(self.queues[1].used().1, 0);
    }

    fn sent(&self, pair: usize) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        let len = self.hosts[pair].recv(&mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    }

    /// One control request; its answer.
    fn control(&mut self, request: &[u8]) -> u8 {
        self.memory.write_slice(request, GuestAddress(CONTROL)).unwrap();
        self.memory.write_slice(&[0xff], GuestAddress(CONTROL + 64)).unwrap();
        let queue = self.queues.last_mut().unwrap();
        let len = u32::try_from(request.len()).unwrap();
        queue.add(&[(CONTROL, len)], &[(CONTROL + 64, 1)]);
        queue.kick();
        assert_eq!(queue.used().1, 1);
        self.bytes(CONTROL + 64, 1)[0]
    }

    fn attached(&self) -> Vec<bool> {
        self.links.iter().map(|link| *link.attached.lock().unwrap()).collect()
    }
}

fn start(
    links: Vec<Arc<dyn Link>>,
    options: NetOptions,
    features: u64,
) -> (Net, Arc<DeviceMemory>, Vec<MockQueue>, Arc<MockTransport>) {
    let threads = vec![IoThread::spawn("net", || Ok(())).unwrap()];
    let mut net = Net::new(links, options, threads);
    let memory = memory();
    let sizes = net.queue_sizes().to_vec();
    let queues: Vec<_> =
        (0..).zip(sizes).map(|(at, size)| MockQueue::new(&memory, at * 0x1_0000, size)).collect();
    let active: Vec<_> = (0..).zip(&queues).collect();
    let (result, transport) = activate(&mut net, &active, RING_FEATURES | features);
    result.unwrap();
    (net, memory, queues, transport)
}

/// A header of zeroes, and a packet that counts.
fn packet(len: usize) -> Vec<u8> {
    let payload = (0..len).map(|at| u8::try_from(at % 251).unwrap());
    [0; HEADER_LEN as usize].into_iter().chain(payload).collect()
}

#[test]
fn a_packet_fits_one_buffer() {
    let mut rig = Rig::new(1, options(), MERGE);
    rig.post(0, &[2048, 2048]);
    rig.hosts[0].send(&packet(60)).unwrap();
    rig.hosts[0].send(&packet(1514)).unwrap();
    assert_eq!(rig.queues[0].used(), (0, 72));
    assert_eq!(rig.queues[0].used(), (1, 1526));
    for (address, len) in [(RECEIVE, 60), (RECEIVE + 2048, 1514)] {
        let mut expected = packet(len);
        expected[10] = 1;
        assert_eq!(rig.bytes(address, len + 12), expected);
    }
    assert!(rig.transport.interrupts.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_long_packet_is_spread_and_seen_at_once() {
    let features = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | MERGE;
    let mut rig = Rig::new(1, options(), features);
    assert_eq!(*rig.links[0].offloads.lock().unwrap(), libc::TUN_F_CSUM | libc::TUN_F_TSO4);
    rig.post(0, &[1500; 60]);
    rig.hosts[0].send(&packet(65_000)).unwrap();
    let mut expected = packet(65_000);
    expected[10] = 44;
    let parts: Vec<_> = (0..44).map(|_| rig.queues[0].used()).collect();
    assert!(parts[..43].iter().all(|(_, written)| *written == 1500));
    assert_eq!(parts[43].1, 65_012 - 43 * 1500);
    assert_eq!(rig.bytes(RECEIVE, 65_012), expected);
    // 16 buffers are left, which is too little for the longest packet.
    rig.hosts[0].send(&packet(100)).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.queues[0].poll_used(), None);
    rig.post(0, &[1500; 40]);
    assert_eq!(rig.queues[0].used().1, 112);
}

#[test]
fn a_packet_that_fits_nowhere_is_lost_and_the_next_is_not() {
    let mut rig = Rig::new(1, options(), 0);
    rig.post(0, &[512]);
    rig.hosts[0].send(&packet(501)).unwrap();
    rig.hosts[0].send(&packet(500)).unwrap();
    assert_eq!(rig.queues[0].used(), (0, 512));
    assert_eq!(rig.bytes(RECEIVE + 12, 500), packet(500)[12..]);
}

#[test]
fn link_is_down_when_the_host_takes_the_tap_away() {
    let mut rig = Rig::new(1, options(), MERGE | 1 << VIRTIO_NET_F_STATUS);
    let status = |rig: &Rig| {
        let mut status = [0xff; 2];
        rig.net.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    rig.post(0, &[2048]);
    assert_eq!(status(&rig), 1);
    rig.links[0].gone.store(true, Ordering::SeqCst);
    // The other end of the socket goes: an error of the link's descriptor, as of a tap's.
    rig.hosts.clear();
    let transport = Arc::clone(&rig.transport);
    rig.memory.write_slice(&packet(60), GuestAddress(TRANSMIT)).unwrap();
    rig.queues[1].add(&[(TRANSMIT, 72)], &[]);
    rig.queues[1].kick();
    assert_eq!(rig.queues[1].used().1, 0, "packets are dropped, the guest goes on");
    wait("the driver to be told", || transport.config_changes.load(Ordering::SeqCst) == 1);
    assert_eq!(status(&rig), 0);
    assert!(!transport.needs_reset.load(Ordering::SeqCst), "it is no fault of the driver");
}

#[test]
fn packets_wait_for_buffers() {
    let mut rig = Rig::new(1, options(), MERGE);
    for len in 60..70 {
        rig.hosts[0].send(&packet(len)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(10));
    rig.post(0, &[2048; 10]);
    for len in 60..70 {
        assert_eq!(rig.queues[0].used().1, len + 12);
    }
}

#[test]
fn what_the_guest_sends_arrives_with_a_clean_header() {
    let mut rig = Rig::new(1, options(), 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4);
    for step in [7, 12, 512, 70_000] {
        rig.send(&packet(1514), step);
        assert_eq!(rig.sent(0), packet(1514));
    }
    // Flags that the device does not know are not passed on, those it knows are.
    let mut odd = packet(100);
    odd[..12].copy_from_slice(&[0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
    rig.send(&odd, 70_000);
    assert_eq!(rig.sent(0), packet(100));
    let mut segments = packet(60_000);
    segments[..12].copy_from_slice(&[1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
    rig.send(&segments, 300);
    assert_eq!(rig.sent(0), segments);
}

#[test]
fn packets_that_make_no_sense_are_dropped() {
    let mut rig = Rig::new(1, options(), 0);
    // Not negotiated; too short; too long.
    let mut checksum = packet(100);
    checksum[0] = 1;
    rig.send(&checksum, 70_000);
    rig.send(&packet(13), 70_000);
    rig.send(&packet(65_554), 70_000);
    rig.send(&packet(14), 70_000);
    assert_eq!(rig.sent(0), packet(14));
    assert!(!rig.transport.needs_reset.load(Ordering::SeqCst));
}

#[test]
fn chains_without_a_header_ask_for_a_reset() {
    for queue in [0, 1] {
        let mut rig = Rig::new(1, options(), 0);
        let short = &[(TRANSMIT, 11)][..];
        let (readable, writable) = if queue == 0 { (&[][..], short) } else { (short, &[][..]) };
        rig.queues[queue].add(readable, writable);
        rig.queues[queue].kick();
        let transport = Arc::clone(&rig.transport);
        wait("the device to give up", || transport.needs_reset.load(Ordering::SeqCst));
        rig.net.reset();
        let queues = [0, 1].map(|at| MockQueue::new(&rig.memory, 0x4_0000 + at * 0x1_0000, 256));
        let active = [(0, &queues[0]), (1, &queues[1])];
        activate(&mut rig.net, &active, RING_FEATURES).0.unwrap();
        rig.queues = queues.into();
        rig.send(&packet(100), 512);
        assert_eq!(rig.sent(0), packet(100));
    }
}

#[test]
fn the_driver_chooses_how_many_pairs_it_uses() {
    let mut rig = Rig::new(3, options(), MERGE | MANY);
    assert_eq!(rig.attached(), [true, false, false]);
    assert_eq!(rig.control(&[4, 0, 2, 0]), 0);
    assert_eq!(rig.attached(), [true, true, false]);
    for request in [&[4, 0, 4, 0][..], &[4, 0, 0, 0], &[4, 1, 1, 0], &[1, 0, 0], &[4, 0, 1, 0, 0]] {
        assert_eq!(rig.control(request), 1, "{request:?}");
    }
    assert_eq!(rig.attached(), [true, true, false]);
    rig.post(1, &[2048]);
    rig.hosts[1].send(&packet(99)).unwrap();
    assert_eq!(rig.queues[2].used(), (0, 111));
    rig.net.reset();
    let second = MockQueue::new(&rig.memory, 0x20_0000, 256);
    let result = activate(&mut rig.net, &[(2, &second), (3, &second)], RING_FEATURES).0;
    assert!(result.is_err());
}

#[test]
fn without_many_queues_the_control_queue_is_the_third() {
    let mut rig = Rig::new(2, options(), 0);
    rig.net.reset();
    let queues = [0, 1, 2].map(|at| MockQueue::new(&rig.memory, 0x20_0000 + at * 0x1_0000, 64));
    let active = [(0, &queues[0]), (1, &queues[1]), (2, &queues[2])];
    let features = RING_FEATURES | 1 << VIRTIO_NET_F_CTRL_VQ;
    activate(&mut rig.net, &active, features).0.unwrap();
    rig.queues = queues.into();
    assert_eq!(rig.control(&[4, 0, 2, 0]), 1);
    assert_eq!(rig.control(&[4, 0, 1, 0]), 0);
}

#[test]
fn rates_are_limited_each_way() {
    let tight = Limits { bytes_per_second: NonZeroU64::new(100_000), operations_per_second: None };
    let mut rig = Rig::new(1, NetOptions { receive: tight, transmit: tight, ..options() }, 0);
    // The burst is 10,000 bytes.
    let start = Instant::now();
    for _ in 0..21 {
        rig.send(&packet(1000), 70_000);
    }
    assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());
    let start = Instant::now();
    rig.post(0, &[2048; 21]);
    for _ in 0..21 {
        rig.hosts[0].send(&packet(1000)).unwrap();
        rig.queues[0].used();
    }
    assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());
}

#[test]
fn the_configuration_describes_the_interface() {
    let rig = Rig::new(3, options(), MERGE | MANY);
    let mut config = [0xaa; 16];
    rig.net.read_config(0, &mut config[..12]);
    assert_eq!(config[..12], [2, 0, 0, 0, 0, 1, 1, 0, 3, 0, 0xdc, 5]);
    for offset in [11, 12, u64::MAX] {
        rig.net.read_config(offset, &mut [0; 8]);
    }
    assert_eq!(rig.net.queue_sizes().len(), 7);
    assert_eq!(Rig::new(1, options(), 0).net.features() & MANY, 0);
}

#[test]
fn names_that_are_none_are_refused() {
    for name in ["", "a-name-of-16-byt", "../tap", "nul\0"] {
        assert!(matches!(Tap::open(name, 1), Err(TapError::Name(_))), "{name}");
        assert!(matches!(Tap::mtu(name), Err(TapError::Name(_))), "{name}");
    }
}

/// Runs `on_a_real_tap` in a network of its own.
#[test]
fn a_real_tap_carries_packets_both_ways() {
    let unshare = ["--user", "--map-root-user", "--net", "--"];
    let probe = ["sh", "-c", "test -w /dev/net/tun && ip link"];
    let allowed = Command::new("unshare").args(unshare).args(probe).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: a test on a real tap needs unshare, ip and /dev/net/tun");
        return;
    }
    let itself = std::env::current_exe().unwrap();
    let test = ["--exact", "virtio::net::tests::on_a_real_tap", "--ignored", "--nocapture"];
    let status = Command::new("unshare").args(unshare).arg(itself).args(test).status().unwrap();
    assert!(status.success());
}

/// A UDP datagram each way between the host's network stack and the driver.
#[test]
#[ignore = "only inside of a network namespace: a_real_tap_carries_packets_both_ways runs it"]
fn on_a_real_tap() {
    let ip = |arguments: &str| {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    };
    let links = Tap::open("casemate0", 2).unwrap();
    ip("link set casemate0 up");
    ip("addr add 10.9.8.1/24 dev casemate0");
    ip("neigh add 10.9.8.2 lladdr 02:00:00:00:00:01 dev casemate0");
    assert_eq!(Tap::mtu("casemate0").unwrap(), 1500);
    let offloads = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM;
    let (mut net, memory, mut queues, _) = start(links, options(), MERGE | MANY | offloads);
    for buffer in 0..16 {
        queues[0].add(&[], &[(RECEIVE + buffer * 2048, 2048)]);
    }
    queues[0].kick();
    // Router solicitations and their like come too: wait for ours.
    let socket = UdpSocket::bind("10.9.8.1:4000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"to the guest", "10.9.8.2:5000").unwrap();
    let frame = loop {
        let (buffer, written) = queues[0].used();
        let mut frame = vec![0; usize::try_from(written).unwrap()];
        let address = RECEIVE + u64::from(buffer) * 2048;
        memory.read_slice(&mut frame, GuestAddress(address)).unwrap();
        assert_eq!(frame[10..12], [1, 0]);
        if frame.ends_with(b"to the guest") {
            break frame;
        }
    };
    // The host left the checksum to us: NEEDS_CSUM at 34 + 6.
    assert_eq!((frame[0] & 1, &frame[6..10]), (1, &[34, 0, 6, 0][..]));
    // Back, with the ends swapped, and the checksum left to the host. What stands in its place is
    // the sum of the pseudo-header, which is the same both ways.
    let mut answer = frame.clone();
    answer[10] = 0;
    answer[12..18].copy_from_slice(&frame[18..24]);
    answer[18..24].copy_from_slice(&frame[12..18]);
    answer[38..42].copy_from_slice(&frame[42..46]);
    answer[42..46].copy_from_slice(&frame[38..42]);
    answer[46..48].copy_from_slice(&frame[48..50]);
    answer[48..50].copy_from_slice(&frame[46..48]);
    memory.write_slice(&answer, GuestAddress(TRANSMIT)).unwrap();
    queues[1].add(&[(TRANSMIT, u32::try_from(answer.len()).unwrap())], &[]);
    queues[1].kick();
    let mut received = [0; 64];
    let (len, from) = socket.recv_from(&mut received).unwrap();
    assert_eq!(
        (&received[..len], from.to_string().as_str()),
        (&b"to the guest"[..], "10.9.8.2:5000")
    );
    net.reset();
}
