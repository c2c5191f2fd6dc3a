//! Reports, read back with a parser of their own.

use proptest::prelude::*;

use super::*;
use crate::mail::{BodyKind, Enhanced, Notify, Reply, Rid};

struct Case {
    envelope: Envelope,
    profile: BounceProfile,
    original: Vec<u8>,
    octets: Option<u64>,
    failures: Vec<(Failure, Option<Failure>)>,
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text.as_bytes()).unwrap()
}

fn failure(code: u16, text: &[u8]) -> Failure {
    let enhanced = Enhanced::parse_prefix(text);
    Failure::from_reply(Reply { code, enhanced, lines: [text].iter().collect() })
}

impl Case {
    fn new(recipients: &[&str]) -> Self {
        let recipients: Vec<_> = recipients
            .iter()
            .zip(0..)
            .map(|(address, rid)| Recipient {
                rid: Rid(rid),
                address: mailbox(address),
                notify: Notify::default(),
                orcpt: None,
            })
            .collect();
        let failures =
            recipients.iter().map(|_| (failure(550, b"5.1.1 no such user"), None)).collect();
        Self {
            envelope: Envelope {
                sender: Some(mailbox("joe@sender.example")),
                body: BodyKind::SevenBit,
                smtputf8: false,
                ret: None,
                envid: None,
                recipients,
            },
            profile: BounceProfile::default(),
            original: b"Subject: x\r\nFrom: joe@sender.example\r\n\r\nHello\r\n.\r\n".to_vec(),
            octets: None,
            failures,
        }
    }

    fn build(&self) -> Option<Report> {
        let failed: Vec<_> = self
            .envelope
            .recipients
            .iter()
            .zip(&self.failures)
            .map(|(recipient, (failure, last))| Failed {
                recipient,
                failure,
                last: last.as_ref(),
                remote: Some("mx.remote.example"),
            })
            .collect();
        build(&Input {
            hostname: "out.example.net",
            mid: Mid(515),
            original_mid: Mid(511),
            date: "Sun, 22 Nov 2026 18:00:00 +0000",
            arrival_date: "Sat, 21 Nov 2026 18:00:00 +0000",
            envelope: &self.envelope,
            profile: &self.profile,
            original: &self.original,
            original_octets: self.octets.unwrap_or(self.original.len() as u64),
            failed: &failed,
        })
    }

    fn parts(&self) -> Parsed {
        Parsed::of(&self.build().expect("a report"))
    }
}

#[derive(Debug)]
struct Parsed {
    head: Vec<(String, String)>,
    /// Header and body of each part.
    parts: Vec<(Vec<(String, String)>, String)>,
}

impl Parsed {
    fn of(report: &Report) -> Self {
        let text = std::str::from_utf8(&report.bytes).unwrap();
        assert!(text.ends_with("\r\n"));
        for line in text.split("\r\n") {
            assert!(line.len() <= 998 && !line.contains(['\r', '\n', '\0']), "{line:?}");
        }
        assert!(report.facts.eight_bit || text.is_ascii());
        assert_eq!(report.facts.leading_dot, text.contains("\r\n."));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let head = fields(head);
        let kind = value(&head, "Content-Type");
        let (_, boundary) = kind.split_once("boundary=\"").unwrap();
        let boundary = boundary.trim_end_matches('"');
        let (body, end) = body.split_once(&format!("\r\n--{boundary}--")).unwrap();
        assert_eq!(end, "\r\n");
        let parts = body
            .split(&format!("\r\n--{boundary}\r\n"))
            .skip(1)
            .map(|part| {
                let (head, body) = part.split_once("\r\n\r\n").unwrap();
                (fields(head), body.to_owned())
            })
            .collect();
        Self { head, parts }
    }

    fn recipients(&self) -> Vec<Vec<(String, String)>> {
        self.parts[1].1.trim_end().split("\r\n\r\n").skip(1).map(fields).collect()
    }
}

fn fields(header: &str) -> Vec<(String, String)> {
    let unfolded = header.replace("\r\n ", " ").replace("\r\n\t", " ");
    let split = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no field: {line:?}"));
        (name.to_owned(), value.to_owned())
    };
    unfolded.split("\r\n").filter(|line| !line.is_empty()).map(split).collect()
}

fn value(fields: &[(String, String)], name: &str) -> String {
    let mut found = fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.clone());
    let value = found.next().unwrap_or_else(|| panic!("no {name} in {fields:?}"));
    assert_eq!(found.next(), None, "{name} twice");
    value
}

