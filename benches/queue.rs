//! What the queue costs on a real disk: commits by the number of messages that wait, beside the
//! bare loops that any queue must pay; recovery; memory per recipient; the engine's start.
//!
//! Owns: the rows `engine`, `layout`, `ring` and `pwrite` for each batch, and the row `recovery`.
//! Never: a target.
//!
//! `engine` is [`Queue`] with its files, its effects carried out through the shard's ring as a
//! shard does it: append, write, slots, one fdatasync, 250, and the recipient settled. While a
//! batch is synced, the next is written, and synced beside it if it is large enough; meanwhile the
//! one after it comes in, and what was committed is settled. At the start of each commit as many
//! messages wait as the row says.
//! `ring` and `pwrite` write records of 4200 octets one behind the other into one file that was
//! written full before, and sync it once per batch: through the same ring, and by the two plain
//! system calls. Their next batch needs no work. `layout` writes by plain system calls what the
//! queue's files ask for, and is no queue: the records' octets in one place, their slots in a
//! table, the words of the batch before. Latency is from the append of a message to its commit,
//! hence with the write of the batch and the sync of the one before.

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock; the data plane does not")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

mod common;
mod start;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Arguments, micros};
use hashbrown::HashMap;
use hdrhistogram::Histogram;
use ringpost::mail::{
    Body, BodyKind, Envelope, Handle, Mailbox, MessageFacts, Notify, Recipient, Rid, ShardId,
};
use ringpost::queue::format::{HEADERS_END, SLOT_OCTETS};
use ringpost::queue::settings::QueueSettings;
use ringpost::queue::{
    Chunk, Effect, EffectId, Event, FileMedium, Medium, NewMessage, Opened, Queue, ReadPlan,
    SegmentId, Spool, Ticket,
};
use ringpost::shard::io::{self as ring, Backend, Files, Gather, Piece};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const USAGE: &str = "cargo bench --bench queue -- [--batch N] [--entries N] [--shards N] \
                     [--segment OCTETS] [--seconds N] [--io ring|epoll] [--spool DIR] [--json] \
                     [--test]";

const BATCHES: [usize; 4] = [1, 20, 100, 1000];
/// Slices of a row.
const SLICES: u32 = 10;
/// A message with its envelope and slots.
const RECORD_OCTETS: usize = 4200;
/// An entry and a message slot.
const SLOTS_OCTETS: usize = 2 * SLOT_OCTETS;
/// The sender's 28 octets and the recipient's 16, with their lengths.
const ENVELOPE_OCTETS: usize = 8 + 28 + 4 + 16;
const BODY_OCTETS: usize = RECORD_OCTETS - SLOTS_OCTETS - ENVELOPE_OCTETS;
/// The table takes this part of a segment's octets.
const TABLE_PARTS: u64 = 8;
const PAGE_OCTETS: usize = 4096;
/// Messages of the recovery row are this large: it is their number that counts.
const SMALL_OCTETS: usize = 256;
/// Their receiving domains.
const DOMAINS: u64 = 1000;
/// Room for each of them, twice: a segment is full when its table is.
const ENTRY_OCTETS: u64 = 4096;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What one row came to.
struct Outcome {
    records: u64,
    wall: Duration,
    cpu: Duration,
    latency_us: Histogram<u64>,
    major_faults: u64,
}

impl Outcome {
    fn none() -> Self {
        Self {
            records: 0,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
            latency_us: latencies(),
            major_faults: 0,
        }
    }

    fn add(&mut self, more: &Self) {
        self.records += more.records;
        self.wall += more.wall;
        self.cpu += more.cpu;
        self.latency_us.add(&more.latency_us).unwrap();
        self.major_faults += more.major_faults;
    }

    fn rate(&self) -> f64 {
        self.records as f64 / self.wall.as_secs_f64()
    }

    fn cpu_us(&self) -> f64 {
        micros(self.cpu) / self.records as f64
    }
}

/// Up to one minute.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap()
}

/// Measures one slice of a row: counts, both clocks, faults.
struct Meter {
    start: Instant,
    cpu: Duration,
    major_faults: u64,
    records: u64,
    latency_us: Histogram<u64>,
}

impl Meter {
    fn start() -> Self {
        Self {
            cpu: common::process_cpu(),
            major_faults: common::major_faults(),
            records: 0,
            latency_us: latencies(),
            start: Instant::now(),
        }
    }

