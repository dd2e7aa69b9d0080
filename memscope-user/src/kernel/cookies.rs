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
    /// pages neither is known from then on, as the address does not tell them apart. None is ever
    /// taken out, so that no later probe can take the place of one that may still be hit.
    fn add(&mut self, file_offset: u64, cookie: Cookie) -> Option<(u32, Cookie)> {
        let index = known_cookie_index(file_offset);
        let known = match self.0.get(&index) {
            None => cookie,
            Some(known) if *known == cookie || *known == UNKNOWN_COOKIE => return None,
            Some(_) => UNKNOWN_COOKIE,
        };
        self.0.insert(index, known);
        Some((index, known))
    }
}

#[cfg(test)]
mod tests {
    use memscope_common::control::{Arguments, NO_ARGUMENT};

    use super::*;

    fn cookie(probe: u16) -> Cookie {
        let arguments =
            Arguments { size: 0, count: NO_ARGUMENT, block: NO_ARGUMENT, result_slot: NO_ARGUMENT };
        Cookie::new(probe, arguments)
    }

    #[test]
    fn a_cookie_is_known_at_its_place_of_any_page() {
        assert_eq!(known_cookie_index(0x9_8930), known_cookie_index(0x7f12_3456_7930));
        assert_ne!(known_cookie_index(0x9_8930), known_cookie_index(0x7f12_3456_7934));
    }

    #[test]
    fn of_two_probes_in_one_place_neither_is_known() {
        let mut told = Told::default();
        let (index, known) = told.add(0x9_8930, cookie(1)).unwrap();
        assert_eq!(known, cookie(1));
        assert_eq!(told.add(0x9_8930, cookie(1)), None, "the same once more");
        assert_eq!(told.add(0x1934, cookie(2)).map(|(_, known)| known), Some(cookie(2)));
        assert_eq!(told.add(0x2930, cookie(3)), Some((index, UNKNOWN_COOKIE)));
        assert_eq!(told.add(0x3930, cookie(4)), None, "nor a third");
        assert_eq!(told.add(0x9_8930, cookie(1)), None, "nor the first when attached anew");
    }
}
