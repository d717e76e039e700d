//! Packet headers (VIRTIO 1.2, section 5.10.6). Every field that arrives is the guest's choice.

use std::fmt;

/// Where the payload follows the header, in bytes.
pub const PAYLOAD_OFFSET: u32 = 44;

/// Bytes of a header.
pub const HEADER_LENGTH: usize = PAYLOAD_OFFSET as usize;

/// Payload of one packet at most, in bytes. Linux sends no larger ones.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// The context identifier of the host (section 5.10.4).
pub const HOST_CID: u64 = 2;

/// SHUTDOWN: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type of socket that is offered.
const STREAM: u16 = 1;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A stream is asked for.
    Request = 1,
    /// It is granted.
    Response = 2,
    /// It is refused, or ends at once.
    Reset = 3,
    /// The sender will receive no more, send no more, or both.
    Shutdown = 4,
    /// Data (`VIRTIO_VSOCK_OP_RW`).
    Payload = 5,
    /// The sender has more room.
    CreditUpdate = 6,
    /// The sender wants to hear how much room there is.
    CreditRequest = 7,
}

impl Operation {
    pub(super) const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Payload,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The two ends of a stream. The host's context identifier is always 2, the guest's is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// The host's port.
    pub host: u32,
    /// The guest's port.
    pub guest: u32,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host port {}, guest port {}", self.host, self.guest)
    }
}

/// A packet without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Between which ports.
    pub ports: Ports,
    /// What it is for.
    pub operation: Operation,
    /// Bytes of payload that follow.
    pub length: u32,
    /// Of SHUTDOWN packets.
    pub flags: u32,
    /// Bytes that the sender can buffer for this stream.
    pub buf_alloc: u32,
    /// Bytes that the sender has passed on since the stream began, modulo 2^32.
    pub fwd_cnt: u32,
}

/// Why a packet from the guest is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Nobody else is reached through this device.
    #[error("the packet is for context {0}, not for the host")]
    NotForHost(u64),
    /// The guest has one identifier only.
    #[error("the packet says that it comes from context {0}, which is not the guest's")]
    NotFromGuest(u64),
    /// More than [`MAX_PAYLOAD`].
    #[error("{0} bytes of payload are more than 65536")]
    TooLong(u32),
    /// To be answered with RST.
    #[error("socket type {kind} or operation {operation} is unknown ({ports})")]
    Unknown {
        /// Between which ports.
        ports: Ports,
        /// Type of socket.
        kind: u16,
        /// Operation.
        operation: u16,
    },
}

impl Header {
    /// Reads a header that the guest sent, whose context identifier is `guest_cid`.
    ///
    /// # Errors
    /// If it is not for the host, not from the guest, or of a kind that is not known.
    pub fn from_guest(bytes: &[u8; HEADER_LENGTH], guest_cid: u64) -> Result<Self, PacketError> {
        let (source, destination) = (u64_at(bytes, 0), u64_at(bytes, 8));
        if destination != HOST_CID {
            return Err(PacketError::NotForHost(destination));
        }
        if source != guest_cid {
            return Err(PacketError::NotFromGuest(source));
        }
        let ports = Ports { guest: u32_at(bytes, 16), host: u32_at(bytes, 20) };
        let length = u32_at(bytes, 24);
        if length as usize > MAX_PAYLOAD {
            return Err(PacketError::TooLong(length));
        }
        let (kind, operation) = (u16_at(bytes, 28), u16_at(bytes, 30));
        match Operation::from_number(operation) {
            Some(operation) if kind == STREAM => Ok(Self {
                ports,
                operation,
                length,
                flags: u32_at(bytes, 32),
                buf_alloc: u32_at(bytes, 36),
                fwd_cnt: u32_at(bytes, 40),
            }),
            _ => Err(PacketError::Unknown { ports, kind, operation }),
        }
    }

    /// The header as the guest reads it.
    #[must_use]
    pub fn to_guest(self, guest_cid: u64) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0..8].copy_from_slice(&HOST_CID.to_le_bytes());
        bytes[8..16].copy_from_slice(&guest_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.ports.host.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.ports.guest.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&STREAM.to_le_bytes());
        bytes[30..32].copy_from_slice(&(self.operation as u16).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// RST for a stream of which nothing is known.
    #[must_use]
    pub const fn reset(ports: Ports) -> Self {
        let operation = Operation::Reset;
        Self { ports, operation, length: 0, flags: 0, buf_alloc: 0, fwd_cnt: 0 }
    }
}

fn u16_at(bytes: &[u8; HEADER_LENGTH], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; HEADER_LENGTH], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8; HEADER_LENGTH], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: u64 = 3;

    fn sent_by_guest(header: Header) -> [u8; HEADER_LENGTH] {
        let mut bytes = header.to_guest(GUEST);
        // Both ends change places.
        bytes[0..16].rotate_left(8);
        bytes[16..24].rotate_left(4);
        bytes
    }

    #[test]
    fn a_header_survives_the_way_there_and_back() {
        let header = Header {
            ports: Ports { host: 1024, guest: 77 },
            operation: Operation::Payload,
            length: 5,
            flags: 0,
            buf_alloc: 1 << 18,
            fwd_cnt: u32::MAX,
        };
        assert_eq!(Header::from_guest(&sent_by_guest(header), GUEST), Ok(header));
    }

    #[test]
    fn packets_of_others_and_for_others_are_refused() {
        let ports = Ports { host: 1, guest: 2 };
        let good = sent_by_guest(Header::reset(ports));
        assert_eq!(Header::from_guest(&good, 4), Err(PacketError::NotFromGuest(GUEST)));
        let mut bytes = good;
        bytes[8] = 9;
        assert_eq!(Header::from_guest(&bytes, GUEST), Err(PacketError::NotForHost(9)));
        let mut bytes = good;
        bytes[26] = 2;
        assert_eq!(Header::from_guest(&bytes, GUEST), Err(PacketError::TooLong(0x20000)));
        let mut bytes = good;
        bytes[28] = 2;
        let unknown = PacketError::Unknown { ports, kind: 2, operation: 3 };
        assert_eq!(Header::from_guest(&bytes, GUEST), Err(unknown));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: [u8; HEADER_LENGTH], cid: u64) {
            if let Ok(header) = Header::from_guest(&bytes, cid) {
                prop_assert!(header.length as usize <= MAX_PAYLOAD);
            }
        }
    }
}
