//! The three scenes, each with its route, its hosts and its checks.
//!
//! Owns: what happens in a scene and what must be true after it. Never: the engine's start and
//! end (`stage`).

use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use super::log::Choice;
use super::stage::{Cast, Playbill, Stage};
use super::{DemoError, SceneReport};
use crate::lab::sink::{Answered, Behaviour, SinkHandle};
use crate::telemetry::{Latencies, Totals};

/// What a scene may take before it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Shards publish their latencies once a second.
const PUBLISHED: Duration = Duration::from_millis(1_300);

/// Messages of the scenes in which not their number is to be seen.
const FEW: u64 = 20;

/// The greeting of a host without room, in two lines.
const FULL: &str = "431-example.com ESMTP\n431 Mail system full";

const FULL_LOGGED: &str = "details: 431-'example.com ESMTP\\nMail system full'";

/// The routes of all scenes.
pub(super) fn casts() -> [Cast; 3] {
    let well = Behaviour::default;
    let full = || well().reply(Answered::Greeting, FULL);
    let busy = || well().reply(Answered::Mail, "451 4.3.2 System not accepting messages");
    [
        Cast::new("example.com", vec![(10, 0, full()), (20, 10, well())]),
        Cast::new("example.net", vec![(10, 0, well()), (20, 0, well()), (30, 0, well())]),
        Cast::new("example.org", vec![(10, 0, busy()), (20, 0, busy())]),
    ]
}

/// The first host answers, but has no room: the message goes to the second at once.
pub(super) fn first_host_is_full(stage: &mut Stage, _: u64) -> Result<SceneReport, DemoError> {
    let bill = Playbill {
        title: "The first host is full",
        seen: "example.com has two hosts. The first one greets with 431, \"Mail system full\": \
               the message must go to the second at once.",
        choice: Choice {
            first_message: (&[""], 16),
            all: (&["New SMTP DCID", "Connection Error"], 3),
        },
    };
    let span = Span::begin(stage, 0, FEW, &bill);
    let sending = stage.send("full", casts()[0].domain, 1)?;
    stage.wait_sent(sending)?;
    let done = |log: &[&str]| log.iter().any(|line| line.starts_with("Message finished"));
    if !stage.wait(PATIENCE, |stage| done(&stage.log()))? {
        stage.problem("scene 1: the message was not delivered".to_owned());
    }
    let log = the_three_lines(stage);
    stage.note("From now on the first host is known to be down. The next messages go straight on:");
    let sending = stage.send("next", casts()[0].domain, FEW - 1)?;
    stage.wait_sent(sending)?;
    let mut report = span.end(stage, &["greets with 431", "accepts"])?;
    match log {
        Some(log) => report.log = log,
        None => stage.problem(
            "scene 1: the log does not show the first host, its error, and the second host"
                .to_owned(),
        ),
    }
    let of_hosts: Vec<u64> = report.hosts.iter().map(|host| host.messages).collect();
    if of_hosts != [0, FEW] {
        stage.problem(format!("scene 1: the hosts have {of_hosts:?} messages, not [0, {FEW}]"));
    }
    stage.note(&format!("{} of {FEW} messages are with the second host.", of_hosts[1]));
    Ok(report)
}

/// New connection to the first host, its error, new connection to the second, in this order.
fn the_three_lines(stage: &Stage) -> Option<Vec<String>> {
    let [first, second] = stage.sinks() else { return None };
    let to = |sink: &SinkHandle| {
        let address = sink.address();
        format!("address {} port {}", address.ip(), address.port())
    };
    let log = stage.log();
    let mut lines = log.iter();
    let opened = |line: &&&str, dcid: u64, to: &str| {
        line.starts_with(&format!("New SMTP DCID {dcid} ")) && line.ends_with(to)
    };
    let new =
        lines.find(|line| line.starts_with("New SMTP DCID ") && line.ends_with(&to(first)))?;
    let dcid: u64 = new.split(' ').nth(3)?.parse().ok()?;
    let error = lines.find(|line| {
        line.starts_with(&format!("Connection Error: DCID {dcid} domain: example.com "))
            && line.contains(FULL_LOGGED)
            && line.ends_with("reason: unexpected SMTP response")
    })?;
    let next = lines.find(|line| opened(line, dcid + 1, &to(second)))?;
    Some([new, error, next].map(|line| (*line).to_owned()).to_vec())
}

