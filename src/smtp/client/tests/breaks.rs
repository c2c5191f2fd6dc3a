//! Broken connections, early refusals, deadlines: what is uncertain then and what is not.

use super::*;

#[test]
fn a_break_is_uncertain_from_the_final_dot_on_and_not_before() {
    type Step = fn(&mut Pair);
    let drop_it: Step = Pair::hang_up;
    let silence: Step = |pair| {
        for _ in 0..20 {
            pair.pass(60_000);
        }
    };
    for (broken, cause) in [(drop_it, "network"), (silence, "timeout")] {
        let replies = ["250 a\r\n", "550 b\r\n", "250 c\r\n", "354 d\r\n"];
        for (answered, (outcomes, stage)) in [
            (["broken Mail", "broken Mail"], "Mail"),
            (["broken Rcpt", "broken Rcpt"], "Rcpt"),
            (["Rcpt 550", "broken Rcpt"], "Rcpt"),
            (["Rcpt 550", "broken Data"], "Data"),
            (["Rcpt 550", "uncertain"], "Dot"),
        ]
        .into_iter()
        .enumerate()
        {
            for (ehlo, last) in [("250-host\r\n250 PIPELINING\r\n", ""), (NOTHING, "25")] {
                let mut pair = Pair::ready(ehlo);
                pair.submit(mail(2));
                replies[..answered].iter().for_each(|reply| pair.say(reply));
                pair.say(last); // Half a reply is none.
                broken(&mut pair);
                assert_eq!(pair.short_outcomes(), outcomes, "{cause} after {answered}");
                assert_eq!(pair.end(), format!("ended {stage} {cause}"));
            }
        }
    }
    // A reply that is whole counts, whatever follows it.
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(1));
    ["250 a\r\n", "250 b\r\n", "354 c\r\n"].iter().for_each(|reply| pair.say(reply));
    pair.session.handle_input(b"250 d\r\n", pair.now);
    pair.session.handle_closed(Some("reset".into()));
    pair.pump();
    assert_eq!(pair.short_outcomes(), ["accepted 250"]);
    assert_eq!(pair.end(), "idle Mail network");
}

#[test]
fn the_dot_counts_from_the_moment_it_is_handed_out() {
    let body = vec![b'x'; 2 * limits::BODY_PIECE_OCTETS];
    for (pieces, outcome) in [(1, "broken Body"), (2, "uncertain")] {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail_with(1, &body, MessageFacts::default()));
        pair.say("250 a\r\n");
        pair.say("250 b\r\n");
        pair.writable = false;
        pair.say("354 c\r\n");
        (1..pieces).for_each(|_| pair.written());
        pair.hang_up(); // The write was not complete.
        assert_eq!(pair.short_outcomes(), [outcome]);
    }
}

#[test]
fn an_early_refusal_stops_the_body_at_the_next_piece() {
    let body = vec![b'x'; 5 * limits::BODY_PIECE_OCTETS];
    for (reply, outcome, end) in [
        ("552 too big\r\n", "Body 552", "retired"),
        ("452 full\r\n", "Body 452", "retired"),
        ("421 away\r\n", "Body 421", "ended Body 421"),
        ("250 ok\r\n", "broken Body", "ended Body garbage"),
        ("354 go\r\n", "broken Body", "ended Body garbage"),
        ("x\r\n", "broken Body", "ended Body garbage"),
    ] {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail_with(1, &body, MessageFacts::default()));
        pair.say("250 a\r\n");
        pair.say("250 b\r\n");
        pair.take_sent();
        pair.writable = false;
        pair.say("354 c\r\n");
        pair.written();
        pair.say(reply);
        pair.written();
        assert_eq!(pair.sent.len(), 2 * limits::BODY_PIECE_OCTETS, "{reply}");
        assert_eq!(pair.short_outcomes(), [outcome], "{reply}");
        assert_eq!(pair.end(), end, "{reply}");
    }
    // The first octet of a reply decides whether it came before the dot.
    for (rest, outcome, end) in [
        ("0 ok\r\n", "uncertain", "ended Dot garbage"),
        ("1 ok\r\n", "uncertain", "ended Dot garbage"),
    ] {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(1));
        pair.say("250 a\r\n");
        pair.say("250 b\r\n");
        pair.say("354 c\r\n25");
        assert!(pair.take_sent().ends_with(BODY));
        pair.say(rest);
        assert_eq!((pair.short_outcomes(), pair.end().as_str()), (vec![outcome.to_owned()], end));
    }
    // While the write with the dot is still out, a refusal is early too, and a 2yz is not.
    for (reply, outcome, open) in
        [("552 no\r\n", "Dot 552", false), ("250 ok\r\n", "accepted 250", true)]
    {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(1));
        pair.say("250 a\r\n");
        pair.say("250 b\r\n");
        pair.writable = false;
        pair.say("354 c\r\n");
        pair.say(reply);
        assert_eq!((pair.short_outcomes(), pair.closed), (vec![outcome.to_owned()], !open));
    }
}

