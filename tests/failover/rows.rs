//! The rows: the hosts of a domain, and what the mail log says of a message to it.

use crate::script::{Act, Script, always, at_most, each, first, good, once};

/// One message to a domain of its own.
pub(crate) struct Row {
    /// Names the domain.
    pub(crate) name: &'static str,
    /// One per priority; `None`: nobody listens.
    pub(crate) hosts: Vec<Option<Script>>,
    pub(crate) sender: &'static str,
    pub(crate) recipients: usize,
    /// What the log says, from `queued for delivery` on.
    pub(crate) log: Vec<String>,
    /// Two connections, or a report, run beside each other.
    pub(crate) unordered: bool,
    /// About the size of the message.
    pub(crate) octets: usize,
    /// Messages that each host took.
    pub(crate) taken: Vec<usize>,
}

const SILENT: &str = "timeout";
const TIMED_OUT: &str = "connection timed out";
const UNEXPECTED: &str = "unexpected SMTP response";
const NETWORK: &str = "network error";

fn row(name: &'static str, hosts: Vec<Option<Script>>, log: Vec<Vec<String>>) -> Row {
    let log: Vec<String> = log.concat();
    let taken = (0..hosts.len())
        .map(|host| {
            let port = format!(" port H{host}");
            let opened =
                |line: &&String| line.starts_with("New SMTP DCID") && line.ends_with(&port);
            let dcids: Vec<&str> =
                log.iter().filter(opened).filter_map(|line| line.split(' ').nth(3)).collect();
            let done = |line: &&String| {
                let dcid = line.strip_prefix("Message done DCID ");
                dcid.is_some_and(|rest| dcids.contains(&rest.split(' ').next().unwrap_or("")))
            };
            log.iter().filter(done).count()
        })
        .collect();
    Row {
        name,
        hosts,
        sender: "s@back.test",
        recipients: 1,
        log,
        unordered: false,
        octets: 0,
        taken,
    }
}

fn open(dcid: usize, host: usize) -> Vec<String> {
    let line = "interface 127.0.0.1 address 127.0.0.1 port";
    vec![format!("New SMTP DCID D{dcid} {line} H{host}")]
}

fn start(dcid: usize, rids: &str) -> Vec<String> {
    vec![format!("Delivery start DCID D{dcid} MID M to RID [{rids}]")]
}

fn done(dcid: usize, rids: &str) -> Vec<String> {
    vec![
        format!("Message done DCID D{dcid} MID M to RID [{rids}]"),
        format!("MID M RID [{rids}] Response '2.0.0 queued'"),
    ]
}

fn end() -> Vec<String> {
    vec!["Message finished MID M done".into()]
}

/// A new connection on which everything goes well, to the end of the message.
fn delivered(dcid: usize, host: usize) -> Vec<String> {
    [open(dcid, host), start(dcid, "0"), done(dcid, "0"), end()].concat()
}

fn error(dcid: usize, row: &str, host: usize, details: &str, reason: &str) -> Vec<String> {
    let interface = if details == "Connection refused" { "0.0.0.0" } else { "127.0.0.1" };
    vec![format!(
        "Connection Error: DCID D{dcid} domain: {row}.test IP: 127.0.0.1 port: H{host} \
         details: {details} interface: {interface} reason: {reason}"
    )]
}

fn delayed(dcid: usize, rid: usize, why: &str) -> Vec<String> {
    vec![
        format!("Delayed: DCID D{dcid} MID M to RID {rid} - {why}"),
        format!("MID M to RID [{rid}] pending till TIME [default]"),
    ]
}

fn bounced(dcid: usize, rid: usize, why: &str) -> Vec<String> {
    vec![format!("Bounced: DCID D{dcid} MID M to RID {rid} - {why}")]
}

fn reported() -> Vec<String> {
    vec!["MID R was generated for bounce of MID M".into()]
}

/// The first host brings no session, the second takes the message.
fn next_host(name: &'static str, script: Script, details: &str, reason: &str) -> Row {
    let log = vec![open(0, 0), error(0, name, 0, details, reason), delivered(1, 1)];
    row(name, vec![Some(script), Some(good())], log)
}

