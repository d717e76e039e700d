//! Where Debian's packages come from: a variable, this machine's apt sources, or the mirror that
//! python-apt-common names.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::template;
use crate::process::{self, ProcessError};

/// Of the package python-apt-common, which Debian and Ubuntu have: what a Debian's sources look like.
pub(crate) const TEMPLATE: &str = "/usr/share/python-apt/templates/Debian.info";

/// The base URIs, the directories that have `dists`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirrors {
    pub(crate) main: String,
    pub(crate) security: Option<String>,
}

impl fmt::Display for Mirrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.main)?;
        self.security.as_ref().map_or(Ok(()), |security| write!(f, " and {security}"))
    }
}

/// What may be a Debian mirror, best first. Only a signature by Debian's keys tells: suites of others'
/// archives are called `stable`, or `bookworm` where they are for Debian, as well.
pub(crate) fn candidates() -> Result<Vec<Mirrors>, ProcessError> {
    if let Ok(main) = std::env::var("CASEMATE_DEBIAN_MIRROR") {
        return Ok(vec![Mirrors { main, security: None }]);
    }
    // What an update would fetch, from whatever form the machine's sources have.
    let mut command = Command::new("apt-get");
    command.args(["--print-uris", "update", "-o", "Debug::NoLocking=1"]);
    let mut list = of_sources(&process::output(&mut command)?);
    let template = fs::read_to_string(Path::new(TEMPLATE)).unwrap_or_default();
    if let Some(mirrors) = template::mirrors(&template) {
        // Networks with a mirror of Debian's under its own name lack that of the security updates.
        let main = Mirrors { main: mirrors.main.clone(), security: None };
        list.extend([mirrors, main]);
    }
    list.dedup();
    Ok(list)
}

/// Out of what `apt-get --print-uris update` says: `'URI' file size hash`.
fn of_sources(text: &str) -> Vec<Mirrors> {
    // In the machine's order, each with its suites.
    let mut archives: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut security = None;
    for line in text.lines() {
        let quoted = line.strip_prefix('\'').and_then(|line| line.split_once('\''));
        let uri = quoted.and_then(|(uri, _)| uri.strip_suffix("/InRelease"));
        let Some((base, suite)) = uri.and_then(|uri| uri.split_once("/dists/")) else { continue };
        let release = suite.split('-').next().unwrap_or_default();
        if !CODE_NAMES.contains(&release) && !ALIASES.contains(&release) {
            continue;
        }
        if suite.ends_with("-security") {
            security.get_or_insert(base);
        } else if let Some((_, suites)) = archives.iter_mut().find(|(have, _)| *have == base) {
            suites.push(suite);
        } else {
            archives.push((base, vec![suite]));
        }
    }
    // Many a program's own archive has nothing but a suite `stable`.
    archives.retain(|(_, suites)| !matches!(suites[..], [only] if ALIASES.contains(&only)));
    archives.sort_by_key(|(_, suites)| std::cmp::Reverse(suites.len()));
    let mirrors = |main: &str| Mirrors { main: main.into(), security: security.map(str::to_owned) };
    archives.into_iter().map(|(main, _)| mirrors(main)).collect()
}

/// Debian's releases; Ubuntu uses none of these names.
const CODE_NAMES: &[&str] = &["bullseye", "bookworm", "trixie", "forky", "duke", "sid"];
/// What they are called in turn.
const ALIASES: &[&str] = &["oldoldstable", "oldstable", "stable", "testing", "unstable"];

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
        let [mirrors] = &of_sources(text)[..] else { panic!("one") };
        assert_eq!(mirrors.main, "http://mirror.example/debian");
        assert_eq!(mirrors.security.as_deref(), Some("http://security.example/debian-security"));
        let ubuntu = "'http://mirror.example/ubuntu/dists/noble/InRelease' x 0 \n\
'http://mirror.example/ubuntu/dists/noble-security/InRelease' x 0 \n";
        assert_eq!(of_sources(ubuntu), []);
    }

    /// Archives of programs have such suites, and files that sort before Debian's.
    #[test]
    fn an_archive_with_more_of_debians_suites_comes_before_others() {
        let text = "\
'https://browser.example/deb/dists/stable/InRelease' x 0 \n\
'https://containers.example/debian/dists/trixie/InRelease' x 0 \n\
'http://mirror.example/debian/dists/trixie/InRelease' x 0 \n\
'http://mirror.example/debian/dists/trixie-updates/InRelease' x 0 \n";
        let order: Vec<_> = of_sources(text).into_iter().map(|mirrors| mirrors.main).collect();
        assert_eq!(order, ["http://mirror.example/debian", "https://containers.example/debian"]);
        let stable = "\
'http://mirror.example/debian/dists/stable/InRelease' x 0 \n\
'http://mirror.example/debian/dists/stable-updates/InRelease' x 0 \n";
        assert_eq!(of_sources(stable).len(), 1);
    }
}
