//! What drivers do wrong with their queues.

/// A driver broke the rules of a virtqueue, so that it cannot be served any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("virtqueue {queue}: {reason} (at guest-physical address {address:#x})")]
pub struct QueueFault {
    /// Index of the queue.
    pub queue: u16,
    /// Where: guest-physical address of the ring entry, descriptor or buffer.
    pub address: u64,
    /// What is wrong there.
    pub reason: FaultReason,
}

/// What is wrong (VIRTIO 1.2, section 2.7, unless it says otherwise).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultReason {
    /// Rings must stay in memory that the guest shares.
    #[error("the ring lies outside of memory or in pages that the guest keeps private")]
    Ring,
    /// The available index counts chains; there cannot be more new ones than descriptors.
    #[error("the available index jumped by {by}, the queue has {size} descriptors")]
    AvailableIndex {
        /// New chains since the last look.
        by: u16,
        /// Size of the queue.
        size: u16,
    },
    /// A chain may not be offered again before it was used.
    #[error("more chains are in flight than the queue has descriptors ({0})")]
    InFlight(u16),
    /// A descriptor index past the end of its table.
    #[error("descriptor {index} of a table of {size}")]
    Index {
        /// Index of the descriptor.
        index: u16,
        /// Entries of the table, the queue's or an indirect one.
        size: u16,
    },
    /// A descriptor table must be readable.
    #[error("the descriptor lies outside of memory or in pages that the guest keeps private")]
    Descriptor,
    /// A loop, or more than section 2.7.5.3.1 allows.
    #[error("the chain is longer than the queue ({0} descriptors)")]
    ChainLength(u16),
    /// Readable buffers come first (section 2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    Order,
    /// Buffers have at least one byte.
    #[error("an empty buffer")]
    EmptyBuffer,
    /// All buffers of a chain together (section 2.7.5).
    #[error("the buffers of the chain are longer than 4 GiB together")]
    ChainBytes,
    /// Buffers must stay in memory that the guest shares.
    #[error("the buffer of {0} bytes leaves memory or touches pages that the guest keeps private")]
    Buffer(u32),
    /// The feature RING_INDIRECT_DESC is missing.
    #[error("an indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    /// Section 2.7.5.3.1: no INDIRECT in indirect tables, not both INDIRECT and NEXT.
    #[error("an indirect descriptor inside of an indirect table, or one with a next descriptor")]
    IndirectNested,
    /// An indirect table is an array of 16-byte descriptors.
    #[error("an indirect table of {0} bytes")]
    IndirectTable(u32),
    /// The device's own rules: what it found in the chain is no request.
    #[error("{0}")]
    Request(&'static str),
}
