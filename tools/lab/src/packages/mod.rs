//! Files out of Debian packages: kernels, firmware, busybox, QEMU's source.
//!
//! Debian's own tools do the work, with lists and state of their own, so that an ordinary user can
//! do it and the machine's package database is neither read nor changed. The mirror is the one this
//! machine's apt already uses, else Debian's own, or `CASEMATE_DEBIAN_MIRROR`; signatures are checked
//! against `debian-archive-keyring`.

mod apt;
mod error;
mod local;
mod mirrors;
mod spec;
mod template;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::{Failures, PackageError};
pub(crate) use local::sha256;
pub use spec::Spec;

use crate::cache::{Cache, CacheError};
use crate::emulator::short_hash;
use crate::process;
use crate::progress::say;
use apt::{Apt, Kind};

pub(crate) use apt::KEYRING;
pub(crate) use mirrors::candidates;

/// How long the newest version of a package stays the newest without another look.
const NEWEST_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Gets packages, and files out of them, into a [`Cache`].
#[derive(Clone, Debug)]
pub struct Packages {
    cache: Cache,
}

impl Packages {
    /// Packages kept in the cache of this user.
    ///
    /// # Errors
    ///
    /// The cache cannot be used.
    pub fn open() -> Result<Self, PackageError> {
        Ok(Self::within(Cache::open()?))
    }

    /// Packages kept in a given cache.
    pub fn within(cache: Cache) -> Self {
        Self { cache }
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// One file out of a package; `path` as in the package, with or without the leading slash.
    ///
    /// With `sha256` (64 lowercase hexadecimal digits) the file is checked each time it is handed
    /// out, and a file of that hash in the directory `CASEMATE_BLOBS` is taken without a download.
    ///
    /// # Errors
    ///
    /// No such package or file, no mirror, a signature or a hash that does not match.
    pub fn file(
        &self,
        spec: &Spec,
        path: &str,
        sha256: Option<&str>,
    ) -> Result<PathBuf, PackageError> {
        let Some(sha256) = sha256 else { return self.find(spec, path) };
        let name = Path::new(path).file_name().unwrap_or_default();
        let kept = self.cache.get(Path::new("files").join(sha256).join(name), |part| {
            let source = match local::find(sha256) {
                Some(local) => local,
                None => self.find(spec, path)?,
            };
            // Before the copy has its name, so that a wrong file never gets one.
            check(&source, sha256)?;
            fs::copy(&source, part).map_err(CacheError::io("copying", source))?;
            Ok::<_, PackageError>(())
        })?;
        check(&kept, sha256)?;
        Ok(kept)
    }

    /// The directory into which a package is unpacked, whole.
    ///
    /// # Errors
    ///
    /// As for [`Packages::file`].
    pub fn tree(&self, spec: &Spec) -> Result<PathBuf, PackageError> {
        self.tree_of(std::slice::from_ref(spec))
    }

    /// As [`Packages::tree`], of the first of `specs` that the archive has.
    ///
    /// # Errors
    ///
    /// As for [`Packages::file`]; what was tried is named.
    pub fn tree_of(&self, specs: &[Spec]) -> Result<PathBuf, PackageError> {
        let deb = self.deb_of(specs)?;
        let name = deb.file_stem().unwrap_or_default();
        self.cache.get(Path::new("trees").join(name), |part| {
            process::run("dpkg-deb", [Path::new("-x"), &deb, part])?;
            Ok(())
        })
    }

    /// The package itself, a `.deb` file.
    ///
    /// A name with a `*`, or a suite, means the newest version; which one that is, is looked up once a
    /// week. Without a mirror it stays the last one.
    ///
    /// # Errors
    ///
    /// No such package, no mirror, or a signature that does not match.
    pub fn deb(&self, spec: &Spec) -> Result<PathBuf, PackageError> {
        self.deb_of(std::slice::from_ref(spec))
    }

    fn deb_of(&self, specs: &[Spec]) -> Result<PathBuf, PackageError> {
        let found = self.fetched("debs", Kind::Binary, specs)?;
        only_deb(&found).ok_or_else(|| PackageError::NoFile {
            path: "*.deb".into(),
            package: found.display().to_string(),
        })
    }

    /// The directory with the files of a source package (`.dsc` and tarballs), not unpacked: of the
    /// first of `specs` that the archive has.
    ///
    /// # Errors
    ///
    /// As for [`Packages::deb`].
    pub fn source_of(&self, specs: &[Spec]) -> Result<PathBuf, PackageError> {
        self.fetched("sources", Kind::Source, specs)
    }

    fn fetched(&self, kept: &str, kind: Kind, specs: &[Spec]) -> Result<PathBuf, PackageError> {
        let exact = self.exact(kept, kind, specs)?;
        match self.fetched_exactly(kept, kind, &exact) {
            // The archive has a newer one since it was looked up.
            Err(PackageError::NotInArchive { .. }) if *specs != [exact] => {
                let note = self.note(kept, specs);
                fs::remove_file(&note).map_err(CacheError::io("removing", note))?;
                self.fetched_exactly(kept, kind, &self.exact(kept, kind, specs)?)
            }
            result => result,
        }
    }

    fn fetched_exactly(
        &self,
        kept: &str,
        kind: Kind,
        exact: &Spec,
    ) -> Result<PathBuf, PackageError> {
        self.cache.get(Path::new(kept).join(exact.file_name()), |part| {
            say(format_args!("fetching the Debian package {exact}"));
            fs::create_dir_all(part).map_err(CacheError::io("creating", part))?;
            Apt::open(&self.cache, kind)?.download(exact, part)
        })
    }

    /// Where the version is noted that is meant by `specs`.
    fn note(&self, kept: &str, specs: &[Spec]) -> PathBuf {
        let names: Vec<_> = specs.iter().map(Spec::file_name).collect();
        let name = short_hash(names.join(" ").as_bytes());
        self.cache.path("newest").join(kept).join(name)
    }

    /// The version that is meant by `specs`, noted for the next calls.
    fn exact(&self, kept: &str, kind: Kind, specs: &[Spec]) -> Result<Spec, PackageError> {
        if let [spec] = specs
            && spec.is_exact()
        {
            return Ok(spec.clone());
        }
        let note = self.note(kept, specs);
        let _lock = self.cache.lock(&note)?;
        let noted = fs::read_to_string(&note).ok().and_then(|text| text.trim().parse().ok());
        let age = fs::metadata(&note).and_then(|note| note.modified());
        let recent = age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < NEWEST_FOR));
        match (noted, recent) {
            (Some(spec), true) => Ok(spec),
            (noted, _) => match (Apt::open(&self.cache, kind)?.find(specs), noted) {
                (Ok(spec), _) => {
                    fs::write(&note, spec.to_string()).map_err(CacheError::io("writing", note))?;
                    Ok(spec)
                }
                (Err(error), Some(spec)) => {
                    say(format_args!("staying with {spec}: {error}"));
                    Ok(spec)
                }
                (Err(error), None) => Err(error),
            },
        }
    }

    /// The static busybox: tools for images and for unpacking, wherever this runs.
    ///
    /// # Errors
    ///
    /// As for [`Packages::file`].
    pub fn busybox(&self) -> Result<PathBuf, PackageError> {
        self.find(&"busybox-static/trixie".parse()?, "/bin/busybox")
    }

    fn find(&self, spec: &Spec, path: &str) -> Result<PathBuf, PackageError> {
        let tree = self.tree(spec)?;
        let relative = path.trim_start_matches('/');
        // Suites differ in whether /lib and /bin are links into /usr.
        [tree.join(relative), tree.join("usr").join(relative)]
            .into_iter()
            .find(|candidate| candidate.is_file())
            .ok_or_else(|| PackageError::NoFile { path: path.into(), package: spec.to_string() })
    }
}

