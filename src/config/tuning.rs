//! Tuning profiles: kernel keys and engine keys in one file, in the syntax of sysctl.d(5).
//!
//! Owns: the syntax, the list of engine keys with their bounds, the profiles inside the binary,
//! and [`Tuning`], what the shards read. Never: /proc/sys (the `tune` verbs write there).
//!
//! ```text
//! # a comment; also with ;
//! net.core.somaxconn = 4096
//! -vm.dirty_bytes = 268435456      (a failure to set it is ignored)
//! ringpost.hot_body_octets = 64MiB
//! ```
//!
//! Diagnostics: `file:line:column: what, and what is allowed`. An unknown engine key names the
//! nearest known one; of kernel keys only the form is checked, since kernels differ.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use rust_embed::RustEmbed;

use super::problem::{Problem, Report, Source, nearest, quote};
use super::value::{Parsed, refuse, size_in};

/// Profile in force when the configuration names none.
pub const DEFAULT_PROFILE: &str = "balanced";

/// What engine keys begin with.
pub const ENGINE_PREFIX: &str = "ringpost.";

/// Where the keys of the kernel begin.
const KERNEL_PREFIXES: [&str; 4] = ["fs.", "kernel.", "net.", "vm."];

#[derive(RustEmbed)]
#[folder = "tuning/"]
struct Embedded;

/// What the shards read of a tuning profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Octets of message bodies that one shard keeps in memory after they are on disk.
    pub hot_body_octets: u64,
    /// Messages that one commit takes together at most.
    pub commit_batch_max: usize,
    /// Octets of waiting messages from which on a commit is written past the page cache; 0: never.
    pub direct_write_octets: u64,
    /// Queue segments that stand ready behind the one in use, for each shard.
    pub queue_segments_ahead: usize,
    /// Send and receive buffer of each socket, in octets; 0 leaves it to the kernel.
    pub socket_buffer_octets: u32,
    /// Connections that one listening socket holds until they are accepted.
    pub listen_backlog: u32,
    /// Longest time that a message is held back from the disk while its deliveries are under
    /// way, in milliseconds.
    pub hold_back_ms: u32,
    /// Octets of memory that messages on their way in may hold, for each shard.
    pub receive_memory_octets: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            hot_body_octets: 64 << 20,
            commit_batch_max: 1024,
            direct_write_octets: 64 << 10,
            queue_segments_ahead: 2,
            socket_buffer_octets: 0,
            listen_backlog: 4096,
            hold_back_ms: 20,
            receive_memory_octets: 128 << 20,
        }
    }
}

/// How the value of an engine key is written.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Form {
    /// A number of octets: `67108864` or `64MiB`.
    Octets,
    /// A plain number.
    Count,
}

/// One engine key.
#[derive(Clone, Debug)]
pub struct EngineKey {
    /// Its name, with [`ENGINE_PREFIX`].
    pub name: &'static str,
    /// What it changes, in one line.
    pub what: &'static str,
    form: Form,
    range: RangeInclusive<u64>,
    get: fn(&Tuning) -> u64,
    set: fn(&mut Tuning, u64),
}

