//! Debian's kernels: the image, its unpacked ELF, and modules in load order.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::cache::{Cache, CacheError};
use crate::packages::{PackageError, Packages, Spec};

/// Where Debian's packages have a directory per release.
const MODULES: &str = "usr/lib/modules";

/// A kernel of Debian's with its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    modules: PathBuf,
    /// The list of modules that are built in.
    builtin: PathBuf,
}

/// For which machines Debian built a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Virtual machines: few drivers, small. What guests boot.
    Cloud,
    /// Any PC. What the emulated hosts boot: the other lacks 9p and the AMD secure processor.
    Generic,
}

/// The oldest kernel that everything works with, as a host and as a guest.
pub const OLDEST: &str = "oldest";
/// The newest that Debian has.
pub const NEWEST: &str = "newest";

/// Why a kernel or its modules could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither a role nor a series.
    #[error("{series:?} names no kernel: write oldest, newest, or a series such as 6.12")]
    Series {
        /// What was asked for.
        series: String,
    },
    /// The package is not made as expected.
    #[error("{} has no {what}", package.display())]
    Layout {
        /// The unpacked package.
        package: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Neither a module nor built in.
    #[error("the kernel {release} has no module {module}")]
    NoModule {
        /// As `uname -r` prints it.
        release: String,
        /// What was asked for.
        module: String,
    },
    /// No bzImage, or one packed in a way that is not known.
    #[error("{} cannot be unpacked: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A compressed file that does not unpack.
    #[error("unpacking {} failed", path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
    /// A package could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Kernel {
    /// A kernel of Debian's: [`OLDEST`] or [`NEWEST`], or the newest of a series (`6.12`).
    ///
    /// Roles prefer a series that is known to work (6.12, 7.2), and are filled by what the release has
    /// today where it has moved on.
    ///
    /// # Errors
    ///
    /// No role and no series, or the packages cannot be had; what was tried is named.
    pub fn debian(
        packages: &Packages,
        series: &str,
        flavour: Flavour,
    ) -> Result<Self, KernelError> {
        let kind = if flavour == Flavour::Cloud { "cloud-amd64" } else { "amd64" };
        let specs =
            candidates(series).ok_or_else(|| KernelError::Series { series: series.into() })?;
        let specs: Result<Vec<Spec>, _> =
            specs.iter().map(|spec| spec.replace("KIND", kind).parse()).collect();
        let tree = packages.tree_of(&specs?)?;
        let release = release(&tree)?;
        let modules = tree.join(MODULES).join(&release);
        let image = tree.join(format!("boot/vmlinuz-{release}"));
        if image.is_file() {
            let builtin = modules.join("modules.builtin");
            return Ok(Self { image, builtin, modules, release });
        }
        // Since Debian 14 a kernel is cut into packages.
        let part = |name| {
            let whole = packages.tree(&format!("linux-{name}-{release}/sid").parse()?)?;
            Ok::<_, PackageError>(whole.join(MODULES).join(&release))
        };
        Ok(Self {
            image: modules.join("vmlinuz"),
            builtin: part("base")?.join("modules.builtin"),
            modules: part("modules")?,
            release,
        })
    }

    /// The ELF file inside the image, unpacked once.
    ///
    /// # Errors
    ///
    /// The image is not one of Linux, or is packed otherwise than with zstd or xz.
    pub fn vmlinux(&self, cache: &Cache) -> Result<PathBuf, KernelError> {
        cache.get(Path::new("vmlinux").join(&self.release), |part| {
            let elf = unpack_image(&self.image)?;
            Ok(fs::write(part, elf).map_err(CacheError::io("writing", part))?)
        })
    }

    /// Modules with what they depend on, in load order: name and unpacked bytes. What is built in
    /// is left out.
    ///
    /// # Errors
    ///
    /// A name that the kernel does not know, or a module that does not unpack.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>, KernelError> {
        let mut files = HashMap::new();
        walk(&self.modules, &mut files).map_err(CacheError::io("reading", &self.modules))?;
        let builtin =
            fs::read_to_string(&self.builtin).map_err(CacheError::io("reading", &self.builtin))?;
        let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
        let mut loader = Loader { kernel: self, files, builtin, order: Vec::new() };
        for name in names {
            loader.add(name)?;
        }
        Ok(loader.order)
    }
}

/// What modules need and do not say. The driver of SEV-SNP reports in Linux 6.12 asks for its cipher by the
/// name of the algorithm, and without it does not start.
const UNSAID: &[(&str, &str)] = &[("sev_guest", "ghash_generic"), ("sev_guest", "gcm")];

struct Loader<'a> {
    kernel: &'a Kernel,
    files: HashMap<String, PathBuf>,
    builtin: Vec<String>,
    order: Vec<(String, Vec<u8>)>,
}

impl Loader<'_> {
    fn add(&mut self, name: &str) -> Result<(), KernelError> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || self.order.iter().any(|(have, _)| *have == name) {
            return Ok(());
        }
        // Taken out, so that modules which depend on each other end this rather than the stack.
        let path = self.files.remove(&name).ok_or_else(|| KernelError::NoModule {
            release: self.kernel.release.clone(),
            module: name.clone(),
        })?;
        let bytes = unpack_module(&path)
            .map_err(|source| KernelError::Unpack { path: path.clone(), source })?;
        for dependency in depends(&bytes) {
            self.add(&dependency)?;
        }
        for (_, unsaid) in UNSAID.iter().filter(|(module, _)| *module == name) {
            if self.files.contains_key(*unsaid) {
                self.add(unsaid)?;
            }
        }
        self.order.push((name, bytes));
        Ok(())
    }
}

