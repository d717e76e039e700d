//! Makes text from outside safe to show and to record.
//!
//! A host, a peer or a file chooses such text: the common name of a certificate, the name of a secret
//! in a request, the detail of an error response. Shown as it is, it can clear the screen, begin a line
//! of its own or reverse the direction of writing, and so speak in Casemate's name.
//!
//! * [`Foreign`] shows a text within a message, between quotation marks.
//! * [`one_line`] and [`lines`] take a whole message of which some part may be foreign.
//!
//! None of them changes text that consists of printable characters, quotation marks and backslashes
//! aside.

#![forbid(unsafe_code)]
#![no_std]

extern crate alloc;

use alloc::borrow::Cow;
use alloc::string::String;
use core::fmt::{self, Write as _};

/// Number of characters that [`Foreign`] shows before it cuts the text.
pub const MAX_SHOWN: usize = 200;

/// Text from outside, displayed on one line: characters that do not print are escaped as Rust writes
/// them (`\u{1b}`), and so are `"` and `\`, so that the text cannot end its quotation marks. A text of
/// more than [`MAX_SHOWN`] characters ends with `…`.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a>(pub &'a str);

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        for character in characters.by_ref().take(MAX_SHOWN) {
            match character {
                '"' | '\\' => write!(formatter, "\\{character}")?,
                _ => write_printable(formatter, character)?,
            }
        }
        if characters.next().is_some() { formatter.write_char('…') } else { Ok(()) }
    }
}

/// Escapes every character of `text` that does not print, line ends as well.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// Escapes every character of `text` that does not print, except for line feeds.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| character == '\n')
}

/// The first `limit` characters of `text`.
#[must_use]
pub fn cut(text: &str, limit: usize) -> &str {
    text.char_indices().nth(limit).map_or(text, |(end, _)| &text[..end])
}

fn escape(text: &str, allowed: impl Fn(char) -> bool) -> Cow<'_, str> {
    let prints = |character| allowed(character) || is_printable(character);
    if text.chars().all(prints) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if allowed(character) {
            escaped.push(character);
        } else {
            // Writing to a string cannot fail.
            let _ = write_printable(&mut escaped, character);
        }
    }
    Cow::Owned(escaped)
}

/// Whether a character prints: it is no control or format character (those that turn the direction of
/// writing are), no line or paragraph separator, no blank but the space, not private or unassigned,
/// and does not combine with the character before it.
fn is_printable(character: char) -> bool {
    matches!(character, '\'' | '"' | '\\') || character.escape_debug().len() == 1
}

fn write_printable(to: &mut impl fmt::Write, character: char) -> fmt::Result {
    if is_printable(character) {
        to.write_char(character)
    } else {
        write!(to, "{}", character.escape_unicode())
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString as _;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Characters that move the cursor, end a line, turn the direction of writing, or do not show
    /// (Unicode, general categories Cc, Cf, Zl and Zp), by a list that owes nothing to the code.
    fn acts(character: char) -> bool {
        matches!(character,
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    }

    /// Text of which every other character acts.
    fn hostile() -> impl Strategy<Value = String> {
        const ACTING: &str = "\x1b\r\n\t\u{7f}\u{85}\u{9b}\u{202e}\u{2066}\u{2028}\u{200f}\"\\'";
        let listed = proptest::sample::select(ACTING.chars().collect::<Vec<_>>());
        proptest::collection::vec(prop_oneof![any::<char>(), listed], 0..400)
            .prop_map(|characters| characters.into_iter().collect())
    }

    #[test]
    fn screen_is_not_cleared_by_a_name() {
        let name = "x\x1b[2J\x1b[Haccept: every check was done and passed\n";
        let shown = "x\\u{1b}[2J\\u{1b}[Haccept: every check was done and passed\\u{a}";
        assert_eq!(Foreign(name).to_string(), shown);
        assert_eq!(one_line(name), shown);
        assert_eq!(lines(name), shown.replace("\\u{a}", "\n"));
        assert_eq!(Foreign("a\" b\\").to_string(), "a\\\" b\\\\");
        assert_eq!(Foreign("\u{202e}drowssap").to_string(), "\\u{202e}drowssap");
    }

    #[test]
    fn names_of_people_stay_as_they_are() {
        for name in ["", "SEV-VCEK", "it's", "Jürgen Ångström", "株式会社", "Ελλάδα", "\u{1f512}"]
        {
            assert_eq!(Foreign(name).to_string(), name);
            assert!(matches!(one_line(name), Cow::Borrowed(_)), "{name}");
        }
    }

    #[test]
    fn long_text_is_cut() {
        let long = "é".repeat(MAX_SHOWN + 1);
        assert_eq!(Foreign(&long).to_string(), format!("{}…", "é".repeat(MAX_SHOWN)));
        assert_eq!(cut(&long, 3), "ééé");
        assert_eq!(cut("ab", 3), "ab");
    }

    #[test]
    fn every_character_that_acts_is_escaped() {
        let acting = ('\0'..=char::MAX).filter(|character| acts(*character));
        let mut count = 0;
        for character in acting {
            assert!(!is_printable(character), "{:x}", u32::from(character));
            count += 1;
        }
        assert!(count > 200, "{count}");
    }

    proptest! {
        #[test]
        fn shown_text_is_printable_and_one_line(text in hostile()) {
            for shown in [Foreign(&text).to_string(), one_line(&text).into_owned()] {
                prop_assert!(shown.chars().all(|character| !acts(character) && is_printable(character)), "{}", shown);
            }
            let shown = lines(&text).into_owned();
            prop_assert!(shown.chars().all(|character| character == '\n' || !acts(character)));
        }

        #[test]
        fn quotation_marks_cannot_be_left(text in hostile()) {
            let shown = Foreign(&text).to_string();
            let mut escaped = false;
            for character in shown.chars() {
                prop_assert!(escaped || character != '"', "{}", shown);
                escaped = character == '\\' && !escaped;
            }
            prop_assert!(!escaped, "{}", shown);
        }

        #[test]
        fn escaped_text_stays_as_it_is(text in hostile()) {
            let shown = one_line(&text).into_owned();
            prop_assert_eq!(one_line(&shown), shown.as_str());
        }
    }
}

/// Runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