/// Every engine key.
pub static ENGINE_KEYS: &[EngineKey] = &[
    EngineKey {
        name: "ringpost.hot_body_octets",
        what: "octets of message bodies that one shard keeps in memory after they are on disk",
        form: Form::Octets,
        range: 0..=1 << 40,
        get: |t| t.hot_body_octets,
        set: |t, value| t.hot_body_octets = value,
    },
    EngineKey {
        name: "ringpost.commit_batch_max",
        what: "messages that one commit takes together at most",
        form: Form::Count,
        range: 1..=65_536,
        get: |t| u64::try_from(t.commit_batch_max).expect("bounded by its range"),
        set: |t, value| t.commit_batch_max = usize::try_from(value).expect("bounded by its range"),
    },
    EngineKey {
        name: "ringpost.direct_write_octets",
        what: "octets that wait, from which on a commit goes past the page cache; 0: never, nor \
               does the log",
        form: Form::Octets,
        range: 0..=1 << 40,
        get: |t| t.direct_write_octets,
        set: |t, value| t.direct_write_octets = value,
    },
    EngineKey {
        name: "ringpost.queue_segments_ahead",
        what: "queue segments that stand ready behind the one in use, for each shard",
        form: Form::Count,
        range: 1..=16,
        get: |t| u64::try_from(t.queue_segments_ahead).expect("bounded by its range"),
        set: |t, value| t.queue_segments_ahead = usize::try_from(value).expect("bounded"),
    },
    EngineKey {
        name: "ringpost.socket_buffer_octets",
        what: "send and receive buffer of each socket; 0 leaves it to the kernel",
        form: Form::Octets,
        range: 0..=64 << 20,
        get: |t| u64::from(t.socket_buffer_octets),
        set: |t, value| t.socket_buffer_octets = u32::try_from(value).expect("bounded"),
    },
    EngineKey {
        name: "ringpost.listen_backlog",
        what: "connections that one listening socket holds until they are accepted",
        form: Form::Count,
        range: 1..=65_535,
        get: |t| u64::from(t.listen_backlog),
        set: |t, value| t.listen_backlog = u32::try_from(value).expect("bounded by its range"),
    },
    EngineKey {
        name: "ringpost.hold_back_ms",
        what: "longest time a message is held back from the disk while it is being delivered",
        form: Form::Count,
        range: 0..=1000,
        get: |t| u64::from(t.hold_back_ms),
        set: |t, value| t.hold_back_ms = u32::try_from(value).expect("bounded by its range"),
    },
    EngineKey {
        name: "ringpost.receive_memory_octets",
        what: "octets of memory for messages on their way in, for each shard",
        form: Form::Octets,
        range: 4 << 20..=1 << 40,
        get: |t| t.receive_memory_octets,
        set: |t, value| t.receive_memory_octets = value,
    },
];

impl EngineKey {
    /// The engine key `name`; without one, the words for the refusal, with the nearest known key.
    ///
    /// # Errors
    /// There is no such key.
    pub fn find(name: &str) -> Result<&'static EngineKey, String> {
        let found = ENGINE_KEYS.iter().find(|key| key.name == name);
        found.ok_or_else(|| {
            let names = ENGINE_KEYS.iter().map(|key| key.name);
            let near = nearest(name, names.clone()).unwrap_or_default();
            let unknown = format!("{}: unknown key (did you mean {near}?)", quote(name));
            refuse(unknown, names.collect::<Vec<_>>().join(", "))
        })
    }

    /// Its value in `tuning`.
    #[must_use]
    pub fn get(&self, tuning: &Tuning) -> u64 {
        (self.get)(tuning)
    }

    /// Sets its value from text.
    ///
    /// # Errors
    /// The text is no value of this key, in words.
    pub fn set(&self, tuning: &mut Tuning, text: &str) -> Result<(), String> {
        let value = self.parse(text).map_err(|why| format!("{}: {why}", self.name))?;
        (self.set)(tuning, value);
        Ok(())
    }

    fn parse(&self, text: &str) -> Parsed<u64> {
        if self.form == Form::Octets && !text.bytes().all(|b| b.is_ascii_digit()) {
            return size_in(text, &self.range);
        }
        let digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = digits_only.then(|| text.parse::<u64>().ok()).flatten();
        number.filter(|n| self.range.contains(n)).ok_or_else(|| {
            let (least, most) = (self.range.start(), self.range.end());
            refuse(quote(text), format_args!("a number from {least} to {most}"))
        })
    }
}

/// One line of a profile that sets a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// The key, with dots.
    pub key: String,
    /// The value, as it stands in the file.
    pub value: String,
    /// A leading `-`: a failure to set it is ignored.
    pub ignore_failure: bool,
    /// The comment lines above it, without their marks: the reason.
    pub reason: String,
}

impl Setting {
    /// Is it a key of the engine, not of the kernel?
    #[must_use]
    pub fn is_engine(&self) -> bool {
        self.key.starts_with(ENGINE_PREFIX)
    }

