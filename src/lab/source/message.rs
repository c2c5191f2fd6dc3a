//! The messages that a source sends: made once, numbered at little cost.
//!
//! Owns: the header, the filler that brings a message to its exact size, and the envelope's
//! addresses. Never: a connection.

use super::{SourceError, SourceOptions};

/// Octets of a filler line without its line end. A first line that is cut may grow by two
/// octets, and stays within the 78 that RFC 5322 2.1.1 recommends.
const FILLER_LINE_OCTETS: usize = 74;

/// Makes message `n` of a run.
#[derive(Debug)]
pub(super) struct Mint {
    /// Header before the first number, between the two, and behind the second.
    header: [Vec<u8>; 3],
    /// Ends with a line end; each message takes its end from it.
    filler: Vec<u8>,
    size: usize,
    /// Sent behind the header in place of filler, by DATA (dot-stuffed) and by BDAT.
    content: Option<[Vec<u8>; 2]>,
    mail: Vec<u8>,
    rcpt: Vec<Vec<u8>>,
    recipients: u64,
    domains: Option<u64>,
}

impl Mint {
    pub(super) fn new(options: &SourceOptions, run: &str, date: &str) -> Result<Mint, SourceError> {
        let SourceOptions { from, subject, .. } = options;
        for text in [from, subject, &options.rcpt, &options.helo, &options.run] {
            if text.contains(['\r', '\n', '\0']) || text.contains(['<', '>']) {
                return Err(SourceError::Text(text.escape_debug().to_string()));
            }
        }
        // The null reverse-path is no address for the header (RFC 5322 3.6.2).
        let author = if from.is_empty() { "mailer-daemon@source.ringpost.test" } else { from };
        let header = [
            format!(
                "From: <{author}>\r\nTo: undisclosed-recipients:;\r\nSubject: {subject}\r\n\
                 Date: {date}\r\nMessage-ID: <{run}-"
            ),
            format!("@source.ringpost.test>\r\nX-Ledger: {run}-"),
            "\r\n\r\n".to_owned(),
        ];
        let longest: usize = header.iter().map(String::len).sum::<usize>() + 2 * 20;
        if options.content.is_none() && options.size < longest + 2 {
            return Err(SourceError::Size { octets_min: longest + 2 });
        }
        Ok(Mint {
            header: header.map(String::into_bytes),
            filler: filler(options.size),
            size: options.size,
            content: options.content.as_ref().map(|plain| [dot_stuffed(plain), plain.clone()]),
            mail: format!("MAIL FROM:<{from}>").into_bytes(),
            rcpt: options.rcpt.split("%n").map(|part| part.as_bytes().to_vec()).collect(),
            recipients: u64::from(options.recipients.max(1)),
            domains: options.domains.filter(|domains| *domains > 0),
        })
    }

    /// MAIL and RCPT of message `n`.
    pub(super) fn envelope(&self, n: u64, out: &mut Vec<u8>) {
        self.mail(out);
        for index in 0..self.recipients {
            self.rcpt(n, index, out);
        }
    }

    pub(super) fn mail(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.mail);
        out.extend_from_slice(b"\r\n");
    }

    /// One RCPT: the second recipient and those behind it get `+index` before the at sign.
    pub(super) fn rcpt(&self, n: u64, index: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"RCPT TO:<");
        let start = out.len();
        for (position, part) in self.rcpt.iter().enumerate() {
            if position > 0 {
                number(self.domains.map_or(n, |domains| n % domains), out);
            }
            out.extend_from_slice(part);
        }
        if index > 0
            && let Some(at) = out[start..].iter().rposition(|octet| *octet == b'@')
        {
            let domain = out.split_off(start + at);
            out.push(b'+');
            number(index, out);
            out.extend_from_slice(&domain);
        }
        out.extend_from_slice(b">\r\n");
    }

    /// The message by DATA, with its final dot.
    pub(super) fn text(&self, n: u64, out: &mut Vec<u8>) {
        self.message(n, 0, out);
        if !out.ends_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
    }

    /// The message as one last chunk.
    pub(super) fn chunk(&self, n: u64, out: &mut Vec<u8>) {
        let octets = match &self.content {
            None => self.size,
            Some([_, plain]) => self.header_octets(n) + plain.len(),
        };
        out.extend_from_slice(b"BDAT ");
        number(octets as u64, out);
        out.extend_from_slice(b" LAST\r\n");
        self.message(n, 1, out);
    }

    fn message(&self, n: u64, form: usize, out: &mut Vec<u8>) {
        let start = out.len();
        let [first, second, third] = &self.header;
        out.extend_from_slice(first);
        number(n, out);
        out.extend_from_slice(second);
        number(n, out);
        out.extend_from_slice(third);
        if let Some(content) = &self.content {
            out.extend_from_slice(&content[form]);
            return;
        }
        let left = self.size - (out.len() - start);
        let body = out.len();
        out.extend_from_slice(&self.filler[self.filler.len() - left..]);
        if out[body] == b'\n' {
            // The cut fell into a line end; the line before goes on into the next one.
            out[body] = b'+';
        }
    }

    fn header_octets(&self, n: u64) -> usize {
        let mut digits = Vec::with_capacity(20);
        number(n, &mut digits);
        self.header.iter().map(Vec::len).sum::<usize>() + 2 * digits.len()
    }
}

