//! Which pages the guest shares with the host, and how that changes.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::iommu::{Error, Iommu, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Permissions};

use super::ledger::{Access, Account, Claim, Ledger, Pages};

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// Memory that a guest shares with the host, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedMemory {
    /// Now: shared pages, and private ones whose shared half a device may still touch.
    pub current: u64,
    /// The most that it ever was.
    pub peak: u64,
    /// The most that it may be, if there is a limit.
    pub limit: Option<u64>,
}

/// Sharing would take the guest this many bytes beyond its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    /// By how much it is too much.
    pub bytes: u64,
    /// The limit.
    pub limit: u64,
}

/// Keeps translations or mappings of guest memory (vhost, VFIO), and learns of each conversion before
/// the guest goes on.
pub trait Subscriber: Send + Sync {
    /// The guest shares this range.
    fn shared(&self, range: Range<GuestAddress>);

    /// The guest takes this range back; nothing may use its shared half when this returns.
    fn withdrawn(&self, range: Range<GuestAddress>);
}

/// The two halves of a guest's pages.
pub trait Halves {
    /// Why one could not be changed.
    type Error;

    /// The guest uses the private or the shared half from now on.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing has changed.
    fn switch(&self, range: Range<GuestAddress>, private: bool) -> Result<(), Self::Error>;

    /// Gives the half that is not used any more back to the host: the shared one if `private`.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn discard_other(&self, range: Range<GuestAddress>, private: bool) -> Result<(), Self::Error>;
}

/// Which guest-physical ranges are shared with the host. Starts with none.
///
/// [`Conversion`] changes it; devices read it through [`super::DeviceMemory`]: an access that touches
/// a private page fails, instead of reading the zeroes that the host finds in its own half of that page.
pub struct SharedPages {
    pub(super) ledger: Ledger,
    /// All addresses are their own; which of them may be used, the ledger tells.
    identity: Iotlb,
    subscribers: RwLock<Vec<Arc<dyn Subscriber>>>,
}

impl std::fmt::Debug for SharedPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedPages").field("memory", &self.memory()).finish_non_exhaustive()
    }
}

/// Pages while their half changes: no other conversion touches them.
pub struct Conversion<'a> {
    pages: &'a SharedPages,
    claim: Claim<'a>,
}

impl SharedPages {
    /// For a guest whose memory ends at `end`. The map takes a bit for each page below.
    #[must_use]
    pub fn new(end: GuestAddress) -> Self {
        let end = end.0.div_ceil(PAGE);
        let mut identity = Iotlb::new();
        let length = usize::try_from(end.saturating_mul(PAGE)).unwrap_or(usize::MAX);
        if length > 0 {
            let nothing = GuestAddress(0);
            let mapped = identity.set_mapping(nothing, nothing, length, Permissions::ReadWrite);
            debug_assert!(mapped.is_ok());
        }
        Self { ledger: Ledger::new(end), identity, subscribers: RwLock::default() }
    }

    /// Lets the guest share no more than `limit` bytes.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.ledger.set_limit(limit.map(|bytes| bytes / PAGE));
    }

    /// The account of what the guest shares.
    #[must_use]
    pub fn memory(&self) -> SharedMemory {
        let Account { current, peak, limit } = self.ledger.account();
        let bytes = |pages: u64| pages.saturating_mul(PAGE);
        SharedMemory { current: bytes(current), peak: bytes(peak), limit: limit.map(bytes) }
    }

    /// Changes when the guest takes pages back: a translation that was made before such a change is
    /// to be made again.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.ledger.generation()
    }

    /// An access with translations of `generation`, which needs no look at the map. `None` if they are
    /// to be made again.
    #[must_use]
    pub fn enter(&self, generation: u64) -> Option<Translation<'_>> {
        let access = self.ledger.enter_again(generation)?;
        Some(Translation { identity: &self.identity, _access: access })
    }

    /// Tells `subscriber` of each conversion from now on.
    pub fn subscribe(&self, subscriber: Arc<dyn Subscriber>) {
        self.subscribers.write().unwrap_or_else(PoisonError::into_inner).push(subscriber);
    }

    /// Begins to convert pages of `range`. Waits for conversions of the same pages, and no others.
    #[must_use]
    pub fn convert(&self, range: Range<GuestAddress>) -> Conversion<'_> {
        Conversion { pages: self, claim: self.ledger.claim(touched(&range)) }
    }

    /// Whether all of a range that is not empty is shared.
    #[must_use]
    pub fn has(&self, start: GuestAddress, length: usize) -> bool {
        let pages = checked(start, length).map(|range| touched(&range));
        pages.is_ok_and(|pages| self.ledger.enter(&pages).is_some())
    }

    /// From now on devices may use the whole pages of `length` bytes at `start`: for memory without
    /// private half, and tests.
    ///
    /// # Errors
    /// If the range is empty or wraps around.
    pub fn share(&self, start: GuestAddress, length: usize) -> Result<(), Error> {
        let range = checked(start, length)?;
        let mut conversion = self.convert(range.clone());
        let reserved = conversion.reserve(std::iter::once(range.clone()));
        reserved.map_err(|_| refused(start, length, "the guest may share no more memory"))?;
        conversion.share(range);
        Ok(())
    }

    /// From now on devices may use none of the pages that these bytes are in.
    ///
    /// # Errors
    /// If the range is empty or wraps around.
    pub fn withdraw(&self, start: GuestAddress, length: usize) -> Result<(), Error> {
        let range = checked(start, length)?;
        let mut conversion = self.convert(range.clone());
        conversion.withdraw(range);
        conversion.claim.settle();
        Ok(())
    }

    fn tell(&self, each: impl Fn(&dyn Subscriber)) {
        let subscribers = self.subscribers.read().unwrap_or_else(PoisonError::into_inner);
        subscribers.iter().for_each(|subscriber| each(&**subscriber));
    }
}

