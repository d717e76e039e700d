//! Inside the guest: evidence, secrets, exit status.

fn main() {}