/// What a module's `.modinfo` says that it depends on.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = module.get(at + KEY.len()..).unwrap_or_default();
    let list = list.split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// All modules below a directory by name.
fn walk(directory: &Path, files: &mut HashMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// `kernel/drivers/block/virtio_blk.ko.xz` is `virtio_blk`; dashes and underscores are the same.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn unpack_module(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if path.extension() == Some("xz".as_ref()) { unpack_xz(&bytes) } else { Ok(bytes) }
}

pub(crate) fn unpack_xz(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    lzma_rust2::XzReader::new(bytes, false).read_to_end(&mut out)?;
    Ok(out)
}

fn unpack_zstd(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(bytes).map_err(io::Error::other)?;
    let mut out = Vec::new();
    decoder.read_to_end(&mut out)?;
    Ok(out)
}

fn unpack_image(path: &Path) -> Result<Vec<u8>, KernelError> {
    let refuse = |reason| KernelError::Image { path: path.into(), reason };
    let image = fs::read(path).map_err(CacheError::io("reading", path))?;
    let payload = payload(&image).map_err(refuse)?;
    let elf = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => unpack_zstd(payload),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unpack_xz(payload),
        _ => return Err(refuse("its payload is neither zstd nor xz")),
    };
    let elf = elf.map_err(|source| KernelError::Unpack { path: path.into(), source })?;
    if elf.starts_with(b"\x7fELF") { Ok(elf) } else { Err(refuse("its payload is no ELF file")) }
}

/// The compressed kernel inside a bzImage.
///
/// Linux Documentation/arch/x86/boot.rst: `setup_sects` at 1F1h, "HdrS" at 202h, `payload_offset` at
/// 248h counted from the protected-mode code, `payload_length` at 24Ch.
///
/// # Errors
///
/// In words, why it is no bzImage.
pub fn payload(image: &[u8]) -> Result<&[u8], &'static str> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it has no boot header");
    }
    let field = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = || {
        let sectors = match image.get(0x1f1)? {
            // For kernels older than the field.
            0 => 4,
            sectors => usize::from(*sectors),
        };
        let start = ((sectors + 1) * 512).checked_add(field(0x248)?)?;
        image.get(start..start.checked_add(field(0x24c)?)?)
    };
    payload().ok_or("its payload is outside the file")
}

/// The packages that may have a kernel, best first; KIND stands for the flavour. `None` for what is neither
/// a role nor a series.
pub(crate) fn candidates(series: &str) -> Option<Vec<String>> {
    let released = |series: &str| {
        vec![
            format!("linux-image-{series}.*+deb13-KIND/trixie"),
            format!("linux-image-{series}.*+deb13-KIND/trixie-security"),
            format!("linux-image-{series}.*+deb12-KIND/bookworm-backports"),
        ]
    };
    let unreleased = |series: &str| vec![format!("linux-binary-{series}.*+deb*-KIND/sid")];
    Some(match series {
        OLDEST => [released("6.12"), released("*")].concat(),
        NEWEST => [unreleased("7.2"), unreleased("*"), released("*")].concat(),
        series if is_series(series) => [released(series), unreleased(series)].concat(),
        _ => return None,
    })
}

fn is_series(text: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').is_some_and(|(major, minor)| number(major) && number(minor))
}

/// The release whose files a package has.
fn release(package: &Path) -> Result<String, KernelError> {
    let entries = fs::read_dir(package.join(MODULES)).ok();
    let release =
        entries.and_then(|mut entries| entries.next()?.ok()?.file_name().into_string().ok());
    release.ok_or_else(|| KernelError::Layout { package: package.into(), what: MODULES })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kernels_are_named_by_role_or_series() {
        for name in [OLDEST, NEWEST, "6.12", "7.3"] {
            for spec in candidates(name).unwrap() {
                assert!(spec.replace("KIND", "cloud-amd64").parse::<Spec>().is_ok(), "{spec}");
            }
        }
        for name in ["", "7", "7.", "latest", "6.12/sid", "6.1*"] {
            assert!(candidates(name).is_none(), "{name}");
        }
    }

    #[test]
    fn dependencies_are_those_of_modinfo() {
        assert_eq!(
            depends(b"\x7fELF\0license=GPL\0depends=net_failover,failover\0x"),
            ["net_failover", "failover"]
        );
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"\0depends").is_empty());
    }

    #[test]
    fn module_names_are_those_that_the_kernel_prints() {
        let name = |path| module_name(Path::new(path));
        assert_eq!(name("kernel/x/kvm-amd.ko.xz").as_deref(), Some("kvm_amd"));
        assert_eq!(name("tun.ko").as_deref(), Some("tun"));
        assert_eq!(name("modules.order"), None);
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_nothing_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..2048),
        ) {
            let mut image = bytes.clone();
            if let Some(magic) = image.get_mut(0x202..0x206) {
                magic.copy_from_slice(b"HdrS");
            }
            if let Ok(found) = payload(&image) {
                prop_assert!(found.len() <= image.len());
            }
            let mut module = b"\0depends=".to_vec();
            module.extend(&bytes);
            prop_assert!(depends(&module).iter().all(|name| !name.is_empty()));
        }
    }

    #[test]
    fn images_that_are_none_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let mut image = vec![0; 0x400];
        fs::write(&path, &image).unwrap();
        assert!(unpack_image(&path).unwrap_err().to_string().contains("no boot header"));
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x250].fill(0xff);
        fs::write(&path, &image).unwrap();
        assert!(unpack_image(&path).unwrap_err().to_string().contains("outside the file"));
    }
}