/// Lines of printable text, at least `octets` octets, ending with a line end.
fn filler(octets: usize) -> Vec<u8> {
    let lines = octets / (FILLER_LINE_OCTETS + 2) + 1;
    let mut filler = Vec::with_capacity(lines * (FILLER_LINE_OCTETS + 2));
    for line in 0..lines {
        filler.extend((b'a'..=b'z').cycle().skip(line % 26).take(FILLER_LINE_OCTETS));
        filler.extend_from_slice(b"\r\n");
    }
    filler
}

/// Puts a dot before each line that begins with one (RFC 5321 4.5.2).
fn dot_stuffed(plain: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(plain.len() + 16);
    for line in plain.split_inclusive(|octet| *octet == b'\n') {
        let after_line_end = stuffed.is_empty() || stuffed.ends_with(b"\r\n");
        if line.starts_with(b".") && after_line_end {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed
}

/// Appends a decimal number.
pub(super) fn number(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mint(options: SourceOptions) -> Mint {
        Mint::new(&options, "run", "Mon, 02 Nov 2026 10:00:00 +0000").unwrap()
    }

    #[test]
    fn a_message_has_its_exact_size_and_good_lines() {
        for size in 300..620 {
            let mint = mint(SourceOptions { size, ..SourceOptions::default() });
            for n in [0, 9, 10, 12345, u64::MAX] {
                let mut out = Vec::new();
                mint.text(n, &mut out);
                let message = out.strip_suffix(b".\r\n").unwrap();
                assert_eq!(message.len(), size);
                let text = std::str::from_utf8(message).unwrap();
                assert!(text.ends_with("\r\n") && text.contains("\r\n\r\n"));
                assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
                assert!(text.lines().all(|line| line.len() <= 76), "{text}");
                assert!(text.contains(&format!("X-Ledger: run-{n}\r\n")));
                let mut out = Vec::new();
                mint.chunk(n, &mut out);
                assert!(out.starts_with(format!("BDAT {size} LAST\r\n").as_bytes()));
                assert!(out.ends_with(text.as_bytes()));
            }
        }
    }

    #[test]
    fn recipients_carry_the_number_and_differ() {
        let table: &[(&str, Option<u64>, &str)] = &[
            ("u@d%n.example", None, "<u@d12.example> <u+1@d12.example>"),
            ("u%n@d%n.example", Some(5), "<u2@d2.example> <u2+1@d2.example>"),
            ("u@example.com", None, "<u@example.com> <u+1@example.com>"),
        ];
        for (rcpt, domains, expected) in table {
            let mint = mint(SourceOptions {
                rcpt: (*rcpt).to_owned(),
                domains: *domains,
                recipients: 2,
                ..SourceOptions::default()
            });
            let mut out = Vec::new();
            mint.envelope(12, &mut out);
            let text = String::from_utf8(out).unwrap();
            let got: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("RCPT TO:")).collect();
            assert_eq!(got.join(" "), *expected);
        }
    }

    #[test]
    fn content_is_dot_stuffed_for_data_only() {
        let content = b".\r\n..a\r\nb.\r\n.".to_vec();
        let mint = mint(SourceOptions { content: Some(content), ..SourceOptions::default() });
        let mut out = Vec::new();
        mint.text(1, &mut out);
        assert!(out.ends_with(b"\r\n\r\n..\r\n...a\r\nb.\r\n..\r\n.\r\n"));
        out.clear();
        mint.chunk(1, &mut out);
        let head = String::from_utf8(out).unwrap();
        let octets: usize = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(head.split_once("LAST\r\n").unwrap().1.len(), octets);
    }

    #[test]
    fn the_null_reverse_path_stays_out_of_the_header() {
        let mint = mint(SourceOptions { from: String::new(), ..SourceOptions::default() });
        let mut out = Vec::new();
        mint.envelope(0, &mut out);
        mint.text(0, &mut out);
        assert!(out.starts_with(b"MAIL FROM:<>\r\n"));
        assert!(memchr::memmem::find(&out, b"From: <>").is_none());
    }

    #[test]
    fn a_size_below_the_header_and_foreign_line_ends_are_refused() {
        let small = SourceOptions { size: 20, ..SourceOptions::default() };
        assert!(matches!(Mint::new(&small, "r", "d"), Err(SourceError::Size { .. })));
        let subject = "a\r\nBcc: x".to_owned();
        let folded = SourceOptions { subject, ..SourceOptions::default() };
        assert!(matches!(Mint::new(&folded, "r", "d"), Err(SourceError::Text(_))));
    }
}
