//! Unwind tables in the kernel's memory: where each file's rows lie, and which files a
//! target has mapped.
//!
//! Rows and rules are only ever added. A list of mappings is replaced by another one,
//! and its place used again only after the next: a walk that has seen it change is
//! thrown away by the eBPF side.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, Map, MapData, MapFd},
};
use memmap2::{MmapMut, MmapOptions};
use memscope_common::{
    control::MAX_TARGETS,
    unwind::{
        CACHE_WORDS, CFA_END, CFA_NONE, CHUNK_WORDS, Chunk, Epoch, MAPPING_FRAME_POINTERS,
        MAPPING_TABLE, MAX_CHUNKS, MAX_MAPPINGS, MAX_RULES, MAX_SPACE_MAPPINGS, Mapping,
        MappingList, PAGE_SHIFT, RULE_END, RULE_FRAME_POINTER, RULE_NONE, Rule, RuleCache, Rules,
        SpaceWord,
    },
};
use rustc_hash::{FxHashMap, FxHashSet};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{KernelError, plain::Plain, take_map, targets::Given};
use crate::{model::ModuleId, unwind::UnwindTable};

const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;

/// A file's table in the kernel's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedTable {
    /// Address, in the file's numbering, of the first page it speaks of.
    pub base_svma: u64,
    first_page: u32,
    page_count: u32,
}

/// Executable memory of a target, as it is to be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkableCode {
    /// First address.
    pub start_avma: u64,
    /// First address after it.
    pub end_avma: u64,
    /// Its table, and what to add to the file's addresses to get the target's.
    pub table: Option<(PlacedTable, u64)>,
}

/// What the tables take up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableUse {
    /// Files that have a table.
    pub files: u64,
    /// Rows of all tables.
    pub rows: u64,
    /// Different rules.
    pub rules: u64,
    /// Memory of the maps they are in, room for further ones included.
    pub bytes: u64,
    /// How much of it the rows are in, and what finds them.
    pub row_bytes: u64,
    /// Files without a table because there was no room.
    pub refused_files: u64,
}

/// The maps that the eBPF side walks by.
pub struct KernelTables {
    chunks: ArrayOfMaps<MapData, MapFd>,
    chunk_memory: Vec<(MapData, MmapMut)>,
    rules: MmapMut,
    rule_numbers: FxHashMap<Rule, u32>,
    mappings: MmapMut,
    cache: MmapMut,
    spaces: MmapMut,
    epochs: Array<MapData, Plain<Epoch>>,
    // The maps behind the memory above.
    _maps: [MapData; 4],
    next_word: u32,
    placed: FxHashMap<ModuleId, Option<PlacedTable>>,
    lists: FxHashMap<u16, Lists>,
    /// Lists of targets that have ended or have newer ones. Children of theirs may be walked by
    /// them still: they begin with what their parents have.
    retired: Vec<List>,
    free: FreeRanges,
    generation: u16,
    /// Those of all lists.
    generations: FxHashSet<u16>,
    given: Given,
    publications: u32,
    used: TableUse,
}

/// The lists of a target: the one in use, and the one before it, which a walk that began
/// then may still be reading.
#[derive(Default)]
struct Lists {
    current: Option<List>,
    previous: Option<List>,
}

struct List {
    range: std::ops::Range<u32>,
    generation: u16,
    /// What leads to it.
    word: SpaceWord,
}

