//! The ledger as one thread sees it, as loom's threads do, and through devices' accesses.

mod model;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryMmap, Permissions};

use super::ledger::{Account, Excess as PagesExcess, Ledger};
use super::testing::Shared;
use super::*;

const PAGE: u64 = 0x1000;

fn memory() -> DeviceMemory {
    let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    DeviceMemory::new(backend, SharedPages::new(GuestAddress(0x10000)), true, ())
}

fn range(start: u64, end: u64) -> Range<GuestAddress> {
    GuestAddress(start)..GuestAddress(end)
}

#[test]
fn only_shared_pages_can_be_touched() {
    let memory = memory();
    assert!(memory.write_slice(b"secret", GuestAddress(0x1000)).is_err());
    memory.iommu().share(GuestAddress(0x1000), 0x1000).unwrap();
    memory.write_slice(b"shared", GuestAddress(0x1000)).unwrap();
    assert!(memory.write_slice(b"astride", GuestAddress(0x1ffc)).is_err());
    memory.iommu().withdraw(GuestAddress(0x1000), 0x1000).unwrap();
    assert!(memory.write_slice(b"gone", GuestAddress(0x1000)).is_err());
}

#[test]
fn ranges_that_wrap_or_are_empty_are_refused() {
    let memory = memory();
    assert!(memory.iommu().share(GuestAddress(u64::MAX), 2).is_err());
    assert!(memory.iommu().withdraw(GuestAddress(0), 0).is_err());
    assert!(memory.write_slice(b"wraps", GuestAddress(u64::MAX - 1)).is_err());
    let mut nothing: [u8; 0] = [];
    // Whatever the answer to an empty access: it is not a panic.
    let _ = memory.read_slice(&mut nothing, GuestAddress(u64::MAX));
    assert!(!memory.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
    // Beyond the map, pages are private for ever.
    memory.iommu().share(GuestAddress(1 << 40), 0x1000).unwrap();
    assert!(!memory.iommu().has(GuestAddress(1 << 40), 1));
}

proptest! {
    /// As a set of pages would have it.
    #[test]
    fn what_is_shared_is_counted_once(
        steps in proptest::collection::vec((0..140_u64, 1..80_u64, any::<bool>()), 0..60)
    ) {
        let ledger = Ledger::new(200);
        ledger.set_limit(Some(100));
        let (mut model, mut peak) = (BTreeSet::new(), 0);
        for (first, count, share) in steps {
            let pages = first..(first + count).min(200);
            let mut claim = ledger.claim(pages.clone());
            prop_assert_eq!(
                claim.shared(&pages),
                pages.clone().filter(|page| model.contains(page)).count() as u64
            );
            if share {
                let after: BTreeSet<_> = model.iter().copied().chain(pages.clone()).collect();
                let new = after.len() > model.len();
                match (after.len() as u64).checked_sub(100) {
                    Some(excess @ 1..) if new => prop_assert_eq!(
                        claim.reserve(std::iter::once(pages.clone())),
                        Err(PagesExcess(excess))
                    ),
                    _ => {
                        claim.reserve(std::iter::once(pages.clone())).unwrap();
                        claim.share(&pages);
                        model = after;
                    }
                }
            } else {
                claim.withdraw(&pages);
                claim.settle();
                model.retain(|page| !pages.contains(page));
            }
            drop(claim);
            peak = peak.max(model.len());
            let (current, peak) = (model.len() as u64, peak as u64);
            prop_assert_eq!(ledger.account(), Account { current, peak, limit: Some(100) });
            for page in 0..200 {
                prop_assert_eq!(
                    ledger.enter(&(page..page + 1)).is_some(),
                    model.contains(&page)
                );
            }
        }
    }
}

#[test]
fn scattered_pages_of_a_large_guest_cost_the_map_and_no_more() {
    const PAGES: u64 = (64 << 30) / PAGE;
    let ledger = Ledger::new(PAGES);
    ledger.set_limit(Some(PAGES / 4));
    let mut refused = None;
    for page in (0..PAGES).step_by(2) {
        let mut claim = ledger.claim(page..page + 1);
        if let Err(excess) = claim.reserve(std::iter::once(page..page + 1)) {
            refused = Some((page, excess));
            break;
        }
        claim.share(&(page..page + 1));
    }
    assert_eq!(refused, Some((PAGES / 2, PagesExcess(1))));
    assert_eq!(ledger.account().current, PAGES / 4);
    assert_eq!(ledger.bytes(), PAGES / 8, "2 MiB for 64 GiB");
}

#[test]
fn access_that_began_before_a_conversion_leaves_nothing() {
    let memory = memory();
    let pages = memory.iommu();
    pages.share(GuestAddress(0), 0x4000).unwrap();
    let buffers = [(GuestAddress(0x800), 0x1000_usize), (GuestAddress(0x1800), 0x800)];
    let loan = Loan::of(&memory, buffers.into_iter()).unwrap();
    assert!(Loan::of(&memory, [(GuestAddress(0x3000), 0x1001)].into_iter()).is_none());
    let mut conversion = pages.convert(range(0, 0x2000));
    conversion.to_private(range(0, 0x1000), &Shared(&memory)).unwrap();
    conversion.to_private(range(0x1000, 0x2000), &Shared(&memory)).unwrap();
    drop(conversion);
    assert_eq!(pages.memory().current, 0x4000, "two shared pages, and two that are lent");
    // The kernel writes after the conversion.
    memory.get_backend().write_slice(&[1; 0x1800], GuestAddress(0x800)).unwrap();
    // The guest shares one of the pages again, and uses it.
    let mut conversion = pages.convert(range(0x1000, 0x2000));
    conversion.reserve(std::iter::once(range(0x1000, 0x2000))).unwrap();
    conversion.to_shared(range(0x1000, 0x2000), &Shared(&memory)).unwrap();
    drop(conversion);
    assert_eq!(pages.memory().current, 0x5000);
    drop(loan);
    assert_eq!(pages.memory().current, 0x3000);
    let mut bytes = [7; 0x2000];
    memory.get_backend().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    assert!(bytes[..0x1000].iter().all(|byte| *byte == 0), "discarded");
    assert!(bytes[0x1000..].iter().all(|byte| *byte == 1), "the guest's");
}

/// Halves whose system calls take as long as the test wants.
struct Slow {
    begun: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Halves for Slow {
    type Error = ();

    fn switch(&self, _: Range<GuestAddress>, _: bool) -> Result<(), ()> {
        Ok(())
    }

    fn discard_other(&self, _: Range<GuestAddress>, _: bool) -> Result<(), ()> {
        self.begun.send(()).unwrap();
        self.go_on.lock().unwrap().recv().map_err(drop)
    }
}

#[test]
fn conversions_wait_for_those_of_the_same_pages_alone() {
    let memory = memory();
    let pages = memory.iommu();
    pages.share(GuestAddress(0), 0x4000).unwrap();
    let ((begun, has_begun), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
    let slow = Slow { begun, go_on: Mutex::new(goes_on) };
    let (same_done, same_is_done) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut conversion = pages.convert(range(0, 0x2000));
            conversion.to_private(range(0, 0x2000), &slow).unwrap();
        });
        has_begun.recv().unwrap();
        // The discard goes on; other pages and devices do not wait for it.
        pages
            .convert(range(0x2000, 0x3000))
            .to_private(range(0x2000, 0x3000), &Shared(&memory))
            .unwrap();
        memory.write_slice(b"shared", GuestAddress(0x3000)).unwrap();
        scope.spawn(move || {
            drop(pages.convert(range(0x1000, 0x2000)));
            same_done.send(()).unwrap();
        });
        assert!(same_is_done.recv_timeout(Duration::from_millis(50)).is_err());
        go_on.send(()).unwrap();
        same_is_done.recv().unwrap();
    });
    assert_eq!(pages.memory().current, 0x1000);
}

