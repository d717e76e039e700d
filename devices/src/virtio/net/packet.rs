//! What a driver writes before a packet, and on the control queue (VIRTIO 1.2, sections 5.1.6 and
//! 5.1.6.5).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of `struct virtio_net_hdr_v1`, which stands before every packet.
pub const HEADER_LEN: u32 = 12;

/// That structure.
pub type Header = [u8; HEADER_LEN as usize];

/// Where it says over how many buffers a received packet is spread.
pub const NUM_BUFFERS_OFFSET: u32 = 10;

/// Bytes of the shortest packet: an Ethernet header.
pub const MIN_PACKET: u32 = 14;

/// Bytes of the longest packet: Ethernet header, VLAN tag, and the longest IP packet.
pub const MAX_PACKET: u32 = 14 + 4 + 65_535;

/// Bytes of a request on the control queue: class, command, number of pairs.
pub const CONTROL_LEN: usize = 4;

/// What the driver may ask the device to do with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Fill in a checksum (CSUM).
    pub checksum: bool,
    /// Cut up TCP over IPv4 (HOST_TSO4).
    pub tso4: bool,
    /// Cut up TCP over IPv6 (HOST_TSO6).
    pub tso6: bool,
    /// Both with explicit congestion notification (HOST_ECN).
    pub ecn: bool,
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Too short or too long.
    #[error("a packet of {0} bytes")]
    Length(u32),
    /// The driver did not negotiate this.
    #[error("checksum flags {flags:#x} with segmentation {segmentation:#x}, not negotiated")]
    NotNegotiated {
        /// Field `flags`.
        flags: u8,
        /// Field `gso_type`.
        segmentation: u8,
    },
    /// The checksum must lie in the packet.
    #[error("a checksum at {start}+{offset} of a packet of {len} bytes")]
    Checksum {
        /// Field `csum_start`.
        start: u16,
        /// Field `csum_offset`.
        offset: u16,
        /// Length of the packet in bytes.
        len: u32,
    },
    /// Segments have a size, and checksums.
    #[error("segments without size or without checksum")]
    Segments,
}

