//! An SEV-SNP guest in the emulated host gets its secret only when its measurement is the predicted
//! one.
//!
//! `casemate run` launches the guest, its firmware checks kernel, initramfs and command line against the
//! measured hashes, Linux runs the agent, which asks the broker on the host over vsock. The chip is the
//! emulated one: its certificate is under the TEST root. The guest then opens its disks by that secret and
//! by the root hash on its command line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod volumes;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Host, guest, require};
use casemate_test_support::{agent, evidence};
use serde_json::{Value, json};

const ID: &str = "default/disk/root";
/// What the guest makes of it is printed; the secret itself must not be.
const SECRET: &str = "correct horse battery staple";
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 casemate.guest=1";
const OTHER_COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 casemate.guest=2";
/// The guest's vsock in the host.
const VSOCK: &str = "/tmp/broker/vsock";
/// Where the test's files are, for its half in the host.
const FOLDER: &str = "CASEMATE_TEST_FOLDER";
/// Another client of the protocol, if there is one: a static `trustee-attester`. It then has to get the
/// secret too.
const OTHER_CLIENT: &str = "CASEMATE_KBS_CLIENT";

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn casemate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_casemate"))
}

/// How many clients the guest has.
fn clients() -> usize {
    1 + usize::from(std::env::var_os(OTHER_CLIENT).is_some())
}

