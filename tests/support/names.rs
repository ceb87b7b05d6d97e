//! Knows: what names of rooms are made of that somewhere means something. Never: which names are allowed.

/// Marks of subjects, of JSON, of the escape and of paths, control characters, a letter and a digit, and characters of
/// two, three and four bytes.
const MARKS: [&str; 30] = [
    "a", "0", "_", "-", ".", "..", "*", ">", " ", "\t", "\0", "\r", "\n", "\u{7f}", "$", "/", "\\",
    "\"", "'", ":", "::", ",", "=", "=2E", "=h", "&", "é", "漢", "😀", "\u{202e}",
];

/// The marks that mean something everywhere, and a test's own.
pub(crate) fn pieces(own: &[&'static str]) -> Vec<&'static str> {
    MARKS.iter().chain(own).copied().collect()
}
