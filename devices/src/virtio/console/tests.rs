use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::DeviceMemory;
use crate::virtio::testing::{MockQueue, MockTransport, RING_FEATURES, activate, memory, wait};

const DATA: u64 = 0x20_0000;

struct Bench {
    memory: Arc<DeviceMemory>,
    console: Console,
    receive: MockQueue,
    transmit: MockQueue,
    transport: Arc<MockTransport>,
    input: io::PipeWriter,
    output: UnixStream,
}

fn bench() -> Bench {
    let (reader, input) = io::pipe().unwrap();
    bench_with(reader.into(), input)
}

/// With input from `file`; `input` is for others.
fn bench_with(file: OwnedFd, input: io::PipeWriter) -> Bench {
    let memory = memory();
    let (output, far) = UnixStream::pair().unwrap();
    output.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let thread = IoThread::spawn("console", || Ok(())).unwrap();
    let far = Outlet::new("out", File::from(OwnedFd::from(far)), || Ok(())).unwrap();
    let mut console = Console::new(Some(file), far, thread);
    let receive = MockQueue::new(&memory, 0x10_0000, 64);
    let transmit = MockQueue::new(&memory, 0x11_0000, 64);
    let (result, transport) =
        activate(&mut console, &[(0, &receive), (1, &transmit)], RING_FEATURES);
    result.unwrap();
    Bench { memory, console, receive, transmit, transport, input, output }
}

impl Bench {
    fn at<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

#[test]
fn the_guest_is_heard() {
    let mut b = bench();
    b.memory.write_slice(b"login: ", GuestAddress(DATA)).unwrap();
    for _ in 0..200 {
        let head = b.transmit.add(&[(DATA, 3), (DATA + 3, 4)], &[]);
        b.transmit.kick();
        let mut said = [0; 7];
        b.output.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"login: ");
        assert_eq!(b.transmit.used(), (head, 0));
    }
}

#[test]
fn the_guest_hears_all_of_a_file() {
    let mut file = tempfile::tempfile().unwrap();
    let contents: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    file.write_all(&contents).unwrap();
    file.rewind().unwrap();
    let mut b = bench_with(file.into(), io::pipe().unwrap().1);
    let mut heard = Vec::new();
    while heard.len() < contents.len() {
        let head = b.receive.add(&[], &[(DATA, 999)]);
        b.receive.kick();
        let (used, length) = b.receive.used();
        assert_eq!(used, head);
        let start = heard.len();
        heard.resize(start + length as usize, 0);
        b.memory.read_slice(&mut heard[start..], GuestAddress(DATA)).unwrap();
    }
    assert!(heard == contents);
    // Nothing more comes, and nothing fails.
    b.receive.add(&[], &[(DATA, 999)]);
    b.receive.kick();
    assert!(!b.transport.needs_reset.load(SeqCst));
}

#[test]
fn the_guest_hears_when_it_has_room() {
    let mut b = bench();
    b.input.write_all(b"root\nsecret").unwrap();
    b.receive.want_interrupt();
    let head = b.receive.add(&[], &[(DATA, 5), (DATA + 64, 5)]);
    b.receive.kick();
    assert_eq!(b.receive.used(), (head, 5));
    assert_eq!(&b.at(DATA), b"root\n");
    wait("an interrupt", || b.transport.interrupts.load(SeqCst) == 1);
    let head = b.receive.add(&[], &[(DATA, 64)]);
    b.receive.kick();
    assert_eq!(b.receive.used(), (head, 6));
    assert_eq!(&b.at(DATA), b"secret");
    let head = b.receive.add(&[], &[(DATA, 64)]);
    b.receive.kick();
    b.input.write_all(b"later").unwrap();
    assert_eq!(b.receive.used(), (head, 5));
    drop(b.input);
    b.receive.add(&[], &[(DATA, 64)]);
    b.receive.kick();
    b.console.reset();
    assert_eq!(b.receive.poll_used(), None, "the end of the input is no input");
}

#[test]
fn an_output_that_nobody_reads_stops_only_the_guest() {
    let mut b = bench();
    let pattern: Vec<u8> = (0..4 << 20).map(|at: u32| at.to_le_bytes()[at as usize % 3]).collect();
    b.memory.write_slice(&pattern, GuestAddress(4 << 20)).unwrap();
    let head = b.transmit.add(&[(4 << 20, 4 << 20)], &[]);
    b.transmit.kick();
    // The thread still serves the other queue.
    let received = b.receive.add(&[], &[(DATA, 64)]);
    b.receive.kick();
    b.input.write_all(b"hello").unwrap();
    assert_eq!(b.receive.used(), (received, 5));
    assert_eq!(b.transmit.poll_used(), None);
    let mut said = vec![0; 4 << 20];
    b.output.read_exact(&mut said).unwrap();
    assert!(said == pattern);
    assert_eq!(b.transmit.used(), (head, 0));
    b.transmit.add(&[(4 << 20, 4 << 20)], &[]);
    b.transmit.kick();
    b.console.reset();
}

#[test]
fn an_output_that_is_gone_costs_only_the_words() {
    let mut b = bench();
    drop(b.output);
    let head = b.transmit.add(&[(DATA, 1 << 20)], &[]);
    b.transmit.kick();
    assert_eq!(b.transmit.used(), (head, 0));
    assert!(!b.transport.needs_reset.load(SeqCst));
}

#[test]
fn files_and_nothing_at_all_will_do() {
    let memory = memory();
    let mut file = tempfile::tempfile().unwrap();
    let null = File::open("/dev/null").unwrap();
    let thread = IoThread::spawn("console", || Ok(())).unwrap();
    let output = Outlet::new("out", file.try_clone().unwrap(), || Ok(())).unwrap();
    let mut console = Console::new(Some(null.into()), output.clone(), thread);
    let mut receive = MockQueue::new(&memory, 0x10_0000, 64);
    let mut transmit = MockQueue::new(&memory, 0x11_0000, 64);
    activate(&mut console, &[(0, &receive), (1, &transmit)], RING_FEATURES).0.unwrap();
    memory.write_slice(b"to a file", GuestAddress(DATA)).unwrap();
    receive.add(&[], &[(DATA + 64, 64)]);
    receive.kick();
    let head = transmit.add(&[(DATA, 9)], &[]);
    transmit.kick();
    assert_eq!(transmit.used(), (head, 0));
    console.reset();
    assert_eq!(output.flush(Duration::from_secs(10), Duration::from_secs(10)), 0);
    let mut said = String::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut said).unwrap();
    assert_eq!(said, "to a file");
}

#[test]
fn the_terminal_changes_its_size() {
    let b = bench();
    b.console.handle().resize(132, 50);
    assert_eq!(b.transport.config_changes.load(SeqCst), 1);
    let mut config = [0xff; 6];
    b.console.read_config(0, &mut config);
    assert_eq!(config, [132, 0, 50, 0, 0xff, 0xff]);
}

#[test]
fn a_broken_queue_asks_for_a_reset() {
    let mut b = bench();
    b.transmit.set_available(1000);
    b.transmit.kick();
    wait("the need of a reset", || b.transport.needs_reset.load(SeqCst));
    b.receive.add(&[], &[(DATA, 64)]);
    b.receive.kick();
    b.input.write_all(b"x").unwrap();
    b.console.reset();
    assert_eq!(b.receive.poll_used(), None);
}