/// The header to hand to the tap for a packet of `len` bytes that came with `header`: what the
/// driver set and the device knows, nothing else.
///
/// # Errors
/// If the header asks for something that was not negotiated or makes no sense.
pub fn checked_header(
    header: &Header,
    len: u32,
    offloads: Offloads,
) -> Result<Header, PacketError> {
    if !(MIN_PACKET..=MAX_PACKET).contains(&len) {
        return Err(PacketError::Length(len));
    }
    let &[flags, segmentation, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = header;
    let [header_len, segment, start, offset] =
        [[h0, h1], [g0, g1], [s0, s1], [o0, o1]].map(u16::from_le_bytes);
    // Unknown flags are to be ignored.
    let checksum = u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    if !offloads.allow(checksum, segmentation) {
        return Err(PacketError::NotNegotiated { flags, segmentation });
    }
    if checksum && u32::from(start) + u32::from(offset) + 2 > len {
        return Err(PacketError::Checksum { start, offset, len });
    }
    let segmented = u32::from(segmentation) != VIRTIO_NET_HDR_GSO_NONE;
    if segmented && (segment == 0 || !checksum) {
        return Err(PacketError::Segments);
    }
    // The length of the packet's headers is a hint that the driver may get wrong.
    let header_len = u16::try_from(len).map_or(header_len, |len| header_len.min(len));
    let [h0, h1] = header_len.to_le_bytes();
    let offloaded = [1, segmentation, h0, h1, g0, g1, s0, s1, o0, o1, 0, 0];
    Ok(if checksum { offloaded } else { [0; 12] })
}

impl Offloads {
    fn allow(self, checksum: bool, segmentation: u8) -> bool {
        let ecn = u32::from(segmentation) & VIRTIO_NET_HDR_GSO_ECN != 0;
        let kind = u32::from(segmentation) & !VIRTIO_NET_HDR_GSO_ECN;
        let kind_allowed = match kind {
            VIRTIO_NET_HDR_GSO_NONE => !ecn,
            VIRTIO_NET_HDR_GSO_TCPV4 => self.tso4,
            VIRTIO_NET_HDR_GSO_TCPV6 => self.tso6,
            _ => false,
        };
        kind_allowed && (!checksum || self.checksum) && (!ecn || self.ecn)
    }
}

/// Reads a request of the control queue, of which there is one that this device knows: to use so
/// many pairs of queues, out of `pairs`. `None` for any other, and for a number that is not there.
#[must_use]
pub fn requested_pairs(request: &[u8], pairs: u16) -> Option<u16> {
    let &[class, command, low, high] = request else { return None };
    let wanted = u16::from_le_bytes([low, high]);
    let known = u32::from(class) == VIRTIO_NET_CTRL_MQ
        && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    (known && (1..=pairs).contains(&wanted)).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };

    #[test]
    fn a_plain_packet_has_an_empty_header() {
        let ignored = [0x80, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        assert_eq!(checked_header(&ignored, 60, Offloads::default()), Ok([0; 12]));
    }

    #[test]
    fn offloads_need_negotiation() {
        // Checksum at 34 + 16; segments of 1448 bytes behind headers of 66.
        let checksum = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        let with = |kind| [1, kind, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        for header in [checksum, with(1), with(4), with(0x81)] {
            assert_eq!(checked_header(&header, 9000, ALL), Ok(header));
            let none = checked_header(&header, 9000, Offloads::default());
            assert!(matches!(none, Err(PacketError::NotNegotiated { .. })));
        }
        for kind in [2, 3, 5, 6, 0x80, 0x83, 0x7f] {
            assert!(checked_header(&with(kind), 9000, ALL).is_err(), "{kind}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let header = |flags, kind, size, start: u16| {
            let [s0, s1] = start.to_le_bytes();
            [flags, kind, 0, 0, size, 0, s0, s1, 16, 0, 0, 0]
        };
        assert_eq!(checked_header(&[0; 12], 13, ALL), Err(PacketError::Length(13)));
        assert_eq!(checked_header(&[0; 12], 65_554, ALL), Err(PacketError::Length(65_554)));
        assert!(checked_header(&header(1, 0, 0, 42), 60, ALL).is_ok());
        let past = PacketError::Checksum { start: 43, offset: 16, len: 60 };
        assert_eq!(checked_header(&header(1, 0, 0, 43), 60, ALL), Err(past));
        assert_eq!(checked_header(&header(1, 1, 0, 34), 60, ALL), Err(PacketError::Segments));
        assert_eq!(checked_header(&header(0, 1, 9, 34), 60, ALL), Err(PacketError::Segments));
    }

    #[test]
    fn only_pairs_that_exist_can_be_asked_for() {
        assert_eq!(requested_pairs(&[4, 0, 2, 0], 4), Some(2));
        for request in [&[4, 0, 0, 0][..], &[4, 0, 5, 0], &[4, 0, 1], &[4, 0, 1, 0, 0], &[]] {
            assert_eq!(requested_pairs(request, 4), None);
        }
        assert_eq!(requested_pairs(&[4, 1, 1, 0], 4), None);
        assert_eq!(requested_pairs(&[1, 0, 1, 0], 4), None);
    }

    proptest! {
        #[test]
        fn any_header_is_cleaned_or_refused(
            mut header: Header, kind in prop_oneof![0u8..6, 0x80u8..0x86, any::<u8>()],
            len in prop_oneof![0u32..2000, any::<u32>()],
            checksum: bool, tso4: bool, tso6: bool, ecn: bool,
        ) {
            header[1] = kind;
            let offloads = Offloads { checksum, tso4, tso6, ecn };
            if let Ok(clean) = checked_header(&header, len, offloads) {
                prop_assert!(clean[0] <= u8::from(checksum));
                prop_assert!(clean[1] & 0x7f != 1 || tso4);
                prop_assert!(clean[1] & 0x7f != 4 || tso6);
                prop_assert!(clean[1] & 0x80 == 0 || ecn);
                // What was cleaned is clean.
                prop_assert_eq!(checked_header(&clean, len, offloads), Ok(clean));
            }
        }

        #[test]
        fn any_control_request(request in prop::collection::vec(any::<u8>(), 0..8), pairs: u16) {
            if let Some(wanted) = requested_pairs(&request, pairs) {
                prop_assert!((1..=pairs).contains(&wanted));
            }
        }
    }
}
