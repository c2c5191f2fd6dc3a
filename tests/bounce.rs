//! Hard bounces: who is told, what the report says, and what is counted.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use common::peer::Message;
use common::{Engine, Peer, Setup};

/// A host that refuses every recipient for good.
fn refusing() -> Peer {
    Peer::start(|peer, _| {
        if peer.hello() {
            let refuse = |line: &str| {
                let is_rcpt = line.starts_with("RCPT");
                is_rcpt.then(|| "550-5.1.1 no such user\r\n550 5.1.1 ask somebody else".to_owned())
            };
            peer.serve_with(refuse);
        }
    })
}

struct Scene {
    engine: Engine,
    refusing: Peer,
    /// The host of the senders' domain.
    home: Peer,
}

impl Scene {
    fn new(io: &str, tables: &str) -> Self {
        Self::with_home(io, tables, Peer::good())
    }

    fn with_home(io: &str, tables: &str, home: Peer) -> Self {
        let refusing = refusing();
        let routes = format!("home.test {}\nALL {}\n", home.host(0), refusing.host(0));
        let setup = Setup::new(io, routes);
        let engine = Engine::start(&if tables.is_empty() { setup } else { setup.tables(tables) });
        Self { engine, refusing, home }
    }

    /// Sends by hand, with any parameters; `mail` and `rcpts` are whole commands.
    fn send(&self, mail: &str, rcpts: &[&str], data: &[u8]) {
        let mut client = self.engine.client();
        for command in [mail].iter().chain(rcpts) {
            let reply = client.command(command);
            assert!(reply.starts_with("250"), "{command}: {reply}");
        }
        let reply = client.data(data);
        assert!(reply.starts_with("250"), "{reply}");
        client.quit();
    }

    /// Waits until `count` recipients have bounced and nothing is queued.
    fn settled(&self, count: f64) -> Vec<Message> {
        let bounced = "ringpost_recipients_total{outcome=\"bounced\"}";
        self.engine
            .wait(&format!("{count} bounced recipients"), || self.engine.metric(bounced) >= count);
        self.engine.wait_empty();
        self.engine.assert_conservation();
        assert_eq!(self.engine.metric(bounced), count);
        self.home.messages()
    }

    fn generated(&self) -> f64 {
        self.engine.metric("ringpost_recipients_accepted_total{source=\"generated\"}")
    }
}

/// The parts of a multipart message: header and body of each.
fn parts(report: &str) -> Vec<(String, String)> {
    let boundary = report.split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
    let (_, body) = report.split_once("\r\n\r\n").unwrap();
    let (body, _end) = body.split_once(&format!("--{boundary}--")).expect("the last boundary");
    let delimiter = format!("--{boundary}\r\n");
    let split = |part: &str| {
        let (head, body) = part.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    };
    body.split(&delimiter).skip(1).map(split).collect()
}

/// The value of a field in a group of fields, unfolded.
fn field(group: &str, name: &str) -> Option<String> {
    let unfolded = group.replace("\r\n ", " ").replace("\r\n\t", " ");
    let found = unfolded.lines().find(|line| {
        line.split_once(':').is_some_and(|(known, _)| known.eq_ignore_ascii_case(name))
    })?;
    Some(found.split_once(':').unwrap().1.trim().to_owned())
}

