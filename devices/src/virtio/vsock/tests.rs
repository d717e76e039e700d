use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};

use super::packet::{HEADER_LENGTH, Header, Operation, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::virtio::testing::{self, MockQueue, MockTransport, RING_FEATURES};

const CID: u32 = 42;
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 0x10000;
/// The guest's buffers for what it receives, then the one from which it sends.
const INBOX: u64 = 0x20000;
const INBOX_SIZE: u32 = 0x1000;
const OUTBOX: u64 = 0x30000;

/// The guest: its driver and its programs.
struct Guest {
    receive: MockQueue,
    transmit: MockQueue,
}

struct Host {
    device: Vsock,
    transport: Arc<MockTransport>,
    folder: tempfile::TempDir,
}

impl Host {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }
}

fn start() -> (Host, Guest) {
    let folder = tempfile::tempdir().unwrap();
    let thread = IoThread::spawn("vsock", || Ok(())).unwrap();
    let mut device = Vsock::new(CID, &folder.path().join("vsock"), thread).unwrap();
    let memory = testing::memory();
    let mut guest = Guest {
        receive: MockQueue::new(&memory, RECEIVE, 16),
        transmit: MockQueue::new(&memory, TRANSMIT, 16),
    };
    let queues = [(0, &guest.receive), (1, &guest.transmit)];
    let (result, transport) = testing::activate(&mut device, &queues, RING_FEATURES);
    result.unwrap();
    guest.offer_buffer();
    (Host { device, transport, folder }, guest)
}

impl Guest {
    fn offer_buffer(&mut self) {
        self.receive.add(&[], &[(INBOX, INBOX_SIZE)]);
        self.receive.kick();
    }

    /// The next packet that the guest gets, and its payload.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (_, written) = self.receive.used();
        let memory = &self.receive.memory;
        let mut packet = vec![0; written as usize];
        memory.read_slice(&mut packet, GuestAddress(INBOX)).unwrap();
        let payload = packet.split_off(HEADER_LENGTH);
        let mut bytes: [u8; HEADER_LENGTH] = packet.try_into().unwrap();
        // As the host would read it if the guest had sent it.
        bytes[0..16].rotate_left(8);
        bytes[16..24].rotate_left(4);
        let header = Header::from_guest(&bytes, u64::from(CID)).unwrap();
        self.offer_buffer();
        (header, payload)
    }

    fn send(&mut self, ports: Ports, operation: Operation, flags: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap();
        let header = Header { ports, operation, length, flags, buf_alloc: 1 << 16, fwd_cnt: 0 };
        let mut bytes = header.to_guest(u64::from(CID));
        bytes[0..16].rotate_left(8);
        bytes[16..24].rotate_left(4);
        let packet = [&bytes, payload].concat();
        self.transmit.memory.write_slice(&packet, GuestAddress(OUTBOX)).unwrap();
        let total = u32::try_from(HEADER_LENGTH).unwrap() + length;
        // In two pieces, the cut in the middle of the header.
        self.transmit.add(&[(OUTBOX, 20), (OUTBOX + 20, total - 20)], &[]);
        self.transmit.kick();
        self.transmit.used();
    }
}

#[test]
fn a_process_on_the_host_talks_to_one_in_the_guest() {
    let (host, mut guest) = start();
    let mut process = UnixStream::connect(host.socket()).unwrap();
    process.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    process.write_all(b"CONNECT 1024\nping").unwrap();
    let (request, _) = guest.receive();
    assert_eq!((request.operation, request.ports.guest), (Operation::Request, 1024));
    guest.send(request.ports, Operation::Response, 0, &[]);
    let line = format!("OK {}\n", request.ports.host);
    let mut said = vec![0; line.len()];
    process.read_exact(&mut said).unwrap();
    assert_eq!(said, line.as_bytes());
    let (header, payload) = guest.receive();
    assert_eq!((header.operation, payload.as_slice()), (Operation::Payload, b"ping".as_slice()));
    guest.send(request.ports, Operation::Payload, 0, b"pong");
    let mut answer = [0; 4];
    process.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
    drop(process);
    let (header, _) = guest.receive();
    assert_eq!(header.operation, Operation::Shutdown);
    assert_eq!(header.flags, SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
}

#[test]
fn a_program_in_the_guest_talks_to_one_on_the_host() {
    let (host, mut guest) = start();
    let service = UnixListener::bind(host.folder.path().join("vsock_99")).unwrap();
    let ports = Ports { host: 99, guest: 5 };
    guest.send(ports, Operation::Request, 0, &[]);
    let (mut process, _) = service.accept().unwrap();
    assert_eq!(guest.receive().0.operation, Operation::Response);
    let sent: Vec<u8> = (0..=255).cycle().take(3000).collect();
    guest.send(ports, Operation::Payload, 0, &sent);
    guest.send(ports, Operation::Shutdown, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    let mut got = Vec::new();
    process.read_to_end(&mut got).unwrap();
    assert_eq!(got, sent);
    assert_eq!(guest.receive().0.operation, Operation::Reset);
}

#[test]
fn more_than_the_guest_takes_at_once_arrives_in_order() {
    let (host, mut guest) = start();
    let service = UnixListener::bind(host.folder.path().join("vsock_1")).unwrap();
    let ports = Ports { host: 1, guest: 5 };
    guest.send(ports, Operation::Request, 0, &[]);
    let (mut process, _) = service.accept().unwrap();
    assert_eq!(guest.receive().0.operation, Operation::Response);
    let sent: Vec<u8> = (0..=250).cycle().take(50_000).collect();
    process.write_all(&sent).unwrap();
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let (header, payload) = guest.receive();
        assert_eq!(header.operation, Operation::Payload);
        assert!(payload.len() <= INBOX_SIZE as usize);
        got.extend(payload);
    }
    assert_eq!(got, sent);
}

#[test]
fn nobody_listening_and_nothing_known_is_a_reset() {
    let (_host, mut guest) = start();
    let ports = Ports { host: 7, guest: 8 };
    guest.send(ports, Operation::Request, 0, &[]);
    assert_eq!(guest.receive().0, Header::reset(ports));
    guest.send(ports, Operation::Payload, 0, b"to whom?");
    assert_eq!(guest.receive().0, Header::reset(ports));
}

#[test]
fn a_chain_without_a_packet_makes_the_device_ask_for_a_reset() {
    let (mut host, mut guest) = start();
    guest.transmit.add(&[(OUTBOX, 10)], &[]);
    guest.transmit.kick();
    testing::wait("needs_reset", || host.transport.needs_reset.load(Ordering::SeqCst));
    host.device.reset();
    // A new driver, on the same socket.
    let memory = testing::memory();
    let mut guest = Guest {
        receive: MockQueue::new(&memory, RECEIVE, 16),
        transmit: MockQueue::new(&memory, TRANSMIT, 16),
    };
    let queues = [(0, &guest.receive), (1, &guest.transmit)];
    testing::activate(&mut host.device, &queues, RING_FEATURES).0.unwrap();
    guest.offer_buffer();
    let mut process = UnixStream::connect(host.socket()).unwrap();
    process.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(guest.receive().0.operation, Operation::Request);
}

#[test]
fn the_socket_is_replaced_when_stale_and_respected_when_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vsock");
    let thread = IoThread::spawn("vsock", || Ok(())).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let device = Vsock::new(CID, &socket, thread.clone()).unwrap();
    assert!(Vsock::new(CID, &socket, thread).is_err());
    let mut config = [0; 10];
    device.read_config(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(u64::MAX, &mut config);
    drop(device);
    assert!(!socket.exists());
}
