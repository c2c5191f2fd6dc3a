//! What one delivery pays for its route: the lookup and the turn.
//!
//! Owns: `lookup` in 40,000 and in 1,000,000 routes, and `cursor` from 1, 2 and 4 threads (time
//! per turn, all threads together).

#![allow(missing_docs, reason = "criterion's macros make public items without docs")]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock; the data plane does not")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringpost::mail::{Domain, Mono};
use ringpost::route::{Choice, Cursor, HostSet, LaneFill, Plan, Registry, Table, parse_row};

/// Names that are looked up in one round, so that the table is not always in the nearest cache.
const NAMES: usize = 4096;

fn domain(text: &str) -> Domain {
    Domain::parse(text.as_bytes()).unwrap()
}

/// `routes` rows: half exact names, half suffixes, and ALL.
fn table(routes: usize) -> Table {
    let line = |i: usize| match i {
        0 => "ALL 192.0.2.1".to_owned(),
        i if i % 2 == 0 => format!("host{i}.example.com 192.0.2.1/pri=0, 192.0.2.2/pri=10"),
        i => format!(".zone{i}.example.net 192.0.2.3:2525"),
    };
    let rows = (0..routes).map(|i| parse_row(&line(i)).unwrap().unwrap());
    Table::build(rows.collect()).unwrap()
}

/// `NAMES` numbers spread over the table, even or odd ones.
fn spread(routes: usize, odd: usize) -> impl Iterator<Item = usize> {
    (1..=NAMES).map(move |i| (i * 7919 * 2) % (routes - 2) / 2 * 2 + 2 - odd)
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for routes in [40_000, 1_000_000] {
        let table = table(routes);
        let exact = spread(routes, 0).map(|i| domain(&format!("host{i}.example.com")));
        let suffix = spread(routes, 1).map(|i| domain(&format!("mail.a.zone{i}.example.net")));
        let default = (0..NAMES).map(|i| domain(&format!("www.nobody{i}.example.org")));
        let kinds: [(&str, Vec<Domain>); 3] = [
            ("exact", exact.collect()),
            ("suffix", suffix.collect()),
            ("default", default.collect()),
        ];
        for (kind, names) in kinds {
            let mut next = names.iter().cycle();
            group.bench_function(BenchmarkId::new(kind, routes), |b| {
                b.iter(|| black_box(table.find(black_box(next.next().unwrap()))));
            });
        }
    }
    group.finish();
}

fn cursor(c: &mut Criterion) {
    let mut group = c.benchmark_group("cursor");
    for threads in [1_u64, 2, 4] {
        group.bench_function(BenchmarkId::new("take", threads), |b| {
            b.iter_custom(|turns| take_turns(threads, turns));
        });
    }
    group.finish();
}

fn take_turns(threads: u64, turns: u64) -> Duration {
    let cursor = Cursor::new();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..turns.div_ceil(threads) {
                    black_box(cursor.take(1));
                }
            });
        }
    });
    start.elapsed()
}

fn choose(c: &mut Criterion) {
    let registry = Registry::new(2);
    let addresses: Vec<_> =
        (1..=5).map(|i| (([192, 0, 2, i], 25).into(), u16::from(i > 3))).collect();
    let plan = Plan::new(&registry, "example.com", &addresses, usize::MAX, Mono(0));
    let tried = HostSet::default();
    let mut group = c.benchmark_group("choose");
    group.bench_function("one of 5 hosts", |b| {
        b.iter(|| plan.choose(black_box(Mono(5)), &tried, |_| LaneFill::Room));
    });
    group.bench_function("block of 64", |b| {
        b.iter(|| {
            let mut turns = plan.take_turns(64, black_box(Mono(5)), &tried);
            (0..64).filter(|_| matches!(turns.next(|_| LaneFill::Room), Choice::Turn(_))).count()
        });
    });
    group.finish();
}

criterion_group!(benches, lookup, cursor, choose);
criterion_main!(benches);
