use std::sync::atomic::Ordering as O;

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::virtio::testing::{
    Descriptor, INDIRECT, MockQueue, MockTransport, NEXT, RING_FEATURES, WRITE, memory,
    write_descriptor,
};

const BASE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

struct Bench {
    driver: MockQueue,
    transport: Arc<MockTransport>,
    queue: Virtqueue,
}

fn bench(size: u16, features: u64) -> Bench {
    let memory = memory();
    let driver = MockQueue::new(&memory, BASE, size);
    let transport = Arc::new(MockTransport::default());
    let queue = Virtqueue::new(driver.active(0, &transport), memory, features);
    Bench { driver, transport, queue }
}

fn fault(bench: &mut Bench) -> FaultReason {
    bench.queue.next_chain().unwrap_err().reason
}

#[test]
fn chains_come_in_order_and_go_back() {
    let mut b = bench(8, RING_FEATURES);
    assert!(b.queue.next_chain().unwrap().is_none());
    let memory = Arc::clone(&b.driver.memory);
    memory.write_slice(b"hello, world", GuestAddress(DATA)).unwrap();
    for round in 0..100_u32 {
        let head = b.driver.add(&[(DATA, 5), (DATA + 5, 7)], &[(DATA + 0x1000, 16)]);
        let chain = b.queue.next_chain().unwrap().unwrap();
        assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (head, 12, 16));
        let mut text = [0; 6];
        chain.read(&memory, 3, &mut text).unwrap();
        assert_eq!(&text, b"lo, wo");
        assert!(chain.read(&memory, 7, &mut text).is_err());
        chain.write(&memory, 4, b"answer").unwrap();
        assert!(chain.write(&memory, 11, b"answer").is_err());
        b.queue.complete(chain, round).unwrap();
        assert_eq!(b.driver.used(), (head, round));
    }
    memory.read_slice(&mut [0; 4], GuestAddress(DATA)).unwrap();
    let mut answer = [0; 6];
    memory.read_slice(&mut answer, GuestAddress(DATA + 0x1004)).unwrap();
    assert_eq!(&answer, b"answer");
    assert_eq!(b.queue.spare.len(), 1, "lists of buffers are used again");
}

#[test]
fn indirect_tables_follow_direct_descriptors() {
    let mut b = bench(8, RING_FEATURES);
    let table = DATA + 0x8000;
    b.driver.set(0, Descriptor { address: DATA, len: 4, flags: NEXT, next: 1 });
    b.driver.set(1, Descriptor { address: table, len: 32, flags: INDIRECT | WRITE, next: 9 });
    let memory = &b.driver.memory;
    write_descriptor(memory, table, Descriptor { address: DATA, len: 4, flags: NEXT, next: 1 });
    write_descriptor(
        memory,
        table + 16,
        Descriptor { address: DATA, len: 4, flags: WRITE, next: 0 },
    );
    b.driver.offer(0);
    let chain = b.queue.next_chain().unwrap().unwrap();
    assert_eq!((chain.readable().len(), chain.writable().len()), (2, 1));
}

#[test]
fn broken_chains_are_refused_by_name() {
    let one = |descriptor| {
        let mut b = bench(8, RING_FEATURES);
        b.driver.set(0, descriptor);
        b.driver.offer(0);
        fault(&mut b)
    };
    let d = |address, len, flags, next| Descriptor { address, len, flags, next };
    assert_eq!(one(d(DATA, 4, NEXT, 0)), FaultReason::ChainLength(8));
    assert_eq!(one(d(DATA, 4, NEXT, 8)), FaultReason::Index { index: 8, size: 8 });
    assert_eq!(one(d(DATA, 0, 0, 0)), FaultReason::EmptyBuffer);
    assert_eq!(one(d(u64::MAX, 4, 0, 0)), FaultReason::Buffer(4));
    assert_eq!(one(d((16 << 20) - 2, 4, 0, 0)), FaultReason::Buffer(4));
    assert_eq!(one(d(DATA, 16, INDIRECT | NEXT, 0)), FaultReason::IndirectNested);
    assert_eq!(one(d(DATA, 24, INDIRECT, 0)), FaultReason::IndirectTable(24));
    assert_eq!(one(d(DATA, 0, INDIRECT, 0)), FaultReason::IndirectTable(0));
    assert_eq!(one(d(DATA, 16 * 9, INDIRECT, 0)), FaultReason::IndirectTable(144));
    assert_eq!(one(d(u64::MAX - 15, 16, INDIRECT, 0)), FaultReason::Descriptor);

    let mut b = bench(8, RING_FEATURES);
    b.driver.add(&[], &[(DATA, 4), (DATA, 4)]);
    b.driver.set(1, d(DATA, 4, 0, 0));
    assert_eq!(fault(&mut b), FaultReason::Order);

    let mut b = bench(8, RING_FEATURES);
    write_descriptor(&b.driver.memory, DATA, d(DATA, 16, INDIRECT, 0));
    b.driver.set(0, d(DATA, 16, INDIRECT, 0));
    b.driver.offer(0);
    assert_eq!(fault(&mut b), FaultReason::IndirectNested);

    let mut b = bench(8, 0);
    b.driver.set(0, d(DATA, 16, INDIRECT, 0));
    b.driver.offer(0);
    assert_eq!(fault(&mut b), FaultReason::IndirectNotNegotiated);

    let mut b = bench(8, RING_FEATURES);
    b.driver.offer(8);
    assert_eq!(fault(&mut b), FaultReason::Index { index: 8, size: 8 });
}

