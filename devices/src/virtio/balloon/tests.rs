use std::sync::atomic::Ordering::SeqCst;

use vm_memory::Bytes;

use super::*;
use crate::memory::DeviceMemory;
use crate::virtio::testing::{MockQueue, MockTransport, RING_FEATURES, activate, memory, wait};

const DATA: u64 = 0x20_0000;

/// Remembers what was given back.
#[derive(Default)]
struct Given(Mutex<Vec<(u64, u64)>>);

impl Discard for Given {
    fn discard(&self, start: GuestAddress, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().push((start.0, len));
        if start.0 == 0 { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }
}

struct Bench {
    memory: Arc<DeviceMemory>,
    balloon: Balloon,
    given: Arc<Given>,
    queues: [MockQueue; 3],
    transport: Arc<MockTransport>,
}

fn bench() -> Bench {
    let (memory, given) = (memory(), Arc::new(Given::default()));
    let thread = IoThread::spawn("balloon", || Ok(())).unwrap();
    let mut balloon = Balloon::new(given.clone(), thread);
    let queues = [0, 1, 2].map(|at| MockQueue::new(&memory, 0x10_0000 + at * 0x1_0000, 128));
    let [a, b, c] = &queues;
    let (result, transport) = activate(&mut balloon, &[(0, a), (1, b), (2, c)], RING_FEATURES);
    result.unwrap();
    Bench { memory, balloon, given, queues, transport }
}

impl Bench {
    /// Puts a request for `pages` into queue `queue`.
    fn request(&mut self, queue: usize, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        let queue = &mut self.queues[queue];
        queue.add(&[(DATA, u32::try_from(bytes.len()).unwrap())], &[]);
        queue.kick();
    }

    fn given(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.given.0.lock().unwrap())
    }
}

#[test]
fn inflated_pages_go_back_in_runs() {
    let mut b = bench();
    let pages: Vec<u32> = (0x400..0x600).rev().collect();
    b.request(0, &pages);
    assert_eq!(b.queues[0].used(), (0, 0));
    assert_eq!(b.given(), [(0x40_0000, 0x20_0000)]);
    b.request(1, &pages);
    assert_eq!(b.queues[1].used(), (0, 0));
    assert_eq!(b.given(), [], "deflating gives nothing back");
    b.request(0, &[0, 0x500]);
    assert_eq!(b.queues[0].used(), (1, 0));
    assert_eq!(b.given(), [(0, 0x1000), (0x50_0000, 0x1000)], "a refusal of the host is no end");
}

#[test]
fn reported_pages_go_back_whole() {
    let mut b = bench();
    let report = &mut b.queues[2];
    report.add(&[], &[(0x40_0000, 0x20_0000), (0x80_0ffe, 0x2001), (0x90_0001, 0x1ffe)]);
    report.kick();
    assert_eq!(report.used(), (0, 0));
    assert_eq!(b.given(), [(0x40_0000, 0x20_0000), (0x80_1000, 0x1000)]);
}

#[test]
fn the_size_is_asked_for_and_told() {
    let mut b = bench();
    let handle = b.balloon.handle();
    handle.set_target(0x1234);
    assert_eq!(b.transport.config_changes.load(SeqCst), 1);
    let mut config = [0xff; 12];
    b.balloon.read_config(0, &mut config);
    assert_eq!(config, [0x34, 0x12, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    b.balloon.write_config(4, &0x1000_u32.to_le_bytes());
    b.balloon.write_config(0, &[9; 4]);
    b.balloon.write_config(u64::MAX, &[9; 8]);
    assert_eq!(handle.actual(), 0x1000);
    b.balloon.read_config(2, &mut config[..4]);
    assert_eq!(config[..4], [0, 0, 0, 0x10]);
    b.balloon.reset();
    handle.set_target(1);
    assert_eq!((handle.actual(), b.transport.config_changes.load(SeqCst)), (0, 1));
}

#[test]
fn requests_that_are_none_ask_for_a_reset() {
    for pages in [&[0x1000_u32, 0x1001][..], &[u32::MAX], &[1; 4097]] {
        let mut b = bench();
        b.request(0, pages);
        wait("the need of a reset", || b.transport.needs_reset.load(SeqCst));
        assert_eq!(b.given(), []);
        b.request(1, &[1]);
        b.balloon.reset();
        assert_eq!(b.queues[1].poll_used(), None, "no queue is served any more");
    }
    let mut b = bench();
    b.queues[0].add(&[(DATA, 3)], &[]);
    b.queues[0].kick();
    wait("the need of a reset", || b.transport.needs_reset.load(SeqCst));
}