    /// The file of a kernel key below /proc/sys.
    #[must_use]
    pub fn proc_path(&self) -> PathBuf {
        // In a key with dots a slash stands for a dot within a name: eth0/1 is eth0.1.
        let swap = |c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        Path::new("/proc/sys").join(self.key.chars().map(swap).collect::<String>())
    }
}

/// A whole profile, in the order of its file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// What it sets.
    pub settings: Vec<Setting>,
    /// The engine keys: the default with the profile's own over it.
    pub tuning: Tuning,
}

/// Names of the profiles inside the binary, in order.
#[must_use]
pub fn names() -> Vec<String> {
    let files = Embedded::iter().filter_map(|file| file.strip_suffix(".conf").map(str::to_owned));
    let mut names: Vec<String> = files.collect();
    names.sort();
    names
}

/// Text of the profile `name` inside the binary.
#[must_use]
pub fn embedded(name: &str) -> Option<String> {
    let file = Embedded::get(&format!("{name}.conf"))?;
    String::from_utf8(file.data.into_owned()).ok()
}

/// Parses the text of a profile.
///
/// # Errors
/// Everything that is wrong in it.
pub fn parse(file: &Path, text: String) -> Result<Profile, Vec<Problem>> {
    let source = Source::new(file, text);
    let report = Report::default();
    let profile = parse_into(&report, &source);
    let problems = report.into_problems();
    if problems.is_empty() { Ok(profile) } else { Err(problems) }
}

/// Parses a profile and leaves what is wrong in `report`.
pub(super) fn parse_into(report: &Report, source: &Source) -> Profile {
    let mut profile = Profile { settings: Vec::new(), tuning: Tuning::default() };
    let mut seen = BTreeMap::new();
    let mut reason = Vec::new();
    let mut offset = 0;
    for (index, line) in source.text().split('\n').enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            reason.clear();
        } else if trimmed.starts_with(['#', ';']) {
            reason.push(trimmed[1..].trim());
        } else {
            let refuse_at = |at: &str, what: String| {
                let column = at.as_ptr().addr() - line.as_ptr().addr();
                report.add(source.problem(offset + column, what));
            };
            match parse_line(trimmed, &mut profile.tuning) {
                Err((at, what)) => refuse_at(at, what),
                Ok(setting) => {
                    if let Some(before) = seen.insert(setting.key.clone(), index + 1) {
                        let what = format!("{} is already set in line {before}", setting.key);
                        refuse_at(trimmed, refuse(what, "each key once"));
                    }
                    profile.settings.push(Setting { reason: reason.join("\n"), ..setting });
                }
            }
            reason.clear();
        }
        offset += line.len() + 1;
    }
    profile
}

/// One line that is neither empty nor a comment. An error names the piece of the line it is about.
fn parse_line<'l>(line: &'l str, tuning: &mut Tuning) -> Result<Setting, (&'l str, String)> {
    let allowed = "a line such as net.core.somaxconn = 4096";
    let ignore_failure = line.starts_with('-');
    let assignment = line.trim_start_matches('-').trim_start();
    let Some((name, value)) = assignment.split_once('=') else {
        return Err((line, refuse(format_args!("{} has no =", quote(line)), allowed)));
    };
    let (name, value) = (name.trim(), value.trim());
    let key = key_with_dots(name).map_err(|why| (assignment, why))?;
    if value.is_empty() || value.contains('\0') {
        return Err((assignment, refuse(format_args!("{key} has no value"), allowed)));
    }
    if key.starts_with(ENGINE_PREFIX) {
        let engine_key = EngineKey::find(&key).map_err(|why| (assignment, why))?;
        engine_key.set(tuning, value).map_err(|why| (value, why))?;
    }
    Ok(Setting { key, value: value.to_owned(), ignore_failure, reason: String::new() })
}

