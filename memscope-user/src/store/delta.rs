//! Times and addresses of successive events lie close together; written as
//! differences they take one to three bytes in place of seven.

use crate::model::Event;

/// The previous event of the same chunk; zero at its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delta {
    time_ns: u64,
    address_avma: u64,
}

/// Difference with its sign in the lowest bit, so that small ones of either sign
/// are small numbers.
fn difference(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from) as i64;
    (difference << 1 ^ difference >> 63) as u64
}

fn sum(from: u64, difference: u64) -> u64 {
    from.wrapping_add(difference >> 1 ^ (difference & 1).wrapping_neg())
}

impl Delta {
    pub(super) fn encode(&mut self, event: &Event) -> Event {
        self.transform(event, |previous, value| {
            let encoded = difference(*previous, value);
            *previous = value;
            encoded
        })
    }

    pub(super) fn decode(&mut self, event: &Event) -> Event {
        self.transform(event, |previous, value| {
            *previous = sum(*previous, value);
            *previous
        })
    }

    fn transform(&mut self, event: &Event, step: impl Fn(&mut u64, u64) -> u64) -> Event {
        let mut event = *event;
        match &mut event {
            Event::Allocation { time_ns, address_avma, .. }
            | Event::Free { time_ns, address_avma, .. }
            | Event::ReallocationBegin { time_ns, old_address_avma: address_avma, .. } => {
                *time_ns = step(&mut self.time_ns, *time_ns);
                *address_avma = step(&mut self.address_avma, *address_avma);
            }
            Event::ReallocationEnd { time_ns, old_address_avma, new_address_avma, .. } => {
                *time_ns = step(&mut self.time_ns, *time_ns);
                *old_address_avma = step(&mut self.address_avma, *old_address_avma);
                *new_address_avma = step(&mut self.address_avma, *new_address_avma);
            }
            Event::ThreadExit { time_ns, .. } => *time_ns = step(&mut self.time_ns, *time_ns),
            Event::Loss { first_lost_ns, time_ns, .. } => {
                *first_lost_ns = step(&mut self.time_ns, *first_lost_ns);
                *time_ns = step(&mut self.time_ns, *time_ns);
            }
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn differences_add_up(from: u64, to: u64) {
            prop_assert_eq!(sum(from, difference(from, to)), to);
        }
    }

    #[test]
    fn near_values_are_small() {
        assert_eq!(difference(10, 11), 2);
        assert_eq!(difference(11, 10), 1);
    }
}
