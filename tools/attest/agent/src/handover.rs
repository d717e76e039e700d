//! Handing a secret on: to a process on a file descriptor, or to cryptsetup on its standard input.
#![allow(unsafe_code, reason = "std has no safe way to place a pipe at a chosen descriptor")]

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, Write as _};
use std::os::fd::{AsRawFd as _, IntoRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use zeroize::Zeroizing;

use crate::LuksHeader;

/// A secret that could not be handed on.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Standard output and standard error are not for secrets.
    #[error("the secret cannot go to descriptor {0}: take 0, or 3 and more")]
    Descriptor(RawFd),
    /// No pipe that holds it.
    #[error("could not put {length} bytes into a pipe")]
    Pipe {
        /// The secret's length.
        length: usize,
        /// Why.
        source: io::Error,
    },
    /// No memory for a volume's header.
    #[error("could not put the LUKS header into a file in memory")]
    Header(#[source] io::Error),
    /// The program does not start.
    #[error("could not run {}", .program.display())]
    Start {
        /// Which program.
        program: OsString,
        /// Why.
        source: io::Error,
    },
    /// The program ran, and failed.
    #[error("{} {status}", .program.display())]
    Failed {
        /// Which program.
        program: OsString,
        /// How it ended.
        status: ExitStatus,
    },
}

/// Becomes `program`, which reads the secret from `descriptor` until its end. Returns only if that
/// fails.
pub fn run(
    secret: Zeroizing<Vec<u8>>,
    descriptor: RawFd,
    program: &OsStr,
    arguments: &[OsString],
) -> HandoverError {
    if descriptor < 0 || descriptor == 1 || descriptor == 2 {
        return HandoverError::Descriptor(descriptor);
    }
    let length = secret.len();
    let placed = filled_pipe(&secret).and_then(|pipe| place(pipe, descriptor));
    drop(secret);
    if let Err(source) = placed {
        return HandoverError::Pipe { length, source };
    }
    let source = Command::new(program).args(arguments).exec();
    HandoverError::Start { program: program.to_owned(), source }
}

/// Opens the LUKS volume on `device` as `/dev/mapper/NAME`, with the secret as its passphrase. `cryptsetup`
/// reads `header` instead of the header on the device.
///
/// # Errors
/// `cryptsetup` does not start, or refuses.
pub fn open_volume(
    secret: &Zeroizing<Vec<u8>>,
    header: &LuksHeader,
    cryptsetup: &OsStr,
    device: &Path,
    name: &OsStr,
) -> Result<(), HandoverError> {
    let header = header.to_memory_file().map_err(HandoverError::Header)?;
    let start = |source| HandoverError::Start { program: cryptsetup.to_owned(), source };
    let pipe = filled_pipe(secret)
        .map_err(|source| HandoverError::Pipe { length: secret.len(), source })?;
    let status = Command::new(cryptsetup)
        .args(["open", "--type", "luks2", "--key-file", "-", "--header"])
        .arg(format!("/proc/self/fd/{}", header.as_raw_fd()))
        .arg("--")
        .args([device.as_os_str(), name])
        .stdin(Stdio::from(pipe))
        .status()
        .map_err(start)?;
    if status.success() {
        Ok(())
    } else {
        Err(HandoverError::Failed { program: cryptsetup.to_owned(), status })
    }
}

/// The reading end of a pipe that holds the whole secret.
fn filled_pipe(secret: &[u8]) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    // Nobody reads yet: a pipe that is too small must be an error, not a wait for ever.
    // SAFETY: sets a flag of a descriptor that `writer` owns and keeps open during the call.
    if unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    writer.write_all(secret)?;
    Ok(reader)
}

/// Makes `descriptor` the pipe, to stay open across exec, which the caller does next.
fn place(pipe: PipeReader, descriptor: RawFd) -> io::Result<()> {
    // Not closed here: exec closes it, or keeps it if it is the one.
    let pipe = pipe.into_raw_fd();
    let placed = if pipe == descriptor {
        // SAFETY: clears the close-on-exec flag of a descriptor that is open and owned by nobody
        // else since `into_raw_fd`; no memory is touched.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) }
    } else {
        // SAFETY: touches no memory. Whatever owned `descriptor` in this process loses it; the only
        // caller replaces the process by another program next, or ends it with an error.
        unsafe { libc::dup2(pipe, descriptor) }
    };
    if placed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(bytes.to_vec())
    }

    #[test]
    fn standard_output_is_not_for_secrets() {
        for descriptor in [-1, 1, 2] {
            let error = run(secret(b"x"), descriptor, OsStr::new("true"), &[]);
            assert!(matches!(error, HandoverError::Descriptor(_)), "{error}");
        }
    }

    #[test]
    fn a_secret_that_fits_into_no_pipe_is_an_error_and_no_wait() {
        let error = filled_pipe(&vec![0; 1024 * 1024]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(filled_pipe(&[0; casemate_protocol::MAX_SECRET]).is_ok());
    }

    /// The test binary runs itself; the copy, told so by the environment, becomes a shell.
    #[test]
    fn the_program_reads_the_secret_from_the_descriptor() {
        const TOLD: &str = "HANDOVER_TEST_DESCRIPTOR";
        if let Ok(descriptor) = std::env::var(TOLD) {
            let script =
                format!("cat <&{descriptor}; cat /proc/self/environ /proc/self/cmdline >&2");
            let arguments = ["-c".into(), script.into()];
            let error = run(
                secret(b"a secret\0"),
                descriptor.parse().unwrap(),
                OsStr::new("sh"),
                &arguments,
            );
            panic!("{error}");
        }
        for descriptor in ["0", "3", "7"] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture"])
                .arg("handover::tests::the_program_reads_the_secret_from_the_descriptor")
                .env(TOLD, descriptor)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.ends_with("a secret\0"), "{descriptor}: {output:?}");
            assert!(!String::from_utf8_lossy(&output.stderr).contains("a secret"), "{output:?}");
        }
    }
}
