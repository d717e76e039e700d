//! Evidence from the kernel: configfs-tsm (Linux, `Documentation/ABI/testing/configfs-tsm-report`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use casemate_protocol::Evidence;
use kbs_types::Tee;

/// Where the kernel has its reports.
pub const TSM_ROOT: &str = "/sys/kernel/config/tsm/report";
/// Entries that may be left of killed processes with the same identifier.
const LEFT: usize = 64;
/// How often to begin again when somebody else wrote to the same entry.
const ATTEMPTS: usize = 3;

/// Something that makes evidence over 64 bytes of the caller's.
pub trait EvidenceSource {
    /// Whose evidence it is.
    ///
    /// # Errors
    /// See [`EvidenceError`].
    fn tee(&self) -> Result<Tee, EvidenceError>;

    /// Makes evidence whose REPORT_DATA is `report_data`.
    ///
    /// # Errors
    /// See [`EvidenceError`].
    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError>;
}

/// No evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The kernel's interface is not there.
    #[error(
        "{} is not there: this is no confidential guest, its driver (sev-guest or tdx-guest) is not \
         loaded, or configfs is not mounted (mount -t configfs none /sys/kernel/config)",
        .0.display()
    )]
    NoInterface(PathBuf),
    /// A step of it fails.
    #[error("could not {step} {}", .path.display())]
    Step {
        /// What was attempted.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A processor that is not known here.
    #[error("evidence of the provider \"{0}\" is not known here; sev_guest and tdx_guest are")]
    Provider(String),
    /// Too many entries are left.
    #[error(
        "{} has {LEFT} entries of killed agents with this process identifier; remove them with rmdir",
        .0.display()
    )]
    Full(PathBuf),
    /// Others use the same entry again and again.
    #[error("{} was written to by others {ATTEMPTS} times", .0.display())]
    Disturbed(PathBuf),
}

/// The kernel's interface.
pub struct Tsm {
    root: PathBuf,
}

impl Tsm {
    /// The interface at `root`, which is [`TSM_ROOT`] but in tests.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Tsm { root: root.to_owned() }
    }
}

impl EvidenceSource for Tsm {
    fn tee(&self) -> Result<Tee, EvidenceError> {
        Entry::create(&self.root)?.tee()
    }

    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let entry = Entry::create(&self.root)?;
        for _ in 0..ATTEMPTS {
            if let Some(evidence) = entry.ask(report_data)? {
                return Ok(evidence);
            }
        }
        Err(EvidenceError::Disturbed(entry.path.clone()))
    }
}

/// One report's directory; it goes away with the value.
struct Entry {
    path: PathBuf,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // There is nobody to tell: at worst an empty entry stays until the guest ends.
        let _ = fs::remove_dir(&self.path);
    }
}