#[test]
fn refused_conversions_change_nothing() {
    struct Refusing;
    impl Halves for Refusing {
        type Error = ();
        fn switch(&self, _: Range<GuestAddress>, _: bool) -> Result<(), ()> {
            Err(())
        }
        fn discard_other(&self, _: Range<GuestAddress>, _: bool) -> Result<(), ()> {
            Ok(())
        }
    }
    let memory = memory();
    let pages = memory.iommu();
    pages.set_limit(Some(0x2000));
    pages.share(GuestAddress(0), 0x1000).unwrap();
    let before = pages.memory();
    let mut conversion = pages.convert(range(0, 0x4000));
    conversion.to_private(range(0, 0x1000), &Refusing).unwrap_err();
    let excess = conversion.reserve([range(0, 0x2000), range(0x3000, 0x4000)].into_iter());
    assert_eq!(excess, Err(Excess { bytes: 0x1000, limit: 0x2000 }));
    conversion.reserve(std::iter::once(range(0, 0x2000))).unwrap();
    conversion.to_shared(range(0, 0x2000), &Refusing).unwrap_err();
    drop(conversion);
    assert_eq!(pages.memory(), SharedMemory { peak: 0x2000, ..before });
    assert!(pages.has(GuestAddress(0), 0x1000) && !pages.has(GuestAddress(0), 0x1001));
}

#[test]
fn subscribers_are_told_before_a_conversion_ends() {
    #[derive(Default)]
    struct Told(Mutex<Vec<(bool, Range<GuestAddress>)>>);
    impl Subscriber for Told {
        fn shared(&self, range: Range<GuestAddress>) {
            self.0.lock().unwrap().push((true, range));
        }
        fn withdrawn(&self, range: Range<GuestAddress>) {
            self.0.lock().unwrap().push((false, range));
        }
    }
    let memory = memory();
    let (pages, told) = (memory.iommu(), Arc::new(Told::default()));
    pages.subscribe(told.clone());
    let part = range(0x1000, 0x3000);
    let mut conversion = pages.convert(range(0, 0x4000));
    conversion.reserve(std::iter::once(part.clone())).unwrap();
    conversion.to_shared(part.clone(), &Shared(&memory)).unwrap();
    assert_eq!(*told.0.lock().unwrap(), [(true, part.clone())]);
    conversion.to_private(part.clone(), &Shared(&memory)).unwrap();
    // Nobody hears of what is private already.
    conversion.to_private(part.clone(), &Shared(&memory)).unwrap();
    assert_eq!(*told.0.lock().unwrap(), [(true, part.clone()), (false, part)]);
}

#[test]
fn translations_last_until_the_guest_takes_pages_back() {
    let memory = memory();
    let pages = memory.iommu();
    pages.share(GuestAddress(0), 0x1000).unwrap();
    let generation = pages.generation();
    pages.share(GuestAddress(0x1000), 0x1000).unwrap();
    assert!(pages.enter(generation).is_some());
    pages.withdraw(GuestAddress(0x1000), 0x1000).unwrap();
    assert!(pages.enter(generation).is_none() && pages.enter(pages.generation()).is_some());
}
