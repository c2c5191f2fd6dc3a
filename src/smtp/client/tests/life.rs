//! The life of a session between transactions, and its end.

use super::*;

#[test]
fn an_idle_session_quits_and_a_quit_never_waits_for_long() {
    let mut pair = Pair::ready(NOTHING);
    pair.pass(4_999);
    assert_eq!(pair.take_sent(), "");
    pair.pass(1);
    assert_eq!(pair.take_sent(), "QUIT\r\n");
    assert_eq!(pair.take_events(), [Event::Retired]);
    assert_eq!(pair.session.capacity(), 0);
    pair.submit(mail(1));
    assert_eq!(pair.short_outcomes(), ["untried"]);
    pair.say("221 bye\r\nwhatever comes\n\0 now");
    assert!(!pair.closed);
    pair.pass(4_999);
    assert!(!pair.closed);
    pair.pass(1);
    assert!(pair.closed && pair.take_events().is_empty());
    // With the peer's end of file it is over at once; even when QUIT could not be written.
    for writable in [true, false] {
        let mut pair = Pair::ready(NOTHING);
        pair.writable = writable;
        pair.session.quit(pair.now);
        pair.pump();
        pair.hang_up();
        assert!(pair.closed);
        assert_eq!(pair.take_events(), [Event::Retired]);
    }
    let mut pair = Pair::ready(NOTHING);
    pair.writable = false;
    pair.session.quit(pair.now);
    pair.pump();
    pair.pass(5_000);
    assert!(pair.closed);
}

#[test]
fn quit_lets_the_transaction_under_way_finish() {
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(1));
    pair.say("250 a\r\n");
    pair.session.quit(pair.now);
    pair.pump();
    assert_eq!(pair.session.capacity(), 0);
    pair.say("250 b\r\n");
    pair.say("354 c\r\n");
    pair.take_sent();
    pair.say("250 d\r\n");
    assert_eq!(pair.short_outcomes(), ["accepted 250"]);
    assert_eq!(pair.take_sent(), "QUIT\r\n");
    // Before the session is ready there is nothing to finish.
    for (said, sent) in [("", ""), ("220 host\r\n", "EHLO me.example\r\nQUIT\r\n")] {
        let mut pair = Pair::new(0);
        pair.say(said);
        pair.session.quit(pair.now);
        pair.pump();
        assert_eq!(pair.take_sent(), sent);
        pair.hang_up();
        assert!(pair.closed && pair.take_events().is_empty());
    }
}

#[test]
fn enough_messages_end_the_session() {
    let mut pair = Pair::new(2);
    pair.say("220 host\r\n");
    pair.say(NOTHING);
    pair.take_events();
    for sent in ["", "QUIT\r\n"] {
        pair.submit(mail(1));
        for reply in ["250 a\r\n", "250 b\r\n", "354 c\r\n"] {
            pair.say(reply);
        }
        pair.take_sent();
        pair.say("450 d\r\n");
        assert_eq!(pair.short_outcomes(), ["Dot 450"]);
        assert_eq!(pair.take_sent(), sent);
    }
    assert_eq!(pair.take_events(), [Event::Retired]);
}

#[test]
fn what_breaks_between_transactions_is_no_delivery_attempt() {
    let first_done = || {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(1));
        pair.say("250 a\r\n");
        pair.say("550 b\r\n");
        pair.outcomes();
        assert!(pair.take_sent().ends_with("RSET\r\n"));
        pair
    };
    for (reply, end) in [
        ("421 no\r\n", "idle Mail 421"),
        ("450 no\r\n", "idle Mail 450"),
        ("502 no\r\n", "idle Mail 502"),
        ("354 no\r\n", "idle Mail 354"),
        ("x\r\n", "idle Mail garbage"),
    ] {
        let mut pair = first_done();
        pair.say(reply);
        assert_eq!(pair.end(), end);
        pair.submit(mail(1));
        assert_eq!(pair.short_outcomes(), ["untried"]);
    }
    let mut pair = Pair::ready(NOTHING);
    pair.say("421 idle too long\r\n");
    assert_eq!(pair.end(), "idle Mail garbage");
    // The host closed while MAIL was on its way: once more elsewhere, but only on a connection
    // that has worked.
    let mut pair = first_done();
    pair.say("250 ok\r\n");
    pair.submit(mail(1));
    assert!(pair.take_sent().starts_with("MAIL"));
    pair.hang_up();
    assert_eq!(pair.short_outcomes(), ["untried"]);
    assert_eq!(pair.end(), "idle Mail network");
}

#[test]
fn a_transaction_without_recipients_is_over_at_once() {
    let mut pair = Pair::ready(EVERYTHING);
    pair.submit(mail(0));
    assert_eq!((pair.outcomes().len(), pair.take_sent().as_str()), (0, ""));
    assert_eq!(pair.session.capacity(), 1);
}

#[test]
fn a_failure_says_what_the_peer_said() {
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(1));
    pair.say("250 a\r\n");
    pair.say("550-5.1.1 no such\r\n550 5.1.1 user\r\n");
    let reply = Reply {
        code: 550,
        enhanced: Some(Enhanced::new(5, 1, 1)),
        lines: ["5.1.1 no such", "5.1.1 user"].iter().collect(),
    };
    let failure = Failure { status: Enhanced::new(5, 1, 1), reply: Some(reply), detail: "".into() };
    assert_eq!(pair.outcomes(), [RecipientOutcome::Refused { stage: Stage::Rcpt, failure }]);
}
