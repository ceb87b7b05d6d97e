//! Knows: how a key is asked for in a table, by type: its value from the last source that has it, or its default.
//! Never: which keys there are.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::words::{join, parse_duration, variable};
use super::{Found, Problem, Raw, Reader};

/// A table of the configuration.
pub(crate) struct Section<'r> {
    pub(super) reader: &'r mut Reader,
    /// The path in the file, with list indexes.
    pub(super) path: String,
    /// The dotted key, with names instead of indexes: what people read and `--set` takes.
    pub(super) key: String,
    /// The prefix of its variables.
    pub(super) env: String,
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

    /// A value that was read, perhaps from the file that `…_file` names, and does not do.
    pub(crate) fn refuse(&mut self, name: &str, what: impl Into<String>, remedy: &str) {
        let mut key = join(&self.key, name);
        let in_file = format!("{key}_file");
        if !self.reader.origins.contains_key(&key) && self.reader.origins.contains_key(&in_file) {
            key = in_file;
        }
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

    /// A table of texts whose names are free; in a variable, a JSON object. What is wrong with it is said without a
    /// value, as headers are often secrets.
    pub(crate) fn texts(&mut self, name: &str) -> BTreeMap<String, String> {
        let prefix = format!("{}.", join(&self.path, name));
        let key = join(&self.key, name);
        let env = format!("{}_{}", self.env, variable(name));
        let mut texts = BTreeMap::new();
        let in_file = self.reader.file.iter();
        let in_file: Vec<(String, Found)> = in_file
            .filter_map(|(path, found)| {
                Some((path.strip_prefix(&prefix)?.to_owned(), found.clone()))
            })
            .collect();
        for (name, found) in in_file {
            self.reader.used.insert(format!("{prefix}{name}"));
            self.reader.origins.insert(key.clone(), found.at.clone());
            match found.raw {
                Raw::String(text) => {
                    texts.insert(name, text);
                }
                _ => self.no_text(&format!("{key}.{name}"), found.at),
            }
        }
        if let Some(text) = self.reader.env.get(&env).cloned() {
            self.reader.used_env.insert(env.clone());
            self.reader.origins.insert(key.clone(), env.clone());
            match serde_json::from_str::<BTreeMap<String, String>>(&text) {
                Ok(given) => texts.extend(given),
                Err(_) => self.no_text(&key, env),
            }
        }
        texts
    }

    fn no_text(&mut self, key: &str, at: String) {
        self.reader.problem(Problem {
            at,
            key: key.to_owned(),
            what: "this is not a value for it".into(),
            remedy: "write a table of texts: { \"name\" = \"value\" }, in a variable as JSON"
                .into(),
        });
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
