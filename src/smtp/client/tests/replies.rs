//! Each reply has its verdict: greetings, EHLO, a transaction pipelined or command by command.

use super::*;

#[test]
fn with_pipelining_a_message_takes_two_writes() {
    let mut pair = Pair::ready("250-host\r\n250 PIPELINING\r\n");
    let writes = pair.writes;
    pair.submit(mail(2));
    assert_eq!(
        pair.take_sent(),
        "MAIL FROM:<s@example.org>\r\nRCPT TO:<r0@example.com>\r\nRCPT TO:<r1@example.com>\r\n\
         DATA\r\n"
    );
    assert_eq!(pair.session.capacity(), 0);
    pair.say("250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(pair.take_sent(), "Subject: x\r\n\r\nhello\r\n.\r\n");
    assert_eq!(pair.writes, writes + 2);
    pair.say("250 2.0.0 queued as 1\r\n");
    assert_eq!(pair.short_outcomes(), ["accepted 250", "accepted 250"]);
    assert_eq!((pair.session.capacity(), pair.take_sent().as_str()), (1, ""));
}

#[test]
fn without_pipelining_or_when_strict_each_command_waits() {
    for (ehlo, strict) in [(NOTHING, false), ("250-host\r\n250 PIPELINING\r\n", true)] {
        let mut pair = Pair::ready(ehlo);
        pair.submit(Transaction { strict, ..mail(2) });
        for (command, reply) in [
            ("MAIL FROM:<s@example.org>\r\n", "250 ok\r\n"),
            ("RCPT TO:<r0@example.com>\r\n", "550 no\r\n"),
            ("RCPT TO:<r1@example.com>\r\n", "251 ok\r\n"),
            ("DATA\r\n", "354 go\r\n"),
            ("Subject: x\r\n\r\nhello\r\n.\r\n", "299 taken\r\n"),
        ] {
            assert_eq!(pair.take_sent(), command);
            pair.say(reply);
        }
        assert_eq!(pair.short_outcomes(), ["Rcpt 550", "accepted 299"]);
        assert_eq!(pair.session.capacity(), 1);
    }
}

#[test]
fn a_strict_transaction_stops_at_the_first_useless_command() {
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(2));
    pair.say("450 no\r\n");
    assert_eq!(pair.take_sent(), "MAIL FROM:<s@example.org>\r\n");
    assert_eq!(pair.short_outcomes(), ["Mail 450", "Mail 450"]);
    assert_eq!(pair.session.capacity(), 1);
    pair.submit(mail(1));
    pair.say("250 ok\r\n");
    pair.take_sent();
    pair.say("550 no\r\n");
    assert_eq!(pair.short_outcomes(), ["Rcpt 550"]);
    // MAIL was taken, so the transaction must be cleared before the next one.
    assert_eq!((pair.take_sent().as_str(), pair.session.capacity()), ("RSET\r\n", 0));
    pair.say("250 ok\r\n");
    assert_eq!(pair.session.capacity(), 1);
}

#[test]
fn helo_only_where_ehlo_is_not_known() {
    for code in [500, 502, 504, 550] {
        let mut pair = Pair::new(0);
        pair.say("220 host\r\n");
        pair.take_sent();
        pair.say(format!("{code} no\r\n"));
        assert_eq!(pair.take_sent(), "HELO me.example\r\n");
        pair.say("250-host\r\n250 PIPELINING\r\n");
        assert_eq!(pair.take_events(), [Event::Ready { extensions: Extensions::default() }]);
    }
    for (code, quits) in [(421, false), (451, true), (501, true), (554, true)] {
        let mut pair = Pair::new(0);
        pair.say("220 host\r\n");
        pair.take_sent();
        pair.say(format!("{code} no\r\n"));
        assert_eq!(pair.take_sent(), if quits { "QUIT\r\n" } else { "" });
        // The result does not wait for the end of QUIT.
        assert_eq!((pair.events.len(), pair.closed), (1, !quits));
        pair.hang_up();
        assert_eq!(pair.end(), format!("failed Ehlo {code}"));
    }
    let mut pair = Pair::new(0);
    pair.say("220 host\r\n");
    pair.say("502 no\r\n");
    pair.say("502 no\r\n");
    pair.hang_up();
    assert_eq!(pair.end(), "failed Ehlo 502");
}

#[test]
fn a_greeting_that_is_not_welcome_fails_the_connection() {
    for (greeting, sent, end) in [
        ("421 busy\r\n", "", "failed Greeting 421"),
        ("450 busy\r\n", "QUIT\r\n", "failed Greeting 450"),
        ("554 no\r\n", "QUIT\r\n", "failed Greeting 554"),
        ("354 go\r\n", "", "failed Greeting garbage"),
        ("SSH-2.0-x\r\n", "", "failed Greeting garbage"),
        ("220 host\n", "", "failed Greeting garbage"),
        ("220 host\r\n250 early\r\n", "", "failed Ehlo garbage"),
    ] {
        let mut pair = Pair::new(0);
        pair.say(greeting);
        assert_eq!(pair.take_sent(), sent, "{greeting}");
        pair.hang_up();
        assert_eq!(pair.end(), end, "{greeting}");
    }
}

