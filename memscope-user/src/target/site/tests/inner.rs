//! Calls that are told inside of what they call.

use std::collections::BTreeSet;

use super::OLD;
use crate::target::{
    CalledCode,
    site::{ArgumentSet, Calls, InnerCall, Midst, ProbeNeed, ProbeSite, choose_sites},
};

/// malloc and what it calls, from the machine code of a C library.
struct Glibc {
    malloc: Vec<u8>,
    never_return: BTreeSet<u64>,
    called: CalledCode,
}

impl Glibc {
    fn read(fixture: &str) -> Self {
        let mut lines = fixture.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let byte = |at| u8::from_str_radix(&words[2][at..at + 2], 16).unwrap();
            let code = (0..words[2].len()).step_by(2).map(byte).collect();
            let ends = words[3].split(',').map(|at| u64::from_str_radix(at, 16).unwrap()).collect();
            CalledCode { distance: words[1].parse().unwrap(), code, never_return: ends }
        });
        let malloc = lines.next().unwrap();
        let (malloc, never_return) = (malloc.code, malloc.never_return);
        Self { malloc, never_return, called: lines.next().unwrap() }
    }

    fn sites(&self, called: &[CalledCode]) -> Vec<ProbeSite> {
        let need = ProbeNeed { arguments: ArgumentSet::of([0]), block: None };
        let calls = Calls { never_return: &self.never_return, called };
        choose_sites(&self.malloc, need, OLD, Some(calls))
    }
}

/// How many words below each other return addresses and saved registers lie in both versions: malloc saves three registers and
/// has two words, `_int_malloc` saves six and has five.
const MALLOC_BYTES: u16 = 40;
const INNER_BYTES: u16 = 88;

#[test]
fn what_malloc_has_another_function_find_is_told_there() {
    let gives = |register, condition| Midst::Gives { register, condition, was_noted: false };
    let (rcx, equal) = (Some(1), Some(4));
    // Where it goes on to the return, whether or not blocks are to be filled with a byte; or there is none.
    let places_2_36 = [
        (0x4bc, gives(rcx, equal)),
        (0x4d4, gives(rcx, None)),
        (0x5d0, gives(rcx, equal)),
        (0x600, gives(None, None)),
    ];
    let places_2_41 = [
        (0x4fc, gives(rcx, equal)),
        (0x514, gives(rcx, None)),
        (0x603, gives(rcx, equal)),
        (0x730, gives(None, None)),
    ];
    // Behind the calls with an arena that has to be locked, which are tried again if they find none, and that of a program with
    // one thread. In 2.36 what the first two of a new thread find cannot be told apart behind them.
    let returns_2_36 = [(0x99, false), (0x19a, true)];
    let returns_2_41 = [(0xfe, false), (0x1c0, false), (0x202, true)];
    let versions = [
        (include_str!("../fixtures/inner-glibc-2.36-debian12.txt"), &returns_2_36[..], places_2_36),
        (include_str!("../fixtures/inner-glibc-2.41-debian13.txt"), &returns_2_41[..], places_2_41),
    ];
    for (fixture, returns, places) in versions {
        let glibc = Glibc::read(fixture);
        let sites = glibc.sites(std::slice::from_ref(&glibc.called));
        let inside: Vec<&ProbeSite> = sites.iter().filter(|site| site.inner.is_some()).collect();
        for (offset, midst) in places {
            let site = inside.iter().find(|site| site.offset == offset).unwrap();
            let inner = site.inner.unwrap();
            let depth_bytes = if site.midst == Some(gives(None, None)) { 0 } else { INNER_BYTES };
            assert_eq!(site.midst, Some(midst), "{offset:#x}");
            assert_eq!(inner.depth_bytes, MALLOC_BYTES + 8);
            assert_eq!(site.frame.depth_bytes, MALLOC_BYTES + 8 + depth_bytes);
            // malloc's caller's are where malloc has saved them.
            let saved = (site.frame.rbp_depth_bytes, site.frame.rbx_depth_bytes);
            assert_eq!(saved, (Some(16), Some(24)));
            let from = glibc.called.distance + offset as i64;
            let call = |(to, tells_failure): &(i64, bool)| InnerCall {
                return_distance: i32::try_from(to - from).unwrap(),
                tells_failure: *tells_failure,
            };
            let calls: Vec<InnerCall> = returns.iter().map(call).collect();
            assert_eq!(inner.calls.into_iter().flatten().collect::<Vec<_>>(), calls);
        }
        let known = |sites: &[ProbeSite]| sites.iter().any(|site| site.inner.is_some());
        // If what it calls is not known, or may go on where it does not, all is as before.
        let noted = |sites: &[ProbeSite]| sites.iter().any(|site| site.midst == Some(Midst::Notes));
        assert!(!noted(&sites), "nothing has to be noted before");
        assert!(!known(&glibc.sites(&[])) && noted(&glibc.sites(&[])));
        let endless = CalledCode { never_return: BTreeSet::new(), ..glibc.called.clone() };
        let sites = glibc.sites(&[endless]);
        assert!(!known(&sites) && noted(&sites));
    }
}
