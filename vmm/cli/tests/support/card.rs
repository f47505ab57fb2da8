//! A vhost-user backend of a network card: between two pairs of queues and a tap interface. The protocol is rust-vmm's: `vhost-user-backend`.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use skep_net::{Link, LinkQueue, MAX_FRAME, Offloads, Tap, own_memory};
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::{ShutdownHandle, VhostUserBackendMut, VhostUserDaemon, VringMutex, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

const PAIRS: usize = 2;
/// What wakes it besides the queues, whose tokens come first, and the end.
const TAP: u64 = 2 * PAIRS as u64 + 1;
/// A frame of this length, with its header, is one that somebody has yet to cut.
const LARGE: usize = 1600;
/// `VIRTIO_NET_F_GUEST_` features, and what they let the other side leave to do; and all features of such a backend.
const RECEIVED: [(u64, Offloads); 4] =
    [(1, Offloads::CHECKSUM), (7, Offloads::TSO4), (8, Offloads::TSO6), (9, Offloads::TSO_ECN)];
const FEATURES: u64 = 0x3 | 0x7 << 7 | 0x7 << 11 | 1 << 15 | 1 << 22 | 1 << 30 | 1 << 32;

/// A tap interface that backends have one after the other, and what has passed there.
pub struct Wire {
    tap: Tap,
    queue: Mutex<Box<dyn LinkQueue>>,
    /// Frames that the guest has received by each pair.
    pub received: [AtomicUsize; PAIRS],
    /// Those that it has sent to be cut, and those that took it more buffers than one.
    pub large: AtomicUsize,
    pub spread: AtomicUsize,
}

impl Wire {
    pub fn new(tap: &str) -> Arc<Self> {
        let tap = Tap::open(tap, 1).unwrap();
        let queue = Mutex::new(tap.open_queue(0).unwrap());
        let (received, large, spread) = Default::default();
        Arc::new(Self { tap, queue, received, large, spread })
    }
}

/// A backend that runs.
pub struct Card {
    shutdown: Receiver<ShutdownHandle>,
    thread: JoinHandle<()>,
}

impl Card {
    /// Listens at `socket` for one front end.
    pub fn start(socket: &Path, wire: &Arc<Wire>) -> Self {
        let memory = Memory::new(GuestMemoryMmap::new());
        let backend = Arc::new(Mutex::new(Backend { wire: wire.clone(), memory: memory.clone(), turn: 0 }));
        let mut daemon = VhostUserDaemon::new("card".to_owned(), backend, memory).unwrap();
        let tap = wire.queue.lock().unwrap().event().as_raw_fd();
        daemon.get_epoll_handlers()[0].register_listener(tap, EventSet::IN, TAP).unwrap();
        let mut listener = Listener::new(socket, true).unwrap();
        let (sender, shutdown) = channel();
        let thread = thread::spawn(move || {
            daemon.start(&mut listener).unwrap();
            sender.send(daemon.shutdown_handle().unwrap()).unwrap();
            // A front end that has gone is an end as well.
            let _ = daemon.wait();
        });
        Self { shutdown, thread }
    }

    /// Ends it in the middle of its work.
    pub fn kill(self) {
        self.shutdown.recv().unwrap().shutdown();
        self.thread.join().unwrap();
    }
}

struct Backend {
    wire: Arc<Wire>,
    memory: Memory,
    /// The pair that receives next.
    turn: usize,
}

impl Backend {
    fn send(&self, vring: &VringMutex) {
        let memory = self.memory.memory();
        let mut vring = vring.get_mut();
        while let Some(chain) = next(&mut vring, &self.memory) {
            let head = chain.head_index();
            let mut frame = Vec::new();
            io::Read::read_to_end(&mut chain.reader(&*memory).unwrap(), &mut frame).unwrap();
            self.wire.large.fetch_add(usize::from(frame.len() > LARGE), Ordering::Relaxed);
            // A frame that the host does not take is lost, as frames may be.
            let _ = self.wire.queue.lock().unwrap().send(&[own_memory(&mut frame)]);
            vring.add_used(head, 0).unwrap();
        }
        vring.signal_used_queue().unwrap();
    }

    /// Puts a frame into a pair's buffers, if there are as many as it needs.
    fn receive(&self, vring: &VringMutex, frame: &mut [u8]) -> Option<usize> {
        let memory = self.memory.memory();
        let mut vring = vring.get_mut();
        let begin = vring.get_queue().next_avail();
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < frame.len() {
            let Some(chain) = next(&mut vring, &self.memory) else {
                vring.get_queue_mut().set_next_avail(begin);
                return None;
            };
            room += chain.clone().writer(&*memory).unwrap().available_bytes();
            chains.push(chain);
        }
        // `num_buffers`.
        frame[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let count = chains.len();
        let mut rest = &*frame;
        for chain in chains {
            let head = chain.head_index();
            let mut writer = chain.writer(&*memory).unwrap();
            let (here, later) = rest.split_at(rest.len().min(writer.available_bytes()));
            io::Write::write_all(&mut writer, here).unwrap();
            rest = later;
            vring.add_used(head, here.len() as u32).unwrap();
        }
        vring.signal_used_queue().unwrap();
        Some(count)
    }

    fn receive_all(&mut self, vrings: &[VringMutex]) {
        let mut room = vec![0; MAX_FRAME];
        loop {
            let received = self.wire.queue.lock().unwrap().receive(&[own_memory(&mut room)]);
            let Ok(length) = received else { return };
            // Pairs take turns; a frame that none has room for is lost.
            let pairs = (0..PAIRS).map(|place| (self.turn + place) % PAIRS);
            for pair in pairs {
                if let Some(count) = self.receive(&vrings[2 * pair], &mut room[..length]) {
                    self.wire.received[pair].fetch_add(1, Ordering::Relaxed);
                    self.wire.spread.fetch_add(usize::from(count > 1), Ordering::Relaxed);
                    self.turn = pair + 1;
                    break;
                }
            }
        }
    }
}

type Chain = virtio_queue::DescriptorChain<vm_memory::GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// The next chain of a queue that is to be worked.
fn next(vring: &mut VringState, memory: &Memory) -> Option<Chain> {
    let works = vring.is_enabled() && vring.get_queue().ready();
    if works { vring.get_queue_mut().pop_descriptor_chain(memory.memory()) } else { None }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2 * PAIRS
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn acked_features(&mut self, features: u64) {
        let left = RECEIVED.into_iter().filter(|(bit, _)| features >> bit & 1 == 1).map(|(_, offload)| offload);
        self.wire.tap.set_offloads(left.collect()).unwrap();
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(&mut self, event: u16, _: EventSet, vrings: &[VringMutex], _thread: usize) -> io::Result<()> {
        if u64::from(event) == TAP {
            self.receive_all(vrings);
        } else if event % 2 == 1 {
            self.send(&vrings[usize::from(event)]);
        }
        Ok(())
    }
}