impl KernelTables {
    pub(super) fn new(ebpf: &mut Ebpf, given: Given) -> Result<Self, KernelError> {
        let rules = array_data(ebpf, "RULES")?;
        let cache = array_data(ebpf, "RULE_CACHE")?;
        let mappings = array_data(ebpf, "MAPPINGS")?;
        let spaces = array_data(ebpf, "SPACES")?;
        let space_bytes = MAX_TARGETS as usize * size_of::<SpaceWord>();
        let chunks = take_map(ebpf, "CHUNKS")?;
        let mapping_bytes = MAX_MAPPINGS as usize * size_of::<Mapping>();
        let mut tables = Self {
            chunks,
            chunk_memory: Vec::new(),
            rules: map_memory("RULES", &rules, size_of::<Rules>())?,
            rule_numbers: FxHashMap::default(),
            mappings: map_memory("MAPPINGS", &mappings, mapping_bytes)?,
            cache: map_memory("RULE_CACHE", &cache, size_of::<RuleCache>())?,
            spaces: map_memory("SPACES", &spaces, space_bytes)?,
            epochs: take_map(ebpf, "EPOCHS")?,
            _maps: [rules, cache, mappings, spaces],
            next_word: 0,
            placed: FxHashMap::default(),
            lists: FxHashMap::default(),
            retired: Vec::new(),
            free: FreeRanges::new(MAX_MAPPINGS),
            generation: 0,
            generations: FxHashSet::default(),
            given,
            publications: 0,
            used: TableUse::default(),
        };
        let reserved = [(RULE_NONE, CFA_NONE), (RULE_END, CFA_END), (RULE_FRAME_POINTER, CFA_NONE)];
        for (number, kind) in reserved {
            tables.write_rule(number, Rule::of_kind(kind));
        }
        tables.used.rules = reserved.len() as u64;
        tables.used.bytes = (size_of::<Rules>() + mapping_bytes + size_of::<RuleCache>()) as u64;
        Ok(tables)
    }

    /// What the tables take up.
    #[must_use]
    pub fn table_use(&self) -> TableUse {
        self.used
    }

