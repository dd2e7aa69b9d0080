use std::cell::{Cell, RefCell};

use serde::{Serialize, Serializer, ser::SerializeSeq as _};

use crate::{
    lifetimes::LiveBlock,
    model::ProcessId,
    reports::{BlockFate, ReadError, hexadecimal},
};

/// Gives every block of the recording to its argument, as
/// [`crate::reports::replay_blocks`] does.
pub type BlockSource<'a> =
    &'a mut dyn FnMut(&mut dyn FnMut(BlockFate<'_>)) -> Result<(), ReadError>;

/// Serializes as the list of all blocks, once.
pub(super) struct Blocks<'a> {
    source: RefCell<BlockSource<'a>>,
    error: Cell<Option<ReadError>>,
}

/// How a block ended.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum End {
    Freed,
    Live,
    /// Its address was given out again, so it had ended, at some time before.
    Unseen,
}

#[derive(Serialize)]
struct BlockJson {
    process: u32,
    #[serde(serialize_with = "hexadecimal")]
    address: u64,
    size: u64,
    /// How many blocks it counts for, and how many bytes: itself, if it was not sampled.
    weight: u64,
    weight_bytes: u64,
    site: u32,
    thread: u32,
    allocated_ns: u64,
    freed_ns: Option<u64>,
    freed_by_thread: Option<u32>,
    end: End,
    /// For a block whose end was not seen: when its address was given out again.
    ended_before_ns: Option<u64>,
    /// When the first block of its chain of reallocations began.
    chain_allocated_ns: u64,
}

impl BlockJson {
    fn live(process: ProcessId, address_avma: u64, block: &LiveBlock) -> Self {
        Self {
            process: process.0,
            address: address_avma,
            size: block.size_bytes,
            weight: block.weight.blocks,
            weight_bytes: block.weight.bytes,
            site: block.site,
            thread: block.thread.0,
            allocated_ns: block.allocated_ns,
            freed_ns: None,
            freed_by_thread: None,
            end: End::Live,
            ended_before_ns: None,
            chain_allocated_ns: block.chain_allocated_ns,
        }
    }

    fn of(fate: BlockFate<'_>) -> Self {
        match fate {
            BlockFate::Live { process, address_avma, block } => {
                Self::live(process, address_avma, block)
            }
            BlockFate::Ended(ended) => {
                let block = Self::live(ended.process, ended.address_avma, &ended.block);
                match ended.freed_by {
                    Some(thread) => Self {
                        freed_ns: Some(ended.freed_ns),
                        freed_by_thread: Some(thread.0),
                        end: End::Freed,
                        ..block
                    },
                    None => {
                        Self { ended_before_ns: Some(ended.freed_ns), end: End::Unseen, ..block }
                    }
                }
            }
        }
    }
}

impl<'a> Blocks<'a> {
    pub(super) fn new(source: BlockSource<'a>) -> Self {
        Self { source: RefCell::new(source), error: Cell::new(None) }
    }

    /// Why the source could not give all, if it could not.
    pub(super) fn into_error(self) -> Option<ReadError> {
        self.error.into_inner()
    }
}

impl Serialize for Blocks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        let mut written = Ok(());
        let mut each = |fate: BlockFate<'_>| {
            // After a failure the rest is passed over: the source cannot be stopped.
            if written.is_ok() {
                written = list.serialize_element(&BlockJson::of(fate));
            }
        };
        let mut source = self.source.borrow_mut();
        if let Err(error) = (*source)(&mut each) {
            self.error.set(Some(error));
        }
        written?;
        list.end()
    }
}
