//! Reasons to refuse a file.

/// Reason to refuse a file of an image. The path is added by the caller, which knows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant documents it")]
pub enum TreeError {
    #[error("the path is absolute; store it relative to the root of the image")]
    Absolute,
    #[error("the path contains `..`")]
    ParentComponent,
    #[error("the path contains a null byte")]
    NullByte,
    #[error("a name is longer than 255 bytes")]
    NameTooLong,
    #[error("the path is longer than 4095 bytes")]
    PathTooLong,
    #[error("the path passes through more than {limit} directories")]
    TooDeep { limit: usize },
    #[error("the path passes through the symbolic link `{link}`, whose target is absolute")]
    ThroughAbsolute { link: String },
    #[error("the path passes through a symbolic link that leads out of the image")]
    LeadsOut,
    #[error("the path passes through more than 40 symbolic links")]
    LinkLoop,
    #[error("the path passes through a file that is not a directory")]
    NotADirectory,
    #[error("the layer contains this name twice")]
    Duplicate,
    #[error(
        "the names `{first}` and `{second}` differ only in case; pass --allow-case-collisions to accept them"
    )]
    CaseCollision { first: String, second: String },
    #[error(
        "the whiteout is malformed: expected an empty regular file `.wh.NAME` or `.wh..wh..opq`"
    )]
    Whiteout,
    #[error(
        "the hard link's target is absolute, contains `..`, or is not a file of this or a lower layer"
    )]
    LinkTarget,
    #[error("the symbolic link's target `{target}` leads out of the image")]
    SymlinkLeadsOut { target: String },
    #[error("the symbolic link's target is empty, longer than 4095 bytes, or contains a null byte")]
    SymlinkTarget,
    #[error("the file has {size} bytes, more than the limit of {limit}")]
    FileTooLong { size: u64, limit: u64 },
    #[error("the files have more than {limit} bytes in total; raise the limit with --max-size")]
    ImageTooLong { limit: u64 },
    #[error("the device number {major}:{minor} exceeds Linux's 12 and 20 bits")]
    DeviceNumber { major: u32, minor: u32 },
    #[error("the extended attribute `{name}` is unsupported: {reason}")]
    Xattr { name: String, reason: &'static str },
    #[error("the extended attributes have {bytes} bytes, more than 65536")]
    XattrsTooLong { bytes: usize },
    #[error("the layers contain more than {limit} files")]
    TooManyInodes { limit: u32 },
    #[error("names, links and extended attributes take more than {limit} bytes")]
    TooMuchMetadata { limit: u64 },
}
