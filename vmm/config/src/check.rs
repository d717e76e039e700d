//! What is checked beyond syntax, before anything is opened for good.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::path::Path;

use casemate_launch::PlatformKind;

use crate::error::ConfigError;
use crate::file_kind;
use crate::image_format::{self, ImageFormat};
use crate::keys::Value as _;
use crate::platform::PlatformChoice;
use crate::reference::quoted;
use crate::schema::{
    Acceptance, DEFAULT_CMDLINE, DEFAULT_PREFAULT, Disk, DiskFormat, GuestConfig, Net, Serial, Snp,
    Vsock,
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// KVM_MEM_MAX_NR_PAGES pages of 4 KiB, rounded down to a whole GiB.
const MAX_MEMORY: u64 = (8 << 40) - (1 << 30);
/// x86 COMMAND_LINE_SIZE less the terminating zero (arch/x86/include/asm/setup.h).
const MAX_CMDLINE: usize = 2047;
/// VIRTIO_BLK_ID_BYTES (Virtio 1.3, section 5.2.6).
const MAX_SERIAL: usize = 20;
/// IFNAMSIZ less the terminating zero.
const MAX_TAP: usize = 15;
/// sun_path less "_4294967295" and the terminating zero.
const MAX_SOCKET: usize = 96;
/// Functions of 30 slots of PCI bus 0, less sockets, entropy, balloon and console.
const MAX_DEVICES: usize = 30 * 8 - 4;

/// Where values come from, for errors.
pub(crate) struct Origin<'a> {
    pub(crate) file: Option<&'a Path>,
    pub(crate) from_flags: Vec<String>,
}

