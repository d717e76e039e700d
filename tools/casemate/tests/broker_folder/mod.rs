//! A directory with a store, its key and a policy; brokers in it, and guests on the TEST chip.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use casemate_agent::{Address, EvidenceError, EvidenceSource, Trusted};
use casemate_protocol::Evidence;
use casemate_test_support::chip::Report;
use casemate_test_support::evidence;
use serde_json::{Value, json};

pub(crate) const ID: &str = "default/disk/root";
pub(crate) const SECRET: &[u8] = b"a secret\nof two lines\0";
pub(crate) const MEASUREMENT: [u8; 48] = [0x5a; 48];

/// A guest on the TEST chip.
#[derive(Clone, Copy)]
pub(crate) struct Guest(pub(crate) [u8; 48]);

impl EvidenceSource for Guest {
    fn tee(&self) -> Result<kbs_types::Tee, EvidenceError> {
        Ok(kbs_types::Tee::Snp)
    }

    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let report =
            Report { policy: Report::POLICY, report_data: *report_data, measurement: self.0 };
        Ok(Evidence::Snp { report: report.sign().unwrap(), certificates: vec![] })
    }
}

/// A directory with a key and a policy, and the commands in it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        let made = folder.run(&["broker", "key", "key"], b"");
        assert!(made.status.success(), "{made:?}");
        let measurement: String = MEASUREMENT.iter().map(|byte| format!("{byte:02x}")).collect();
        folder.write(
            "policy",
            &json!({
                "allow_debug": false, "allow_migration_agent": false, "vmpl": [0],
                "min_reported_tcb": {"bl": 10, "snp": 25, "ucode": 84}, "measurements": measurement,
            }),
        );
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, json: &Value) {
        std::fs::write(self.path(name), json.to_string()).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.args(arguments).current_dir(self.0.path());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that fails early does not read.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// Runs a command that has to work, with the store and its key; what it prints.
    pub(crate) fn store(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = self.run_store(arguments, input);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn run_store(&self, arguments: &[&str], input: &[u8]) -> Output {
        let store = ["--store", "store", "--key", "key"];
        self.run(&[&["broker"], arguments, &store].concat(), input)
    }

    /// What a guest takes that pins the key which `casemate broker release-key` prints.
    pub(crate) fn trusted(&self) -> Trusted {
        Trusted::Keys(vec![self.store(&["release-key"], b"").trim().parse().unwrap()])
    }

    pub(crate) fn put(&self) {
        let said = self.store(&["secret", "put", ID, "--snp-policy", "policy"], SECRET);
        assert_eq!(said, format!("{ID}: {} bytes are in the store\n", SECRET.len()));
    }

    /// A broker, and where it listens.
    pub(crate) fn serve(&self) -> (Killed, Address) {
        self.serve_with(self.command(&[]), &[])
    }

    /// A broker of a command that runs `casemate` with its arguments, and with more of them.
    pub(crate) fn serve_with(&self, mut command: Command, more: &[&str]) -> (Killed, Address) {
        let synthetic =
            |name: &str| evidence::folder().join("synthetic").join(name).display().to_string();
        let mut child = command
            .args(["broker", "serve", "--store", "store", "--key", "key", "--audit", "audit"])
            .args(["--sandbox", "on"])
            .args(more)
            .args(["--listen", "tcp:127.0.0.1:0", "--chip-certificate", &synthetic("vcek.der")])
            .args(["--test-root", &synthetic("ark.der"), "--test-ask", &synthetic("ask.der")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening at ").expect(&line).parse().unwrap();
        (Killed(child), address)
    }

    pub(crate) fn verify(&self, more: &[&str]) -> (Option<i32>, Value) {
        let arguments = [&["audit", "verify", "audit", "--format", "json"], more].concat();
        let output = self.run(&arguments, b"");
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
    }
}

/// A process that is ended by SIGKILL when the test is done with it.
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Ends it; what it wrote to its standard error.
    pub(crate) fn kill(mut self) -> String {
        let _ = self.0.kill();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut text).unwrap();
        self.0.wait().unwrap();
        text
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