fn only_deb(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some("deb".as_ref()))
}

fn check(path: &Path, expected: &str) -> Result<(), PackageError> {
    let actual = sha256(path).map_err(CacheError::io("reading", path))?;
    if actual == expected {
        return Ok(());
    }
    Err(PackageError::Hash { path: path.to_owned(), expected: expected.into(), actual })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_hash_is_refused_and_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let packages = Packages::within(Cache::at(directory.path()).unwrap());
        let spec: Spec = "busybox-static=1".parse().unwrap();
        // A package that is here already, with a file that is not what was asked for.
        let deb = Path::new("debs").join(spec.file_name());
        let put = |path: &Path, name: &str, text: &str| {
            packages.cache.get(path, |part| {
                let file = part.join(name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, text).map_err(CacheError::io("writing", file))
            })
        };
        put(&deb, "busybox-static_1_amd64.deb", "").unwrap();
        put(Path::new("trees/busybox-static_1_amd64"), "bin/busybox", "not busybox").unwrap();

        assert!(packages.file(&spec, "/bin/busybox", None).is_ok());
        let wrong = "00".repeat(32);
        let error = packages.file(&spec, "/bin/busybox", Some(&wrong)).unwrap_err();
        assert!(matches!(error, PackageError::Hash { .. }), "{error}");
        assert!(packages.file(&spec, "/bin/busybox", Some(&wrong)).is_err());
        let error = packages.file(&spec, "/bin/nothing", None).unwrap_err();
        assert!(error.to_string().contains("has no file /bin/nothing"), "{error}");
    }
}