/// Three hosts take turns; one dies with connections open.
pub(super) fn one_of_three_dies(
    stage: &mut Stage,
    messages: u64,
) -> Result<SceneReport, DemoError> {
    const ROUTE: usize = 1;
    let bill = Playbill {
        title: "One of three hosts dies",
        seen: "example.net has three hosts of the same priority, which take turns. The second \
               one dies with connections open: the others take over, and no message is lost.",
        choice: Choice {
            first_message: (&["queued", "Delivery start", "Message done"], 3),
            all: (&["Connection Error", "Possible Delivery"], 3),
        },
    };
    let span = Span::begin(stage, ROUTE, messages, &bill);
    let domain = casts()[ROUTE].domain;
    let (before, after) = (messages / 2, messages - messages / 2);
    let sending = stage.send("alive", domain, before)?;
    let midway =
        |stage: &Stage| stage.accepted() >= before / 2 && stage.sinks()[1].counts().messages > 0;
    stage.wait(PATIENCE, midway)?;
    stage.sinks()[1].die().map_err(|error| DemoError::Io("cannot end a receiver", error))?;
    let at_death = stage.sinks()[1].counts().messages;
    let accepted = stage.accepted();
    stage.note(&format!("After {accepted} messages the second host dies."));
    stage.wait_sent(sending)?;
    let sending = stage.send("dead", domain, after)?;
    stage.wait_sent(sending)?;
    let parts = ["accepts", "dies midway", "accepts"];
    let report = span.end(stage, &parts)?;
    let of_hosts: Vec<u64> = report.hosts.iter().map(|host| host.messages).collect();
    if of_hosts.contains(&0) || of_hosts[1] != at_death {
        stage.problem(format!(
            "scene 2: the hosts have {of_hosts:?} messages, the second one {at_death} at its death"
        ));
    }
    let repeated = match report.repeated {
        0 => "none came twice".to_owned(),
        n => format!("{n} came twice, as the dead host's last replies were lost"),
    };
    stage.note(&format!("{} of {messages} messages arrived; {repeated}.", report.arrived));
    Ok(report)
}

/// All hosts refuse for a while.
pub(super) fn all_refuse(stage: &mut Stage, _: u64) -> Result<SceneReport, DemoError> {
    const ROUTE: usize = 2;
    let words = &["Delivery start", "Delayed", "pending till", "Message done", "finished"];
    let bill = Playbill {
        title: "All hosts refuse for a while",
        seen: "Both hosts of example.org answer 451. Mail waits in the queue and is tried again; \
               when the hosts recover, all of it arrives.",
        choice: Choice { first_message: (words, 9), all: (&[], 0) },
    };
    let span = Span::begin(stage, ROUTE, FEW, &bill);
    let before = stage.totals();
    let sending = stage.send("wait", casts()[ROUTE].domain, FEW)?;
    stage.wait_sent(sending)?;
    let refused = |stage: &Stage| {
        let now = stage.totals();
        now.deferrals - before.deferrals >= FEW && now.pending == FEW
    };
    if !stage.wait(Duration::from_secs(5), refused)? {
        let deferrals = stage.totals().deferrals - before.deferrals;
        stage.problem(format!("scene 3: {deferrals} of {FEW} messages were deferred"));
    }
    stage.pause(Duration::from_millis(400))?;
    stage.sinks().iter().for_each(|sink| sink.set_behaviour(&Behaviour::default()));
    let waiting = stage.totals().pending;
    stage.note(&format!("{waiting} messages wait. Now the hosts accept again."));
    let recovered = Instant::now();
    let empty = stage.wait(PATIENCE, |stage| stage.totals().pending == 0)?;
    let took = recovered.elapsed().as_secs_f64();
    let report = span.end(stage, &["451, then accepts"; 2])?;
    if empty {
        stage.note(&format!("All of them arrived within {took:.1} s of the recovery."));
    }
    Ok(report)
}

/// What is measured over one scene.
struct Span {
    title: &'static str,
    messages: u64,
    totals: Totals,
    latencies: Latencies,
    start: Instant,
}

impl Span {
    fn begin(stage: &mut Stage, route: usize, messages: u64, bill: &Playbill) -> Self {
        stage.begin(route, messages, bill);
        let (totals, latencies) = (stage.totals(), stage.latencies());
        Self { title: bill.title, messages, totals, latencies, start: Instant::now() }
    }

    /// Waits until nothing is queued any more; then all messages must have arrived.
    fn end(self, stage: &mut Stage, parts: &[&'static str]) -> Result<SceneReport, DemoError> {
        let messages = self.messages;
        if !stage.wait(PATIENCE, |stage| stage.totals().pending == 0)? {
            let pending = stage.totals().pending;
            stage.problem(format!("{}: {pending} recipients are still queued", self.title));
        }
        let seconds = self.start.elapsed().as_secs_f64();
        let totals = stage.totals();
        let measured = self.latencies.count() + totals.messages_out - self.totals.messages_out;
        stage.wait(PUBLISHED, |stage| stage.latencies().count() >= measured)?;
        let latencies = stage.latencies().since(&self.latencies);
        let (arrived, repeated) = arrivals(stage.sinks());
        if arrived != messages {
            stage.problem(format!("{}: {arrived} of {messages} messages arrived", self.title));
        }
        let uncertain = totals.uncertain - self.totals.uncertain;
        if repeated > uncertain {
            stage.problem(format!(
                "{}: {repeated} messages came twice, {uncertain} at most may",
                self.title
            ));
        }
        Ok(SceneReport {
            title: self.title,
            messages,
            arrived,
            repeated,
            hosts: stage.hosts(parts),
            failovers: totals.failovers - self.totals.failovers,
            deferrals: totals.deferrals - self.totals.deferrals,
            seconds,
            rate: messages as f64 / seconds,
            p50_us: latencies.percentile_us(50.0),
            p99_us: latencies.percentile_us(99.0),
            p99_9_us: latencies.percentile_us(99.9),
            log: Vec::new(),
        })
    }
}

/// Different messages that the sinks have, and how many came again.
fn arrivals(sinks: &[SinkHandle]) -> (u64, u64) {
    let mut times: HashMap<String, u64> = HashMap::new();
    for (id, received) in sinks.iter().flat_map(SinkHandle::received) {
        *times.entry(id).or_default() += received.times;
    }
    let different = times.len() as u64;
    (different, times.values().sum::<u64>() - different)
}
