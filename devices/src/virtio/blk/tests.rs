//! A disk, driven over its queue on a temporary file.

#![expect(clippy::cast_possible_truncation, reason = "sizes are of a few MiB")]

mod storm;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::io::ImageError;
use super::*;
use crate::memory::DeviceMemory;
use crate::virtio::testing::{MockQueue, MockTransport, RING_FEATURES, activate, memory, wait};

const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x11_0000;
const DATA: u64 = 0x20_0000;
const MIB: u64 = 1 << 20;

/// Bytes that differ from sector to sector and from place to place.
fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len as usize).collect()
}

fn image_file(bytes: &[u8]) -> NamedTempFile {
    filled(NamedTempFile::new().unwrap(), bytes)
}

fn filled(mut file: NamedTempFile, bytes: &[u8]) -> NamedTempFile {
    file.write_all(bytes).unwrap();
    file
}

fn open(file: &NamedTempFile, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(file.path()).unwrap()
}

fn options() -> BlockOptions {
    BlockOptions {
        name: "test.img".into(),
        on_failure: None,
        read_only: false,
        serial: "casemate-disk".to_owned(),
        queues: NonZeroU16::MIN,
        limits: Limits::default(),
    }
}

fn threads() -> Vec<IoThread> {
    vec![IoThread::spawn("disk", || Ok(())).unwrap()]
}

/// A disk and its driver.
struct Rig {
    disk: Block,
    queue: MockQueue,
    memory: Arc<DeviceMemory>,
    transport: Arc<MockTransport>,
}

impl Rig {
    fn with(image: Image, options: &BlockOptions, features: u64, plain: bool) -> Self {
        let mut disk = Block::new(image, options, threads());
        if plain {
            let engine = Engine::plain(&disk.image);
            *disk.engines.lock().unwrap() = vec![engine];
        }
        let memory = memory();
        let queue = MockQueue::new(&memory, 0, 256);
        let (result, transport) = activate(&mut disk, &[(0, &queue)], RING_FEATURES | features);
        result.unwrap();
        Self { disk, queue, memory, transport }
    }

    fn new(file: &NamedTempFile) -> Self {
        Self::with(Image::new(open(file, 0), false).unwrap(), &options(), FLUSH, false)
    }

    fn header(&self, at: u64, kind: u32, sector: u64) {
        self.memory.write_obj(u64::from(kind), GuestAddress(at)).unwrap();
        self.memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    }

    fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// One request; its status.
    fn request(&mut self, kind: u32, sector: u64, out: &[(u64, u32)], into: &[(u64, u32)]) -> u8 {
        self.header(HEADER, kind, sector);
        let readable: Vec<_> = [(HEADER, 16)].iter().chain(out).copied().collect();
        let writable: Vec<_> = into.iter().copied().chain([(STATUS, 1)]).collect();
        let head = self.queue.add(&readable, &writable);
        self.queue.kick();
        let (used, written) = self.queue.used();
        assert_eq!(used, head);
        assert_eq!(written, writable.iter().map(|(_, len)| len).sum::<u32>());
        self.status()
    }

