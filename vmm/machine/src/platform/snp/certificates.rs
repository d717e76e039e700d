//! The certificates that the host adds to a guest's report (GHCB specification, "SNP Extended Guest
//! Request"; Linux `Documentation/virt/kvm/api.rst`, KVM_EXIT_SNP_REQ_CERTS).

#![allow(unsafe_code, reason = "open file description locks have no safe form")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use casemate_devices::memory::DeviceMemory;
use casemate_kvm::exit::{CertificateReply, CertificateRequest};
use casemate_sandbox::Sandbox;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use vm_memory::{Bytes as _, GuestAddress};

use crate::helper::{Helper, call};

/// More is no table of certificates.
const MOST: u64 = 1 << 20;
/// A GUID, then offset and length as u32.
const ENTRY: usize = 24;
const PAGE: usize = 4096;

/// A file with a certificate table: entries of GUID, offset and length, one of zeroes, and what they
/// point to.
pub(super) struct Certificates {
    source: Arc<Source>,
    /// What reads it.
    helper: Option<Helper>,
}

/// The file by its name, as it is replaced by another one of the same name.
struct Source {
    path: PathBuf,
    /// Its directory, once paths lead nowhere.
    folder: Option<OwnedFd>,
}

/// A lock on the file, here a shared one. Who replaces the chip's key or its TCB takes an exclusive one, writes new
/// certificates, and lets go: a report never comes with certificates of another key.
struct Lock(File);

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
enum TableError {
    #[error("it is being replaced")]
    Busy,
    #[error("could not be read")]
    Read(#[from] io::Error),
    #[error("is no certificate table: {0}")]
    Malformed(&'static str),
}

impl Certificates {
    pub(super) fn of(file: &Path) -> Self {
        Self { source: Arc::new(Source { path: file.into(), folder: None }), helper: None }
    }

    /// From now on a thread in `sandbox` reads the file, below the directory that it is in now.
    pub(super) fn serve(&mut self, sandbox: &Sandbox) -> io::Result<()> {
        let path = self.source.path.clone();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = File::open(parent.unwrap_or(Path::new(".")))?;
        self.source = Arc::new(Source { path, folder: Some(folder.into()) });
        self.helper = Some(Helper::start(sandbox)?);
        Ok(())
    }

    /// Answers a request. What comes beside the reply is to live until the report was taken.
    pub(super) fn answer(
        &self,
        request: CertificateRequest,
        memory: &DeviceMemory,
    ) -> (CertificateReply, Option<Box<dyn Send>>) {
        let source = Arc::clone(&self.source);
        let (table, lock) = match call(self.helper.as_ref(), move || source.read()) {
            Some(Ok(found)) => found,
            None | Some(Err(TableError::Busy)) => return (CertificateReply::Busy, None),
            Some(Err(error)) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(file = %self.source.path.display(), %error, source, "no certificates for a guest");
                return (CertificateReply::Failed, None);
            }
        };
        let pages = table.len().div_ceil(PAGE) as u64;
        if request.pages < pages {
            return (CertificateReply::TooSmall { pages }, None);
        }
        match memory.write_slice(&table, GuestAddress(request.gpa)) {
            Ok(()) => (CertificateReply::Ready, Some(Box::new(lock))),
            Err(error) => {
                let gpa = request.gpa;
                tracing::warn!(gpa, %error, "certificates cannot go where the guest wants them");
                (CertificateReply::Failed, None)
            }
        }
    }
}

impl Source {
    /// The file as it is now. A link must lead to a file of the same directory.
    fn open(&self) -> io::Result<File> {
        let (Some(folder), Some(name)) = (&self.folder, self.path.file_name()) else {
            return File::open(&self.path);
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat2(folder, name, flags, Mode::empty(), ResolveFlags::BENEATH)?;
        Ok(file.into())
    }

    fn read(&self) -> Result<(Vec<u8>, Lock), TableError> {
        let lock = Lock::take(self.open()?, libc::F_RDLCK)?;
        let mut table = Vec::new();
        (&lock.0).take(MOST + 1).read_to_end(&mut table)?;
        check(&table).map_err(TableError::Malformed)?;
        Ok((table, lock))
    }
}

impl Lock {
    /// On all of the file; `kind` is F_RDLCK or F_WRLCK.
    fn take(file: File, kind: libc::c_int) -> Result<Self, TableError> {
        let short = |number| libc::c_short::try_from(number).unwrap_or(libc::c_short::MAX);
        let (l_type, l_whence) = (short(kind), short(libc::SEEK_SET));
        let range = libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 };
        // SAFETY: the command reads this structure; the lock ends with the file's description, which
        // is not shared with anybody.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
            return Ok(Self(file));
        }
        let error = io::Error::last_os_error();
        Err(match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => TableError::Busy,
            _ => error.into(),
        })
    }
}

