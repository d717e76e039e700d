//! Limits of the host that a guest would meet only while it runs, checked before anything is created.

use std::fs;

use casemate_config::{ByteSize, GuestConfig};
use casemate_plan::board::gsi;

/// Descriptors of a guest without devices: KVM, event loops, standard input and output, signals.
const BASE_DESCRIPTORS: u64 = 40;
/// Of a vCPU: its own, and one while it starts.
const VCPU_DESCRIPTORS: u64 = 2;
/// Of a virtio device: its file a second time, its thread's event loop, the interrupt for its
/// configuration.
const DEVICE_DESCRIPTORS: u64 = 10;
/// Of a queue: notification, interrupt, io_uring or tap and vhost, completions, timer, a thread's event
/// loop.
const QUEUE_DESCRIPTORS: u64 = 8;
/// Message interrupts of all devices: KVM_MAX_IRQ_ROUTES, less the I/O APIC's.
const INTERRUPTS: u64 = 4096 - gsi::COUNT as u64;
/// Memory of this process beside the guest's.
const OVERHEAD: u64 = 64 << 20;

/// A limit that the guest would exceed.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// RLIMIT_NOFILE.
    #[error(
        "this process may open {left} more files (RLIMIT_NOFILE is {limit}), and the guest needs up to \
         {needed}; raise the limit (ulimit -n, or LimitNOFILE= of a systemd unit), or give the guest \
         fewer queues and devices"
    )]
    Files {
        /// Descriptors that are free.
        left: u64,
        /// The limit.
        limit: u64,
        /// Descriptors that the guest may need.
        needed: u64,
    },
    /// KVM_MAX_IRQ_ROUTES.
    #[error(
        "KVM has {INTERRUPTS} message interrupts for a guest's devices, and the guest needs {needed}; \
         give it fewer queues or devices"
    )]
    Interrupts {
        /// Interrupts that the guest needs.
        needed: u64,
    },
    /// RLIMIT_AS.
    #[error(
        "this process may map {limit} bytes (RLIMIT_AS), and the guest needs {needed}; raise the limit \
         (ulimit -v), or lower memory"
    )]
    AddressSpace {
        /// The limit.
        limit: u64,
        /// Bytes that the guest needs.
        needed: u64,
    },
    /// Strict overcommit.
    #[error(
        "the host commits no more memory than it has (vm.overcommit_memory = 2): {left} bytes are left, \
         and the guest needs {needed}; lower memory, or raise vm.overcommit_ratio"
    )]
    Commit {
        /// Bytes that the host would still commit.
        left: u64,
        /// Bytes that the guest needs.
        needed: u64,
    },
}

/// What the host allows this process.
#[derive(Clone, Debug)]
struct Host {
    open_files: u64,
    file_limit: u64,
    address_space: u64,
    /// Bytes that can still be committed, if the host counts them.
    committable: Option<u64>,
}

impl Host {
    fn now() -> Self {
        let open_files = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let limit = |name| soft_limit(&limits, name).unwrap_or(u64::MAX);
        let strict = fs::read_to_string("/proc/sys/vm/overcommit_memory")
            .is_ok_and(|mode| mode.trim() == "2");
        let committable =
            strict.then(|| committable(&fs::read_to_string("/proc/meminfo").ok()?)).flatten();
        Self {
            open_files,
            file_limit: limit("Max open files"),
            address_space: limit("Max address space"),
            committable,
        }
    }

    fn check(&self, config: &GuestConfig) -> Result<(), LimitError> {
        let (left, needed) = (self.file_limit.saturating_sub(self.open_files), descriptors(config));
        if needed > left {
            return Err(LimitError::Files { left, limit: self.file_limit, needed });
        }
        // One for each queue, and one for the configuration of each device.
        let needed = queues(config).iter().map(|queues| queues + 1).sum();
        if needed > INTERRUPTS {
            return Err(LimitError::Interrupts { needed });
        }
        let ByteSize(memory) = config.memory;
        let needed = memory.saturating_add(OVERHEAD);
        if needed > self.address_space {
            return Err(LimitError::AddressSpace { limit: self.address_space, needed });
        }
        match self.committable {
            Some(left) if needed > left => Err(LimitError::Commit { left, needed }),
            _ => Ok(()),
        }
    }
}

