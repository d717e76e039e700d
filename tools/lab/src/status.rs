//! What of the lab is here, and what the next step is for what is not.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::cache::{Cache, CacheError};
use crate::emulator::{self, Availability};
use crate::{host::Host, packages};

/// One thing that the lab needs.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// A short name that stays the same.
    pub name: &'static str,
    /// The hosts that need it.
    pub hosts: Vec<&'static str>,
    /// Whether it is here.
    pub state: State,
    /// Where it is, or what is known of it.
    pub detail: String,
    /// Debian packages that only root can install, and that must be there first.
    pub packages: Vec<String>,
    /// The command that brings it, where it is not here.
    pub next: Option<String>,
}

/// Whether a part is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is.
    Ready,
    /// The first run brings it, in seconds.
    OnDemand,
    /// `casemate lab prepare`, or `run`, builds it, in minutes.
    ToBuild,
    /// Only root can bring it.
    Missing,
}

/// All parts, without touching the network.
///
/// # Errors
///
/// The cache cannot be used.
pub fn status() -> Result<Vec<Part>, CacheError> {
    let cache = Cache::open()?;
    let everywhere: Vec<_> = Host::ALL.iter().map(|host| host.name()).collect();
    Ok(vec![
        tool("apt-get", "apt", &everywhere),
        tool("dpkg-deb", "dpkg", &everywhere),
        tool("setpriv", "util-linux", &everywhere),
        keyring(&everywhere),
        mirror(&everywhere),
        fetched(&cache, &everywhere),
        built("emulator", emulator::available(&cache), &everywhere, Host::Snp),
        built("tdx-host-kernel", emulator::tdx_kernel_available(&cache), &["tdx"], Host::Tdx),
        saved(&cache, &everywhere),
    ])
}

fn tool(name: &'static str, package: &str, hosts: &[&'static str]) -> Part {
    let runs = Command::new(name).arg("--version").output().is_ok();
    Part {
        name,
        hosts: hosts.to_vec(),
        state: if runs { State::Ready } else { State::Missing },
        detail: if runs { "here" } else { "not here" }.into(),
        packages: absent(runs, package),
        next: (!runs).then(|| install(&[package.into()])),
    }
}

fn keyring(hosts: &[&'static str]) -> Part {
    let here = Path::new(packages::KEYRING).exists();
    Part {
        name: "archive-keys",
        hosts: hosts.to_vec(),
        state: if here { State::Ready } else { State::Missing },
        detail: packages::KEYRING.into(),
        packages: absent(here, "debian-archive-keyring"),
        next: (!here).then(|| install(&["debian-archive-keyring".into()])),
    }
}

/// Where Debian packages come from: not asked whether it answers.
fn mirror(hosts: &[&'static str]) -> Part {
    let candidates = packages::candidates().unwrap_or_default();
    let best = candidates.first().map(ToString::to_string);
    let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt").exists();
    let mut packages = absent(best.is_some(), "python-apt-common");
    if best.as_ref().is_none_or(|best| best.starts_with("https:")) {
        packages.extend(absent(certificates, "ca-certificates"));
    }
    Part {
        name: "debian-mirror",
        hosts: hosts.to_vec(),
        state: if packages.is_empty() { State::Ready } else { State::Missing },
        detail: best.unwrap_or_else(|| "none is known here".into()),
        next: (!packages.is_empty()).then(|| install(&packages)),
        packages,
    }
}

fn fetched(cache: &Cache, hosts: &[&'static str]) -> Part {
    let directory = cache.path("debs");
    // Beside what is whole lie locks, and what an attempt left.
    let whole = |path: &Path| path.is_dir() && path.extension() != Some("part".as_ref());
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let count = entries.filter(|entry| whole(&entry.path())).count();
    Part {
        name: "packages",
        hosts: hosts.to_vec(),
        state: if count > 0 { State::Ready } else { State::OnDemand },
        detail: format!("{count} Debian packages in {}", directory.display()),
        packages: Vec::new(),
        next: None,
    }
}

fn built(name: &'static str, available: Availability, hosts: &[&'static str], host: Host) -> Part {
    let prepare = format!("casemate lab prepare --host {host}");
    let hosts = hosts.to_vec();
    let (missing, instead) = match available {
        Availability::Here(detail) => {
            let (packages, next) = (Vec::new(), None);
            return Part { name, hosts, state: State::Ready, detail, packages, next };
        }
        Availability::NoRecipe(detail) => {
            let next = Some("set CASEMATE_SHARE, or run `make install`".into());
            return Part { name, hosts, state: State::Missing, detail, packages: Vec::new(), next };
        }
        Availability::ToBuild { packages, instead } => (packages, instead),
    };
    let (state, mut detail, next) = if missing.is_empty() {
        (State::ToBuild, "not built yet".into(), prepare)
    } else {
        let detail = format!("not built yet, and {} packages for that are missing", missing.len());
        (State::Missing, detail, format!("{} && {prepare}", install(&missing)))
    };
    if let Some(reason) = instead {
        detail = format!("{detail}; no prebuilt one is taken: {reason}");
    }
    Part { name, hosts, state, detail, packages: missing, next: Some(next) }
}

fn saved(cache: &Cache, hosts: &[&'static str]) -> Part {
    let entries = fs::read_dir(cache.path("hosts")).into_iter().flatten().flatten();
    let count = entries.filter(|entry| entry.path().extension() == Some("state".as_ref())).count();
    Part {
        name: "saved-state",
        hosts: hosts.to_vec(),
        state: if count > 0 { State::Ready } else { State::OnDemand },
        detail: format!("{count} saved; the first run of a configuration saves one"),
        packages: Vec::new(),
        next: None,
    }
}

fn absent(here: bool, package: &str) -> Vec<String> {
    if here { Vec::new() } else { vec![package.into()] }
}

fn install(packages: &[String]) -> String {
    format!("sudo apt-get install --no-install-recommends {}", packages.join(" "))
}
