//! The conversion ledger: which pages a guest shares with the host, which of them devices use at the
//! moment, and what they cost the host.
//!
//! ```text
//! conversion to private   claim ─► withdraw ─► (discard the shared half) ─► settle
//! conversion to shared    claim ─► reserve ─► (discard the private half) ─► share
//! device, for a moment    enter ─► use
//! device, for longer      lend ─► use ─► repay ─► (discard what has become private meanwhile)
//! ```
//!
//! Claims keep conversions of the same pages apart; those of other pages run beside each other, with
//! their system calls. An access for a moment ends before `withdraw` does. A longer one, as a read
//! from a disk, cannot be waited for: it may touch the shared half of a page after that half was
//! discarded, and the host gives memory for it. Such pages stay in the account until the access ends,
//! and are discarded again then.
//!
//! All of it is in units of pages. `tests` has a model of it for loom, which compiles this file a
//! second time with loom's types in `super::sync`.

use std::collections::BTreeMap;
use std::ops::Range;

use super::sync::{
    AtomicU64, Condvar, Mutex, MutexGuard, Ordering, PoisonError, RwLock, RwLockReadGuard,
};

/// Pages by number, from guest-physical address 0 on.
pub(super) type Pages = Range<u64>;

/// Bits of a word of the map.
const BITS: u64 = 64;

/// Memory that a guest shares with the host, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Shared pages, and private ones whose shared half devices may still touch.
    pub(super) current: u64,
    /// The most that it ever was.
    pub(super) peak: u64,
    /// The most that sharing may make it.
    pub(super) limit: Option<u64>,
}

/// The ledger of one guest.
#[derive(Debug)]
pub(super) struct Ledger {
    /// A bit for each page: it is shared. However a guest scatters its shared pages, they take no more.
    map: Box<[AtomicU64]>,
    /// Counts up when pages are withdrawn.
    generation: AtomicU64,
    /// Read by each access of a device while it lasts.
    gate: RwLock<()>,
    state: Mutex<State>,
    /// A claim has ended.
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    claims: Vec<Pages>,
    loans: BTreeMap<u64, Loan>,
    next_loan: u64,
    account: Account,
}

/// Pages that a device uses until it says otherwise.
#[derive(Debug)]
struct Loan {
    pages: Vec<Pages>,
    /// Some of them were withdrawn since, and all of them are in the account.
    stale: bool,
}

/// Pages that one conversion has for itself.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    ledger: &'a Ledger,
    pages: Pages,
    /// Pages in the account that are not shared yet.
    reserved: u64,
    /// Pages in the account that are not shared any more.
    withdrawn: u64,
}

/// An access of a device that lasts as long as this.
#[derive(Debug)]
pub(super) struct Access<'a> {
    _gate: RwLockReadGuard<'a, ()>,
}

/// Pages beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Excess(pub(super) u64);

impl Ledger {
    /// The ledger of a guest whose memory ends before page `end`; none is shared.
    pub(super) fn new(end: u64) -> Self {
        Self {
            map: (0..end.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(),
            generation: AtomicU64::new(0),
            gate: RwLock::new(()),
            state: Mutex::default(),
            released: Condvar::new(),
        }
    }

    /// Bytes of the map.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        size_of_val(&*self.map) as u64
    }

    pub(super) fn account(&self) -> Account {
        self.lock().account
    }

    pub(super) fn set_limit(&self, limit: Option<u64>) {
        self.lock().account.limit = limit;
    }

    /// Changes when pages are withdrawn: what a device found to be shared is shared for as long as
    /// this stays the same.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Waits until nobody else converts any of `pages`, and keeps others from it.
    pub(super) fn claim(&self, pages: Pages) -> Claim<'_> {
        let mut state = self.lock();
        while state.claims.iter().any(|claimed| overlap(claimed, &pages)) {
            state = self.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.claims.push(pages.clone());
        Claim { ledger: self, pages, reserved: 0, withdrawn: 0 }
    }

    /// An access to `pages` for a moment: no conversion to private passes `withdraw` before it ends.
    /// `None` if some are not shared.
    pub(super) fn enter(&self, pages: &Pages) -> Option<Access<'_>> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.are_shared(pages).then_some(Access { _gate: gate })
    }

    /// An access to pages that were shared in `generation`. `None` if that is over.
    pub(super) fn enter_again(&self, generation: u64) -> Option<Access<'_>> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        (self.generation() == generation).then_some(Access { _gate: gate })
    }

    /// An access that lasts until [`Ledger::repay`], whatever becomes of the pages. `None` if some are
    /// not shared.
    pub(super) fn lend(&self, pages: Vec<Pages>) -> Option<u64> {
        // Before `withdraw` clears the first bit, or after it has cleared all.
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if !pages.iter().all(|pages| self.are_shared(pages)) {
            return None;
        }
        let mut state = self.lock();
        let number = state.next_loan;
        state.next_loan += 1;
        state.loans.insert(number, Loan { pages, stale: false });
        Some(number)
    }

    /// The access is over. Calls `discard` for pages that it may have touched after they became
    /// private, while no conversion can change them.
    pub(super) fn repay(&self, number: u64, mut discard: impl FnMut(Pages)) {
        let loan = self.lock().loans.remove(&number);
        let Some(Loan { pages, .. }) = loan.filter(|loan| loan.stale) else { return };
        for pages in &pages {
            let claim = self.claim(pages.clone());
            self.for_each_private(pages, &mut discard);
            drop(claim);
        }
        let mut state = self.lock();
        state.account.current = state.account.current.saturating_sub(total(&pages));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all of `pages` are shared.
    fn are_shared(&self, pages: &Pages) -> bool {
        !pages.is_empty()
            && words(pages).all(|(index, mask)| {
                let word = self.map.get(index);
                word.is_some_and(|word| word.load(Ordering::Acquire) & mask == mask)
            })
    }

    /// How many of `pages` are shared.
    fn count(&self, pages: &Pages) -> u64 {
        let shared = words(pages).filter_map(|(index, mask)| {
            Some(u64::from((self.map.get(index)?.load(Ordering::Acquire) & mask).count_ones()))
        });
        shared.sum()
    }

    /// Calls `each` with the runs of `pages` that are private.
    fn for_each_private(&self, pages: &Pages, each: &mut impl FnMut(Pages)) {
        let mut run: Option<Pages> = None;
        for page in pages.clone() {
            match (self.are_shared(&(page..page + 1)), &mut run) {
                (true, _) => run.take().into_iter().for_each(&mut *each),
                (false, Some(run)) => run.end = page + 1,
                (false, none) => *none = Some(page..page + 1),
            }
        }
        run.into_iter().for_each(each);
    }
}

