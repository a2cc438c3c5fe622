//! Threads that decode a block each, and the memory they share.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use liblzma::stream::{Action, Stream};

use super::{BlockHeader, STREAM_HEADER};
use crate::unpack::codec::{Fault, lacks_memory};

/// Blocks decoded at once. More are not fed by one stream within the memory.
pub(super) const MAX_JOBS: usize = 8;
/// Bytes handed on at once.
const PIECE: usize = 256 << 10;

/// Bytes that may have come out and wait for those of the blocks before them. Two thirds of a block as `xz -6` makes it: a thread that
/// has to stop there is behind the other from then on, and does not have to stop again.
const WAITING: usize = 16 << 20;
/// Bytes of these that may be of the first block, for which nothing has to wait. Beyond `WAITING`.
const FIRST: usize = 2 << 20;
/// What the blocks in hand may take beside what comes out of them: their packed bytes and their dictionaries, of 8 MiB with `xz -6`.
const COST: u64 = 36 << 20;
/// Smallest and largest block that is worth a thread of its own and its memory, by what comes out.
const SIZES: std::ops::RangeInclusive<u64> = 256 << 10..=32 << 20;

type Piece = Result<Vec<u8>, String>;

/// The blocks being decoded, in order.
pub(super) struct Crew {
    jobs: VecDeque<Job>,
    most: usize,
    started: u64,
    room: Arc<Room>,
    /// Of the block that comes next: its bytes so far, and how many they are.
    next: Vec<Vec<u8>>,
    collected: usize,
    /// What did not fit into the output any more.
    left: Vec<u8>,
    at: usize,
}

struct Job {
    pieces: Receiver<Piece>,
    cost: u64,
}

/// A block in the hands of a thread.
struct Task {
    number: u64,
    header: [u8; STREAM_HEADER],
    packed: Vec<Vec<u8>>,
    size: u64,
    decoder: Option<Stream>,
    memory: u64,
}

/// What the threads share.
#[derive(Default)]
struct Room {
    state: Mutex<RoomState>,
    changed: Condvar,
}

#[derive(Default)]
struct RoomState {
    /// Bytes that wait, of all blocks.
    waiting: usize,
    /// Number of the first block.
    first: u64,
    /// Whether nobody waits for them any more.
    closed: bool,
    /// Buffers that were emptied, and decoders that ended a block. What each thread allocates anew and gives back, the allocator keeps
    /// for a while in too many places: that takes more than all that is in use.
    free: Vec<Vec<u8>>,
    decoders: Vec<Stream>,
}

