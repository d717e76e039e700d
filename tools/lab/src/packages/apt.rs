//! Debian's apt with lists, state and sources of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::mirrors::{self, Mirrors};
use super::spec::At;
use super::{Failures, PackageError, Spec};
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

    /// Fetches the lists from the first mirror that is one.
    fn update(&self) -> Result<(), PackageError> {
        say(format_args!("fetching Debian's package lists"));
        let mut failures = Vec::new();
        for mirrors in mirrors::candidates()? {
            self.write("sources.list", &self.sources(&mirrors))?;
            let mut command = self.command("apt-get");
            match process::output(command.args(["-q", "update", "--error-on=any"])) {
                Ok(_) => return self.write("stamp", ""),
                Err(error) => failures.push((mirrors.to_string(), error)),
            }
        }
        Err(if failures.is_empty() {
            PackageError::NoMirror
        } else {
            PackageError::Mirrors { failures: Failures(failures) }
        })
    }

    fn sources(&self, mirrors: &Mirrors) -> String {
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
        text
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
#clear APT::Update::Post-Invoke-Stats;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a machine reaches mirrors only by a proxy, so do we.
    #[test]
    fn the_machines_proxy_holds_and_its_hooks_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let machine = directory.path().join("machine.conf");
        fs::write(
            &machine,
            "Acquire::http::Proxy \"http://proxy.example:3128\";\n\
             APT::Update::Post-Invoke-Stats { \"touch hooked\"; };\n",
        )
        .unwrap();
        let apt = Apt {
            directory: directory.path().into(),
            kind: Kind::Binary,
            _lock: fs::File::open(&machine).unwrap(),
        };
        apt.write("apt.conf", &apt.configuration()).unwrap();
        let mut command = apt.command("apt-config");
        let dump = process::output(command.arg("dump").env("APT_CONFIG", &machine)).unwrap();
        assert!(dump.contains("Acquire::http::Proxy \"http://proxy.example:3128\";"), "{dump}");
        assert!(!dump.contains("touch hooked"), "{dump}");
        assert!(dump.contains(&format!("Dir::Etc::sourcelist \"{}/", directory.path().display())));
    }
}
