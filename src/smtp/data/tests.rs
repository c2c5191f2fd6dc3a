//! Message data cut at every octet, and what ends it.

use proptest::prelude::*;

use super::*;

/// Takes `wire` in pieces cut at `cuts`; gives the message, the findings and what was consumed up
/// to the end of data.
fn receive(wire: &[u8], cuts: &[usize]) -> (Vec<u8>, Findings, Option<usize>) {
    let mut receiver = Receiver::new(Framing::Dots);
    let mut out = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&wire.len()]) {
        let taken = receiver.receive(&wire[from..to], Some(&mut out));
        if taken.end {
            return (out, *receiver.findings(), Some(from + taken.consumed));
        }
        assert_eq!(taken.consumed, to - from);
        from = to;
    }
    (out, *receiver.findings(), None)
}

fn stuff(message: &[u8], cut: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    let at_start = stuff_into(&message[..cut], true, &mut wire);
    let at_start = stuff_into(&message[cut..], at_start, &mut wire);
    assert!(at_start, "a message ends with CRLF");
    wire.extend_from_slice(b".\r\n");
    wire
}

#[test]
fn nothing_but_crlf_dot_crlf_ends_data() {
    let vectors: &[&[u8]] = &[
        b"\n.\n",
        b"\n.\r",
        b"\r.\n",
        b"\r.\r",
        b"\n.\r\n",
        b"\r.\r\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r\n\0.\r\n",
        b"\r\n.\r\r\n",
        b"\r\r\n.\r\r\n",
    ];
    for vector in vectors {
        let mut wire = b"Subject: x\r\n\r\nbody".to_vec();
        wire.extend_from_slice(vector);
        wire.extend_from_slice(b"MAIL FROM:<evil@example.com>\r\n");
        let smuggled = wire.len();
        wire.extend_from_slice(b".\r\nNOOP\r\n");
        let (whole, findings, end) = receive(&wire, &[]);
        assert_eq!(end, Some(smuggled + 3), "{}", vector.escape_ascii());
        let bare = !vector.contains(&0);
        assert_eq!(findings.bare_line_end, bare, "{}", vector.escape_ascii());
        for cut in 0..wire.len() {
            assert_eq!(receive(&wire, &[cut]), (whole.clone(), findings, end));
        }
    }
}

#[test]
fn the_wire_and_the_message_behind_it() {
    let table: &[(&[u8], &[u8], bool)] = &[
        (b".\r\n", b"", false),
        (b"a\r\n.\r\n", b"a\r\n", false),
        (b"..\r\n.\r\n", b".\r\n", true),
        (b"..a\r\n...\r\n.\r\n", b".a\r\n..\r\n", true),
        (b".a\r\n.\r\n", b"a\r\n", false),
        (b"a.\r\nb.c\r\n.\r\n", b"a.\r\nb.c\r\n", false),
        (b"\r\n.\r\n", b"\r\n", false),
    ];
    for (wire, message, leading_dot) in table {
        let (out, findings, end) = receive(wire, &[]);
        assert_eq!((&out[..], end), (*message, Some(wire.len())));
        assert_eq!(findings.leading_dot, *leading_dot, "{}", wire.escape_ascii());
        assert_eq!(findings.octets, message.len() as u64);
        assert!(!findings.bare_line_end);
    }
}

#[test]
fn the_longest_line_is_measured_without_its_end_and_without_the_added_dot() {
    let mut wire = vec![b'x'; 998];
    wire.extend_from_slice(b"\r\n..");
    wire.extend_from_slice(&[b'y'; 998]);
    wire.extend_from_slice(b"\r\n.\r\n");
    assert_eq!(receive(&wire, &[500, 1000, 1001]).1.long_line_octets_max, 999);
}

#[test]
fn chunks_are_taken_as_they_are_and_end_with_crlf() {
    /// Chunks, the message, a bare line end.
    type Row<'a> = (&'a [&'a [u8]], &'a [u8], bool);
    let table: &[Row<'_>] = &[
        (&[b"a\r\n.\r", b"\n..\r\n"], b"a\r\n.\r\n..\r\n", false),
        (&[b"no end"], b"no end\r\n", false),
        (&[b"cut\r"], b"cut\r", true),
        (&[b"bare\nlf\r\n"], b"bare\nlf\r\n", true),
        (&[b"\xc3\xa9 at the start\r\n"], b"\xc3\xa9 at the start\r\n", false),
        (&[b"a\r\nb\xc3", b"\xa9\r\n"], b"a\r\nb\xc3\xa9\r\n", false),
        (&[b"no end \xff"], b"no end \xff\r\n", false),
        (&[], b"", false),
    ];
    for (chunks, message, bare) in table {
        let mut receiver = Receiver::new(Framing::Chunks);
        let mut out = Vec::new();
        for chunk in *chunks {
            let taken = receiver.receive(chunk, Some(&mut out));
            assert_eq!(taken, Taken { consumed: chunk.len(), end: false });
        }
        receiver.finish(Some(&mut out));
        assert_eq!(&out[..], *message);
        let findings = receiver.findings();
        assert_eq!((findings.leading_dot, findings.bare_line_end), (true, *bare));
        assert_eq!(findings.eight_bit, !message.is_ascii());
    }
}

/// Messages of lines in which dots, line ends and 8-bit octets are likely.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let octet = prop_oneof![4 => Just(b'.'), 4 => Just(b'a'), 1 => Just(0xc3), 1 => Just(0)];
    let line = proptest::collection::vec(octet, 0..6);
    proptest::collection::vec(line, 0..8).prop_map(|lines| {
        lines.iter().flat_map(|line| line.iter().copied().chain(*b"\r\n")).collect()
    })
}

proptest! {
    #[test]
    fn what_was_stuffed_is_received(message in message()) {
        let wire = stuff(&message, 0);
        for cut in 0..=message.len() {
            prop_assert_eq!(&stuff(&message, cut), &wire);
        }
        let (_, expected, _) = receive(&wire, &[]);
        let leading_dot = message.split(|b| *b == b'\n').any(|line| line.starts_with(b"."));
        prop_assert_eq!(expected.leading_dot, leading_dot);
        prop_assert_eq!(expected.eight_bit, !message.is_ascii());
        for cut in 0..=wire.len() {
            let (out, findings, end) = receive(&wire, &[cut]);
            prop_assert_eq!(&out, &message);
            prop_assert_eq!(findings, expected);
            prop_assert_eq!(end, Some(wire.len()));
        }
    }

    #[test]
    fn any_bytes_give_the_same_however_they_are_cut(
        wire in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), Just(b'a')], 0..40),
    ) {
        let whole = receive(&wire, &[]);
        prop_assert!(whole.0.len() <= wire.len());
        let every: Vec<usize> = (0..wire.len()).collect();
        prop_assert_eq!(&receive(&wire, &every), &whole);
        // The reference: the first CRLF.CRLF, the line before the message counted as ended.
        let mut framed = b"\r\n".to_vec();
        framed.extend_from_slice(&wire);
        let end = framed.windows(5).position(|w| w == b"\r\n.\r\n").map(|at| at + 3);
        prop_assert_eq!(whole.2, end);
    }
}
