//! Numbers of seven bits a byte, least significant first, the high bit set in all but
//! the last.

/// Most bytes of a number of 64 bits.
const MAX_VARINT_BYTES: u32 = 10;

pub(super) fn push(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a number off the beginning; none if there is no whole one, or a larger one than
/// 64 bits hold.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (first, mut rest) = bytes.split_first()?;
    let mut value = u64::from(first & 0x7f);
    let mut byte = *first;
    for position in 1..MAX_VARINT_BYTES {
        if byte < 0x80 {
            break;
        }
        let (next, after) = rest.split_first()?;
        byte = *next;
        rest = after;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if position == MAX_VARINT_BYTES - 1 && byte > 1 {
            return None;
        }
        value |= bits << (7 * position);
    }
    *bytes = rest;
    Some(value)
}

/// Takes a number of 32 bits off the beginning.
pub(super) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).and_then(|value| u32::try_from(value).ok())
}

/// The sign in the lowest bit, so that small numbers of either sign are small.
pub(super) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1 ^ (value & 1).wrapping_neg()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_pushed_is_taken(value: u64, shift in 0..64_u32) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            push(&mut bytes, value);
            let cut = bytes.len() - 1;
            prop_assert_eq!(take(&mut &bytes[..cut]), None);
            bytes.push(7);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(take(&mut rest), Some(value));
            prop_assert_eq!(rest, [7]);
        }

        #[test]
        fn zigzag_keeps_every_number(value: i64) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }
    }

    #[test]
    fn numbers_are_as_documented() {
        assert_eq!([0, -1, 1, -2].map(zigzag), [0, 1, 2, 3]);
        let mut bytes = Vec::new();
        push(&mut bytes, 300);
        assert_eq!(bytes, [0xac, 0x02]);
    }

    #[test]
    fn larger_ones_than_64_bits_are_refused() {
        let mut largest = [0xff; 10];
        largest[9] = 1;
        assert_eq!(take(&mut largest.as_slice()), Some(u64::MAX));
        largest[9] = 2;
        assert_eq!(take(&mut largest.as_slice()), None);
        assert_eq!(take(&mut [0x80; 11].as_slice()), None);
        assert_eq!(take_u32(&mut [0xff; 5].as_slice()), None);
    }
}
