//! Any driver of a disk: the image keeps its length, a read-only one its content, memory that the guest
//! keeps private is not touched, and the disk serves the next driver.
#![no_main]

use std::fs::File;
use std::num::NonZeroU16;
use std::os::unix::fs::FileExt;

use casemate_devices::io_thread::IoThread;
use casemate_devices::rate_limit::Limits;
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::blk::io::Image;
use casemate_devices::virtio::blk::{Block, BlockOptions};
use casemate_fuzz::{Buffer, Machine, Script, drive};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

/// Of the image.
const LENGTH: usize = 64 << 10;
/// Addresses of a well-behaved driver's header, data and status.
const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x8_1000;
const STATUS: u64 = 0x8_2000;

fn image() -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all_at(&[0xd5; LENGTH], 0).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    // One byte more than there may be.
    let mut content = vec![0; LENGTH + 1];
    let mut length = 0;
    loop {
        match file.read_at(&mut content[length..], length.try_into().unwrap()).unwrap() {
            0 => break,
            count => length += count,
        }
    }
    content.truncate(length);
    content
}

/// Reads the second sector by the rules.
fn read(machine: &mut Machine) -> [u8; 512] {
    let header = [0_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat();
    machine.memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
    machine.memory.write_slice(&[0xff], GuestAddress(STATUS)).unwrap();
    let chain = [
        Buffer { address: HEADER, len: 16, writable: false },
        Buffer { address: DATA, len: 512, writable: true },
        Buffer { address: STATUS, len: 1, writable: true },
    ];
    machine.offer(1, 0, &chain);
    machine.wait_for(1, 0, 1);
    let (mut data, mut status) = ([0; 512], [0xff]);
    machine.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    machine.memory.read_slice(&mut status, GuestAddress(STATUS)).unwrap();
    assert_eq!(status, [0], "a read by the rules succeeds");
    data
}

fuzz_target!(|input: &[u8]| {
    let Some((&options, script)) = input.split_first() else { return };
    let read_only = options & 1 != 0;
    let file = image();
    let options = BlockOptions {
        name: "disk".into(),
        on_failure: None,
        read_only,
        serial: "serial".into(),
        queues: NonZeroU16::new(1 + u16::from(options >> 1 & 1)).unwrap(),
        limits: Limits::default(),
    };
    let disk = |thread: &IoThread| {
        let image = Image::new(file.try_clone().unwrap(), read_only).unwrap();
        let disk = Block::new(image, &options, vec![thread.clone()]);
        vec![Box::new(disk) as Box<dyn VirtioDevice>]
    };
    let mut machine = Machine::new(true, &disk);
    drive(&mut machine, &mut Script(script), |_, _| {});
    let sector = read(&mut machine);
    let content = content(&file);
    assert_eq!(content.len(), LENGTH);
    assert_eq!(content[512..1024], sector);
    assert!(!read_only || content == [0xd5; LENGTH]);
});
