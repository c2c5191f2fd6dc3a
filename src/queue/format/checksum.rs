//! The checksum of all that is on disk: CRC-32C (RFC 3720, section 12.1).
//!
//! Owns: the choice of the library. Never: what a checksum covers.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};

/// The checksum of `octets`.
#[must_use]
pub fn checksum(octets: &[u8]) -> u32 {
    crc32_iscsi(octets)
}

/// As [`checksum_append`], for at least four octets that may be changed. The sum of what came
/// before is added to the octets as they pass, bit by bit and to the first four of them alone, so
/// that it may as well stand in them. A digest takes longer to make than this takes for a slot.
#[must_use]
pub(super) fn checksum_append_in_place(sum: u32, octets: &mut [u8]) -> u32 {
    assert!(octets.len() >= 4, "a sum has four octets");
    octets.iter_mut().zip(sum.to_le_bytes()).for_each(|(octet, before)| *octet ^= before);
    checksum(octets)
}

/// The checksum of what `sum` is the checksum of and `octets` behind it.
#[must_use]
pub fn checksum_append(sum: u32, octets: &[u8]) -> u32 {
    // A finished sum is the state with all bits turned over.
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!sum));
    digest.update(octets);
    // A digest has room for sums of 64 bits.
    let [a, b, c, d, ..] = digest.finalize().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4, and the check value of the catalogue of parametrised CRC algorithms.
    #[test]
    fn known_octets_have_their_known_checksums() {
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(checksum(&rising), 0x46dd_794e);
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(b""), 0);
    }

    /// Wherever it is cut and however long it is: there is code of its own for many lengths.
    #[test]
    fn a_checksum_goes_on_where_another_ended() {
        let octets: Vec<u8> = (0..5_000u32).map(|i| i.to_le_bytes()[i as usize % 2]).collect();
        for end in (0..300).chain([508, 1_000, 4_095, 4_096, 5_000]) {
            let whole = octets[..end].iter().fold(0, |sum, octet| checksum_append(sum, &[*octet]));
            for cut in [0, end / 3, end] {
                let (front, back) = octets[..end].split_at(cut);
                assert_eq!(checksum_append(checksum(front), back), whole, "{cut} of {end}");
                if back.len() >= 4 {
                    let sum = checksum_append_in_place(checksum(front), &mut back.to_vec());
                    assert_eq!(sum, whole, "{cut} of {end}, in place");
                }
            }
        }
    }
}