#[test]
fn a_plain_report_says_everything_once() {
    let mut case = Case::new(&["a@b.example", "c@b.example"]);
    case.envelope.envid = Some("id+2B1+3D".into());
    case.envelope.recipients[0].orcpt = Some("rfc822;Alias+2Ba@b.example".into());
    let parsed = case.parts();
    assert_eq!(value(&parsed.head, "To"), "<joe@sender.example>");
    assert_eq!(value(&parsed.head, "Auto-Submitted"), "auto-replied");
    assert_eq!(value(&parsed.head, "MIME-Version"), "1.0");
    assert_eq!(value(&parsed.head, "Message-ID"), "<515.511.report@out.example.net>");
    assert_eq!(value(&parsed.head, "Date"), "Sun, 22 Nov 2026 18:00:00 +0000");
    assert!(value(&parsed.head, "Content-Type").contains("report-type=delivery-status"));
    let kinds: Vec<_> = parsed.parts.iter().map(|(head, _)| value(head, "Content-Type")).collect();
    let expected = ["text/plain; charset=us-ascii", "message/delivery-status", "message/rfc822"];
    assert_eq!(kinds, expected);
    let message = fields(parsed.parts[1].1.split("\r\n\r\n").next().unwrap());
    assert_eq!(value(&message, "Reporting-MTA"), "dns; out.example.net");
    assert_eq!(value(&message, "Original-Envelope-Id"), "id+1=");
    assert_eq!(value(&message, "Arrival-Date"), "Sat, 21 Nov 2026 18:00:00 +0000");
    let recipients = parsed.recipients();
    assert_eq!(recipients.len(), 2);
    assert_eq!(value(&recipients[0], "Original-Recipient"), "rfc822; Alias+a@b.example");
    assert!(recipients[1].iter().all(|(name, _)| name != "Original-Recipient"));
    assert_eq!(value(&recipients[1], "Final-Recipient"), "rfc822; c@b.example");
    assert_eq!(value(&recipients[1], "Action"), "failed");
    assert_eq!(value(&recipients[1], "Status"), "5.1.1");
    assert_eq!(value(&recipients[1], "Remote-MTA"), "dns; mx.remote.example");
    assert_eq!(value(&recipients[1], "Diagnostic-Code"), "smtp; 550 5.1.1 no such user");
    assert_eq!(parsed.parts[2].1.as_bytes(), case.original);
}

#[test]
fn who_is_not_told() {
    let mut case = Case::new(&["a@b.example", "c@b.example", "d@b.example"]);
    case.envelope.recipients[0].notify = Notify(Notify::NEVER);
    case.envelope.recipients[1].notify = Notify(Notify::SUCCESS | Notify::DELAY);
    let parsed = case.parts();
    assert_eq!(parsed.recipients().len(), 1);
    assert!(!format!("{:?}", parsed.parts).contains("a@b.example"));
    case.envelope.recipients[2].notify = Notify(Notify::NEVER);
    assert_eq!(case.build(), None);
    let mut case = Case::new(&["a@b.example"]);
    case.profile.send_bounces = false;
    assert_eq!(case.build(), None);
    let mut case = Case::new(&["a@b.example"]);
    case.profile.bounce_address = Some(mailbox("bounces@sender.example"));
    assert_eq!(case.build().unwrap().to, mailbox("bounces@sender.example"));
    case.envelope.sender = None;
    assert_eq!(case.build(), None, "a bounce never bounces");
}

#[test]
fn an_expired_recipient_shows_its_last_failure() {
    let mut case = Case::new(&["a@b.example", "c@b.example"]);
    let expired = crate::schedule::retry::expiry_failure();
    case.failures[0] = (expired.clone(), Some(failure(452, b"4.3.1 Mail system full")));
    case.failures[1] = (expired, None);
    let recipients = case.parts().recipients();
    assert_eq!(value(&recipients[0], "Status"), "5.4.7");
    assert_eq!(value(&recipients[0], "Diagnostic-Code"), "smtp; 452 4.3.1 Mail system full");
    assert_eq!(value(&recipients[1], "Diagnostic-Code"), "X-Ringpost; timeout");
}

#[test]
fn a_peer_cannot_write_into_the_report() {
    let mut case = Case::new(&["a@b.example"]);
    let evil = "no\r\nBcc: x@y\r\n\r\n--=_515.511.0_=\r\n\x1b[31m \u{202e} caf\u{e9} \u{9b}";
    case.failures[0].0 = failure(550, &[evil.as_bytes(), b"\xff", &[b'a'; 5_000]].concat());
    case.envelope.envid = Some("x+0D+0ABcc:+20y+0D+0A+0D+0Az".into());
    case.envelope.recipients[0].orcpt = Some("rfc822;x+0D+0AAction:+20delivered".into());
    let parsed = case.parts();
    assert_eq!(parsed.parts.len(), 3);
    let recipients = parsed.recipients();
    assert_eq!(recipients.len(), 1);
    assert_eq!(value(&recipients[0], "Action"), "failed");
    let diagnostic = value(&recipients[0], "Diagnostic-Code");
    // A line feed parts the lines of a reply, which stand here on one.
    assert!(diagnostic.starts_with("smtp; 550 no\\r Bcc: x@y\\r "), "{diagnostic}");
    assert!(diagnostic.contains("\\x1b[31m \\u{202e} caf\\u{e9} \\x9b\\xff"), "{diagnostic}");
}

