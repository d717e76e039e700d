//! Debian's apt with lists, state and sources of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::spec::At;
use super::{PackageError, Spec};
use crate::cache::{Cache, CacheError};
use crate::process;
use crate::progress::say;

/// Where packages are looked for: what the lab needs is in one of these.
const SUITES: &[&str] = &["bookworm", "bookworm-backports", "trixie", "sid"];
/// Their security updates, which are on a mirror of their own.
const SECURITY_SUITES: &[&str] = &["bookworm-security", "trixie-security"];
/// Debian's package of the same name has it; the keys of all suites are in it.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Lists older than this are fetched anew before they are believed.
const FRESH: Duration = Duration::from_secs(12 * 3600);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Binary,
    Source,
}

pub(super) struct Apt {
    /// Lists, state and `apt.conf`.
    directory: PathBuf,
    kind: Kind,
    /// apt's own locks are off (they are the machine's), so this one stands for them.
    _lock: fs::File,
}

impl Apt {
    pub(super) fn open(cache: &Cache, kind: Kind) -> Result<Self, PackageError> {
        let keyring = Path::new(KEYRING);
        if !keyring.exists() {
            return Err(PackageError::NoKeyring { path: keyring.into() });
        }
        let name = if kind == Kind::Binary { "apt" } else { "apt-source" };
        let directory = cache.path(name);
        let lock = cache.lock(&directory)?;
        for part in ["lists/partial", "cache/archives/partial", "state"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(CacheError::io("creating", path))?;
        }
        let apt = Self { directory, kind, _lock: lock };
        apt.write("apt.conf", &apt.configuration())?;
        apt.write("status", "")?;
        Ok(apt)
    }

    /// Puts the newest package that fits into `directory`.
    pub(super) fn download(&self, spec: &Spec, directory: &Path) -> Result<(), PackageError> {
        let mut fresh = false;
        if !self.lists_are_fresh() {
            self.update()?;
            fresh = true;
        }
        match self.try_download(spec, directory) {
            // Lists of this morning name packages that a mirror has replaced since.
            Err(_) if !fresh => {
                self.update()?;
                self.try_download(spec, directory)
            }
            result => result,
        }
    }

    fn try_download(&self, spec: &Spec, directory: &Path) -> Result<(), PackageError> {
        let (name, version) = self.newest(spec)?;
        let mut command = self.command("apt-get");
        match self.kind {
            Kind::Binary => command.arg("download"),
            Kind::Source => command.args(["source", "--download-only"]),
        };
        command.arg("-q").arg(format!("{name}={version}")).current_dir(directory);
        process::output(&mut command)?;
        Ok(())
    }

