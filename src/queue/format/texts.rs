//! Texts on disk: envelopes and names.
//!
//! Owns: their encoding; the layout is drawn in the parent's table. Never: their meaning.

use super::{ABSENT, checksum_append, checksum_at, u16_at, u32_at};

const HEAD_FIXED_OCTETS: usize = 8;
const RECIPIENT_FIXED_OCTETS: usize = 4;
const NAME_FIXED_OCTETS: usize = 8;

/// The texts of an envelope head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadTexts<'a> {
    /// The sender; `None`: the null sender.
    pub sender: Option<&'a [u8]>,
    /// ENVID.
    pub envid: Option<&'a [u8]>,
    /// Where the operator redirected the message to.
    pub redirect: Option<&'a [u8]>,
}

impl<'a> HeadTexts<'a> {
    /// Octets of the encoded head.
    #[must_use]
    pub fn octets(&self) -> usize {
        let text = |t: Option<&[u8]>| t.map_or(0, <[u8]>::len);
        HEAD_FIXED_OCTETS + text(self.sender) + text(self.envid) + text(self.redirect)
    }

    /// Appends the encoded head.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        for text in [self.sender, self.envid, self.redirect] {
            put_length(out, text);
        }
        out.extend_from_slice(&[0; 2]);
        for text in [self.sender, self.envid, self.redirect].into_iter().flatten() {
            out.extend_from_slice(text);
        }
    }

    /// Reads a head that takes all of `octets`.
    #[must_use]
    pub fn decode(octets: &'a [u8]) -> Option<Self> {
        let lengths = octets.get(..HEAD_FIXED_OCTETS)?;
        let mut rest = &octets[HEAD_FIXED_OCTETS..];
        let sender = take_text(&mut rest, u16_at(lengths, 0))?;
        let envid = take_text(&mut rest, u16_at(lengths, 2))?;
        let redirect = take_text(&mut rest, u16_at(lengths, 4))?;
        rest.is_empty().then_some(Self { sender, envid, redirect })
    }
}

/// The texts of a recipient's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecipientTexts<'a> {
    /// The address.
    pub address: &'a [u8],
    /// ORCPT.
    pub orcpt: Option<&'a [u8]>,
}

impl<'a> RecipientTexts<'a> {
    /// Octets of the encoded record.
    #[must_use]
    pub fn octets(&self) -> usize {
        RECIPIENT_FIXED_OCTETS + self.address.len() + self.orcpt.map_or(0, <[u8]>::len)
    }

    /// Appends the encoded record.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        put_length(out, Some(self.address));
        put_length(out, self.orcpt);
        out.extend_from_slice(self.address);
        out.extend_from_slice(self.orcpt.unwrap_or_default());
    }

    /// Reads a record that takes all of `octets`.
    #[must_use]
    pub fn decode(octets: &'a [u8]) -> Option<Self> {
        let lengths = octets.get(..RECIPIENT_FIXED_OCTETS)?;
        let mut rest = &octets[RECIPIENT_FIXED_OCTETS..];
        let address = take_text(&mut rest, u16_at(lengths, 0))??;
        let orcpt = take_text(&mut rest, u16_at(lengths, 2))?;
        rest.is_empty().then_some(Self { address, orcpt })
    }
}

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameKind {
    /// A receiving domain.
    Domain,
    /// A bounce profile or a listener.
    Label,
    /// A host of a last outcome.
    Host,
}

impl NameKind {
    fn code(self) -> u8 {
        match self {
            Self::Domain => 1,
            Self::Label => 2,
            Self::Host => 3,
        }
    }
}

/// Octets of the record of a name of `octets` octets.
#[must_use]
pub fn name_record_octets(octets: usize) -> u64 {
    (NAME_FIXED_OCTETS + octets).next_multiple_of(8) as u64
}

/// The record of a name at file offset `offset`; `text` is shorter than 65,536 octets.
#[must_use]
pub fn encode_name(seed: u32, offset: u64, kind: NameKind, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(NAME_FIXED_OCTETS + text.len() + 8);
    put_length(&mut out, Some(text));
    out.extend_from_slice(&[kind.code(), 0]);
    let sum = checksum_append(checksum_at(seed, offset, text), &out);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(text);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// Reads the name record at the start of `octets`, which stands at file offset `offset`.
#[must_use]
pub fn decode_name(seed: u32, offset: u64, octets: &[u8]) -> Option<(NameKind, &[u8])> {
    let fixed = octets.get(..NAME_FIXED_OCTETS)?;
    let text = octets.get(NAME_FIXED_OCTETS..NAME_FIXED_OCTETS + usize::from(u16_at(fixed, 0)))?;
    let sum = checksum_append(checksum_at(seed, offset, text), &fixed[..4]);
    if sum != u32_at(fixed, 4) {
        return None;
    }
    let kind = match fixed[2] {
        1 => NameKind::Domain,
        2 => NameKind::Label,
        3 => NameKind::Host,
        _ => return None,
    };
    Some((kind, text))
}

fn put_length(out: &mut Vec<u8>, text: Option<&[u8]>) {
    let length = text.map_or(ABSENT, |text| {
        let length = u16::try_from(text.len()).unwrap_or(ABSENT);
        assert!(length != ABSENT, "a text of an envelope or a name is longer than its limit");
        length
    });
    out.extend_from_slice(&length.to_le_bytes());
}

/// Takes a text of `length` octets off `rest`; the outer `None` means that it is not there.
#[expect(clippy::option_option, reason = "absent in the record and cut off are two things")]
fn take_text<'a>(rest: &mut &'a [u8], length: u16) -> Option<Option<&'a [u8]>> {
    if length == ABSENT {
        return Some(None);
    }
    let (text, behind) = rest.split_at_checked(usize::from(length))?;
    *rest = behind;
    Some(Some(text))
}
