//! Why a command failed, and what to try.

mod advice;
mod seamcall;
mod sev;

use std::fmt;
use std::io;

pub use seamcall::SeamcallStatus;
pub use sev::SevStatus;

/// Characters of a command's arguments that its error shows: enough for all but whole tables of CPUID
/// and register files.
const SHOWN: usize = 300;

/// A command that the kernel or the platform's firmware refused. Says which command, with which
/// arguments, the errno, the firmware's status in words, and what to try next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    command: &'static str,
    arguments: String,
    errno: i32,
    status: Status,
}

/// What the firmware said. The kernel's errno alone rarely names the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The command involves no firmware.
    None,
    /// `kvm_sev_cmd.error` or `sev_issue_cmd.error`.
    Sev(SevStatus),
    /// `kvm_tdx_cmd.hw_error`; not there for commands of a vCPU, whose kernel side drops it.
    Seamcall(SeamcallStatus),
}

impl Status {
    /// `kvm_sev_cmd.error` is 32 bits wide.
    pub(crate) fn sev(raw: u64) -> Self {
        Self::Sev(SevStatus(u32::try_from(raw).unwrap_or(u32::MAX)))
    }

    pub(crate) fn seamcall(raw: u64) -> Self {
        if raw == 0 { Self::None } else { Self::Seamcall(SeamcallStatus(raw)) }
    }
}

impl KernelError {
    pub(crate) fn new(
        command: &'static str,
        arguments: impl Into<String>,
        errno: i32,
        status: Status,
    ) -> Self {
        Self { command, arguments: arguments.into(), errno, status }
    }

    /// The failure of a system call that is not one of this crate's commands.
    pub(crate) fn of_io(command: &'static str, arguments: &str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Self::new(command, arguments, errno, Status::None)
    }

    /// The command's name in the kernel's headers.
    #[must_use]
    pub fn command(&self) -> &'static str {
        self.command
    }

    /// The errno, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// What the firmware said.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// What to try next, where that is known: a sentence for the user.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        advice::advice(self.command, &self.arguments, self.errno, self.status)
    }

    /// The TDX module was busy or had no entropy: the same command may succeed in a moment.
    pub(crate) fn is_busy_module(&self) -> bool {
        matches!(self.status, Status::Seamcall(status) if status.is_transient())
    }

    /// The kernel was interrupted or busy: the command may go on in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.errno, libc::EAGAIN | libc::EBUSY | libc::EINTR)
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, arguments, errno, status } = self;
        let reason = io::Error::from_raw_os_error(*errno);
        // All of it is in the log and in traces.
        let shown = match arguments.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}...", &arguments[..end]),
            None => arguments.clone(),
        };
        write!(f, "{command} ({shown}) failed: {reason}")?;
        match status {
            Status::None => {}
            Status::Sev(status) => write!(f, "; {status}")?,
            Status::Seamcall(status) => write!(f, "; {status}")?,
        }
        self.advice().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

impl std::error::Error for KernelError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_everything_known() {
        let error = KernelError::new(
            "KVM_SEV_SNP_LAUNCH_UPDATE",
            "gpa 0xfff00000, 4096 bytes, CPUID",
            libc::EIO,
            Status::sev(0x16),
        );
        assert_eq!(
            error.to_string(),
            "KVM_SEV_SNP_LAUNCH_UPDATE (gpa 0xfff00000, 4096 bytes, CPUID) failed: Input/output \
             error (os error 5); firmware status 0x16 INVALID_PARAM: a parameter is not valid; the \
             firmware refused the CPUID page and put the values it accepts into it: take the CPUID \
             leaves from this host rather than from a named model"
        );
        let with_page = KernelError {
            arguments: "gpa 0xfff00000, 4096 bytes, CPUID: 1.0: 1 2 3 4".into(),
            ..error.clone()
        };
        assert_eq!(with_page.advice(), error.advice());
        let other = KernelError { arguments: "gpa 0x0, 4096 bytes, NORMAL".into(), ..error };
        assert!(!other.to_string().contains("CPUID"), "{other}");
        let unknown = KernelError::new("KVM_ENABLE_CAP", "", libc::EFAULT, Status::None);
        assert_eq!(unknown.advice(), None);
        assert!(unknown.to_string().ends_with("(os error 14)"), "{unknown}");
    }

    #[test]
    fn what_a_user_can_do_about_a_launch_is_said() {
        for (command, errno, words) in [
            ("open", libc::ENOENT, "casemate host"),
            ("open", libc::EACCES, "group that owns the device"),
            ("KVM_CREATE_VM", libc::EINVAL, "casemate host"),
            ("KVM_CREATE_VM", libc::EBUSY, "other hypervisors"),
            ("KVM_CREATE_VM", libc::EMFILE, "ulimit -n"),
            ("KVM_CREATE_VCPU", libc::EINVAL, "--vcpus"),
            ("KVM_CREATE_VCPU", libc::EEXIST, "error of this program"),
            ("KVM_CREATE_VCPU", libc::ENOMEM, "out of memory"),
            ("KVM_CREATE_VCPU", libc::ENFILE, "fs.file-max"),
            ("KVM_SET_CPUID2", libc::EINVAL, "--record"),
            ("KVM_SET_SREGS", libc::EINVAL, "--record"),
        ] {
            let error = KernelError::new(command, "", errno, Status::None);
            assert!(error.advice().expect(command).contains(words), "{error}");
        }
    }

    #[test]
    fn long_arguments_are_shown_in_part() {
        let error = |length| {
            KernelError::new("KVM_SET_CPUID2", "ä".repeat(length), libc::E2BIG, Status::None)
        };
        assert!(error(SHOWN).to_string().contains(&format!("({}) failed", "ä".repeat(SHOWN))));
        let long = error(SHOWN + 1).to_string();
        assert!(long.contains(&format!("({}...) failed", "ä".repeat(SHOWN))), "{long}");
    }

    #[test]
    fn a_firmware_that_was_not_called_is_said_to_be_so() {
        for raw in [0, 0xffff_ffff] {
            let error = KernelError::new("KVM_SEV_INIT2", "", libc::EBUSY, Status::sev(raw));
            let (said, advice) = ("the firmware was not called", error.advice().expect("known"));
            assert!(error.to_string().ends_with(&format!("{said}; {advice}")), "{error}");
        }
    }

    #[test]
    fn tdx_statuses_are_split_into_class_and_operand() {
        let status = Status::seamcall(0xC000_0100_0000_0045);
        let error = KernelError::new("KVM_TDX_INIT_VM", "", libc::EINVAL, status);
        assert!(
            error.to_string().contains(
                "; SEAMCALL status 0xc000010000000045 OPERAND_INVALID, operand CPUID_CONFIG; the \
                 CPUID values do not fit the TDX module: "
            ),
            "{error}"
        );
        assert!(!error.is_busy_module());
        let levels = SeamcallStatus(0xC000_0904_0000_0000);
        assert_eq!(levels.name(), Some("CPUID_LEAF_1F_FORMAT_UNRECOGNIZED"));
        let lost = KernelError::new("KVM_TDX_INIT_VM", "", libc::EIO, Status::None);
        assert!(lost.to_string().ends_with("sudo dmesg | grep SEAMCALL"), "{lost}");
        let busy = Status::seamcall(0x8000_0200_0000_0092);
        assert!(KernelError::new("KVM_TDX_INIT_VM", "", libc::EINVAL, busy).is_busy_module());
        let entropy = Status::seamcall(0x8000_0203_0000_0000);
        assert!(KernelError::new("KVM_TDX_INIT_VM", "", libc::EINVAL, entropy).is_busy_module());
    }
}
