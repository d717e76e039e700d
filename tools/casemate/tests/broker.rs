//! `casemate broker` and `casemate audit`: from an empty directory to a released secret, and on after
//! a kill -9.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use casemate_agent::{Address, EvidenceError, EvidenceSource, Trusted, fetch};
use casemate_protocol::Evidence;
use casemate_test_support::chip::Report;
use casemate_test_support::evidence;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::{Value, json};

const ID: &str = "default/disk/root";
const SECRET: &[u8] = b"a secret\nof two lines\0";
const MEASUREMENT: [u8; 48] = [0x5a; 48];

/// A guest on the TEST chip.
struct Guest([u8; 48]);

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
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        let key = folder.run(&["broker", "key"], b"");
        assert_eq!(key.stdout.len(), 65);
        std::fs::write(folder.path("key"), key.stdout).unwrap();
        let measurement: String = MEASUREMENT.iter().map(|byte| format!("{byte:02x}")).collect();
        folder.write("policy", &json!({"allow_debug": false, "measurements": measurement}));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, json: &Value) {
        std::fs::write(self.path(name), json.to_string()).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.args(arguments).current_dir(self.0.path());
        command
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
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
    fn store(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = self.run_store(arguments, input);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn run_store(&self, arguments: &[&str], input: &[u8]) -> Output {
        let store = ["--store", "store", "--key", "key"];
        self.run(&[&["broker"], arguments, &store].concat(), input)
    }

    /// What a guest takes that pins the key which `casemate broker release-key` prints.
    fn trusted(&self) -> Trusted {
        Trusted::Keys(vec![self.store(&["release-key"], b"").trim().parse().unwrap()])
    }

    fn put(&self) {
        let said = self.store(&["secret", "put", ID, "--snp-policy", "policy"], SECRET);
        assert_eq!(said, format!("{ID}: {} bytes are in the store\n", SECRET.len()));
    }

    /// A broker, where it listens, and what it says of itself.
    fn serve(&self) -> (Killed, Address) {
        let synthetic =
            |name: &str| evidence::folder().join("synthetic").join(name).display().to_string();
        let mut child = self
            .command(&["broker", "serve", "--store", "store", "--key", "key", "--audit", "audit"])
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

    fn verify(&self, more: &[&str]) -> (Option<i32>, Value) {
        let arguments = [&["audit", "verify", "audit", "--format", "json"], more].concat();
        let output = self.run(&arguments, b"");
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
    }
}

/// A process that is ended by SIGKILL when the test is done with it.
struct Killed(Child);

impl Killed {
    /// Ends it; what it wrote to its standard error.
    fn kill(mut self) -> String {
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

#[test]
fn from_nothing_to_a_released_secret_and_on_after_kill_9() {
    let folder = Folder::new();
    folder.put();
    let trusted = folder.trusted();
    let (broker, address) = folder.serve();
    assert_eq!(fetch(&address, &Guest(MEASUREMENT), &trusted, ID).unwrap().as_slice(), SECRET);
    let mut other = MEASUREMENT;
    other[47] ^= 1;
    let error = fetch(&address, &Guest(other), &trusted, ID).unwrap_err();
    assert!(error.to_string().contains("measurement"), "{error}");
    // The broker must see what is put in while it runs.
    folder.store(&["secret", "put", "a/b/c", "--snp-policy", "policy"], b"later");
    assert_eq!(
        fetch(&address, &Guest(MEASUREMENT), &trusted, "a/b/c").unwrap().as_slice(),
        b"later"
    );
    let said = broker.kill();
    assert!(said.contains("TEST: a TEST root is trusted"), "{said}");
    assert!(said.contains("Release TEST: default/disk/root"), "{said}");
    assert!(!said.contains("a secret"), "{said}");

    let (status, first) = folder.verify(&["--store", "store", "--key", "key"]);
    assert_eq!((status, &first["verdict"]), (Some(0), &json!("whole")));
    assert_eq!((&first["releases"], &first["refusals"]), (&json!(2), &json!(1)));
    assert_eq!(first["test_releases"], 2);

    let (broker, address) = folder.serve();
    assert_eq!(fetch(&address, &Guest(MEASUREMENT), &trusted, ID).unwrap().as_slice(), SECRET);
    drop(broker);
    let head = first["head"].as_str().unwrap();
    let (status, second) = folder.verify(&["--head", head]);
    assert_eq!((status, &second["records"]), (Some(0), &json!(4)));

    let log = std::fs::read_to_string(folder.path("audit")).unwrap();
    let lines: Vec<_> = log.lines().collect();
    let write = |lines: &[&str]| {
        std::fs::write(folder.path("audit"), lines.join("\n") + "\n").unwrap();
    };
    // Truncated: seen with the store or a hash.
    write(&lines[..3]);
    assert_eq!(folder.verify(&[]).0, Some(0));
    assert_eq!(folder.verify(&["--store", "store", "--key", "key"]).0, Some(1));
    let last = second["head"].as_str().unwrap();
    assert_eq!(folder.verify(&["--head", last]).0, Some(1));
    // Reordered, and changed: seen by itself.
    write(&[lines[0], lines[2], lines[1], lines[3]]);
    let (status, found) = folder.verify(&[]);
    assert_eq!((status, &found["verdict"]), (Some(1), &json!("changed")));
    let changed = lines[1].replace("refusal", "release");
    write(&[lines[0], &changed, lines[2], lines[3]]);
    let (status, found) = folder.verify(&[]);
    assert_eq!(status, Some(1));
    assert!(found["detail"].as_str().unwrap().contains("record 2 was changed"), "{found}");
    // A broker does not go on with it.
    let serve = ["serve", "--audit", "audit", "--listen", "tcp:127.0.0.1:0"];
    let output = folder.run_store(&serve, b"");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("was changed"));
}

#[test]
fn a_broker_s_memory_is_locked_or_it_says_why_not_and_leaves_no_core_file() {
    use std::os::unix::process::ExitStatusExt as _;
    let folder = Folder::new();
    folder.put();
    let (mut broker, _) = folder.serve();
    let pid = broker.0.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // As long a core file as the limit of this user allows.
    let hard = getrlimit(Resource::Core).maximum;
    prlimit(Some(pid), Resource::Core, Rlimit { current: hard, maximum: hard }).unwrap();
    kill_process(pid, Signal::ABORT).unwrap();
    let ended = broker.0.wait().unwrap();
    assert_eq!(ended.signal(), Some(Signal::ABORT.as_raw()));
    assert!(!ended.core_dumped());
    let said = broker.kill();
    assert_eq!(locked == "0 kB", said.contains("memory is not locked"), "{locked}: {said}");
}

#[test]
fn secrets_and_policies_are_put_in_looked_at_and_taken_out() {
    let folder = Folder::new();
    folder.put();
    let policies: Value =
        serde_json::from_str(&folder.store(&["policy", "show", ID], b"")).unwrap();
    assert_eq!((&policies["snp"]["allow_debug"], &policies["tdx"]), (&json!(false), &json!(null)));
    let mrtd = "00".repeat(48);
    folder.write("tdx", &json!({"allow_debug": false, "mrtd": mrtd, "tcb_statuses": ["UpToDate"]}));
    folder.store(&["policy", "set", ID, "--tdx-policy", "tdx"], b"");
    let policies: Value =
        serde_json::from_str(&folder.store(&["policy", "show", ID], b"")).unwrap();
    assert_eq!((&policies["snp"], &policies["tdx"]["mrtd"]), (&json!(null), &json!(mrtd)));
    assert_eq!(folder.store(&["secret", "list"], b""), format!("{ID}\n"));
    let keys: Value = serde_json::from_str(&folder.store(&["token-key"], b"")).unwrap();
    assert_eq!(keys["keys"][0]["alg"], "ES256");
    folder.store(&["secret", "remove", ID], b"");
    assert_eq!(folder.store(&["secret", "list"], b""), "");
}

#[test]
fn bad_input_is_an_error_that_says_what_to_do() {
    let folder = Folder::new();
    folder.put();
    folder.write("weak", &json!({}));
    folder.write("data", &json!({"report_data": "00".repeat(64)}));
    std::fs::write(folder.path("other"), "f".repeat(64)).unwrap();
    std::fs::write(folder.path("short"), "f".repeat(63)).unwrap();
    let error = |arguments: &[&str], input: &[u8]| {
        let output = folder.run(arguments, input);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        text
    };
    let put = |more: &[&str], input: &[u8]| {
        let base = ["broker", "secret", "put", "--store", "store"];
        error(&[&base, more].concat(), input)
    };
    let key = ["--key", "key"];
    let with = |more: &[&'static str]| [&key, more].concat();
    assert!(put(&with(&["a/b/c", "--snp-policy", "weak"]), b"x").contains("\"measurements\""));
    assert!(put(&with(&["a/b/c"]), b"x").contains("nobody may have it"));
    assert!(put(&with(&["a/b/c", "--snp-policy", "data"]), b"x").contains("report_data"));
    assert!(put(&with(&["a/b/c", "--snp-policy", "key"]), b"x").contains("policy"));
    assert!(put(&with(&["a/b/c", "--snp-policy", "/nowhere"]), b"x").contains("/nowhere"));
    assert!(put(&with(&["a/b", "--snp-policy", "policy"]), b"x").contains("REPOSITORY/TYPE/TAG"));
    assert!(put(&with(&[ID, "--snp-policy", "policy"]), b"x").contains("--replace"));
    assert!(put(&with(&["a/b/c", "--snp-policy", "policy"]), b"").contains("empty"));
    let long = vec![b'x'; 40_000];
    assert!(put(&with(&["a/b/c", "--snp-policy", "policy"]), &long).contains("longer than"));
    let stdin = ["a/b/c", "--snp-policy", "policy", "--key", "-"];
    assert!(put(&stdin, b"x").contains("both"));
    let list =
        |key: &str| error(&["broker", "secret", "list", "--store", "store", "--key", key], b"");
    assert!(list("other").contains("another store's"));
    assert!(list("short").contains("64 hexadecimal digits"));
    assert!(list("policy").contains("64 hexadecimal digits"));
    let other = ["broker", "secret", "list", "--store", "policy", "--key", "key"];
    assert!(error(&other, b"").contains("store"));
    let show = ["broker", "policy", "show", "no/such/secret", "--store", "store", "--key", "key"];
    assert!(error(&show, b"").contains("secret list"));
    for arguments in [
        &["audit", "verify", "/nowhere"][..],
        &["audit", "verify", "policy", "--head", "abc"],
        &["audit", "verify", "policy", "--store", "none", "--key", "key"],
        &["audit", "verify", "policy", "--store", "store"],
        &["audit", "verify", "/"],
    ] {
        error(arguments, b"");
    }
    assert_eq!(folder.run(&["audit", "verify", "policy"], b"").status.code(), Some(1));
}
