//! Where functions without symbols begin and end.

use std::collections::{BTreeMap, BTreeSet};

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};
use object::{Object, ObjectSection as _};

/// Largest section that is searched.
const MAX_SECTION_BYTES: u64 = 1 << 28;

/// How long the function is that begins at an address of the file's own numbering, as its call
/// frame information says; none if none begins there, or nothing is said of it.
pub(super) fn length_of_function<'data>(elf: &impl Object<'data>, svma: u64) -> Option<u64> {
    lengths_of_functions(elf, &BTreeSet::from([svma])).get(&svma).copied()
}

/// The same of several, by where they begin.
pub(super) fn lengths_of_functions<'data>(
    elf: &impl Object<'data>,
    wanted: &BTreeSet<u64>,
) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    let Some(section) = elf.section_by_name(".eh_frame") else { return found };
    let Some(bytes) = section.data().ok().filter(|_| section.size() <= MAX_SECTION_BYTES) else {
        return found;
    };
    let frames = EhFrame::new(bytes, LittleEndian);
    let text = elf.section_by_name(".text").map_or(0, |text| text.address());
    let bases = BaseAddresses::default().set_eh_frame(section.address()).set_text(text);
    let mut entries = frames.entries(&bases);
    while found.len() < wanted.len()
        && let Ok(Some(entry)) = entries.next()
    {
        if let CieOrFde::Fde(entry) = entry
            && let Ok(entry) = entry.parse(EhFrame::cie_from_offset)
            && wanted.contains(&entry.initial_address())
        {
            found.entry(entry.initial_address()).or_insert(entry.len());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSymbol as _};

    use super::*;

    #[test]
    fn functions_begin_where_symbols_say_and_nowhere_else() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let own = "functions_begin_where_symbols_say_and_nowhere_else";
        let symbol = elf.symbols().find(|symbol| {
            symbol.size() > 16 && symbol.name().is_ok_and(|name| name.contains(own))
        });
        let symbol = symbol.unwrap();
        assert_eq!(length_of_function(&elf, symbol.address()), Some(symbol.size()));
        assert_eq!(length_of_function(&elf, symbol.address() + 1), None);
        assert_eq!(length_of_function(&elf, 0), None);
    }
}