impl Claim<'_> {
    /// How many of `pages`, which are claimed, are shared.
    pub(super) fn shared(&self, pages: &Pages) -> u64 {
        debug_assert!(within(pages, &self.pages));
        self.ledger.count(pages)
    }

    /// Enters `parts` of the claim in the account, before they are shared. What the claim does not
    /// share leaves the account with it.
    ///
    /// # Errors
    /// If that is more than the limit; then nothing changes.
    pub(super) fn reserve(&mut self, parts: impl Iterator<Item = Pages>) -> Result<(), Excess> {
        let more = parts.map(|part| part.end - part.start - self.shared(&part)).sum();
        let mut state = self.ledger.lock();
        let Account { current, peak, limit } = &mut state.account;
        let after = current.saturating_add(more);
        if let Some(excess @ 1..) = limit.and_then(|limit| after.checked_sub(limit))
            && more > 0
        {
            return Err(Excess(excess));
        }
        *current = after;
        *peak = after.max(*peak);
        self.reserved += more;
        Ok(())
    }

    /// Devices may use `pages`, which were reserved, from now on.
    pub(super) fn share(&mut self, pages: &Pages) {
        debug_assert!(within(pages, &self.pages));
        let mut new = 0;
        for (index, mask) in words(pages) {
            if let Some(word) = self.ledger.map.get(index) {
                let before = word.fetch_or(mask, Ordering::AcqRel);
                new += u64::from((mask & !before).count_ones());
            }
        }
        self.reserved = self.reserved.saturating_sub(new);
    }

    /// Takes `pages` from devices. Once this returns, no access for a moment goes on, and pages of
    /// longer ones are in the account until they end.
    pub(super) fn withdraw(&mut self, pages: &Pages) {
        debug_assert!(within(pages, &self.pages));
        let gate = self.ledger.gate.write();
        self.ledger.generation.fetch_add(1, Ordering::AcqRel);
        for (index, mask) in words(pages) {
            if let Some(word) = self.ledger.map.get(index) {
                let before = word.fetch_and(!mask, Ordering::AcqRel);
                self.withdrawn += u64::from((mask & before).count_ones());
            }
        }
        drop(gate);
        let mut state = self.ledger.lock();
        let State { loans, account, .. } = &mut *state;
        for loan in loans.values_mut() {
            if !loan.stale && loan.pages.iter().any(|lent| overlap(lent, pages)) {
                loan.stale = true;
                account.current = account.current.saturating_add(total(&loan.pages));
                account.peak = account.peak.max(account.current);
            }
        }
    }

    /// The shared half of all that was withdrawn is discarded. Without this call it stays in the
    /// account for ever, as it does on the host.
    pub(super) fn settle(&mut self) {
        let settled = std::mem::take(&mut self.withdrawn);
        let mut state = self.ledger.lock();
        state.account.current = state.account.current.saturating_sub(settled);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        if let Some(at) = state.claims.iter().position(|pages| *pages == self.pages) {
            state.claims.swap_remove(at);
        }
        state.account.current = state.account.current.saturating_sub(self.reserved);
        drop(state);
        self.ledger.released.notify_all();
    }
}

/// The words of the map that `pages` are in, each with its bits of them.
fn words(pages: &Pages) -> impl Iterator<Item = (usize, u64)> + use<> {
    let Pages { start, end } = *pages;
    let words = if start < end { start / BITS..end.div_ceil(BITS) } else { 0..0 };
    words.map(move |word| {
        let first = start.saturating_sub(word * BITS);
        let last = (end - word * BITS).min(BITS);
        let mask = u64::MAX << first & u64::MAX >> (BITS - last);
        (usize::try_from(word).unwrap_or(usize::MAX), mask)
    })
}

fn overlap(a: &Pages, b: &Pages) -> bool {
    a.start < b.end && b.start < a.end
}

fn within(inner: &Pages, outer: &Pages) -> bool {
    inner.is_empty() || outer.start <= inner.start && inner.end <= outer.end
}

fn total(pages: &[Pages]) -> u64 {
    pages.iter().map(|pages| pages.end - pages.start).sum()
}
