//! Releases secrets only to guests that prove themselves, and writes everything down.
