//! Which package: its name, and its version or its suite.

use std::fmt;
use std::str::FromStr;

use super::PackageError;

/// A package by `name=version` or `name/suite`. One `*` in the name stands for any characters and
/// means the newest package that fits: `linux-image-6.12.*-cloud-amd64/trixie`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub(super) name: String,
    pub(super) at: At,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum At {
    Version(String),
    Suite(String),
}

impl Spec {
    /// A package of exactly one version, wherever it is found.
    ///
    /// # Errors
    ///
    /// Characters that no package name or version has.
    pub fn version(name: &str, version: &str) -> Result<Self, PackageError> {
        format!("{name}={version}").parse()
    }

    /// A name for the cache; characters that file names lack are replaced.
    pub(super) fn file_name(&self) -> String {
        self.to_string().replace('/', "@").replace('*', "ANY")
    }

    /// Whether a package's name fits: the same, or with one `*` standing for anything.
    pub(super) fn fits(&self, name: &str) -> bool {
        match self.name.split_once('*') {
            None => name == self.name,
            Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| rest.ends_with(tail)),
        }
    }
}

impl FromStr for Spec {
    type Err = PackageError;

    fn from_str(text: &str) -> Result<Self, PackageError> {
        let refuse = || PackageError::Spec { text: text.into() };
        // Debian Policy 5.6.7 and 5.6.12; nothing here can be taken for an option or a path.
        let name_fits = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-.*".contains(c))
                && name.matches('*').count() <= 1
        };
        let at_fits = |at: &str| {
            at.starts_with(|c: char| c.is_ascii_alphanumeric())
                && at.chars().all(|c| c.is_ascii_alphanumeric() || "+-.:~".contains(c))
        };
        let at = text.find(['=', '/']).ok_or_else(refuse)?;
        let (name, rest) = text.split_at(at);
        let (separator, rest) = rest.split_at(1);
        if !name_fits(name) || !at_fits(rest) {
            return Err(refuse());
        }
        let rest = rest.to_owned();
        let at = if separator == "=" { At::Version(rest) } else { At::Suite(rest) };
        Ok(Self { name: name.into(), at })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Version(version) => write!(f, "{}={version}", self.name),
            At::Suite(suite) => write!(f, "{}/{suite}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_and_written_alike() {
        for text in [
            "ovmf=2025.02-8+deb13u1",
            "qemu=1:10.0.13+ds-0+deb13u1",
            "linux-image-6.12.*-amd64/sid",
        ] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        for text in
            ["", "ovmf", "=1", "ovmf=", "-o=1", "a*b*c/sid", "ovmf/../x", "ovmf=1 2", "a/-t"]
        {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_star_stands_for_anything_between() {
        let spec: Spec = "linux-image-6.12.*-cloud-amd64/trixie".parse().unwrap();
        assert!(spec.fits("linux-image-6.12.107+deb13-cloud-amd64"));
        assert!(!spec.fits("linux-image-6.12.107+deb13-amd64"));
        assert!(!spec.fits("linux-image-6.12.107+deb13-cloud-amd64-unsigned"));
        // The two ends must not overlap.
        let spec: Spec = "aba*aba/sid".parse().unwrap();
        assert!(!spec.fits("aba") && spec.fits("abaaba"));
    }
}
