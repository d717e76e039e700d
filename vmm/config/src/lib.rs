//! The configuration of a guest: guest.toml, its checks and its reference.
