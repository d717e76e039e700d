//! Conversions beside a disk that runs: whatever the guest takes back while the disk reads into it, no
//! memory of the host stays outside of the account.

use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicBool;
use std::thread;

use vm_memory::GuestMemoryBackend as _;

use super::*;
use crate::memory::testing::Shared;

const PAGE: u64 = 4096;
/// Pages of the guest that change.
const PAGES: u64 = 64;

fn pages(first: u64, count: u64) -> Range<GuestAddress> {
    GuestAddress(DATA + first * PAGE)..GuestAddress(DATA + (first + count) * PAGE)
}

fn convert(memory: &DeviceMemory, range: Range<GuestAddress>, private: bool) {
    let mut conversion = memory.iommu().convert(range.clone());
    if private {
        conversion.to_private(range, &Shared(memory)).unwrap();
    } else {
        conversion.reserve(std::iter::once(range.clone())).unwrap();
        conversion.to_shared(range, &Shared(memory)).unwrap();
    }
}

/// Pages from `DATA` on for which the host has given memory (Linux `admin-guide/mm/pagemap.rst`).
fn allocated(memory: &DeviceMemory) -> u64 {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    let start = memory.get_backend().get_host_address(GuestAddress(DATA)).unwrap();
    let map = File::open("/proc/self/pagemap").unwrap();
    let is_there = |page: &u64| {
        let mut entry = [0; 8];
        map.read_exact_at(&mut entry, (start.addr() as u64 / PAGE + page) * 8).unwrap();
        u64::from_le_bytes(entry) & (PRESENT | SWAPPED) != 0
    };
    (0..PAGES).filter(is_there).count() as u64
}

/// Empties the page cache of a file, so that the disk waits for the file system.
#[allow(unsafe_code, reason = "a system call")]
fn forget(file: &File) {
    // SAFETY: it takes numbers alone.
    let done = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(done, 0);
}

/// A guest that reads into its pages, and takes all of them back while the disk may be at it.
fn round(file: &NamedTempFile, seed: u64) {
    let image = open(file, 0);
    forget(&image);
    let mut rig =
        Rig::with(Image::new(image, false).unwrap(), &options(), FLUSH, seed.is_multiple_of(2));
    let memory = Arc::clone(&rig.memory);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for converter in 1..3 {
            let (memory, stop) = (&memory, &stop);
            scope.spawn(move || {
                let mut numbers = pattern(1 << 16, seed * 7 + converter).into_iter().map(u64::from);
                while !stop.load(Ordering::SeqCst)
                    && let (Some(first), Some(count)) = (numbers.next(), numbers.next())
                {
                    let range = pages(first % (PAGES - 4), 1 + count % 4);
                    convert(memory, range.clone(), true);
                    convert(memory, range, false);
                }
            });
        }
        // A request whose pages are private at the wrong moment stops the disk, as it should; each
        // request has a header of its own.
        for request in 0..24 {
            let header = HEADER + request * 16;
            rig.header(header, 0, request * 8 * 16 % 1024);
            let buffer = (DATA + request * 2 % PAGES * PAGE, 16 * 512);
            rig.queue.add(&[(header, 16)], &[buffer, (STATUS, 1)]);
            rig.queue.kick();
        }
        stop.store(!seed.is_multiple_of(3), Ordering::SeqCst);
        convert(&memory, pages(0, PAGES), true);
        stop.store(true, Ordering::SeqCst);
    });
    convert(&memory, pages(0, PAGES), true);
    // Ends when the disk has.
    drop(rig);
    assert_eq!(allocated(&memory), 0, "round {seed}");
    assert_eq!(memory.iommu().memory().current, (16 << 20) - PAGES * PAGE, "round {seed}");
}

#[test]
fn conversions_beside_a_running_disk_leave_nothing_outside_of_the_account() {
    let file = image_file(&pattern(MIB, 3));
    file.as_file().sync_all().unwrap();
    for seed in 0..200 {
        round(&file, seed);
    }
}