    /// Name and version of the newest package that fits.
    fn newest(&self, spec: &Spec) -> Result<(String, String), PackageError> {
        let listed = match self.kind {
            // `madison` lines: name | version | URI suite/component architecture.
            Kind::Binary => self.names(spec)?,
            Kind::Source => vec![spec.name.clone()],
        };
        let mut found: Option<(String, String)> = None;
        for line in self.madison(&listed)?.lines() {
            let mut fields = line.split('|').map(str::trim);
            let (Some(name), Some(version), Some(origin)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let fits = match &spec.at {
                At::Version(wanted) => version == wanted,
                At::Suite(suite) => {
                    origin.split(' ').nth(1).and_then(|origin| origin.split('/').next())
                        == Some(suite)
                }
            };
            let kind_fits = origin.ends_with("Sources") == (self.kind == Kind::Source);
            if fits && kind_fits && newer(version, found.as_ref().map(|(_, best)| best.as_str()))? {
                found = Some((name.into(), version.into()));
            }
        }
        found.ok_or_else(|| PackageError::NotInArchive {
            spec: spec.to_string(),
            suites: [SUITES, SECURITY_SUITES].concat().join(", "),
        })
    }

    fn names(&self, spec: &Spec) -> Result<Vec<String>, PackageError> {
        if !spec.name.contains('*') {
            return Ok(vec![spec.name.clone()]);
        }
        let head = spec.name.split('*').next().unwrap_or_default();
        let listed = process::output(self.command("apt-cache").args(["pkgnames", head]))?;
        Ok(listed.lines().filter(|name| spec.fits(name)).map(str::to_owned).collect())
    }

    fn madison(&self, names: &[String]) -> Result<String, PackageError> {
        if names.is_empty() {
            return Ok(String::new());
        }
        Ok(process::output(self.command("apt-cache").arg("madison").args(names))?)
    }

    fn lists_are_fresh(&self) -> bool {
        let stamp = fs::metadata(self.directory.join("stamp")).and_then(|stamp| stamp.modified());
        stamp.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < FRESH))
    }

    fn update(&self) -> Result<(), PackageError> {
        self.write("sources.list", &self.sources()?)?;
        say(format_args!("fetching Debian's package lists"));
        process::output(self.command("apt-get").args(["-q", "update", "--error-on=any"]))?;
        self.write("stamp", "")
    }

    fn sources(&self) -> Result<String, PackageError> {
        let mirrors = Mirrors::of_this_machine()?;
        let (word, target) = match self.kind {
            Kind::Binary => ("deb", "Packages"),
            Kind::Source => ("deb-src", "Sources"),
        };
        let line = |mirror: &str, suite: &&str| {
            format!("{word} [signed-by={KEYRING} target={target}] {mirror} {suite} main\n")
        };
        let mut text: String = SUITES.iter().map(|suite| line(&mirrors.main, suite)).collect();
        if let Some(security) = &mirrors.security {
            text.extend(SECURITY_SUITES.iter().map(|suite| line(security, suite)));
        }
        Ok(text)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.directory.join("apt.conf"));
        command
    }

    /// Read after the machine's own configuration, whose proxies and the like still hold.
    fn configuration(&self) -> String {
        let directory = self.directory.display();
        format!(
            r#"// Hooks of the machine's own updates.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "{directory}/state";
Dir::State::lists "{directory}/lists";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::SourceList "{directory}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
// The user that root's downloads would change to cannot write to a home directory.
APT::Sandbox::User "root";
APT::Architecture "amd64";
APT::Architectures "amd64";
Acquire::Retries "3";
"#
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<(), PackageError> {
        let path = self.directory.join(name);
        Ok(fs::write(&path, text).map_err(CacheError::io("writing", path))?)
    }
}

/// Whether a version is newer than the best so far, by Debian's order.
fn newer(version: &str, best: Option<&str>) -> Result<bool, PackageError> {
    let Some(best) = best else { return Ok(true) };
    let mut command = Command::new("dpkg");
    command.args(["--compare-versions", version, "gt", best]);
    let status = command.status();
    let status =
        status.map_err(|source| process::ProcessError::Start { program: "dpkg".into(), source })?;
    Ok(status.success())
}

/// The base URIs, the directories that have `dists`.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    main: String,
    security: Option<String>,
}

impl Mirrors {
    fn of_this_machine() -> Result<Self, PackageError> {
        if let Ok(main) = std::env::var("CASEMATE_DEBIAN_MIRROR") {
            return Ok(Self { main, security: None });
        }
        // What an update would fetch, from whatever form the machine's sources have.
        let mut command = Command::new("apt-get");
        command.args(["--print-uris", "update", "-o", "Debug::NoLocking=1"]);
        Self::from_uris(&process::output(&mut command)?).ok_or(PackageError::NoMirror)
    }

    fn from_uris(text: &str) -> Option<Self> {
        let mut main = None;
        let mut security = None;
        for line in text.lines() {
            let Some((uri, _)) = line.strip_prefix('\'').and_then(|line| line.split_once('\''))
            else {
                continue;
            };
            let Some((base, suite)) =
                uri.strip_suffix("/InRelease").and_then(|uri| uri.split_once("/dists/"))
            else {
                continue;
            };
            let release = suite.split('-').next().unwrap_or_default();
            if !is_debian(release) {
                continue;
            }
            let slot = if suite.ends_with("-security") { &mut security } else { &mut main };
            slot.get_or_insert_with(|| base.to_owned());
        }
        Some(Self { main: main?, security })
    }
}

/// Names of Debian's releases; other distributions use none of them.
fn is_debian(release: &str) -> bool {
    const NAMES: &[&str] = &[
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
        "oldstable",
        "stable",
        "testing",
        "unstable",
    ];
    NAMES.contains(&release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_those_of_the_machines_own_sources() {
        let text = "\
'http://mirror.example/debian/dists/bookworm/InRelease' mirror.example_x 0 \n\
'http://mirror.example/debian/dists/bookworm-updates/InRelease' mirror.example_x 0 \n\
'http://security.example/debian-security/dists/bookworm-security/InRelease' x 0 \n\
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' x 0 \n\
'http://third.example/dists/nodistro/InRelease' x 0 \n";
        let mirrors = Mirrors::from_uris(text).unwrap();
        assert_eq!(mirrors.main, "http://mirror.example/debian");
        assert_eq!(mirrors.security.as_deref(), Some("http://security.example/debian-security"));
        let ubuntu = "'http://mirror.example/ubuntu/dists/noble/InRelease' x 0 \n";
        assert_eq!(Mirrors::from_uris(ubuntu), None);
    }
}