    fn done(&mut self, records: u64, since: Instant) {
        self.records += records;
        let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.latency_us.saturating_record_n(us, records);
    }

    fn end(self) -> Outcome {
        Outcome {
            records: self.records,
            wall: self.start.elapsed(),
            cpu: common::process_cpu() - self.cpu,
            latency_us: self.latency_us,
            major_faults: common::major_faults() - self.major_faults,
        }
    }
}

/// How long a slice runs, and how large its file is.
#[derive(Clone, Copy)]
struct Extent {
    slice_for: Duration,
    segment_octets: u64,
}

fn main() {
    let known = ["batch", "entries", "shards", "segment", "seconds", "io", "spool", "recover"];
    let arguments = Arguments::read(USAGE, &known);
    if let Some(spool) = arguments.text("recover") {
        return recover(Path::new(spool), arguments.number("entries").unwrap());
    }
    let smoke = arguments.smoke;
    let seconds = arguments.number("seconds").map(Duration::from_secs);
    let row_for = seconds.unwrap_or(Duration::from_millis(if smoke { 50 } else { 3000 }));
    let extent = Extent {
        slice_for: row_for / SLICES,
        segment_octets: arguments.number("segment").unwrap_or(if smoke { 16 } else { 256 } << 20),
    };
    let backend = match (arguments.text("io"), ring::probe_ring()) {
        (Some("epoll"), _) => Backend::Epoll,
        (_, Ok(())) => Backend::Ring,
        (_, Err(why)) => {
            eprintln!("{why}; running on epoll");
            Backend::Epoll
        }
    };
    let folder = common::folder(&arguments);
    let batches = match arguments.number("batch") {
        Some(batch) => vec![usize::try_from(batch).unwrap().clamp(1, BATCHES[3])],
        None => BATCHES.to_vec(),
    };
    if seconds != Some(Duration::ZERO) {
        ring::run(backend, commits(backend, folder.path(), extent, (&batches, arguments.json)))
            .unwrap();
    }
    let few = if smoke { 2_000 } else { 100_000 };
    let entries = arguments.number("entries").unwrap_or(few);
    let spool = folder.path().join("recovery");
    let shards = arguments.number("shards").map_or(2, |n| u8::try_from(n).unwrap());
    for shard in 0..shards {
        ring::run(backend, fill(backend, &spool, (shard, shards), entries)).unwrap();
    }
    // In a process of its own: memory that this one has freed would hide what is used.
    let mut reader = Command::new(std::env::current_exe().unwrap());
    reader.arg("--recover").arg(&spool).args(["--entries", &entries.to_string()]);
    reader.args(arguments.json.then_some("--json"));
    assert!(reader.status().unwrap().success(), "the recovery failed");
    start::row(folder.path(), "recovery", entries, shards, arguments.json);
}

/// The rows of all batches. The three loops take turns in short slices, so that a disk which
/// changes its mood does so to all of them.
async fn commits(
    backend: Backend,
    folder: &Path,
    extent: Extent,
    (batches, json): (&[usize], bool),
) {
    let bare_file = prewritten(&folder.join("bare"), extent.segment_octets);
    let files = Files::start(backend).unwrap();
    // A spool's segments are 1/64 of it.
    let spool = open_spool(&folder.join("spool"), extent.segment_octets * 64, 1);
    let mut disk = Disk::open(backend, spool, 0).await;
    disk.warm_up(extent).await;
    if !json {
        println!(
            "{:>8} {:>6} {:>10} {:>10} {:>9} {:>9} {:>9} {:>10} {:>7}",
            "loop",
            "batch",
            "records/s",
            "CPU us/r",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "of bare",
            "majflt"
        );
    }
    for batch in batches.iter().copied() {
        let (mut engine, mut by_ring) = (Outcome::none(), Outcome::none());
        let (mut by_layout, mut by_pwrite) = (Outcome::none(), Outcome::none());
        for _ in 0..SLICES {
            by_ring.add(&bare_by_ring(&files, &bare_file, batch, extent).await);
            engine.add(&disk.commit(batch, extent.slice_for).await);
            by_layout.add(&by_the_layout(&bare_file, batch, extent));
            by_pwrite.add(&bare_by_pwrite(&bare_file, batch, extent));
        }
        let best = by_ring.rate().max(by_pwrite.rate());
        print(json, "engine", batch, &engine, best);
        print(json, "layout", batch, &by_layout, best);
        print(json, backend.name(), batch, &by_ring, best);
        print(json, "pwrite", batch, &by_pwrite, best);
    }
}

