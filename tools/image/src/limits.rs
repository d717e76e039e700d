//! Bounds on what an image may make this crate read, keep or write.

/// Bounds on foreign input. Each is checked before the memory or the disk space is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories and other inodes of all layers together, including those that upper layers remove.
    pub inodes: u32,
    /// Bytes of names, link targets and extended attributes of all layers together, all kept in memory.
    pub metadata_bytes: u64,
    /// Bytes of one regular file.
    pub file_bytes: u64,
    /// Bytes of all regular files of the result together.
    pub image_bytes: u64,
    /// Bytes of one uncompressed layer.
    pub layer_bytes: u64,
    /// Uncompressed bytes per compressed byte of a layer, once it is longer than [`RATIO_FROM`](Self::RATIO_FROM).
    pub expansion: u64,
    /// Directories between the root and a file.
    pub depth: usize,
}

impl Limits {
    /// Uncompressed bytes up to which a layer may expand by any factor.
    pub const RATIO_FROM: u64 = 64 << 20;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inodes: 1 << 21,
            metadata_bytes: 256 << 20,
            file_bytes: 16 << 30,
            image_bytes: 64 << 30,
            layer_bytes: 64 << 30,
            expansion: 250,
            depth: 256,
        }
    }
}
