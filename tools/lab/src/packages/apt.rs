//! Debian's apt with lists, state and sources of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::mirrors::{self, Mirrors};
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
/// Half a year in seconds, in which signed lists are valid. Debian gives unstable's a week, which leaves out
/// mirrors that are seldom updated.
const VALID_FOR: u32 = 180 * 24 * 3600;
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

    /// The first of `specs` that the archive has, as name and version.
    pub(super) fn find(&self, specs: &[Spec]) -> Result<Spec, PackageError> {
        let mut fresh = false;
        if !self.lists_are_fresh() {
            self.update()?;
            fresh = true;
        }
        match self.first(specs) {
            // Lists of this morning lack packages that a mirror has had since.
            Err(PackageError::NotInArchive { .. }) if !fresh => {
                self.update()?;
                self.first(specs)
            }
            result => result,
        }
    }

    fn first(&self, specs: &[Spec]) -> Result<Spec, PackageError> {
        for spec in specs {
            if let Some((name, version)) = self.newest(spec)? {
                return Spec::version(&name, &version);
            }
        }
        let tried: Vec<_> = specs.iter().map(Spec::to_string).collect();
        Err(PackageError::NotInArchive {
            tried: tried.join(", "),
            suites: [SUITES, SECURITY_SUITES].concat().join(", "),
        })
    }

    /// Puts a package, by name and version, into `directory`.
    pub(super) fn download(&self, spec: &Spec, directory: &Path) -> Result<(), PackageError> {
        let exact = self.find(std::slice::from_ref(spec))?;
        self.try_download(&exact, directory).or_else(|_| {
            // Lists of this morning name packages that a mirror has replaced since.
            self.update()?;
            self.try_download(&self.first(std::slice::from_ref(spec))?, directory)
        })
    }

    fn try_download(&self, spec: &Spec, directory: &Path) -> Result<(), PackageError> {
        let mut command = self.command("apt-get");
        match self.kind {
            Kind::Binary => command.arg("download"),
            Kind::Source => command.args(["source", "--download-only"]),
        };
        command.arg("-q").arg(spec.to_string()).current_dir(directory);
        process::output(&mut command)?;
        Ok(())
    }

    /// Name and version of the newest package that fits.
    fn newest(&self, spec: &Spec) -> Result<Option<(String, String)>, PackageError> {
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
            let suite = origin.split(' ').nth(1).and_then(|origin| origin.split('/').next());
            let fits = spec.at.fits(version, suite.unwrap_or_default());
            let kind_fits = origin.ends_with("Sources") == (self.kind == Kind::Source);
            if fits && kind_fits && newer(version, found.as_ref().map(|(_, best)| best.as_str()))? {
                found = Some((name.into(), version.into()));
            }
        }
        Ok(found)
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

    /// Read after the machine's own configuration, whose proxies and the like still hold. Its leave to take
    /// unsigned or expired archives does not, in whatever scope it stands.
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
// Whatever the machine's own updates may do: signed, by those keys, and not of last year.
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Check-Valid-Until "true";
Acquire::Min-ValidTime "{VALID_FOR}";
APT::Get::AllowUnauthenticated "false";
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

    fn apt(directory: &Path) -> Apt {
        for part in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        let lock = fs::File::create(directory.join("lock")).unwrap();
        let apt = Apt { directory: directory.into(), kind: Kind::Binary, _lock: lock };
        apt.write("apt.conf", &apt.configuration()).unwrap();
        apt.write("status", "").unwrap();
        apt
    }

    fn packages(entries: &[(&str, &str)]) -> String {
        let entry = |(name, version): &(&str, &str)| {
            format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: none\n\
                 Filename: pool/none.deb\nSize: 1\nSHA256: {:064}\nDescription: none\n\n",
                1
            )
        };
        entries.iter().map(entry).collect()
    }

    /// Where a machine reaches mirrors only by a proxy, so do we.
    #[test]
    fn the_machines_proxy_holds_and_its_hooks_and_leave_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let machine = directory.path().join("machine.conf");
        fs::write(
            &machine,
            "Acquire::http::Proxy \"http://proxy.example:3128\";\n\
             Acquire::Check-Valid-Until \"false\"; Acquire::Min-ValidTime \"999999999\";\n\
             APT::Update::Post-Invoke-Stats { \"touch hooked\"; };\n",
        )
        .unwrap();
        let apt = apt(directory.path());
        let mut command = apt.command("apt-config");
        let dump = process::output(command.arg("dump").env("APT_CONFIG", &machine)).unwrap();
        assert!(dump.contains("Acquire::http::Proxy \"http://proxy.example:3128\";"), "{dump}");
        assert!(dump.contains("Acquire::Check-Valid-Until \"true\";"), "{dump}");
        assert!(dump.contains("Acquire::Min-ValidTime \"15552000\";"), "{dump}");
        assert!(!dump.contains("touch hooked"), "{dump}");
        assert!(dump.contains(&format!("Dir::Etc::sourcelist \"{}/", directory.path().display())));
    }

    /// As a machine has it whose updates come from an archive of its own without signatures.
    #[test]
    fn unsigned_archives_are_refused_whatever_the_machine_takes() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("archive");
        for suite in SUITES {
            let lists = archive.join("dists").join(suite).join("main/binary-amd64");
            fs::create_dir_all(&lists).unwrap();
            let text = packages(&[("busybox-static", "1")]);
            fs::write(lists.join("Packages"), text).unwrap();
        }
        let leave =
            "Acquire::AllowInsecureRepositories \"true\"; APT::Get::AllowUnauthenticated \"true\";";
        let machine = directory.path().join("machine.conf");
        fs::write(&machine, format!("{leave} Binary::apt-get {{ {leave} }};")).unwrap();
        let apt = apt(directory.path());
        let main = format!("file:{}", archive.display());
        apt.write("sources.list", &apt.sources(&Mirrors { main, security: None })).unwrap();
        let update = |more: &[&str]| {
            let mut command = apt.command("apt-get");
            command.args(more).args(["-q", "update", "--error-on=any"]).env("APT_CONFIG", &machine);
            process::output(&mut command)
        };
        let error = update(&[]).unwrap_err().to_string();
        assert!(error.contains("does not have a Release file"), "{error}");
        // Nothing but the signatures is missing.
        update(&["-o", "Acquire::AllowInsecureRepositories=true"]).unwrap();
    }

    /// Debian moves: each role is filled by what a release has then.
    #[test]
    fn kernels_are_found_in_an_archive_with_other_versions() {
        use crate::kernel::{NEWEST, OLDEST, candidates};
        let directory = tempfile::tempdir().unwrap();
        let apt = apt(directory.path());
        let main = "http://mirror.example/debian".to_owned();
        apt.write("sources.list", &apt.sources(&Mirrors { main, security: None })).unwrap();
        apt.write("stamp", "").unwrap();
        let has = |suite: &str, entries: &[(&str, &str)]| {
            let name =
                format!("lists/mirror.example_debian_dists_{suite}_main_binary-amd64_Packages");
            apt.write(&name, &packages(entries)).unwrap();
        };
        let found = |series: &str| {
            let specs = candidates(series).unwrap();
            let specs: Vec<Spec> =
                specs.iter().map(|spec| spec.replace("KIND", "amd64").parse().unwrap()).collect();
            apt.first(&specs).map(|spec| spec.to_string())
        };
        // The known versions are there, and newer ones beside them.
        let trixie = [
            ("linux-image-6.12.9+deb13-amd64", "6.12.9-1"),
            ("linux-image-6.12.140+deb13-amd64", "6.12.140-1"),
            ("linux-image-6.12.141+deb13-cloud-amd64", "6.12.141-1"),
            ("linux-image-amd64", "6.12.999-1"),
        ];
        has("trixie", &trixie);
        has(
            "sid",
            &[
                ("linux-binary-7.2.40+deb14-amd64", "7.2.40-1"),
                ("linux-binary-7.4.2+deb14-amd64", "7.4.2-1"),
                ("linux-binary-unsigned-7.4.9+deb14-amd64", "7.4.9-1"),
            ],
        );
        assert_eq!(found(OLDEST).unwrap(), "linux-image-6.12.140+deb13-amd64=6.12.140-1");
        assert_eq!(found(NEWEST).unwrap(), "linux-binary-7.2.40+deb14-amd64=7.2.40-1");
        assert_eq!(found("7.4").unwrap(), "linux-binary-7.4.2+deb14-amd64=7.4.2-1");
        // They are gone.
        has("trixie", &[("linux-image-6.18.3+deb13-amd64", "6.18.3-1")]);
        has(
            "sid",
            &[
                ("linux-binary-7.9.2+deb14-amd64", "7.9.2-1"),
                ("linux-binary-7.10.0+deb15-amd64", "7.10.0-1"),
                ("linux-binary-7.11.0+deb15-rt-amd64", "7.11.0-1"),
            ],
        );
        assert_eq!(found(OLDEST).unwrap(), "linux-image-6.18.3+deb13-amd64=6.18.3-1");
        assert_eq!(found(NEWEST).unwrap(), "linux-binary-7.10.0+deb15-amd64=7.10.0-1");
        // The emulator's source is of one series, in whatever suite.
        has("bookworm-backports", &[("qemu", "1:10.0.2+ds-2"), ("qemu", "1:10.2.0+ds-1")]);
        let qemu = ["qemu/trixie", "qemu=1:10.0.*"].map(|spec| spec.parse().unwrap());
        assert_eq!(apt.first(&qemu).unwrap().to_string(), "qemu=1:10.0.2+ds-2");
        // What was tried is named.
        let error = found("6.12").unwrap_err().to_string();
        for tried in
            ["linux-image-6.12.*+deb13-amd64/trixie,", "linux-binary-6.12.*+deb*-amd64/sid:"]
        {
            assert!(error.contains(tried), "{error}");
        }
    }
}
