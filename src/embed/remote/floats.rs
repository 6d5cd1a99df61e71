//! Vectors as base64 of little-endian 32-bit floats: a quarter of the bytes of decimal numbers, and exact.

/// Decodes standard base64, padding optional, into floats. `None` if it is not base64, or not a whole number of floats.
pub(super) fn decode(text: &str) -> Option<Vec<f32>> {
    let digits = text.trim_end_matches('=').as_bytes();
    // A group of four digits is three bytes; one digit alone cannot be.
    if digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for &digit in group {
            bits = bits << 6 | u32::from(value(digit)?);
        }
        // Left-aligned in 24 bits, as if padded with zeros.
        bits <<= 6 * (4 - group.len());
        bytes.extend(bits.to_be_bytes().iter().skip(1).take(group.len() - 1));
    }
    let (floats, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// RFC 4648, table 1.
fn value(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_base64_of_floats_is_refused() {
        for bad in ["A", "AAAA", "AAAAA", "AA-AAA==", "AAAAAA=A", "ÄAAAAA=="] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(decode(""), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn floats_come_back_bit_by_bit(bits in prop::collection::vec(any::<u32>(), 0..40)) {
            let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
            for text in [STANDARD.encode(&bytes), STANDARD_NO_PAD.encode(&bytes)] {
                let decoded: Vec<u32> = decode(&text).unwrap().into_iter().map(f32::to_bits).collect();
                prop_assert_eq!(&decoded, &bits);
            }
        }

        #[test]
        fn any_text_is_decoded_or_refused(text in ".{0,60}") {
            let _ = decode(&text);
        }
    }
}