    /// What has changed in a target's address space since the trace began, as counted by
    /// the eBPF side.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn epoch(&self, target: u16) -> Result<Epoch, KernelError> {
        let epoch = self.epochs.get(&target.into(), 0);
        Ok(epoch.map_err(|source| KernelError::Map { map: "EPOCHS", source })?.0)
    }

    /// A file's table, if the file was brought here before; the inner one is none if there
    /// was no room.
    #[must_use]
    pub fn placed(&self, module: ModuleId) -> Option<Option<PlacedTable>> {
        self.placed.get(&module).copied()
    }

    /// Brings a file's table here; none if there is no room.
    ///
    /// # Errors
    ///
    /// If the kernel gives no memory.
    pub fn place(
        &mut self,
        module: ModuleId,
        table: &UnwindTable,
    ) -> Result<Option<PlacedTable>, KernelError> {
        if let Some(known) = self.placed(module) {
            return Ok(known);
        }
        let placed = self.copy_in(table)?;
        match placed {
            Some(_) => self.used.files += 1,
            None => self.used.refused_files += 1,
        }
        self.placed.insert(module, placed);
        Ok(placed)
    }

    fn copy_in(&mut self, table: &UnwindTable) -> Result<Option<PlacedTable>, KernelError> {
        let Some(rules) = self.number_rules(&table.rules) else { return Ok(None) };
        let Some(rows) = words_of(table, &rules) else { return Ok(None) };
        let page_count = rows.last().map_or(0, |row| (*row as u32 >> PAGE_SHIFT) + 1);
        let mut pages = Vec::with_capacity(page_count as usize);
        // Rows from `run_first` on have been written from word `run_word` on, until `run_end`.
        let (mut run_first, mut run_end, mut run_word) = (0, 0, self.next_word);
        for page in 0..page_count {
            let (begin, end) = rows_of_page(&rows, page);
            let first = run_word + (begin - run_first) as u32;
            let chunk_end = (first / CHUNK_WORDS as u32 + 1) * CHUNK_WORDS as u32;
            if first + (end - begin) as u32 > chunk_end {
                // A page's rows lie in one chunk: they are written again, in the next.
                (run_first, run_end, run_word) = (begin, begin, chunk_end);
            }
            let first = run_word + (begin - run_first) as u32;
            let new = rows.get(run_end..end).unwrap_or_default();
            if !self.write_words(run_word + (run_end - run_first) as u32, new)? {
                return Ok(None);
            }
            run_end = run_end.max(end);
            pages.push(u64::from(first) | ((end - begin) as u64) << 32);
        }
        let first_page = run_word + (run_end - run_first) as u32;
        if !self.write_words(first_page, &pages)? {
            return Ok(None);
        }
        self.next_word = first_page + page_count;
        self.used.row_bytes = u64::from(self.next_word) * size_of::<u64>() as u64;
        self.used.rows += rows.len() as u64;
        Ok(Some(PlacedTable { base_svma: table.base_svma, first_page, page_count }))
    }

    /// The kernel's numbers of a file's rules; none if there are too many.
    fn number_rules(&mut self, rules: &[Rule]) -> Option<Vec<u32>> {
        rules
            .iter()
            .map(|rule| {
                if *rule == Rule::of_kind(CFA_NONE) {
                    return Some(RULE_FRAME_POINTER);
                }
                if let Some(number) = self.rule_numbers.get(rule) {
                    return Some(*number);
                }
                let number = u32::try_from(self.used.rules).ok()?;
                if number as usize >= MAX_RULES {
                    return None;
                }
                self.write_rule(number, *rule);
                self.rule_numbers.insert(*rule, number);
                self.used.rules += 1;
                Some(number)
            })
            .collect()
    }

    fn write_rule(&mut self, number: u32, rule: Rule) {
        let at = number as usize * size_of::<Rule>();
        if let Some(place) = self.rules.get_mut(at..at + size_of::<Rule>()) {
            place.copy_from_slice(rule.as_bytes());
        }
    }

    /// False if there is no room.
    fn write_words(&mut self, number: u32, words: &[u64]) -> Result<bool, KernelError> {
        let (mut at, mut words) = (number as usize, words);
        while !words.is_empty() {
            let (chunk, inside) = (at / CHUNK_WORDS, at % CHUNK_WORDS);
            while self.chunk_memory.len() <= chunk {
                if self.chunk_memory.len() == MAX_CHUNKS {
                    return Ok(false);
                }
                self.add_chunk()?;
            }
            let (now, later) = words.split_at(words.len().min(CHUNK_WORDS - inside));
            let bytes = now.as_bytes();
            if let Some((_, memory)) = self.chunk_memory.get_mut(chunk)
                && let Some(place) = memory.get_mut(inside * 8..inside * 8 + bytes.len())
            {
                place.copy_from_slice(bytes);
            }
            (at, words) = (at + now.len(), later);
        }
        Ok(true)
    }

    /// Makes room for the next tables: a chunk, if less is left. While one is added the kernel
    /// waits until no program can still see its place empty (`maybe_wait_bpf_programs` in
    /// kernel/bpf/syscall.c), some ten milliseconds, in which what a target has just mapped
    /// should not wait for its tables.
    ///
    /// # Errors
    ///
    /// If the kernel gives no memory.
    pub fn make_room(&mut self) -> Result<(), KernelError> {
        let left = (self.chunk_memory.len() * CHUNK_WORDS).saturating_sub(self.next_word as usize);
        if left < CHUNK_WORDS && self.chunk_memory.len() < MAX_CHUNKS {
            self.add_chunk()?;
        }
        Ok(())
    }

    fn add_chunk(&mut self) -> Result<(), KernelError> {
        let error = |source| KernelError::Map { map: "CHUNKS", source };
        let parameters = aya_obj::Map::new_from_params(
            aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
            size_of::<u32>() as u32,
            size_of::<Chunk>() as u32,
            1,
            aya_obj::generated::BPF_F_MMAPABLE,
        );
        let chunk = MapData::create(parameters, "CHUNK", None).map_err(error)?;
        let memory = map_memory("CHUNKS", &chunk, size_of::<Chunk>())?;
        self.chunks.set(self.chunk_memory.len() as u32, chunk.fd(), 0).map_err(error)?;
        self.chunk_memory.push((chunk, memory));
        self.used.bytes += size_of::<Chunk>() as u64;
        Ok(())
    }

    /// From now on a target's stacks are walked by these tables. `code` is what was
    /// mapped at `read_at_ns` (`CLOCK_MONOTONIC`), in order of addresses, and `epoch` was
    /// read before that.
    ///
    /// # Errors
    ///
    /// If there is no room.
    pub fn publish(
        &mut self,
        target: u16,
        epoch: &Epoch,
        read_at_ns: u64,
        code: &[WalkableCode],
    ) -> Result<(), KernelError> {
        let mut elements: Vec<Mapping> = code.iter().flat_map(mappings_of).collect();
        if elements.len() > MAX_SPACE_MAPPINGS as usize {
            log::warn!(
                "a process has {} pieces of code, of which only {MAX_SPACE_MAPPINGS} are looked at",
                elements.len()
            );
            elements.truncate(MAX_SPACE_MAPPINGS as usize);
        }
        if self.is_published(target, epoch, &elements) {
            return Ok(());
        }
        let count = elements.len() as u32;
        let mut lists = self.lists.remove(&target).unwrap_or_default();
        self.retired.extend(lists.previous.take());
        self.reclaim();
        let Some(range) = self.free.take(count + 1) else {
            self.lists.insert(target, lists);
            return Err(KernelError::TooManyMappings { limit: MAX_MAPPINGS });
        };
        let generation = self.next_generation();
        let head = MappingList {
            image: epoch.image,
            removals: epoch.removals,
            read_at_ns,
            count,
            generation: generation.into(),
            padding: 0,
        };
        let at = range.start as usize * size_of::<Mapping>();
        let bytes: Vec<u8> = [head.as_bytes(), elements.as_bytes()].concat();
        if let Some(place) = self.mappings.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(&bytes);
        }
        self.publications = self.publications.wrapping_add(1).max(1);
        let word = u64::from(range.start) | u64::from(self.publications) << 32;
        if let Some(place) = self.space(target) {
            // After what was written before it.
            place.store(word, Ordering::Release);
        }
        lists.previous = lists.current.replace(List { range, generation, word });
        self.lists.insert(target, lists);
        Ok(())
    }

    /// Whether a target's stacks are walked by this list already. Another one would end walks that are under way, and all
    /// that is remembered of its rules and walks.
    fn is_published(&self, target: u16, epoch: &Epoch, elements: &[Mapping]) -> bool {
        let current = self.lists.get(&target).and_then(|lists| lists.current.as_ref());
        let Some(List { range, word, .. }) = current else { return false };
        let list = range.start as usize * size_of::<Mapping>()..;
        let known =
            self.mappings.get(list).and_then(|list| MappingList::read_from_prefix(list).ok());
        known.is_some_and(|(head, rest)| {
            (head.image, head.removals) == (epoch.image, epoch.removals)
                && head.count as usize == elements.len()
                && rest.starts_with(elements.as_bytes())
                && self.space(target).is_some_and(|space| space.load(Ordering::Acquire) == *word)
        })
    }

    fn space(&self, target: u16) -> Option<&AtomicU64> {
        let at = usize::from(target) * size_of::<SpaceWord>();
        let word = self.spaces.get(at..at + size_of::<SpaceWord>())?;
        // SAFETY: an aligned word of memory that lives as long as `self`; the programs read and
        // write it whole.
        Some(unsafe { &*word.as_ptr().cast::<AtomicU64>() })
    }

    /// A target has ended.
    pub(super) fn forget(&mut self, target: u16) {
        if let Some(space) = self.space(target) {
            space.store(0, Ordering::Release);
        }
        if let Some(lists) = self.lists.remove(&target) {
            self.retired.extend([lists.current, lists.previous].into_iter().flatten());
        }
    }

    /// Gives back the room of retired lists that no target has any more. No other can get one of
    /// them: children get their parents' newest.
    fn reclaim(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        let words: FxHashSet<SpaceWord> = (0..self.given.count())
            .filter_map(|target| self.space(target as u16))
            .map(|word| word.load(Ordering::Acquire))
            // Targets that have ended have none, and may be many.
            .filter(|word| *word != 0)
            .collect();
        for list in self.retired.extract_if(.., |list| !words.contains(&list.word)) {
            self.generations.remove(&list.generation);
            self.free.give_back(list.range);
        }
    }

    /// One that no list has. After the last one the first come again, and nothing
    /// remembered of them may be left.
    fn next_generation(&mut self) -> u16 {
        loop {
            self.generation = self.generation.wrapping_add(1);
            if self.generation == 0 {
                let words = self.cache.get_mut(..CACHE_WORDS * size_of::<u64>());
                words.unwrap_or_default().fill(0);
            }
            if self.generations.insert(self.generation) {
                return self.generation;
            }
        }
    }
}