fn print(json: bool, name: &str, batch: usize, outcome: &Outcome, bare_rate: f64) {
    let us = |quantile| outcome.latency_us.value_at_quantile(quantile);
    let ratio = outcome.rate() / bare_rate;
    if json {
        let line = serde_json::json!({
            "loop": name, "batch": batch, "records": outcome.records,
            "records_per_s": outcome.rate(), "cpu_us_per_record": outcome.cpu_us(),
            "latency_us": { "p50": us(0.5), "p99": us(0.99), "p99_9": us(0.999) },
            "ratio_to_bare": ratio, "major_faults": outcome.major_faults,
        });
        println!("{line}");
    } else {
        println!(
            "{name:>8} {batch:>6} {:>10.0} {:>10.2} {:>9} {:>9} {:>9} {ratio:>10.3} {:>7}",
            outcome.rate(),
            outcome.cpu_us(),
            us(0.5),
            us(0.99),
            us(0.999),
            outcome.major_faults,
        );
    }
}

/// A file without a hole and without an extent that was never written: what a recycled segment
/// is.
fn prewritten(path: &Path, octets: u64) -> File {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let zeros = vec![0; 1 << 20];
    for at in (0..octets).step_by(zeros.len()) {
        file.write_all_at(&zeros, at).unwrap();
    }
    file.sync_all().unwrap();
    file
}

/// The next place of a batch of `octets`; from the front again at the end of the file.
fn place(at: &mut u64, octets: u64, file_octets: u64) -> u64 {
    if *at + octets > file_octets {
        *at = 0;
    }
    let here = *at;
    *at += octets;
    here
}

async fn bare_by_ring(files: &Files, file: &File, batch: usize, extent: Extent) -> Outcome {
    let file = files.adopt(file.try_clone().unwrap());
    let facts = MessageFacts::default();
    let body = Arc::new(Body { bytes: vec![b'x'; batch * RECORD_OCTETS].into(), facts });
    let octets = body.bytes.len() as u64;
    let (mut meter, mut at) = (Meter::start(), 0);
    while meter.start.elapsed() < extent.slice_for {
        let since = Instant::now();
        let gather = Gather::new(vec![Piece::Body(body.clone(), 0..body.bytes.len())]);
        file.write_at(gather, place(&mut at, octets, extent.segment_octets)).await.unwrap();
        file.sync_data().await.unwrap();
        meter.done(batch as u64, since);
    }
    meter.end()
}

fn bare_by_pwrite(file: &File, batch: usize, extent: Extent) -> Outcome {
    let record = vec![b'x'; batch * RECORD_OCTETS];
    let octets = record.len() as u64;
    let (mut meter, mut at) = (Meter::start(), 0);
    while meter.start.elapsed() < extent.slice_for {
        let since = Instant::now();
        file.write_all_at(&record, place(&mut at, octets, extent.segment_octets)).unwrap();
        file.sync_data().unwrap();
        meter.done(batch as u64, since);
    }
    meter.end()
}

/// What a commit writes to the files of the queue, without the queue.
fn by_the_layout(file: &File, batch: usize, extent: Extent) -> Outcome {
    let record = vec![b'x'; batch * (RECORD_OCTETS - SLOTS_OCTETS)];
    let slots = vec![b'x'; batch * SLOTS_OCTETS];
    let word = [b'x'; 8];
    let (octets, table) = (record.len() as u64, slots.len() as u64);
    let table_octets = extent.segment_octets / TABLE_PARTS;
    let body_octets = extent.segment_octets - table_octets;
    let (mut meter, mut at, mut slots_at) = (Meter::start(), 0, 0);
    let mut before = None;
    while meter.start.elapsed() < extent.slice_for {
        let since = Instant::now();
        let here = HEADERS_END + place(&mut slots_at, table, table_octets - HEADERS_END);
        file.write_all_at(&slots, here).unwrap();
        let words = before.replace(here).map(|before: u64| before..before + table);
        for page in words.into_iter().flat_map(|words| words.step_by(PAGE_OCTETS)) {
            file.write_all_at(&word, page).unwrap();
        }
        let body_at = table_octets + place(&mut at, octets, body_octets);
        file.write_all_at(&record, body_at).unwrap();
        file.sync_data().unwrap();
        meter.done(batch as u64, since);
    }
    meter.end()
}

