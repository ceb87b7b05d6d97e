//! Knows: how to replay the fuzzers' corpus on a stable compiler. Never: what has to hold, which is
//! in `fuzz/checks.rs`.

use std::path::Path;

#[path = "../../fuzz/checks.rs"]
mod checks;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is committed") {
        let path = entry.expect("a readable folder").path();
        let bytes = std::fs::read(&path).expect("a readable file");
        let outcome = std::panic::catch_unwind(|| check(&bytes));
        assert!(outcome.is_ok(), "{} does not hold", path.display());
        files += 1;
    }
    assert!(files >= 30, "only {files} files in {}", folder.display());
}

#[test]
fn json() {
    replay("json", checks::json);
}

#[test]
fn subject() {
    replay("subject", checks::subject);
}

#[test]
fn websocket() {
    replay("websocket", checks::websocket);
}
