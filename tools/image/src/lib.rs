//! Container images as measured disks.
//!
//! [`build`] turns an OCI layout, an archive of one, an archive of `docker save`, or a directory into one file:
//! a read-only erofs file system, then a dm-verity hash tree of it. The bytes are a function of the files in
//! the image alone, so that anyone who has the image can compute the root hash. The guest gets the root hash on
//! its measured command line and checks each block against it.
//!
//! Contents are streamed; the tree of names is in memory, within [`Limits`]. Foreign input is never extracted:
//! files of an image do not become files of the host.

#![forbid(unsafe_code)]

mod build;
mod check;
pub mod erofs;
mod layer;
mod limits;
pub mod source;
pub mod tar;
pub mod tree;
pub mod verity;

pub use build::{BuildError, Built, Stage, build};
pub use check::{CheckError, ImageFile};
pub use layer::{LayerError, apply};
pub use limits::Limits;
pub use source::{ImageInfo, Selection, Source, SourceError};
