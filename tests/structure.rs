//! The rules of ARCHITECTURE.md that a compiler does not check: which package may know which, and
//! which files stay pure.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

fn read(path: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The packages of this workspace that a package depends on.
fn knows(package: &str) -> Vec<String> {
    let text = read(&format!("{package}/Cargo.toml"));
    let dependencies = text.split("[dev-dependencies]").next().unwrap();
    let mut names: Vec<String> = dependencies
        .lines()
        .filter_map(|line| line.strip_prefix("weir-")?.split(['.', ' ']).next())
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

#[test]
fn dependencies_point_one_way() {
    assert!(knows("nats").is_empty());
    assert_eq!(knows("authz"), ["nats"]);
    assert_eq!(knows("history"), ["nats"]);
    assert_eq!(knows("edge"), ["authz", "history", "nats"]);
}

#[test]
fn pure_files_name_no_runtime_and_no_clock() {
    let pure = [
        "nats/src/subject.rs",
        "nats/src/partition.rs",
        "nats/src/position.rs",
        "nats/src/message.rs",
        "authz/src/capability.rs",
        "authz/src/grants.rs",
        "authz/src/hook.rs",
        "authz/src/render.rs",
        "authz/src/rules.rs",
        "authz/src/token/claims.rs",
        "authz/src/token/jwks.rs",
        "authz/src/token/keys.rs",
        "authz/src/token/mint.rs",
        "authz/src/token/parts.rs",
        "authz/src/token/verifier.rs",
        "history/src/held.rs",
        "edge/src/room.rs",
        "edge/src/websocket.rs",
        "edge/src/protocol/mod.rs",
        "edge/src/protocol/json.rs",
        "edge/src/protocol/json/decode.rs",
        "edge/src/protocol/json/encode.rs",
        "edge/src/protocol/code.rs",
    ];
    for file in pure {
        let text = read(file);
        let code = text.split("#[cfg(test)]").next().unwrap();
        for word in ["tokio", "async fn", "SystemTime", "Instant", "std::env"] {
            assert!(!code.contains(word), "{file} is pure and names {word}");
        }
    }
}

#[test]
fn one_place_names_each_library_that_could_be_replaced() {
    let only = [
        ("jsonwebtoken", "authz/src/token", "keys.rs"),
        ("rusqlite", "history/src", "sqlite"),
    ];
    for (library, folder, place) in only {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap()
        {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text
                    .lines()
                    .any(|line| line.contains(&format!("use {library}")));
                assert!(
                    !names || path.ends_with(place),
                    "{} names {library}",
                    path.display()
                );
            }
        }
    }
}

/// The tests that docs/security.md names, as file and function.
#[test]
fn the_threat_table_names_tests_that_exist() {
    let table = read("docs/security.md");
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    let threats = rows.iter().filter(|row| {
        row.split('|')
            .nth(1)
            .is_some_and(|n| n.trim().parse::<u32>().is_ok())
    });
    let mut named = 0;
    for row in threats.clone() {
        let tests = row.rsplit('|').nth(1).unwrap();
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(
            !names.is_empty() && names.len().is_multiple_of(2),
            "no test: {row}"
        );
        for pair in names.chunks(2) {
            let (file, name) = (pair[0], pair[1]);
            let text = read(file);
            let is_there = text.contains(&format!("fn {name}("))
                || text.contains(&format!("test(\"{name}\""))
                // What `for_each_archive!` makes of it.
                || text.contains(&format!("    {name},\n"));
            assert!(is_there, "{file} has no test `{name}`: {row}");
            named += 1;
        }
    }
    assert!(threats.count() >= 30 && named >= 30);
}
