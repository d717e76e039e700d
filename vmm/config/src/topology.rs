//! The arrangement of a guest's vCPUs: sockets of cores of threads.

use crate::schema::{Cpu, GuestConfig};

/// Sockets of the guest, cores of a socket, threads of a core. An APIC id is the vCPU's number: with
/// the thread in its lowest bits, then the core, then the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets, at least 1.
    pub sockets: u32,
    /// Cores of each socket, at least 1.
    pub cores: u32,
    /// Threads of each core, 1 or 2.
    pub threads: u32,
}

impl Topology {
    /// One socket of `cores` cores with a thread each.
    #[must_use]
    pub const fn one_socket(cores: u32) -> Self {
        Self { sockets: 1, cores, threads: 1 }
    }

    /// vCPUs of one socket.
    #[must_use]
    pub const fn socket_vcpus(&self) -> u32 {
        self.cores.saturating_mul(self.threads)
    }

    /// All vCPUs.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.socket_vcpus().saturating_mul(self.sockets)
    }
}

impl GuestConfig {
    /// The arrangement of the vCPUs; `[cpu]` without `cores` has as many as there are vCPUs for.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let Cpu { sockets, cores, threads } = self.cpu.clone().unwrap_or_default();
        let others = sockets.saturating_mul(threads).max(1);
        Topology { sockets, cores: cores.unwrap_or(self.vcpus / others), threads }
    }

    /// What is wrong with the arrangement, as key, value, problem and remedy.
    pub(crate) fn topology_problem(&self) -> Option<(&'static str, u32, String, &'static str)> {
        let topology = self.topology();
        let Topology { sockets, cores, threads } = topology;
        if !(1..=2).contains(&threads) {
            let problem = "a core has 1 or 2 threads".into();
            return Some(("cpu.threads", threads, problem, "try threads = 1"));
        }
        if sockets == 0 || sockets > 255 {
            let problem = "a guest has 1 to 255 sockets".into();
            return Some(("cpu.sockets", sockets, problem, "try sockets = 1"));
        }
        if topology.vcpus() != self.vcpus {
            let vcpus = self.vcpus;
            let problem = format!("{sockets} x {cores} x {threads} threads are not {vcpus} vCPUs");
            return Some(("cpu.cores", cores, problem, "make vcpus the product of the three"));
        }
        // The number of the socket is the upper bits of the APIC id, which is the vCPU's number.
        if sockets > 1 && !topology.socket_vcpus().is_power_of_two() {
            let problem = format!(
                "with several sockets each has a power of two of threads, not {}",
                topology.socket_vcpus()
            );
            return Some(("cpu.cores", cores, problem, "try 1, 2, 4, 8 or 16 cores in a socket"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(vcpus: u32, cpu: Option<(u32, Option<u32>, u32)>) -> GuestConfig {
        let cpu = cpu.map(|(sockets, cores, threads)| Cpu { sockets, cores, threads });
        GuestConfig { vcpus, cpu, ..GuestConfig::default() }
    }

    #[test]
    fn one_socket_has_all_vcpus_unless_the_file_says_otherwise() {
        assert_eq!(guest(6, None).topology(), Topology::one_socket(6));
        let two = Topology { sockets: 2, cores: 4, threads: 2 };
        assert_eq!(guest(16, Some((2, None, 2))).topology(), two);
        assert_eq!((two.socket_vcpus(), two.vcpus()), (8, 16));
    }

    #[test]
    fn arrangements_that_apic_ids_cannot_tell_are_refused() {
        for (vcpus, cpu, key) in [
            (6, (1, None, 2), None),
            (16, (2, Some(4), 2), None),
            (8, (8, Some(1), 1), None),
            (6, (2, None, 1), Some("cpu.cores")),
            (5, (1, None, 2), Some("cpu.cores")),
            (4, (1, Some(8), 1), Some("cpu.cores")),
            (4, (1, None, 4), Some("cpu.threads")),
            (4, (0, None, 1), Some("cpu.sockets")),
            (4, (u32::MAX, Some(u32::MAX), 2), Some("cpu.sockets")),
            (4, (1, Some(u32::MAX), 2), Some("cpu.cores")),
        ] {
            let found = guest(vcpus, Some(cpu)).topology_problem().map(|(key, ..)| key);
            assert_eq!(found, key, "{vcpus} vCPUs, {cpu:?}");
        }
    }
}
