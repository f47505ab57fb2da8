//! A connection of two skeps that breaks where a test wants it to.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use skep_vmm::migrate::wire::Kind;

/// How much of a frame arrives where the connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Nothing.
    None,
    /// Half of it.
    Half,
    /// All.
    Whole,
}

/// What happens at the first frame of a kind, or at one by its number.
#[derive(Clone)]
pub enum Fault {
    /// The connection breaks at the frame that comes as that one of both directions, the first being 0, when the other side has so much of it.
    Cut(usize, Part),
    /// The connection breaks before the other side has any of it.
    Before(Kind),
    /// The connection breaks when the other side has half of it.
    Within(Kind),
    /// The connection breaks when the other side has it.
    After(Kind),
    /// It arrives, and so does nothing after it.
    Stall(Kind),
    /// This is done before the other side has it.
    Call(Kind, Arc<dyn Fn() + Send + Sync>),
}

impl Fault {
    fn is_at(&self, number: usize, found: u32) -> bool {
        match self {
            Self::Cut(frame, _) => *frame == number,
            Self::Before(kind) | Self::Within(kind) | Self::After(kind) | Self::Stall(kind) | Self::Call(kind, _) => {
                *kind as u32 == found
            }
        }
    }
}

/// Leads from `at` to who listens at `to`, and lets faults happen, one after the other.
pub struct Proxy {
    faults: Arc<Mutex<Vec<Fault>>>,
    seen: Arc<Mutex<Vec<u32>>>,
}

impl Proxy {
    pub fn start(at: &Path, to: PathBuf, mut faults: Vec<Fault>) -> Self {
        faults.reverse();
        let listener = UnixListener::bind(at).unwrap();
        let it = Self { faults: Arc::new(Mutex::new(faults)), seen: Arc::default() };
        let (faults, seen) = (it.faults.clone(), it.seen.clone());
        thread::spawn(move || {
            while let Ok((source, _)) = listener.accept() {
                // Who has ended is not there any more.
                let Ok(target) = UnixStream::connect(&to) else { continue };
                let broken = Arc::<Mutex<bool>>::default();
                for (from, into) in [(&source, &target), (&target, &source)] {
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let (faults, seen, broken) = (faults.clone(), seen.clone(), broken.clone());
                    thread::spawn(move || {
                        let _ = lead(&from, &into, &faults, &seen, &broken);
                        close(&from, &into);
                    });
                }
            }
        });
        it
    }

    /// The kinds of the frames that came, in order.
    pub fn seen(&self) -> Vec<u32> {
        self.seen.lock().unwrap().clone()
    }

    /// Whether all faults have happened.
    pub fn is_done(&self) -> bool {
        self.faults.lock().unwrap().is_empty()
    }
}

fn close(from: &UnixStream, into: &UnixStream) {
    let _ = from.shutdown(Shutdown::Both);
    let _ = into.shutdown(Shutdown::Both);
}

/// Hands frames on until a fault. When one direction breaks, nothing passes in the other any more.
fn lead(
    mut from: &UnixStream,
    mut into: &UnixStream,
    faults: &Mutex<Vec<Fault>>,
    seen: &Mutex<Vec<u32>>,
    broken: &Mutex<bool>,
) -> std::io::Result<()> {
    loop {
        let mut frame = vec![0; 16];
        from.read_exact(&mut frame)?;
        let kind = u32::from_le_bytes(*frame[4..].first_chunk().unwrap());
        let length = u64::from_le_bytes(*frame[8..].first_chunk().unwrap());
        from.take(length).read_to_end(&mut frame)?;
        let mut broken = broken.lock().unwrap();
        if *broken {
            return Ok(());
        }
        let fault = {
            let (mut seen, mut faults) = (seen.lock().unwrap(), faults.lock().unwrap());
            let number = seen.len();
            seen.push(kind);
            if faults.last().is_some_and(|fault| fault.is_at(number, kind)) { faults.pop() } else { None }
        };
        let part = match &fault {
            Some(Fault::Before(_) | Fault::Cut(_, Part::None)) => 0,
            Some(Fault::Within(_) | Fault::Cut(_, Part::Half)) => frame.len() / 2,
            _ => frame.len(),
        };
        if let Some(Fault::Call(_, call)) = &fault {
            call();
        }
        into.write_all(&frame[..part])?;
        match fault {
            None | Some(Fault::Call(..)) => {}
            Some(Fault::Before(_) | Fault::Within(_) | Fault::After(_) | Fault::Cut(..)) => {
                *broken = true;
                close(from, into);
                return Ok(());
            }
            Some(Fault::Stall(_)) => {
                drop(broken);
                let mut nothing = [0];
                // Until who sends hangs up.
                while from.read(&mut nothing)? > 0 {}
                return Ok(());
            }
        }
    }
}
