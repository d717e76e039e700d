//! What a guest's evidence says of its machine: HOST_DATA of SEV-SNP reports, MRCONFIGID of TDX quotes.
//!
//! Launch measurements cover what boots, not the machine around it. Where the configuration gives no
//! value of its own, both fields are a digest of [`GuestConfig::canonical`], so that a verifier who has
//! the file knows that the guest got this machine and no other.

use std::fmt::Write as _;

use ring::digest::{Algorithm, SHA256, SHA384, digest};

use crate::Topology;
use crate::keys::Value as _;
use crate::schema::GuestConfig;

impl GuestConfig {
    /// The machine in a canonical form: what the guest can see of it and its measurement does not
    /// cover. Lines of ASCII, each with a newline, in this order; what is left out in the
    /// configuration is a hyphen.
    ///
    /// ```text
    /// casemate machine 1
    /// memory 536870912
    /// vcpus 1
    /// cpu sockets=2 cores=4 threads=2             if it is not one socket of cores
    /// rng true
    /// console false
    /// disk read_only=false queues=1 serial=-      for each disk
    /// net queues=1 mac="02:00:00:00:00:01"        for each network interface
    /// vsock cid=3                                 if there is one
    /// ```
    ///
    /// Not in it: what is measured (kernel, initrd, command line, firmware), what reports have in
    /// fields of their own (policy, attributes), and what only the host sees (paths, taps, limits,
    /// what a reset does).
    #[must_use]
    pub fn canonical(&self) -> String {
        let mut text =
            format!("casemate machine 1\nmemory {}\nvcpus {}\n", self.memory.0, self.vcpus);
        let or_hyphen = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        // Writing to a String cannot fail.
        let topology = self.topology();
        if topology != Topology::one_socket(self.vcpus) {
            let Topology { sockets, cores, threads } = topology;
            let _ = writeln!(text, "cpu sockets={sockets} cores={cores} threads={threads}");
        }
        let _ = writeln!(text, "rng {}\nconsole {}", self.rng, self.console);
        for disk in &self.disk {
            let serial = or_hyphen(disk.serial.shown());
            let (read_only, queues) = (disk.read_only, disk.queues);
            let _ = writeln!(text, "disk read_only={read_only} queues={queues} serial={serial}");
        }
        for net in &self.net {
            let _ = writeln!(text, "net queues={} mac={}", net.queues, or_hyphen(net.mac.shown()));
        }
        if let Some(vsock) = &self.vsock {
            let _ = writeln!(text, "vsock cid={}", vsock.cid);
        }
        text
    }

    /// HOST_DATA: the configuration's own, or SHA-256 of [`Self::canonical`].
    #[must_use]
    pub fn host_data(&self) -> [u8; 32] {
        let own = self.snp.as_ref().and_then(|snp| snp.host_data.as_ref());
        own.map_or_else(|| self.digest(&SHA256), |value| value.0)
    }

    /// MRCONFIGID: the configuration's own, or SHA-384 of [`Self::canonical`].
    #[must_use]
    pub fn mrconfigid(&self) -> [u8; 48] {
        let own = self.tdx.as_ref().and_then(|tdx| tdx.mrconfigid.as_ref());
        own.map_or_else(|| self.digest(&SHA384), |value| value.0)
    }

    /// `algorithm` has digests of `N` bytes.
    fn digest<const N: usize>(&self, algorithm: &'static Algorithm) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(digest(algorithm, self.canonical().as_bytes()).as_ref());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ByteSize, Hex, Snp, Tdx, Vsock};

    fn config() -> GuestConfig {
        GuestConfig {
            memory: ByteSize(1 << 30),
            vcpus: 4,
            disk: vec![
                "/a,serial=root".parse().unwrap(),
                "/b,read_only=true,queues=2".parse().unwrap(),
            ],
            net: vec!["tap0,mac=02:00:00:00:00:01".parse().unwrap(), "tap1".parse().unwrap()],
            vsock: Some(Vsock { cid: 7, ..Vsock::default() }),
            ..GuestConfig::default()
        }
    }

    #[test]
    fn a_machine_has_one_form() {
        assert_eq!(
            config().canonical(),
            "casemate machine 1\nmemory 1073741824\nvcpus 4\nrng true\nconsole false\n\
             disk read_only=false queues=1 serial=\"root\"\n\
             disk read_only=true queues=2 serial=-\n\
             net queues=1 mac=\"02:00:00:00:00:01\"\nnet queues=1 mac=-\nvsock cid=7\n"
        );
    }

    #[test]
    fn an_arrangement_of_vcpus_that_is_not_the_default_is_part_of_the_form() {
        let cpu = |sockets, threads| Some(crate::Cpu { sockets, threads, cores: None });
        let of = |cpu| GuestConfig { cpu, ..config() }.canonical();
        assert_eq!(of(cpu(1, 1)), of(None));
        assert!(of(cpu(2, 2)).contains("\nvcpus 4\ncpu sockets=2 cores=1 threads=2\nrng true\n"));
    }

    /// The values are those of sha256sum and sha384sum over the documented text.
    #[test]
    fn evidence_has_its_digest_unless_the_file_has_a_value() {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let mut config = GuestConfig::default();
        assert_eq!(
            hex(&config.host_data()),
            "3b0495e8c58fece2631ad1d9a45e3fd90b1529539b1558faaa54da1cf4bcffa8"
        );
        assert_eq!(
            hex(&config.mrconfigid()),
            "a573568d5d244ecfecf7bbfd3e9b02aa7a73b82066ebf6ecddaeeb303e8fd79b9d3fd26695240b420c4664d14e7b1aec"
        );
        config.snp = Some(Snp { host_data: Some(Hex([1; 32])), ..Snp::default() });
        config.tdx = Some(Tdx { mrconfigid: Some(Hex([2; 48])), ..Tdx::default() });
        assert_eq!((config.host_data(), config.mrconfigid()), ([1; 32], [2; 48]));
    }

    #[test]
    fn what_only_the_host_sees_is_not_in_it() {
        let mut other = config();
        other.disk[0].path = "/elsewhere".into();
        other.net[0].tap = "tap9".into();
        other.shared_memory = Some(ByteSize(1 << 20));
        other.cmdline = "quiet".into();
        assert_eq!(other.host_data(), config().host_data());
        other.disk[0].read_only = true;
        assert_ne!(other.host_data(), config().host_data());
    }
}