/// A sync that has ended.
type Ended = (EffectId, io::Result<()>);

/// A queue with its files: what a shard has of them.
struct Disk {
    queue: Queue,
    medium: FileMedium,
    files: Files,
    segments: HashMap<SegmentId, ring::File>,
    /// Since when; they are committed in this order.
    waiting: VecDeque<(Ticket, Instant)>,
    /// Messages that came in for the next commit.
    come: usize,
    /// Committed and not settled.
    unsettled: Vec<Handle>,
    /// It stays in the queue.
    keeps: bool,
    envelope: Arc<Envelope>,
    /// Bounce profile and listener.
    labels: [Arc<str>; 2],
    /// Of the messages of a batch, in turn.
    bodies: Vec<Arc<Body>>,
    syncs_under_way: usize,
    /// What they came to.
    ended: (UnboundedSender<Ended>, UnboundedReceiver<Ended>),
    /// Holds the lock.
    _spool: Spool,
}

fn open_spool(path: &Path, octets_max: u64, shards: u8) -> Spool {
    let settings =
        QueueSettings { spool: path.to_owned(), octets_max, free_octets_min: Some(1 << 30) };
    Spool::open(&settings, shards).unwrap()
}

impl Disk {
    async fn open(backend: Backend, spool: Spool, shard: u8) -> Self {
        let files = Files::start(backend).unwrap();
        let medium = spool.medium();
        let options = spool.options(ShardId(shard), 0);
        let opened = Queue::open(&medium, options, ring::now()).unwrap();
        let Opened { queue, files: found, .. } = opened;
        let segments = found.into_iter().map(|(id, file)| (id, files.adopt(file))).collect();
        let address = |text: &str| Mailbox::parse(text.as_bytes()).unwrap();
        let recipient = Recipient {
            rid: Rid(0),
            address: address("user@example.com"),
            notify: Notify::default(),
            orcpt: None,
        };
        let envelope = Envelope {
            sender: Some(address("bounces+4711@out.example.net")),
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            recipients: vec![recipient],
        };
        let bodies = (0..BATCHES[3]).map(|_| body_of(BODY_OCTETS)).collect();
        let (waiting, unsettled) = (VecDeque::new(), Vec::new());
        Self {
            queue,
            medium,
            files,
            segments,
            waiting,
            come: 0,
            unsettled,
            keeps: false,
            envelope: Arc::new(envelope),
            labels: ["default".into(), "127.0.0.1:2525".into()],
            bodies,
            syncs_under_way: 0,
            ended: unbounded_channel(),
            _spool: spool,
        }
    }

    /// Messages come in until `waiting` wait for the next commit.
    fn come_in(&mut self, waiting: usize) {
        let now = Instant::now();
        for _ in self.come..waiting {
            self.append(now);
        }
    }

    fn append(&mut self, since: Instant) {
        self.come += 1;
        // Each message of a batch has octets of its own, as one that came from a client has; the
        // bare loops write as many, from the same place each time.
        let body = self.bodies[(self.come - 1) % self.bodies.len()].clone();
        let now = ring::now();
        let ticket = self.queue.ids().next_mid().map(|mid| NewMessage {
            mid,
            envelope: self.envelope.clone(),
            arrival: now.wall,
            bounce_profile: self.labels[0].clone(),
            listener: self.labels[1].clone(),
            cause: None,
            body,
        });
        let ticket = self.queue.append(ticket.expect("ids are reserved in time")).unwrap();
        self.waiting.push_back((ticket, since));
    }

    /// Carries out effects up to the next write, and beside it and the syncs what the tasks of a
    /// shard do meanwhile; or waits for the end of a sync. False when there is nothing to be done.
    async fn step(&mut self, waiting: usize, meter: &mut Meter) -> bool {
        let (mut write, mut begins_sync) = (None, false);
        while write.is_none()
            && let Some(effect) = self.queue.next_effect()
        {
            match effect {
                Effect::Write { id, segment, offset, chunks, direct } => {
                    write = Some((id, self.write(segment, offset, chunks, direct)));
                }
                Effect::Sync { id, segment } => {
                    self.begin_sync(id, segment);
                    begins_sync = true;
                    self.files.are_under_way().await;
                }
                effect => self.perform(effect).await,
            }
        }
        if write.is_none() && !begins_sync {
            if self.syncs_under_way == 0 {
                return false;
            }
            let ended = self.ended.1.recv().await;
            self.sync_ended(ended.expect("this end is open as long as the other"), meter);
            return true;
        }
        let meanwhile = async {
            self.files.are_under_way().await;
            self.queue.enter_synced();
            self.hear(meter);
            self.come_in(waiting);
            self.settle();
        };
        match write {
            None => meanwhile.await,
            Some((id, write)) => {
                let (written, ()) = tokio::join!(write, meanwhile);
                self.queue.handle_done(id, written);
                self.hear(meter);
            }
        }
        while let Ok(ended) = self.ended.1.try_recv() {
            self.sync_ended(ended, meter);
        }
        true
    }