impl Entry {
    fn create(root: &Path) -> Result<Self, EvidenceError> {
        if !root.is_dir() {
            return Err(EvidenceError::NoInterface(root.to_owned()));
        }
        let mut names = (0..LEFT).map(|number| {
            let path = root.join(format!("casemate-{}-{number}", std::process::id()));
            let made = fs::create_dir(&path);
            (path, made)
        });
        // A killed process leaves its entry, and another process namespace has the same identifiers:
        // somebody else's entry is passed over, and neither used nor removed.
        let is_taken = |(_, made): &(_, io::Result<()>)| {
            made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
        };
        match names.find(|name| !is_taken(name)) {
            Some((path, Ok(()))) => Ok(Entry { path }),
            Some((path, Err(source))) => {
                Err(EvidenceError::Step { step: "make the entry", path, source })
            }
            None => Err(EvidenceError::Full(root.to_owned())),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, EvidenceError> {
        let path = self.path.join(name);
        fs::read(&path).map_err(|source| EvidenceError::Step { step: "read", path, source })
    }

    fn tee(&self) -> Result<Tee, EvidenceError> {
        let provider = self.read("provider")?;
        match String::from_utf8_lossy(&provider).trim() {
            "sev_guest" => Ok(Tee::Snp),
            "tdx_guest" => Ok(Tee::Tdx),
            other => Err(EvidenceError::Provider(other.to_owned())),
        }
    }

    /// The number of writes to this entry so far.
    fn generation(&self) -> Result<Vec<u8>, EvidenceError> {
        self.read("generation")
    }

    /// One attempt; `None` when others wrote to the entry meanwhile, so that what was read may be
    /// evidence over their data.
    fn ask(&self, report_data: &[u8; 64]) -> Result<Option<Evidence>, EvidenceError> {
        let tee = self.tee()?;
        let path = self.path.join("inblob");
        if let Err(source) = fs::write(&path, report_data) {
            return Err(EvidenceError::Step { step: "write the report data to", path, source });
        }
        let before = self.generation()?;
        let outblob = self.read("outblob")?;
        let evidence = match tee {
            Tee::Snp => Evidence::Snp { report: outblob, certificates: self.certificates()? },
            _ => Evidence::Tdx { quote: outblob, event_log: event_log() },
        };
        Ok((self.generation()? == before && over(&evidence, report_data)).then_some(evidence))
    }

    /// The host's certificate table. A host that has none gives an empty one, or none.
    fn certificates(&self) -> Result<Vec<u8>, EvidenceError> {
        match self.read("auxblob") {
            Err(EvidenceError::Step { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            other => other,
        }
    }
}

/// Whether evidence is over this data: somebody may have written between our write and the first
/// look at the generation.
fn over(evidence: &Evidence, report_data: &[u8; 64]) -> bool {
    // REPORT_DATA of a report (SEV-SNP firmware ABI) and REPORTDATA of a quote's TD report body (TDX
    // DCAP quoting library, quote version 4; version 5 has six more bytes before it).
    match evidence {
        Evidence::Snp { report, .. } => report.get(0x50..0x90) == Some(report_data),
        Evidence::Tdx { quote, .. } => {
            [48 + 520, 48 + 6 + 520].iter().any(|at| quote.get(*at..at + 64) == Some(report_data))
        }
    }
}

/// The event log that TDX firmware leaves (ACPI table CCEL).
fn event_log() -> Option<Vec<u8>> {
    fs::read("/sys/firmware/acpi/tables/data/CCEL").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as the kernel shows it after a report was made, in a directory that makes none.
    fn entry(provider: &str, outblob: &[u8]) -> (tempfile::TempDir, Entry) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entry");
        fs::create_dir(&path).unwrap();
        for (name, contents) in
            [("provider", provider.as_bytes()), ("outblob", outblob), ("generation", b"1\n")]
        {
            fs::write(path.join(name), contents).unwrap();
        }
        (folder, Entry { path })
    }

    #[test]
    fn reads_a_report_and_its_certificates() {
        let mut report = vec![0; 1184];
        report[0x50..0x90].fill(7);
        let (_folder, entry) = entry("sev_guest\n", &report);
        let without = Evidence::Snp { report: report.clone(), certificates: vec![] };
        assert_eq!(entry.ask(&[7; 64]).unwrap(), Some(without));
        assert_eq!(fs::read(entry.path.join("inblob")).unwrap(), [7; 64]);
        fs::write(entry.path.join("auxblob"), b"table").unwrap();
        let with = Evidence::Snp { report, certificates: b"table".to_vec() };
        assert_eq!(entry.ask(&[7; 64]).unwrap(), Some(with));
    }

    #[test]
    fn a_report_over_other_data_is_not_taken() {
        let (_folder, entry) = entry("sev_guest\n", &[0; 1184]);
        assert_eq!(entry.ask(&[7; 64]).unwrap(), None);
    }

    #[test]
    fn a_quote_of_either_version_is_recognized() {
        for at in [568, 574] {
            let mut quote = vec![0; 5000];
            quote[at..at + 64].fill(9);
            let (_folder, entry) = entry("tdx_guest\n", &quote);
            assert!(entry.ask(&[9; 64]).unwrap().is_some());
        }
    }

    #[test]
    fn an_entry_of_a_killed_predecessor_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let stale = folder.path().join(format!("casemate-{}-0", std::process::id()));
        fs::create_dir(&stale).unwrap();
        let entry = Entry::create(folder.path()).unwrap();
        assert_ne!(entry.path, stale);
        drop(entry);
        assert!(stale.exists());
        let taken: Vec<_> = (1..LEFT).map(|_| Entry::create(folder.path()).unwrap()).collect();
        assert!(matches!(Entry::create(folder.path()), Err(EvidenceError::Full(_))));
        drop(taken);
        assert!(Entry::create(folder.path()).is_ok());
    }

    #[test]
    fn what_is_not_there_is_said() {
        let error = Tsm::new(Path::new("/nowhere")).evidence(&[0; 64]).unwrap_err();
        assert!(error.to_string().contains("no confidential guest"), "{error}");
        let (_folder, entry) = entry("arm_cca_guest\n", &[0; 1184]);
        let error = entry.ask(&[0; 64]).unwrap_err();
        assert!(error.to_string().contains("arm_cca_guest"), "{error}");
    }
}
