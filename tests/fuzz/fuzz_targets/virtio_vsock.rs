//! Any driver of a socket device, and any processes at its other end: packets for the guest are the
//! guest's, memory that it keeps private is not touched, and the device serves the next driver.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use casemate_devices::io_thread::IoThread;
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::vsock::Vsock;
use casemate_devices::virtio::vsock::packet::{HEADER_LENGTH, HOST_CID, Header, Operation, Ports};
use casemate_fuzz::{Buffer, Machine, Script, drive};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

const GUEST_CID: u64 = 3;
/// The host's port where somebody listens.
const PORT: u32 = 80;
/// Where a driver that keeps the rules has what it sends, and its room for answers.
const OUT: u64 = 0x8_0000;
const IN: u64 = 0x8_1000;

/// More packets than a script can cause.
const MANY: u16 = 4096;

/// Processes at the other end: one that listens, and those that came and were accepted.
struct Host {
    listener: UnixListener,
    streams: Vec<UnixStream>,
}

impl Host {
    fn act(&mut self, socket: &Path, script: &mut Script<'_>) {
        let what = script.u8();
        let which = usize::from(what >> 4);
        match what & 7 {
            0 => {
                // Fails if as many wait already as can.
                let Ok(mut stream) = UnixStream::connect(socket) else { return };
                stream.set_nonblocking(true).unwrap();
                let _ = writeln!(stream, "CONNECT {}", script.u8());
                self.streams.push(stream);
            }
            1 => {
                let Ok(mut stream) = UnixStream::connect(socket) else { return };
                stream.set_nonblocking(true).unwrap();
                let _ = stream.write(script.bytes(32));
                self.streams.push(stream);
            }
            2 => {
                let Ok((stream, _)) = self.listener.accept() else { return };
                stream.set_nonblocking(true).unwrap();
                self.streams.push(stream);
            }
            3 if which < self.streams.len() => drop(self.streams.swap_remove(which)),
            4 | 5 => {
                let bytes = script.bytes(64);
                if let Some(stream) = self.streams.get_mut(which) {
                    let _ = stream.write(bytes);
                }
            }
            _ => {
                if let Some(stream) = self.streams.get_mut(which) {
                    let _ = stream.read(&mut [0; 4096]);
                }
            }
        }
    }
}

/// A request by the rules, for a port where nobody listens, is refused.
fn ask_in_vain(machine: &mut Machine) {
    let request = Header {
        ports: Ports { host: 9, guest: 1000 },
        operation: Operation::Request,
        length: 0,
        flags: 0,
        buf_alloc: 1 << 16,
        fwd_cnt: 0,
    };
    let mut bytes = request.to_guest(GUEST_CID);
    bytes[..16].rotate_left(8);
    bytes[16..24].rotate_left(4);
    machine.memory.write_slice(&bytes, GuestAddress(OUT)).unwrap();
    machine.offer(1, 1, &[Buffer { address: OUT, len: 44, writable: false }]);
    // Processes that came before may be greeted first.
    for count in 1..=MANY {
        machine.offer(1, 0, &[Buffer { address: IN, len: 4096, writable: true }]);
        machine.wait_for(1, 0, count);
        let mut answer = [0; HEADER_LENGTH];
        machine.memory.read_slice(&mut answer, GuestAddress(IN)).unwrap();
        assert_eq!(answer[..16], [HOST_CID.to_le_bytes(), GUEST_CID.to_le_bytes()].concat());
        if answer == Header::reset(request.ports).to_guest(GUEST_CID) {
            return;
        }
    }
    panic!("a request for a port where nobody listens is not answered");
}

fuzz_target!(|input: &[u8]| {
    let Some((&confidential, script)) = input.split_first() else { return };
    let folder = TempDir::new_in("/dev/shm").unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(folder.path().join(format!("socket_{PORT}"))).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut host = Host { listener, streams: Vec::new() };
    let device = |thread: &IoThread| {
        let device = Vsock::new(3, &socket, thread.clone()).unwrap();
        vec![Box::new(device) as Box<dyn VirtioDevice>]
    };
    let mut machine = Machine::new(confidential & 1 != 0, &device);
    drive(&mut machine, &mut Script(script), |_, script| host.act(&socket, script));
    drop(host);
    ask_in_vain(&mut machine);
    machine.check_canaries();
});