    fn begin_sync(&mut self, id: EffectId, segment: SegmentId) {
        self.syncs_under_way += 1;
        let (file, ended) = (self.segments[&segment].clone(), self.ended.0.clone());
        ring::spawn(async move { drop(ended.send((id, file.sync_data().await))) });
    }

    fn sync_ended(&mut self, (id, result): (EffectId, io::Result<()>), meter: &mut Meter) {
        self.syncs_under_way -= 1;
        self.queue.handle_done(id, result);
        self.hear(meter);
    }

    fn write(
        &mut self,
        segment: SegmentId,
        offset: u64,
        chunks: Vec<Chunk>,
        direct: bool,
    ) -> impl Future<Output = io::Result<()>> + use<> {
        self.come = 0;
        let gather = Gather::new(chunks.into_iter().map(piece).collect());
        let file = self.segments[&segment].clone();
        async move {
            match direct {
                true => file.write_direct_at(gather, offset).await,
                false => file.write_at(gather, offset).await,
            }
        }
    }

    /// Carries out an effect other than a write or a sync.
    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Make { id, segment, octets, map_octets, header } => {
                let made = self.make(segment, octets, map_octets, &header);
                self.queue.handle_made(id, made);
            }
            Effect::Write { .. } | Effect::Sync { .. } => unreachable!("they go beside other work"),
            Effect::Read { id, plan } => {
                let result = self.read(&plan).await;
                self.queue.handle_read(id, result);
            }
        }
    }

    async fn read(&self, plan: &ReadPlan) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        for piece in &plan.pieces {
            let octets = usize::try_from(piece.octets).unwrap();
            let file = &self.segments[&piece.segment];
            all.extend_from_slice(&file.read_exact_at(octets, piece.offset).await?);
        }
        Ok(all)
    }

    fn make(
        &mut self,
        segment: SegmentId,
        octets: u64,
        map_octets: u64,
        header: &[u8],
    ) -> io::Result<ringpost::queue::Mapping> {
        let file = self.medium.make(segment, octets, header)?;
        let mapping = self.medium.map(&file, map_octets)?;
        self.segments.insert(segment, self.files.adopt(file));
        Ok(mapping)
    }

    /// Takes the commits that have come, into `meter` and `unsettled`.
    fn hear(&mut self, meter: &mut Meter) {
        // Messages that came in together have the same latency.
        let mut together: Option<(Instant, u64)> = None;
        while let Some(event) = self.queue.poll_event() {
            let Event::Committed { ticket, handles, .. } = event else { panic!("a commit failed") };
            let (waits, since) = self.waiting.pop_front().expect("somebody waits for it");
            assert_eq!(waits, ticket, "messages are committed in the order they came");
            self.unsettled.extend(handles.into_iter().map(|(handle, _)| handle));
            match &mut together {
                Some((known, count)) if *known == since => *count += 1,
                _ => {
                    let before = together.replace((since, 1));
                    before.into_iter().for_each(|(since, count)| meter.done(count, since));
                }
            }
        }
        together.into_iter().for_each(|(since, count)| meter.done(count, since));
    }

    /// Keeps `waiting` messages waiting for `row_for`; all of them commit together.
    async fn commit(&mut self, waiting: usize, row_for: Duration) -> Outcome {
        let mut meter = Meter::start();
        while meter.start.elapsed() < row_for {
            if self.waiting.is_empty() {
                self.come_in(waiting);
            }
            self.step_and_hear(waiting, &mut meter).await;
            self.queue.tick(ring::now());
        }
        // What is on disk counts, told of or not.
        self.queue.enter_synced();
        self.hear(&mut meter);
        let outcome = meter.end();
        // The next row begins without messages of this one.
        let mut unmeasured = Meter::start();
        while !self.waiting.is_empty() {
            self.step_and_hear(0, &mut unmeasured).await;
        }
        self.settle();
        outcome
    }

    /// Settles what was committed, unless it is to stay.
    fn settle(&mut self) {
        if self.keeps {
            return self.unsettled.clear();
        }
        for handle in self.unsettled.drain(..) {
            let change = self.queue.deleted(handle, Rid(0));
            assert!(change.applied, "a recipient was settled twice");
        }
    }

    async fn step_and_hear(&mut self, waiting: usize, meter: &mut Meter) {
        if !self.step(waiting, meter).await {
            let before = self.waiting.len();
            self.queue.enter_synced();
            self.hear(meter);
            assert!(self.waiting.len() < before, "messages wait and nothing is to be done");
        }
    }

    /// Brings the queue to where it takes up segments that it has used before, and makes none.
    async fn warm_up(&mut self, extent: Extent) {
        let messages = extent.segment_octets * 3 / RECORD_OCTETS as u64;
        loop {
            let (made, mut done) = (self.segments.len(), 0);
            while done < messages {
                done += self.commit(1000, Duration::from_millis(100)).await.records;
            }
            if self.segments.len() == made {
                return;
            }
        }
    }

    /// Ends in good order.
    async fn end(mut self) {
        self.queue.flush();
        while self.step(0, &mut Meter::start()).await {}
    }
}

