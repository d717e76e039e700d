//! The mirrors that python-apt-common's template of Debian names.
//!
//! The format is that of aptsources (python-apt, `aptsources/distinfo.py`): paragraphs of `Key: value`,
//! in each a `Suite`, which may have `{series}` for a release's name, and for some a `BaseURI`.

use super::mirrors::Mirrors;

/// The mirrors in a template. `None` if it has none for a suite that we know.
pub(super) fn mirrors(text: &str) -> Option<Mirrors> {
    Some(Mirrors { main: base(text, "")?, security: base(text, "-security") })
}

/// The mirror of the first suite that is one of ours with this ending.
fn base(text: &str, ending: &str) -> Option<String> {
    const RELEASES: &[&str] = &["{series}", "trixie", "bookworm", "sid", "unstable"];
    paragraphs(text)
        .filter(|paragraph| {
            let suite = value(paragraph, "Suite").and_then(|suite| suite.strip_suffix(ending));
            suite.is_some_and(|release| RELEASES.contains(&release))
        })
        .find_map(|paragraph| uri(value(&paragraph, "BaseURI")?))
}

fn paragraphs(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    let paragraphs: Vec<_> = lines.split(|line| line.is_empty()).map(<[_]>::to_vec).collect();
    paragraphs.into_iter()
}

fn value<'a>(paragraph: &[&'a str], key: &str) -> Option<&'a str> {
    let value = |line: &&'a str| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim());
    paragraph.iter().find_map(value)
}

/// A URI that can be a word of apt's sources, without the slash at its end.
fn uri(text: &str) -> Option<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._~:/%+".contains(c);
    let fits = rest.starts_with(|c: char| c.is_ascii_alphanumeric()) && rest.chars().all(fits);
    fits.then(|| text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// In the format, but our own.
    const SAMPLE: &str = "\
# A comment.
ChangelogURI: https://changes.example/%s
X-Exclude-Suites: first, second

Suite: {series}
RepositoryType: deb
BaseURI: https://mirror.example/debian/
MatchURI: ((http|ftp)[0-9]*\\.|deb\\.)mirror\\.example
MirrorsFile: Debian.mirrors
Description: Debian {version} '{codename}'
Component: main
CompDescription: All of it

Suite: {series}-security
RepositoryType: deb
BaseURI: https://security.example/
MatchURI: security\\.example
ParentSuite: {series}

Suite: {series}-updates
ParentSuite: {series}

Suite: sid
BaseURI: https://other.example/debian/
";

    fn found(main: &str, security: Option<&str>) -> Option<Mirrors> {
        Some(Mirrors { main: main.into(), security: security.map(str::to_owned) })
    }

    #[test]
    fn the_mirrors_of_a_release_are_found() {
        let both = found("https://mirror.example/debian", Some("https://security.example"));
        assert_eq!(mirrors(SAMPLE), both);
        assert_eq!(mirrors(&SAMPLE.replace('\n', "\r\n")), both);
    }

    /// As templates had before `{series}`: a paragraph for each release, old ones on other hosts.
    #[test]
    fn releases_by_name_are_found_and_old_ones_are_not() {
        let old = "Suite: lenny\nBaseURI: http://old.example/debian\n\n";
        let named = "Suite: bookworm/updates\nBaseURI: http://no.example\n\nSuite: bookworm\nBaseURI: http://mirror.example/debian/\n";
        assert_eq!(mirrors(old), None);
        assert_eq!(mirrors(&format!("{old}{named}")), found("http://mirror.example/debian", None));
        // Keys of other paragraphs, and keys that begin alike, are not taken.
        let other =
            "Suite: sid\n\nBaseURI: http://a.example\n\nSuite: sid\nBaseURIs: http://b.example\n";
        assert_eq!(mirrors(other), None);
    }

    /// What is found becomes a line of apt's sources, where a blank begins the next word.
    #[test]
    fn what_is_no_plain_uri_is_not_taken() {
        for uri in [
            "",
            "mirror.example",
            "file:///etc",
            "https://",
            "https:// x",
            "http://a.example [trusted=yes]",
            "http://a.example/\tb",
            "https:///a",
            "http://a.example/#b",
        ] {
            assert_eq!(mirrors(&format!("Suite: sid\nBaseURI: {uri}\n")), None, "{uri}");
        }
    }

    proptest! {
        /// Whatever the file is, what comes out is a word.
        #[test]
        fn any_text_is_read(lines in prop::collection::vec(
            prop_oneof![
                Just(String::new()),
                Just("Suite: {series}".into()),
                Just("Suite: sid-security".into()),
                "BaseURI: https?://[ -~]{0,12}",
                "\\PC{0,40}",
            ],
            0..12,
        )) {
            if let Some(mirrors) = mirrors(&lines.join("\n")) {
                for uri in [Some(mirrors.main), mirrors.security].into_iter().flatten() {
                    prop_assert!(uri.starts_with("http") && !uri.ends_with('/'));
                    prop_assert!(!uri.contains(|c: char| c.is_whitespace() || c.is_control()));
                }
            }
        }
    }
}
