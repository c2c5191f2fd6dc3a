//! What the benches without criterion share: their arguments, CPU time, memory and a folder.
//!
//! Owns: reading `/proc/self` and the command line. Never: a measurement.

#![allow(dead_code, reason = "each bench uses a part of it")]
#![allow(unreachable_pub, reason = "a module that several benches include as their own")]

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The command line of a bench.
pub struct Arguments {
    /// Smoke run: a few seconds, and the figures mean nothing.
    pub smoke: bool,
    /// One line of JSON per row in place of the table.
    pub json: bool,
    /// Figures go into `benches/history.ndjson`.
    pub record: bool,
    values: HashMap<String, String>,
}

impl Arguments {
    /// Reads the command line; `known` are the options that take a value. As with criterion, a
    /// run without cargo's `--bench` is a smoke run.
    pub fn read(usage: &str, known: &[&str]) -> Self {
        let mut words = std::env::args().skip(1);
        let mut all = Self { smoke: true, json: false, record: false, values: HashMap::new() };
        let mut asked_for_smoke = false;
        while let Some(word) = words.next() {
            match word.strip_prefix("--").unwrap_or("") {
                "bench" => all.smoke = false,
                "test" => asked_for_smoke = true,
                "json" => all.json = true,
                "record" => all.record = true,
                "help" => {
                    println!("{usage}");
                    std::process::exit(0)
                }
                name if known.contains(&name) => match words.next() {
                    Some(value) => drop(all.values.insert(name.to_owned(), value)),
                    None => refuse(usage, &format!("--{name} needs a value")),
                },
                _ => refuse(usage, &format!("'{word}' is not known")),
            }
        }
        all.smoke |= asked_for_smoke;
        all
    }

    /// The text of an option.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The number of an option; ends the bench when it is none.
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.text(name)?;
        match text.parse() {
            Ok(number) => Some(number),
            Err(_) => refuse("", &format!("--{name} takes a number, not '{text}'")),
        }
    }
}

fn refuse(usage: &str, what: &str) -> ! {
    eprintln!("{what}\n{usage}");
    std::process::exit(64)
}

/// A folder that vanishes: below `--spool DIR`, or in cargo's target folder, because /tmp is
/// memory on many machines and memory syncs in no time.
pub fn folder(arguments: &Arguments) -> tempfile::TempDir {
    let base = arguments.text("spool").unwrap_or(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(PathBuf::from(base)).expect("a folder for the spool")
}

/// Memory that is touched before a load at most, in MiB: more than its log and its buffers take.
const TOUCHED_MIB_MAX: u64 = 512;

/// Uses free memory once and gives it back. Where the machine is a virtual one whose host takes
/// free memory back, the next use of a page waits for the host, up to 10 us of CPU time for 4 KiB:
/// a mail log of 1 KiB per message then costs more than its text. Hosts that work have no such
/// memory.
pub fn touch_free_memory(arguments: &Arguments) {
    if arguments.smoke {
        return;
    }
    let memory = memfd_create("touched", MemfdFlags::CLOEXEC).map(fs::File::from);
    let piece = vec![1; 1 << 20];
    let mib = TOUCHED_MIB_MAX.min(available_mib() / 4);
    let touched = memory
        .map_err(io::Error::from)
        .and_then(|mut memory| (0..mib).try_for_each(|_| memory.write_all(&piece)));
    if let Err(error) = touched {
        eprintln!("free memory is not touched before the run: {error}");
    }
}

/// MemAvailable of proc_meminfo(5).
fn available_mib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// Raises the soft limit of open files to the hard one; the limit that holds then.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if setrlimit(Resource::Nofile, raised).is_err() {
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

/// CPU time of the whole process, workers of the ring among it.
pub fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}

/// CPU time of the thread that asks.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}

/// What one thread has used so far.
#[derive(Clone, Default)]
struct Used {
    name: String,
    cpu_ns: u64,
    /// Times it gave the processor up to wait.
    waits: u64,
}

/// CPU time and waits by thread, sampled, so that a thread that ends keeps nearly all of its own.
#[derive(Default)]
pub struct Threads(HashMap<u64, Used>);

impl Threads {
    /// Reads what every thread has used so far.
    pub fn sample(&mut self) {
        let Ok(tasks) = fs::read_dir("/proc/self/task") else { return };
        for task in tasks.flatten() {
            let id = task.file_name().to_str().and_then(|name| name.parse().ok());
            let name = fs::read_to_string(task.path().join("comm"));
            let stat = fs::read_to_string(task.path().join("schedstat"));
            let status = fs::read_to_string(task.path().join("status"));
            let (Some(id), Ok(name), Ok(stat), Ok(status)) = (id, name, stat, status) else {
                continue;
            };
            let cpu_ns = stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
            let waits = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            let waits = waits.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            let known = self.0.entry(id).or_default();
            known.name = name.trim().to_owned();
            known.cpu_ns = known.cpu_ns.max(cpu_ns);
            known.waits = known.waits.max(waits);
        }
    }

    /// What was used between two samplings.
    pub fn since(before: &Self, mut after: Self) -> Self {
        for (id, earlier) in &before.0 {
            if let Some(used) = after.0.get_mut(id) {
                used.cpu_ns = used.cpu_ns.saturating_sub(earlier.cpu_ns);
                used.waits = used.waits.saturating_sub(earlier.waits);
            }
        }
        after
    }

    /// Time of the threads whose name `chosen` takes.
    pub fn used(&self, chosen: impl Fn(&str) -> bool) -> Duration {
        Duration::from_nanos(self.chosen(chosen).map(|used| used.cpu_ns).sum())
    }

    /// Voluntary context switches of the threads whose name `chosen` takes.
    pub fn waits(&self, chosen: impl Fn(&str) -> bool) -> u64 {
        self.chosen(chosen).map(|used| used.waits).sum()
    }

    /// Ids of the threads whose name `chosen` takes.
    pub fn ids(&self, chosen: impl Fn(&str) -> bool) -> Vec<u64> {
        self.0.iter().filter(|(_, used)| chosen(&used.name)).map(|(id, _)| *id).collect()
    }

    fn chosen(&self, chosen: impl Fn(&str) -> bool) -> impl Iterator<Item = &Used> {
        self.0.values().filter(move |used| chosen(&used.name))
    }
}

/// Octets of resident anonymous memory of this process.
pub fn anonymous_octets() -> u64 {
    anonymous_octets_of("self")
}

/// Octets of resident anonymous memory of the process with this pid.
pub fn anonymous_octets_of(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Page faults of this thread that had to wait for the disk.
pub fn major_faults() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // proc_pid_stat(5): field 12; the name, field 2, may hold spaces and ends with ')'.
    let behind_name = stat.rsplit(')').next().unwrap_or("");
    behind_name.split_whitespace().nth(9).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Microseconds, for the tables.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
