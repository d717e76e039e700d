//! The configuration reference, made from the table of keys.

use std::fmt::Write as _;
use std::path::Path;

use crate::keys::{Table, joined};

/// Appends the section of one table; `header` is how the table opens in a file.
pub(crate) fn section<T: Table>(page: &mut String, title: &str, header: Option<&str>) {
    // Writing to a String cannot fail.
    let _ = write!(page, "\n## {title}\n\n{}\n\n", joined(T::DOCS));
    if let Some(header) = header {
        let _ = write!(page, "Opens with `{header}`.\n\n");
    }
    page.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in T::keys() {
        let default = match key.default.as_deref() {
            None | Some("\"\"") => String::from("–"),
            Some(text) => format!("`{text}`"),
        };
        let _ = writeln!(page, "| `{}` | {} | {default} | {} |", key.name, key.shape, key.meaning);
    }
}

/// A path as errors show it.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