/// A key in the form with dots: of `a/b.c` and `a.b/c`, the first separator decides which form it
/// is (sysctl.d(5)).
fn key_with_dots(name: &str) -> Parsed<String> {
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let key: String = if slashes { name.chars().map(swap).collect() } else { name.to_owned() };
    let part_ok = |part: &str| {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b"_-/:".contains(&b);
        !part.is_empty() && part != "/" && part != "//" && part.bytes().all(ok)
    };
    let known =
        key.starts_with(ENGINE_PREFIX) || KERNEL_PREFIXES.iter().any(|p| key.starts_with(p));
    if known && key.split('.').all(part_ok) {
        return Ok(key);
    }
    let allowed = format!("{ENGINE_PREFIX}*, {}*", KERNEL_PREFIXES.join("*, "));
    Err(refuse(format_args!("{} is no key", quote(name)), allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Profile, Vec<String>> {
        let place = |p: &Problem| format!("{}:{}: {}", p.line, p.column, p.what);
        parse(Path::new("t.conf"), text.to_owned())
            .map_err(|problems| problems.iter().map(place).collect())
    }

    #[test]
    fn the_syntax_of_sysctl_d() {
        let text = "; semicolon\n# hash\n\n# why\n#  more\n-net.core.somaxconn = 4096\n\
                    net/ipv4/conf/eth0.1/rp_filter=1\nringpost.hot_body_octets = 1MiB\n\
                    net.ipv4.ip_local_port_range = 1024 65535\n";
        let profile = parsed(text).unwrap();
        let first = &profile.settings[0];
        assert_eq!((first.key.as_str(), first.value.as_str()), ("net.core.somaxconn", "4096"));
        assert_eq!((first.ignore_failure, first.reason.as_str()), (true, "why\nmore"));
        assert_eq!(first.proc_path(), Path::new("/proc/sys/net/core/somaxconn"));
        let second = &profile.settings[1];
        assert_eq!(second.proc_path(), Path::new("/proc/sys/net/ipv4/conf/eth0.1/rp_filter"));
        assert!(!second.ignore_failure && !second.is_engine());
        assert!(profile.settings[2].is_engine());
        assert_eq!(profile.tuning.hot_body_octets, 1 << 20);
        assert_eq!(profile.settings[3].value, "1024 65535");
    }

    #[test]
    fn all_errors_with_their_places() {
        let text = "net.core.somaxconn\n  ringpost.hot_body = 1\n\
                    ringpost.commit_batch_max = 0\nnet.core.somaxconn = 1\n\
                    net/core/somaxconn = 2\nfs.file-max =\n../etc/passwd = 1\nnet/../x = 1\n";
        let errors = parsed(text).unwrap_err();
        let expected = [
            "1:1: \"net.core.somaxconn\" has no =",
            "2:3: \"ringpost.hot_body\": unknown key (did you mean ringpost.hot_body_octets?)",
            "3:29: ringpost.commit_batch_max: \"0\", allowed: a number from 1 to 65536",
            "5:1: net.core.somaxconn is already set in line 4, allowed: each key once",
            "6:1: fs.file-max has no value",
            "7:1: \"../etc/passwd\" is no key",
            "8:1: \"net/../x\" is no key",
        ];
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.starts_with(expected), "{error}\n{expected}");
        }
    }

    #[test]
    fn every_profile_in_the_binary_loads_and_gives_its_reasons() {
        assert_eq!(names(), ["balanced", "latency", "throughput"]);
        for name in names() {
            let profile = parsed(&embedded(&name).unwrap()).unwrap();
            for key in ENGINE_KEYS {
                assert!(profile.settings.iter().any(|s| s.key == key.name), "{name} {}", key.name);
            }
            assert!(profile.settings.iter().any(|s| !s.is_engine()), "{name}");
            for setting in profile.settings {
                for word in ["Symptom:", "Measure:", "Changes:", "Worked:"] {
                    assert!(setting.reason.contains(word), "{name} {} {word}", setting.key);
                }
            }
        }
        let default = parsed(&embedded(DEFAULT_PROFILE).unwrap()).unwrap();
        assert_eq!(default.tuning, Tuning::default());
    }
}
