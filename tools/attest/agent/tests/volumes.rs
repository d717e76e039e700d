//! LUKS volumes that the real cryptsetup makes and opens, and hosts that exchange their headers.
//!
//! `cryptsetup open --test-passphrase` reads the header and a key slot, and maps no device: it needs
//! neither root nor dm-crypt.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_agent::{HandoverError, LuksError, LuksHeader, open_volume};
use zeroize::Zeroizing;

const PASSPHRASE: &str = "correct horse";
/// Cheap, as is fit for a test.
const PBKDF2: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// A folder for volumes, and for a program in the place of cryptsetup.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs cryptsetup, which has to succeed.
    fn cryptsetup(&self, arguments: &[&str]) {
        let output = command().args(arguments).current_dir(self.0.path()).output();
        let output = output.expect("tests/scripts/setup installs cryptsetup");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// A volume called `name`, formatted with `PASSPHRASE` or another one.
    fn volume(&self, name: &str, passphrase: &str, options: &[&str]) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(20 << 20).unwrap();
        fs::write(self.path("passphrase"), passphrase).unwrap();
        let format = ["luksFormat", "-q", "--key-file", "passphrase", name];
        self.cryptsetup(&[&format, options].concat());
        path
    }

    /// A program that runs `before`, and then cryptsetup with its own arguments; it maps nothing.
    fn program(&self, before: &str) -> PathBuf {
        let program = self.path("program");
        let script = format!(
            "#!/bin/sh\nset -e\nPATH=$PATH:/usr/sbin:/sbin\n{before}\nverb=$1; shift\n\
             exec cryptsetup $verb --test-passphrase \"$@\"\n"
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        program
    }

    fn open(&self, header: &LuksHeader, volume: &Path, passphrase: &str, before: &str) -> bool {
        let secret = Zeroizing::new(passphrase.as_bytes().to_vec());
        let program = self.program(before);
        match open_volume(&secret, header, program.as_os_str(), volume, "data".as_ref()) {
            Ok(()) => true,
            Err(HandoverError::Failed { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn command() -> Command {
    let mut command = Command::new("cryptsetup");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn read(volume: &Path) -> Result<LuksHeader, LuksError> {
    LuksHeader::read(&mut File::open(volume).unwrap())
}

#[test]
fn volumes_of_cryptsetup_are_read_and_opened() {
    let folder = Folder::new();
    let argon = ["--pbkdf", "argon2id", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4"];
    for (number, options) in [
        &["--type", "luks2"][..],
        &["--type", "luks2", "--key-size", "256", "--sector-size", "512"],
        &["--type", "luks2", "--hash", "sha512", "--luks2-metadata-size", "64k"],
        &["--type", "luks2", "--luks2-keyslots-size", "1m", "--label", "data"],
    ]
    .into_iter()
    .enumerate()
    {
        let cost = if number == 0 { &argon[..] } else { &PBKDF2 };
        let volume = folder.volume("volume", PASSPHRASE, &[options, cost].concat());
        let header = read(&volume).unwrap_or_else(|error| panic!("{options:?}: {error:?}"));
        assert!(folder.open(&header, &volume, PASSPHRASE, ""), "{options:?}");
        assert!(!folder.open(&header, &volume, "wrong horse", ""), "{options:?}");
    }
}

#[test]
fn a_header_that_is_exchanged_after_the_check_is_not_used() {
    let folder = Folder::new();
    let options = [&["--type", "luks2"][..], &PBKDF2].concat();
    let volume = folder.volume("volume", PASSPHRASE, &options);
    folder.volume("host", "the host's", &options);
    let header = read(&volume).unwrap();
    // While cryptsetup starts, the host puts its own volume in the place of the checked one.
    let exchange = format!("cp {} {}", folder.path("host").display(), volume.display());
    assert!(folder.open(&header, &volume, PASSPHRASE, &exchange));
    assert!(!folder.open(&header, &volume, "the host's", &exchange));
    // Without the checked copy cryptsetup opens the host's.
    folder.cryptsetup(&["open", "--test-passphrase", "--key-file", "passphrase", "volume"]);
    assert_eq!(fs::read_to_string(folder.path("passphrase")).unwrap(), "the host's");
}

/// Replaces a text of the JSON in both copies of a header by one of the same length, and makes the
/// checksums fit.
fn forge(volume: &Path, from: &str, to: &str) {
    use ring::digest::{SHA256, digest};
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(volume).unwrap();
    for copy in bytes[..0x8000].chunks_exact_mut(0x4000) {
        let at = copy.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        copy[at..at + from.len()].copy_from_slice(to.as_bytes());
        copy[448..512].fill(0);
        let sum = digest(&SHA256, copy);
        copy[448..480].copy_from_slice(sum.as_ref());
    }
    fs::write(volume, bytes).unwrap();
}

#[test]
fn null_ciphers_are_refused_although_cryptsetup_reads_them() {
    let folder = Folder::new();
    let options = [&["--type", "luks2"][..], &PBKDF2].concat();
    for (from, to, part) in [
        (
            "\"encryption\":\"aes-xts-plain64\",\"key_size\":64",
            "\"encryption\":\"cipher_null-ecb\",\"key_size\":64",
            "a key slot's cipher",
        ),
        (
            "\"encryption\":\"aes-xts-plain64\",\"sector_size\"",
            "\"encryption\":\"cipher_null-ecb\",\"sector_size\"",
            "the segment's cipher",
        ),
    ] {
        let volume = folder.volume("volume", PASSPHRASE, &options);
        forge(&volume, from, to);
        folder.cryptsetup(&["luksDump", "volume"]);
        let error = read(&volume).unwrap_err();
        let LuksError::Metadata(reason) = error else { panic!("{error:?}") };
        assert!(reason.to_string().contains(part), "{reason}");
        assert!(reason.to_string().contains("cipher_null-ecb"), "{reason}");
    }
}

#[test]
fn tokens_and_luks1_are_refused() {
    let folder = Folder::new();
    let volume = folder.volume("volume", PASSPHRASE, &[&["--type", "luks2"][..], &PBKDF2].concat());
    folder.cryptsetup(&["token", "add", "--key-description", "casemate:test", "volume"]);
    let error = read(&volume).unwrap_err();
    assert!(matches!(error, LuksError::Metadata(_)), "{error:?}");
    let cost = ["--pbkdf-force-iterations", "1000"];
    let volume = folder.volume("old", PASSPHRASE, &[&["--type", "luks1"][..], &cost].concat());
    assert!(matches!(read(&volume), Err(LuksError::Format)));
}

#[test]
fn the_secret_is_on_cryptsetup_s_input_and_nowhere_else() {
    let folder = Folder::new();
    let volume = folder.volume("volume", PASSPHRASE, &[&["--type", "luks2"][..], &PBKDF2].concat());
    let header = read(&volume).unwrap();
    let program = folder.path("program");
    let log = folder.path("log");
    let script = format!(
        "#!/bin/sh\n{{ echo \"$@\"; cat; echo; cat /proc/self/environ; }} >{}\n",
        log.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let secret = Zeroizing::new(b"0f7c-secret".to_vec());
    let open = |program: &Path| {
        open_volume(&secret, &header, program.as_os_str(), Path::new("/dev/vda2"), "data".as_ref())
    };
    open(&program).unwrap();
    let text = fs::read_to_string(log).unwrap();
    let (arguments, rest) = text.split_once('\n').unwrap();
    let (before, after) = arguments.split_once("/proc/self/fd/").unwrap();
    assert_eq!(before, "open --type luks2 --key-file - --header ");
    assert!(after.ends_with(" -- /dev/vda2 data"), "{arguments}");
    assert!(
        rest.starts_with("0f7c-secret\n") && text.matches("0f7c-secret").count() == 1,
        "{text}"
    );
    assert!(matches!(open(Path::new("/bin/false")), Err(HandoverError::Failed { .. })));
    assert!(matches!(open(Path::new("/nowhere")), Err(HandoverError::Start { .. })));
}