/// A table's rows as the kernel has them, the first at offset 0; none for a table that
/// contradicts itself.
fn words_of(table: &UnwindTable, rules: &[u32]) -> Option<Vec<u64>> {
    let mut words = Vec::with_capacity(table.rows.len() + 1);
    if table.rows.first().is_some_and(|row| row.offset > 0) {
        words.push(u64::from(RULE_FRAME_POINTER) << 32);
    }
    for row in &table.rows {
        let rule = rules.get(row.rule as usize)?;
        words.push(u64::from(row.offset) | u64::from(*rule) << 32);
    }
    Some(words)
}

/// First and after-last of the rows that hold in a page.
fn rows_of_page(rows: &[u64], page: u32) -> (usize, usize) {
    let begin = u64::from(page) << PAGE_SHIFT;
    let before = |limit: u64| rows.partition_point(|row| u64::from(*row as u32) < limit);
    // The row that holds at the begin of the page may begin before it.
    let first = rows.partition_point(|row| u64::from(*row as u32) <= begin).saturating_sub(1);
    (first, before(begin + PAGE_BYTES))
}

/// Code outside of what its table speaks of has none.
fn mappings_of(code: &WalkableCode) -> Vec<Mapping> {
    let WalkableCode { start_avma, end_avma, table } = *code;
    let without = |start_avma: u64, end_avma: u64| Mapping {
        start_avma,
        end_avma,
        bias_avma: start_avma,
        first_page: 0,
        kind: MAPPING_FRAME_POINTERS,
    };
    let Some((table, load_bias)) = table else { return vec![without(start_avma, end_avma)] };
    let bias_avma = table.base_svma.wrapping_add(load_bias);
    let table_end = bias_avma.saturating_add(u64::from(table.page_count) << PAGE_SHIFT);
    let (from, until) = (start_avma.max(bias_avma), end_avma.min(table_end));
    if from >= until {
        return vec![without(start_avma, end_avma)];
    }
    let with = Mapping {
        start_avma: from,
        end_avma: until,
        bias_avma,
        first_page: table.first_page,
        kind: MAPPING_TABLE,
    };
    [without(start_avma, from), with, without(until, end_avma)]
        .into_iter()
        .filter(|mapping| mapping.start_avma < mapping.end_avma)
        .collect()
}