/// What is said to MAIL, RCPT, RCPT, DATA in one segment; what is said to the body; the outcomes
/// of the two recipients; what was sent behind DATA; how the session stands then.
const VERDICTS: &str = "
    250 250 250 354     | 250      | accepted 250, accepted 250 | body     | open
    250 250 250 354     | 554      | Dot 554, Dot 554           | body     | open
    250 250 550 354     | 451      | Dot 451, Rcpt 550          | body     | open
    299 299 599 354     | 458      | Dot 458, Rcpt 599          | body     | open
    250 550 450 354     | 250      | Rcpt 550, Rcpt 450         | dot RSET | open
    250 550 450 354     | 554      | Rcpt 550, Rcpt 450         | dot RSET | open
    250 550 450 503     |          | Rcpt 550, Rcpt 450         | RSET     | open
    250 250 450 554     |          | Data 554, Rcpt 450         | RSET     | open
    450 503 503 503     |          | Mail 450, Mail 450         |          | open
    550 250 250 354     | 250      | Mail 550, Mail 550         | dot RSET | open
    250 250 452 354     | 250      | accepted 250, full 1 452   | body     | open
    250 250 552 354     | 250      | accepted 250, full 1 552   | body     | open
    250 452 250 354     | 250      | Rcpt 452, accepted 250     | body     | open
    250 552 450 503     |          | Rcpt 552, Rcpt 450         | RSET     | open
    421                 |          | Mail 421, Mail 421         |          | ended Mail 421
    250 550 421         |          | Rcpt 550, Rcpt 421         |          | ended Rcpt 421
    250 250 421         |          | Rcpt 421, Rcpt 421         |          | ended Rcpt 421
    250 550 250 421     |          | Rcpt 550, Data 421         |          | ended Data 421
    250 250 550 354     | 421      | Dot 421, Rcpt 550          | body     | ended Dot 421
    250 250 550 354 421 |          | Body 421, Rcpt 550         |          | ended Body 421
    354                 |          | broken Mail, broken Mail   |          | ended Mail garbage
    250 550 354         |          | Rcpt 550, broken Rcpt      |          | ended Rcpt garbage
    250 250 250 250     |          | broken Data, broken Data   |          | ended Data garbage
    250 250 250 350     |          | broken Data, broken Data   |          | ended Data garbage
    250 250 550 354     | 354      | uncertain, Rcpt 550        | body     | ended Dot garbage
    250 250 hello       |          | broken Rcpt, broken Rcpt   |          | ended Rcpt garbage
    250 250 250- 550    |          | broken Rcpt, broken Rcpt   |          | ended Rcpt garbage
    250 250 250 354     | ok       | uncertain, uncertain       | body     | ended Dot garbage
    250 250 250 354     | 250- 550 | uncertain, uncertain       | body     | ended Dot garbage
    250 250 250 354     | 199      | uncertain, uncertain       | body     | ended Dot garbage
    250 250 250 250 354 |          | broken Data, broken Data   |          | ended Data garbage
    250 250 250 354 250 |          | broken Body, broken Body   |          | ended Body garbage
    250 250 250 354 552 |          | Body 552, Body 552         |          | retired
    250 250 250 354     | 250 250  | accepted 250, accepted 250 | body     | idle Mail garbage
    250 250 250 354     | 554 250  | Dot 554, Dot 554           | body     | idle Mail garbage
    250 250 250 554 250 |          | Data 554, Data 554         |          | idle Mail garbage
";

/// The lines that a cell of replies stands for.
fn lines(cell: &str) -> String {
    cell.split_whitespace()
        .map(
            |word| {
                if word.ends_with('-') { format!("{word}x\r\n") } else { format!("{word} x\r\n") }
            },
        )
        .collect()
}

#[test]
fn every_reply_to_a_pipelined_transaction_has_its_verdict() {
    for row in VERDICTS.trim().lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let mut pair = Pair::ready("250-host\r\n250 PIPELINING\r\n");
        pair.submit(mail(2));
        pair.take_sent();
        pair.say(lines(cells[0]));
        pair.say(lines(cells[1]));
        assert_eq!(pair.short_outcomes().join(", "), cells[2], "{row}");
        let sent = cells[3].replace("body", BODY).replace("dot ", ".\r\n");
        assert_eq!(pair.take_sent(), sent.replace("RSET", "RSET\r\n"), "{row}");
        if cells[4] == "open" {
            if cells[3].ends_with("RSET") {
                assert_eq!(pair.session.capacity(), 0, "{row}");
                pair.say("250 ok\r\n");
            }
            assert_eq!((pair.session.capacity(), pair.closed), (1, false), "{row}");
            assert_eq!(pair.take_events(), [], "{row}");
        } else {
            assert_eq!(pair.end(), cells[4], "{row}");
        }
    }
}

#[test]
fn strict_transactions_get_the_same_verdicts() {
    // The host is full after one: the rest is not asked for.
    for (last, first) in [("250 e\r\n", "accepted 250"), ("?\r\n", "uncertain")] {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(4));
        for reply in ["250 a\r\n", "250 b\r\n", "452 c\r\n", "354 d\r\n", last] {
            pair.say(reply);
        }
        assert_eq!(pair.short_outcomes(), [first, "full 1 452", "untried", "untried"]);
        assert_eq!(pair.session.capacity(), usize::from(last.starts_with("250")));
    }
}
