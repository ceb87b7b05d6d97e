//! Knows: a TOML text, environment variables and `--set` flags as one flat set of keys, each with the place it came from.
//! Never: what a key means; that is `load.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

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

/// A table of the configuration.
pub(crate) struct Section<'r> {
    reader: &'r mut Reader,
    /// The path in the file, with list indexes.
    path: String,
    /// The dotted key, with names instead of indexes: what people read and `--set` takes.
    key: String,
    /// The prefix of its variables.
    env: String,
}

impl Section<'_> {
    /// A table in this table.
    pub(crate) fn section(&mut self, name: &str) -> Section<'_> {
        Section {
            path: join(&self.path, name),
            key: join(&self.key, name),
            env: format!("{}_{}", self.env, variable(name)),
            reader: self.reader,
        }
    }

    /// The tables of a list: those of the file in order, then those that only the environment names
    /// (`WEIR_LOGS="rooms audit"`). `build` gets each name and its table.
    pub(crate) fn list<T>(
        &mut self,
        name: &str,
        mut build: impl FnMut(String, &mut Section<'_>) -> T,
    ) -> Option<Vec<T>> {
        let path = join(&self.path, name);
        let key = join(&self.key, name);
        let env = format!("{}_{}", self.env, variable(name));
        let in_file = self.reader.lists.get(&path).copied();
        // An empty list in the file is a plain empty array.
        let emptied = self.reader.file.contains_key(&path);
        if emptied {
            self.reader.used.insert(path.clone());
        }
        let mut names: Vec<String> = Vec::new();
        for index in 0..in_file.unwrap_or(0) {
            let name_path = format!("{path}[{index}].name");
            self.reader.used.insert(name_path.clone());
            let entry = match self.reader.file.get(&name_path) {
                Some(Found {
                    raw: Raw::String(text),
                    ..
                }) => text.clone(),
                found => {
                    let at = found.map_or_else(|| self.reader.file_name.clone(), |f| f.at.clone());
                    self.reader.problem(Problem {
                        at,
                        key: format!("{key}[{index}].name"),
                        what: "every table of this list needs a name".into(),
                        remedy: "write name = \"…\"".into(),
                    });
                    format!("#{index}")
                }
            };
            if let Some(found) = self.reader.file.get(&name_path) {
                self.reader
                    .origins
                    .insert(format!("{key}.{entry}"), found.at.clone());
            }
            names.push(entry);
        }
        self.reader.asked.insert(format!("{key}.*.name"));
        let from_env = self.reader.env.get(&env).cloned();
        if let Some(text) = &from_env {
            self.reader.used_env.insert(env.clone());
            for entry in text.split_whitespace() {
                if !names.iter().any(|known| known == entry) {
                    self.reader
                        .origins
                        .insert(format!("{key}.{entry}"), env.clone());
                    names.push(entry.to_owned());
                }
            }
        }
        if in_file.is_none() && from_env.is_none() && !emptied {
            return None;
        }
        let built = names.into_iter().enumerate().map(|(index, entry)| {
            let mut section = Section {
                path: format!("{path}[{index}]"),
                key: format!("{key}.{entry}"),
                env: format!("{env}_{}", variable(&entry)),
                reader: self.reader,
            };
            build(entry, &mut section)
        });
        Some(built.collect())
    }

    fn take(&mut self, name: &str) -> Option<Found> {
        let path = join(&self.path, name);
        let key = join(&self.key, name);
        let env = format!("{}_{}", self.env, variable(name));
        self.reader.asked.insert(key.clone());
        self.reader.used.insert(path.clone());
        let from_file = self.reader.file.get(&path).cloned();
        let from_env = self.reader.env.get(&env).map(|text| {
            self.reader.used_env.insert(env.clone());
            Found {
                raw: Raw::Text(text.clone()),
                at: env,
            }
        });
        let from_flag = self.reader.sets.get(&key).map(|text| Found {
            raw: Raw::Text(text.clone()),
            at: "--set".into(),
        });
        let found = from_flag.or(from_env).or(from_file)?;
        self.reader.origins.insert(key, found.at.clone());
        Some(found)
    }

    fn bad(&mut self, name: &str, found: &Found, remedy: String) {
        let secret = name.contains("secret") || name.contains("password");
        let what = match &found.raw {
            // A secret of the wrong type is still one.
            _ if secret => "this is not a value for it".to_owned(),
            Raw::Text(text) | Raw::String(text) => format!("{text:?} is not a value for it"),
            Raw::Bool(value) => format!("{value} is not a value for it"),
            Raw::Integer(value) => format!("{value} is not a value for it"),
            Raw::Strings(_) => "a list is not a value for it".to_owned(),
            Raw::Other(kind) => format!("{kind} is not a value for it"),
        };
        let key = join(&self.key, name);
        self.reader.problem(Problem {
            at: found.at.clone(),
            key,
            what,
            remedy,
        });
    }

    /// A value that was read and does not do.
    pub(crate) fn refuse(&mut self, name: &str, what: impl Into<String>, remedy: &str) {
        let key = join(&self.key, name);
        let at = self.reader.origins.get(&key);
        let at = at.unwrap_or(&self.reader.file_name).clone();
        self.reader.problem(Problem {
            at,
            key,
            what: what.into(),
            remedy: remedy.to_owned(),
        });
    }

    pub(crate) fn bool(&mut self, name: &str, default: bool) -> bool {
        let Some(found) = self.take(name) else {
            return default;
        };
        match &found.raw {
            Raw::Bool(value) => return *value,
            Raw::Text(text) if matches!(text.as_str(), "true" | "1") => return true,
            Raw::Text(text) if matches!(text.as_str(), "false" | "0") => return false,
            _ => {}
        }
        self.bad(name, &found, "write true or false".into());
        default
    }

    /// An option that Centrifugo has and this version of Weir does not: only `false` is a value.
    pub(crate) fn not_yet(&mut self, name: &str) {
        let Some(found) = self.take(name) else { return };
        let off = match &found.raw {
            Raw::Bool(value) => !value,
            Raw::Text(text) => matches!(text.as_str(), "false" | "0"),
            _ => false,
        };
        if !off {
            let key = join(&self.key, name);
            self.reader.problem(Problem {
                at: found.at,
                key,
                what: "not in this version of Weir".into(),
                remedy: "write false or remove it".into(),
            });
        }
    }

    pub(crate) fn int<T>(&mut self, name: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display + Copy,
    {
        let Some(found) = self.take(name) else {
            return default;
        };
        let number = match &found.raw {
            Raw::Integer(value) => Some(*value),
            Raw::Text(text) => text.parse::<i64>().ok(),
            _ => None,
        };
        if let Some(value) = number.and_then(|n| T::try_from(n).ok())
            && range.contains(&value)
        {
            return value;
        }
        self.bad(
            name,
            &found,
            format!("write a number from {} to {}", range.start(), range.end()),
        );
        default
    }

    pub(crate) fn string(&mut self, name: &str, default: &str) -> String {
        let Some(found) = self.take(name) else {
            return default.to_owned();
        };
        match &found.raw {
            Raw::Text(text) | Raw::String(text) => return text.clone(),
            _ => self.bad(name, &found, "write a text in quotes".into()),
        }
        default.to_owned()
    }

    pub(crate) fn strings(&mut self, name: &str, default: &[String]) -> Vec<String> {
        let Some(found) = self.take(name) else {
            return default.to_vec();
        };
        match &found.raw {
            Raw::Strings(list) => return list.clone(),
            Raw::Text(text) => return text.split_whitespace().map(str::to_owned).collect(),
            _ => self.bad(name, &found, "write a list of texts: [\"…\", \"…\"]".into()),
        }
        default.to_vec()
    }

    pub(crate) fn duration(&mut self, name: &str, default: Duration) -> Duration {
        let Some(found) = self.take(name) else {
            return default;
        };
        let text = match &found.raw {
            Raw::Text(text) | Raw::String(text) => Some(text.as_str()),
            _ => None,
        };
        if let Some(value) = text.and_then(parse_duration) {
            return value;
        }
        self.bad(
            name,
            &found,
            "write a duration such as \"25s\", \"2m\", \"72h\" or \"0s\"".into(),
        );
        default
    }

    pub(crate) fn ip(&mut self, name: &str, default: IpAddr) -> IpAddr {
        let Some(found) = self.take(name) else {
            return default;
        };
        if let Raw::Text(text) | Raw::String(text) = &found.raw
            && let Ok(value) = text.parse()
        {
            return value;
        }
        self.bad(
            name,
            &found,
            "write an IP address such as \"127.0.0.1\" or \"0.0.0.0\"".into(),
        );
        default
    }

    pub(crate) fn choice<T: Copy>(&mut self, name: &str, default: T, all: &[(&str, T)]) -> T {
        let Some(found) = self.take(name) else {
            return default;
        };
        if let Raw::Text(text) | Raw::String(text) = &found.raw
            && let Some((_, value)) = all.iter().find(|(word, _)| word == text)
        {
            return *value;
        }
        let words: Vec<String> = all.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.bad(name, &found, format!("write one of {}", words.join(", ")));
        default
    }
}

/// Reads `25s`, `1h30m`, `250ms`, `7d`; a bare number has no unit and is refused, except 0.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let letters = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit_ms: u64 = match rest.get(..letters)? {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(unit_ms)?))?;
        rest = rest.get(letters..)?;
    }
    (!text.is_empty()).then_some(total)
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