#[test]
fn private_pages_are_refused_with_their_address() {
    let mut b = bench(8, RING_FEATURES);
    b.driver.memory.iommu().withdraw(GuestAddress(DATA + 0x1000), 0x1000).unwrap();
    b.driver.add(&[(DATA + 0xffe, 4)], &[]);
    let fault = b.queue.next_chain().unwrap_err();
    assert_eq!((fault.address, fault.reason), (DATA + 0xffe, FaultReason::Buffer(4)));

    let mut b = bench(8, RING_FEATURES);
    b.driver.add(&[(DATA, 4)], &[(DATA, 4)]);
    let chain = b.queue.next_chain().unwrap().unwrap();
    b.driver.memory.iommu().withdraw(GuestAddress(BASE), 0x10000).unwrap();
    assert_eq!(fault_of(b.queue.complete(chain, 0)), FaultReason::Ring);
    assert_eq!(fault_of(b.queue.enable_notification()), FaultReason::Ring);
    assert_eq!(fault_of(b.queue.next_chain()), FaultReason::Ring);
}

fn fault_of<T>(result: Result<T, QueueFault>) -> FaultReason {
    result.err().unwrap().reason
}

#[test]
fn the_available_index_may_not_run_ahead() {
    let mut b = bench(8, RING_FEATURES);
    b.driver.set_available(9);
    assert_eq!(fault(&mut b), FaultReason::AvailableIndex { by: 9, size: 8 });

    let mut b = bench(8, RING_FEATURES);
    b.driver.set(0, Descriptor { address: DATA, len: 4, flags: 0, next: 0 });
    for _ in 0..8 {
        b.driver.offer(0);
        let _ = b.queue.next_chain().unwrap().unwrap();
    }
    b.driver.offer(0);
    assert_eq!(fault(&mut b), FaultReason::InFlight(8));
}

#[test]
fn interrupts_only_where_the_driver_wants_them() {
    let mut b = bench(8, RING_FEATURES);
    let serve = |b: &mut Bench| {
        b.driver.add(&[(DATA, 4)], &[]);
        let chain = b.queue.next_chain().unwrap().unwrap();
        b.queue.complete(chain, 0).unwrap();
        b.queue.notify_if_needed().unwrap();
        b.driver.used();
        b.transport.interrupts.load(O::SeqCst)
    };
    assert_eq!(serve(&mut b), 1);
    assert_eq!(serve(&mut b), 1, "the driver did not ask again");
    b.driver.want_interrupt();
    assert_eq!(serve(&mut b), 2);
    b.queue.notify_if_needed().unwrap();
    assert_eq!(b.transport.interrupts.load(O::SeqCst), 2, "nothing was completed since");

    let mut b = bench(8, 0);
    assert_eq!(serve(&mut b), 1);
    let flags = GuestAddress(b.driver.available_ring());
    b.driver.memory.write_obj(NO_INTERRUPT, flags).unwrap();
    assert_eq!(serve(&mut b), 1);
}

proptest! {
    /// Whatever lies in the rings and tables, a chain is refused or lies in shared memory.
    #[test]
    fn any_rings(
        descriptors in prop::collection::vec(
            (prop_oneof![DATA - 64..DATA + 0x8000, any::<u64>()], prop_oneof![0..5000_u32, any::<u32>()],
             prop_oneof![0..8_u16, any::<u16>()], 0..20_u16), 16),
        heads in prop::collection::vec(0..17_u16, 16),
        available in 0..20_u16,
        hole in DATA..DATA + 0x8000,
    ) {
        let mut b = bench(16, RING_FEATURES);
        b.driver.memory.iommu().withdraw(GuestAddress(hole), 0x1000).unwrap();
        for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
            b.driver.set(index, Descriptor { address, len, flags, next });
        }
        for head in heads {
            b.driver.offer(head);
        }
        b.driver.set_available(available);
        while let Ok(Some(chain)) = b.queue.next_chain() {
            prop_assert!(chain.buffers.len() <= 16);
            let total: u64 = chain.buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
            prop_assert_eq!(total, u64::from(chain.readable_len()) + u64::from(chain.writable_len()));
            for buffer in &chain.buffers {
                let end = buffer.address.0 + u64::from(buffer.len);
                prop_assert!(end <= 16 << 20);
                prop_assert!(end <= hole || buffer.address.0 >= hole + 0x1000);
            }
            b.queue.complete(chain, 0).unwrap();
        }
    }
}