impl Origin<'_> {
    fn value(&self, key: &str, value: &str, problem: &str, remedy: &str) -> ConfigError {
        // disk[0].path belongs to the flag --disk.
        let flag = key.split(['[', '.']).next().unwrap_or(key);
        let (origin, key) = match self.file {
            Some(file) if !self.from_flags.iter().any(|key| key == flag) => {
                (format!("{}: ", file.display()), key.to_owned())
            }
            _ => ("--".into(), key.replacen(flag, &flag.replace('_', "-"), 1)),
        };
        ConfigError::Value {
            origin,
            key,
            value: value.to_owned(),
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    fn missing(&self, key: &str, remedy: &str) -> ConfigError {
        let origin = self.file.map_or("command line".into(), |file| file.display().to_string());
        ConfigError::Missing { origin, key: key.to_owned(), remedy: remedy.to_owned() }
    }

    /// The length of a regular file that can be read and is not empty.
    fn readable(&self, key: &str, path: &Path) -> Result<u64, ConfigError> {
        let refused = |problem: &str| {
            self.value(key, &quoted(path), problem, "give the path of a file that can be read")
        };
        // Looked at before it is opened: opening a FIFO would wait for a writer.
        let metadata = path.metadata().map_err(|error| refused(&error.to_string()))?;
        if !metadata.is_file() {
            return Err(refused("this is not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(refused("the file is empty"));
        }
        File::open(path).map_err(|error| refused(&error.to_string()))?;
        Ok(metadata.len())
    }
}

pub(crate) fn check(config: &GuestConfig, origin: &Origin<'_>) -> Result<(), ConfigError> {
    size(config, origin)?;
    boot(config, origin)?;
    platform(config, origin)?;
    if let Some(snp) = &config.snp {
        identity(snp, origin)?;
    }
    disks(&config.disk, origin)?;
    nets(&config.net, origin)?;
    if let Some(socket) = &config.vsock {
        vsock(socket, config.platform, origin)?;
    }
    if let Some(Serial { file, socket }) = &config.serial
        && file.is_some() == socket.is_some()
    {
        let problem = "a serial port leads to one place";
        return Err(origin.value("serial", "[table]", problem, "give either file or socket"));
    }
    let devices = config.disk.len() + config.net.len();
    if devices > MAX_DEVICES {
        let key = if config.disk.len() > config.net.len() { "disk" } else { "net" };
        let problem = format!("{devices} disks and network interfaces do not fit the PCI bus");
        let remedy = format!("have at most {MAX_DEVICES} in all");
        return Err(origin.value(key, &format!("[{devices} tables]"), &problem, &remedy));
    }
    Ok(())
}

fn size(config: &GuestConfig, origin: &Origin<'_>) -> Result<(), ConfigError> {
    let memory = config.memory.0;
    let refused = |problem: &str| {
        let value = config.memory.to_string();
        origin.value("memory", &value, problem, "try memory = \"512M\"")
    };
    if memory < 2 * MIB {
        return Err(refused("a guest has at least 2 MiB of memory"));
    }
    if !memory.is_multiple_of(MIB) {
        return Err(refused("memory comes in whole MiB"));
    }
    if memory > MAX_MEMORY {
        return Err(refused("KVM allows less than 8 TiB of memory"));
    }
    if let Some(shared) = config.shared_memory
        && !(shared.0 > 0 && shared.0.is_multiple_of(PAGE))
    {
        let problem = "memory is shared in whole pages of 4096 bytes";
        let value = shared.to_string();
        return Err(origin.value("shared_memory", &value, problem, "try shared_memory = \"64M\""));
    }
    if !(1..=255).contains(&config.vcpus) {
        let problem = "a guest has 1 to 255 vCPUs";
        return Err(origin.value("vcpus", &config.vcpus.to_string(), problem, "try vcpus = 1"));
    }
    if let Some((key, value, problem, remedy)) = config.topology_problem() {
        return Err(origin.value(key, &value.to_string(), &problem, remedy));
    }
    Ok(())
}

fn boot(config: &GuestConfig, origin: &Origin<'_>) -> Result<(), ConfigError> {
    let own =
        [("kernel", &config.kernel), ("initrd", &config.initrd), ("firmware", &config.firmware)];
    if let Some(igvm) = &config.igvm {
        origin.readable("igvm", igvm)?;
        if let Some((key, Some(path))) = own.iter().find(|(_, path)| path.is_some()) {
            let problem = "an IGVM file brings everything that boots";
            return Err(origin.value(key, &quoted(path), problem, "leave out this key or igvm"));
        }
        return Ok(());
    }
    if config.kernel.is_none() && config.firmware.is_none() {
        return Err(origin.missing("kernel", "give a kernel, firmware, or an igvm file"));
    }
    if let (None, Some(initrd)) = (&config.kernel, &config.initrd) {
        let problem = "an initrd needs a kernel";
        return Err(origin.value("initrd", &quoted(initrd), problem, "give a kernel as well"));
    }
    cmdline(config, origin)?;
    let mut loaded: u64 = 0;
    for (key, path) in own {
        let Some(path) = path else { continue };
        loaded = loaded.saturating_add(origin.readable(key, path)?);
        if loaded >= config.memory.0 {
            let problem = format!("with it the guest would load {loaded} bytes into less memory");
            let remedy = format!("raise memory from {}", config.memory);
            return Err(origin.value(key, &quoted(path), &problem, &remedy));
        }
    }
    Ok(())
}

fn cmdline(config: &GuestConfig, origin: &Origin<'_>) -> Result<(), ConfigError> {
    let text = &config.cmdline;
    let refused = |problem: &str, remedy: &str| {
        let shown: String = text.chars().take(40).collect();
        Err(origin.value("cmdline", &format!("{shown:?}"), problem, remedy))
    };
    if text.len() > MAX_CMDLINE {
        let problem = format!("{} bytes are too long for Linux", text.len());
        return refused(&problem, "shorten it to 2047 bytes");
    }
    if text.contains(|character: char| character.is_control()) {
        return refused("it has a control character", "use printable characters on one line");
    }
    if text != DEFAULT_CMDLINE && !text.is_empty() && config.kernel.is_none() {
        return refused("a command line needs a kernel", "give a kernel as well");
    }
    Ok(())
}

fn platform(config: &GuestConfig, origin: &Origin<'_>) -> Result<(), ConfigError> {
    use PlatformKind::{Plain, Snp, Tdx};
    let plain = config.platform == PlatformChoice::Only(Plain);
    let shown = config.platform.shown().unwrap_or_default();
    let refused = |problem, remedy| Err(origin.value("platform", &shown, problem, remedy));
    if config.snp.is_some() && !config.platform.allows(Snp) {
        return refused("the file has a table [snp]", "use platform = \"snp\" or drop the table");
    }
    if config.tdx.is_some() && !config.platform.allows(Tdx) {
        return refused("the file has a table [tdx]", "use platform = \"tdx\" or drop the table");
    }
    if config.accept_memory == Acceptance::Eager && (plain || config.igvm.is_some()) {
        let problem = "only Casemate's firmware does it, in confidential guests";
        let remedy = "leave it out";
        return Err(origin.value("accept_memory", "\"eager\"", problem, remedy));
    }
    if let (true, Some(igvm)) = (plain, &config.igvm) {
        let problem = "a plain guest boots a kernel or firmware";
        let remedy = "leave it out, or use platform = \"snp\" or \"tdx\"";
        return Err(origin.value("igvm", &quoted(igvm), problem, remedy));
    }
    if let (true, Some(shared)) = (plain, config.shared_memory) {
        let problem = "a plain guest shares all of its memory";
        let remedy = "leave it out, or use platform = \"snp\" or \"tdx\"";
        return Err(origin.value("shared_memory", &shared.to_string(), problem, remedy));
    }
    if plain && config.prefault != DEFAULT_PREFAULT {
        let problem = "a plain guest does not accept memory";
        let remedy = "leave it out, or use platform = \"snp\" or \"tdx\"";
        return Err(origin.value("prefault", &config.prefault.to_string(), problem, remedy));
    }
    if config.firmware_log && config.igvm.is_some() {
        let problem = "an IGVM file brings its own firmware";
        return Err(origin.value("firmware_log", "true", problem, "leave it out"));
    }
    let debug = config.tdx.as_ref().is_some_and(|tdx| tdx.debug);
    if debug && config.firmware.is_none() && config.igvm.is_none() {
        let problem = "Casemate's firmware starts no trust domain that the host may read";
        let remedy = "leave it out, or give a TDVF with firmware";
        return Err(origin.value("tdx.debug", "true", problem, remedy));
    }
    if config.balloon && !plain {
        let problem = "a confidential guest cannot give memory back through a balloon";
        let remedy = "use balloon = false or platform = \"plain\"";
        return Err(origin.value("balloon", "true", problem, remedy));
    }
    Ok(())
}

fn identity(snp: &Snp, origin: &Origin<'_>) -> Result<(), ConfigError> {
    if let Some(certificates) = &snp.certificates {
        origin.readable("snp.certificates", certificates)?;
    }
    match (&snp.id_block, &snp.id_authentication) {
        (None, None) => Ok(()),
        (Some(_), None) => {
            Err(origin.missing("snp.id_authentication", "give it together with snp.id_block"))
        }
        (None, Some(_)) => {
            Err(origin.missing("snp.id_block", "give it together with snp.id_authentication"))
        }
        (Some(block), Some(authentication)) => {
            let files =
                [("snp.id_block", block, 96), ("snp.id_authentication", authentication, 4096)];
            for (key, path, expected) in files {
                let length = origin.readable(key, path)?;
                if length != expected {
                    let problem = format!("the file has {length} bytes");
                    let remedy = format!("give a file of {expected} bytes");
                    return Err(origin.value(key, &quoted(path), &problem, &remedy));
                }
            }
            Ok(())
        }
    }
}

fn disks(disks: &[Disk], origin: &Origin<'_>) -> Result<(), ConfigError> {
    let mut seen: HashMap<file_kind::Identity, (usize, bool)> = HashMap::new();
    for (at, disk) in disks.iter().enumerate() {
        let key = |name| format!("disk[{at}].{name}");
        image(disk, &key("path"), origin)?;
        range(&key("queues"), disk.queues, 16, origin)?;
        positive(&key("bytes_per_second"), disk.bytes_per_second.map(|size| size.0), origin)?;
        positive(&key("requests_per_second"), disk.requests_per_second.map(u64::from), origin)?;
        if let Some(serial) = &disk.serial {
            let printable = serial.bytes().all(|byte| byte.is_ascii_graphic());
            if serial.is_empty() || serial.len() > MAX_SERIAL || !printable {
                let problem = "a serial number is 1 to 20 printable ASCII characters";
                let value = format!("{serial:?}");
                return Err(origin.value(&key("serial"), &value, problem, "try \"data-1\""));
            }
        }
        let Some(file) = file_kind::identity(&disk.path) else { continue };
        if let Some((earlier, read_only)) = seen.insert(file, (at, disk.read_only))
            && !(read_only && disk.read_only)
        {
            let problem = format!("this is also disk[{earlier}]'s, and one of them writes");
            let remedy = "give each disk its own file, or set read_only = true for both";
            return Err(origin.value(&key("path"), &quoted(&disk.path), &problem, remedy));
        }
    }
    Ok(())
}

/// A regular file or block device that can be opened as the disk wants it.
fn image(disk: &Disk, key: &str, origin: &Origin<'_>) -> Result<(), ConfigError> {
    let path = &disk.path;
    if path.as_os_str().is_empty() {
        return Err(origin.missing(key, "give the path of a raw image or block device"));
    }
    let refused = |problem: &str, remedy: &str| origin.value(key, &quoted(path), problem, remedy);
    let remedy = "give the path of a raw image or block device";
    let metadata = path.metadata().map_err(|error| refused(&error.to_string(), remedy))?;
    if !metadata.is_file() && !file_kind::is_block_device(&metadata) {
        return Err(refused("this is neither a regular file nor a block device", remedy));
    }
    let opened = OpenOptions::new().read(true).write(!disk.read_only).open(path);
    let file = opened.map_err(|error| {
        refused(&error.to_string(), "give read (and, unless read_only = true, write) permission")
    })?;
    if disk.format == DiskFormat::Auto {
        let length = (&file).seek(SeekFrom::End(0));
        let format = length.and_then(|length| image_format::of(&file, length));
        let format = format.map_err(|error| refused(&error.to_string(), remedy))?;
        if let Some(ImageFormat { name, qemu_name }) = format {
            let problem = format!("this is a {name} image, and a disk is a raw one");
            let shown = path.display();
            let remedy =
                format!("convert it: qemu-img convert -f {qemu_name} -O raw {shown} {shown}.raw");
            return Err(refused(&problem, &remedy));
        }
    }
    if metadata.is_file() && (metadata.len() == 0 || !metadata.len().is_multiple_of(512)) {
        let problem =
            format!("{} bytes are not a whole number of 512-byte sectors", metadata.len());
        let remedy =
            format!("if it is a raw image, extend it: truncate -s %512 {}", path.display());
        return Err(refused(&problem, &remedy));
    }
    Ok(())
}

fn nets(nets: &[Net], origin: &Origin<'_>) -> Result<(), ConfigError> {
    for (at, net) in nets.iter().enumerate() {
        let key = |name| format!("net[{at}].{name}");
        if net.tap.is_empty() {
            return Err(origin.missing(&key("tap"), "give the name of a tap interface"));
        }
        let forbidden = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b':' | b'%');
        let tap = format!("{:?}", net.tap);
        if net.tap.len() > MAX_TAP || net.tap.bytes().any(forbidden) {
            let problem = "this cannot be the name of an interface";
            let remedy = "use 1 to 15 printable ASCII characters without / : %, like \"tap0\"";
            return Err(origin.value(&key("tap"), &tap, problem, remedy));
        }
        range(&key("queues"), net.queues, 8, origin)?;
        positive(&key("bytes_per_second"), net.bytes_per_second.map(|size| size.0), origin)?;
        if let Some(mac) = net.mac
            && (mac.0[0] & 1 == 1 || mac.0 == [0; 6])
        {
            let problem = "this is no unicast address";
            let remedy = "use an even, non-zero first byte, like \"02:00:00:00:00:01\"";
            return Err(origin.value(&key("mac"), &mac.to_string(), problem, remedy));
        }
        for (earlier, other) in nets.iter().enumerate().take(at) {
            let problem = format!("net[{earlier}] has the same");
            if other.tap == net.tap {
                return Err(origin.value(&key("tap"), &tap, &problem, "give each its own tap"));
            }
            if let (Some(mac), true) = (net.mac, other.mac == net.mac) {
                let mac = mac.to_string();
                return Err(origin.value(&key("mac"), &mac, &problem, "give each its own address"));
            }
        }
    }
    Ok(())
}

fn vsock(vsock: &Vsock, platform: PlatformChoice, origin: &Origin<'_>) -> Result<(), ConfigError> {
    if !(3..u32::MAX).contains(&vsock.cid) {
        let problem = "this context identifier is reserved";
        let cid = vsock.cid.to_string();
        return Err(origin.value("vsock.cid", &cid, problem, "use 3 to 4294967294"));
    }
    let socket = &vsock.socket;
    let named = !socket.as_os_str().is_empty();
    if vsock.vhost {
        let refused = |problem, remedy| Err(origin.value("vsock.vhost", "true", problem, remedy));
        return match platform {
            _ if named => refused("the sockets are the kernel's", "leave vsock.socket out"),
            PlatformChoice::Only(PlatformKind::Plain) => Ok(()),
            _ => refused(
                "the kernel serves only plain guests",
                "give vsock.socket instead, or platform = \"plain\"",
            ),
        };
    }
    if !named {
        return Err(origin.missing("vsock.socket", "give the path of a socket to be made"));
    }
    let refused =
        |problem: &str, remedy| Err(origin.value("vsock.socket", &quoted(socket), problem, remedy));
    if socket.as_os_str().len() > MAX_SOCKET {
        return refused("the path is too long for a Unix socket", "use at most 96 bytes");
    }
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty());
    if !folder.unwrap_or(Path::new(".")).is_dir() {
        return refused("its folder does not exist", "make the folder first");
    }
    if socket.symlink_metadata().is_ok_and(|found| !file_kind::is_socket(&found)) {
        return refused("something that is not a socket is there", "give a path that is free");
    }
    Ok(())
}

fn range(key: &str, value: u16, most: u16, origin: &Origin<'_>) -> Result<(), ConfigError> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    let problem = format!("there are 1 to {most} queues");
    Err(origin.value(key, &value.to_string(), &problem, "try 1"))
}

fn positive(key: &str, value: Option<u64>, origin: &Origin<'_>) -> Result<(), ConfigError> {
    if value != Some(0) {
        return Ok(());
    }
    Err(origin.value(key, "0", "nothing would ever pass", "leave the key out for no limit"))
}