#[test]
fn blanks_and_long_words_make_no_long_line() {
    let mut case = Case::new(&["a@b.example"]);
    case.failures[0].0 = failure(550, &[[b' '; 3_000], [b'x'; 3_000]].concat());
    case.envelope.envid = Some("+20".repeat(2_000).into());
    case.envelope.recipients[0].orcpt = Some(format!("rfc822;{}", "+20x".repeat(900)).into());
    let recipients = case.parts().recipients();
    case.failures[0].0 = failure(550, &[b'x'; 3_000]);
    let words = value(&case.parts().recipients()[0], "Diagnostic-Code");
    assert_eq!(words.matches('x').count(), 2_000 - "550 ".len());
    assert_eq!(value(&recipients[0], "Diagnostic-Code"), "smtp; 550");
}

#[test]
fn the_original_is_returned_as_far_as_it_is_plain_and_small() {
    let kind_of = |case: &Case| {
        let parsed = case.parts();
        let (head, body) = &parsed.parts[2];
        (value(head, "Content-Type"), value(head, "Content-Transfer-Encoding"), body.clone())
    };
    let headers = |body: &str| ("text/rfc822-headers".into(), "7bit".into(), body.to_owned());
    let small = "Subject: x\r\nFrom: joe@sender.example\r\n";
    let mut case = Case::new(&["a@b.example"]);
    case.envelope.ret = Some(Ret::Headers);
    assert_eq!(kind_of(&case), headers(small));
    case.envelope.ret = Some(Ret::Full);
    assert_eq!(kind_of(&case).0, "message/rfc822");
    case.octets = Some(1 << 30);
    assert_eq!(kind_of(&case), headers(small));
    case.octets = None;
    case.original.extend(b"8-bit \xe9\r\n");
    assert_eq!(kind_of(&case), headers(small));
    case.profile.report_original_octets_max = 20;
    assert_eq!(kind_of(&case), headers("Subject: x\r\n"));
    case.profile.report_original_octets_max = 3;
    assert_eq!(kind_of(&case), headers(""));
    case.profile.report_original_octets_max = 10_000;
    case.original = [b"Subject: ", &[b'a'; 2_000][..], b"\r\n\r\n"].concat();
    assert_eq!(kind_of(&case).1, "quoted-printable");
    case.original = "Subject: caf\u{e9} = x \r\n\r\n".as_bytes().to_vec();
    let (kind, encoding, body) = kind_of(&case);
    assert_eq!((&*kind, &*encoding), ("message/global-headers", "quoted-printable"));
    assert_eq!(body, "Subject: caf=C3=A9 =3D x=20\r\n\r\n");
    case.original = b"\r\nonly a body".to_vec();
    case.envelope.ret = Some(Ret::Headers);
    assert_eq!(kind_of(&case), headers(""));
}

#[test]
fn the_boundary_is_not_in_the_original() {
    let mut case = Case::new(&["a@b.example"]);
    case.original = b"Subject: x\r\n\r\n--=_515.511.0_=\r\n--=_515.511.1_=--\r\n".to_vec();
    let parsed = case.parts();
    assert_eq!(parsed.parts.len(), 3);
    assert_eq!(parsed.parts[2].1.as_bytes(), case.original);
}

#[test]
fn addresses_beyond_ascii() {
    let mut case = Case::new(&["j\u{f6}rg@b\u{fc}cher.example"]);
    let report = case.build().unwrap();
    assert!(!report.facts.utf8_header);
    let recipients = Parsed::of(&report).recipients();
    let expected = "utf-8; j\\x{F6}rg@b\\x{FC}cher.example";
    assert_eq!(value(&recipients[0], "Final-Recipient"), expected);
    case.envelope.recipients[0].address = mailbox("\"two  spaces\"@b.example");
    let recipients = case.parts().recipients();
    assert_eq!(value(&recipients[0], "Final-Recipient"), "rfc822; \"two  spaces\"@b.example");
    case.envelope.sender = Some(mailbox("\u{e9}@sender.example"));
    let report = case.build().unwrap();
    assert!(report.facts.utf8_header && report.facts.eight_bit);
}

#[test]
fn many_recipients_stay_bounded() {
    let addresses: Vec<_> = (0..3_000).map(|n| format!("user{n}@b.example")).collect();
    let mut case = Case::new(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
    for (failure, _) in &mut case.failures {
        *failure = super::tests::failure(550, &[b'x'; 4_000]);
    }
    let report = case.build().unwrap();
    assert!(report.bytes.len() < 2 * DIAGNOSTICS_OCTETS_MAX, "{}", report.bytes.len());
    let parsed = Parsed::of(&report);
    assert_eq!(parsed.recipients().len(), 3_000);
    assert!(parsed.parts[0].1.contains("and 2900 more"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_octets_give_a_report_that_parses(
        reply in proptest::collection::vec(any::<u8>(), 0..300),
        original in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b'.')], 0..400),
        envid in "[!-~]{0,60}",
        orcpt in "[!-~]{0,60}",
    ) {
        let mut case = Case::new(&["a@b.example"]);
        case.failures[0].0 = failure(554, &reply);
        case.original = original;
        case.envelope.envid = Some(envid.into());
        case.envelope.recipients[0].orcpt = Some(orcpt.into());
        let parsed = case.parts();
        prop_assert_eq!(parsed.parts.len(), 3);
        prop_assert_eq!(parsed.recipients().len(), 1);
    }
}
