//! Disks of a guest: LUKS2 volumes that the agent unlocks and dm-crypt maps, and a file system that
//! dm-verity checks against a root hash on the measured command line.
//!
//! The guest runs Debian's cryptsetup and veritysetup with Debian's modules, and the commands of the
//! manual's page on what a guest must be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_lab::initramfs::Initramfs;
use ring::digest::{SHA256, digest};

/// Modules beside those of the guest's evidence.
pub(crate) const MODULES: &[&str] =
    &["virtio_blk", "dm_crypt", "dm_verity", "xts", "aesni_intel", "algif_skcipher"];
/// Text that the guest writes to its volume.
const WRITTEN: &str = "only ciphertext reaches the host";
const BLOCK: usize = 4096;
/// Blocks of data on the verified disk; their hashes follow.
const BLOCKS: usize = 16;

/// Disks by their place in the guest's file.
const DISKS: [(&str, bool); 4] =
    [("volume", false), ("null", true), ("verity", true), ("tampered", true)];

fn run(command: &mut Command) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = command.env("PATH", format!("{path}:/usr/sbin:/sbin")).output();
    let output = output.expect("tests/scripts/setup installs cryptsetup and veritysetup");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the disks in `folder`, and returns what the guest's file says of them. The root hash is then in
/// the file `root-hash`.
pub(crate) fn make(folder: &Path, passphrase: &str) -> String {
    fs::write(folder.join("passphrase"), passphrase).unwrap();
    for name in ["volume", "null"] {
        fs::File::create(folder.join(name)).unwrap().set_len(20 << 20).unwrap();
        run(Command::new("cryptsetup")
            .args(["luksFormat", "-q", "--type", "luks2", "--key-file", "passphrase", name])
            .args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"])
            .current_dir(folder));
    }
    forge_null_cipher(&folder.join("null"));
    let data: Vec<u8> = (0..=250).cycle().take(BLOCKS * BLOCK).collect();
    fs::write(folder.join("verity"), data).unwrap();
    let format = ["format", "--no-superblock", "--hash=sha256", "--salt=-"];
    let said = run(Command::new("veritysetup")
        .args(format)
        .args(GEOMETRY)
        .args([folder.join("verity"), folder.join("verity")]));
    let hash = said.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim();
    fs::write(folder.join("root-hash"), hash).unwrap();
    let mut tampered = fs::read(folder.join("verity")).unwrap();
    tampered[5 * BLOCK] ^= 1;
    fs::write(folder.join("tampered"), tampered).unwrap();
    let disk =
        |(name, read_only)| format!("[[disk]]\npath = \"{name}\"\nread_only = {read_only}\n");
    DISKS.map(disk).concat()
}

/// As the guest's script repeats it.
const GEOMETRY: [&str; 4] =
    ["--data-block-size=4096", "--hash-block-size=4096", "--data-blocks=16", "--hash-offset=65536"];

/// Gives the key slot of a volume the null cipher, with which any passphrase opens it (CVE-2025-59054).
fn forge_null_cipher(volume: &Path) {
    const FROM: &[u8] = b"\"encryption\":\"aes-xts-plain64\",\"key_size\":64";
    const TO: &[u8] = b"\"encryption\":\"cipher_null-ecb\",\"key_size\":64";
    let mut bytes = fs::read(volume).unwrap();
    for copy in bytes[..0x8000].chunks_exact_mut(0x4000) {
        let at = copy.windows(FROM.len()).position(|window| window == FROM).unwrap();
        copy[at..at + TO.len()].copy_from_slice(TO);
        copy[448..512].fill(0);
        let sum = digest(&SHA256, copy);
        copy[448..480].copy_from_slice(sum.as_ref());
    }
    fs::write(volume, bytes).unwrap();
}

/// Adds cryptsetup and veritysetup, with the libraries that they load.
pub(crate) fn add_programs(image: &mut Initramfs) {
    let mut files = BTreeSet::new();
    for name in ["cryptsetup", "veritysetup"] {
        let found = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(name));
        let program = found.into_iter().find(|path| path.exists()).unwrap();
        let libraries = run(Command::new("ldd").arg(&program));
        let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        files.extend(paths.map(PathBuf::from));
        files.insert(program);
    }
    for file in files {
        let path = file.strip_prefix("/").unwrap().to_str().unwrap();
        image.file(path, 0o755, fs::read(&file).unwrap());
    }
}

/// What the guest does with its disks, and prints; `id` is the secret that opens the volume.
pub(crate) fn script(id: &str) -> String {
    let geometry = GEOMETRY.join(" ");
    format!(
        "unlock() {{ casemate-agent unlock --secret {id} --device $1 --name $2; }}
         if unlock /dev/vda data; then
           echo '{WRITTEN}' | dd of=/dev/mapper/data bs=4096 seek=1 conv=sync 2>/dev/null
           sync; cryptsetup close data; echo closed: $(ls /dev/mapper)
           unlock /dev/vda data
           echo read back: $(dd if=/dev/mapper/data bs=4096 skip=1 count=1 2>/dev/null | head -n 1)
         fi
         unlock /dev/vdb null; echo null cipher: status $?, $(ls /dev/mapper)
         hash=$(sed -n 's/.*root_hash=\\([0-9a-f]*\\).*/\\1/p' /proc/cmdline)
         for disk in vdc vdd; do
           veritysetup open --no-superblock --hash=sha256 --salt=- {geometry} /dev/$disk $disk /dev/$disk $hash
           if cat /dev/mapper/$disk >/tmp/$disk; then echo verified $disk: $(sha256sum </tmp/$disk); else echo refused $disk; fi
         done"
    )
}

/// Times that the agent gets the secret in [`script`].
pub(crate) const RELEASES: usize = 2;

/// What the guest said of its disks, and what is on them now.
pub(crate) fn check(folder: &Path, console: &str) {
    let data = &fs::read(folder.join("verity")).unwrap()[..BLOCKS * BLOCK];
    let sum: String = digest(&SHA256, data).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    for line in [
        "closed: control\r\n",
        &format!("read back: {WRITTEN}\r\n"),
        "null cipher: status 3, control data\r\n",
        "a key slot's cipher is \"cipher_null-ecb\"",
        &format!("verified vdc: {sum} "),
        "refused vdd\r\n",
    ] {
        assert!(console.contains(line), "{line}: {console}");
    }
    let volume = fs::read(folder.join("volume")).unwrap();
    assert!(!volume.windows(WRITTEN.len()).any(|window| window == WRITTEN.as_bytes()));
}
