//! Words for whoever waits.

use std::fmt;

/// One line on the standard error: what is being done that takes a while.
pub(crate) fn say(what: fmt::Arguments<'_>) {
    eprintln!("lab: {what}");
}
