//! Emulated hosts: whole machines in software that run a command under a real `/dev/kvm`.

#![forbid(unsafe_code)]
