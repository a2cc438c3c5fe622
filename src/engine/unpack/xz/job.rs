//! Threads that decode a block each, and the memory they share.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use liblzma::stream::{Action, Stream};

use super::{BlockHeader, STREAM_HEADER};
use crate::unpack::codec::Fault;

/// Blocks decoded at once. More are not fed by one stream within the memory.
pub(super) const MAX_JOBS: usize = 8;
/// Bytes handed on at once.
const PIECE: usize = 256 << 10;

/// Bytes that may have come out and wait for those of the blocks before them: a block as `xz -6` makes it.
const WAITING: usize = 24 << 20;
/// Bytes of these that may be of the first block, for which nothing has to wait. Beyond `WAITING`.
const FIRST: usize = 4 << 20;
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
    /// What did not fit into the output any more.
    left: Vec<u8>,
    at: usize,
}

struct Job {
    pieces: Receiver<Piece>,
    cost: u64,
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
    /// Buffers that were emptied. Allocated anew by each thread, they would take twice the memory.
    free: Vec<Vec<u8>>,
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

    fn change(&self, change: impl FnOnce(&mut RoomState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Crew {
    pub fn new(most: usize) -> Self {
        Self { jobs: VecDeque::new(), most: most.max(1), started: 0, room: Arc::default(), left: Vec::new(), at: 0 }
    }

    /// Whether a file of blocks like this is worth it.
    pub fn suits(block: &BlockHeader) -> bool {
        block.cost() <= COST / 2 && SIZES.contains(&block.size)
    }

    /// Whether anything is still to come out.
    pub fn busy(&self) -> bool {
        !self.jobs.is_empty() || self.at < self.left.len()
    }

    /// Whether a block that takes `cost` bytes may be added. One that takes more than there is for all has to be alone.
    pub fn has_room(&self, cost: u64) -> bool {
        let taken = self.jobs.iter().fold(cost, |sum, job| sum.saturating_add(job.cost));
        self.jobs.is_empty() || (self.jobs.len() < self.most && taken <= COST)
    }

    /// Begins to decode `block`, of which `size` bytes come out, in `memory` bytes beside what it has `cost`.
    pub fn start(
        &mut self,
        header: [u8; STREAM_HEADER],
        block: Vec<u8>,
        (size, cost): (u64, u64),
        memory: u64,
    ) -> Result<(), Fault> {
        let (sender, pieces) = unbounded();
        let (room, number) = (self.room.clone(), self.started);
        self.started = self.started.saturating_add(1);
        let decode = move || decode(&header, &block, size, memory, &sender, &room, number);
        thread::Builder::new()
            .name("vitrine-xz".to_owned())
            .spawn(decode)
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
            let mut emptied = std::mem::take(&mut self.left);
            self.at = 0;
            if emptied.capacity() > 0 {
                emptied.clear();
                self.room.change(|state| state.free.push(emptied));
            }
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

/// Decodes block `number` as a stream of its own, which the library checks like any. An empty piece says that it is whole and its check
/// right.
fn decode(header: &[u8], block: &[u8], size: u64, memory: u64, sender: &Sender<Piece>, room: &Room, number: u64) {
    let mut give = |piece: Vec<u8>| room.enter(number, piece.len()) && sender.send(Ok(piece)).is_ok();
    let result = decode_pieces(header, block, size, memory, room, &mut give);
    // Whoever would hear it may have gone.
    drop(sender.send(result.map(|()| Vec::new())));
}

fn decode_pieces(
    header: &[u8],
    block: &[u8],
    size: u64,
    memory: u64,
    room: &Room,
    give: &mut dyn FnMut(Vec<u8>) -> bool,
) -> Result<(), String> {
    let mut stream = Stream::new_stream_decoder(memory, 0).map_err(|e| e.to_string())?;
    let mut piece = room.buffer();
    stream.process_vec(header, &mut piece, Action::Run).map_err(|e| e.to_string())?;
    let end = (header.len() as u64).saturating_add(block.len() as u64);
    loop {
        let before = (stream.total_in(), stream.total_out());
        let start = usize::try_from(before.0).unwrap_or(usize::MAX).saturating_sub(header.len());
        let rest = block.get(start..).unwrap_or_default();
        stream.process_vec(rest, &mut piece, Action::Run).map_err(|e| match e {
            liblzma::stream::Error::MemLimit => {
                "it was packed with a larger dictionary than the memory set aside for unpacking holds".to_owned()
            }
            other => other.to_string(),
        })?;
        let (done, stuck) = (stream.total_in() == end, (stream.total_in(), stream.total_out()) == before);
        if done && stream.total_out() == size {
            if !piece.is_empty() {
                give(piece);
            }
            return Ok(());
        }
        if stuck || done {
            return Err("a block has another length than its header says".to_owned());
        }
        if piece.len() == piece.capacity() && !give(std::mem::replace(&mut piece, room.buffer())) {
            return Ok(());
        }
    }
}
