//! What a message needs and a host offers: parameters, dots, thousands of recipients.

use super::*;

#[test]
fn parameters_go_only_where_they_are_offered() {
    let transaction = || Transaction {
        body_kind: BodyKind::EightBitMime,
        smtputf8: true,
        ret: Some(Ret::Headers),
        envid: Some("id+2B1".into()),
        recipients: vec![
            Recipient {
                notify: Notify(Notify::SUCCESS | Notify::DELAY),
                orcpt: Some("rfc822;a+2Bb@x".into()),
                ..recipient(0, "\"A b\"@Example.COM")
            },
            Recipient { notify: Notify(Notify::NEVER), ..recipient(1, "b@example.com") },
        ],
        ..mail(0)
    };
    for (offer, expected) in [
        ("SIZE 0", "MAIL FROM:<s@example.org> SIZE=21\r\n"),
        ("size", "MAIL FROM:<s@example.org> SIZE=21\r\n"),
        ("8BITMIME", "MAIL FROM:<s@example.org> BODY=8BITMIME\r\n"),
        ("SMTPUTF8", "MAIL FROM:<s@example.org> SMTPUTF8\r\n"),
        ("DSN", "MAIL FROM:<s@example.org> RET=HDRS ENVID=id+2B1\r\n"),
        ("CHUNKING", "MAIL FROM:<s@example.org>\r\n"),
    ] {
        let mut pair = Pair::ready(&format!("250-host\r\n250 {offer}\r\n"));
        pair.submit(transaction());
        assert_eq!(pair.take_sent(), expected);
    }
    let mut pair = Pair::ready(EVERYTHING);
    pair.submit(transaction());
    assert_eq!(
        pair.take_sent(),
        "MAIL FROM:<s@example.org> SIZE=21 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=id+2B1\r\n\
         RCPT TO:<\"A b\"@Example.COM> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@x\r\n\
         RCPT TO:<b@example.com> NOTIFY=NEVER\r\nDATA\r\n"
    );
    let mut pair = Pair::ready(EVERYTHING);
    pair.submit(Transaction { sender: None, envid: Some("a\r\nQUIT".into()), ..mail(1) });
    assert_eq!(pair.take_sent(), "MAIL FROM:<> SIZE=21\r\nRCPT TO:<r0@example.com>\r\nDATA\r\n");
}

#[test]
fn a_host_that_cannot_take_the_message_sees_nothing_of_it() {
    let eight_bit = MessageFacts { eight_bit: true, ..MessageFacts::default() };
    let utf8 = MessageFacts { utf8_header: true, ..eight_bit };
    let utf8_mail = || Transaction { smtputf8: true, ..mail_with(1, b"x\r\n", utf8) };
    let table = [
        ("SMTPUTF8", mail_with(1, b"x\r\n", eight_bit), "unfit 5.6.3"),
        ("8BITMIME", utf8_mail(), "unfit 5.6.7"),
        ("SIZE 2", mail_with(1, b"x\r\n", MessageFacts::default()), "unfit 5.3.4"),
        ("SIZE 2", mail_with(1, b"x", MessageFacts::default()), "unfit 5.3.4"),
        (
            "8BITMIME",
            Transaction {
                sender: Some(Mailbox::parse("é@x.example".as_bytes()).unwrap()),
                ..mail(1)
            },
            "unfit 5.6.7",
        ),
        (
            "8BITMIME",
            Transaction { recipients: vec![recipient(0, "é@x.example")], ..mail(0) },
            "unfit 5.6.7",
        ),
    ];
    for (offer, transaction, outcome) in table {
        let mut pair = Pair::ready(&format!("250-host\r\n250 {offer}\r\n"));
        pair.submit(transaction);
        assert_eq!(pair.take_sent(), "");
        assert_eq!(pair.short_outcomes(), [outcome]);
        assert_eq!(pair.session.capacity(), 1);
        assert_eq!(pair.session.deadline(), Some(pair.now.mono + Timeouts::default().idle));
    }
    for (offer, transaction) in [
        ("SIZE 3", mail_with(1, b"x\r\n", MessageFacts::default())),
        // What needs nothing is sent without.
        ("DSN", Transaction { smtputf8: true, body_kind: BodyKind::EightBitMime, ..mail(1) }),
    ] {
        let mut pair = Pair::ready(&format!("250-host\r\n250 {offer}\r\n"));
        pair.submit(transaction);
        assert!(pair.take_sent().starts_with("MAIL FROM:<s@example.org>"));
    }
}

#[test]
fn only_the_local_part_makes_a_recipient_unfit() {
    let mut pair = Pair::ready("250-host\r\n250-PIPELINING\r\n250 8BITMIME\r\n");
    let recipients = ["é@x.example", "a@bücher.example", "b@x.example"];
    let recipients = (0..).zip(recipients).map(|(rid, address)| recipient(rid, address)).collect();
    pair.submit(Transaction { smtputf8: true, recipients, ..mail(0) });
    assert_eq!(
        pair.take_sent(),
        "MAIL FROM:<s@example.org>\r\nRCPT TO:<a@xn--bcher-kva.example>\r\n\
         RCPT TO:<b@x.example>\r\nDATA\r\n"
    );
    pair.say("250 a\r\n250 b\r\n250 c\r\n354 d\r\n");
    pair.say("250 e\r\n");
    assert_eq!(pair.short_outcomes(), ["unfit 5.6.7", "accepted 250", "accepted 250"]);
}

#[test]
fn dots_are_doubled_where_there_are_any() {
    let facts = MessageFacts { leading_dot: true, ..MessageFacts::default() };
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail_with(1, b".a\r\n..\r\nb.\r\n.", facts));
    pair.say("250 a\r\n");
    pair.say("250 b\r\n");
    pair.take_sent();
    pair.say("354 c\r\n");
    assert_eq!(pair.take_sent(), "..a\r\n...\r\nb.\r\n..\r\n.\r\n");
}

#[test]
fn thousands_of_recipients_go_in_bounded_writes() {
    let mut pair = Pair::ready(EVERYTHING);
    pair.writable = false;
    pair.submit(mail(5_000));
    let mut writes = 0;
    while !pair.sent.is_empty() {
        let sent = pair.take_sent();
        assert!(sent.len() <= limits::COMMAND_GROUP_OCTETS + limits::COMMAND_LINE_OCTETS_MAX);
        writes += 1;
        pair.written();
    }
    assert!(writes > 1);
    pair.say([b"250 a\r\n".repeat(5_001), b"354 b\r\n".to_vec()].concat());
    pair.written();
    pair.say("250 c\r\n");
    assert!(pair.outcomes().iter().all(|outcome| short(outcome) == "accepted 250"));
    // A refusal of MAIL stops the next write, and what was written is still answered first.
    let mut pair = Pair::ready(EVERYTHING);
    pair.writable = false;
    pair.submit(mail(5_000));
    let commands = pair.take_sent().lines().count();
    pair.say("550 a\r\n");
    pair.written();
    assert_eq!((pair.take_sent().as_str(), pair.events.len()), ("", 0));
    pair.say(b"503 b\r\n".repeat(commands - 1));
    assert!(pair.outcomes().iter().all(|outcome| short(outcome) == "Mail 550"));
    assert_eq!(pair.session.capacity(), 1);
}
