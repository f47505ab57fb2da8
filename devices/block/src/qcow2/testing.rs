//! For tests: a storage in memory that remembers in which order it was written, and images in it.

use std::sync::{Arc, Mutex, MutexGuard};

use super::create::{CreateOptions, create};
use super::header::Header;
use super::image::Image;
use super::layer::Layer;
use crate::storage::Storage;
use crate::{BlockError, Buffer, IoError};

/// What was done to a storage.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Write(usize, Vec<u8>),
    Punch(usize, usize),
    Sync,
    /// A mark of the test's own.
    Mark(usize),
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    events: Vec<Event>,
    /// Calls that succeed before all fail.
    left: Option<usize>,
}

impl State {
    fn step(&mut self) -> Result<(), IoError> {
        match &mut self.left {
            Some(0) => Err(IoError::Host(libc::EIO)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Bytes in memory.
#[derive(Default)]
pub(super) struct Memory(Mutex<State>);

impl Memory {
    pub(super) fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { bytes, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    pub(super) fn mark(&self, mark: usize) {
        self.lock().events.push(Event::Mark(mark));
    }

    /// All calls after so many fail; none does for `None`.
    pub(super) fn fail_after(&self, calls: Option<usize>) {
        self.lock().left = calls;
    }
}

/// Does to `bytes` what the event says.
pub(super) fn apply(bytes: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(offset, data) => {
            let end = offset + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[*offset..end].copy_from_slice(data);
        }
        Event::Punch(offset, len) => {
            let end = (offset + len).min(bytes.len());
            bytes[(*offset).min(end)..end].fill(0);
        }
        Event::Sync | Event::Mark(_) => {}
    }
}

impl Storage for Memory {
    fn end(&self) -> Result<u64, IoError> {
        Ok(self.lock().bytes.len() as u64)
    }

    fn alignment(&self) -> u32 {
        1
    }

    fn read(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        let mut state = self.lock();
        state.step()?;
        let start = usize::try_from(offset).unwrap().min(state.bytes.len());
        let end = (start + len).min(state.bytes.len());
        buffer.copy_in(at, &state.bytes[start..end]);
        buffer.clear_part(at + end - start, len - (end - start));
        Ok(())
    }

    fn read_now(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> bool {
        self.read(offset, buffer, at, len).is_ok()
    }

    fn write(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        // As a file system that is full would.
        if offset > 1 << 25 {
            return Err(IoError::NoSpace);
        }
        let mut data = vec![0; len];
        assert_eq!(buffer.copy_out(at, &mut data), len);
        let mut state = self.lock();
        state.step()?;
        let event = Event::Write(offset as usize, data);
        apply(&mut state.bytes, &event);
        state.events.push(event);
        Ok(())
    }

    fn sync(&self) -> Result<(), IoError> {
        let mut state = self.lock();
        state.step()?;
        state.events.push(Event::Sync);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) {
        let mut state = self.lock();
        let event = Event::Punch(offset as usize, len as usize);
        apply(&mut state.bytes, &event);
        state.events.push(event);
    }

    fn hold(&self, _held: bool) -> Result<(), BlockError> {
        Ok(())
    }

    fn hole(&self, _offset: u64, _most: u64) -> u64 {
        0
    }
}

/// A raw image in memory.
pub(super) fn raw(bytes: Vec<u8>) -> Arc<Layer> {
    let size = bytes.len() as u64;
    Arc::new(Layer::Raw { storage: Memory::new(bytes), size })
}

/// An empty image of that version, in memory.
pub(super) fn empty(size: u64, cluster_size: u64, version: u8) -> Arc<Memory> {
    let memory = Memory::new(Vec::new());
    create(&*memory, size, &CreateOptions { cluster_size, backing: None }).unwrap();
    // Where the header of version 2 ends, an extension of kind 0 ends the others.
    memory.lock().bytes[7] = version;
    memory.lock().events.clear();
    memory
}

/// The image in memory, before `backing`.
pub(super) fn open(memory: &Arc<Memory>, backing: Option<Arc<Layer>>) -> Image {
    let storage: Arc<dyn Storage> = memory.clone();
    let header = Header::read(&*storage).unwrap();
    Image::new(storage, header, backing, false, true).unwrap()
}

/// What the image holds from `offset` on.
pub(super) fn content(image: &Image, offset: u64, len: usize) -> Vec<u8> {
    let buffer = Buffer::zeroed(len);
    image.read(offset, &buffer, 0, len).unwrap();
    let mut bytes = vec![0; len];
    buffer.copy_out(0, &mut bytes);
    bytes
}

/// A buffer with that in it.
pub(super) fn buffer(bytes: &[u8]) -> Buffer {
    let buffer = Buffer::zeroed(bytes.len());
    buffer.copy_in(0, bytes);
    buffer
}