/// Connect, greeting, EHLO.
pub(crate) fn connections() -> Vec<Row> {
    use Act::{Drop, Hang, Say};
    let gone = "GONE";
    let refused = error(0, "refused", 0, "Connection refused", NETWORK);
    let mut rows = vec![
        row("refused", vec![None, Some(good())], vec![refused, delivered(1, 1)]),
        next_host(
            "greeting4",
            always("GREETING", Say("431-example.com ESMTP\r\n431 Mail system full")),
            "431-'example.com ESMTP\\nMail system full'",
            UNEXPECTED,
        ),
        next_host("greeting5", always("GREETING", Say("554 go away")), "554-'go away'", UNEXPECTED),
        next_host(
            "greeting421",
            always("GREETING", Say("421 4.3.2 closing")),
            "421-'4.3.2 closing'",
            UNEXPECTED,
        ),
        next_host("greetingsilent", always("GREETING", Hang), SILENT, UNEXPECTED),
        next_host("greetingdrop", always("GREETING", Drop), gone, NETWORK),
        next_host("ehlo4", always("EHLO", Say("451 4.3.0 later")), "451-'4.3.0 later'", UNEXPECTED),
        next_host("ehlo421", always("EHLO", Say("421 busy")), "421-'busy'", UNEXPECTED),
        next_host("ehlo501", always("EHLO", Say("501 your name")), "501-'your name'", UNEXPECTED),
        next_host("ehlo554", always("EHLO", Say("554 no")), "554-'no'", UNEXPECTED),
        next_host("ehlosilent", always("EHLO", Hang), SILENT, UNEXPECTED),
        next_host("ehlodrop", always("EHLO", Drop), gone, NETWORK),
        next_host("greetinggarbage", always("GREETING", Say("SSH-2.0-x")), GARBAGE, UNEXPECTED),
        next_host("ehlogarbage", always("EHLO", Say("what?")), GARBAGE, UNEXPECTED),
    ];
    let codes = [("helo500", "500 ?"), ("helo502", "502 ?"), ("helo504", "504 ?")];
    for (name, reply) in codes.into_iter().chain([("helo550", "550 ?")]) {
        let log = vec![delivered(0, 0)];
        rows.push(row(name, vec![Some(always("EHLO", Say(reply))), Some(good())], log));
    }
    rows
}

/// What the log says of bytes that are no reply.
const GARBAGE: &str = "reply without a code";

/// 4yz to MAIL, RCPT, DATA and the final dot: the next host now; none left: later.
pub(crate) fn temporary() -> Vec<Row> {
    let names = [
        ["mailnext", "rcptnext", "datanext", "dotnext"],
        ["mailnext421", "rcptnext421", "datanext421", "dotnext421"],
        ["maillater", "rcptlater", "datalater", "dotlater"],
        ["maillater421", "rcptlater421", "datalater421", "dotlater421"],
    ];
    let mut rows = Vec::new();
    for (i, step) in ["MAIL", "RCPT", "DATA", "."].into_iter().enumerate() {
        let [next, next_421, later, later_421] = names.map(|names| names[i]);
        let busy = Act::Say("450 4.2.1 busy");
        let closing = Act::Say("421 4.3.2 closing");
        let begun = || [open(0, 0), start(0, "0")].concat();
        let closed = |name| error(0, name, 0, "421-'4.3.2 closing'", UNEXPECTED);
        let why = "4.2.1 - Mailbox disabled, not accepting messages ('450', ['4.2.1 busy'])";
        let why_421 = "4.3.2 - Not accepting messages at this time ('421', ['4.3.2 closing'])";
        rows.push(row(
            next,
            vec![Some(always(step, busy.clone())), Some(good())],
            vec![begun(), delivered(1, 1)],
        ));
        rows.push(row(
            next_421,
            vec![Some(always(step, closing.clone())), Some(good())],
            vec![begun(), closed(next_421), delivered(1, 1)],
        ));
        let again = [start(0, "0"), done(0, "0"), end()].concat();
        rows.push(row(
            later,
            vec![Some(once(step, busy))],
            vec![begun(), delayed(0, 0, why), again],
        ));
        rows.push(row(
            later_421,
            vec![Some(once(step, closing))],
            vec![begun(), delayed(0, 0, why_421), closed(later_421), delivered(1, 0)],
        ));
    }
    let why = "4.2.1 - Mailbox disabled, not accepting messages ('450', ['4.2.1 no'])";
    // All hosts refuse, and all are asked again.
    rows.push(row(
        "bothlater",
        vec![
            Some(once("MAIL", Act::Say("450 4.2.1 no"))),
            Some(once("RCPT", Act::Say("450 4.2.1 no"))),
        ],
        vec![
            [open(0, 0), start(0, "0"), open(1, 1), start(1, "0"), delayed(1, 0, why)].concat(),
            [start(0, "0"), done(0, "0"), end()].concat(),
        ],
    ));
    rows
}