/// Whether the entries end, and point into the table.
fn check(table: &[u8]) -> Result<(), &'static str> {
    if table.len() as u64 > MOST {
        return Err("it is longer than 1 MiB");
    }
    for entry in table.chunks_exact(ENTRY) {
        if entry.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let number = |at: usize| {
            let bytes = entry.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(u64::MAX, |bytes| u64::from(u32::from_le_bytes(bytes)))
        };
        if number(16) + number(20) > table.len() as u64 {
            return Err("an entry points beyond its end");
        }
    }
    Err("its entries do not end with one of zeroes")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use casemate_devices::memory::SharedPages;
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::*;

    /// A table with one certificate, VCEK, of `length` bytes.
    fn table(length: usize) -> Vec<u8> {
        let mut table = vec![0xab; 16];
        table.extend(u32::try_from(2 * ENTRY).unwrap().to_le_bytes());
        table.extend(u32::try_from(length).unwrap().to_le_bytes());
        table.resize(2 * ENTRY, 0);
        table.resize(2 * ENTRY + length, 7);
        table
    }

    /// 64 KiB of which the second page and the two after it are shared.
    fn memory() -> DeviceMemory {
        let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let memory = DeviceMemory::new(backend, SharedPages::new(GuestAddress(0x1_0000)), true, ());
        memory.iommu().share(GuestAddress(0x1000), 0x3000).unwrap();
        memory
    }

    /// Takes the lock of somebody who replaces the file.
    fn replace(file: &Path) -> Result<Lock, TableError> {
        Lock::take(fs::OpenOptions::new().write(true).open(file)?, libc::F_WRLCK)
    }

    /// At the boundary: the emulated host's kernel is older than the exit.
    #[test]
    fn certificates_are_written_and_stay_until_the_report_was_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("certificates");
        let table = table(5000);
        fs::write(&file, &table).unwrap();
        let (certificates, memory) = (Certificates::of(&file), memory());
        let ask = |gpa, pages| certificates.answer(CertificateRequest { gpa, pages }, &memory);

        let (reply, held) = ask(0x1000, 2);
        assert_eq!(reply, CertificateReply::Ready);
        let mut written = vec![0; table.len()];
        memory.read_slice(&mut written, GuestAddress(0x1000)).unwrap();
        assert_eq!(written, table);
        assert!(matches!(replace(&file), Err(TableError::Busy)));
        drop(held);
        assert!(replace(&file).is_ok());

        for (gpa, pages, expected) in [
            (0x1000, 1, CertificateReply::TooSmall { pages: 2 }),
            (0x1000, 0, CertificateReply::TooSmall { pages: 2 }),
            (0x3000, 2, CertificateReply::Failed),
            (u64::MAX - 4095, 2, CertificateReply::Failed),
            (0xd000_0000, u64::MAX, CertificateReply::Failed),
        ] {
            let (reply, held) = ask(gpa, pages);
            assert_eq!((reply, held.is_none()), (expected, true), "{gpa:#x}");
            assert!(replace(&file).is_ok());
        }
    }

    #[test]
    fn a_file_that_is_replaced_gone_or_no_table_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("certificates");
        let (mut certificates, memory) = (Certificates::of(&file), memory());
        certificates.serve(&Sandbox::off()).unwrap();
        let ask = || certificates.answer(CertificateRequest { gpa: 0x1000, pages: 2 }, &memory).0;
        assert_eq!(ask(), CertificateReply::Failed);
        fs::write(&file, [1; 100]).unwrap();
        assert_eq!(ask(), CertificateReply::Failed);
        fs::write(&file, table(10)).unwrap();
        assert_eq!(ask(), CertificateReply::Ready);
        let writer = replace(&file).unwrap();
        assert_eq!(ask(), CertificateReply::Busy);
        drop(writer);
        // Replaced by rename, and by links.
        let other = folder.path().join("other");
        fs::rename(&file, &other).unwrap();
        assert_eq!(ask(), CertificateReply::Failed);
        std::os::unix::fs::symlink("other", &file).unwrap();
        assert_eq!(ask(), CertificateReply::Ready);
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(&other, &file).unwrap();
        assert_eq!(ask(), CertificateReply::Failed, "a link that leaves the directory");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
        }
    }
}
