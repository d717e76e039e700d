//! Panics: a fault of this program in any thread, also a device's, ends the run.

use std::panic::{self, PanicHookInfo};
use std::process;
use std::thread;
use std::time::Duration;

use super::EXIT_HOST as STATUS;
use super::report::Reporter;

/// How long the message may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A device without its thread would leave the guest to wait for it for ever. So a panic ends the
/// process, with a message, from whichever thread it comes.
pub(super) fn end_run_on_panic(reporter: Reporter) {
    panic::set_hook(Box::new(move |info| {
        reporter.fault(&describe(info), STATUS);
        let _ = reporter.errors.flush(PATIENCE, PATIENCE);
        process::exit(STATUS.into());
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let thread = thread::current().name().unwrap_or("without a name").to_owned();
    let place = info.location().map_or("?".into(), ToString::to_string);
    let message = info.payload_as_str().unwrap_or("no message");
    format!("thread {thread} failed at {place}: {message}")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::process::Command;
    use std::{env, io};

    use casemate_machine::Outlet;

    use super::*;

    /// Set for the process that is to panic.
    const VICTIM: &str = "CASEMATE_TEST_PANIC";

    #[test]
    fn panic_of_a_device_thread_ends_the_process_with_a_message() {
        if env::var_os(VICTIM).is_some() {
            let errors = io::stderr().as_fd().try_clone_to_owned().unwrap();
            let errors = Outlet::new("errors", File::from(errors), || Ok(())).unwrap();
            end_run_on_panic(Reporter { json: false, errors });
            let device = thread::Builder::new().name("disk0".into());
            let _ = device.spawn(|| panic!("index out of range")).unwrap().join();
            thread::sleep(Duration::from_secs(60));
        }
        let name = "panic_of_a_device_thread_ends_the_process_with_a_message";
        let mut victim = Command::new(env::current_exe().unwrap());
        let victim = victim.args([name, "--nocapture"]).env(VICTIM, "1").output().unwrap();
        let text = String::from_utf8_lossy(&victim.stderr);
        assert_eq!(victim.status.code(), Some(124), "{text}");
        assert!(
            text.contains("thread disk0 failed at ") && text.contains("index out of range"),
            "{text}"
        );
    }
}