each_io!(the_sender_gets_a_report_in_three_parts);
fn the_sender_gets_a_report_in_three_parts(io: &str) {
    let scene = Scene::new(io, "");
    let original = b"From: <s@home.test>\r\nSubject: original\r\n\r\nbody of it\r\n";
    scene.send(
        "MAIL FROM:<s@home.test> ENVID=QQ314159",
        &["RCPT TO:<one@away.test> ORCPT=rfc822;first+40away.test", "RCPT TO:<two@away.test>"],
        original,
    );
    let reports = scene.settled(2.0);
    assert_eq!(reports.len(), 1, "one report for those that failed together");
    let report = &reports[0];
    assert!(report.mail.starts_with("MAIL FROM:<>"), "{}", report.mail);
    assert!(report.recipients[0].starts_with("RCPT TO:<s@home.test>"), "{report:?}");
    let text = String::from_utf8(report.data.clone()).unwrap();
    let (head, _) = text.split_once("\r\n\r\n").unwrap();
    let kind = field(head, "Content-Type").unwrap();
    assert!(kind.starts_with("multipart/report; report-type=delivery-status;"), "{kind}");
    assert_eq!(field(head, "To").unwrap(), "<s@home.test>");
    assert_eq!(field(head, "Auto-Submitted").unwrap(), "auto-replied");

    let parts = parts(&text);
    assert_eq!(parts.len(), 3, "{text}");
    assert!(field(&parts[0].0, "Content-Type").unwrap().starts_with("text/plain"));
    assert!(parts[0].1.contains("<one@away.test>") && parts[0].1.contains("no such user"));
    assert_eq!(field(&parts[1].0, "Content-Type").unwrap(), "message/delivery-status");
    let groups: Vec<&str> = parts[1].1.trim_end().split("\r\n\r\n").collect();
    assert_eq!(groups.len(), 3, "one for the message, one for each recipient: {groups:?}");
    assert_eq!(field(groups[0], "Reporting-MTA").unwrap(), "dns; out.test");
    assert_eq!(field(groups[0], "Original-Envelope-Id").unwrap(), "QQ314159");
    assert!(field(groups[0], "Arrival-Date").is_some());
    let original_recipient = field(groups[1], "Original-Recipient").unwrap();
    assert_eq!(original_recipient, "rfc822; first@away.test");
    for (group, address) in groups[1..].iter().zip(["one@away.test", "two@away.test"]) {
        assert_eq!(field(group, "Final-Recipient").unwrap(), format!("rfc822; {address}"));
        assert_eq!(field(group, "Action").unwrap(), "failed");
        assert_eq!(field(group, "Status").unwrap(), "5.1.1");
        assert_eq!(field(group, "Remote-MTA").unwrap(), "dns; 127.0.0.1");
        let said = field(group, "Diagnostic-Code").unwrap();
        assert_eq!(said, "smtp; 550 5.1.1 no such user 5.1.1 ask somebody else");
    }
    assert_eq!(field(&parts[2].0, "Content-Type").unwrap(), "message/rfc822");
    assert!(parts[2].1.as_bytes().ends_with(&[original.as_slice(), b"\r\n"].concat()), "{text}");

    scene.engine.wait_log_count("Message finished MID", 2);
    let lines = scene.engine.log_lines();
    let at = |text: &str| {
        let found = lines.iter().position(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("no line with {text:?}: {lines:#?}"))
    };
    let made = at(" was generated for bounce of MID ");
    let mid = lines[made].split(' ').nth(1).unwrap();
    assert!(at("Bounced: DCID") < made);
    assert!(made < at(&format!("Start MID {mid} ICID 0")));
    assert!(at(&format!("Start MID {mid} ICID 0")) < at(&format!("MID {mid} ICID 0 From: <>")));
    assert_eq!(lines.iter().filter(|line| line.starts_with("Bounced: DCID")).count(), 2);
    assert_eq!(scene.generated(), 1.0);
}

each_io!(nobody_is_told_of_what_the_null_sender_sent);
fn nobody_is_told_of_what_the_null_sender_sent(io: &str) {
    let scene = Scene::new(io, "");
    scene.send("MAIL FROM:<>", &["RCPT TO:<x@away.test>"], b"Subject: x\r\n\r\nx\r\n");
    assert_eq!(scene.settled(1.0).len(), 0);
    assert_eq!(scene.generated(), 0.0);
    scene.engine.wait_log("Message finished MID");
    assert!(!scene.engine.log().contains("generated for bounce"), "{}", scene.engine.log());
}

each_io!(notify_without_failure_is_obeyed_for_each_recipient);
fn notify_without_failure_is_obeyed_for_each_recipient(io: &str) {
    let scene = Scene::new(io, "");
    scene.send(
        "MAIL FROM:<s@home.test>",
        &["RCPT TO:<quiet@away.test> NOTIFY=NEVER", "RCPT TO:<told@away.test> NOTIFY=FAILURE"],
        b"Subject: x\r\n\r\nx\r\n",
    );
    scene.send(
        "MAIL FROM:<s@home.test>",
        &["RCPT TO:<quiet@away.test> NOTIFY=NEVER"],
        b"Subject: x\r\n\r\nx\r\n",
    );
    let reports = scene.settled(3.0);
    assert_eq!(reports.len(), 1);
    let text = String::from_utf8(reports[0].data.clone()).unwrap();
    assert!(text.contains("told@away.test") && !text.contains("quiet@away.test"), "{text}");
}