fn piece(Chunk { body, range }: Chunk) -> Piece {
    Piece::Body(body, range)
}

fn body_of(octets: usize) -> Arc<Body> {
    Arc::new(Body { bytes: vec![b'x'; octets].into(), facts: MessageFacts::default() })
}

/// Fills the directory of one of several shards with its part of `entries` recipients, one per
/// message, of [`DOMAINS`] receiving domains.
async fn fill(backend: Backend, spool: &Path, (shard, shards): (u8, u8), entries: u64) {
    let spool = open_spool(spool, (entries * ENTRY_OCTETS).max(1 << 30), shards);
    let mut disk = Disk::open(backend, spool, shard).await;
    disk.bodies = vec![body_of(SMALL_OCTETS)];
    disk.keeps = true;
    let (mut meter, mut appended) = (Meter::start(), 0);
    let entries =
        entries / u64::from(shards) + u64::from(shard == 0) * (entries % u64::from(shards));
    while appended < entries {
        let batch = (entries - appended).min(1000);
        for n in 0..batch {
            let address = format!("user@d{}.example.com", (appended + n) % DOMAINS);
            Arc::make_mut(&mut disk.envelope).recipients[0].address =
                Mailbox::parse(address.as_bytes()).unwrap();
            disk.append(Instant::now());
        }
        appended += batch;
        while !disk.waiting.is_empty() {
            disk.step_and_hear(0, &mut meter).await;
        }
        disk.settle();
        disk.queue.tick(ring::now());
    }
    disk.end().await;
}

/// The row `recovery`, in the process that [`main`] starts for it: one shard reads all.
fn recover(path: &Path, filled_in: u64) {
    let spool = open_spool(path, u64::MAX, 1);
    let medium = spool.medium();
    let options = spool.options(ShardId(0), 0);
    let (anonymous, faults) = (common::anonymous_octets(), common::major_faults());
    let (start, cpu) = (Instant::now(), common::process_cpu());
    let opened = Queue::open(&medium, options, ring::now()).unwrap();
    let (wall, cpu) = (start.elapsed(), common::process_cpu() - cpu);
    let anonymous = common::anonymous_octets().saturating_sub(anonymous);
    let faults = common::major_faults() - faults;
    let entries = opened.recovered.found_recipients;
    assert_eq!(entries, filled_in, "not all was found that was filled in");
    let index = opened.queue.usage().index_octets;
    let each = |octets: f64| octets / entries as f64;
    if std::env::args().any(|word| word == "--json") {
        let line = serde_json::json!({
            "recovery_entries": entries, "seconds": wall.as_secs_f64(),
            "cpu_us_per_entry": each(micros(cpu)),
            "anonymous_octets_per_recipient": each(anonymous as f64),
            "index_octets_per_recipient": each(index as f64),
            "major_faults": faults,
        });
        println!("{line}");
    } else {
        println!(
            "recovery of {entries} entries: {:.3} s, {:.2} us of CPU each; {:.1} octets of \
             anonymous memory per recipient ({:.1} of them the index); {faults} major faults",
            wall.as_secs_f64(),
            each(micros(cpu)),
            each(anonymous as f64),
            each(index as f64),
        );
    }
}
