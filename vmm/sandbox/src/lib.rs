//! The processes of a run: a small parent, and the child that holds the guest.
//!
//! [`Child::spawn`] forks the child before the parent has any thread; [`Signals`] keeps signals from both
//! and hands them to the parent alone.

mod child;
mod signals;

pub use child::{Child, End, SpawnError};
pub use signals::Signals;