#[test]
fn each_deadline_is_for_the_whole_reply() {
    let timeouts = Timeouts::default();
    // What is said before the silence, and the deadline that then runs.
    let transaction = ["250 a\r\n", "250 b\r\n", "354 c\r\n"];
    let stages: [(usize, Duration); 4] =
        [(0, timeouts.mail), (1, timeouts.rcpt), (2, timeouts.data), (3, timeouts.final_reply)];
    for (answered, timeout) in stages {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(1));
        transaction[..answered].iter().for_each(|reply| pair.say(reply));
        check_deadline(&mut pair, timeout);
        pair.outcomes();
    }
    check_deadline(&mut Pair::new(0), timeouts.greeting);
    let mut pair = Pair::new(0);
    pair.say("220 host\r\n");
    check_deadline(&mut pair, timeouts.ehlo);
    let mut pair = Pair::new(0);
    pair.say("220 host\r\n");
    pair.say("502 no\r\n");
    check_deadline(&mut pair, timeouts.ehlo);
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(1));
    pair.say("250 a\r\n");
    pair.say("550 b\r\n");
    pair.outcomes();
    check_deadline(&mut pair, timeouts.mail); // RSET
}

/// An octet a minute does not help.
fn check_deadline(pair: &mut Pair, timeout: Duration) {
    let start = pair.now;
    assert_eq!(pair.session.deadline(), Some(start.mono + timeout));
    for octet in
        b"250-abcdefghi".iter().cycle().take(usize::try_from(timeout.as_secs() / 60).unwrap())
    {
        pair.pass(59_000);
        assert!(!pair.closed);
        pair.say([*octet]);
    }
    pair.pass(millis(timeout) - pair.now.mono.since_ms(start.mono) - 1);
    assert!(!pair.closed);
    pair.pass(1);
    assert!(pair.closed);
}

#[test]
fn pipelined_replies_have_a_deadline_each() {
    let mut pair = Pair::ready(EVERYTHING);
    pair.submit(mail(3));
    for reply in ["250 a\r\n", "250 b\r\n", "250 c\r\n", "250 d\r\n"] {
        pair.pass(299_000);
        pair.say(reply);
    }
    assert!(!pair.closed);
    pair.pass(119_999);
    assert!(!pair.closed);
    pair.pass(1);
    assert_eq!(pair.short_outcomes(), ["broken Data"; 3]);
    assert_eq!(pair.end(), "ended Data timeout");
}

#[test]
fn a_peer_that_stops_reading_is_given_up_but_may_go_on_talking() {
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail_with(1, &vec![b'x'; 3 * limits::BODY_PIECE_OCTETS], MessageFacts::default()));
    pair.say("250 a\r\n");
    pair.say("250 b\r\n");
    pair.writable = false;
    pair.say("354 c\r\n");
    pair.pass(179_000);
    pair.written();
    pair.pass(179_000);
    assert!(!pair.closed);
    pair.pass(1_000);
    assert_eq!(pair.short_outcomes(), ["broken Body"]);
    assert_eq!(pair.end(), "ended Body timeout");
    // Replies are taken while a write is out, but give it no more time.
    let mut pair = Pair::ready("250-host\r\n250 PIPELINING\r\n");
    pair.writable = false;
    pair.submit(mail(1));
    pair.take_sent();
    let deadline = pair.session.deadline();
    pair.now = pair.now.plus_ms(1_000);
    pair.say("250 a\r\n250 b\r\n354 c\r\n");
    assert_eq!((pair.take_sent().as_str(), pair.session.deadline()), ("", deadline));
    pair.written();
    assert_eq!(pair.take_sent(), BODY);
}
