//! Cookies that hits find by their address, without asking the kernel.

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use memscope_common::control::{Cookie, UNKNOWN_COOKIE, known_cookie_index};
use rustc_hash::FxHashMap;

use super::{KernelError, take_map};

/// Keeps the programs' table of cookies.
pub(super) struct KnownCookies {
    map: Array<MapData, u64>,
    told: Told,
}

/// What is in the table, by index; see [`Told::add`].
#[derive(Default)]
struct Told(FxHashMap<u32, Cookie>);

impl KnownCookies {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self { map: take_map(ebpf, "COOKIES")?, told: Told::default() })
    }

    /// To be called before a probe is attached.
    pub(super) fn tell(&mut self, file_offset: u64, cookie: Cookie) -> Result<(), KernelError> {
        let Some((index, known)) = self.told.add(file_offset, cookie) else { return Ok(()) };
        self.map
            .set(index, known.0, 0)
            .map_err(|source| KernelError::Map { map: "COOKIES", source })
    }
}

impl Told {
    /// What to change in the table for a probe that will be attached. Of two in one place of their
    /// pages neither is known from then on, as the address does not tell them apart; of two that only
    /// share an entry, the first. An entry never becomes free, so that no later probe can take
    /// it while one without an entry has its place.
    fn add(&mut self, file_offset: u64, cookie: Cookie) -> Option<(u32, Cookie)> {
        let index = known_cookie_index(cookie.target(), file_offset);
        let known = match self.0.get(&index) {
            None => cookie,
            Some(known) if *known != cookie && known.can_be_at(file_offset) => UNKNOWN_COOKIE,
            Some(_) => return None,
        };
        self.0.insert(index, known);
        Some((index, known))
    }
}

#[cfg(test)]
mod tests {
    use memscope_common::control::{Arguments, NO_ARGUMENT};

    use super::*;

    fn cookie(target: u16, probe: u16, file_offset: u64) -> Cookie {
        let arguments =
            Arguments { size: 0, count: NO_ARGUMENT, block: NO_ARGUMENT, result_slot: NO_ARGUMENT };
        Cookie::new(target, probe, arguments).of_place(file_offset)
    }

    #[test]
    fn a_cookie_is_known_at_its_place_of_any_page() {
        let known = cookie(3, 1, 0x9_8930);
        assert!(known.can_be_at(0x7f12_3456_7930));
        assert!(!known.can_be_at(0x7f12_3456_7934));
        for none in [Cookie(0), UNKNOWN_COOKIE] {
            assert!(!none.can_be_at(0x7f12_3456_7000), "none is at the begin of a page");
        }
        let indices = [0x9_8930, 0x7f12_3456_7930].map(|at| known_cookie_index(3, at));
        assert_eq!(indices[0], indices[1]);
    }

    #[test]
    fn of_two_probes_in_one_place_neither_is_known() {
        let mut told = Told::default();
        let first = cookie(3, 1, 0x9_8930);
        let (index, known) = told.add(0x9_8930, first).unwrap();
        assert_eq!(known, first);
        assert_eq!(told.add(0x9_8930, first), None, "the same once more");
        assert_eq!(told.add(0x1934, cookie(3, 2, 0x1934)), None, "shares the entry only");
        assert_eq!(told.add(0x2930, cookie(3, 3, 0x2930)), Some((index, UNKNOWN_COOKIE)));
        assert_eq!(told.add(0x2934, cookie(3, 4, 0x2934)), None, "one there has no entry");
        assert_eq!(told.add(0x9_8930, first), None, "nor when attached anew");
        let other = cookie(4, 3, 0x2930);
        assert_eq!(
            told.add(0x2930, other).map(|(_, known)| known),
            Some(other),
            "of another target"
        );
    }
}