/// 5yz of mail or recipient bounces at once; 5yz that speaks of the dialogue is asked once more.
pub(crate) fn permanent() -> Vec<Row> {
    let mut rows = Vec::new();
    let begun = |dcid, host| [open(dcid, host), start(dcid, "0")].concat();
    let names = ["mail5", "rcpt5", "data5", "dot5"];
    let twice = ["mail500", "rcpt501", "data502", "dot555"];
    let heals = ["mailheals", "rcptheals", "dataheals", "dotheals"];
    let replies = ["500 ?", "501 ?", "502 ?", "555 ?"];
    for (i, step) in ["MAIL", "RCPT", "DATA", "."].into_iter().enumerate() {
        let no = Act::Say("550 5.7.1 no");
        let why = "5.7.1 - Delivery not authorized, message refused ('550', ['5.7.1 no'])";
        let log = vec![begun(0, 0), bounced(0, 0, why), reported(), end()];
        rows.push(row(names[i], vec![Some(always(step, no)), Some(good())], log));
        let (code, status) = [
            ("500", "5.5.1 - Invalid command"),
            ("501", "5.5.4 - Invalid command arguments"),
            ("502", "5.5.1 - Invalid command"),
            ("555", "5.5.4 - Invalid command arguments"),
        ][i];
        let why = format!("{status} ('{code}', ['?'])");
        let log = vec![begun(0, 0), begun(1, 0), bounced(1, 0, &why), reported(), end()];
        let never = always(step, Act::Say(replies[i]));
        rows.push(row(twice[i], vec![Some(never), Some(good())], log));
        let heals_now = once(step, Act::Say(replies[i]));
        let log = vec![begun(0, 0), delivered(1, 0)];
        rows.push(row(heals[i], vec![Some(heals_now), Some(good())], log));
    }
    let why = "5.1.1 - Bad destination email address ('550', ['5.1.1 who?'])";
    let log = vec![begun(0, 0), bounced(0, 0, why), end()];
    let unknown = always("RCPT", Act::Say("550 5.1.1 who?"));
    let mut null = row("nullsender", vec![Some(unknown)], log);
    null.sender = "";
    rows.push(null);
    for (name, reply, text) in
        [("auth530", "530 5.7.0 auth", "530"), ("auth535", "535 5.7.8 auth", "535")]
    {
        let status = if text == "530" { "4.7.0" } else { "4.7.8" };
        let why = format!("{status} - Other security problem ('{text}', ['{}'])", &reply[4..]);
        let again = [start(1, "0"), done(1, "0"), end()].concat();
        let log = vec![begun(0, 0), begun(1, 0), delayed(1, 0, &why), again];
        rows.push(row(name, vec![Some(first(2, "MAIL", Act::Say(reply)))], log));
    }
    rows
}

