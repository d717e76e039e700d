//! The processes of a run, and the rights that the one with the guest gives up.
//!
//! A small parent forks the child that holds the guest: [`Child::spawn`] before the parent has any thread, and
//! [`Signals`], which reach the parent alone. The child builds a [`Sandbox`] before it opens anything, each of
//! its threads [enters](Sandbox::enter) it, and [`Sandbox::seal`] closes it before the guest's first
//! instruction. A broker does the same in its one process.

mod child;
mod error;
mod files;
mod filter;
mod privileges;
mod root;
mod sandbox;
mod signals;
mod user;

pub use child::{Child, End, SpawnError};
pub use error::SandboxError;
pub use filter::Thread;
pub use sandbox::{Access, Mode, Sandbox};
pub use signals::Signals;
pub use user::{User, UserError};