/// Checks the host against the guest of `config`.
///
/// # Errors
/// If the guest would meet a limit.
pub(crate) fn check(config: &GuestConfig) -> Result<(), LimitError> {
    Host::now().check(config)
}

/// The number of queues of each device.
fn queues(config: &GuestConfig) -> Vec<u64> {
    // The network's pairs, and its control queue.
    let disks = config.disk.iter().map(|disk| u64::from(disk.queues));
    let nets = config.net.iter().map(|net| 2 * u64::from(net.queues) + 1);
    // Three queues of a socket device and of a balloon, two of a console, one of an entropy device.
    let others =
        [(config.vsock.is_some(), 3), (config.balloon, 3), (config.console, 2), (config.rng, 1)];
    let others = others.into_iter().filter_map(|(there, queues)| there.then_some(queues));
    disks.chain(nets).chain(others).collect()
}

/// File descriptors that a guest needs at most, without streams of its socket device, which refuses
/// those for which there are none.
fn descriptors(config: &GuestConfig) -> u64 {
    let queues = queues(config);
    BASE_DESCRIPTORS
        + VCPU_DESCRIPTORS * u64::from(config.vcpus)
        + DEVICE_DESCRIPTORS * queues.len() as u64
        + QUEUE_DESCRIPTORS * queues.iter().sum::<u64>()
}

/// The soft limit in a line of /proc/self/limits; `None` where there is none.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// CommitLimit less Committed_AS of /proc/meminfo, in bytes.
fn committable(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    let left = kib("CommitLimit:")?.saturating_sub(kib("Committed_AS:")?);
    left.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use casemate_config::{Disk, Overrides, from_flags};

    use super::*;

    const PLENTY: Host =
        Host { open_files: 10, file_limit: 1 << 20, address_space: u64::MAX, committable: None };

    fn config() -> GuestConfig {
        let flags = [("kernel", "/proc/self/exe"), ("platform", "plain")];
        from_flags(Overrides::new(flags).unwrap()).unwrap()
    }

    #[test]
    fn each_limit_is_named_with_both_numbers() {
        PLENTY.check(&config()).unwrap();
        let message = |host: Host| host.check(&config()).unwrap_err().to_string();
        let files = message(Host { file_limit: 32, ..PLENTY });
        assert!(files.contains("22 more files (RLIMIT_NOFILE is 32)"), "{files}");
        let space = message(Host { address_space: 400 << 20, ..PLENTY });
        assert!(space.contains("419430400 bytes (RLIMIT_AS)"), "{space}");
        let commit = message(Host { committable: Some(1 << 20), ..PLENTY });
        assert!(commit.contains("1048576 bytes are left"), "{commit}");
    }

    #[test]
    fn queues_take_interrupts() {
        let disk = Disk { queues: 16, ..Disk::default() };
        let with = |count| GuestConfig { disk: vec![disk.clone(); count], rng: false, ..config() };
        PLENTY.check(&with(240)).unwrap();
        let error = PLENTY.check(&with(241)).unwrap_err().to_string();
        assert!(error.contains("4088 message interrupts") && error.contains("4097"), "{error}");
    }

    #[test]
    fn queues_take_descriptors() {
        let without = config();
        let disk = Disk { queues: 16, ..Disk::default() };
        let with = GuestConfig { disk: vec![disk; 3], ..without.clone() };
        assert!(descriptors(&with) > descriptors(&without) + 3 * 16 * 5);
    }

    #[test]
    fn files_of_the_kernel_are_understood() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n\
                      Max address space         unlimited            unlimited            bytes\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024));
        assert_eq!(soft_limit(limits, "Max address space"), None);
        let meminfo = "CommitLimit:     2000 kB\nCommitted_AS:    1500 kB\n";
        assert_eq!(committable(meminfo), Some(500 * 1024));
        assert_eq!(committable(""), None);
    }
}
