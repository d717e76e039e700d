//! The logic of the measured guest firmware.

#![no_std]
#![forbid(unsafe_code)]
