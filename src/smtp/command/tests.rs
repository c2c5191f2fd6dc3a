//! Commands by tables, and any octets at all.

use proptest::prelude::*;

use super::*;

fn parse_one(line: &[u8]) -> Result<Command<'_>, CommandError> {
    parse(line, &mut LastDomains::default())
}

fn code(line: &[u8]) -> u16 {
    parse_one(line).map_or_else(|error| error.codes().0, |_| 250)
}

fn mail(line: &str) -> Mail {
    match parse_one(line.as_bytes()) {
        Ok(Command::Mail(mail)) => mail,
        other => panic!("{line}: {other:?}"),
    }
}

fn rcpt(line: &str) -> Rcpt {
    match parse_one(line.as_bytes()) {
        Ok(Command::Rcpt(rcpt)) => rcpt,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn plain_commands() {
    let table: &[(&[u8], Command<'_>)] = &[
        (b"EHLO a.example", Command::Ehlo("a.example")),
        (b"ehlo [IPv6:2001:db8::1] ", Command::Ehlo("[IPv6:2001:db8::1]")),
        (b"HeLo localhost", Command::Helo("localhost")),
        (b"DATA", Command::Data),
        (b"data \t", Command::Data),
        (b"BDAT 0 LAST", Command::Bdat { octets: 0, last: true }),
        (b"bdat 1000 last", Command::Bdat { octets: 1000, last: true }),
        (b"BDAT 86", Command::Bdat { octets: 86, last: false }),
        (b"RSET", Command::Rset),
        (b"NOOP", Command::Noop),
        (b"NOOP anything at all", Command::Noop),
        (b"VRFY joe", Command::Vrfy),
        (b"HELP", Command::Help),
        (b"HELP MAIL", Command::Help),
        (b"QUIT", Command::Quit),
    ];
    for (line, command) in table {
        assert_eq!(parse_one(line).as_ref(), Ok(command));
    }
}

#[test]
fn lines_that_are_refused() {
    let table: &[(&[u8], CommandError)] = &[
        (b"", CommandError::Unknown),
        (b"HELLO x", CommandError::Unknown),
        (b"MAIL\tFROM:<a@b>", CommandError::Control),
        (b"AVERYLONGVERB", CommandError::Unknown),
        (b"\xff\xfe", CommandError::Unknown),
        (b"EXPN list", CommandError::NotImplemented),
        (b"etrn x", CommandError::NotImplemented),
        (b"STARTTLS", CommandError::NotImplemented),
        (b"AUTH PLAIN AAAA", CommandError::NotImplemented),
        (b"NOOP\0", CommandError::Control),
        (b"NO\rOP", CommandError::LineEnd),
        (b"NOOP\nRSET", CommandError::LineEnd),
        (b"MAIL FROM:<a@b", CommandError::Argument("Syntax: MAIL FROM:<address>")),
        (b"MAIL FROM:a@b", CommandError::Argument("Syntax: MAIL FROM:<address>")),
        (b"MAIL TO:<a@b>", CommandError::Argument("Syntax: MAIL FROM:<address>")),
        (b"MAIL FROM:<a@b>x", CommandError::Argument("Syntax: MAIL FROM:<address>")),
        (b"MAIL FROM:<a>", CommandError::Sender(AddressError::Syntax)),
        (b"RCPT TO:<>", CommandError::Recipient(AddressError::Syntax)),
        (b"RCPT TO:<a@b@c>", CommandError::Recipient(AddressError::Domain)),
        (b"MAIL FROM:<\xc3\xb6@b>", CommandError::NeedsUtf8),
        (b"MAIL FROM:<a@b> FOO=1", CommandError::Parameter),
        (b"RCPT TO:<a@b> SIZE=1", CommandError::Parameter),
    ];
    for (line, error) in table {
        assert_eq!(parse_one(line), Err(*error), "{}", line.escape_ascii());
    }
    for line in [
        "EHLO",
        "EHLO a b",
        "EHLO a;b",
        "EHLO \u{fc}",
        "HELO <x>",
        "DATA x",
        "RSET x",
        "QUIT now",
        "VRFY",
        "MAIL",
        "MAIL FROM",
        "RCPT",
        "RCPT TO:",
    ] {
        assert_eq!(code(line.as_bytes()), 501, "{line}");
    }
    assert_eq!(code(&[b"EHLO ".as_slice(), &[b'a'; 256]].concat()), 501);
}

#[test]
fn a_chunk_size_that_cannot_be_trusted_ends_the_session() {
    for line in [
        "BDAT",
        "BDAT -1",
        "BDAT -1 LAST",
        "BDAT x",
        "BDAT 1x",
        "BDAT +5",
        "BDAT 0x10",
        "BDAT 18446744073709551616",
        "BDAT 99999999999999999999999999 LAST",
        "BDAT 5 LASTER",
        "BDAT 5 LAST LAST",
        "BDAT LAST",
        "BDAT 1,000",
    ] {
        let error = parse_one(line.as_bytes()).unwrap_err();
        assert_eq!(error, CommandError::ChunkSize, "{line}");
        assert!(error.ends_session() && error.codes().0 == 501);
    }
}

#[test]
fn mail_and_its_parameters() {
    let all = mail(
        "MAIL FROM:<\"a> b\"@b.example> SIZE=1000 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B1",
    );
    assert_eq!(all.sender.unwrap().as_str(), "\"a> b\"@b.example");
    assert_eq!((all.size_octets, all.body), (Some(1000), BodyKind::EightBitMime));
    assert_eq!((all.smtputf8, all.ret), (true, Some(Ret::Headers)));
    assert_eq!(all.envid.as_deref(), Some("QQ+2B1"));
    assert_eq!(mail("mail from:<>"), Mail::default());
    assert_eq!(mail("MAIL FROM: <>  body=7bit "), Mail::default());
    assert_eq!(mail("MAIL FROM:<@r.example:a@b.example>").sender.unwrap().as_str(), "a@b.example");
    assert_eq!(mail("MAIL FROM:<> SIZE=99999999999999999999").size_octets, Some(u64::MAX));
    assert!(mail("MAIL FROM:<\u{f6}@b.example> SMTPUTF8").sender.unwrap().needs_utf8());
    for tail in [
        "SIZE=",
        "SIZE",
        "SIZE=-1",
        "SIZE=1k",
        "SIZE=1 SIZE=1",
        "SIZE=999999999999999999999",
        "BODY=BINARYMIME",
        "BODY",
        "SMTPUTF8=1",
        "SMTPUTF8 SMTPUTF8",
        "RET=BODY",
        "RET=",
        "ENVID=",
        "ENVID=a+2b",
        "ENVID=a+",
        "ENVID=a+0D+0A",
        "ENVID=a=b",
        "ENVID=a+ZZ",
    ] {
        assert_eq!(code(format!("MAIL FROM:<> {tail}").as_bytes()), 501, "{tail}");
    }
    assert_eq!(code(format!("MAIL FROM:<> ENVID={}", "a".repeat(100)).as_bytes()), 250);
    assert_eq!(code(format!("MAIL FROM:<> ENVID={}", "a".repeat(101)).as_bytes()), 501);
}

#[test]
fn rcpt_and_its_parameters() {
    let all = rcpt("RCPT TO:<a@b.example> NOTIFY=SUCCESS,delay ORCPT=rfc822;a+2Bc@b.example");
    assert_eq!(all.notify, Notify(Notify::SUCCESS | Notify::DELAY));
    assert_eq!(all.orcpt.as_deref(), Some("rfc822;a+2Bc@b.example"));
    assert_eq!(rcpt("rcpt to:<PostMaster>").path, ForwardPath::Postmaster);
    let unitext = rcpt("RCPT TO:<a@b.example> ORCPT=utf-8;\u{f6}@b.example");
    assert_eq!(unitext.orcpt.as_deref(), Some("utf-8;\u{f6}@b.example"));
    assert_eq!(rcpt("RCPT TO:<a@b.example> NOTIFY=NEVER").notify, Notify(Notify::NEVER));
    for tail in [
        "NOTIFY=",
        "NOTIFY",
        "NOTIFY=NEVER,SUCCESS",
        "NOTIFY=SUCCESS,NEVER",
        "NOTIFY=BOTH",
        "NOTIFY=DELAY,DELAY",
        "NOTIFY=DELAY,",
        "NOTIFY=DELAY NOTIFY=DELAY",
        "ORCPT=a@b",
        "ORCPT=rfc822;",
        "ORCPT=;a",
        "ORCPT=rfc822;a+",
        "ORCPT=rfc822;a+4",
        "ORCPT=rfc822;a=b",
        "ORCPT=rfc822;a+0Ab",
        "ORCPT=rfc822;\u{f6}",
        "ORCPT=utf-8;\u{f6}\u{85}",
        "ORCPT=r(;a",
    ] {
        assert_eq!(code(format!("RCPT TO:<a@b.example> {tail}").as_bytes()), 501, "{tail}");
    }
    let long = "a".repeat(500);
    assert_eq!(code(format!("RCPT TO:<a@b.example> ORCPT=rfc822;{long}").as_bytes()), 501);
}

proptest! {
    #[test]
    fn foreign_octets_never_panic_and_come_out_printable(
        verb in proptest::sample::select(vec![
            "EHLO ", "MAIL FROM:<", "MAIL FROM:<> ENVID=", "MAIL FROM:<> SIZE=", "BDAT ",
            "RCPT TO:<", "RCPT TO:<a@b> ORCPT=", "RCPT TO:<a@b> NOTIFY=", "",
        ]),
        tail in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            "[a+=0A;<>\"\\\\@ .]{0,20}".prop_map(String::into_bytes),
        ],
    ) {
        let line = [verb.as_bytes(), &tail].concat();
        let text = match parse_one(&line) {
            Ok(Command::Ehlo(name) | Command::Helo(name)) => name.to_owned(),
            Ok(Command::Mail(mail)) => mail.envid.as_deref().unwrap_or("").to_owned(),
            Ok(Command::Rcpt(rcpt)) => rcpt.orcpt.as_deref().unwrap_or("").to_owned(),
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        prop_assert!(!text.chars().any(char::is_control));
    }
}
