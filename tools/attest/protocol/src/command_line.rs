//! Parameters of a kernel command line.

/// Parameters of a Linux command line, in order: names, with the values of those that have one.
///
/// Blanks separate parameters; within double quotes they do not. Parameters after `--` belong to init
/// and are left out (Linux, `lib/cmdline.c`, `next_arg`, and `init/main.c`).
pub fn parameters(command_line: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut quoted = false;
    let words = command_line.split(move |letter: char| {
        quoted ^= letter == '"';
        !quoted && letter.is_ascii_whitespace()
    });
    words.filter(|word| !word.is_empty()).take_while(|word| *word != "--").map(|word| {
        // Quotes are around the value or around the whole parameter.
        let word =
            word.strip_prefix('"').map_or(word, |word| word.strip_suffix('"').unwrap_or(word));
        match word.split_once('=') {
            Some((name, value)) => {
                let inner = value.strip_prefix('"');
                let inner = inner.map(|value| value.strip_suffix('"').unwrap_or(value));
                (name, Some(inner.unwrap_or(value)))
            }
            None => (word, None),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_split_as_linux_splits_them() {
        let line = " quiet\tconsole=ttyS0,115200 a=\"b c=d\" \"e=f g\" h= =i j=k=l -- m=n\n";
        let expected = [
            ("quiet", None),
            ("console", Some("ttyS0,115200")),
            ("a", Some("b c=d")),
            ("e", Some("f g")),
            ("h", Some("")),
            ("", Some("i")),
            ("j", Some("k=l")),
        ];
        assert_eq!(parameters(line).collect::<Vec<_>>(), expected);
        assert_eq!(parameters("\"a=b c").collect::<Vec<_>>(), [("a", Some("b c"))]);
    }

    proptest! {
        #[test]
        fn any_text_is_parameters(line in "[ -~\t\n\u{e4}]{0,80}") {
            for (name, value) in parameters(&line) {
                prop_assert!(line.contains(name));
                prop_assert!(value.is_none_or(|value| line.contains(value)));
            }
        }
    }
}