/// Kernel, initramfs and configuration of the guest, into `folder`.
fn make_guest(packages: &Packages, folder: &Path) {
    let kernel = Kernel::debian(packages, "6.12", Flavour::Cloud).unwrap();
    std::fs::copy(&kernel.image, folder.join("kernel")).unwrap();
    let modules = ["configfs", "tsm", "sev-guest", "virtio_pci", "vmw_vsock_virtio_transport"];
    let modules = kernel.modules(&[&modules, volumes::MODULES].concat()).unwrap();
    let disks = volumes::make(folder, SECRET);
    let open_disks = volumes::script(ID);
    let script = format!(
        "mount -t configfs none /sys/kernel/config
         if [ -e /usr/bin/other-client ]; then
           ip link set lo up
           casemate-agent forward &
           secret=$(other-client --url http://127.0.0.1:8080 get-resource --path {ID}) &&
             echo other client: digest $(echo $secret | base64 -d | sha256sum)
         fi
         casemate-agent run --secret {ID} --fd 3 -- sh -c 'echo digest $(sha256sum <&3)'
         status=$?
         {open_disks}
         echo agent exited with $status"
    );
    let mut image = guest::initramfs(packages, &modules, &script).unwrap();
    if let Some(client) = std::env::var_os(OTHER_CLIENT) {
        image.file("usr/bin/other-client", 0o755, std::fs::read(client).unwrap());
        // It does not start without some.
        let roots = "etc/ssl/certs/ca-certificates.crt";
        image.file(roots, 0o644, std::fs::read(Path::new("/").join(roots)).unwrap());
    }
    let agent = agent::static_binary().unwrap();
    image.file("usr/bin/casemate-agent", 0o755, std::fs::read(agent).unwrap());
    volumes::add_programs(&mut image);
    std::fs::write(folder.join("initrd"), image.build()).unwrap();
    let guest = |debug: bool| {
        format!(
            "platform = \"snp\"\nkernel = \"kernel\"\ninitrd = \"initrd\"\nmemory = \"256M\"\n\
             {disks}[vsock]\nsocket = \"{VSOCK}\"\n[snp]\ndebug = {debug}\n"
        )
    };
    std::fs::write(folder.join("guest.toml"), guest(false)).unwrap();
    std::fs::write(folder.join("debug.toml"), guest(true)).unwrap();
}

/// A command line that pins the broker's key, which the guest's agent reads there, and the root hash of
/// the verified disk.
fn command_line(folder: &Path, parameters: &str) -> String {
    let key = std::fs::read_to_string(folder.join("broker-key")).unwrap();
    let hash = std::fs::read_to_string(folder.join("root-hash")).unwrap();
    format!("{parameters} casemate.broker_key={} root_hash={hash}", key.trim())
}

/// What `casemate measure` predicts for the guest with the good command line.
fn predicted(folder: &Path) -> String {
    let line = command_line(folder, COMMAND_LINE);
    let json = run(casemate()
        .args(["measure", "snp", "--vmm", "casemate", "--vcpus", "1", "--memory", "256M"])
        .args(["--kernel", "kernel", "--initrd", "initrd", "--append", &line])
        .args(["--format", "json"])
        .current_dir(folder));
    let json: Value = serde_json::from_str(&json).unwrap();
    let pinned = std::fs::read_to_string(folder.join("broker-key")).unwrap();
    assert_eq!(json["broker_keys"], json!([pinned.trim()]));
    json["measurement"].as_str().unwrap().to_owned()
}

/// An empty store, its key, and the key that signs its releases.
fn make_store(folder: &Path) {
    run(casemate().args(["broker", "key", "key"]).current_dir(folder));
    let release_key = ["broker", "release-key", "--store", "store", "--key", "key"];
    let key = run(casemate().args(release_key).current_dir(folder));
    std::fs::write(folder.join("broker-key"), key).unwrap();
}

/// Puts the secret into the store, for guests with this measurement that cannot be debugged.
fn put_secret(folder: &Path, measurement: &str) {
    let policy = json!({
        "allow_debug": false, "allow_migration_agent": false, "vmpl": [0],
        "min_reported_tcb": {"bl": 4, "snp": 22, "ucode": 213}, "measurements": measurement,
    });
    std::fs::write(folder.join("policy"), policy.to_string()).unwrap();
    std::fs::write(folder.join("secret"), SECRET).unwrap();
    run(casemate()
        .args(["broker", "secret", "put", ID, "--from", "secret", "--snp-policy", "policy"])
        .args(["--store", "store", "--key", "key"])
        .current_dir(folder));
}

#[test]
fn a_guest_gets_its_secret_only_with_the_predicted_measurement() {
    let Some(lab) = require(Host::Snp) else { return };
    let packages = Packages::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    make_guest(&packages, path);
    make_store(path);
    put_secret(path, &predicted(path));

    let own = std::env::current_exe().unwrap().display().to_string();
    let inside = format!(
        "export {FOLDER}={}; exec {own} --ignored --exact --nocapture inside_the_host",
        path.display()
    );
    let lab = lab.share(path).timeout(Duration::from_secs(3600));
    let output = lab.run(&["sh", "-c", &inside]).unwrap();
    let file = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    let all = || {
        let logs = ["good.log", "other.log", "debug.log", "broker.log", "audit"];
        let logs = logs.map(|name| std::fs::read_to_string(path.join(name)).unwrap_or_default());
        format!("{}\n{}", output.console, logs.join("\n---\n"))
    };
    assert_eq!(output.status, 0, "{}", all());

    let digest = ring::digest::digest(&ring::digest::SHA256, SECRET.as_bytes());
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = format!("digest {digest}");
    let receivers = file("good.log").matches(&digest).count();
    assert_eq!(receivers, clients(), "{}", all());
    volumes::check(path, &file("good.log"));
    for name in ["other.log", "debug.log"] {
        assert!(file(name).contains("agent exited with 1"), "{name}: {}", all());
        for word in ["digest", "closed", "read back"] {
            assert!(!file(name).contains(word), "{name}: {}", all());
        }
    }
    for name in ["good.log", "broker.log", "audit"] {
        assert!(!file(name).contains(SECRET), "{name}");
    }
    assert!(file("broker.log").contains("TEST"), "{}", all());
    check_audit(path);
}

/// One release, and each refusal with its reason.
fn check_audit(folder: &Path) {
    let verified = run(casemate()
        .args(["audit", "verify", "audit", "--store", "store", "--key", "key", "--format", "json"])
        .current_dir(folder));
    let verified: Value = serde_json::from_str(&verified).unwrap();
    assert_eq!(verified["test_releases"], clients() + volumes::RELEASES, "{verified}");
    let text = std::fs::read_to_string(folder.join("audit")).unwrap();
    let records: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut found: Vec<_> = records
        .iter()
        .map(|record| {
            let failing = record["failing"].as_array().unwrap();
            let names = failing.iter().map(|name| name.as_str().unwrap());
            (record["event"].as_str().unwrap(), names.collect::<Vec<_>>().join(" "))
        })
        .collect();
    // Each client asks, and another one may try again what was refused.
    found.dedup();
    let expected = [
        ("release", ""),
        ("refusal", "nonce"),
        ("refusal", "measurement"),
        ("refusal", "policy-debug"),
    ];
    assert_eq!(found, expected.map(|(event, names)| (event, names.to_owned())), "{text}");
    assert!(text.contains("used already"), "{text}");
    assert!(records.iter().all(|record| record["event"] != "release" || record["trust"] == "TEST"));
}

/// The half of the test that runs in the emulated host: the broker, and the guests one by one.
#[test]
#[ignore = "runs inside an emulated host"]
fn inside_the_host() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    // The shared folder has no shared memory, which SQLite's write-ahead log needs.
    let own = PathBuf::from("/tmp/broker");
    std::fs::create_dir(&own).unwrap();
    std::fs::copy(folder.join("store"), own.join("store")).unwrap();
    let broker = start_broker(&folder, &own);
    let attestations = record_attestations(own.join("socket"));

    boot(&folder, "good", COMMAND_LINE, "guest.toml");
    let attestation = attestations.lock().unwrap().last().unwrap().clone();
    let answer = forward(&own.join("socket"), &attestation);
    assert!(answer.starts_with(b"HTTP/1.1 401"), "{}", String::from_utf8_lossy(&answer));
    boot(&folder, "other", OTHER_COMMAND_LINE, "guest.toml");
    boot(&folder, "debug", COMMAND_LINE, "debug.toml");

    drop(broker);
    for name in ["store", "store-wal", "audit"] {
        std::fs::copy(own.join(name), folder.join(name)).unwrap();
    }
}