    fn guest(&self, address: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

fn contents(file: &NamedTempFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = file.reopen().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn reads_and_writes_arrive_whole_with_both_engines() {
    // On a disk or wherever temporary files are; and in memory, where requests are done at once.
    let places = [std::env::temp_dir(), "/dev/shm".into()];
    for (place, plain) in places.iter().flat_map(|place| [(place, false), (place, true)]) {
        let mut expected = pattern(4 * MIB, 1);
        let file = filled(NamedTempFile::new_in(place).unwrap(), &expected);
        let image = Image::new(open(&file, 0), false).unwrap();
        let mut rig = Rig::with(image, &options(), FLUSH, plain);
        // In one piece, and in pieces of odd sizes at odd addresses.
        let scattered = [(DATA, 1), (DATA + 0x10_003, 4094), (DATA + 0x20_000, 1)];
        assert_eq!(rig.request(0, 8, &[], &[(DATA, 65536)]), 0);
        assert_eq!(rig.guest(DATA, 65536), expected[4096..4096 + 65536]);
        assert_eq!(rig.request(0, 16, &[], &scattered), 0);
        let pieces: Vec<u8> =
            scattered.iter().flat_map(|&(at, len)| rig.guest(at, len.into())).collect();
        assert_eq!(pieces, expected[8192..8192 + 4096]);
        // The other way round, to the last sector.
        let data = pattern(8192, 2);
        rig.memory.write_slice(&data, GuestAddress(DATA)).unwrap();
        let sector = 4 * MIB / 512 - 16;
        assert_eq!(rig.request(1, sector, &[(DATA, 5000), (DATA + 5000, 3192)], &[]), 0);
        assert_eq!(rig.request(4, 0, &[], &[]), 0);
        expected[(sector * 512) as usize..].copy_from_slice(&data);
        assert_eq!(contents(&file), expected);
        assert!(!rig.transport.needs_reset.load(Ordering::SeqCst));
        assert!(rig.transport.interrupts.load(Ordering::SeqCst) > 0);
    }
}

#[test]
fn many_requests_at_once_all_come_back() {
    let expected = pattern(16 * MIB, 3);
    let file = image_file(&expected);
    let mut rig = Rig::new(&file);
    for round in 0..20u64 {
        for slot in 0..64u64 {
            rig.header(HEADER + slot * 16, 0, (round * 64 + slot) * 8);
        }
        // The device may take each before there is a kick.
        for slot in 0..64u64 {
            rig.queue.add(
                &[(HEADER + slot * 16, 16)],
                &[(DATA + slot * 4096, 4096), (STATUS + slot, 1)],
            );
        }
        rig.queue.kick();
        for _ in 0..64 {
            assert_eq!(rig.queue.used().1, 4097);
        }
        let start = (round * 64 * 4096) as usize;
        assert_eq!(rig.guest(DATA, 64 * 4096), expected[start..start + 64 * 4096]);
        assert_eq!(rig.guest(STATUS, 64), [0; 64]);
    }
}

#[test]
fn the_header_may_be_split_in_any_way() {
    let expected = pattern(MIB, 4);
    let file = image_file(&expected);
    let mut rig = Rig::new(&file);
    rig.header(HEADER, 0, 1);
    let bytes: Vec<_> = (0..16).map(|at| (HEADER + at, 1)).collect();
    // Status in the same descriptor as the end of the data.
    rig.queue.add(&bytes, &[(DATA, 500), (DATA + 500, 13)]);
    rig.queue.kick();
    assert_eq!(rig.queue.used().1, 513);
    assert_eq!(rig.guest(DATA, 512), expected[512..1024]);
    assert_eq!(rig.guest(DATA + 512, 1), [0]);
    // Header and data of a write in one descriptor.
    let data = pattern(512, 5);
    rig.header(HEADER, 1, 7);
    rig.memory.write_slice(&data, GuestAddress(HEADER + 16)).unwrap();
    rig.queue.add(&[(HEADER, 528)], &[(STATUS, 1)]);
    rig.queue.kick();
    rig.queue.used();
    assert_eq!(rig.status(), 0);
    assert_eq!(contents(&file)[7 * 512..8 * 512], data);
}

#[test]
fn discard_and_write_zeroes_work_on_every_file_system() {
    // A file system in memory zeroes ranges only by writing them; with both engines.
    let places = [std::env::temp_dir(), "/dev/shm".into()];
    for (place, plain) in places.iter().flat_map(|place| [(place, false), (place, true)]) {
        let mut expected = pattern(16 * MIB, 6);
        let file = filled(NamedTempFile::new_in(place).unwrap(), &expected);
        let image = Image::new(open(&file, 0), false).unwrap();
        let mut rig = Rig::with(image, &options(), FLUSH, plain);
        let mut clear = |kind, sector: u64, sectors: u32, flags: u32| {
            rig.memory.write_obj(sector, GuestAddress(DATA)).unwrap();
            rig.memory.write_obj([sectors, flags], GuestAddress(DATA + 8)).unwrap();
            rig.request(kind, 0, &[(DATA, 16)], &[])
        };
        // The last is longer than what is written at once.
        let ranges = [(11, 0, 64, 0), (13, 128, 64, 1), (13, 256, 64, 0), (13, 512, 20_001, 0)];
        for (kind, sector, sectors, flags) in ranges {
            assert_eq!(clear(kind, sector, sectors, flags), 0, "{kind} {sector}");
            let (sector, sectors) = (sector as usize, sectors as usize);
            expected[sector * 512..][..sectors * 512].fill(0);
        }
        assert_eq!(clear(11, 0, 64, 1), 2);
        assert_eq!(clear(11, 16 * MIB / 512 - 8, 64, 0), 1);
        assert!(contents(&file) == expected);
    }
}

#[test]
fn geometry_does_not_follow_the_file_system() {
    let config = |place: &std::path::Path| {
        let file = filled(NamedTempFile::new_in(place).unwrap(), &[0; 8192]);
        let image = Image::new(open(&file, 0), false).unwrap();
        let mut config = [0; 64];
        Block::new(image, &options(), threads()).read_config(0, &mut config);
        config
    };
    // proc and sysfs would prefer 1 KiB, network file systems 1 MiB; all get 4 KiB.
    assert_eq!(config(&std::env::temp_dir()), config("/dev/shm".as_ref()));
    let config = config("/dev/shm".as_ref());
    // Physical block: 2^3 logical ones, which is the smallest good transfer as well.
    assert_eq!((config[24], config[26..28].to_vec()), (3, vec![8, 0]));
}

/// A disk whose file system is full: the guest gets the error, or nobody goes on.
#[test]
fn failure_of_the_host_is_reported_or_ends_the_run() {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&messages);
    let stop: OnFailure = Arc::new(move |message| seen.lock().unwrap().push(message));
    for on_failure in [None, Some(stop)] {
        let file = image_file(&[1; 8192]);
        let stops = on_failure.is_some();
        let options = BlockOptions { on_failure, ..options() };
        let image = Image::new(open(&file, 0), false).unwrap();
        let mut rig = Rig::with(image, &options, FLUSH, false);
        file.as_file().set_len(4096).unwrap();
        if !stops {
            assert_eq!(rig.request(0, 8, &[], &[(DATA, 4096)]), 1);
            continue;
        }
        rig.header(HEADER, 0, 8);
        rig.queue.add(&[(HEADER, 16)], &[(DATA, 4096), (STATUS, 1)]);
        rig.queue.kick();
        wait("the failure", || !messages.lock().unwrap().is_empty());
        assert_eq!(rig.queue.poll_used(), None, "the guest sees nothing of it");
        let message = messages.lock().unwrap()[0].clone();
        let expected = "disk test.img: the host failed a read of 4096 bytes at 4096: ";
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn the_serial_number_fits_any_buffer() {
    let file = image_file(&[0; 512]);
    let mut rig = Rig::new(&file);
    assert_eq!(rig.request(8, 0, &[], &[(DATA, 20)]), 0);
    assert_eq!(rig.guest(DATA, 20), *b"casemate-disk\0\0\0\0\0\0\0");
    rig.memory.write_slice(&[0xaa; 64], GuestAddress(DATA)).unwrap();
    assert_eq!(rig.request(8, 0, &[], &[(DATA, 4)]), 0);
    assert_eq!(rig.guest(DATA, 5), *b"case\xaa");
    assert_eq!(rig.request(8, 0, &[], &[]), 0);
}

#[test]
fn senseless_requests_fail_and_the_disk_goes_on() {
    let file = image_file(&[7; 4096]);
    let mut rig = Rig::new(&file);
    assert_eq!(rig.request(0, 8, &[], &[(DATA, 512)]), 1);
    assert_eq!(rig.request(0, u64::MAX, &[], &[(DATA, 512)]), 1);
    assert_eq!(rig.request(0, 0, &[], &[(DATA, 511)]), 1);
    assert_eq!(rig.request(0, 0, &[], &[]), 1);
    assert_eq!(rig.request(1, 0, &[(DATA, 512)], &[(DATA, 512)]), 1);
    assert_eq!(rig.request(99, 0, &[], &[(DATA, 512)]), 2);
    assert_eq!(rig.request(0, 0, &[], &[(DATA, 512)]), 0);
    assert_eq!(rig.guest(DATA, 512), [7; 512]);
}

#[test]
fn a_chain_without_header_or_status_asks_for_a_reset() {
    let file = image_file(&[0; 4096]);
    for (readable, writable) in
        [(&[(HEADER, 15)][..], &[(STATUS, 1)][..]), (&[(HEADER, 16)], &[]), (&[], &[(STATUS, 1)])]
    {
        let mut rig = Rig::new(&file);
        rig.queue.add(readable, writable);
        rig.queue.kick();
        let transport = Arc::clone(&rig.transport);
        wait("the device to give up", || transport.needs_reset.load(Ordering::SeqCst));
        // Nothing is served until the driver resets the device; then it works again.
        rig.disk.reset();
        rig.queue = MockQueue::new(&rig.memory, 0x4_0000, 256);
        let queues = [(0, &rig.queue)];
        activate(&mut rig.disk, &queues, RING_FEATURES | FLUSH).0.unwrap();
        assert_eq!(rig.request(0, 0, &[], &[(DATA, 512)]), 0);
    }
}

#[test]
fn an_image_that_shrinks_is_an_error_of_the_disk() {
    let file = image_file(&[1; 8192]);
    let mut rig = Rig::new(&file);
    file.as_file().set_len(4096).unwrap();
    assert_eq!(rig.request(0, 8, &[], &[(DATA, 4096)]), 1);
    // Half of it is there.
    assert_eq!(rig.request(0, 4, &[], &[(DATA, 4096)]), 1);
    assert_eq!(rig.request(0, 0, &[], &[(DATA, 4096)]), 0);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let file = image_file(&[3; 4096]);
    assert!(matches!(
        Image::new(File::open(file.path()).unwrap(), false),
        Err(ImageError::NotWritable)
    ));
    let image = Image::new(File::open(file.path()).unwrap(), true).unwrap();
    let options = BlockOptions { read_only: true, ..options() };
    let mut rig = Rig::with(image, &options, FLUSH, false);
    assert_ne!(rig.disk.features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(rig.disk.features() & 1 << VIRTIO_BLK_F_DISCARD, 0);
    assert_eq!(rig.request(1, 0, &[(DATA, 512)], &[]), 1);
    assert_eq!(rig.request(11, 0, &[(DATA, 16)], &[]), 2);
    assert_eq!(rig.request(0, 0, &[], &[(DATA, 512)]), 0);
    assert_eq!(contents(&file), [3; 4096]);
}

#[test]
fn direct_io_takes_aligned_and_unaligned_requests() {
    let mut expected = pattern(MIB, 8);
    // Not on tmpfs, which older kernels do not open with O_DIRECT.
    let mut file = NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.write_all(&expected).unwrap();
    let opened =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(file.path());
    let Ok(opened) = opened else {
        eprintln!("SKIPPED: the file system of the sources has no direct I/O");
        return;
    };
    for plain in [false, true] {
        let image = Image::new(opened.try_clone().unwrap(), false).unwrap();
        let mut rig = Rig::with(image, &options(), FLUSH, plain);
        for (sector, address, len) in
            [(0, DATA, 65536), (1, DATA, 512), (8, DATA + 1, 4096), (3, DATA + 7, 1536)]
        {
            let at = (sector * 512) as usize;
            assert_eq!(rig.request(0, sector, &[], &[(address, len)]), 0);
            assert_eq!(rig.guest(address, len.into()), expected[at..at + len as usize]);
            let data = pattern(len.into(), sector + 99);
            rig.memory.write_slice(&data, GuestAddress(address)).unwrap();
            assert_eq!(rig.request(1, sector, &[(address, len)], &[]), 0);
            expected[at..at + len as usize].copy_from_slice(&data);
            assert_eq!(rig.request(0, 0, &[], &[(DATA, 65536)]), 0);
            assert_eq!(rig.guest(DATA, 65536), expected[..65536]);
        }
        assert_eq!(rig.request(4, 0, &[], &[]), 0);
        assert_eq!(contents(&file), expected);
    }
}

#[test]
fn without_flush_writes_are_still_carried_out() {
    let file = image_file(&[0; 4096]);
    for plain in [false, true] {
        let image = Image::new(open(&file, 0), false).unwrap();
        let mut rig = Rig::with(image, &options(), 0, plain);
        rig.memory.write_slice(&[9; 4096], GuestAddress(DATA)).unwrap();
        assert_eq!(rig.request(1, 0, &[(DATA, 4096)], &[]), 0);
        assert_eq!(contents(&file), [9; 4096]);
    }
}

#[test]
fn every_queue_is_served_and_may_be_left_out() {
    let expected = pattern(MIB, 9);
    let file = image_file(&expected);
    let options = BlockOptions { queues: NonZeroU16::new(4).unwrap(), ..options() };
    let image = Image::new(open(&file, 0), false).unwrap();
    let mut disk = Block::new(image, &options, [threads(), threads()].concat());
    assert_ne!(disk.features() & 1 << VIRTIO_BLK_F_MQ, 0);
    let memory = memory();
    for _ in 0..3 {
        memory.write_slice(&[0; 0x4_0000], GuestAddress(0)).unwrap();
        let mut queues = [0, 1, 3].map(|at| MockQueue::new(&memory, at * 0x1_0000, 128));
        let active = [(0, &queues[0]), (1, &queues[1]), (3, &queues[2])];
        activate(&mut disk, &active, RING_FEATURES | FLUSH).0.unwrap();
        memory.write_slice(&[0; 16], GuestAddress(HEADER)).unwrap();
        for (queue, data) in queues.iter_mut().zip([DATA, DATA + 0x1000, DATA + 0x2000]) {
            queue.add(&[(HEADER, 16)], &[(data, 4096), (STATUS, 1)]);
            queue.kick();
            assert_eq!(queue.used().1, 4097);
            let mut bytes = [0; 4096];
            memory.read_slice(&mut bytes, GuestAddress(data)).unwrap();
            assert_eq!(bytes, expected[..4096]);
        }
        disk.reset();
    }
    let second = MockQueue::new(&memory, 0, 128);
    assert!(activate(&mut disk, &[(1, &second)], RING_FEATURES).0.is_err());
    assert_eq!(disk.engines.lock().unwrap().len(), 4);
}

#[test]
fn a_reset_waits_for_requests_in_flight() {
    let file = image_file(&pattern(8 * MIB, 10));
    let mut rig = Rig::new(&file);
    for slot in 0..32u64 {
        rig.header(HEADER + slot * 16, 0, slot * 128);
        rig.queue
            .add(&[(HEADER + slot * 16, 16)], &[(DATA + slot * 65536, 65536), (STATUS + slot, 1)]);
    }
    rig.queue.kick();
    rig.disk.reset();
    // Whatever was not served before is not served after.
    let before = rig.guest(DATA, 32 * 65536);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.guest(DATA, 32 * 65536), before);
    assert_eq!(Arc::strong_count(&rig.memory), 2, "only the test and its queue hold the memory");
}

#[test]
fn the_rate_limit_holds_requests_back() {
    let file = image_file(&[0; 4096]);
    let limits = Limits { operations_per_second: NonZeroU64::new(100), bytes_per_second: None };
    let options = BlockOptions { limits, ..options() };
    let image = Image::new(open(&file, 0), false).unwrap();
    let mut rig = Rig::with(image, &options, FLUSH, false);
    let start = Instant::now();
    // The burst is 10, and one is allowed to go into debt.
    for _ in 0..21 {
        assert_eq!(rig.request(0, 0, &[], &[(DATA, 512)]), 0);
    }
    assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());
}

#[test]
fn private_pages_are_not_touched() {
    let file = image_file(&pattern(4096, 11));
    let mut rig = Rig::new(&file);
    rig.memory.write_slice(&[0x55; 4096], GuestAddress(DATA)).unwrap();
    rig.memory.iommu().withdraw(GuestAddress(DATA), 4096).unwrap();
    rig.header(HEADER, 0, 0);
    rig.queue.add(&[(HEADER, 16)], &[(DATA, 4096), (STATUS, 1)]);
    rig.queue.kick();
    let transport = Arc::clone(&rig.transport);
    wait("the device to give up", || transport.needs_reset.load(Ordering::SeqCst));
    rig.memory.iommu().share(GuestAddress(DATA), 4096).unwrap();
    assert_eq!(rig.guest(DATA, 4096), [0x55; 4096]);
}

#[test]
fn disk_grows_and_shrinks_while_the_guest_uses_it() {
    let file = image_file(&pattern(MIB, 21));
    let mut rig = Rig::new(&file);
    let handle = rig.disk.handle();
    assert_eq!(
        (handle.name(), handle.bytes(), handle.look_again().unwrap()),
        ("test.img", MIB, None)
    );
    // The guest does not see sectors that it was not told of.
    file.as_file().set_len(2 * MIB).unwrap();
    assert_eq!(rig.request(0, MIB / 512, &[], &[(DATA, 512)]), 1);
    assert_eq!(handle.look_again().unwrap(), Some(MIB));
    assert_eq!(rig.transport.config_changes.load(Ordering::SeqCst), 1);
    let mut capacity = [0; 8];
    rig.disk.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2 * MIB / 512);
    assert_eq!(rig.request(0, MIB / 512, &[], &[(DATA, 512)]), 0);
    assert_eq!(rig.guest(DATA, 512), [0; 512]);
    file.as_file().set_len(MIB).unwrap();
    assert_eq!((handle.look_again().unwrap(), handle.bytes()), (Some(2 * MIB), MIB));
    assert_eq!(rig.request(0, MIB / 512, &[], &[(DATA, 512)]), 1);
    file.as_file().set_len(100).unwrap();
    assert!(matches!(handle.look_again(), Err(ImageError::Small(100))));
    assert_eq!(rig.request(0, 0, &[], &[(DATA, 512)]), 1, "an error of the disk");
    // Without a driver nobody is told.
    rig.disk.reset();
    file.as_file().set_len(MIB * 3).unwrap();
    assert_eq!(handle.look_again().unwrap(), Some(MIB));
    assert_eq!(rig.transport.config_changes.load(Ordering::SeqCst), 2);
}

#[test]
fn the_configuration_describes_the_image() {
    let file = image_file(&[0; 5000]);
    let image = Image::new(open(&file, 0), false).unwrap();
    let options = BlockOptions { queues: NonZeroU16::new(3).unwrap(), ..options() };
    let disk = Block::new(image, &options, threads());
    let mut config = [0; 64];
    disk.read_config(0, &mut config);
    let field = |at: usize| u32::from_le_bytes(*config[at..].first_chunk().unwrap());
    assert_eq!(config[..8], 9u64.to_le_bytes());
    assert_eq!([field(12), field(20)], [254, 512]);
    assert_eq!(config[34..36], [3, 0]);
    assert_eq!([field(36), field(40), field(48), field(52)], [1 << 21, 1, 1 << 21, 1]);
    assert_eq!(config[60..], [0; 4]);
    for offset in [1, 59, 60, 1000, u64::MAX] {
        let mut byte = [0; 8];
        disk.read_config(offset, &mut byte);
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let small = image_file(&[0; 511]);
    assert!(matches!(Image::new(open(&small, 0), false), Err(ImageError::Small(511))));
    let directory = File::open("/").unwrap();
    assert!(matches!(Image::new(directory, true), Err(ImageError::Kind)));
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(Image::new(null, true), Err(ImageError::Kind)));
    let mut whole = image_file(&[0; 512]);
    whole.seek(SeekFrom::End(0)).unwrap();
    assert_eq!(Image::new(open(&whole, 0), false).unwrap().sectors(), 1);
}