impl Conversion<'_> {
    /// Enters `parts` of the range in the account of shared memory.
    ///
    /// # Errors
    /// If that is more than the guest may share; then nothing changes.
    pub fn reserve(
        &mut self,
        parts: impl Iterator<Item = Range<GuestAddress>>,
    ) -> Result<(), Excess> {
        let reserved = self.claim.reserve(parts.map(|part| pages(&part)));
        reserved.map_err(|excess| Excess {
            bytes: excess.0.saturating_mul(PAGE),
            limit: self.pages.memory().limit.unwrap_or(0),
        })
    }

    /// Makes `part` of the range shared; it was reserved.
    ///
    /// # Errors
    /// If a half could not be changed; then the page is private still.
    pub fn to_shared<H: Halves>(
        &mut self,
        part: Range<GuestAddress>,
        halves: &H,
    ) -> Result<(), H::Error> {
        halves.switch(part.clone(), false)?;
        if let Err(error) = halves.discard_other(part.clone(), false) {
            // The private half is as it was, and so is the page. A second failure changes no more.
            let _ = halves.switch(part, true);
            return Err(error);
        }
        self.share(part);
        Ok(())
    }

    /// Makes `part` of the range private, unless all of it is.
    ///
    /// # Errors
    /// If a half could not be changed. Then the guest uses the private one or nothing has changed.
    pub fn to_private<H: Halves>(
        &mut self,
        part: Range<GuestAddress>,
        halves: &H,
    ) -> Result<(), H::Error> {
        // Kernels of SEV-SNP guests ask for each page that they accept, though it is private.
        if self.claim.shared(&touched(&part)) == 0 {
            return Ok(());
        }
        halves.switch(part.clone(), true)?;
        self.withdraw(part.clone());
        halves.discard_other(part, true)?;
        self.claim.settle();
        Ok(())
    }

    fn share(&mut self, part: Range<GuestAddress>) {
        self.claim.share(&pages(&part));
        self.pages.tell(|subscriber| subscriber.shared(part.clone()));
    }

    fn withdraw(&mut self, part: Range<GuestAddress>) {
        self.claim.withdraw(&touched(&part));
        self.pages.tell(|subscriber| subscriber.withdrawn(part.clone()));
    }
}

/// The pages that lie in a range.
fn pages(range: &Range<GuestAddress>) -> Pages {
    range.start.0.div_ceil(PAGE)..range.end.0 / PAGE
}

/// The pages that a range touches.
pub(super) fn touched(range: &Range<GuestAddress>) -> Pages {
    range.start.0 / PAGE..range.end.0.div_ceil(PAGE)
}

/// A range that a guest may have made up.
pub(super) fn checked(start: GuestAddress, length: usize) -> Result<Range<GuestAddress>, Error> {
    let end = u64::try_from(length).ok().and_then(|bytes| start.0.checked_add(bytes));
    match end {
        Some(end) if length > 0 => Ok(start..GuestAddress(end)),
        _ => Err(refused(start, length, "the range is empty or wraps around")),
    }
}

fn refused(base: GuestAddress, length: usize, reason: &str) -> Error {
    Error::CannotResolve { iova_range: IovaRange { base, length }, reason: reason.to_owned() }
}

/// An access of a device: what is shared stays shared until it ends.
pub struct Translation<'a> {
    identity: &'a Iotlb,
    _access: Access<'a>,
}

impl std::ops::Deref for Translation<'_> {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        self.identity
    }
}

impl Iommu for SharedPages {
    type IotlbGuard<'a> = Translation<'a>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, Error> {
        const PRIVATE: &str = "the guest keeps some of these pages private";
        let pages = touched(&checked(iova, length)?);
        let shared = self.ledger.enter(&pages);
        let _access = shared.ok_or_else(|| refused(iova, length, PRIVATE))?;
        let translation = Translation { identity: &self.identity, _access };
        Iotlb::lookup(translation, iova, length, access).map_err(|_| refused(iova, length, PRIVATE))
    }
}
