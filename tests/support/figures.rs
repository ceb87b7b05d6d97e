//! Knows: where a figure goes that a test measured, so that a passed run shows more than "ok".
//! Never: what is right; a test asserts that itself.

use std::io::Write as _;

/// Shows a figure, and appends it to the file that `WEIR_TEST_FIGURES` names, as `test: figure`.
/// The test is the one whose thread calls.
///
/// # Panics
///
/// When that file cannot be written.
#[allow(clippy::print_stderr, reason = "shown beside a failure")]
pub(crate) fn keep(figure: std::fmt::Arguments<'_>) {
    let thread = std::thread::current();
    let line = format!("{}: {figure}\n", thread.name().unwrap_or("a test"));
    eprint!("{line}");
    let Some(path) = std::env::var_os("WEIR_TEST_FIGURES") else {
        return;
    };
    // One write of one short line: tests of several processes append to the same file.
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// Formats as `format!` does and [keeps](keep) it.
macro_rules! figure {
    ($($text:tt)*) => { $crate::figures::keep(format_args!($($text)*)) };
}
pub(crate) use figure;