/// A process that ends with the test, by SIGKILL.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_broker(folder: &Path, own: &Path) -> Ended {
    let synthetic =
        |name: &str| evidence::folder().join("synthetic").join(name).display().to_string();
    let log = std::fs::File::create(folder.join("broker.log")).unwrap();
    let socket = own.join("socket");
    let mut command = casemate();
    command
        .args(["broker", "serve", "--audit", "audit", "--store", "store", "--key"])
        .arg(folder.join("key"))
        .args(["--chip-certificate", &synthetic("vcek_lab.der")])
        .args(["--test-root", &synthetic("ark.der"), "--test-ask", &synthetic("ask.der")])
        .arg(format!("--listen=unix:{}", socket.display()))
        .current_dir(own)
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let broker = Ended(command.spawn().unwrap());
    for _ in 0..300 {
        if UnixStream::connect(&socket).is_ok() {
            return broker;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!(
        "the broker does not listen: {}",
        std::fs::read_to_string(folder.join("broker.log")).unwrap()
    );
}

/// Forwards what guests send to vsock port 8080 (as `casemate run` gives it: a socket) to the broker, and keeps the attestations.
fn record_attestations(socket: PathBuf) -> &'static Mutex<Vec<Vec<u8>>> {
    let kept: &'static Mutex<Vec<Vec<u8>>> = Box::leak(Box::default());
    let listener = UnixListener::bind(format!("{VSOCK}_8080")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let request = read_request(&mut stream);
            if request.starts_with(b"POST /kbs/v0/attest ") {
                kept.lock().unwrap().push(request.clone());
            }
            let _ = stream.write_all(&forward(&socket, &request));
        }
    });
    kept
}

/// A request with its body, as it came.
fn read_request(stream: &mut impl std::io::Read) -> Vec<u8> {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some((_, length)) = casemate_broker::http::Head::parse(&request).unwrap() {
            let (head, _) = casemate_broker::http::Head::parse(&request).unwrap().unwrap();
            if request.len() >= length + head.body_length {
                return request;
            }
        }
        match stream.read(&mut chunk).unwrap() {
            0 => return request,
            count => request.extend_from_slice(&chunk[..count]),
        }
    }
}

fn forward(socket: &Path, request: &[u8]) -> Vec<u8> {
    let mut broker = UnixStream::connect(socket).unwrap();
    broker.write_all(request).unwrap();
    let mut answer = Vec::new();
    broker.read_to_end(&mut answer).unwrap();
    answer
}

/// Boots the guest, until it powers off; its console is then in `NAME.log`.
fn boot(folder: &Path, name: &str, parameters: &str, config: &str) {
    let log = std::fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["run", "--cmdline"])
        .args([&command_line(folder, parameters), config])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .status()
        .unwrap();
    println!("{name}: the guest ended with {status}");
}
