//! The ledger under loom: all orders in which a few threads can meet.

/// Loom's primitives, for the ledger that is compiled here.
mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
}

#[allow(dead_code, reason = "the models use a part")]
#[allow(clippy::duplicate_mod, reason = "once with the primitives of std, once with loom's")]
#[path = "../ledger.rs"]
mod ledger;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use ledger::{Ledger, Pages};

const PAGE: Pages = 0..1;

/// One page of a guest.
struct Guest {
    ledger: Ledger,
    /// The host has given memory for the page's shared half.
    allocated: AtomicBool,
    /// The half that KVM maps.
    private: AtomicBool,
}

impl Guest {
    /// Its page is shared.
    fn new() -> Arc<Self> {
        let guest = Self {
            ledger: Ledger::new(2),
            allocated: AtomicBool::new(true),
            private: AtomicBool::new(true),
        };
        guest.share().unwrap();
        Arc::new(guest)
    }

    fn share(&self) -> Result<(), ()> {
        let mut claim = self.ledger.claim(PAGE);
        claim.reserve(std::iter::once(PAGE)).map_err(drop)?;
        self.private.store(false, Ordering::SeqCst);
        claim.share(&PAGE);
        Ok(())
    }

    fn take_back(&self) {
        let mut claim = self.ledger.claim(PAGE);
        self.private.store(true, Ordering::SeqCst);
        claim.withdraw(&PAGE);
        self.allocated.store(false, Ordering::SeqCst);
        claim.settle();
    }

    fn is_shared(&self) -> bool {
        self.ledger.enter(&PAGE).is_some()
    }

    /// Whether map, attribute and account agree, and nothing is allocated outside of the account.
    fn check(&self) {
        let shared = self.is_shared();
        assert_eq!(self.private.load(Ordering::SeqCst), !shared);
        assert_eq!(self.ledger.account().current, u64::from(shared));
        assert!(shared || !self.allocated.load(Ordering::SeqCst), "memory outside of the account");
    }
}

fn beside(
    guest: &Arc<Guest>,
    work: impl FnOnce(&Guest) + Send + 'static,
) -> thread::JoinHandle<()> {
    let guest = guest.clone();
    thread::spawn(move || work(&guest))
}

#[test]
fn access_for_a_moment_ends_before_the_discard() {
    loom::model(|| {
        let guest = Guest::new();
        let device = beside(&guest, |guest| {
            if let Some(access) = guest.ledger.enter(&PAGE) {
                guest.allocated.store(true, Ordering::SeqCst);
                drop(access);
            }
        });
        guest.take_back();
        device.join().unwrap();
        guest.check();
    });
}

#[test]
fn access_with_an_old_translation_ends_before_the_discard() {
    loom::model(|| {
        let guest = Guest::new();
        let generation = guest.ledger.generation();
        let device = beside(&guest, move |guest| {
            if let Some(access) = guest.ledger.enter_again(generation) {
                guest.allocated.store(true, Ordering::SeqCst);
                drop(access);
            }
        });
        guest.take_back();
        assert!(guest.ledger.enter_again(generation).is_none());
        device.join().unwrap();
        guest.check();
    });
}

#[test]
fn access_that_lasts_is_in_the_account_until_it_ends() {
    loom::model(|| {
        let guest = Guest::new();
        let device = beside(&guest, |guest| {
            if let Some(number) = guest.ledger.lend(vec![PAGE]) {
                guest.allocated.store(true, Ordering::SeqCst);
                assert!(guest.ledger.account().current > 0);
                guest.ledger.repay(number, |_| guest.allocated.store(false, Ordering::SeqCst));
            }
        });
        guest.take_back();
        device.join().unwrap();
        guest.check();
    });
}

#[test]
fn page_that_is_shared_again_keeps_what_the_guest_wrote() {
    loom::model(|| {
        let guest = Guest::new();
        let number = guest.ledger.lend(vec![PAGE]).unwrap();
        guest.take_back();
        let device = beside(&guest, move |guest| {
            guest.ledger.repay(number, |_| guest.allocated.store(false, Ordering::SeqCst));
        });
        guest.share().unwrap();
        // The guest writes.
        guest.allocated.store(true, Ordering::SeqCst);
        device.join().unwrap();
        assert!(guest.is_shared() && guest.allocated.load(Ordering::SeqCst));
        guest.check();
    });
}

#[test]
fn conversions_of_one_page_come_one_after_the_other() {
    loom::model(|| {
        let guest = Guest::new();
        let other = beside(&guest, Guest::take_back);
        guest.take_back();
        guest.share().unwrap();
        other.join().unwrap();
        guest.check();
    });
}

#[test]
fn vcpus_that_share_at_once_stay_within_the_limit() {
    loom::model(|| {
        let ledger = Arc::new(Ledger::new(2));
        ledger.set_limit(Some(1));
        let share = |ledger: &Ledger, page: u64| {
            let mut claim = ledger.claim(page..page + 1);
            let reserved = claim.reserve(std::iter::once(page..page + 1)).is_ok();
            if reserved {
                claim.share(&(page..page + 1));
            }
            reserved
        };
        let other = ledger.clone();
        let other = thread::spawn(move || share(&other, 1));
        let both = [share(&ledger, 0), other.join().unwrap()];
        assert_eq!(both.iter().filter(|shared| **shared).count(), 1);
        assert_eq!(ledger.account().peak, 1);
    });
}
