//! Foreign bytes made safe for one line of text.
//!
//! Owns: the one escaping rule of log, reports and status pages. Never: a decision on what is
//! shown.
//!
//! A peer can never make a line, move a terminal's cursor or reverse the reading direction: C0
//! and C1 controls, DEL, bidirectional overrides, line and paragraph separators, the byte order
//! mark and bytes that are not UTF-8 come out as `\n`, `\r`, `\t`, `\x1b` or `\u{202e}`. The
//! backslash is left alone, so that the log reads like the peer's text.

/// Appends `bytes` to `out`, UTF-8, escaped, and stops before `out` would pass `octets_max` octets.
pub fn escape_into(out: &mut Vec<u8>, bytes: &[u8], octets_max: usize) {
    // Nearly all text is plain, and fits. Without a way out of the loop many octets are looked at
    // in one step.
    let fits = bytes.len() <= octets_max.saturating_sub(out.len());
    let plain = bytes.iter().fold(true, |plain, b| plain & matches!(b, 0x20..0x7f));
    if fits && plain {
        return out.extend_from_slice(bytes);
    }
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        if valid.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            let room = octets_max.saturating_sub(out.len());
            out.extend_from_slice(&valid.as_bytes()[..valid.len().min(room)]);
            if valid.len() > room {
                return;
            }
        } else {
            for c in valid.chars() {
                if !push_char(out, c, octets_max) {
                    return;
                }
            }
        }
        for byte in chunk.invalid() {
            if !push_piece(out, &format!("\\x{byte:02x}"), octets_max) {
                return;
            }
        }
    }
}

/// `bytes` escaped, at most `octets_max` octets long.
#[must_use]
pub fn escape(bytes: &[u8], octets_max: usize) -> String {
    let mut out = Vec::with_capacity(bytes.len().min(octets_max));
    escape_into(&mut out, bytes, octets_max);
    String::from_utf8(out).expect("what is escaped is UTF-8")
}

fn push_char(out: &mut Vec<u8>, c: char, octets_max: usize) -> bool {
    let escaped = match c {
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        c if u32::from(c) < 0x20 || ('\u{7f}'..='\u{9f}').contains(&c) => {
            format!("\\x{:02x}", u32::from(c))
        }
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => {
            format!("\\u{{{:x}}}", u32::from(c))
        }
        '\u{61c}' | '\u{feff}' => format!("\\u{{{:x}}}", u32::from(c)),
        c => c.to_string(),
    };
    push_piece(out, &escaped, octets_max)
}

fn push_piece(out: &mut Vec<u8>, piece: &str, octets_max: usize) -> bool {
    let fits = out.len() + piece.len() <= octets_max;
    if fits {
        out.extend_from_slice(piece.as_bytes());
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_could_use_comes_out_as_text() {
        let table: &[(&[u8], &str)] = &[
            (b"plain text 'quoted' \\ kept", "plain text 'quoted' \\ kept"),
            (b"a\nb\rc\td", "a\\nb\\rc\\td"),
            (b"\x1b[31mred\x00\x07\x7f", "\\x1b[31mred\\x00\\x07\\x7f"),
            ("caf\u{e9} \u{9b}31m".as_bytes(), "caf\u{e9} \\x9b31m"),
            (
                "\u{202e}evil\u{2066}\u{feff}\u{200b}".as_bytes(),
                "\\u{202e}evil\\u{2066}\\u{feff}\\u{200b}",
            ),
            (b"\xff\xfe ok \xc3", "\\xff\\xfe ok \\xc3"),
            ("\u{2028}\u{2029}".as_bytes(), "\\u{2028}\\u{2029}"),
        ];
        for (input, expected) in table {
            assert_eq!(escape(input, 4096), *expected);
        }
    }

    #[test]
    fn the_cap_holds_and_never_cuts_a_character() {
        for cap in 0..40 {
            let out = escape("aé\n\u{202e}bcdefghijklmnop\x1b".as_bytes(), cap);
            assert!(out.len() <= cap);
        }
    }
}
