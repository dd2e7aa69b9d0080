//! The types of the running kernel, as far as they are asked for: its BTF
//! (Documentation/bpf/btf.rst), gone through once.

use std::{fs, io, ops::Range};

/// The types of the running kernel.
pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
/// The kind of arrays.
const ARRAY: u32 = 3;
/// Of struct, union, section and 64-bit enumerations, each.
const MEMBER_BYTES: usize = 12;

/// What a type is (`BTF_KIND_` in `include/uapi/linux/btf.h`), of those that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Struct = 4,
    Typedef = 8,
    Function = 12,
}

/// Types that were found, by what was asked for.
pub(super) struct KernelTypes<'a> {
    bytes: Vec<u8>,
    types: Range<usize>,
    names: Range<usize>,
    found: Vec<(Kind, &'a str, Place)>,
}

/// Where a type is.
#[derive(Clone, Copy)]
struct Place {
    id: u32,
    position: usize,
    count: usize,
    has_bit_fields: bool,
}

impl<'a> KernelTypes<'a> {
    /// Looks for types of the running kernel.
    pub(super) fn find(wanted: &[(Kind, &'a str)]) -> io::Result<Self> {
        Self::find_in(fs::read(KERNEL_BTF)?, wanted)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// None if these are no types.
    fn find_in(bytes: Vec<u8>, wanted: &[(Kind, &'a str)]) -> Option<Self> {
        let magic = u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?);
        let header = word(&bytes, 4)? as usize;
        if magic != MAGIC || header < HEADER_BYTES {
            return None;
        }
        let part = |offset: usize| -> Option<Range<usize>> {
            let start = header.checked_add(word(&bytes, offset)? as usize)?;
            let end = start.checked_add(word(&bytes, offset + 4)? as usize)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let (types, names) = (part(8)?, part(16)?);
        let mut found: Vec<(Kind, &str, Place)> = Vec::with_capacity(wanted.len());
        // 0 is void, which is not written.
        let (mut id, mut position) = (1, types.start);
        while position < types.end {
            let info = word(&bytes, position + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let is_wanted = |(of, name): &&(Kind, &'a str)| {
                *of as u32 == kind
                    && is_named(&bytes, &names, word(&bytes, position).unwrap_or(0), name)
                    && !found.iter().any(|(known, other, _)| known == of && other == name)
            };
            if [Kind::Struct, Kind::Typedef, Kind::Function].iter().any(|of| *of as u32 == kind)
                && let Some((kind, name)) = wanted.iter().find(is_wanted)
            {
                let has_bit_fields = info >> 31 != 0;
                found.push((*kind, name, Place { id, position, count, has_bit_fields }));
            }
            position = position.checked_add(TYPE_BYTES + bytes_after(kind, count)?)?;
            id += 1;
        }
        Some(Self { bytes, types, names, found })
    }

    fn place(&self, kind: Kind, name: &str) -> Option<Place> {
        let is_it = |(of, known, _): &&(Kind, &str, Place)| *of == kind && *known == name;
        self.found.iter().find(is_it).map(|(_, _, place)| *place)
    }

    /// The kernel's number for a type that was asked for.
    pub(super) fn id(&self, kind: Kind, name: &str) -> Option<u32> {
        self.place(kind, name).map(|place| place.id)
    }

    /// Byte offset of a direct member of a struct that was asked for.
    pub(super) fn member_offset(&self, of: &str, member: &str) -> Option<u32> {
        self.member(self.place(Kind::Struct, of)?, member).map(|found| found.offset)
    }

    /// How many bytes a struct has that was asked for.
    pub(super) fn size(&self, of: &str) -> Option<u32> {
        word(&self.bytes, self.place(Kind::Struct, of)?.position + 8)
    }

    /// Byte offset of a member of a struct, or of a struct without a name in it, that is an array
    /// of another struct; both were asked for.
    pub(super) fn array_offset(&self, of: &str, member: &str, element: &str) -> Option<u32> {
        let place = self.place(Kind::Struct, of)?;
        let found = self.member(place, member).or_else(|| self.nested(place, member))?;
        let array = self.position(found.type_id)?;
        let is_array = word(&self.bytes, array + 4)? >> 24 & 0x1f == ARRAY;
        let is_of_element =
            word(&self.bytes, array + TYPE_BYTES)? == self.place(Kind::Struct, element)?.id;
        (is_array && is_of_element).then_some(found.offset)
    }

    fn members(&self, place: Place) -> impl Iterator<Item = (u32, Member)> {
        (0..place.count).map_while(move |number| {
            let position = place.position + TYPE_BYTES + number * MEMBER_BYTES;
            let bits = word(&self.bytes, position + 8)?;
            let offset = if place.has_bit_fields { bits & 0x00ff_ffff } else { bits } / 8;
            let type_id = word(&self.bytes, position + 4)?;
            Some((word(&self.bytes, position)?, Member { type_id, offset }))
        })
    }

    fn member(&self, place: Place, name: &str) -> Option<Member> {
        let mut members = self.members(place);
        let is_it = |(of, _): &(u32, Member)| is_named(&self.bytes, &self.names, *of, name);
        members.find(is_it).map(|(_, member)| member)
    }

    /// A member of a struct without a name that is a member.
    fn nested(&self, place: Place, name: &str) -> Option<Member> {
        self.members(place).filter(|(name, _)| *name == 0).find_map(|(_, outer)| {
            let position = self.position(outer.type_id)?;
            let info = word(&self.bytes, position + 4)?;
            if info >> 24 & 0x1f != Kind::Struct as u32 {
                return None;
            }
            let (count, has_bit_fields) = ((info & 0xffff) as usize, info >> 31 != 0);
            let place = Place { id: outer.type_id, position, count, has_bit_fields };
            let inner = self.member(place, name)?;
            Some(Member { offset: outer.offset.checked_add(inner.offset)?, ..inner })
        })
    }

    /// Where the type of a number is.
    fn position(&self, id: u32) -> Option<usize> {
        let mut position = self.types.start;
        for _ in 1..id {
            let info = word(&self.bytes, position + 4)?;
            let after = bytes_after(info >> 24 & 0x1f, (info & 0xffff) as usize)?;
            position = position.checked_add(TYPE_BYTES + after)?;
        }
        (id != 0 && position < self.types.end).then_some(position)
    }
}

/// A member of a struct.
#[derive(Clone, Copy)]
struct Member {
    type_id: u32,
    offset: u32,
}

/// What follows the first words of a type, by its kind and its number of members; none for a
/// kind that is not known.
fn bytes_after(kind: u32, count: usize) -> Option<usize> {
    match kind {
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => Some(4),
        // Pointers, forward declarations, other names, qualifiers, functions, floats, tags.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Arrays.
        3 => Some(12),
        // Structs, unions, sections, 64-bit enumerations.
        4 | 5 | 15 | 19 => Some(count * MEMBER_BYTES),
        // Enumerations, prototypes.
        6 | 13 => Some(count * 8),
        _ => None,
    }
}

fn word(bytes: &[u8], position: usize) -> Option<u32> {
    let bytes = bytes.get(position..position.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Whether the name at an offset is this one.
fn is_named(bytes: &[u8], names: &Range<usize>, offset: u32, name: &str) -> bool {
    let names = bytes.get(names.clone()).unwrap_or_default();
    let rest = names.get(offset as usize..).unwrap_or_default();
    rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: [(Kind, &str); 2] = [(Kind::Struct, "task"), (Kind::Function, "run")];

    /// An integer, `struct task` of two members, `run`.
    fn types() -> Vec<u8> {
        let names = b"\0int\0task\0pid\0utask\0run\0";
        let types: [u32; 19] = [
            1,
            1 << 24,
            4,
            32, // int
            5,
            4 << 24 | 2,
            16, // struct task
            10,
            1,
            0, // pid
            14,
            1,
            64, // utask
            20,
            12 << 24,
            3, // run
            20,
            2 << 24,
            1, // a pointer of the same name
        ];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for number in [24, 0, 19 * 4, 19 * 4, names.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(types.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(names);
        bytes
    }

    #[test]
    fn numbers_and_offsets_are_those_written() {
        let types = KernelTypes::find_in(types(), &WANTED).unwrap();
        assert_eq!(types.id(Kind::Struct, "task"), Some(2));
        assert_eq!(types.id(Kind::Function, "run"), Some(3));
        assert_eq!(types.id(Kind::Function, "task"), None);
        assert_eq!(types.member_offset("task", "pid"), Some(0));
        assert_eq!(types.member_offset("task", "utask"), Some(8));
        assert_eq!(types.member_offset("task", "utas"), None);
        assert_eq!(types.member_offset("run", "pid"), None);
    }

    #[test]
    fn what_is_cut_short_gives_none() {
        let whole = types();
        for length in 0..whole.len() {
            assert!(KernelTypes::find_in(whole[..length].to_vec(), &WANTED).is_none(), "{length}");
        }
    }

    /// `struct task`, whose only member is a struct without a name, with an array of `run`.
    fn nested_types(element: u32) -> Vec<u8> {
        let names = b"\0task\0run\0counts\0";
        let types: [u32; 24] = [
            1,
            4 << 24 | 1,
            64, // struct task
            0,
            2,
            64, // without a name
            0,
            4 << 24 | 1,
            32, // that
            10,
            3,
            128, // counts
            0,
            3 << 24,
            0, // array
            element,
            0,
            4,
            6,
            4 << 24 | 1,
            40, // struct run
            6,
            0,
            0, // a member of the same name
        ];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for number in [24, 0, 24 * 4, 24 * 4, names.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(types.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(names);
        bytes
    }

    #[test]
    fn arrays_are_found_in_structs_without_a_name_and_known_by_their_elements() {
        let wanted = [(Kind::Struct, "task"), (Kind::Struct, "run")];
        let types = KernelTypes::find_in(nested_types(4), &wanted).unwrap();
        assert_eq!(types.array_offset("task", "counts", "run"), Some(8 + 16));
        assert_eq!(types.array_offset("task", "count", "run"), None);
        assert_eq!(types.member_offset("task", "counts"), None);
        assert_eq!(types.size("run"), Some(40));
        let others = KernelTypes::find_in(nested_types(1), &wanted).unwrap();
        assert_eq!(others.array_offset("task", "counts", "run"), None);
        for change in 0..nested_types(4).len() {
            let mut bytes = nested_types(4);
            bytes[change] ^= 0xff;
            if let Some(types) = KernelTypes::find_in(bytes, &wanted) {
                types.array_offset("task", "counts", "run");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_types_or_none(change in 0_usize..140, byte: u8) {
            let mut bytes = types();
            let place = change % bytes.len();
            bytes[place] = byte;
            if let Some(types) = KernelTypes::find_in(bytes, &WANTED) {
                types.member_offset("task", "utask");
            }
        }
    }
}
