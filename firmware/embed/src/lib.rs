//! The firmware image, built with this crate and embedded in whoever uses it.
