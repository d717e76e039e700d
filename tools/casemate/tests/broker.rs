//! `casemate broker` and `casemate audit`: from an empty directory to a released secret, and on after
//! a kill -9.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod broker_folder;

use std::os::unix::fs::PermissionsExt as _;

use broker_folder::{Folder, Guest, ID, MEASUREMENT, SECRET};
use casemate_agent::fetch;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::{Value, json};

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

/// The other tests show that this is enough.
#[test]
fn broker_serves_in_a_sandbox() {
    let folder = Folder::new();
    folder.put();
    let trusted = folder.trusted();
    let (broker, address) = folder.serve();
    assert_eq!(fetch(&address, &Guest(MEASUREMENT), &trusted, ID).unwrap().as_slice(), SECRET);
    let process = std::path::PathBuf::from(format!("/proc/{}", broker.id()));
    let tasks = std::fs::read_dir(process.join("task")).unwrap();
    let mut seen = 0;
    for task in tasks {
        // A connection's thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        let field = |name| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap_or_else(|| panic!("no {name}: {status}")).trim()
        };
        assert_eq!((field("Seccomp:"), field("NoNewPrivs:")), ("2", "1"));
        // CAP_IPC_LOCK is left of root's.
        let left = u64::from_str_radix(field("CapEff:"), 16).unwrap();
        assert_eq!(left & !(1 << 14), 0, "{status}");
        assert_eq!(field("CapPrm:"), field("CapEff:"));
        assert_eq!(field("CapInh:"), "0000000000000000");
        seen += 1;
    }
    assert!(seen >= 2, "{seen} threads");
    if rustix::process::getuid().is_root() {
        assert_eq!(std::fs::read_dir(process.join("root")).unwrap().count(), 0);
    }
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
    let write_key = |name: &str, text: &str, mode: u32| {
        std::fs::write(folder.path(name), text).unwrap();
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.path(name), mode).unwrap();
    };
    write_key("other", &"f".repeat(64), 0o600);
    write_key("short", &"f".repeat(63), 0o400);
    write_key("open", &"f".repeat(64), 0o604);
    write_key("text", "{}", 0o600);
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
    let weak = put(&with(&["a/b/c", "--snp-policy", "weak"]), b"x");
    for key in ["measurements", "allow_debug", "allow_migration_agent", "vmpl", "min_reported_tcb"]
    {
        assert!(weak.contains(&format!("the snp policy is weak: {key}:")), "{weak}");
    }
    assert!(weak.contains("--accept-weak-policy"), "{weak}");
    assert!(put(&with(&["a/b/c"]), b"x").contains("nobody could have the secret"));
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
    assert!(list("text").contains("64 hexadecimal digits"));
    assert!(list("open").contains("others can read it (mode 604)"));
    assert!(error(&["broker", "key", "key"], b"").contains("File exists"));
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