/// Drop, silence and garbage: before the final dot the next host now, behind it `uncertain`.
pub(crate) fn broken() -> Vec<Row> {
    let names = [
        ["maildrop", "rcptdrop", "datadrop", "bodydrop"],
        ["mailsilent", "rcptsilent", "datasilent", "bodysilent"],
        ["mailgarbage", "rcptgarbage", "datagarbage", "bodygarbage"],
    ];
    let mut rows = Vec::new();
    for (how, names) in [Act::Drop, Act::Hang, Act::Say("what?")].into_iter().zip(names) {
        for (step, name) in ["MAIL", "RCPT", "DATA", "BODY"].into_iter().zip(names) {
            let (details, reason) = signs(&how);
            let broke = error(0, name, 0, details, reason);
            let log = vec![open(0, 0), start(0, "0"), broke, delivered(1, 1)];
            let mut row = row(name, vec![Some(always(step, how.clone())), Some(good())], log);
            // A small body leaves together with its dot.
            row.octets = if step == "BODY" { 20 << 20 } else { 0 };
            rows.push(row);
        }
    }
    rows.extend(lost("dotdrop", Act::Drop));
    rows.extend(lost("dotsilent", Act::Hang));
    rows.extend(lost("dotgarbage", Act::Say("what?")));
    rows
}

fn signs(how: &Act) -> (&'static str, &'static str) {
    match how {
        Act::Drop => ("GONE", NETWORK),
        Act::Hang => (SILENT, TIMED_OUT),
        Act::Say(_) | Act::Good => (GARBAGE, UNEXPECTED),
    }
}

fn possible(dcid: usize) -> Vec<String> {
    vec![format!("Possible Delivery: DCID D{dcid} MID M to RID [0]")]
}

/// The reply to the final dot is lost: retried later, not at once on the next host.
fn lost(name: &'static str, how: Act) -> Vec<Row> {
    let (details, reason) = signs(&how);
    let why = match how {
        Act::Drop => "4.4.0 - Other network problem ('000', ['GONE'])".to_owned(),
        Act::Hang => "4.4.1 - No answer from host ('000', ['timeout'])".to_owned(),
        Act::Say(_) | Act::Good => format!("4.5.0 - Other protocol problem ('000', ['{GARBAGE}'])"),
    };
    let begun = [open(0, 0), start(0, "0"), possible(0), delayed(0, 0, &why)].concat();
    let broke = error(0, name, 0, details, reason);
    let log = vec![begun, broke, delivered(1, 1)];
    vec![row(name, vec![Some(once(".", how)), Some(good())], log)]
}

/// As `broken` behind the final dot, with `possible_delivery = "delivered"`.
pub(crate) fn possibly_delivered() -> Vec<Row> {
    let names = ["dotdrop", "dotsilent", "dotgarbage"];
    let hows = [Act::Drop, Act::Hang, Act::Say("what?")];
    let row = |(name, how): (&'static str, Act)| {
        let (details, reason) = signs(&how);
        let counted = vec!["Message done DCID D0 MID M to RID [0]".to_owned()];
        let broke = error(0, name, 0, details, reason);
        let log = vec![open(0, 0), start(0, "0"), possible(0), counted, end(), broke];
        let mut row = row(name, vec![Some(once(".", how)), Some(good())], log);
        row.taken = vec![0, 0];
        row
    };
    names.into_iter().zip(hows).map(row).collect()
}

/// Several recipients.
pub(crate) fn recipients() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, reply) in [("too452", "452 4.5.3 too many"), ("too552", "552 5.5.3 too many")] {
        let taken = [start(0, "0, 1, 2"), done(0, "0, 1")].concat();
        let log = vec![open(0, 0), taken, start(0, "2"), done(0, "2"), end()];
        let mut few = row(name, vec![Some(at_most(2, reply)), Some(good())], log);
        few.recipients = 3;
        rows.push(few);
    }
    let why = "5.1.1 - Bad destination email address ('550', ['5.1.1 who?'])";
    let log = vec![
        [open(0, 0), start(0, "0, 1, 2"), done(0, "0"), bounced(0, 2, why), reported()].concat(),
        [open(1, 1), start(1, "1"), done(1, "1"), end()].concat(),
    ];
    let replies = &[("<b@", "450 4.2.1 busy"), ("<c@", "550 5.1.1 who?")];
    let mut mixed = row("mixed", vec![Some(each(replies)), Some(good())], log);
    (mixed.recipients, mixed.unordered) = (3, true);
    rows.push(mixed);
    rows
}