fn variable(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

fn without_indexes(path: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

/// `channel.namespaces.chat.history_size` → `channel.namespaces.history_size`, the form of a file's key.
fn without_names(key: &str) -> String {
    let lists = [
        "channel.namespaces.",
        "logs.",
        "client.token.issuers.",
        "client.subscription_token.issuers.",
    ];
    for list in lists {
        if let Some((_, option)) = key.strip_prefix(list).and_then(|rest| rest.split_once('.')) {
            return format!("{list}{option}");
        }
    }
    key.to_owned()
}

/// Options of Centrifugo that a reader of its manual may bring along.
fn is_later(path: &str) -> bool {
    const LATER: [&str; 19] = [
        "force_recovery_mode",
        "auto_cache_recover",
        "allowed_delta_types",
        "delta_publish",
        "allow_tags_filter",
        "channel_regex",
        "history_meta_ttl",
        "subscription_type",
        "user_id_http_header",
        "insecure_skip_token_signature_verify",
        "presence_update_interval",
        "channel_position_check_delay",
        "channel_position_max_time_lag",
        "concurrency",
        "connect_include_server_time",
        "connect_code_to_unidirectional_disconnect",
        "audience_regex",
        "issuer_regex",
        "compression",
    ];
    const LATER_TABLES: [&str; 10] = [
        "admin.",
        "broker.",
        "engine.",
        "consumers",
        "grpc_api.",
        "http_api.",
        "sse.",
        "http_stream.",
        "webtransport.",
        "client.subscribe_to_user_personal_channel.",
    ];
    let option = path.rsplit('.').next().unwrap_or(path);
    LATER.contains(&option)
        || option.contains("_proxy_")
        || path.contains("proxy.")
        || LATER_TABLES.iter().any(|table| path.starts_with(table))
}

/// The known key that differs least, if it is near enough to be meant.
fn nearest(key: &str, known: BTreeSet<String>) -> Option<String> {
    known
        .into_iter()
        .filter(|candidate| !candidate.contains('*'))
        .map(|candidate| (distance(key, &candidate), candidate))
        .min()
        .filter(|(steps, _)| *steps <= 3)
        .map(|(_, candidate)| candidate)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let table = [
            ("25s", Some(25_000)),
            ("1h30m", Some(5_400_000)),
            ("250ms", Some(250)),
            ("7d", Some(604_800_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("25", None),
            ("s", None),
            ("-1s", None),
            ("1.5h", None),
            ("5 s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ];
        for (text, expected_ms) in table {
            let expected = expected_ms.map(Duration::from_millis);
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, steps) in [
            ("", "", 0),
            ("port", "prot", 2),
            ("ports", "port", 1),
            ("a", "", 1),
        ] {
            assert_eq!(distance(a, b), steps, "{a} {b}");
        }
    }
}
