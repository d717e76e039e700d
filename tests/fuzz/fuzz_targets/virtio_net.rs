//! Any driver of a network interface, and any packets from the host: what reaches the tap is what the
//! tap understands, memory that the guest keeps private is not touched, and the interface serves the
//! next driver.
#![no_main]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use casemate_devices::io_thread::IoThread;
use casemate_devices::rate_limit::Limits;
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::net::link::Link;
use casemate_devices::virtio::net::packet::{HEADER_LEN, Header, Offloads, checked_header};
use casemate_devices::virtio::net::{Net, NetOptions};
use casemate_fuzz::{Buffer, Machine, Script, drive};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

/// Address of a well-behaved driver's packet.
const PACKET: u64 = 0x8_0000;

/// A tap in the form of a socket that keeps packets apart.
struct Wire(UnixDatagram);

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Wire {
    fn set_offloads(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn name(&self) -> &str {
        "wire"
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// Packets that the guest sent since the last look. The driver has negotiated all offloads.
fn sent(host: &UnixDatagram) -> Vec<Vec<u8>> {
    const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };
    let mut packets = Vec::new();
    let mut packet = vec![0; 1 << 17];
    while let Ok(length) = host.recv(&mut packet) {
        let (header, rest) = packet[..length].split_at(HEADER_LEN as usize);
        let header = Header::try_from(header).unwrap();
        let length = u32::try_from(rest.len()).unwrap();
        assert_eq!(checked_header(&header, length, ALL), Ok(header));
        packets.push(rest.to_vec());
    }
    packets
}

fuzz_target!(|input: &[u8]| {
    let Some((&confidential, script)) = input.split_first() else { return };
    let (guest, host) = UnixDatagram::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    let options = NetOptions {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        receive: Limits::default(),
        transmit: Limits::default(),
        vhost: false,
    };
    let interface = |thread: &IoThread| {
        let links: Vec<Arc<dyn Link>> = vec![Arc::new(Wire(guest.try_clone().unwrap()))];
        let interface = Net::new(links, options, vec![thread.clone()]);
        vec![Box::new(interface) as Box<dyn VirtioDevice>]
    };
    let mut machine = Machine::new(confidential & 1 != 0, &interface);
    drive(&mut machine, &mut Script(script), |_, script| {
        let length = script.u16();
        let mut packet = script.bytes(64).to_vec();
        packet.resize(usize::from(length), 0x5a);
        // Where the guest takes none, the socket is full.
        let _ = host.send(&packet);
        sent(&host);
    });
    // What is still on its way to the guest is dropped, for want of buffers.
    sent(&host);
    let frame: Vec<u8> = (0..HEADER_LEN).map(|_| 0).chain(0..60).collect();
    machine.memory.write_slice(&frame, GuestAddress(PACKET)).unwrap();
    machine.offer(1, 1, &[Buffer { address: PACKET, len: 72, writable: false }]);
    machine.wait_for(1, 1, 1);
    assert_eq!(sent(&host), [&frame[HEADER_LEN as usize..]]);
});
