//! The configuration page of the book is the one that the types make.

#[test]
fn the_page_in_the_book_is_up_to_date() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/reference/configuration.md");
    let made = casemate_config::reference();
    if std::env::var_os("CASEMATE_UPDATE_DOCS").is_some() {
        std::fs::write(page, &made).unwrap();
    }
    let found = std::fs::read_to_string(page).unwrap_or_default();
    let remedy = "CASEMATE_UPDATE_DOCS=1 cargo test -p casemate-config --test reference";
    assert!(found == made, "docs/src/reference/configuration.md is out of date: run {remedy}");
}