/// Which parts of a map are free.
struct FreeRanges {
    /// In order, none touching another.
    ranges: Vec<std::ops::Range<u32>>,
}

impl FreeRanges {
    fn new(count: u32) -> Self {
        Self { ranges: std::iter::once(0..count).collect() }
    }

    fn take(&mut self, count: u32) -> Option<std::ops::Range<u32>> {
        let range = self.ranges.iter_mut().find(|range| range.len() >= count as usize)?;
        let taken = range.start..range.start + count;
        range.start = taken.end;
        self.ranges.retain(|range| !range.is_empty());
        Some(taken)
    }

    fn give_back(&mut self, range: std::ops::Range<u32>) {
        let at = self.ranges.partition_point(|free| free.start < range.start);
        self.ranges.insert(at, range);
        self.ranges.dedup_by(|later, earlier| {
            let touches = earlier.end == later.start;
            if touches {
                earlier.end = later.end;
            }
            touches
        });
    }
}

pub(super) fn array_data(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, KernelError> {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(KernelError::Missing { what: name }),
    }
}

pub(super) fn map_memory(
    name: &'static str,
    map: &MapData,
    length_bytes: usize,
) -> Result<MmapMut, KernelError> {
    // SAFETY: it is memory of the kernel's that no file can shrink; the eBPF side only
    // reads it, and the cache, which it writes as well, is only ever filled with zeros.
    unsafe { MmapOptions::new().len(length_bytes).map_mut(map.fd().as_fd().as_raw_fd()) }
        .map_err(|source| KernelError::MapMemory { map: name, source })
}