impl Room {
    /// Waits until block `number` may hand on `length` bytes more. False if nobody wants them.
    fn enter(&self, number: u64, length: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let most = if number == state.first { WAITING.saturating_add(FIRST) } else { WAITING };
            if state.closed || state.waiting.saturating_add(length) <= most {
                state.waiting = state.waiting.saturating_add(length);
                return !state.closed;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// An empty buffer of `PIECE` bytes.
    fn buffer(&self) -> Vec<u8> {
        let free = self.state.lock().unwrap_or_else(PoisonError::into_inner).free.pop();
        free.unwrap_or_else(|| Vec::with_capacity(PIECE))
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 {
            buffer.clear();
            self.change(|state| state.free.push(buffer));
        }
    }

    fn change(&self, change: impl FnOnce(&mut RoomState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Crew {
    pub fn new(most: usize) -> Self {
        let (jobs, next, left) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { jobs, most: most.max(1), started: 0, room: Arc::default(), next, collected: 0, left, at: 0 }
    }

    /// Whether a file of blocks like this is worth it.
    pub fn suits(block: &BlockHeader) -> bool {
        block.cost() <= COST / 2 && SIZES.contains(&block.size)
    }

    /// Whether a block like this can be added, when there is room.
    pub fn takes(block: &BlockHeader) -> bool {
        block.cost() <= COST
    }

    /// Whether anything is still to come out.
    pub fn busy(&self) -> bool {
        !self.jobs.is_empty() || self.at < self.left.len()
    }

    /// Whether a block that takes `cost` bytes may be added now.
    pub fn has_room(&self, cost: u64) -> bool {
        let taken = self.jobs.iter().fold(cost, |sum, job| sum.saturating_add(job.cost));
        self.jobs.len() < self.most && taken <= COST
    }

    /// How much there is of the block that comes next, in bytes.
    pub fn collected(&self) -> usize {
        self.collected
    }

    /// Takes more of the block that comes next.
    pub fn collect(&mut self, mut bytes: &[u8]) {
        self.collected = self.collected.saturating_add(bytes.len());
        while !bytes.is_empty() {
            if self.next.last().is_none_or(|last| last.len() >= last.capacity()) {
                self.next.push(self.room.buffer());
            }
            let Some(last) = self.next.last_mut() else { return };
            let (now, rest) = bytes.split_at(bytes.len().min(last.capacity().saturating_sub(last.len())));
            last.extend_from_slice(now);
            bytes = rest;
        }
    }

    /// Begins to decode the block that was collected, of which `size` bytes come out, in `memory` bytes beside what it has `cost`.
    pub fn start(&mut self, header: [u8; STREAM_HEADER], (size, cost): (u64, u64), memory: u64) -> Result<(), Fault> {
        let (sender, pieces) = unbounded();
        let (room, number) = (self.room.clone(), self.started);
        let mut decoder = None;
        room.change(|state| {
            decoder = state.decoders.pop();
            // Those in use and those left over are never more than were in use at once.
            state.decoders.clear();
        });
        let packed = std::mem::take(&mut self.next);
        let task = Task { number, header, packed, size, decoder, memory };
        (self.started, self.collected) = (self.started.saturating_add(1), 0);
        thread::Builder::new()
            .name("vitrine-xz".to_owned())
            .spawn(move || decode(task, &sender, &room))
            .map_err(|e| format!("starting a thread: {e}"))?;
        self.jobs.push_back(Job { pieces, cost });
        Ok(())
    }

    /// Appends what has come out, as far as there is room for it. With `wait`, waits until something has.
    pub fn give(&mut self, output: &mut Vec<u8>, mut wait: bool) -> Result<(), Fault> {
        loop {
            let ready = self.left.get(self.at..).unwrap_or_default();
            let now = ready.len().min(output.capacity().saturating_sub(output.len()));
            output.extend_from_slice(ready.get(..now).unwrap_or_default());
            self.at = self.at.saturating_add(now);
            wait &= now == 0;
            if self.at < self.left.len() {
                return Ok(());
            }
            self.room.give_back(std::mem::take(&mut self.left));
            self.at = 0;
            let Some(job) = self.jobs.front_mut() else { return Ok(()) };
            let piece = match job.pieces.try_recv() {
                Err(TryRecvError::Empty) if wait => job.pieces.recv().ok(),
                Err(TryRecvError::Empty) => return Ok(()),
                result => result.ok(),
            };
            let piece = piece.ok_or("the thread that decoded a block ended without saying why")??;
            if piece.is_empty() {
                self.jobs.pop_front();
                self.room.change(|state| state.first = state.first.saturating_add(1));
                // There is room for another block now.
                wait = false;
                continue;
            }
            self.room.change(|state| state.waiting = state.waiting.saturating_sub(piece.len()));
            self.left = piece;
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.room.change(|state| state.closed = true);
    }
}

/// Decodes a block as a stream of its own, which the library checks like any. An empty piece says that it is whole and its check right.
fn decode(task: Task, sender: &Sender<Piece>, room: &Room) {
    let number = task.number;
    let mut give = |piece: Vec<u8>| room.enter(number, piece.len()) && sender.send(Ok(piece)).is_ok();
    let result = decode_pieces(task, room, &mut give);
    // Whoever would hear it may have gone.
    drop(sender.send(result.map(|decoder| {
        room.change(|state| state.decoders.extend(decoder));
        Vec::new()
    })));
}

/// Gives the decoder back, if it can go on with another block.
fn decode_pieces(task: Task, room: &Room, give: &mut dyn FnMut(Vec<u8>) -> bool) -> Result<Option<Stream>, String> {
    let Task { header, packed, size, decoder, memory, .. } = task;
    let mut piece = room.buffer();
    // To a decoder that has done others, it is one more block of the same stream.
    let mut stream = match decoder {
        Some(stream) => stream,
        None => begin(&header, memory, &mut piece)?,
    };
    let length = packed.iter().fold(0, |sum: u64, part| sum.saturating_add(part.len() as u64));
    let end = (stream.total_in().saturating_add(length), stream.total_out().saturating_add(size));
    let mut parts = packed.into_iter();
    let (mut part, mut at) = (parts.next().unwrap_or_default(), 0);
    loop {
        let before = (stream.total_in(), stream.total_out());
        stream.process_vec(part.get(at..).unwrap_or_default(), &mut piece, Action::Run).map_err(|e| match e {
            liblzma::stream::Error::MemLimit => lacks_memory(),
            other => other.to_string(),
        })?;
        let now = (stream.total_in(), stream.total_out());
        at = at.saturating_add(usize::try_from(now.0.saturating_sub(before.0)).unwrap_or(usize::MAX));
        if now == end {
            room.give_back(part);
            return Ok((piece.is_empty() || give(piece)).then_some(stream));
        }
        if now == before || now.0 == end.0 {
            return Err("a block has another length than its header says".to_owned());
        }
        if at >= part.len()
            && let Some(next) = parts.next()
        {
            room.give_back(std::mem::replace(&mut part, next));
            at = 0;
        }
        if piece.len() == piece.capacity() && !give(std::mem::replace(&mut piece, room.buffer())) {
            return Ok(None);
        }
    }
}

fn begin(header: &[u8], memory: u64, nothing: &mut Vec<u8>) -> Result<Stream, String> {
    let mut stream = Stream::new_stream_decoder(memory, 0).map_err(|e| e.to_string())?;
    stream.process_vec(header, nothing, Action::Run).map_err(|e| e.to_string())?;
    Ok(stream)
}
