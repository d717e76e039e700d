//! The kernel interfaces that kvm-ioctls lacks: guest_memfd, SEV-SNP, TDX, host probing.