each_io!(a_large_original_comes_back_as_its_header);
fn a_large_original_comes_back_as_its_header(io: &str) {
    let profile = "[bounce_profile.default]\nreport_original_max = \"2KiB\"\n";
    let scene = Scene::new(io, profile);
    let mut original = b"From: <s@home.test>\r\nSubject: large\r\n\r\n".to_vec();
    original.extend(b"this line is not for the report\r\n".repeat(100));
    scene.send("MAIL FROM:<s@home.test>", &["RCPT TO:<x@away.test>"], &original);
    let reports = scene.settled(1.0);
    let text = String::from_utf8(reports[0].data.clone()).unwrap();
    let parts = parts(&text);
    assert_eq!(field(&parts[2].0, "Content-Type").unwrap(), "text/rfc822-headers");
    assert!(parts[2].1.contains("Subject: large"), "{text}");
    assert!(!text.contains("this line is not for the report"), "{text}");
}

each_io!(ret_hdrs_asks_for_the_header_alone);
fn ret_hdrs_asks_for_the_header_alone(io: &str) {
    let scene = Scene::new(io, "");
    let original = b"Subject: small\r\n\r\nnot wanted back\r\n";
    scene.send("MAIL FROM:<s@home.test> RET=HDRS", &["RCPT TO:<x@away.test>"], original);
    let text = String::from_utf8(scene.settled(1.0)[0].data.clone()).unwrap();
    assert!(text.contains("Subject: small") && !text.contains("not wanted back"), "{text}");
}

each_io!(a_report_that_bounces_is_not_reported);
fn a_report_that_bounces_is_not_reported(io: &str) {
    let scene = Scene::with_home(io, "", refusing());
    scene.send("MAIL FROM:<s@home.test>", &["RCPT TO:<x@away.test>"], b"Subject: x\r\n\r\nx\r\n");
    // The message's recipient, and the report's.
    assert_eq!(scene.settled(2.0).len(), 0);
    assert_eq!(scene.generated(), 1.0);
    scene.engine.wait_log_count("Message finished MID", 2);
    let log = scene.engine.log();
    assert_eq!(log.matches("generated for bounce").count(), 1, "{log}");
    assert_eq!(log.matches("Message finished MID").count(), 2, "{log}");
    assert_eq!(scene.refusing.messages().len(), 0);
}

each_io!(send_bounces_off_and_bounce_address_are_obeyed);
fn send_bounces_off_and_bounce_address_are_obeyed(io: &str) {
    let scene = Scene::new(io, "[bounce_profile.default]\nsend_bounces = false\n");
    scene.send("MAIL FROM:<s@home.test>", &["RCPT TO:<x@away.test>"], b"Subject: x\r\n\r\nx\r\n");
    assert_eq!(scene.settled(1.0).len(), 0);
    let profile = "[bounce_profile.default]\nbounce_address = \"desk@home.test\"\n";
    let scene = Scene::new(io, profile);
    scene.send("MAIL FROM:<s@else.test>", &["RCPT TO:<x@away.test>"], b"Subject: x\r\n\r\nx\r\n");
    let reports = scene.settled(1.0);
    assert!(reports[0].recipients[0].contains("desk@home.test"), "{reports:?}");
}

each_io!(the_others_of_a_message_are_delivered);
fn the_others_of_a_message_are_delivered(io: &str) {
    let scene = Scene::new(io, "");
    scene.send(
        "MAIL FROM:<s@home.test>",
        &["RCPT TO:<x@away.test>", "RCPT TO:<friend@home.test>"],
        b"Subject: both\r\n\r\nx\r\n",
    );
    let arrived = scene.settled(1.0);
    assert_eq!(arrived.len(), 2, "the message to the friend, and the report");
    assert!(arrived.iter().any(|m| m.recipients[0].contains("friend@home.test")));
}

each_io!(a_report_outlives_a_crash);
/// A bounce is settled only when its report is safe: a crash between loses neither.
fn a_report_outlives_a_crash(io: &str) {
    let home = Peer::start(|peer, number| {
        // Down at first: the report has to wait.
        if number > 0 {
            peer.serve();
        }
    });
    let mut scene = Scene::with_home(io, "", home);
    scene.send("MAIL FROM:<s@home.test>", &["RCPT TO:<x@away.test>"], b"Subject: x\r\n\r\nx\r\n");
    scene.engine.wait_log("generated for bounce");
    scene.engine.wait_log_count("Message finished MID", 1);
    scene.engine.kill();
    scene.engine.launch();
    scene.engine.wait_empty();
    assert_eq!(scene.home.messages().len(), 1, "{}", scene.engine.log());
}
