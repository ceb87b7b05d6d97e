//! Knows: a TOML text, environment variables and `--set` flags as one flat set of keys, each with the place it came from.
//! Never: what a key means; that is `load.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use toml::de::{DeTable, DeValue};

mod section;
mod words;

pub(crate) use section::Section;
pub use words::parse_duration;
use words::{is_later, join, line_of, nearest, without_indexes, without_names};

/// One thing that is wrong with a configuration, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `weir.toml:12`, an environment variable's name, `--set`, or the file's name where no line is known.
    pub at: String,
    /// The key, dotted, or empty where the text itself is broken.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// Where a configuration is read from. Later ones win: file, environment, `--set`.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file's name, as shown in errors, and its text.
    pub file: Option<(String, String)>,
    /// The environment; only names that begin with `WEIR_` are looked at.
    pub env: BTreeMap<String, String>,
    /// `--set KEY=VALUE`, in order.
    pub sets: Vec<(String, String)>,
}

/// Variables that begin with `WEIR_` and are no keys.
const RESERVED_VARIABLES: [&str; 5] = [
    "WEIR_LOG",
    "WEIR_CONFIG",
    "WEIR_DATA",
    "WEIR_NATS_SERVER",
    "WEIR_SKIP_IT",
];
/// Variables that begin so belong to tests or to the nats-server that Weir starts.
const RESERVED_PREFIXES: [&str; 2] = ["WEIR_TEST_", "WEIR_CONF_"];

#[derive(Debug, Clone)]
enum Raw {
    /// From the environment or a flag: its type is whatever the key needs.
    Text(String),
    Bool(bool),
    Integer(i64),
    String(String),
    Strings(Vec<String>),
    /// A TOML value that no key of ours has: its type, for the message.
    Other(&'static str),
}

#[derive(Debug, Clone)]
struct Found {
    raw: Raw,
    at: String,
}

/// All sources, flattened, and the problems met so far.
#[derive(Debug)]
pub(crate) struct Reader {
    file_name: String,
    /// Keys of the file; a table in a list has its index: `logs[0].name`.
    file: BTreeMap<String, Found>,
    /// Path of a list of tables → number of tables.
    lists: BTreeMap<String, usize>,
    env: BTreeMap<String, String>,
    sets: BTreeMap<String, String>,
    /// Every key asked for, dotted; the keys that exist.
    asked: BTreeSet<String>,
    /// The paths of `file` that were asked for.
    used: BTreeSet<String>,
    used_env: BTreeSet<String>,
    /// Dotted key → where its value came from, for keys that were given.
    origins: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Reader {
    pub(crate) fn new(sources: Sources) -> Self {
        let (file_name, text) = sources
            .file
            .unwrap_or_else(|| ("defaults".into(), String::new()));
        let mut reader = Self {
            file_name,
            file: BTreeMap::new(),
            lists: BTreeMap::new(),
            env: sources
                .env
                .into_iter()
                .filter(|(name, _)| name.starts_with("WEIR_"))
                .collect(),
            sets: sources.sets.into_iter().collect(),
            asked: BTreeSet::new(),
            used: BTreeSet::new(),
            used_env: BTreeSet::new(),
            origins: BTreeMap::new(),
            problems: Vec::new(),
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in errors {
            let at = match error.span() {
                Some(span) => format!("{}:{}", reader.file_name, line_of(&text, span.start)),
                None => reader.file_name.clone(),
            };
            reader.problems.push(Problem {
                at,
                key: String::new(),
                what: format!("not valid TOML: {}", error.message()),
                remedy: "see https://toml.io for the syntax".into(),
            });
        }
        reader.flatten(&text, "", table.get_ref());
        reader
    }

    fn flatten(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            let at = format!("{}:{}", self.file_name, line_of(text, key.span().start));
            let raw = match value.get_ref() {
                DeValue::Table(inner) => {
                    self.flatten(text, &path, inner);
                    continue;
                }
                DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {
                    self.lists.insert(path.clone(), items.len());
                    for (index, item) in items.iter().enumerate() {
                        if let DeValue::Table(inner) = item.get_ref() {
                            self.flatten(text, &format!("{path}[{index}]"), inner);
                        }
                    }
                    continue;
                }
                DeValue::Array(items) => {
                    let strings: Option<Vec<String>> = items
                        .iter()
                        .map(|item| item.get_ref().as_str().map(str::to_owned))
                        .collect();
                    strings.map_or(Raw::Other("a list of something else"), Raw::Strings)
                }
                DeValue::Boolean(value) => Raw::Bool(*value),
                DeValue::String(value) => Raw::String(value.to_string()),
                DeValue::Integer(value) => i64::from_str_radix(value.as_str(), value.radix())
                    .map_or(Raw::Other("a number out of range"), Raw::Integer),
                DeValue::Float(_) => Raw::Other("a fraction"),
                DeValue::Datetime(_) => Raw::Other("a date"),
            };
            self.file.insert(path, Found { raw, at });
        }
    }

    /// The root of all keys.
    pub(crate) fn root(&mut self) -> Section<'_> {
        Section {
            reader: self,
            path: String::new(),
            key: String::new(),
            env: "WEIR".into(),
        }
    }

    pub(crate) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Ends the reading: unknown keys become problems, unknown variables become warnings.
    pub(crate) fn finish(mut self) -> Finished {
        let mut unknown: Vec<(String, String, String)> = Vec::new();
        for (path, found) in &self.file {
            if !self.used.contains(path) {
                unknown.push((found.at.clone(), without_indexes(path), path.clone()));
            }
        }
        for key in self.sets.keys() {
            if !self.asked.contains(key) {
                unknown.push(("--set".into(), key.clone(), key.clone()));
            }
        }
        for (at, key, path) in unknown {
            let remedy = if is_later(&path) {
                "remove it: Centrifugo has this option, this version of Weir does not".to_owned()
            } else {
                match nearest(
                    &key,
                    self.asked
                        .iter()
                        .map(|known| without_names(known))
                        .collect(),
                ) {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => "remove it; deploy/weir.toml has every key".to_owned(),
                }
            };
            self.problems.push(Problem {
                at,
                key,
                what: "unknown key".into(),
                remedy,
            });
        }
        let mut warnings = Vec::new();
        for name in self.env.keys() {
            let reserved = RESERVED_VARIABLES.contains(&name.as_str())
                || RESERVED_PREFIXES
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
            if !reserved && !self.used_env.contains(name) {
                // Not an error: Kubernetes puts WEIR_SERVICE_HOST and the like beside a service named weir.
                warnings.push(format!(
                    "{name}: no key of Weir has this variable, so it has no effect"
                ));
            }
        }
        Finished {
            file_name: self.file_name,
            origins: self.origins,
            asked: self.asked,
            problems: self.problems,
            warnings,
        }
    }
}

/// What is left when all keys were asked for.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) file_name: String,
    pub(crate) origins: BTreeMap<String, String>,
    pub(crate) asked: BTreeSet<String>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<String>,
}
