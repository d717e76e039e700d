//! Which package: its name, and its version or its suite.

use std::fmt;
use std::str::FromStr;

use super::PackageError;

/// A package by `name=version` or `name/suite`. A `*` stands for any characters but a dash, and the newest
/// package that fits is meant: `linux-image-6.12.*-cloud-amd64/trixie`, `qemu=1:10.0.*`.
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

    /// Whether this names one version, now and later.
    pub(super) fn is_exact(&self) -> bool {
        !self.name.contains('*')
            && matches!(&self.at, At::Version(version) if !version.contains('*'))
    }

    /// Whether a package's name fits.
    pub(super) fn fits(&self, name: &str) -> bool {
        fits(&self.name, name, '-')
    }
}

impl At {
    /// Whether a version of that suite fits.
    pub(super) fn fits(&self, version: &str, suite: &str) -> bool {
        match self {
            Self::Version(wanted) => fits(wanted, version, '\0'),
            Self::Suite(wanted) => wanted == suite,
        }
    }
}

/// Whether `text` is `pattern`, in which each `*` stands for any characters but `except`.
fn fits(pattern: &str, text: &str, except: char) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    let reach = text.find(except).unwrap_or(text.len());
    let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    ends.any(|end| end <= reach && text.get(end..).is_some_and(|tail| fits(rest, tail, except)))
}

impl FromStr for Spec {
    type Err = PackageError;

    fn from_str(text: &str) -> Result<Self, PackageError> {
        let refuse = || PackageError::Spec { text: text.into() };
        // Debian Policy 5.6.7 and 5.6.12; nothing here can be taken for an option or a path.
        let name_fits = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-.*".contains(c))
                && name.matches('*').count() <= 3
        };
        let at_fits = |at: &str| {
            at.starts_with(|c: char| c.is_ascii_alphanumeric())
                && at.chars().all(|c| c.is_ascii_alphanumeric() || "+-.:~*".contains(c))
                && at.matches('*').count() <= 2
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
            "qemu=1:10.0.*",
        ] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        for text in
            ["", "ovmf", "=1", "ovmf=", "-o=1", "a*b*c*d*/sid", "ovmf/../x", "ovmf=1 2", "a/-t"]
        {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_star_stands_for_anything_but_a_dash() {
        let spec: Spec = "linux-image-6.12.*-cloud-amd64/trixie".parse().unwrap();
        assert!(spec.fits("linux-image-6.12.107+deb13-cloud-amd64"));
        assert!(!spec.fits("linux-image-6.12.107+deb13-amd64"));
        assert!(!spec.fits("linux-image-6.12.107+deb13-cloud-amd64-unsigned"));
        let spec: Spec = "linux-binary-*+deb*-amd64/sid".parse().unwrap();
        assert!(
            spec.fits("linux-binary-7.3.1+deb14-amd64")
                && spec.fits("linux-binary-8.0+deb15-amd64")
        );
        for other in ["unsigned-7.3.1+deb14", "7.3.1+deb14-cloud", "7.3.1"] {
            assert!(!spec.fits(&format!("linux-binary-{other}-amd64")), "{other}");
        }
        // The two ends must not overlap.
        let spec: Spec = "aba*aba/sid".parse().unwrap();
        assert!(!spec.fits("aba") && spec.fits("abaaba"));
    }

    #[test]
    fn versions_fit_by_pattern_and_are_exact_without_one() {
        let spec: Spec = "qemu=1:10.0.*".parse().unwrap();
        assert!(spec.at.fits("1:10.0.13+ds-0+deb13u1", "trixie"));
        assert!(!spec.at.fits("1:11.1.3+ds-1", "sid") && !spec.is_exact());
        let spec: Spec = "qemu=1:10.0.2".parse().unwrap();
        assert!(spec.is_exact() && !spec.at.fits("1:10.0.2+ds", "trixie"));
        let spec: Spec = "qemu/trixie".parse().unwrap();
        assert!(spec.at.fits("1", "trixie") && !spec.at.fits("1", "sid") && !spec.is_exact());
    }
}
